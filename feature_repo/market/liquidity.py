"""How much a market trades, as known at each decision."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.calendar import PriceGrid

FloatArray = NDArray[np.float64]

VALUE_BARS: Final = 21

# Tensor suffixes: T bars of the grid, N entities, B rows of the bar table.


def mean_traded_value(bars: pd.DataFrame, grid: PriceGrid, *, window: int = VALUE_BARS) -> FloatArray:
    """Mean of close times volume over the last ``window`` bars, as known at each sample time of the grid (T, N).

    A restatement counts from the moment it is known. NaN where fewer than half of the bars are known with a volume,
    and everywhere in a market that has no volumes.
    """
    mean_TN = np.full((len(grid.event_times_T), len(grid.entities)), np.nan)
    if "volume" not in bars:
        return mean_TN
    row_B, column_B, value_B, known_B = _versions(bars, grid)
    stop_T = np.searchsorted(known_B, grid.sample_times_T, side="right")
    value_TN, start = np.full(mean_TN.shape, np.nan), 0
    for t, stop in enumerate(stop_T):
        value_TN[row_B[start:stop], column_B[start:stop]] = value_B[start:stop]  # of several the last known stays
        recent_TN = value_TN[max(0, t + 1 - window) : t + 1]
        have_TN = np.isfinite(recent_TN)
        count = have_TN.sum(axis=0)
        total = np.where(have_TN, recent_TN, 0.0).sum(axis=0)
        mean_TN[t] = np.where(2 * count >= window, total, np.nan) / np.maximum(count, 1)
        start = stop
    return mean_TN


def _versions(
    bars: pd.DataFrame, grid: PriceGrid
) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray, NDArray[np.datetime64]]:
    """Place on the grid, traded value and time of knowledge of every version of the grid's bars, as they became known.

    Versions of a bar that are known together are in the order of their ingest times.
    """
    event_B, ingest_B = (_naive(bars[name]) for name in ("event_time", "ingest_time"))
    known_B = np.maximum(event_B, ingest_B)
    row_B = np.searchsorted(grid.event_times_T, event_B)
    column_B = pd.Index(grid.entities).get_indexer(bars["entity_key"])
    price_B, volume_B = (bars[name].to_numpy(np.float64, na_value=np.nan) for name in ("close", "volume"))
    on_grid = (column_B >= 0) & np.isin(event_B, grid.event_times_T)
    order = np.lexsort((ingest_B, known_B))
    order = order[on_grid[order]]
    return row_B[order], column_B[order], (price_B * volume_B)[order], known_B[order]


def _naive(times: pd.Series) -> NDArray[np.datetime64]:
    naive: NDArray[np.datetime64] = pd.DatetimeIndex(times).tz_convert(None).to_numpy(dtype="datetime64[us]")
    return naive
