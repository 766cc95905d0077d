"""How many trials were there really? Variants that do the same are one; clusters of the trials' returns count them.

It is a lower bound: a cluster counts as one trial however much its members differ. Where they correlate by 0.6, in 8
clusters of 61, the deflated Sharpe ratio by this number lets the best of luck pass in a third of the worlds without any
skill (``bench/gates.py``), where by all 486 it lets none. So it is shown beside that, and StepM decides, which knows
the correlations themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.metrics import performance as perf

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Returns without any clusters reach 0.03 to 0.08; twenty alike trials a cluster, correlated by 0.4, reach 0.2.
MIN_SILHOUETTE: Final = 0.1

# Tensor suffixes: V variants (trials), T bars, K clusters.


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveTrials:
    """Clusters of the trials.

    ``cluster_V`` numbers each trial's cluster from 0, ``silhouette`` is the mean over the trials (0 where every trial
    stands for itself), ``sharpe_std`` the spread of the clusters' Sharpe ratios (per bar).
    """

    cluster_V: IntArray
    silhouette: float
    sharpe_std: float

    @property
    def num_trials(self) -> int:
        """How many trials the returns look like."""
        return int(self.cluster_V.max()) + 1 if len(self.cluster_V) else 0

    def with_unseen(self, num_unseen: int) -> float:
        """The effective number of trials, those included whose returns can't be clustered since there are none.

        Such are the tuning's (which sees validation only, so test returns were never made), failed variants and those
        with too short a track. They are taken to resemble one another as the others do, and count by the same share.
        """
        share = self.num_trials / max(len(self.cluster_V), 1)
        return self.num_trials + share * num_unseen


def effective_trials(returns_VT: FloatArray) -> EffectiveTrials:
    """Cluster trials by the correlation of their returns, none of them NaN or constant.

    Average linkage on the distance sqrt((1 - correlation) / 2), cut where the mean silhouette is highest; without a
    clear cut every trial stands for itself. A cluster's return is that of its trials weighted by inverse variance.
    After Lopez de Prado & Lewis (2019), Detection of false investment strategies using unsupervised learning methods,
    with a hierarchy in place of their k-means, which depends on random starts.
    """
    if not len(returns_VT):
        return EffectiveTrials(cluster_V=np.zeros(0, dtype=np.int64), silhouette=0.0, sharpe_std=0.0)
    cluster_V, silhouette = _clusters(returns_VT)
    num = int(cluster_V.max()) + 1
    weight_KV = np.zeros((num, len(returns_VT)))
    weight_KV[cluster_V, np.arange(len(returns_VT))] = 1.0 / returns_VT.var(axis=1)
    returns_KT = weight_KV @ returns_VT / weight_KV.sum(axis=1, keepdims=True)
    sharpe_K = perf.sharpe(returns_KT, periods_per_year=1.0)
    spread = float(sharpe_K.std(ddof=1)) if num > 1 else 0.0
    return EffectiveTrials(cluster_V=cluster_V, silhouette=silhouette, sharpe_std=spread)


def _clusters(returns_VT: FloatArray) -> tuple[IntArray, float]:
    """The clusters of the best cut and its mean silhouette."""
    alone, best = np.arange(len(returns_VT)), 0.0
    if len(returns_VT) < 3:  # two clusters of one trial each are no cut
        return alone, best
    distance_VV = np.sqrt(np.clip(1.0 - np.corrcoef(returns_VT), 0.0, 2.0) / 2.0)
    np.fill_diagonal(distance_VV, 0.0)
    chosen = alone
    for own_V, silhouette in _cuts(distance_VV):
        if silhouette > best:
            chosen, best = own_V, silhouette
    if best < MIN_SILHOUETTE:
        return alone, 0.0
    return np.unique(chosen, return_inverse=True)[1], best


def _cuts(distance_VV: FloatArray) -> Iterator[tuple[IntArray, float]]:
    """Every cut of the average-linkage tree, from V - 1 clusters to 2, with its mean silhouette."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    num = len(distance_VV)
    total_VK, size_K, own_V = distance_VV.copy(), np.ones(num), np.arange(num)
    column = {node: node for node in range(num)}  # a node of the tree -> where its distances are summed
    for step, (left, right) in enumerate(linkage(squareform(distance_VV, checks=False), "average")[:-1, :2]):
        keep, drop = column.pop(int(left)), column.pop(int(right))
        column[num + step] = keep
        total_VK[:, keep] += total_VK[:, drop]
        total_VK[:, drop] = np.inf
        size_K[keep] += size_K[drop]
        own_V = np.where(own_V == drop, keep, own_V)
        yield own_V, _silhouette(total_VK, size_K, own_V)


def _silhouette(total_VK: FloatArray, size_K: FloatArray, own_V: IntArray) -> float:
    """Mean silhouette (Rousseeuw 1987; 0 for a trial alone) from each trial's sums of distances to the clusters."""
    rows, size_V = np.arange(len(own_V)), size_K[own_V]
    mean_VK = total_VK / size_K
    within_V = total_VK[rows, own_V] / np.maximum(size_V - 1.0, 1.0)
    mean_VK[rows, own_V] = np.inf
    nearest_V = mean_VK.min(axis=1)
    larger_V = np.maximum(np.maximum(nearest_V, within_V), np.finfo(float).tiny)  # copies are at distance 0
    return float(np.where(size_V > 1, (nearest_V - within_V) / larger_V, 0.0).mean())
