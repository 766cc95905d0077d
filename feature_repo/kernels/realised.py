"""Realised variances: of a bar, from the finer bars inside it.

Suffixes: W windows, P their fine bars in time order, window after window. Missing is NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def realised_moments_python(
    open_P: FloatArray, close_P: FloatArray, start_W: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Realised variance, bipower variation, upside semivariance and number of bars of each window: (W,) each.

    Window w has the bars ``start_W[w] .. start_W[w + 1] - 1``; ``start_W`` is (W + 1,). Returns are ln of a close over
    the close before it that is known, the first bar's ln(close / open) where it has an open. Of n returns r these are:
    sum(r^2) (Andersen, Bollerslev, Diebold & Labys 2003); pi/2 n/(n-1) sum(|r[i]| |r[i-1]|), which jumps do not enter
    (Barndorff-Nielsen & Shephard 2004), NaN with one return; and the sum of r^2 over r > 0 (Barndorff-Nielsen,
    Kinnebrock & Shephard 2010). NaN without a return; the number counts bars with a close.
    """
    num_windows = len(start_W) - 1
    variance_W, bipower_W = np.full(num_windows, np.nan), np.full(num_windows, np.nan)
    upside_W, num_bars_W = np.full(num_windows, np.nan), np.zeros(num_windows)
    for w in range(num_windows):
        num_returns = 0
        before, size_before = np.nan, 0.0
        total, upside, products = 0.0, 0.0, 0.0
        for p in range(start_W[w], start_W[w + 1]):
            if not close_P[p] > 0.0:
                continue
            before = open_P[p] if num_bars_W[w] == 0.0 else before
            num_bars_W[w] += 1.0
            if before > 0.0:
                r = math.log(close_P[p] / before)
                num_returns += 1
                total += r * r
                upside += r * max(r, 0.0)
                products += size_before * abs(r)
                size_before = abs(r)
            before = close_P[p]
        if num_returns > 0:
            variance_W[w], upside_W[w] = total, upside
        if num_returns > 1:
            bipower_W[w] = math.pi / 2.0 * num_returns / (num_returns - 1.0) * products
    return variance_W, bipower_W, upside_W, num_bars_W


realised_moments = njit(cache=True, nogil=True)(realised_moments_python)
