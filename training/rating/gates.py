"""Gates: is a track better than luck explains, knowing how many were tried?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.leakage.verdict import LeakVerdict
from training.metrics import performance as perf

FloatArray = NDArray[np.float64]

MIN_DAYS: Final = 126

# Tensor suffixes: V variants (trials), T bars, S bars that all judged variants share.


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a gate said of one variant; ``value`` is held against ``threshold``. Without ``veto`` it only warns."""

    gate: str
    ok: bool
    value: float
    threshold: float
    why: str
    veto: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """What StepM said of all trials at once.

    ``superior`` (V,) are the variants found skilled, ``judged`` (V,) those with a long enough track and any risk
    taken; ``sharpe_V`` holds the Sharpe ratios over the shared bars (per bar; NaN where not judged) and ``critical``
    what luck gives, at this ``level``, the best of those not found skilled: just the superior are above it.
    ``p_value`` is the best variant's (Hansen's consistent one); ``num_trials`` counts every variant given,
    ``num_days`` the bars shared.
    """

    superior: NDArray[np.bool_]
    judged: NDArray[np.bool_]
    sharpe_V: FloatArray
    critical: float
    p_value: float
    level: float
    num_trials: int
    num_days: int
    min_days: int
    block_size: int

    def verdicts(self, *, periods_per_year: float) -> list[Verdict]:
        """One verdict a variant, its Sharpe ratio and the critical one annualised."""
        scale = float(np.sqrt(periods_per_year))
        return [self._verdict(v, scale) for v in range(len(self.superior))]

    def _verdict(self, v: int, scale: float) -> Verdict:
        value, critical, ok = float(self.sharpe_V[v]) * scale, self.critical * scale, bool(self.superior[v])
        if not self.judged[v]:
            why = f"not judged: that takes a return on each of the last {self.min_days} bars, and not the same on all"
        else:
            why = (
                f"a residual Sharpe ratio of {value:.2f} over {self.num_days} bars "
                f"{'beats' if ok else 'does not beat'} {critical:.2f}, which luck alone reaches in "
                f"{self.level:.0%} of cases for the best of {self.num_trials} trials"
            )
        return Verdict(gate="skill", ok=ok, value=value, threshold=critical, why=why)


def skilled(
    residual_VT: FloatArray, *, seed: int, level: float = 0.05, reps: int = 1000, min_days: int = MIN_DAYS
) -> GateResult:
    """The variants whose mean return is above zero beyond what searching among all of them explains.

    StepM (Romano & Wolf 2005) over the stationary bootstrap: the chance of calling any skill-less variant skilled is
    at most ``level``, however many were tried, so give it every trial, failed ones as rows of NaN. Judged are the
    variants with a return on each of the last ``min_days`` bars that aren't all equal; the test runs on the bars
    which all of those share. A shorter track isn't judged, rather than shortening everyone's. Give it returns
    residual to the benchmark: on raw ones, holding the market passes for skill. The same seed gives the same answer.
    """
    num_trials, _ = residual_VT.shape
    judged = _long_enough(residual_VT, min_days)
    shared = np.isfinite(residual_VT[judged]).all(axis=0) & judged.any()
    returns_SV = residual_VT[judged][:, shared].T
    superior, sharpe_V = np.zeros(num_trials, dtype=bool), np.full(num_trials, np.nan)
    critical, p_value, block_size = float("nan"), float("nan"), 0
    if judged.any():
        unit_SV = returns_SV / returns_SV.std(axis=0)
        block_size = _block_size(unit_SV)
        superior[judged], critical, p_value = _step_m(unit_SV, level=level, reps=reps, seed=seed, block_size=block_size)
        sharpe_V[judged] = unit_SV.mean(axis=0)
    return GateResult(
        superior=superior,
        judged=judged,
        sharpe_V=sharpe_V,
        critical=critical,
        p_value=p_value,
        level=level,
        num_trials=num_trials,
        num_days=int(shared.sum()),
        min_days=min_days,
        block_size=block_size,
    )


def track_record(returns_T: FloatArray, *, level: float = 0.05) -> Verdict:
    """Whether the track is as long as its Sharpe ratio needs to be told from zero (minimum track record length).

    Source: Bailey & Lopez de Prado (2012). It takes the variant alone, as if nothing else had been tried.
    """
    have, needed = int(np.isfinite(returns_T).sum()), float(perf.min_track_record(returns_T, level=level))
    ok = bool(have >= needed)  # False where needed is NaN: without variance nothing is told from zero
    if ok:
        why = f"its {have} bars are at least the {np.ceil(needed):.0f} that its Sharpe ratio needs"
    elif np.isfinite(needed):
        why = f"its {have} bars are fewer than the {np.ceil(needed):.0f} that its Sharpe ratio needs"
    else:
        why = "its Sharpe ratio is not above zero, which no length of track makes up for"
    return Verdict(gate="track_record", ok=ok, value=float(have), threshold=needed, why=why)


