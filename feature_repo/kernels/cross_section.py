"""Statistics across assets: of one bar, and of the last bars together.

Suffixes: T bars in time order, N assets, R rows that are asked for (bars, by their place in T), W returns of a row's
window, K components. Missing is NaN. Every sum runs over the assets one after the other and passes over what is
missing, so a value does not depend, bit for bit, on assets that are not there (yet). The value of a row uses data up
to its bar inclusive, and of the bars before no more than its window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NOTHING_LEFT: Final = 1e-10
"""A share of variance below this is rounding."""


def bar_moments_python(
    returns_TN: FloatArray, min_assets: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Of each bar's returns: mean (T,), standard deviation (ddof 1) (T,), share above zero (T,), others' mean (T, N).

    The others' mean leaves the asset's own return out. NaN with fewer than ``min_assets`` returns.
    """
    num_bars, num_assets = returns_TN.shape
    mean_T, std_T, rising_T = np.full(num_bars, np.nan), np.full(num_bars, np.nan), np.full(num_bars, np.nan)
    others_TN = np.full((num_bars, num_assets), np.nan)
    for t in range(num_bars):
        count, rising, total = 0, 0, 0.0
        for n in range(num_assets):
            if returns_TN[t, n] == returns_TN[t, n]:
                count += 1
                rising += returns_TN[t, n] > 0.0
                total += returns_TN[t, n]
        if count < min_assets:
            continue
        mean = total / count
        squares = 0.0
        for n in range(num_assets):
            is_there = returns_TN[t, n] == returns_TN[t, n]
            if is_there:
                squares += (returns_TN[t, n] - mean) * (returns_TN[t, n] - mean)
            if is_there and count > 1:
                others_TN[t, n] = (total - returns_TN[t, n]) / (count - 1)
            elif not is_there:
                others_TN[t, n] = mean
        mean_T[t], rising_T[t] = mean, rising / count
        if count > 1:
            std_T[t] = math.sqrt(squares / (count - 1))
    return mean_T, std_T, rising_T, others_TN


def window_means_python(x_TN: FloatArray, row_R: IntArray, window: int, min_count: int) -> FloatArray:
    """Mean of each asset's values among the last ``window`` bars, NaN with fewer than ``min_count``: (R, N)."""
    num_assets = x_TN.shape[1]
    mean_RN = np.full((len(row_R), num_assets), np.nan)
    for r in range(len(row_R)):
        if row_R[r] < window - 1:
            continue
        for n in range(num_assets):
            count, total = 0, 0.0
            for t in range(row_R[r] - window + 1, row_R[r] + 1):
                if x_TN[t, n] == x_TN[t, n]:
                    count += 1
                    total += x_TN[t, n]
            if count >= min_count:
                mean_RN[r, n] = total / count
    return mean_RN


def standardised_windows_python(
    returns_TN: FloatArray, row_R: IntArray, mean_RN: FloatArray, window: int
) -> tuple[FloatArray, FloatArray]:
    """Each asset's last ``window`` returns less their mean, scaled to length one (R, N, W), and their deviation (R, N).

    ``mean_RN`` are the windows' means, NaN for what does not count. A missing return is 0, that is the mean. An asset
    that does not count, or none of whose returns differ, has only zeros and the standard deviation (ddof 1) NaN.
    """
    num_assets = returns_TN.shape[1]
    z_RNW = np.zeros((len(row_R), num_assets, window))
    std_RN = np.full((len(row_R), num_assets), np.nan)
    for r in range(len(row_R)):
        start = row_R[r] - window + 1
        for n in range(num_assets):
            mean = mean_RN[r, n]
            if mean != mean:
                continue
            count, squares, low, high = 0, 0.0, np.inf, -np.inf
            for t in range(start, start + window):
                if returns_TN[t, n] == returns_TN[t, n]:
                    count += 1
                    squares += (returns_TN[t, n] - mean) * (returns_TN[t, n] - mean)
                    low, high = min(low, returns_TN[t, n]), max(high, returns_TN[t, n])
            if not low < high:
                continue
            std_RN[r, n] = math.sqrt(squares / (count - 1))
            for t in range(start, start + window):
                if returns_TN[t, n] == returns_TN[t, n]:
                    z_RNW[r, n, t - start] = (returns_TN[t, n] - mean) / math.sqrt(squares)
    return z_RNW, std_RN


