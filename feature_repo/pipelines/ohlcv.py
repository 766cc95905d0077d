"""The bar as it came: its prices relative to the close before, its shape, and its volume relative to its own past.

Prices are in logs and volumes over their own averages, so no feature has a currency or a unit of size.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from feature_repo.kernels.elementwise import lagged, log_ratio, log_return, log_share, ratio
from feature_repo.kernels.rolling import rolling_max, rolling_mean, rolling_min, rolling_std, rolling_trend_t
from feature_repo.pipelines.base import Columns, Feature, FloatArray, pipeline_of

_C = ("close",)
_V = ("volume",)
_CV = ("close", "volume")
_HL = ("high", "low")
_HLC = ("high", "low", "close")
_OHLC = ("open", "high", "low", "close")


def _from_close_before(columns: Columns, *, price: str) -> FloatArray:
    return log_ratio(columns[price], lagged(columns["close"], 1))


def _close_return_z(columns: Columns) -> FloatArray:
    returns = log_return(columns["close"], 1)
    return ratio(returns, rolling_std(returns, 20, 1))


def _close_place(columns: Columns) -> FloatArray:
    close = columns["close"]
    low, high = rolling_min(close, 20), rolling_max(close, 20)
    return ratio(close - low, high - low)


def _body(columns: Columns) -> FloatArray:
    return log_ratio(columns["close"], columns["open"])


def _upper_shadow(columns: Columns) -> FloatArray:
    return log_ratio(columns["high"], np.maximum(columns["open"], columns["close"]))


def _lower_shadow(columns: Columns) -> FloatArray:
    return log_ratio(np.minimum(columns["open"], columns["close"]), columns["low"])


def _range(columns: Columns) -> FloatArray:
    return log_ratio(columns["high"], columns["low"])


def _range_ratio(columns: Columns) -> FloatArray:
    spread = _range(columns)
    return ratio(spread, rolling_mean(spread, 20))


def _of_range(part: FloatArray, columns: Columns) -> FloatArray:
    spread = columns["high"] - columns["low"]
    return np.where(spread == 0.0, 0.0 * part, ratio(part, spread))  # the part times zero lets a NaN through


def _body_share(columns: Columns) -> FloatArray:
    return _of_range(columns["close"] - columns["open"], columns)


def _close_location(columns: Columns) -> FloatArray:
    return _of_range((columns["close"] - columns["low"]) - (columns["high"] - columns["close"]), columns)


def _volume_ratio(columns: Columns) -> FloatArray:
    return log_share(columns["volume"], rolling_mean(columns["volume"], 20))


def _volume_level(columns: Columns) -> FloatArray:
    return log_share(rolling_mean(columns["volume"], 5), rolling_mean(columns["volume"], 63))


def _volume_z(columns: Columns, *, window: int) -> FloatArray:
    volume = columns["volume"]
    return ratio(volume - rolling_mean(volume, window), rolling_std(volume, window, 1))


def _volume_trend(columns: Columns) -> FloatArray:
    return rolling_trend_t(columns["volume"], 20)


def _dollar_volume_ratio(columns: Columns) -> FloatArray:
    value = columns["close"] * columns["volume"]
    return log_share(value, rolling_mean(value, 63))


def _return_on_volume(columns: Columns) -> FloatArray:
    volume = columns["volume"]
    return log_return(columns["close"], 1) * ratio(volume, rolling_mean(volume, 20))


PIPELINE = pipeline_of(
    name="ohlcv",
    version=1,
    warmup_bars=63,  # the dollar volume's average
    formulas={
        Feature(name="close_return", inputs=_C, description="ln(C[t] / C[t-1])"): partial(
            _from_close_before, price="close"
        ),
        Feature(
            name="close_return_z_20",
            inputs=_C,
            description="ln(C[t] / C[t-1]) over the standard deviation (ddof 1) of the last 20 such returns",
        ): _close_return_z,
        Feature(
            name="close_place_20",
            inputs=_C,
            description="Place of C between the lowest and highest C of 20 bars, 0 to 1",
        ): _close_place,
        Feature(name="open_gap", inputs=("open", "close"), description="ln(O[t] / C[t-1])"): partial(
            _from_close_before, price="open"
        ),
        Feature(name="high_return", inputs=("high", "close"), description="ln(H[t] / C[t-1])"): partial(
            _from_close_before, price="high"
        ),
        Feature(name="low_return", inputs=("low", "close"), description="ln(L[t] / C[t-1])"): partial(
            _from_close_before, price="low"
        ),
        Feature(name="body", inputs=("open", "close"), description="ln(C / O): the candle's body"): _body,
        Feature(
            name="upper_shadow", inputs=("open", "high", "close"), description="ln(H / max(O, C)), 0 or above"
        ): _upper_shadow,
        Feature(
            name="lower_shadow", inputs=("open", "low", "close"), description="ln(min(O, C) / L), 0 or above"
        ): _lower_shadow,
        Feature(name="range", inputs=_HL, description="ln(H / L), 0 or above"): _range,
        Feature(
            name="range_ratio_20", inputs=_HL, description="ln(H / L) over its mean of the last 20 bars"
        ): _range_ratio,
        Feature(
            name="body_share", inputs=_OHLC, description="(C - O) / (H - L), -1 to 1; 0 for a bar without range"
        ): _body_share,
        Feature(
            name="close_location",
            inputs=_HLC,
            description="((C - L) - (H - C)) / (H - L), -1 to 1; 0 for a bar without range (Williams, Chaikin)",
        ): _close_location,
        Feature(
            name="volume_ratio_20", inputs=_V, description="ln(1 + V / mean of the last 20 V), ln 2 for an average bar"
        ): _volume_ratio,
        Feature(
            name="volume_level_5_63",
            inputs=_V,
            description="ln(1 + mean of the last 5 V / mean of the last 63), ln 2 when both are equal",
        ): _volume_level,
        Feature(
            name="volume_z_20",
            inputs=_V,
            description="(V - mean) / standard deviation (ddof 1), both of the last 20 bars",
        ): partial(_volume_z, window=20),
        Feature(
            name="volume_z_63",
            inputs=_V,
            description="(V - mean) / standard deviation (ddof 1), both of the last 63 bars",
        ): partial(_volume_z, window=63),
        Feature(
            name="volume_trend_t_20",
            inputs=_V,
            description="t-statistic of the slope of V on time, least squares over 20 bars",
        ): _volume_trend,
        Feature(
            name="dollar_volume_ratio_63",
            inputs=_CV,
            description="ln(1 + CV / mean of the last 63 CV), in the quote currency, ln 2 for an average bar",
        ): _dollar_volume_ratio,
        Feature(
            name="return_on_volume_20",
            inputs=_CV,
            description="ln(C[t] / C[t-1]) times V over the mean of the last 20 V",
        ): _return_on_volume,
    },
)
