"""Two variants under identical data, folds and seeds: figures, paired tests, and a verdict that admits not knowing.

Each tested figure is a mean over dates of what each date contributes to it (of a ratio or a Sharpe ratio, linearised:
the figure plus the date's influence on it). So one paired test serves them all: the Diebold-Mariano statistic of the
contributions' difference, held against its own distribution under a stationary block bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from training.dataset import FloatArray, TimeArray
from training.metrics import performance as perf
from training.metrics.forecast import ic_by_time, ic_t_stat, mean_ic

# Tensor suffixes: S seeds, T test bars (dates), N entities, M metrics, R bootstrap replicates.

LEVEL: Final = 0.05
POWER: Final = 0.80
REPS: Final = 2000
MIN_DATES: Final = 63
"""Fewer paired dates, three test windows of 21, are not tested: the bootstrap rejects too often on them."""

Side: TypeAlias = Literal["first", "second", "neither"]
Answer: TypeAlias = Literal["first better", "second better", "each better at something", "no difference shown"]


class ComparisonError(ValueError):
    """Forecasts that can't be compared; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is the same for all that are compared: T bars of test windows.

    ``outcome_TN`` is the label's plain return, ``fold_T`` the fold whose test window the bar lies in.
    """

    event_times_T: TimeArray
    outcome_TN: FloatArray
    fold_T: NDArray[np.int64]
    horizon: int
    bars_per_year: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What one variant said and earned out of sample, once a seed.

    ``score_STN`` and ``confidence_STN`` are NaN where there is no forecast; ``net_ST``, ``gross_ST`` and
    ``turnover_ST`` are those of the seed's evaluation book, NaN on the bars of folds whose fit failed. Costs are
    medians over the fits: ``fit_cpu_s`` of a fold's fit, ``bar_cpu_ms`` of forecasting one bar of all entities.
    ``failures`` has a reason for each fit that failed.
    """

    variant: str
    score_STN: FloatArray
    confidence_STN: FloatArray
    net_ST: FloatArray
    gross_ST: FloatArray
    turnover_ST: FloatArray
    num_parameters: float = float("nan")
    fit_cpu_s: float = float("nan")
    bar_cpu_ms: float = float("nan")
    num_fits: int = 0
    failures: Sequence[str] = ()

    @property
    def tested_ST(self) -> NDArray[np.bool_]:
        """Bars of folds that were fitted."""
        return np.isfinite(self.net_ST)

    @property
    def tested_T(self) -> NDArray[np.bool_]:
        """Bars of folds that were fitted under one seed at least."""
        return np.asarray(self.tested_ST.any(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A figure that is tested; ``contributions`` (S, T) average to it over each seed's tested bars."""

    name: str
    title: str
    contributions: Callable[[Arm, Setting], FloatArray]
    higher_is_better: bool = True
    form: str = ".3f"

    def show(self, value: float) -> str:
        """The figure for people; differences by ``show_difference``."""
        return f"{value:{self.form}}" if np.isfinite(value) else "-"

    def show_difference(self, value: float) -> str:
        """A difference of two figures, with its sign."""
        return f"{value:+{self.form}}" if np.isfinite(value) else "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """One metric of the first less the second, over the dates that both were tested on.

    ``low`` and ``high`` bound the interval of ``1 - LEVEL`` for this metric alone; ``t`` is the Diebold-Mariano
    statistic; ``p_holm`` is corrected over the pair's metrics. ``detectable`` is the true difference that the test
    would find with ``POWER`` in the corrected test's first, hardest step. Untested (``reason`` says why) is all NaN.
    """

    metric: Metric
    num_dates: int
    difference: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    t: float = float("nan")
    p_value: float = float("nan")
    p_holm: float = float("nan")
    detectable: float = float("nan")
    block: int = 0
    favours: Side = "neither"
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the tests say of a pair; ``why`` in plain words."""

    first: str
    second: str
    tests: Sequence[PairedTest]
    answer: Answer
    why: str = field(repr=False)


def figures(arm: Arm, setting: Setting) -> dict[str, float]:
    """Pooled figures over the arm's tested bars, each the mean over seeds; NaN where a figure isn't defined."""
    by_seed: dict[str, FloatArray] = {metric.name: _over_bars(metric, arm, setting) for metric in TESTED}
    ic_ST, right, known = _ic_ST(arm, setting), *_right(arm, setting)
    count_S = known.sum(axis=(1, 2))
    hit_S = _quotient(right.sum(axis=(1, 2)), count_S)
    sure_S = _quotient(np.where(known, arm.confidence_STN, 0.0).sum(axis=(1, 2)), count_S)
    year = setting.bars_per_year
    by_seed |= {
        "ic_t": ic_t_stat(ic_ST[:, :: setting.horizon]),  # labels that overlap are not independent
        "icir": ic_t_stat(ic_ST) / np.sqrt(np.maximum(np.isfinite(ic_ST).sum(axis=-1), 1)),
        "sharpe_gross": perf.sharpe(arm.gross_ST, periods_per_year=year),
        "return_net": perf.annual_return(arm.net_ST, periods_per_year=year),
        "max_drawdown": perf.max_drawdown(arm.net_ST),
        "turnover_ann": perf.turnover_ann(arm.turnover_ST, periods_per_year=year),
        "overconfidence": sure_S - hit_S,
        "score_autocorrelation": mean_ic(ic_by_time(arm.score_STN[:, 1:], arm.score_STN[:, :-1])),
    }
    return {name: float(mean_ic(value_S)) for name, value_S in by_seed.items()} | {
        "num_dates": float(arm.tested_T.sum())
    }


def seed_range(metric: Metric, arm: Arm, setting: Setting) -> tuple[float, float]:
    """The lowest and the highest seed's figure; NaN without any."""
    by_seed = _over_bars(metric, arm, setting)
    known = by_seed[np.isfinite(by_seed)]
    return (float(known.min()), float(known.max())) if len(known) else (float("nan"), float("nan"))


def by_fold(metric: Metric, arm: Arm, setting: Setting) -> dict[int, float]:
    """The metric over each fold's test window, the mean over seeds; NaN where no fit of the fold succeeded."""
    found = {}
    for fold in np.unique(setting.fold_T):
        by_seed = _over_bars(metric, *_cut(arm, setting, setting.fold_T == fold))
        found[int(fold)] = float(mean_ic(by_seed))
    return found


def compare(first: Arm, second: Arm, setting: Setting, *, seed: int, reps: int = REPS) -> Comparison:
    """Test every metric on the dates that both were tested on, correct for their number, and judge.

    Contributions are averaged over seeds first, so seeds lower the noise of fitting but count as no further dates.
    ``seed`` is the bootstrap's; swapping the two gives the same answer with the signs changed.
    """
    if first.net_ST.shape != second.net_ST.shape or first.score_STN.shape[1:] != setting.outcome_TN.shape:
        raise ComparisonError(
            f"{first.variant} has (seeds, bars) {first.net_ST.shape}, {second.variant} {second.net_ST.shape}, the "
            f"outcomes {setting.outcome_TN.shape}: both must be made by the same seeds on the same bars"
        )
    both = first.tested_T & second.tested_T
    arms = [_cut(arm, setting, both) for arm in (first, second)]
    differences = [_by_date(metric, *arms[0]) - _by_date(metric, *arms[1]) for metric in TESTED]
    reasons = [_untestable(difference_T, setting) for difference_T in differences]
    num_tests = sum(not reason for reason in reasons)
    tests = [
        PairedTest(metric=metric, num_dates=int(np.isfinite(difference_T).sum()), reason=reason)
        if reason
        else paired_test(metric, difference_T, horizon=setting.horizon, num_tests=num_tests, seed=seed, reps=reps)
        for metric, difference_T, reason in zip(TESTED, differences, reasons, strict=True)
    ]
    corrected = _corrected(tests)
    answer = _answer(corrected)
    why = _why(first.variant, second.variant, corrected, answer)
    return Comparison(first=first.variant, second=second.variant, tests=corrected, answer=answer, why=why)


def paired_test(
    metric: Metric, difference_T: FloatArray, *, horizon: int, seed: int, num_tests: int = 1, reps: int = REPS
) -> PairedTest:
    """Whether a series of differences has mean 0, before correction; NaN dates are left out.

    t = mean / HAC error (Diebold & Mariano 1995, Bartlett kernel), against |t*| of stationary bootstrap replicates
    (Politis & Romano 1994; mean block by Politis & White 2004, at least the horizon). Plain replicates of the mean
    reject 10% at 5% when autocorrelated at 0.6 over 252 dates; studentised ones, as here, 5%.
    """
    from arch.bootstrap import StationaryBootstrap

    values_T = difference_T[np.isfinite(difference_T)]
    mean, num_dates = float(values_T.mean()), len(values_T)
    if not values_T.any():
        return _same(metric, num_dates)
    block = block_length(values_T, horizon=horizon)
    error = hac_error(values_T, lags=block)
    replicates = StationaryBootstrap(block, values_T, seed=seed).apply(
        lambda drawn_T: abs(drawn_T.mean() - mean) / hac_error(drawn_T, lags=block), reps
    )
    t_R = np.asarray(replicates)[:, 0]
    half = float(np.quantile(t_R, 1.0 - LEVEL)) * error
    hardest = float(np.quantile(t_R, 1.0 - LEVEL / num_tests))
    return PairedTest(
        metric=metric,
        num_dates=num_dates,
        difference=mean,
        low=mean - half,
        high=mean + half,
        t=mean / error,
        p_value=float((1 + (t_R >= abs(mean / error)).sum()) / (reps + 1)),
        detectable=(hardest + float(ndtri(POWER))) * error,
        block=block,
    )


def _same(metric: Metric, num_dates: int) -> PairedTest:
    return PairedTest(
        metric=metric,
        num_dates=num_dates,
        difference=0.0,
        low=0.0,
        high=0.0,
        t=0.0,
        p_value=1.0,
        p_holm=1.0,
        detectable=0.0,
        reason="the same on every date",
    )


def block_length(values_T: FloatArray, *, horizon: int) -> int:
    """Mean block of the stationary bootstrap (Politis & White 2004): at least the horizon, at most a quarter."""
    from arch.bootstrap import optimal_block_length

    optimum = float(optimal_block_length(values_T)["stationary"].iloc[0])
    return max(horizon, int(np.clip(np.ceil(optimum), 1, len(values_T) // 4)))


def hac_error(values_T: FloatArray, *, lags: int) -> float:
    """Standard error of the mean of an autocorrelated series: Newey & West (1987), Bartlett weights."""
    num, deviation_T = len(values_T), values_T - values_T.mean()
    total = deviation_T @ deviation_T
    for lag in range(1, min(lags, num - 1) + 1):
        total += 2.0 * (1.0 - lag / (lags + 1.0)) * (deviation_T[lag:] @ deviation_T[:-lag])
    return float(np.sqrt(total) / num)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given."""
    p_M = np.asarray(p_values, dtype=np.float64)  # statsmodels' collects the process's garbage at every call
    order = np.argsort(p_M, kind="stable")
    stepped = np.maximum.accumulate(p_M[order] * (len(p_M) - np.arange(len(p_M))))
    adjusted = np.empty_like(p_M)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def _untestable(difference_T: FloatArray, setting: Setting) -> str:
    """Why these differences can't be tested; empty where they can."""
    values_T = difference_T[np.isfinite(difference_T)]
    num, needed = len(values_T), max(MIN_DATES, 4 * setting.horizon)
    if not num:
        return "not defined: a side has no forecasts, or its book never traded"
    if num < needed:
        return f"{num} paired dates are too few to test: {needed} or more, so ask for more folds"
    spread = float(np.ptp(values_T))
    return "" if not values_T.any() or spread > 1e-12 * np.abs(values_T).max() else "the difference never varies"


def _corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    tested = [i for i, test in enumerate(tests) if np.isfinite(test.p_value)]
    corrected = list(tests)
    for i, p_holm in zip(tested, holm([tests[i].p_value for i in tested]), strict=True):
        corrected[i] = replace(tests[i], p_holm=p_holm, favours=_favours(tests[i], p_holm))
    return corrected


def _favours(test: PairedTest, p_holm: float) -> Side:
    if p_holm >= LEVEL:
        return "neither"
    return "first" if (test.difference > 0) == test.metric.higher_is_better else "second"


def _answer(tests: Sequence[PairedTest]) -> Answer:
    sides = {test.favours for test in tests} - {"neither"}
    if len(sides) == 2:
        return "each better at something"
    if sides:
        return "first better" if "first" in sides else "second better"
    return "no difference shown"


def _why(first: str, second: str, tests: Sequence[PairedTest], answer: Answer) -> str:
    tested = [test for test in tests if np.isfinite(test.p_holm)]
    if not tested:
        return f"nothing could be tested ({tests[0].metric.title}: {tests[0].reason})"
    if all(test.reason for test in tested):
        return f"{first} and {second} made the same forecasts"
    shown = [test for test in tested if test.favours != "neither"]
    if answer != "no difference shown":
        better = {"first": first, "second": second}
        said = [f"{better[test.favours]} on {test.metric.title}: {_interval(test)}" for test in shown]
        return f"{'; '.join(said)}; corrected for {len(tested)} metrics"
    seen = ", ".join(
        f"{test.metric.title} {test.metric.show(test.detectable)}" for test in tested if test.detectable > 0
    )
    return (
        f"{_spanning(tested)}; a difference of at least this much would have been seen with {POWER:.0%} power: {seen}"
    )


def _spanning(tested: Sequence[PairedTest]) -> str:
    """What the intervals say where nothing is shown; one that leaves out 0 did not survive the correction."""
    inside = [f"{test.metric.title} ({_bounds(test)})" for test in tested if test.low <= 0.0 <= test.high]
    beside = [f"{test.metric.title} ({_bounds(test)})" for test in tested if not test.low <= 0.0 <= test.high]
    said = [f"the {1 - LEVEL:.0%} interval for {', '.join(inside)} spans 0"] if inside else []
    if beside:
        said.append(
            f"that for {', '.join(beside)} leaves out 0 taken alone, but not after Holm's correction for "
            f"{len(tested)} metrics"
        )
    return "; ".join(said)


def _interval(test: PairedTest) -> str:
    return (
        f"{test.metric.show_difference(test.difference)} ({1 - LEVEL:.0%} interval {_bounds(test)}, "
        f"Holm p {test.p_holm:.3f})"
    )


def _bounds(test: PairedTest) -> str:
    return f"{test.metric.show_difference(test.low)} to {test.metric.show_difference(test.high)}"


def _cut(arm: Arm, setting: Setting, keep_T: NDArray[np.bool_]) -> tuple[Arm, Setting]:
    by_bar = ("score_STN", "confidence_STN", "net_ST", "gross_ST", "turnover_ST")
    common = ("event_times_T", "outcome_TN", "fold_T")
    return (
        replace(arm, **{name: getattr(arm, name)[:, keep_T] for name in by_bar}),
        replace(setting, **{name: getattr(setting, name)[keep_T] for name in common}),
    )


def _by_date(metric: Metric, arm: Arm, setting: Setting) -> FloatArray:
    return mean_ic(metric.contributions(arm, setting).T)


def _over_bars(metric: Metric, arm: Arm, setting: Setting) -> FloatArray:
    return mean_ic(metric.contributions(arm, setting))


def _right(arm: Arm, setting: Setting) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the sign was right, and where there was one to tell: no zeros, nothing missing. Both (S, T, N)."""
    said, came = np.sign(arm.score_STN), np.sign(setting.outcome_TN)
    known = (np.abs(said) == 1.0) & (np.abs(came) == 1.0) & arm.tested_ST[..., None]
    return known & (said == came), known


def _accuracy_ST(arm: Arm, setting: Setting) -> FloatArray:
    """Balanced: the mean of the shares told right of what rose and of what fell."""
    right, known = _right(arm, setting)
    sides = (setting.outcome_TN > 0, setting.outcome_TN < 0)
    rose, fell = (_ratio_ST((right & side).sum(axis=-1), (known & side).sum(axis=-1), arm.tested_ST) for side in sides)
    return (rose + fell) / 2.0


def _brier_ST(arm: Arm, setting: Setting) -> FloatArray:
    """Squared distance of the confidence that the sign is right from whether it was; 0.25 is knowing nothing."""
    right, known = _right(arm, setting)
    loss = np.where(known, (arm.confidence_STN - right) ** 2, 0.0)
    return _ratio_ST(loss.sum(axis=-1), known.sum(axis=-1), arm.tested_ST)


def _ic_ST(arm: Arm, setting: Setting) -> FloatArray:
    """Rank IC of each bar; 0 where all scores are equal, which is what breaking the ties at random is expected to give.

    Left out instead, such bars would leave a model that mostly says nothing judged by the few on which it dared.
    """
    ic_ST = ic_by_time(arm.score_STN, setting.outcome_TN)
    possible_STN = np.where(np.isfinite(arm.score_STN), setting.outcome_TN, np.nan)
    rankable_ST = np.isfinite(ic_by_time(possible_STN, setting.outcome_TN))
    return np.where(rankable_ST & np.isnan(ic_ST), 0.0, ic_ST)


def _sharpe_ST(arm: Arm, setting: Setting) -> FloatArray:
    """The annualised net Sharpe ratio plus each bar's influence on it: z - SR (z^2 - mean z^2) / 2.

    Source: the delta method of Ledoit & Wolf (2008), Robust performance hypothesis testing with the Sharpe ratio.
    """
    ratio = perf.sharpe(arm.net_ST, periods_per_year=1.0)[:, None]
    mean, std = mean_ic(arm.net_ST)[:, None], perf.annual_volatility(arm.net_ST, periods_per_year=1.0)[:, None]
    z_ST = (arm.net_ST - mean) / np.where(std > 0, std, np.nan)
    square_ST = z_ST**2
    influence_ST = z_ST - ratio / 2.0 * (square_ST - mean_ic(square_ST)[:, None])
    return (ratio + influence_ST) * np.sqrt(setting.bars_per_year)


def _ratio_ST(part_ST: NDArray, whole_ST: NDArray, tested_ST: NDArray[np.bool_]) -> FloatArray:
    """Sum of parts over sum of wholes, plus each bar's influence on it; NaN on bars not tested."""
    total = whole_ST.sum(axis=-1, keepdims=True)
    ratio = _quotient(part_ST.sum(axis=-1, keepdims=True), total)
    mean_whole = _quotient(total, tested_ST.sum(axis=-1, keepdims=True))
    return np.where(tested_ST, ratio + _quotient(part_ST - ratio * whole_ST, mean_whole), np.nan)


def _quotient(part: NDArray, whole: NDArray) -> FloatArray:
    return np.where(whole > 0, part, np.nan) / np.where(whole > 0, whole, 1.0)


ACCURACY: Final = Metric(name="accuracy", title="balanced accuracy", contributions=_accuracy_ST, form=".1%")
IC: Final = Metric(name="ic", title="IC", contributions=_ic_ST)
SHARPE_NET: Final = Metric(name="sharpe_net", title="net Sharpe ratio", contributions=_sharpe_ST, form=".2f")
BRIER: Final = Metric(name="brier", title="Brier score", contributions=_brier_ST, higher_is_better=False, form=".4f")
TESTED: Final = (ACCURACY, IC, SHARPE_NET, BRIER)