def window_grams_python(z_RNW: FloatArray, std_RN: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of standardised windows: the Gram matrix over time (R, W, W) and the mean correlation of all pairs (R,).

    The Gram matrix has the eigenvalues of the assets' correlation matrix, and its eigenvectors are the components in
    time. Assets without a deviation count in neither; fewer than two have no mean correlation.
    """
    num_rows, num_assets, window = z_RNW.shape
    gram_RWW = np.zeros((num_rows, window, window))
    correlation_R = np.full(num_rows, np.nan)
    for r in range(num_rows):
        total_W = np.zeros(window)
        count = 0
        for n in range(num_assets):
            if std_RN[r, n] != std_RN[r, n]:
                continue
            count += 1
            for i in range(window):
                total_W[i] += z_RNW[r, n, i]
                for j in range(i + 1):
                    gram_RWW[r, i, j] += z_RNW[r, n, i] * z_RNW[r, n, j]
        together = 0.0
        for i in range(window):
            together += total_W[i] * total_W[i]
            for j in range(i):
                gram_RWW[r, j, i] = gram_RWW[r, i, j]
        if count > 1:
            correlation_R[r] = (together - count) / (count * (count - 1.0))
    return gram_RWW, correlation_R


def component_loadings_python(z_RNW: FloatArray, factor_RKW: FloatArray) -> FloatArray:
    """Each asset's correlation with each component in time, ``factor_RKW`` being of length one: (R, K, N)."""
    num_rows, num_assets, window = z_RNW.shape
    num_components = factor_RKW.shape[1]
    loading_RKN = np.empty((num_rows, num_components, num_assets))
    for r in range(num_rows):
        for k in range(num_components):
            for n in range(num_assets):
                total = 0.0
                for i in range(window):
                    total += z_RNW[r, n, i] * factor_RKW[r, k, i]
                loading_RKN[r, k, n] = total
    return loading_RKN


def component_signs_python(loading_RKN: FloatArray) -> FloatArray:
    """The factor, 1 or -1, that points each component where it is to point: (R, K).

    The first points to where the sum of the loadings is positive, that is with the market; another to where the sum of
    their cubes is, that is to its larger loadings. The rule sees one window only and seldom turns between two.
    """
    num_rows, num_components, num_assets = loading_RKN.shape
    sign_RK = np.ones((num_rows, num_components))
    for r in range(num_rows):
        for k in range(num_components):
            direction = 0.0
            for n in range(num_assets):
                loading = loading_RKN[r, k, n]
                direction += loading if k == 0 else loading * loading * loading
            if direction < 0.0:
                sign_RK[r, k] = -1.0
    return sign_RK


def component_returns_python(loading_RKN: FloatArray, std_RN: FloatArray, returns_RN: FloatArray) -> FloatArray:
    """Returns of the components' portfolios: weights loading / deviation, gross 1 (Avellaneda & Lee 2010): (R, K).

    Over the assets that have a deviation and a return; NaN where all weights are zero.
    """
    num_rows, num_components, num_assets = loading_RKN.shape
    return_RK = np.full((num_rows, num_components), np.nan)
    for r in range(num_rows):
        for k in range(num_components):
            gross, total = 0.0, 0.0
            for n in range(num_assets):
                if std_RN[r, n] == std_RN[r, n] and returns_RN[r, n] == returns_RN[r, n]:
                    weight = loading_RKN[r, k, n] / std_RN[r, n]
                    gross += abs(weight)
                    total += weight * returns_RN[r, n]
            if gross > 0.0:
                return_RK[r, k] = total / gross
    return return_RK


def component_residuals_python(z_RNW: FloatArray, loading_RKN: FloatArray, factor_RKW: FloatArray) -> FloatArray:
    """What the components leave of the window's last standardised return, in its standard deviations: (R, N).

    The standard deviation (ddof 1) is that of the asset's residuals over the window. NaN where nothing is left.
    """
    num_rows, num_assets, window = z_RNW.shape
    residual_RN = np.full((num_rows, num_assets), np.nan)
    for r in range(num_rows):
        for n in range(num_assets):
            residual, unexplained = z_RNW[r, n, window - 1], 1.0
            for k in range(factor_RKW.shape[1]):
                residual -= loading_RKN[r, k, n] * factor_RKW[r, k, window - 1]
                unexplained -= loading_RKN[r, k, n] * loading_RKN[r, k, n]
            if unexplained > NOTHING_LEFT:
                residual_RN[r, n] = residual / math.sqrt(unexplained / (window - 1.0))
    return residual_RN


bar_moments = njit(cache=True, nogil=True)(bar_moments_python)
window_means = njit(cache=True, nogil=True)(window_means_python)
standardised_windows = njit(cache=True, nogil=True)(standardised_windows_python)
window_grams = njit(cache=True, nogil=True)(window_grams_python)
component_loadings = njit(cache=True, nogil=True)(component_loadings_python)
component_signs = njit(cache=True, nogil=True)(component_signs_python)
component_returns = njit(cache=True, nogil=True)(component_returns_python)
component_residuals = njit(cache=True, nogil=True)(component_residuals_python)


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """The first K components of the assets' correlation matrix, at each row; NaN where there are none.

    ``loading_RKN`` is each asset's correlation with the component over the window, ``return_RK`` the return of its
    portfolio at the row's bar, ``residual_RN`` what they leave of the asset's return, ``share_R`` the part of all
    variance that the first explains, ``absorption_R`` that of the first fifth (rounded up) of all components
    (Kritzman, Li, Page & Rigobon 2011), ``correlation_R`` the mean correlation of all pairs.
    """

    loading_RKN: FloatArray
    return_RK: FloatArray
    residual_RN: FloatArray
    share_R: FloatArray
    absorption_R: FloatArray
    correlation_R: FloatArray


def find_components(
    returns_TN: FloatArray, row_R: IntArray, *, window: int, min_count: int, min_assets: int, num_components: int
) -> Components:
    """Principal components over the last ``window`` returns of the assets that have ``min_count`` of them.

    NaN for rows with fewer than ``min_assets`` such assets. A component that explains nothing is none.
    """
    mean_RN = window_means(returns_TN, row_R, window, min_count)
    z_RNW, std_RN = standardised_windows(returns_TN, row_R, mean_RN, window)
    gram_RWW, correlation_R = window_grams(z_RNW, std_RN)
    count_R = np.isfinite(std_RN).sum(axis=1)
    value_RW, vector_RWW = np.linalg.eigh(gram_RWW)
    value_RW, factor_RKW = value_RW[:, ::-1], vector_RWW[:, :, ::-1].transpose(0, 2, 1)[:, :num_components]
    is_one_RK = value_RW[:, :num_components] > NOTHING_LEFT * count_R[:, None]
    factor_RKW = np.where(is_one_RK[:, :, None], factor_RKW, 0.0)
    loading_RKN = component_loadings(z_RNW, factor_RKW)
    sign_RK1 = component_signs(loading_RKN)[:, :, None]
    loading_RKN, factor_RKW = loading_RKN * sign_RK1, factor_RKW * sign_RK1

    return_RK = component_returns(loading_RKN, std_RN, returns_TN[row_R])
    residual_RN = component_residuals(z_RNW, loading_RKN, factor_RKW)
    is_none_RN = np.isnan(std_RN) | np.isnan(returns_TN[row_R])
    is_few_R = count_R < min_assets
    share_RW = np.cumsum(value_RW, axis=1) / np.maximum(count_R, 1)[:, None]
    fifth_R = np.clip(-(-count_R // 5), 1, window)
    is_no_loading_RKN = np.isnan(std_RN)[:, None, :] | ~is_one_RK[:, :, None] | is_few_R[:, None, None]
    return Components(
        loading_RKN=np.where(is_no_loading_RKN, np.nan, loading_RKN),
        return_RK=np.where(is_few_R[:, None], np.nan, return_RK),
        residual_RN=np.where(is_none_RN | is_few_R[:, None], np.nan, residual_RN),
        share_R=np.where(is_few_R, np.nan, share_RW[:, 0]),
        absorption_R=np.where(is_few_R, np.nan, share_RW[np.arange(len(row_R)), fifth_R - 1]),
        correlation_R=np.where(is_few_R, np.nan, correlation_R),
    )
