"""The loops behind the metrics: each is a plain function first, then the same function compiled.

Values that are not finite are left out, as the metrics say.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

# Tensor suffixes: R rows (variants), V variants, F market factors, T bars, N entities, H horizons.


def moments_python(values_RT: FloatArray) -> FloatArray:
    """Count, mean, and the mean second, third and fourth powers of the deviations from it: (R, 5).

    Deviations are first taken from the row's first value, so those of a constant row are exactly 0.
    """
    out = np.zeros((values_RT.shape[0], 5))
    for r in range(values_RT.shape[0]):
        count, base, total = 0, 0.0, 0.0
        for t in range(values_RT.shape[1]):
            value = values_RT[r, t]
            if np.isfinite(value):
                if count == 0:
                    base = value
                count += 1
                total += value - base
        shift = total / max(count, 1)
        second, third, fourth = 0.0, 0.0, 0.0
        for t in range(values_RT.shape[1]):
            value = values_RT[r, t]
            if np.isfinite(value):
                deviation = value - base - shift
                square = deviation * deviation
                second += square
                third += square * deviation
                fourth += square * square
        out[r, 0], out[r, 1] = count, base + shift
        out[r, 2], out[r, 3], out[r, 4] = second / max(count, 1), third / max(count, 1), fourth / max(count, 1)
    return out


def wealth_python(returns_RT: FloatArray) -> FloatArray:
    """Count, final wealth of 1 compounded, its deepest drawdown, bars from that trough until it is made good: (R, 4).

    What is lost entirely stays lost. The starting capital is a peak too; of equally deep drawdowns the first counts.
    Bars are -1 where it is not made good. The tolerance is for rounding: -10% then +11.11..% is a full recovery.
    """
    out = np.zeros((returns_RT.shape[0], 4))
    for r in range(returns_RT.shape[0]):
        count, grown, peak, depth, lost, trough, bars = 0, 1.0, 1.0, 0.0, 1.0, 0, 0
        floor = 1.0  # just above the wealth of the deepest drawdown so far: divisions are slow, and rarely needed
        for t in range(returns_RT.shape[1]):
            value = returns_RT[r, t]
            if np.isfinite(value):
                count += 1
                grown *= max(1.0 + value, 0.0)
            if grown > peak:
                peak = grown
                floor = peak * (1.0 + depth) * (1.0 + 1e-12)
            if grown < floor and grown / peak - 1.0 < depth:
                depth, lost, trough, bars = grown / peak - 1.0, peak, t, -1
                floor = peak * (1.0 + depth) * (1.0 + 1e-12)
            elif bars < 0 and grown >= lost * (1.0 - 1e-12):
                bars = t - trough
        out[r, 0], out[r, 1], out[r, 2], out[r, 3] = count, grown, depth, bars
    return out


def past_hedge_python(own_RT: FloatArray, market_FT: FloatArray, window: int, min_obs: int) -> FloatArray:
    """What holding the market by each row's past betas earned at each bar: (R, T).

    The betas are the least-squares slopes, all factors at once, over those of the ``window`` bars before that the row
    and every factor have. 0 with fewer than ``min_obs`` of them; a factor that is missing at the bar earns nothing.
    """
    num_factors, num_bars = market_FT.shape
    hedge_RT = np.zeros(own_RT.shape)
    joint_ST = np.empty((num_factors + 1, num_bars))  # S series: the factors, then the row
    joint_ST[:num_factors] = market_FT
    total_S, product_SS = np.zeros(num_factors + 1), np.zeros((num_factors + 1, num_factors + 1))
    left_SS, beta_F = np.zeros(product_SS.shape), np.zeros(num_factors)
    for r in range(own_RT.shape[0]):
        joint_ST[num_factors] = own_RT[r]
        count, total_S[:], product_SS[:] = 0, 0.0, 0.0
        for t in range(num_bars):
            if count >= min_obs:
                _solve_betas(count, total_S, product_SS, left_SS, beta_F)
                for f in range(num_factors):
                    if np.isfinite(market_FT[f, t]):
                        hedge_RT[r, t] += beta_F[f] * market_FT[f, t]
            count += _add_bar(joint_ST, t, 1, total_S, product_SS)
            if t >= window:
                count += _add_bar(joint_ST, t - window, -1, total_S, product_SS)
    return hedge_RT


def add_bar_python(joint_ST: FloatArray, t: int, sign: int, total_S: FloatArray, product_SS: FloatArray) -> int:
    """Add a bar that all series have to their sums and products (upper triangle), or take it off; by how many bars."""
    for s in range(joint_ST.shape[0]):
        if not np.isfinite(joint_ST[s, t]):
            return 0
    for s in range(joint_ST.shape[0]):
        total_S[s] += sign * joint_ST[s, t]
        for other in range(s, joint_ST.shape[0]):
            product_SS[s, other] += sign * joint_ST[s, t] * joint_ST[other, t]
    return sign


def solve_betas_python(
    count: int, total_S: FloatArray, product_SS: FloatArray, left_SS: FloatArray, beta_F: FloatArray
) -> None:
    """Write the slopes of the last series on the others into ``beta_F``, by Gaussian elimination in ``left_SS``.

    That of a series that doesn't vary beyond those before it is 0.
    """
    last = total_S.shape[0] - 1
    for i in range(last + 1):
        for j in range(i, last + 1):
            left_SS[i, j] = product_SS[i, j] - total_S[i] * total_S[j] / count
    for f in range(last):
        if left_SS[f, f] > 1e-12 * product_SS[f, f]:
            for i in range(f + 1, last):
                slope = left_SS[f, i] / left_SS[f, f]
                for j in range(i, last + 1):
                    left_SS[i, j] -= slope * left_SS[f, j]
    for f in range(last - 1, -1, -1):
        beta_F[f] = 0.0
        if left_SS[f, f] > 1e-12 * product_SS[f, f]:
            rest = left_SS[f, last]
            for other in range(f + 1, last):
                rest -= left_SS[f, other] * beta_F[other]
            beta_F[f] = rest / left_SS[f, f]


def rank_ic_python(
    score_VTN: FloatArray,
    score_order_VTN: IntArray,
    outcome_HTN: FloatArray,
    outcome_order_HTN: IntArray,
    min_pairs: int,
) -> FloatArray:
    """Rank correlation of every variant's scores with every horizon's outcomes over the entities: (V, H, T).

    The orders are the argsorts over the entities. Average ranks among the entities that have both; NaN below
    ``min_pairs`` of them or where either side is all ties.
    """
    num_variants, num_bars, num_entities = score_VTN.shape
    ic_VHT = np.full((num_variants, outcome_HTN.shape[0], num_bars), np.nan)
    own_N, other_N = np.zeros(num_entities), np.zeros(num_entities)
    paired_N = np.zeros(num_entities, dtype=np.bool_)
    for v in range(num_variants):
        for t in range(num_bars):
            own = 0.0
            for h in range(outcome_HTN.shape[0]):
                num_pairs, is_new = 0, h == 0
                for n in range(num_entities):
                    is_pair = bool(np.isfinite(score_VTN[v, t, n]) and np.isfinite(outcome_HTN[h, t, n]))
                    is_new = is_new or is_pair != paired_N[n]
                    paired_N[n] = is_pair
                    num_pairs += is_pair
                if num_pairs < min_pairs:
                    paired_N[:] = False  # no ranks were written for these
                    continue
                if is_new:  # the same pairs as at the horizon before have the same ranks
                    own = _centred_ranks(score_VTN[v, t], score_order_VTN[v, t], paired_N, num_pairs, own_N)
                other = _centred_ranks(outcome_HTN[h, t], outcome_order_HTN[h, t], paired_N, num_pairs, other_N)
                if own > 0.0 and other > 0.0:
                    total = 0.0
                    for n in range(num_entities):
                        if paired_N[n]:
                            total += own_N[n] * other_N[n]
                    ic_VHT[v, h, t] = total / np.sqrt(own * other)
    return ic_VHT


def centred_ranks_python(
    values_N: FloatArray, order_N: IntArray, paired_N: NDArray[np.bool_], num_pairs: int, ranks_N: FloatArray
) -> float:
    """Write the paired values' average ranks less their mean into ``ranks_N``; returns the sum of their squares."""
    middle, below, squares, i = (num_pairs + 1) / 2.0, 0, 0.0, 0
    while below < num_pairs:
        if not paired_N[order_N[i]]:
            i += 1
            continue
        value, num_ties, stop = values_N[order_N[i]], 0, i
        while stop < len(order_N) and (not paired_N[order_N[stop]] or values_N[order_N[stop]] == value):
            num_ties += paired_N[order_N[stop]]
            stop += 1
        rank = below + (num_ties + 1) / 2.0 - middle
        for j in range(i, stop):
            ranks_N[order_N[j]] = rank
        squares += num_ties * rank * rank
        below, i = below + num_ties, stop
    return squares


moments = njit(cache=True, nogil=True)(moments_python)
wealth = njit(cache=True, nogil=True)(wealth_python)
_add_bar = njit(cache=True, nogil=True)(add_bar_python)
_solve_betas = njit(cache=True, nogil=True)(solve_betas_python)
past_hedge = njit(cache=True, nogil=True)(past_hedge_python)
_centred_ranks = njit(cache=True, nogil=True)(centred_ranks_python)
rank_ic = njit(cache=True, nogil=True)(rank_ic_python)
