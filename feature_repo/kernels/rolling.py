"""Rolling statistics, each window computed afresh.

Running sums would be faster and wrong here: their rounding depends on where the series began. In these kernels the
value at i is a function of exactly ``x[i - window + 1 .. i]``, bit for bit, so a long and a short history agree.

Every series is (num_bars,) float64 in time order and the value at i uses data up to i inclusive. The first
``window - 1`` values are NaN, and so is every window that holds a NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def rolling_sum_python(x: FloatArray, window: int) -> FloatArray:
    """Sum of the last ``window`` values."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        total = 0.0
        for j in range(i - window + 1, i + 1):
            total += x[j]
        out[i] = total
    return out


def rolling_mean_python(x: FloatArray, window: int) -> FloatArray:
    """Mean of the last ``window`` values."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        total = 0.0
        for j in range(i - window + 1, i + 1):
            total += x[j]
        out[i] = total / window
    return out


def rolling_std_python(x: FloatArray, window: int, ddof: int) -> FloatArray:
    """Standard deviation (divisor ``window - ddof``), two passes; exactly 0 for a constant window.

    Deviations are taken from the window's first value before the mean, which keeps the digits of a small spread
    around a large level.
    """
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        start = i - window + 1
        base = x[start]
        total = 0.0
        for j in range(start, i + 1):
            total += x[j] - base
        mean = total / window
        squares = 0.0
        for j in range(start, i + 1):
            deviation = x[j] - base - mean
            squares += deviation * deviation
        out[i] = math.sqrt(squares / (window - ddof))
    return out


def rolling_min_python(x: FloatArray, window: int) -> FloatArray:
    """Smallest of the last ``window`` values."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        best = x[i]
        for j in range(i - window + 1, i):
            if x[j] < best or x[j] != x[j]:
                best = x[j]
        out[i] = best
    return out


def rolling_max_python(x: FloatArray, window: int) -> FloatArray:
    """Largest of the last ``window`` values."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        best = x[i]
        for j in range(i - window + 1, i):
            if x[j] > best or x[j] != x[j]:
                best = x[j]
        out[i] = best
    return out


def rolling_mean_abs_deviation_python(x: FloatArray, window: int) -> FloatArray:
    """Mean absolute deviation from the window's mean (Lambert 1980)."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        start = i - window + 1
        base = x[start]
        total = 0.0
        for j in range(start, i + 1):
            total += x[j] - base
        mean = total / window
        deviations = 0.0
        for j in range(start, i + 1):
            deviations += abs(x[j] - base - mean)
        out[i] = deviations / window
    return out


def rolling_skew_python(x: FloatArray, window: int) -> FloatArray:
    """Adjusted Fisher-Pearson skewness G1 (Joanes & Gill 1998); NaN for a constant window; ``window`` >= 3."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        start = i - window + 1
        base = x[start]
        total = 0.0
        for j in range(start, i + 1):
            total += x[j] - base
        mean = total / window
        second = 0.0
        third = 0.0
        for j in range(start, i + 1):
            deviation = x[j] - base - mean
            second += deviation * deviation
            third += deviation * deviation * deviation
        second /= window
        third /= window
        if second > 0.0:
            out[i] = math.sqrt(window * (window - 1.0)) / (window - 2.0) * third / (second * math.sqrt(second))
    return out


def rolling_kurtosis_python(x: FloatArray, window: int) -> FloatArray:
    """Adjusted excess kurtosis G2 (Joanes & Gill 1998), 0 for a normal; NaN for a constant window; ``window`` >= 4."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        start = i - window + 1
        base = x[start]
        total = 0.0
        for j in range(start, i + 1):
            total += x[j] - base
        mean = total / window
        second = 0.0
        fourth = 0.0
        for j in range(start, i + 1):
            square = (x[j] - base - mean) * (x[j] - base - mean)
            second += square
            fourth += square * square
        second /= window
        fourth /= window
        if second > 0.0:
            excess = (window + 1.0) * (fourth / (second * second) - 3.0) + 6.0
            out[i] = (window - 1.0) / ((window - 2.0) * (window - 3.0)) * excess
    return out


def rolling_trend_t_python(x: FloatArray, window: int) -> FloatArray:
    """t-statistic of the slope of ``x`` on time, ordinary least squares; NaN for a perfect line; ``window`` >= 3."""
    out = np.full(len(x), np.nan)
    centre = (window - 1.0) / 2.0
    spread = window * (window * window - 1.0) / 12.0  # sum of squared deviations of 0 .. window-1
    for i in range(window - 1, len(x)):
        start = i - window + 1
        base = x[start]
        total = 0.0
        product = 0.0
        for j in range(window):
            total += x[start + j] - base
            product += (j - centre) * (x[start + j] - base)
        mean = total / window
        slope = product / spread
        residuals = 0.0
        for j in range(window):
            residual = x[start + j] - base - mean - slope * (j - centre)
            residuals += residual * residual
        if residuals > 0.0:
            out[i] = slope / math.sqrt(residuals / (window - 2.0) / spread)
    return out


def weighted_average_python(x: FloatArray, weights: FloatArray) -> FloatArray:
    """Sum of ``weights[k] * x[i - k]`` over ``len(weights)`` values, newest first."""
    window = len(weights)
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        total = 0.0
        for k in range(window):
            total += weights[k] * x[i - k]
        out[i] = total
    return out


rolling_sum = njit(cache=True, nogil=True)(rolling_sum_python)
rolling_mean = njit(cache=True, nogil=True)(rolling_mean_python)
rolling_std = njit(cache=True, nogil=True)(rolling_std_python)
rolling_min = njit(cache=True, nogil=True)(rolling_min_python)
rolling_max = njit(cache=True, nogil=True)(rolling_max_python)
rolling_mean_abs_deviation = njit(cache=True, nogil=True)(rolling_mean_abs_deviation_python)
rolling_skew = njit(cache=True, nogil=True)(rolling_skew_python)
rolling_kurtosis = njit(cache=True, nogil=True)(rolling_kurtosis_python)
rolling_trend_t = njit(cache=True, nogil=True)(rolling_trend_t_python)
weighted_average = njit(cache=True, nogil=True)(weighted_average_python)


def decay_weights(decay: float, num_terms: int) -> FloatArray:
    """Weights proportional to ``decay ** k``, k = 0 .. num_terms-1, that sum to one; newest first."""
    weights = np.cumprod(np.concatenate([[1.0], np.full(num_terms - 1, decay)]))
    return weights / weights.sum()


def ema_weights(span: int) -> FloatArray:
    """Weights of an exponential average, alpha = 2 / (span + 1), cut after ``3 * span`` values and made to sum to one.

    What is cut off weighs about e^-6, a quarter of a percent. Newest first, shape (3 * span,).
    """
    return decay_weights(1.0 - 2.0 / (span + 1.0), 3 * span)


def wilder_weights(period: int) -> FloatArray:
    """Weights of Wilder's (1978) average, alpha = 1 / period, cut after ``4 * period`` values and made to sum to one.

    What is cut off weighs about e^-4, under two percent. Newest first, shape (4 * period,).
    """
    return decay_weights(1.0 - 1.0 / period, 4 * period)
