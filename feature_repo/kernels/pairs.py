"""Rolling statistics of two series, each window computed afresh (see ``rolling``).

Both series are (num_bars,) float64 in time order and the value at i is a function of exactly their last ``window``
values up to i. The first ``window - 1`` values are NaN, and so is every window that holds a NaN in either series or in
which ``x`` (for the correlation, either) does not move.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def rolling_slope_python(y: FloatArray, x: FloatArray, window: int) -> FloatArray:
    """Slope of the least-squares line of ``y`` on ``x``, with an intercept."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        start = i - window + 1
        total_x, total_y = 0.0, 0.0
        for j in range(start, i + 1):
            total_x += x[j] - x[start]
            total_y += y[j] - y[start]
        squares, product = 0.0, 0.0
        for j in range(start, i + 1):
            dx = x[j] - x[start] - total_x / window
            squares += dx * dx
            product += dx * (y[j] - y[start] - total_y / window)
        if squares > 0.0:
            out[i] = product / squares
    return out


def rolling_correlation_python(y: FloatArray, x: FloatArray, window: int) -> FloatArray:
    """Pearson's correlation."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        start = i - window + 1
        total_x, total_y = 0.0, 0.0
        for j in range(start, i + 1):
            total_x += x[j] - x[start]
            total_y += y[j] - y[start]
        squares_x, squares_y, product = 0.0, 0.0, 0.0
        for j in range(start, i + 1):
            dx = x[j] - x[start] - total_x / window
            dy = y[j] - y[start] - total_y / window
            squares_x += dx * dx
            squares_y += dy * dy
            product += dx * dy
        if squares_x > 0.0 and squares_y > 0.0:
            out[i] = max(-1.0, min(1.0, product / (math.sqrt(squares_x) * math.sqrt(squares_y))))
    return out


def rolling_residual_std_python(y: FloatArray, x: FloatArray, window: int) -> FloatArray:
    """Standard error of the least-squares line of ``y`` on ``x``: sqrt(sum of squared residuals / (window - 2))."""
    out = np.full(len(x), np.nan)
    for i in range(window - 1, len(x)):
        start = i - window + 1
        total_x, total_y = 0.0, 0.0
        for j in range(start, i + 1):
            total_x += x[j] - x[start]
            total_y += y[j] - y[start]
        squares, product = 0.0, 0.0
        for j in range(start, i + 1):
            dx = x[j] - x[start] - total_x / window
            squares += dx * dx
            product += dx * (y[j] - y[start] - total_y / window)
        if squares > 0.0:
            residuals = 0.0
            for j in range(start, i + 1):
                dx = x[j] - x[start] - total_x / window
                residual = y[j] - y[start] - total_y / window - product / squares * dx
                residuals += residual * residual
            out[i] = math.sqrt(residuals / (window - 2.0))
    return out


rolling_slope = njit(cache=True, nogil=True)(rolling_slope_python)
rolling_correlation = njit(cache=True, nogil=True)(rolling_correlation_python)
rolling_residual_std = njit(cache=True, nogil=True)(rolling_residual_std_python)
