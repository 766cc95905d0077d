"""A day at a time: returns that depend on their own past, through volatility and through planted signals.

With ``z`` the day's shock of unit variance, ``h`` a GARCH(1,1) factor around one and ``score`` the planted signals,

    sigma[t] = vol[t] h[t]
    R[t] = drift[t] + sigma[t] (score[t-1] + shock_scale shrink[t] z[t])
    h[t+1]^2 = 1 - ARCH - GARCH + ARCH (h[t] shrink[t] z[t])^2 + GARCH h[t]^2      (Bollerslev 1986)

R is a simple return, so that without score and drift the price itself is a martingale, and no rise in volatility
raises what a log return would hide. ``shrink`` (nearly always 1) keeps a day's path from falling by more than CAP.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Tensor suffixes: T days with the burn-in, N assets, P signals made of past returns (spec.PRICE_SIGNALS).

ARCH: Final = 0.08
GARCH: Final = 0.88
CAP: Final = 0.5
TREND: Final = 10  # returns of the technical signal, and of the near side of the volatility signal
MOMENTUM: Final = 42  # returns of the momentum signal, older than those
LONG: Final = 60  # returns of the far side of the volatility signal
LEAD: Final = 5  # returns of the leader
WARMUP: Final = LONG


def price_signals_python(returns_TN: FloatArray, leader_N: NDArray[np.int64], t: int, out_PN: FloatArray) -> None:
    """The raw signals at the end of day t >= WARMUP - 1, from the returns up to day t inclusive.

    The three made of signed returns divide a sum by the root of its squares, which has unit variance for any returns
    of independent signs, whatever their volatility does.
    """
    for i in range(returns_TN.shape[1]):
        total, squares = 0.0, 0.0
        for k in range(TREND, TREND + MOMENTUM):
            r = returns_TN[t - k, i]
            total += r
            squares += r * r
        out_PN[0, i] = total / math.sqrt(squares)
        total, squares, near = 0.0, 0.0, 0.0
        for k in range(TREND):
            r = returns_TN[t - k, i]
            weighted = (TREND - k) * r  # the log distance to the mean of the last closes weighs returns like this
            total += weighted
            squares += weighted * weighted
            near += r * r
        out_PN[1, i] = -total / math.sqrt(squares)
        far = near
        for k in range(TREND, LONG):
            far += returns_TN[t - k, i] * returns_TN[t - k, i]
        out_PN[2, i] = -0.5 * math.log(near / TREND / (far / LONG))
        total, squares = 0.0, 0.0
        for k in range(LEAD):
            r = returns_TN[t - k, leader_N[i]]
            total += r
            squares += r * r
        out_PN[3, i] = total / math.sqrt(squares)


price_signals = njit(cache=True, nogil=True)(price_signals_python)


def simulate_days_python(
    shock_TN: FloatArray,
    reach_TN: FloatArray,
    vol_TN: FloatArray,
    drift_T: FloatArray,
    push_TN: FloatArray,
    beta_P: FloatArray,
    centre_P: FloatArray,
    scale_P: FloatArray,
    shock_scale: float,
    leader_N: NDArray[np.int64],
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Returns, their volatility and shrink (T, N), and the raw price signals (P, T, N), 0 before WARMUP days.

    ``reach_TN`` is how far the day's path strays at most, in units of its volatility; ``push_TN`` the score of the
    signals from outside, known at the end of day t and felt on day t+1; ``beta_P`` weighs the price signals, each less
    its centre and over its scale.
    """
    num_days, num_assets = shock_TN.shape
    returns_TN = np.zeros((num_days, num_assets))
    sigma_TN = np.zeros((num_days, num_assets))
    shrink_TN = np.ones((num_days, num_assets))
    raw_PTN = np.zeros((len(beta_P), num_days, num_assets))
    factor2_N = np.ones(num_assets)
    for t in range(num_days):
        for i in range(num_assets):
            score = 0.0
            if t >= WARMUP:
                score = push_TN[t - 1, i]
                for p in range(len(beta_P)):
                    score += beta_P[p] * (raw_PTN[p, t - 1, i] - centre_P[p]) / scale_P[p]
            sigma = vol_TN[t, i] * math.sqrt(factor2_N[i])
            shrink = min(1.0, CAP / (sigma * reach_TN[t, i]))
            shock = shrink * shock_TN[t, i]
            returns_TN[t, i] = drift_T[t] + sigma * (score + shock_scale * shock)
            sigma_TN[t, i] = sigma
            shrink_TN[t, i] = shrink
            factor2_N[i] = 1.0 - ARCH - GARCH + (ARCH * shock * shock + GARCH) * factor2_N[i]
        if t >= WARMUP - 1:
            price_signals(returns_TN, leader_N, t, raw_PTN[:, t, :])
    return returns_TN, sigma_TN, shrink_TN, raw_PTN


simulate_days = njit(cache=True, nogil=True)(simulate_days_python)
