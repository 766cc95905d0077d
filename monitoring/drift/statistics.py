"""What drifts: the distribution of features, the information coefficient, the Sharpe ratio."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.metrics.distribution import bin_counts, psi_from_counts, quantile_edges

FloatArray = NDArray[np.float64]
BINS: Final = 10
MIN_COVERAGE: Final = 0.5  # share of its usual values that a window must have to say anything

# Tensor suffixes: T sessions, N entities, F features, B bins.


def session_counts(reference_TNF: FloatArray, current_TNF: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Histogram counts of each session over the reference's quantile bins: (T, F, B) for either window.

    NaN is counted nowhere. Features with fewer bins are padded with bins that hold nothing, which PSI skips.
    """
    num_features = reference_TNF.shape[2]
    num_bins = 2 * BINS - 1  # the most that quantile edges can make
    counts = [np.zeros((len(part), num_features, num_bins)) for part in (reference_TNF, current_TNF)]
    for f in range(num_features):
        known = reference_TNF[..., f]
        known = known[np.isfinite(known)]
        if not len(known):
            continue
        edges = quantile_edges(known, bins=BINS)
        for part, counted in zip((reference_TNF, current_TNF), counts, strict=True):
            for t, values_N in enumerate(part[..., f]):
                found = bin_counts(values_N[np.isfinite(values_N)], edges)
                counted[t, f, : len(found)] = found
    return counts[0], counts[1]


def window_psi(reference_TFB: FloatArray, current_TFB: FloatArray) -> FloatArray:
    """PSI of each feature between two windows of session counts, shape (F,).

    NaN where a window has no values, or the current one fewer than half the reference's a session: the few values left
    of a feature that stops coming look like a shift, and are none.
    """
    usual_F, now_F = (part.sum(axis=(0, 2)) / len(part) for part in (reference_TFB, current_TFB))
    psi_F = psi_from_counts(reference_TFB.sum(axis=0), current_TFB.sum(axis=0))
    return np.where(now_F < MIN_COVERAGE * usual_F, np.nan, psi_F)


def rolling_mean(values_T: FloatArray, window: int) -> FloatArray:
    """Mean of the last ``window`` bars' finite values at every bar; NaN where fewer than half of them are finite."""
    if len(values_T) < window:
        return np.full(len(values_T), np.nan)
    views = np.lib.stride_tricks.sliding_window_view(values_T, window)
    known = np.isfinite(views)
    count = known.sum(axis=1)
    mean = np.where(known, views, 0.0).sum(axis=1) / np.maximum(count, 1)
    return np.concatenate([np.full(window - 1, np.nan), np.where(count < MIN_COVERAGE * window, np.nan, mean)])
