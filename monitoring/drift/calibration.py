"""What a drift statistic does when nothing has drifted: block bootstrap on the reference itself.

Windows of one length differ by chance, and autocorrelated data differ most: an undrifted AR(0.95) exceeds a PSI of 0.10
nearly every day. So each threshold comes from pairs of windows of the same lengths drawn from the reference, in blocks
of consecutive sessions (Künsch 1989, circular as Politis and Romano 1992), all entities of a session together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, fdtri

from training.metrics.distribution import psi_from_counts

FloatArray = NDArray[np.float64]
MIN_BLOCKS: Final = 3  # a reference of fewer windows says nothing about how windows differ

# Tensor suffixes: T sessions of the reference, D draws, F features, B bins.


def psi_thresholds(
    counts_TFB: FloatArray, *, num_current: int, rng: np.random.Generator, draws: int = 200, alpha: float = 0.01
) -> FloatArray | None:
    """PSI that all features together stay below with nominal probability ``1 - alpha`` without drift, (F,).

    ``counts_TFB`` are the reference's histogram counts of each session, ``num_current`` the sessions of the current
    window. One family-wise level (Romano and Wolf 2005, single step, each feature in units of its own mean), so thirty
    features do not alarm thirty times as often. ``None`` when the reference is shorter than three current windows.

    The level is nominal: a reference holds few independent windows of a persistent feature. At 1%, 252 sessions against
    21 on 20 assets, independent rows alarmed in 0 of 60 worlds, one AR(0.95) in 3%, ten or thirty of them in 10-13%
    (the raw rule in 100%). A longer reference brings that down.
    """
    num_sessions = len(counts_TFB)
    if num_sessions < MIN_BLOCKS * num_current:
        return None
    null_DF = psi_null(counts_TFB, num_current=num_current, rng=rng, draws=draws)
    mean_F = null_DF.mean(axis=0)
    scaled_DF = np.divide(null_DF, mean_F, out=np.zeros_like(null_DF), where=mean_F > 0)
    level = np.quantile(scaled_DF.max(axis=1), 1.0 - alpha, method="higher")
    inflation_F = small_sample_inflation(null_DF, num_blocks=num_sessions / num_current, alpha=alpha)
    return np.asarray(mean_F * level * inflation_F)


def psi_null(counts_TFB: FloatArray, *, num_current: int, rng: np.random.Generator, draws: int) -> FloatArray:
    """PSI of pairs of undrifted windows, shape (D, F).

    The current window is one block; the reference is drawn in blocks from the sessions outside it, for sessions that
    both windows shared would make them look alike.
    """
    num_sessions, num_features, num_bins = counts_TFB.shape
    start_D1 = rng.integers(num_sessions, size=(draws, 1))
    block = np.arange(num_current)
    current_DT = _session_weights((start_D1 + block) % num_sessions, num_sessions)
    num_outside = num_sessions - num_current
    num_blocks = -(-num_sessions // num_current)
    inside_block = rng.integers(num_outside, size=(draws, num_blocks, 1)) + block
    outside = (inside_block % num_outside).reshape(draws, -1)[:, :num_sessions]
    reference_DT = _session_weights((start_D1 + num_current + outside) % num_sessions, num_sessions)
    flat = counts_TFB.reshape(num_sessions, -1)
    shape = (draws, num_features, num_bins)
    return psi_from_counts((reference_DT @ flat).reshape(shape), (current_DT @ flat).reshape(shape))


def small_sample_inflation(null_DF: FloatArray, *, num_blocks: float, alpha: float) -> FloatArray:
    """How much a threshold must grow because ``num_blocks`` blocks only estimate the scale of the statistic, (F,).

    PSI is about a scaled chi-square, whose degrees of freedom follow from the draws' mean and variance. With the scale
    estimated, the right tail is F's: the ratio of the two quantiles is the inflation, 1 for many blocks.
    """
    mean_F, variance_F = null_DF.mean(axis=0), null_DF.var(axis=0, ddof=1)
    ratio_F = np.divide(2.0 * mean_F**2, variance_F, out=np.full_like(mean_F, np.inf), where=variance_F > 0)
    freedom_F = np.clip(ratio_F, 1.0, 1e3)
    estimated_F = fdtri(freedom_F, freedom_F * (num_blocks - 1.0), 1.0 - alpha)
    return np.asarray(estimated_F * freedom_F / chdtri(freedom_F, alpha))


def lower_threshold(
    reference_T: FloatArray,
    statistic: Callable[[FloatArray], float],
    *,
    num_current: int,
    rng: np.random.Generator,
    draws: int = 200,
    alpha: float = 0.01,
    block: int = 21,
) -> float | None:
    """The value that ``statistic`` of ``num_current`` sessions falls below with probability ``alpha`` without drift.

    It is the reference's own value plus the lower quantile of the difference between pairs of windows drawn from it,
    so the uncertainty of the reference counts too. NaN sessions are dropped first; ``None`` when fewer than three
    current windows are left.
    """
    known_T = reference_T[np.isfinite(reference_T)]
    if len(known_T) < MIN_BLOCKS * num_current:
        return None
    current = _resample(known_T, num_current, rng=rng, draws=draws, block=block)
    reference = _resample(known_T, len(known_T), rng=rng, draws=draws, block=block)
    fall_D = [statistic(now) - statistic(then) for now, then in zip(current, reference, strict=True)]
    return statistic(known_T) + float(np.nanquantile(fall_D, alpha, method="lower"))


def _resample(values_T: FloatArray, length: int, *, rng: np.random.Generator, draws: int, block: int) -> FloatArray:
    """Windows of ``length`` made of circular blocks, shape (D, length)."""
    step = min(block, length)
    start = rng.integers(len(values_T), size=(draws, -(-length // step), 1))
    index = ((start + np.arange(step)) % len(values_T)).reshape(draws, -1)[:, :length]
    return np.asarray(values_T[index])


def _session_weights(index_DT: NDArray[np.int64], num_sessions: int) -> FloatArray:
    """How often each draw takes each session, shape (D, T)."""
    weights = np.zeros((len(index_DT), num_sessions))
    np.add.at(weights, (np.arange(len(index_DT))[:, None], index_DT), 1.0)
    return weights
