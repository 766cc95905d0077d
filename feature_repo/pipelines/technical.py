"""Technical indicators.

Exponential and Wilder averages are cut to a finite window (``ema_weights``, ``wilder_weights``). A zero denominator
(no movement at all in the window) gives NaN, never a conventional 50.
"""

from __future__ import annotations

import numpy as np

from feature_repo.kernels.elementwise import lagged, ratio
from feature_repo.kernels.rolling import (
    ema_weights,
    rolling_max,
    rolling_mean,
    rolling_mean_abs_deviation,
    rolling_min,
    rolling_std,
    rolling_sum,
    weighted_average,
    wilder_weights,
)
from feature_repo.kernels.volatility import true_range
from feature_repo.pipelines.base import Columns, Feature, FloatArray, pipeline_of

_C = ("close",)
_HLC = ("high", "low", "close")
_CV = ("close", "volume")
_HLCV = ("high", "low", "close", "volume")


def _change(series: FloatArray) -> FloatArray:
    return series - lagged(series, 1)


def _ema(series: FloatArray, span: int) -> FloatArray:
    return weighted_average(series, ema_weights(span))


def _wilder(series: FloatArray) -> FloatArray:
    return weighted_average(series, wilder_weights(14))


def _place_in_range(series: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    return ratio(series - low, high - low)


def _rsi(columns: Columns) -> FloatArray:
    change = _change(columns["close"])
    gain, loss = _wilder(np.maximum(change, 0.0)), _wilder(np.maximum(-change, 0.0))
    return 100.0 * ratio(gain, gain + loss)


def _stochastic_rsi(columns: Columns) -> FloatArray:
    rsi = _rsi(columns)
    return 100.0 * _place_in_range(rsi, rolling_min(rsi, 14), rolling_max(rsi, 14))


def _chande(columns: Columns) -> FloatArray:
    change = _change(columns["close"])
    return 100.0 * ratio(rolling_sum(change, 14), rolling_sum(np.abs(change), 14))


def _macd_line(close: FloatArray) -> FloatArray:
    return _ema(close, 12) - _ema(close, 26)


def _macd(columns: Columns) -> FloatArray:
    return ratio(_macd_line(columns["close"]), columns["close"])


def _macd_signal(columns: Columns) -> FloatArray:
    return ratio(_ema(_macd_line(columns["close"]), 9), columns["close"])


def _macd_histogram(columns: Columns) -> FloatArray:
    line = _macd_line(columns["close"])
    return ratio(line - _ema(line, 9), columns["close"])


def _trix(columns: Columns) -> FloatArray:
    smooth = _ema(_ema(_ema(columns["close"], 9), 9), 9)
    return ratio(smooth, lagged(smooth, 1)) - 1.0


def _percent_b(columns: Columns) -> FloatArray:
    close = columns["close"]
    middle, band = rolling_mean(close, 20), 2.0 * rolling_std(close, 20, 0)
    return _place_in_range(close, middle - band, middle + band)


def _bandwidth(columns: Columns) -> FloatArray:
    return ratio(4.0 * rolling_std(columns["close"], 20, 0), rolling_mean(columns["close"], 20))


def _efficiency_ratio(columns: Columns) -> FloatArray:
    close = columns["close"]
    return ratio(np.abs(close - lagged(close, 10)), rolling_sum(np.abs(_change(close)), 10))


def _directional_indicator(columns: Columns, move: FloatArray, opposite: FloatArray) -> FloatArray:
    # heaviside, unlike a comparison, lets a NaN through
    movement = np.maximum(move, 0.0) * np.heaviside(move - opposite, 0.0)
    return 100.0 * ratio(_wilder(movement), _wilder(true_range(columns["high"], columns["low"], columns["close"])))


def _plus_di(columns: Columns) -> FloatArray:
    return _directional_indicator(columns, _change(columns["high"]), -_change(columns["low"]))


def _minus_di(columns: Columns) -> FloatArray:
    return _directional_indicator(columns, -_change(columns["low"]), _change(columns["high"]))


def _adx(columns: Columns) -> FloatArray:
    plus, minus = _plus_di(columns), _minus_di(columns)
    return _wilder(100.0 * ratio(np.abs(plus - minus), plus + minus))


def _fast_k(columns: Columns) -> FloatArray:
    low, high = rolling_min(columns["low"], 14), rolling_max(columns["high"], 14)
    return 100.0 * _place_in_range(columns["close"], low, high)


def _slow_k(columns: Columns) -> FloatArray:
    return rolling_mean(_fast_k(columns), 3)


def _slow_d(columns: Columns) -> FloatArray:
    return rolling_mean(_slow_k(columns), 3)


def _williams_r(columns: Columns) -> FloatArray:
    return _fast_k(columns) - 100.0


def _typical_price(columns: Columns) -> FloatArray:
    return (columns["high"] + columns["low"] + columns["close"]) / 3.0


def _cci(columns: Columns) -> FloatArray:
    price = _typical_price(columns)
    return ratio(price - rolling_mean(price, 20), 0.015 * rolling_mean_abs_deviation(price, 20))


def _mfi(columns: Columns) -> FloatArray:
    price = _typical_price(columns)
    flow = np.sign(_change(price)) * price * columns["volume"]
    inflow, outflow = rolling_sum(np.maximum(flow, 0.0), 14), rolling_sum(np.maximum(-flow, 0.0), 14)
    return 100.0 * ratio(inflow, inflow + outflow)


def _obv_change(columns: Columns) -> FloatArray:
    signed = np.sign(_change(columns["close"])) * columns["volume"]
    return ratio(rolling_sum(signed, 20), rolling_sum(columns["volume"], 20))


def _chaikin_money_flow(columns: Columns) -> FloatArray:
    high, low, volume = columns["high"], columns["low"], columns["volume"]
    place = np.where(high == low, 0.0, 2.0 * _place_in_range(columns["close"], low, high) - 1.0)
    return ratio(rolling_sum(place * volume, 20), rolling_sum(volume, 20))


PIPELINE = pipeline_of(
    name="technical",
    version=1,
    warmup_bars=112,  # ADX: one bar for the move, 56 for the indicators, 55 more for their average
    formulas={
        Feature(
            name="rsi_14",
            inputs=_C,
            description="Relative strength index, 100 gain / (gain + loss) of 14-bar Wilder averages (Wilder 1978)",
        ): _rsi,
        Feature(
            name="stoch_rsi_14",
            inputs=_C,
            description="Place of RSI(14) in its own 14-bar range, 0 to 100 (Chande & Kroll 1994)",
        ): _stochastic_rsi,
        Feature(
            name="cmo_14",
            inputs=_C,
            description="Chande momentum oscillator, 100 sum(dC) / sum(|dC|) over 14 bars (Chande & Kroll 1994)",
        ): _chande,
        Feature(name="macd", inputs=_C, description="(EMA12 - EMA26) / C (Appel 1979)"): _macd,
        Feature(
            name="macd_signal", inputs=_C, description="EMA9 of (EMA12 - EMA26), over C (Appel 1979)"
        ): _macd_signal,
        Feature(
            name="macd_hist", inputs=_C, description="MACD line less its signal, over C (Aspray 1986)"
        ): _macd_histogram,
        Feature(
            name="trix_9", inputs=_C, description="One-bar return of the triple EMA of 9 bars (Hutson 1983)"
        ): _trix,
        Feature(
            name="bollinger_b_20",
            inputs=_C,
            description="%b: (C - lower) / (upper - lower), bands at 2 population deviations, 20 bars (Bollinger 2001)",
        ): _percent_b,
        Feature(
            name="bollinger_width_20",
            inputs=_C,
            description="Bandwidth: (upper - lower) / middle, 20 bars (Bollinger 2001)",
        ): _bandwidth,
        Feature(
            name="efficiency_ratio_10",
            inputs=_C,
            description="|C[t] - C[t-10]| / sum(|dC|) over 10 bars, 0 to 1 (Kaufman 1995)",
        ): _efficiency_ratio,
        Feature(
            name="plus_di_14",
            inputs=_HLC,
            description="100 Wilder14(+DM) / Wilder14(true range) (Wilder 1978)",
        ): _plus_di,
        Feature(
            name="minus_di_14",
            inputs=_HLC,
            description="100 Wilder14(-DM) / Wilder14(true range) (Wilder 1978)",
        ): _minus_di,
        Feature(
            name="adx_14",
            inputs=_HLC,
            description="Wilder14 of DX = 100 |+DI - -DI| / (+DI + -DI) (Wilder 1978)",
        ): _adx,
        Feature(
            name="stoch_k_14",
            inputs=_HLC,
            description="Slow %K: 3-bar mean of 100 (C - low14) / (high14 - low14) (Lane 1984)",
        ): _slow_k,
        Feature(name="stoch_d_14", inputs=_HLC, description="%D: 3-bar mean of slow %K (Lane 1984)"): _slow_d,
        Feature(
            name="williams_r_14",
            inputs=_HLC,
            description="%R: -100 (high14 - C) / (high14 - low14) (Williams 1973)",
        ): _williams_r,
        Feature(
            name="cci_20",
            inputs=_HLC,
            description="(TP - mean20) / (0.015 mean absolute deviation), TP = (H + L + C) / 3 (Lambert 1980)",
        ): _cci,
        Feature(
            name="mfi_14",
            inputs=_HLCV,
            description="Money flow index: 100 inflow / (inflow + outflow) of TP V over 14 bars (Quong & Soudack 1989)",
        ): _mfi,
        Feature(
            name="obv_change_20",
            inputs=_CV,
            description="Change of on-balance volume over 20 bars by the volume traded, -1 to 1 (Granville 1963)",
        ): _obv_change,
        Feature(
            name="cmf_20",
            inputs=_HLCV,
            description="Chaikin money flow: volume-weighted place of C in its bar, 20 bars, -1 to 1; "
            "0 for a bar without range (Chaikin)",
        ): _chaikin_money_flow,
    },
)
