"""Volatility estimators from open, high, low and close.

Every series is (num_bars,) float64 in time order; the value at i uses data up to i inclusive. Variances are of log
returns, per bar, not annualised. A price that is missing or not positive gives NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def true_range_python(high: FloatArray, low: FloatArray, close: FloatArray) -> FloatArray:
    """max(high - low, |high - previous close|, |low - previous close|) (Wilder 1978); NaN at the first bar."""
    out = np.full(len(close), np.nan)
    for i in range(1, len(close)):
        before = close[i - 1]
        if before == before and high[i] == high[i] and low[i] == low[i]:
            out[i] = max(high[i] - low[i], abs(high[i] - before), abs(low[i] - before))
    return out


def parkinson_variance_python(high: FloatArray, low: FloatArray) -> FloatArray:
    """ln(H/L)^2 / (4 ln 2) of each bar (Parkinson 1980)."""
    out = np.full(len(high), np.nan)
    scale = 4.0 * math.log(2.0)
    for i in range(len(high)):
        if high[i] > 0.0 and low[i] > 0.0:
            spread = math.log(high[i] / low[i])
            out[i] = spread * spread / scale
    return out


def garman_klass_variance_python(open_: FloatArray, high: FloatArray, low: FloatArray, close: FloatArray) -> FloatArray:
    """ln(H/L)^2 / 2 - (2 ln 2 - 1) ln(C/O)^2 of each bar (Garman & Klass 1980)."""
    out = np.full(len(close), np.nan)
    scale = 2.0 * math.log(2.0) - 1.0
    for i in range(len(close)):
        if open_[i] > 0.0 and high[i] > 0.0 and low[i] > 0.0 and close[i] > 0.0:
            spread = math.log(high[i] / low[i])
            body = math.log(close[i] / open_[i])
            out[i] = 0.5 * spread * spread - scale * body * body
    return out


def rogers_satchell_variance_python(
    open_: FloatArray, high: FloatArray, low: FloatArray, close: FloatArray
) -> FloatArray:
    """ln(H/C) ln(H/O) + ln(L/C) ln(L/O) of each bar, free of drift (Rogers & Satchell 1991)."""
    out = np.full(len(close), np.nan)
    for i in range(len(close)):
        if open_[i] > 0.0 and high[i] > 0.0 and low[i] > 0.0 and close[i] > 0.0:
            above = math.log(high[i] / close[i]) * math.log(high[i] / open_[i])
            below = math.log(low[i] / close[i]) * math.log(low[i] / open_[i])
            out[i] = above + below
    return out


def downside_deviation_python(returns: FloatArray, window: int) -> FloatArray:
    """sqrt(mean(min(r, 0)^2)) of the last ``window`` returns (Sortino & van der Meer 1991)."""
    out = np.full(len(returns), np.nan)
    for i in range(window - 1, len(returns)):
        squares = 0.0
        for j in range(i - window + 1, i + 1):
            if not returns[j] >= 0.0:  # a NaN takes this branch too and spreads
                squares += returns[j] * returns[j]
        out[i] = math.sqrt(squares / window)
    return out


def max_drawdown_python(price: FloatArray, window: int) -> FloatArray:
    """Largest fall from a running peak within the last ``window`` prices, as a share of the peak (0 to 1)."""
    out = np.full(len(price), np.nan)
    for i in range(window - 1, len(price)):
        peak = price[i - window + 1]
        worst = 0.0
        for j in range(i - window + 1, i + 1):
            if not price[j] > 0.0:
                worst = np.nan
                break
            peak = max(peak, price[j])
            worst = max(worst, 1.0 - price[j] / peak)
        out[i] = worst
    return out


true_range = njit(cache=True, nogil=True)(true_range_python)
parkinson_variance = njit(cache=True, nogil=True)(parkinson_variance_python)
garman_klass_variance = njit(cache=True, nogil=True)(garman_klass_variance_python)
rogers_satchell_variance = njit(cache=True, nogil=True)(rogers_satchell_variance_python)
downside_deviation = njit(cache=True, nogil=True)(downside_deviation_python)
max_drawdown = njit(cache=True, nogil=True)(max_drawdown_python)


def yang_zhang_weight(window: int) -> float:
    """Weight k of the open-to-close variance that minimises the estimator's variance (Yang & Zhang 2000, eq. 10)."""
    return 0.34 / (1.34 + (window + 1.0) / (window - 1.0))
