"""StepM (Romano & Wolf 2005) and the SPA p-values (Hansen 2005) of many trials at once, by matrix products.

What ``arch.bootstrap`` computes for the same seed, many times faster: a bootstrapped mean is linear in the returns, so
one replication is a row of counts (how often was each bar drawn?) and all replications of all trials are one matrix
product. The resampling itself is arch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_REPS_AT_ONCE: Final = 500

# Tensor suffixes: S bars, V variants (trials), R replications of the bootstrap.


@dataclass(frozen=True, kw_only=True, slots=True)
class StepM:
    """What the steps came to.

    ``superior_V`` are the variants found superior, and just their means are above ``critical``, the last step's
    critical mean. The p-values are the best variant's: Hansen's lower, consistent and upper one.
    """

    superior_V: NDArray[np.bool_]
    critical: float
    p_lower: float
    p_consistent: float
    p_upper: float


def step_m(unit_SV: FloatArray, *, level: float, reps: int, seed: int, block_size: int) -> StepM:
    """Which variants have a mean above zero, with a chance of at most ``level`` of naming any that has none.

    ``unit_SV`` has returns of unit variance and no NaN: arch 8.0 compares plain means, whatever its ``studentize``, so
    the most volatile variant would set the bar for all. Cash joins as one more trial: it is never superior, and without
    it arch fails where the last variants standing are found superior in a later step.
    """
    mean_V = unit_SV.mean(axis=0)
    drawn_RV = bootstrap_means(unit_SV, reps=reps, seed=seed, block_size=block_size)
    relevant_V = _relevant(unit_SV, block_size)
    best = max(float(mean_V.max()), 0.0)
    p_lower = _share_above(best, drawn_RV - np.maximum(mean_V, 0.0))
    p_upper = _share_above(best, drawn_RV - mean_V)
    luck_RV = drawn_RV - np.where(relevant_V, mean_V, 0.0)
    superior_V = np.zeros(len(mean_V), dtype=bool)
    while True:
        critical = float(np.quantile(_best(luck_RV[:, ~superior_V]), 1.0 - level))
        found_V = (mean_V > critical) & ~superior_V
        if not found_V.any():
            break
        superior_V |= found_V
    return StepM(
        superior_V=superior_V,
        critical=critical,
        p_lower=p_lower,
        p_consistent=_share_above(best, luck_RV),
        p_upper=p_upper,
    )


def bootstrap_means(returns_SV: FloatArray, *, reps: int, seed: int, block_size: int) -> FloatArray:
    """Means of ``reps`` stationary bootstrap samples (R, V), the bars drawn alike for all variants."""
    means = [
        counts_RS @ returns_SV / len(returns_SV)
        for counts_RS in bootstrap_counts(len(returns_SV), reps=reps, seed=seed, block_size=block_size)
    ]
    return np.concatenate(means)


def bootstrap_counts(num_bars: int, *, reps: int, seed: int, block_size: int) -> Iterator[FloatArray]:
    """How often each of arch's stationary bootstrap samples draws each bar, some replications (R, S) at a time."""
    from arch.bootstrap import StationaryBootstrap

    samples = StationaryBootstrap(block_size, np.arange(num_bars), seed=seed).bootstrap(reps)
    rows = (np.bincount(drawn, minlength=num_bars) for (drawn,), _ in samples)
    while chunk := list(islice(rows, _REPS_AT_ONCE)):
        yield np.stack(chunk).astype(np.float64)


def long_run_variance(returns_SV: FloatArray, block_size: int) -> FloatArray:
    """Variance (V,) of the stationary bootstrap's mean times the number of bars, in its closed form.

    Source: Politis & Romano (1994), lemma 1, over circular autocovariances (by FFT).
    """
    num_bars = len(returns_SV)
    spectrum = np.abs(np.fft.rfft(returns_SV - returns_SV.mean(axis=0), axis=0)) ** 2
    covariance_SV = np.fft.irfft(spectrum, n=num_bars, axis=0) / num_bars
    lag = np.arange(num_bars)
    weight = (1.0 - lag / num_bars) * (1.0 - 1.0 / block_size) ** lag
    weight[1:] += weight[:0:-1].copy()
    return weight @ covariance_SV


def _relevant(returns_SV: FloatArray, block_size: int) -> NDArray[np.bool_]:
    """Variants not so bad that luck could not lift them to the top: Hansen's (2005) consistent recentring."""
    num_bars = len(returns_SV)
    variance = np.maximum(long_run_variance(returns_SV, block_size), 0.0)
    return returns_SV.mean(axis=0) >= -np.sqrt(variance / num_bars * 2.0 * np.log(np.log(num_bars)))


def _best(luck_RV: FloatArray) -> FloatArray:
    """The best of each replication (R,), cash included."""
    return luck_RV.max(axis=1, initial=0.0)


def _share_above(value: float, luck_RV: FloatArray) -> float:
    return float((_best(luck_RV) > value).mean())
