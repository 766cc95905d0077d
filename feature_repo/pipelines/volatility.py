"""Volatility at several scales, its shape and its own variability; per bar, of log returns, never annualised.

Realised volatility needs finer bars inside the bar (see the aggregate ``intraday``) and leaves the session's gap out.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from feature_repo.kernels.elementwise import lagged, log_ratio, log_return, ratio
from feature_repo.kernels.rolling import (
    decay_weights,
    rolling_kurtosis,
    rolling_mean,
    rolling_skew,
    rolling_std,
    rolling_sum,
    weighted_average,
    wilder_weights,
)
from feature_repo.kernels.volatility import (
    downside_deviation,
    garman_klass_variance,
    max_drawdown,
    parkinson_variance,
    rogers_satchell_variance,
    true_range,
    yang_zhang_weight,
)
from feature_repo.pipelines.base import Columns, Feature, FloatArray, Formula, pipeline_of

_C = ("close",)
_HL = ("high", "low")
_HLC = ("high", "low", "close")
_OHLC = ("open", "high", "low", "close")
_RV = ("realised_variance",)


def _returns(columns: Columns) -> FloatArray:
    return log_return(columns["close"], 1)


def _vol(columns: Columns, *, window: int) -> FloatArray:
    return rolling_std(_returns(columns), window, 1)


def _vol_ratio(columns: Columns, *, short: int, long: int) -> FloatArray:
    return ratio(_vol(columns, window=short), _vol(columns, window=long))


def _ewma_vol(columns: Columns) -> FloatArray:
    returns = _returns(columns)
    return np.sqrt(weighted_average(returns * returns, decay_weights(0.94, 100)))


def _downside_vol(columns: Columns) -> FloatArray:
    return downside_deviation(_returns(columns), 21)


def _vol_of_vol(columns: Columns) -> FloatArray:
    vol = _vol(columns, window=10)
    return ratio(rolling_std(vol, 42, 1), rolling_mean(vol, 42))


def _skew(columns: Columns) -> FloatArray:
    return rolling_skew(_returns(columns), 63)


def _kurtosis(columns: Columns) -> FloatArray:
    return rolling_kurtosis(_returns(columns), 63)


def _drawdown(columns: Columns) -> FloatArray:
    return max_drawdown(columns["close"], 63)


def _root(variance: FloatArray) -> FloatArray:
    # a close outside its bar's range can make an estimate negative: that is not a volatility
    return np.sqrt(np.where(variance < 0.0, np.nan, variance))


def _parkinson(columns: Columns) -> FloatArray:
    return _root(rolling_mean(parkinson_variance(columns["high"], columns["low"]), 21))


def _garman_klass(columns: Columns) -> FloatArray:
    variance = garman_klass_variance(columns["open"], columns["high"], columns["low"], columns["close"])
    return _root(rolling_mean(variance, 21))


def _rogers_satchell(columns: Columns) -> FloatArray:
    variance = rogers_satchell_variance(columns["open"], columns["high"], columns["low"], columns["close"])
    return _root(rolling_mean(variance, 21))


def _yang_zhang(columns: Columns) -> FloatArray:
    overnight = rolling_std(log_ratio(columns["open"], lagged(columns["close"], 1)), 21, 1)
    intrabar = rolling_std(log_ratio(columns["close"], columns["open"]), 21, 1)
    drift_free = rogers_satchell_variance(columns["open"], columns["high"], columns["low"], columns["close"])
    weight = yang_zhang_weight(21)
    variance = overnight * overnight + weight * intrabar * intrabar + (1.0 - weight) * rolling_mean(drift_free, 21)
    return _root(variance)


def _normalised_atr(columns: Columns) -> FloatArray:
    average = weighted_average(true_range(columns["high"], columns["low"], columns["close"]), wilder_weights(14))
    return ratio(average, columns["close"])


def _realised_vol(columns: Columns, *, window: int) -> FloatArray:
    return np.sqrt(rolling_mean(columns["realised_variance"], window))


def _share_of_realised(columns: Columns, *, name: str) -> FloatArray:
    return ratio(rolling_sum(columns[name], 22), rolling_sum(columns["realised_variance"], 22))


def _jump_share(columns: Columns) -> FloatArray:
    return np.maximum(1.0 - _share_of_realised(columns, name="bipower_variation"), 0.0)


def _realised_change(columns: Columns) -> FloatArray:
    return log_ratio(_realised_vol(columns, window=1), _realised_vol(columns, window=22))


_VOLS: dict[Feature, Formula] = {
    Feature(
        name=f"vol_{window}",
        inputs=_C,
        description=f"Standard deviation (ddof 1) of the last {window} close-to-close log returns",
    ): partial(_vol, window=window)
    for window in (5, 10, 21, 63)
}
_RATIOS: dict[Feature, Formula] = {
    Feature(name=f"vol_ratio_{short}_{long}", inputs=_C, description=f"vol_{short} / vol_{long}"): partial(
        _vol_ratio, short=short, long=long
    )
    for short, long in ((5, 21), (21, 63))
}
_REALISED: dict[Feature, Formula] = {
    **{
        Feature(
            name=f"realised_vol_{window}",
            inputs=_RV,
            description=f"sqrt of the {window}-bar mean of the sum of squared intraday log returns (HAR, Corsi 2009)",
        ): partial(_realised_vol, window=window)
        for window in (1, 5, 22)
    },
    Feature(
        name="realised_change_1_22",
        inputs=_RV,
        description="ln(realised_vol_1 / realised_vol_22)",
    ): _realised_change,
    Feature(
        name="jump_share_22",
        inputs=("realised_variance", "bipower_variation"),
        description="max(0, 1 - bipower variation / realised variance), sums of 22 bars (Barndorff-Nielsen & Shephard "
        "2004)",
    ): _jump_share,
    Feature(
        name="upside_share_22",
        inputs=("realised_variance", "upside_semivariance"),
        description="Share of realised variance from rising intraday returns, 22 bars, 0 to 1 (Barndorff-Nielsen, "
        "Kinnebrock & Shephard 2010)",
    ): partial(_share_of_realised, name="upside_semivariance"),
}

PIPELINE = pipeline_of(
    name="volatility",
    version=1,
    warmup_bars=101,  # the exponentially weighted volatility takes 100 returns
    formulas=_VOLS
    | _RATIOS
    | {
        Feature(
            name="ewma_vol",
            inputs=_C,
            description="sqrt of the average of squared log returns, decay 0.94, last 100 returns (RiskMetrics 1996)",
        ): _ewma_vol,
        Feature(
            name="downside_vol_21",
            inputs=_C,
            description="sqrt(mean(min(r, 0)^2)) of the last 21 log returns (Sortino & van der Meer 1991)",
        ): _downside_vol,
        Feature(
            name="vol_of_vol_42",
            inputs=_C,
            description="Standard deviation over mean of the last 42 values of vol_10",
        ): _vol_of_vol,
        Feature(
            name="skew_63",
            inputs=_C,
            description="Adjusted skewness G1 of the last 63 log returns (Joanes & Gill 1998)",
        ): _skew,
        Feature(
            name="kurtosis_63",
            inputs=_C,
            description="Adjusted excess kurtosis G2 of the last 63 log returns (Joanes & Gill 1998)",
        ): _kurtosis,
        Feature(
            name="max_drawdown_63",
            inputs=_C,
            description="Largest fall from a running peak within 63 closes, as a share of the peak",
        ): _drawdown,
        Feature(
            name="parkinson_21",
            inputs=_HL,
            description="sqrt of the 21-bar mean of ln(H/L)^2 / (4 ln 2) (Parkinson 1980)",
        ): _parkinson,
        Feature(
            name="garman_klass_21",
            inputs=_OHLC,
            description="sqrt of the 21-bar mean of ln(H/L)^2 / 2 - (2 ln 2 - 1) ln(C/O)^2 (Garman & Klass 1980)",
        ): _garman_klass,
        Feature(
            name="rogers_satchell_21",
            inputs=_OHLC,
            description="sqrt of the 21-bar mean of ln(H/C) ln(H/O) + ln(L/C) ln(L/O) (Rogers & Satchell 1991)",
        ): _rogers_satchell,
        Feature(
            name="yang_zhang_21",
            inputs=_OHLC,
            description="sqrt of overnight + k intrabar + (1 - k) Rogers-Satchell variances, 21 bars (Yang & Zhang)",
        ): _yang_zhang,
        Feature(
            name="natr_14",
            inputs=_HLC,
            description="Average true range by Wilder's 14-bar average, over C (Wilder 1978)",
        ): _normalised_atr,
    }
    | _REALISED,
)
