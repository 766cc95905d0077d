"""Sums over pairs of a sample and a point that was learned from.

Each pair's sum runs over the features in their order, by itself, so that a sample's result does not depend on the
samples it is asked with (a matrix product's would). Points are (K, V): the innermost loop runs over neighbouring
points and is vectorised without changing any sum.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Tensor suffixes: S samples, K summary features, V points, C nearest ones of them.

LINEAR: Final = 0
POLY: Final = 1
RBF: Final = 2


def kernel_sums_python(
    x_SK: NDArray[np.float64],
    point_KV: NDArray[np.float64],
    weight_V: NDArray[np.float64],
    kernel: int,
) -> NDArray[np.float64]:
    """Sum over points v of weight_v k(x, v): x . v (LINEAR), (1 + x . v)^2 (POLY) or exp(-|x - v|^2) (RBF)."""
    num_features, num_points = point_KV.shape
    out_S = np.zeros(len(x_SK))
    for s in range(len(x_SK)):
        sum_V = np.zeros(num_points)
        for k in range(num_features):
            for v in range(num_points):
                if kernel == RBF:
                    sum_V[v] += (x_SK[s, k] - point_KV[k, v]) * (x_SK[s, k] - point_KV[k, v])
                else:
                    sum_V[v] += x_SK[s, k] * point_KV[k, v]
        total = 0.0
        for v in range(num_points):
            if kernel == RBF:
                total += weight_V[v] * math.exp(-sum_V[v])
            elif kernel == POLY:
                total += weight_V[v] * (1.0 + sum_V[v]) * (1.0 + sum_V[v])
            else:
                total += weight_V[v] * sum_V[v]
        out_S[s] = total
    return out_S


def nearest_python(
    x_SK: NDArray[np.float64], point_KV: NDArray[np.float32], num_nearest: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The points nearest to each sample, nearest first (of equally near ones the first), and their squared distances.

    Both (S, C); C = ``num_nearest``, at most V.
    """
    num_features, num_points = point_KV.shape
    index_SC = np.zeros((len(x_SK), num_nearest), dtype=np.int64)
    squared_SC = np.full((len(x_SK), num_nearest), np.inf)
    for s in range(len(x_SK)):
        squared_V = np.zeros(num_points)
        for k in range(num_features):
            for v in range(num_points):
                squared_V[v] += (x_SK[s, k] - point_KV[k, v]) * (x_SK[s, k] - point_KV[k, v])
        for v in range(num_points):
            if squared_V[v] < squared_SC[s, num_nearest - 1]:
                place = num_nearest - 1
                while place > 0 and squared_V[v] < squared_SC[s, place - 1]:
                    squared_SC[s, place] = squared_SC[s, place - 1]
                    index_SC[s, place] = index_SC[s, place - 1]
                    place -= 1
                squared_SC[s, place] = squared_V[v]
                index_SC[s, place] = v
    return index_SC, squared_SC


kernel_sums = njit(cache=True, nogil=True)(kernel_sums_python)
nearest = njit(cache=True, nogil=True)(nearest_python)
