"""Gates on returns: is a track better than luck explains, knowing how many were tried, and how often one looks?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from training.leakage.verdict import LeakVerdict
from training.metrics import performance as perf
from training.rating.step_m import step_m

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MIN_DAYS: Final = 126
LEVEL: Final = 0.05  # chance that one gate names any skill-less variant, at most
YEAR_LEVEL: Final = 0.10  # that any of a year's gates does
AFTER_BETA: Final = f"after the first {perf.MIN_BETA_BARS}, which its beta takes"
"""Of which bars of a track the gates speak: returns residual to the market, without those before a beta is known."""
REPS: Final = 5000  # at the level of a night fewer leave a critical value that flickers from night to night

# Tensor suffixes: V variants (trials), T bars, J variants judged, S bars that all judged variants share.


class GateError(ValueError):
    """A judgement that can't be made of what was handed in."""


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
    ``level`` is this gate's own, ``year_level`` that of all of a year's while the track grows by ``year_bars``.
    ``p_value`` is the best variant's (Hansen's consistent one, between his ``p_lower`` and ``p_upper``); ``num_trials``
    counts every variant given, ``num_days`` the bars shared.
    """

    superior: BoolArray
    judged: BoolArray
    sharpe_V: FloatArray
    critical: float
    p_value: float
    p_lower: float
    p_upper: float
    level: float
    year_level: float
    year_bars: int
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
            why = f"not judged: that takes {self._long_enough}, and not the same on all"
        else:
            why = (
                f"a residual Sharpe ratio of {value:.2f} over {self.num_days} bars {AFTER_BETA}, "
                f"{'beats' if ok else 'does not beat'} {critical:.2f}, which luck alone reaches in "
                f"{self.level:.1%} of cases for the best of {self.num_trials} trials"
            )
        return Verdict(gate="skill", ok=ok, value=value, threshold=critical, why=why)

    def spa(self, *, level: float = 0.05) -> Verdict:
        """Hansen's (2005) test that anything at all is above zero, at this gate alone: a warning, StepM decides."""
        ok = bool(self.p_value <= level)  # False where nobody is judged
        why = (
            f"a best variant as good as this comes of luck with a probability of {self.p_value:.3f} "
            f"(between {self.p_lower:.3f} and {self.p_upper:.3f}), {'at most' if ok else 'more than'} {level:.2f}"
        )
        if not self.judged.any():
            why = f"not asked: nobody has a long enough track, {self._long_enough}"
        return Verdict(gate="spa", ok=ok, value=self.p_value, threshold=level, why=why, veto=False)

    @property
    def _long_enough(self) -> str:
        return f"a return on each of the last {self.min_days} bars {AFTER_BETA}"


def skilled(
    residual_VT: FloatArray,
    *,
    seed: int,
    level: float = LEVEL,
    year_level: float = YEAR_LEVEL,
    year_bars: int = 252,
    reps: int = REPS,
    min_days: int = MIN_DAYS,
) -> GateResult:
    """The variants whose mean return is above zero beyond what searching among all of them explains.

    StepM (Romano & Wolf 2005) over the stationary bootstrap: the chance of calling any skill-less variant skilled is at
    most ``level``, and at any of a year's gates at most ``year_level`` (``nightly_level``; the track grows by
    ``year_bars`` meanwhile, or nobody looks again: 0), however many were tried. Give it every trial, failed ones as
    rows of NaN. Judged are the variants with a return on each of the last ``min_days`` bars that aren't all equal; the
    test runs on the bars which all of those share. A shorter track isn't judged, rather than shortening everyone's.
    Give it returns residual to the market: on raw ones, holding the market passes for skill. The same seed gives
    the same answer.
    """
    num_trials, _ = residual_VT.shape
    judged, shared = judgeable(residual_VT, min_days=min_days)
    superior, sharpe_V = np.zeros(num_trials, dtype=bool), np.full(num_trials, np.nan)
    num_days, block_size, own_level = int(shared.sum()), 0, level
    critical = p_value = p_lower = p_upper = float("nan")
    if judged.any():
        returns_SJ = residual_VT[judged][:, shared].T
        unit_SJ = returns_SJ / returns_SJ.std(axis=0)
        block_size = mean_block(unit_SJ)
        own_level = min(level, nightly_level(year_level, num_bars=num_days, num_trials=num_trials, year_bars=year_bars))
        found = step_m(unit_SJ, level=own_level, reps=reps, seed=seed, block_size=block_size)
        superior[judged], sharpe_V[judged] = found.superior_V, unit_SJ.mean(axis=0)
        critical, p_value, p_lower, p_upper = found.critical, found.p_consistent, found.p_lower, found.p_upper
    return GateResult(
        superior=superior,
        judged=judged,
        sharpe_V=sharpe_V,
        critical=critical,
        p_value=p_value,
        p_lower=p_lower,
        p_upper=p_upper,
        level=own_level,
        year_level=year_level,
        year_bars=year_bars,
        num_trials=num_trials,
        num_days=num_days,
        min_days=min_days,
        block_size=block_size,
    )


def judgeable(residual_VT: FloatArray, *, min_days: int = MIN_DAYS) -> tuple[BoolArray, BoolArray]:
    """Which variants (V,) are judged, and the bars (T,) that all of those share.

    It takes a return on each of the last ``min_days`` bars, not all the same. Without such a variant there are no bars.
    """
    num_trials, num_bars = residual_VT.shape
    if num_bars < min_days:
        return np.zeros(num_trials, dtype=bool), np.zeros(num_bars, dtype=bool)
    last = residual_VT[:, -min_days:]
    whole = np.isfinite(last).all(axis=1, keepdims=True)
    judged = np.isfinite(perf.sharpe(np.where(whole, last, 0.0), periods_per_year=1.0))
    shared = np.zeros(num_bars, dtype=bool)
    if judged.any():
        shared[:] = np.isfinite(residual_VT[judged]).all(axis=0)
    return judged, shared


