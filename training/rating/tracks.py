"""From the signal store to each variant's out-of-sample track: what its book earned, bar by bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.costs import CostModel
from training.dataset import Panel, TimeArray
from training.metrics.forecast import ic_by_time
from training.signals import SignalStore
from training.simulate import simulate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Out-of-sample tracks, one row a variant: V variants, T bars of the longest track.

    ``net_VT`` are returns net of costs, ``gross_VT`` before them, ``turnover_VT`` the traded share of capital,
    ``ic_VT`` the rank IC of each bar. NaN before a variant's first test bar.
    """

    variants: tuple[str, ...]
    event_times_T: TimeArray
    net_VT: FloatArray
    gross_VT: FloatArray
    turnover_VT: FloatArray
    ic_VT: FloatArray


def score_matrix(
    signals: pd.DataFrame, event_times_T: TimeArray, entities: Sequence[str]
) -> tuple[FloatArray, NDArray[np.object_]]:
    """Scores (T, N) and the model version that made each bar's, from signal rows; NaN and '' where there are none."""
    score_TN = np.full((len(event_times_T), len(entities)), np.nan)
    version_T = np.full(len(event_times_T), "", dtype=object)
    times = signals["event_time"].dt.tz_convert(None).to_numpy().astype("datetime64[us]")
    rows = np.searchsorted(event_times_T, times)
    columns = pd.Index(entities).get_indexer(signals["entity_key"])
    score_TN[rows, columns] = signals["score"].to_numpy()
    version_T[rows] = signals["model_version"].to_numpy()
    return score_TN, version_T


def build_tracks(
    store: SignalStore, thresholds: Mapping[str, Mapping[str, float]], panel: Panel, *, costs: CostModel
) -> Tracks:
    """Simulate every variant over its out-of-sample signals.

    ``thresholds`` maps a variant to its model versions (one a fold) and the threshold tuned on each one's validation.
    Bars that no variant was tested on, and those whose label is not complete yet, are left out.
    """
    complete = ~np.isnat(panel.labels.end_T)
    rows = []
    for variant, by_version in thresholds.items():
        signals = store.read(variant, model_versions=list(by_version), kind="oos")
        score_TN, version_T = score_matrix(signals, panel.event_times_T, panel.entities)
        rows.append(_track(score_TN, version_T, by_version, panel, complete, costs))
    stacked = np.stack(rows, axis=1) if rows else np.empty((4, 0, len(complete)))
    used = np.flatnonzero(np.isfinite(stacked[0]).any(axis=0))  # one run: test windows follow one another
    net, gross, turnover, ic = stacked[:, :, used]
    return Tracks(
        variants=tuple(thresholds),
        event_times_T=panel.event_times_T[used],
        net_VT=net,
        gross_VT=gross,
        turnover_VT=turnover,
        ic_VT=ic,
    )


def _track(
    score_TN: FloatArray,
    version_T: NDArray[np.object_],
    thresholds: Mapping[str, float],
    panel: Panel,
    complete: NDArray[np.bool_],
    costs: CostModel,
) -> FloatArray:
    """Net, gross, turnover and IC of one variant, shape (4, T), NaN outside its test bars."""
    out = np.full((4, len(version_T)), np.nan)
    scored = np.flatnonzero((version_T != "") & complete)
    if not len(scored):
        return out
    run = slice(scored[0], scored[-1] + 1)  # a bar without signals inside the run is a flat bar, not a missing one
    threshold_T = np.array([thresholds.get(version, np.inf) for version in version_T[run]])
    book = simulate(score_TN[run], panel.hold_TN[run], threshold=threshold_T, costs=costs)
    out[:, run] = book.net_T, book.gross_T, book.turnover_T, ic_by_time(score_TN[run], panel.labels.forward_TN[run])
    return out