def deflated_sharpe(returns_VT: FloatArray, *, level: float = 0.05) -> list[Verdict]:
    """The deflated Sharpe ratio of every variant, a warning: the probability that it beats the best of luck.

    PSR against the Sharpe ratio expected of the best of V skill-less trials with the spread seen over the trials.
    Every variant counts as a trial of its own, which is strict where variants resemble one another, and true skill
    among them widens the spread and so hides itself: hence no veto. Source: Bailey & Lopez de Prado (2014).
    """
    ratios = perf.sharpe(returns_VT, periods_per_year=1.0)
    known = ratios[np.isfinite(ratios)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    hurdle = perf.expected_max_sharpe(spread, len(returns_VT))
    return [_deflated(float(p), level, len(returns_VT)) for p in perf.psr(returns_VT, benchmark_sharpe=hurdle)]


def leaks(verdict: LeakVerdict | None, *, fingerprint: str) -> Verdict:
    """Whether what a variant was trained on, the panel with this fingerprint, was found clean by the leak detector.

    ``value`` counts findings, of which there may be none; it is NaN without a verdict on these data.
    """
    if verdict is None:
        return _leaks(np.nan, "its panel was not checked for leaks")
    if verdict.fingerprint != fingerprint:
        other, own = verdict.fingerprint[:12], fingerprint[:12]
        return _leaks(np.nan, f"the leak verdict is about other data ({other}) than its panel ({own})")
    if not verdict.num_compared:
        return _leaks(np.nan, "the check of its panel for leaks compared nothing, which proves nothing")
    num = len(verdict.findings)
    compared = f"{verdict.num_compared:,} values compared at {len(verdict.checked_at)} moments"
    if not num:
        return _leaks(0.0, f"nothing in its panel knows the future: {compared}")
    first = verdict.findings[0].message
    return _leaks(num, f"its panel knows the future: {num} leaks in {compared}, the first: {first}")


def _leaks(num_found: float, why: str) -> Verdict:
    return Verdict(gate="leaks", ok=num_found == 0, value=float(num_found), threshold=0.0, why=why)


def _deflated(probability: float, level: float, num_trials: int) -> Verdict:
    ok = bool(probability > 1.0 - level)
    why = (
        f"the probability that it beats the luckiest of {num_trials} skill-less trials is {probability:.2f}, "
        f"{'above' if ok else 'not above'} {1.0 - level:.2f}"
    )
    return Verdict(gate="deflated_sharpe", ok=ok, value=probability, threshold=1.0 - level, why=why, veto=False)


def _long_enough(residual_VT: FloatArray, min_days: int) -> NDArray[np.bool_]:
    """Variants with a return on each of the last ``min_days`` bars, not all the same."""
    if residual_VT.shape[1] < min_days:
        return np.zeros(len(residual_VT), dtype=bool)
    last = residual_VT[:, -min_days:]
    whole = np.isfinite(last).all(axis=1, keepdims=True)
    return np.isfinite(perf.sharpe(np.where(whole, last, 0.0), periods_per_year=1.0))


def _block_size(unit_SV: FloatArray) -> int:
    """Mean block of the stationary bootstrap: the median over the variants of Politis & White's (2004) optimum."""
    from arch.bootstrap import optimal_block_length

    optimum = np.median(optimal_block_length(unit_SV)["stationary"].to_numpy())
    return int(np.clip(np.ceil(optimum), 1, np.sqrt(len(unit_SV))))


def _step_m(
    unit_SV: FloatArray, *, level: float, reps: int, seed: int, block_size: int
) -> tuple[NDArray[np.bool_], float, float]:
    """Superior variants, the final step's critical mean and the best variant's p-value.

    ``unit_SV`` has returns of unit variance: arch 8.0 compares plain means, whatever its ``studentize``, and the most
    volatile variant would set the bar for all. Cash joins as one more trial: it is never superior, and without it
    arch fails where the last variants standing are found superior in a later step.
    """
    from arch.bootstrap import StepM

    losses_SV = -np.column_stack([unit_SV, np.zeros(len(unit_SV))])
    test = StepM(np.zeros(len(unit_SV)), losses_SV, size=level, block_size=block_size, reps=reps, seed=seed)
    test.compute()
    superior = np.zeros(unit_SV.shape[1] + 1, dtype=bool)
    superior[np.array(test.superior_models, dtype=int)] = True
    test.spa.compute()
    p_value = float(test.spa.pvalues["consistent"])
    test.spa.subset(~superior)
    test.spa.compute()
    critical = float(test.spa.critical_values(level)["consistent"])
    return superior[:-1], critical, p_value