def nightly_level(year_level: float, *, num_bars: int, num_trials: int, year_bars: int) -> float:
    """The level of one gate of a year of them, so that all together err with a chance of at most ``year_level``.

    The gate is asked again at every bar, or less often, while the track grows. A skill-less variant's t-statistic
    then is an Ornstein-Uhlenbeck process in the logarithm of the track's length. Its chance to be above u at any of the
    looks is at most that of two unlike looks, 2 (1 - Phi(u)), and (u - 1/u) phi(u) / 2n more with each bar n (Siegmund
    1985, Sequential analysis, sections 4.5 and 9.3): looks are so alike that a year of them is worth 4 or 5, not 252.
    Levels of ``year_level / (2 + year_bars h / n)``, with h / n the chance a bar brings by that of one look, sum to at
    most ``year_level`` over any year. u is the critical value of the best of ``num_trials`` unlike ones (Bonferroni);
    those that resemble one another have a lower one and err more seldom.
    """
    if not year_bars:
        return year_level
    level = year_level
    for _ in range(20):  # a contraction: it settles to 1e-12 within a dozen
        u = max(-float(ndtri(level / num_trials)), 1.0)
        density = np.exp(-0.5 * u * u) / np.sqrt(2.0 * np.pi)
        a_bar = 0.5 * (u - 1.0 / u) * density / ndtr(-u) / num_bars
        level = year_level / (2.0 + year_bars * a_bar)
    return float(level)


def mean_block(unit_SV: FloatArray) -> int:
    """Mean block of the stationary bootstrap: the median over the variants of Politis & White's (2004) optimum.

    It is at least the cube root of the bars, the optimum's own rate: on weak autocorrelation the estimate, which takes
    what isn't significant for none, comes out at 2 or 3, and on returns with one of 0.1 a gate with such blocks errs
    nearly twice as often as it says.
    """
    from arch.bootstrap import optimal_block_length

    num_bars = len(unit_SV)
    optimum = np.median(optimal_block_length(unit_SV)["stationary"].to_numpy())
    return int(np.ceil(np.clip(optimum, np.cbrt(num_bars), np.sqrt(num_bars))))


def track_record(returns_T: FloatArray, *, level: float = 0.05) -> Verdict:
    """Whether the track is as long as its Sharpe ratio needs to be told from zero (minimum track record length).

    Source: Bailey & Lopez de Prado (2012). It takes the variant alone, as if nothing else had been tried. Give it
    returns residual to the market, without the first ``MIN_BETA_BARS``.
    """
    have, needed = int(np.isfinite(returns_T).sum()), float(perf.min_track_record(returns_T, level=level))
    ok = bool(have >= needed)  # False where needed is NaN: without variance nothing is told from zero
    if not have:
        why = f"it has no bar {AFTER_BETA}"
    elif np.isfinite(needed):
        than = "at least" if ok else "fewer than"
        why = f"its {have} bars {AFTER_BETA}, are {than} the {np.ceil(needed):.0f} that its residual Sharpe ratio needs"
    else:
        why = (
            f"over its {have} bars {AFTER_BETA}, its residual Sharpe ratio is not above zero, "
            "which no length of track makes up for"
        )
    return Verdict(gate="track_record", ok=ok, value=float(have), threshold=needed, why=why)


def deflated_sharpe(
    returns_VT: FloatArray,
    *,
    level: float = 0.05,
    num_trials: float | None = None,
    sharpe_std: float | None = None,
) -> list[Verdict]:
    """The deflated Sharpe ratio of every variant, a warning: the probability that it beats the best of luck.

    PSR against the Sharpe ratio expected of the best of ``num_trials`` skill-less trials whose ratios (per bar) spread
    by ``sharpe_std``. Unless given, every variant counts as a trial of its own, which is strict where they resemble one
    another; see ``effective_trials``. True skill among them widens the spread and so hides itself: hence no veto.
    Without a trial to tell luck from, or without returns, nothing is known: NaN, and not ok.
    Source: Bailey & Lopez de Prado (2014).
    """
    num = len(returns_VT) if num_trials is None else num_trials
    hurdle = perf.expected_max_sharpe(_spread(returns_VT) if sharpe_std is None else sharpe_std, num)
    return [_deflated(float(p), level, num) for p in perf.psr(returns_VT, benchmark_sharpe=hurdle)]


def _spread(returns_VT: FloatArray) -> float:
    """The spread of the trials' Sharpe ratios, per bar."""
    ratios = perf.sharpe(returns_VT, periods_per_year=1.0)
    known = ratios[np.isfinite(ratios)]
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0


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


def _deflated(probability: float, level: float, num_trials: float) -> Verdict:
    if not num_trials:
        probability = float("nan")
    ok = bool(probability > 1.0 - level)
    if not num_trials:
        why = "the probability that it beats the luckiest trial is not known, since nobody has a long enough track"
    elif np.isnan(probability):
        why = f"the probability that it beats the luckiest of {num_trials:.0f} trials is not known without its returns"
    else:
        why = (
            f"the probability that it beats the luckiest of {num_trials:.0f} skill-less trials is {probability:.2f}, "
            f"{'above' if ok else 'not above'} {1.0 - level:.2f}"
        )
    return Verdict(gate="deflated_sharpe", ok=ok, value=probability, threshold=1.0 - level, why=why, veto=False)
