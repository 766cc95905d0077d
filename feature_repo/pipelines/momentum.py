"""Momentum: returns over several scales, distances to averages and extremes, and the strength of the trend."""

from __future__ import annotations

from functools import partial

import numpy as np

from feature_repo.kernels.elementwise import lagged, log_ratio, log_return, ratio
from feature_repo.kernels.rolling import (
    rolling_max,
    rolling_mean,
    rolling_min,
    rolling_std,
    rolling_sum,
    rolling_trend_t,
)
from feature_repo.pipelines.base import Columns, Feature, FloatArray, Formula, pipeline_of

_C = ("close",)
_CV = ("close", "volume")


def _return(columns: Columns, *, lag: int) -> FloatArray:
    return log_return(columns["close"], lag)


def _acceleration(columns: Columns) -> FloatArray:
    momentum = log_return(columns["close"], 10)
    return momentum - lagged(momentum, 10)


def _skip_month(columns: Columns) -> FloatArray:
    return lagged(log_return(columns["close"], 105), 21)


def _distance_to_mean(columns: Columns, *, window: int) -> FloatArray:
    return log_ratio(columns["close"], rolling_mean(columns["close"], window))


def _distance_to_high(columns: Columns) -> FloatArray:
    return log_ratio(columns["close"], rolling_max(columns["close"], 63))


def _distance_to_low(columns: Columns) -> FloatArray:
    return log_ratio(columns["close"], rolling_min(columns["close"], 63))


def _trend_t(columns: Columns, *, window: int) -> FloatArray:
    close = columns["close"]
    return rolling_trend_t(log_ratio(close, np.ones_like(close)), window)


def _return_to_risk(columns: Columns) -> FloatArray:
    returns = log_return(columns["close"], 1)
    return ratio(rolling_mean(returns, 63), rolling_std(returns, 63, 1))


def _up_share(columns: Columns) -> FloatArray:
    return rolling_mean(np.heaviside(log_return(columns["close"], 1), 0.0), 21)


def _volume_weighted_return(columns: Columns) -> FloatArray:
    volume = columns["volume"]
    return ratio(rolling_sum(log_return(columns["close"], 1) * volume, 21), rolling_sum(volume, 21))


def _distance_to_vwap(columns: Columns) -> FloatArray:
    close, volume = columns["close"], columns["volume"]
    return log_ratio(close, ratio(rolling_sum(close * volume, 20), rolling_sum(volume, 20)))


_RETURNS: dict[Feature, Formula] = {
    Feature(name=f"return_{lag}", inputs=_C, description=f"ln(C[t] / C[t-{lag}])"): partial(_return, lag=lag)
    for lag in (1, 2, 5, 10, 21, 42, 63)
}
_DISTANCES: dict[Feature, Formula] = {
    Feature(name=f"distance_ma_{window}", inputs=_C, description=f"ln(C / mean of the last {window} C)"): partial(
        _distance_to_mean, window=window
    )
    for window in (10, 20, 50)
}
_TRENDS: dict[Feature, Formula] = {
    Feature(
        name=f"trend_t_{window}",
        inputs=_C,
        description=f"t-statistic of the slope of ln C on time, least squares over {window} bars",
    ): partial(_trend_t, window=window)
    for window in (21, 63)
}

PIPELINE = pipeline_of(
    name="momentum",
    version=1,
    warmup_bars=127,  # the skip-month return reaches 126 bars back
    formulas=_RETURNS
    | {
        Feature(
            name="momentum_126_21",
            inputs=_C,
            description="ln(C[t-21] / C[t-126]): half a year, the last month skipped (Jegadeesh & Titman 1993)",
        ): _skip_month,
        Feature(
            name="acceleration_10", inputs=_C, description="10-bar log return less the one 10 bars before"
        ): _acceleration,
    }
    | _DISTANCES
    | {
        Feature(
            name="distance_high_63",
            inputs=_C,
            description="ln(C / highest C of 63 bars), 0 or below (George & Hwang 2004)",
        ): _distance_to_high,
        Feature(
            name="distance_low_63", inputs=_C, description="ln(C / lowest C of 63 bars), 0 or above"
        ): _distance_to_low,
    }
    | _TRENDS
    | {
        Feature(
            name="return_to_risk_63",
            inputs=_C,
            description="Mean over standard deviation (ddof 1) of 63 log returns, per bar (Sharpe 1966)",
        ): _return_to_risk,
        Feature(name="up_share_21", inputs=_C, description="Share of rising bars among the last 21"): _up_share,
        Feature(
            name="volume_weighted_return_21",
            inputs=_CV,
            description="Volume-weighted mean of the last 21 log returns",
        ): _volume_weighted_return,
        Feature(
            name="distance_vwap_20",
            inputs=_CV,
            description="ln(C / volume-weighted mean C of 20 bars)",
        ): _distance_to_vwap,
    },
)
