"""Kernels that look at one bar, or at one bar and an earlier one.

All series are (num_bars,) float64 in time order; the value at i uses data up to i inclusive. NaN in gives NaN out.
Logarithms live in kernels, not in numpy expressions, so that no value depends on its neighbours in a SIMD register.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def log_ratio_python(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """ln(numerator / denominator); NaN where either is not positive."""
    out = np.full(len(numerator), np.nan)
    for i in range(len(numerator)):
        if numerator[i] > 0.0 and denominator[i] > 0.0:
            out[i] = math.log(numerator[i] / denominator[i])
    return out


def ratio_python(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """numerator / denominator; NaN where the denominator is zero."""
    out = np.full(len(numerator), np.nan)
    for i in range(len(numerator)):
        if denominator[i] != 0.0:
            out[i] = numerator[i] / denominator[i]
    return out


def lagged_python(x: FloatArray, lag: int) -> FloatArray:
    """x[i - lag]; NaN for the first ``lag`` bars."""
    out = np.full(len(x), np.nan)
    for i in range(lag, len(x)):
        out[i] = x[i - lag]
    return out


log_ratio = njit(cache=True, nogil=True)(log_ratio_python)
ratio = njit(cache=True, nogil=True)(ratio_python)
lagged = njit(cache=True, nogil=True)(lagged_python)


def log_return(x: FloatArray, lag: int) -> FloatArray:
    """ln(x[i] / x[i - lag]); NaN for the first ``lag`` bars and where a price is not positive."""
    return log_ratio(x, lagged(x, lag))


def log_share(x: FloatArray, average: FloatArray) -> FloatArray:
    """ln(1 + x / average): 0 for none, ln 2 for an average one."""
    return log_ratio(average + x, average)
