"""Forecast quality: does the score rank what happened next?

Scores and outcomes are (..., T, N), T bars by N entities; NaN on either side leaves the pair out. The outcome of bar t
is the label's return, known only when the label ends.

Where alphalens differs: it takes the return from the price at the forecast's own time, here it runs from the execution
after it; and it leaves out a bar whose return over any one of the horizons is not known yet, here only at that horizon.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.metrics.kernels import rank_ic

FloatArray: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = NDArray[np.floating]

MIN_PAIRS: Final = 3


def ic_by_time(score_TN: Floats, outcome_TN: Floats) -> FloatArray:
    """Information coefficient of each bar (T,): the rank correlation of scores and outcomes over the entities.

    Spearman's, ties given their average rank. NaN with fewer than three pairs or where either side is all ties.
    Source: Grinold & Kahn, Active Portfolio Management (1999), ch. 6; ranks after Spearman (1904).
    """
    shape = np.broadcast_shapes(np.shape(score_TN), np.shape(outcome_TN))
    score, outcome = np.broadcast_to(score_TN, shape), np.broadcast_to(outcome_TN, shape)
    rows = (1, math.prod(score.shape[:-1]), score.shape[-1])
    return ic_by_horizon(score.reshape(rows), outcome.reshape(rows))[0, 0].reshape(score.shape[:-1])


def ic_by_horizon(score_VTN: Floats, outcome_HTN: Floats) -> FloatArray:
    """``ic_by_time`` of every variant's scores with every horizon's outcomes, (V, H, T).

    With the returns over 1, 2, 3 .. bars as outcomes, its means over time are the decay of the IC.
    Source: Grinold & Kahn (1999), ch. 13, The information horizon.
    """
    score, outcome = (np.require(side, np.float64, ["C", "W"]) for side in (score_VTN, outcome_HTN))
    return rank_ic(score, np.argsort(score, axis=-1), outcome, np.argsort(outcome, axis=-1), MIN_PAIRS)


def mean_ic(ic_T: Floats) -> FloatArray:
    """Mean of the bars' ICs over the last axis; NaN where there is none."""
    finite = np.isfinite(ic_T)
    count = finite.sum(axis=-1)
    return np.where(count > 0, np.where(finite, ic_T, 0.0).sum(axis=-1), np.nan) / np.maximum(count, 1)


def ic_t_stat(ic_T: Floats) -> FloatArray:
    """Mean IC over its standard error, std (n - 1) / sqrt(n), over the last axis.

    It takes the bars as independent, which labels longer than one bar are not. NaN below two bars or for constant
    ICs. Source: Grinold & Kahn (1999), ch. 6.
    """
    finite = np.isfinite(ic_T)
    count, mean = finite.sum(axis=-1), mean_ic(ic_T)
    square = np.where(finite, ic_T - mean[..., None], 0.0) ** 2
    error = np.sqrt(square.sum(axis=-1) / np.maximum(count - 1, 1) / np.maximum(count, 1))
    defined = (count >= 2) & (error > 1e-12 * np.abs(mean))
    return np.where(defined, mean, np.nan) / np.where(defined, error, 1.0)


def hit_rate(score_TN: Floats, outcome_TN: Floats) -> FloatArray:
    """Share of the pairs, over bars and entities, whose score and outcome have the same sign; zeros are left out."""
    product = np.sign(score_TN) * np.sign(outcome_TN)
    hits, misses = ((product == sign).sum(axis=(-2, -1)) for sign in (1.0, -1.0))
    return np.where(hits + misses > 0, hits, np.nan) / np.maximum(hits + misses, 1)
