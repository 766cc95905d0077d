"""From the signal store to each variant's track: what its book earned, bar by bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.costs import CostModel, Liquidity
from training.dataset import Panel, TimeArray
from training.metrics.forecast import ic_by_horizon, mean_ic
from training.signals import SignalStore
from training.simulate import simulate
from training.tearsheet import compounded

FloatArray = NDArray[np.float64]

DECAY_HORIZONS: Final = (1, 2, 3, 5, 10)
NUM_SERIES: Final = 5

# Tensor suffixes: V variants, T bars, N entities, H horizons.


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Tracks, one row a variant: V variants, T bars of the longest track.

    ``net_VT`` are returns net of costs, ``gross_VT`` before them, ``turnover_VT`` the traded share of capital,
    ``unit_impact_VT`` what impact would cost a capital of 1 (NaN where unknown), ``ic_VT`` the rank IC of each bar with
    its label. All are NaN before a variant's first bar. ``decay_VH`` is the mean rank IC with the return over the next
    1, 2, 3, 5, 10 bars (``DECAY_HORIZONS``). ``capital`` is the one that impact in ``net_VT`` was charged for.
    """

    variants: tuple[str, ...]
    event_times_T: TimeArray
    net_VT: FloatArray
    gross_VT: FloatArray
    turnover_VT: FloatArray
    unit_impact_VT: FloatArray
    ic_VT: FloatArray
    decay_VH: FloatArray
    capital: float


def score_matrix(
    signals: pd.DataFrame, event_times_T: TimeArray, entities: Sequence[str]
) -> tuple[FloatArray, NDArray[np.object_]]:
    """Scores (T, N) and the model version that made each bar's, from signal rows; NaN and '' where there are none.

    A bar that several versions scored has the scores of the version that was first: a later word on it would be
    hindsight. Bars that are not among ``event_times_T`` are left out, and so are other entities.
    """
    score_TN = np.full((len(event_times_T), len(entities)), np.nan)
    version_T = np.full(len(event_times_T), "", dtype=object)
    times = signals["event_time"].dt.tz_convert(None).to_numpy().astype("datetime64[us]")
    signals = signals[np.isin(times, event_times_T)].sort_values(["made_at", "model_version"], ascending=False)
    times = signals["event_time"].dt.tz_convert(None).to_numpy().astype("datetime64[us]")
    rows = np.searchsorted(event_times_T, times)
    columns = pd.Index(entities).get_indexer(signals["entity_key"])
    version_T[rows] = signals["model_version"].to_numpy()  # of several rows the last stays: the first one made
    kept = (signals["model_version"].to_numpy() == version_T[rows]) & (columns >= 0)
    score_TN[rows[kept], columns[kept]] = signals["score"].to_numpy()[kept]
    return score_TN, version_T


def build_tracks(
    store: SignalStore,
    thresholds: Mapping[str, Mapping[str, float]],
    panel: Panel,
    *,
    costs: CostModel,
    kind: Literal["oos", "live"] = "oos",
    traded_value_TN: FloatArray | None = None,
) -> Tracks:
    """Simulate every variant over its signals of one kind.

    ``thresholds`` maps a variant to its model versions (one a fold) and the threshold tuned on each one's validation.
    ``traded_value_TN`` is the mean traded value at the panel's times, for market impact (``mean_traded_value``).
    A track runs from the variant's first scored bar to the last bar that any variant was scored on. A bar without
    signals in between is a flat one, not a missing one: the book had nothing to trade on and closed its positions.

    Out-of-sample tracks end with the last bar whose label is complete, live ones with the last decision executed,
    which is still open: what it has earned so far is in the panel's ``hold_TN`` (see ``live_panel``), or counts as 0.
    """
    ground = _ground(panel, kind)
    liquidity = None if traded_value_TN is None else Liquidity(value_TN=traded_value_TN, vol_TN=panel.vol_TN)
    rows, decay, stop = [], [], 0
    for variant, by_version in thresholds.items():
        signals = store.read(variant, model_versions=list(by_version), kind=kind)
        score_TN, version_T = score_matrix(signals, panel.event_times_T, panel.entities)
        series, decay_H, own_stop = _track(score_TN, version_T, by_version, ground, costs, liquidity)
        rows.append(series)
        decay.append(decay_H)
        stop = max(stop, own_stop)
    stacked = np.stack(rows, axis=1) if rows else np.empty((NUM_SERIES, 0, len(panel.event_times_T)))
    used = np.flatnonzero(np.isfinite(stacked[0, :, :stop]).any(axis=0))  # one run, up to the last bar scored
    net, gross, turnover, unit_impact, ic = stacked[:, :, used]
    return Tracks(
        variants=tuple(thresholds),
        event_times_T=panel.event_times_T[used],
        net_VT=net,
        gross_VT=gross,
        turnover_VT=turnover,
        unit_impact_VT=unit_impact,
        ic_VT=ic,
        decay_VH=np.reshape(decay, (len(decay), len(DECAY_HORIZONS))),
        capital=costs.capital,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ground:
    """What came of every bar: ``hold_TN`` is what a book holds over, ``outcome_HTN`` what ICs are taken with: the
    label's return first, then those over ``DECAY_HORIZONS``. Bars from ``num_bars`` on are not rated yet.
    """

    num_bars: int
    hold_TN: FloatArray
    outcome_HTN: FloatArray


def _ground(panel: Panel, kind: Literal["oos", "live"]) -> _Ground:
    executed_T = ~np.isnat(panel.labels.start_T)
    rated_T = executed_T if kind == "live" else ~np.isnat(panel.labels.end_T)
    closed_T = np.append(executed_T[1:], False)  # an open bar's return is not what a forecast is held against
    closed_TN = np.where(closed_T[:, None], panel.hold_TN, np.nan)
    outcomes = [panel.labels.forward_TN, *(compounded(closed_TN, bars) for bars in DECAY_HORIZONS)]
    return _Ground(num_bars=int(rated_T.sum()), hold_TN=panel.hold_TN, outcome_HTN=np.stack(outcomes))


def _track(
    score_TN: FloatArray,
    version_T: NDArray[np.object_],
    thresholds: Mapping[str, float],
    ground: _Ground,
    costs: CostModel,
    liquidity: Liquidity | None,
) -> tuple[FloatArray, FloatArray, int]:
    """Net, gross, turnover, unit impact and IC of one variant (5, T), its IC's decay (H,), the end of what it scored.

    NaN before its first scored bar; flat after its last.
    """
    out = np.full((NUM_SERIES, len(version_T)), np.nan)
    scored = np.flatnonzero(version_T[: ground.num_bars] != "")
    if not len(scored):
        return out, np.full(len(DECAY_HORIZONS), np.nan), 0
    run = slice(int(scored[0]), ground.num_bars)
    threshold_T = np.array([thresholds.get(version, np.inf) for version in version_T[run]])
    if liquidity is not None:
        liquidity = Liquidity(value_TN=liquidity.value_TN[run], vol_TN=liquidity.vol_TN[run])
    book = simulate(score_TN[run], ground.hold_TN[run], threshold=threshold_T, costs=costs, liquidity=liquidity)
    ic_HT = ic_by_horizon(score_TN[None, run], ground.outcome_HTN[:, run])[0]
    out[:, run] = book.net_T, book.gross_T, book.turnover_T, book.unit_impact_T, ic_HT[0]
    return out, mean_ic(ic_HT[1:]), int(scored[-1]) + 1
