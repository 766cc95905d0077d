"""Distances between distributions: has a feature moved away from its reference?"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]

# Tensor suffix: B bins.


def psi(reference: ArrayLike, current: ArrayLike, *, bins: int = 10) -> float:
    """Population stability index of ``current`` against ``reference``, over quantile bins of the reference.

    A value that the reference holds so often that quantiles coincide on it gets a bin of its own (a constant reference:
    below, at, above). NaN is ignored; NaN is returned where a side is empty. Without drift, and with independent
    rows, it averages about (bins - 1) (1 / n_reference + 1 / n_current).
    Source: Siddiqi, Credit Risk Scorecards (2006); its law after Yurdakul & Naranjo (2020).
    """
    expected, actual = _finite(reference), _finite(current)
    if not len(expected):
        return float("nan")
    edges = quantile_edges(expected, bins=bins)
    return float(psi_from_counts(bin_counts(expected, edges), bin_counts(actual, edges)))


def psi_from_counts(reference_B: ArrayLike, current_B: ArrayLike) -> FloatArray:
    """PSI of histogram counts over the same bins (..., B): the sum of (p - q) ln(p / q).

    p is the current share of a bin and q the reference's, smoothed: each bin that either side has anything in counts
    half an observation more, so a bin that one side leaves empty costs little when there are few rows and much when
    there are many. Bins empty on both sides don't count, so padding with zeros changes nothing. NaN where a side has
    no rows.
    """
    reference_B, current_B = np.asarray(reference_B, dtype=np.float64), np.asarray(current_B, dtype=np.float64)
    used = reference_B + current_B > 0
    q, p = _shares(reference_B, used), _shares(current_B, used)
    index = ((p - q) * np.log(p / q)).sum(axis=-1, where=used)
    return np.where((reference_B.sum(axis=-1) > 0) & (current_B.sum(axis=-1) > 0), index, np.nan)


def quantile_edges(reference: FloatArray, *, bins: int) -> FloatArray:
    """Rising inner bin edges at the quantiles of a finite reference; bin i is (edge i-1, edge i], the outer ones open.

    Where quantiles coincide the edge just below is added, so that the repeated value has a bin to itself: there are
    at most 2 * bins - 2 edges.
    """
    quantiles = np.quantile(reference, np.arange(1, bins) / bins, method="inverted_cdf")
    values, counts = np.unique(quantiles, return_counts=True)
    return np.unique(np.concatenate([values, np.nextafter(values[counts > 1], -np.inf)]))


def bin_counts(values: FloatArray, edges: FloatArray) -> NDArray[np.int64]:
    """How many of the finite values are in each of the ``len(edges) + 1`` bins."""
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


def _shares(counts_B: FloatArray, used: NDArray[np.bool_]) -> FloatArray:
    """Smoothed shares of the used bins, summing to 1; what an unused bin holds is not read."""
    smoothed = counts_B + 0.5
    total = np.where(used, smoothed, 0.0).sum(axis=-1, keepdims=True)
    return smoothed / np.maximum(total, 0.5)


def _finite(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]
