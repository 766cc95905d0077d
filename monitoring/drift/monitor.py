"""Daily drift verdicts: features by PSI, forecasts by IC, results by Sharpe, each against its calibrated threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitoring.alerts.matrix import Action, History, Severity, Signal, respond
from monitoring.drift.calibration import lower_threshold, psi_thresholds
from monitoring.drift.statistics import rolling_mean, session_counts, window_psi
from training.metrics.performance import rolling_sharpe, sharpe

FloatArray = NDArray[np.float64]
FEATURE_WINDOW: Final = 21  # newest sessions whose features are compared: short, so that a training window holds many
WINDOW: Final = 63  # newest sessions over which forecasts and results are averaged
NUM_DAYS: Final = 10  # the longest run of days that a rule asks for


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftVerdict:
    """What one signal says of one strategy on one day.

    ``feature`` is ``*`` where the signal is not about a feature. ``severity`` is by the classic thresholds and only
    shown; ``action`` needs the value to be beyond ``calibrated`` too (None: too little history to calibrate).
    """

    day: date
    strategy: str
    feature: str
    signal: Signal
    value: float
    calibrated: float | None
    severity: Severity
    action: Action
    why: str


def feature_verdicts(
    strategy: str,
    feature_names: Sequence[str],
    reference_TNF: FloatArray,
    current_TNF: FloatArray,
    *,
    day: date,
    rng: np.random.Generator,
) -> list[DriftVerdict]:
    """PSI of every feature between the training window and the newest sessions, (T, N, F) each."""
    reference_TFB, current_TFB = session_counts(reference_TNF, current_TNF)
    values = window_psi(reference_TFB, current_TFB)
    limits = psi_thresholds(reference_TFB, num_current=len(current_TNF), rng=rng)
    return [
        _verdict(strategy, name, "psi", (float(values[f]),), None if limits is None else float(limits[f]), day)
        for f, name in enumerate(feature_names)
    ]


def outcome_verdicts(
    strategy: str,
    ic_T: FloatArray,
    net_T: FloatArray,
    *,
    periods_per_year: float,
    day: date,
    rng: np.random.Generator,
) -> list[DriftVerdict]:
    """IC and Sharpe ratio of a strategy over its newest sessions, against what its own earlier ones make likely.

    ``ic_T`` and ``net_T`` are the out-of-sample ICs and net returns of its bars, oldest first, NaN before its first.
    """

    def mean(values: FloatArray) -> float:
        return float(values.mean())

    def ratio(values: FloatArray) -> float:
        return float(sharpe(values, periods_per_year=periods_per_year))

    ratios = rolling_sharpe(net_T, window=WINDOW, periods_per_year=periods_per_year)
    return [
        _outcome(strategy, "ic", rolling_mean(ic_T, WINDOW), ic_T, mean, day, rng),
        _outcome(strategy, "sharpe", ratios, net_T, ratio, day, rng),
    ]


def _outcome(
    strategy: str,
    signal: Signal,
    rolling_T: FloatArray,
    daily_T: FloatArray,
    statistic: Callable[[FloatArray], float],
    day: date,
    rng: np.random.Generator,
) -> DriftVerdict:
    limit = lower_threshold(daily_T[:-WINDOW], statistic, num_current=WINDOW, rng=rng)
    return _verdict(strategy, "*", signal, tuple(float(value) for value in rolling_T[-NUM_DAYS:]), limit, day)


def _verdict(
    strategy: str, feature: str, signal: Signal, values: tuple[float, ...], limit: float | None, day: date
) -> DriftVerdict:
    alert = respond(History(signal=signal, values=values, calibrated_threshold=limit))
    return DriftVerdict(
        day=day,
        strategy=strategy,
        feature=feature,
        signal=signal,
        value=values[-1],
        calibrated=limit,
        severity=alert.severity,
        action=alert.action,
        why=alert.why,
    )
