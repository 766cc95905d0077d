"""When markets trade, and the first price after a decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.layout import interval_length
from feature_repo.market.schema import MarketError

FloatArray: TypeAlias = NDArray[np.float64]
TimeArray: TypeAlias = NDArray[np.datetime64]

# Tensor suffixes: T bars of the grid, N entities, B bars of the table.

SESSIONS_PER_YEAR: Final[Mapping[str, int]] = {"24/7": 365, "XNYS": 252, "weekdays": 252, "unknown": 252}
NEW_YORK: Final = "America/New_York"
_NYSE_OPEN: Final = pd.Timedelta(hours=9, minutes=30)
_MOMENT: Final = np.timedelta64(1, "us")
_NEVER: Final = np.datetime64("NaT", "us")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceGrid:
    """Bars on one grid of times.

    ``event_times_T`` (datetime64[us], UTC, rising) are the bars' ends, ``sample_times_T`` when a decision on them is
    made (see :func:`price_grid`). Prices are (T, N) in the order of ``entities``, NaN where an entity has no such bar
    or price. ``open_TN`` is ``None`` without opens, ``open_times_T`` ``None`` where the calendar does not know them; it
    is NaT where no entity has an open.
    """

    event_times_T: TimeArray
    sample_times_T: TimeArray
    entities: tuple[str, ...]
    close_TN: FloatArray
    open_TN: FloatArray | None
    open_times_T: TimeArray | None

    def only(self, entities: Sequence[str]) -> PriceGrid:
        """The same times with these entities alone, in this order."""
        unknown = sorted(set(entities) - set(self.entities))
        if unknown:
            raise MarketError(f"the price grid has no {unknown}; it has {list(self.entities)}")
        columns = [self.entities.index(entity) for entity in entities]
        return replace(
            self,
            entities=tuple(entities),
            close_TN=self.close_TN[:, columns],
            open_TN=None if self.open_TN is None else self.open_TN[:, columns],
        )

    def tail(self, num_bars: int) -> PriceGrid:
        """The newest ``num_bars`` bars."""
        rows = slice(max(0, len(self.event_times_T) - num_bars), None)
        return replace(
            self,
            event_times_T=self.event_times_T[rows],
            sample_times_T=self.sample_times_T[rows],
            close_TN=self.close_TN[rows],
            open_TN=None if self.open_TN is None else self.open_TN[rows],
            open_times_T=None if self.open_times_T is None else self.open_times_T[rows],
        )


def price_grid(bars: pd.DataFrame, *, calendar: str, interval: str) -> PriceGrid:
    """Bring validated bars onto one grid; prices are those of each bar's latest restatement.

    A bar is known at ``max(event_time, ingest_time)`` of its first version. The sample time of a bar's end is when the
    last entity's bar is known, not counting entities whose bar is known only after the grid's next end (late data
    must not hold up everybody's decision); where all are that late it is the last of them, but never after the next
    sample time. So sample times never fall.
    """
    known_B = np.maximum(_times(bars["event_time"]), _times(bars["ingest_time"]))
    event_times_T, row_B = np.unique(_times(bars["event_time"]), return_inverse=True)
    entities, column_B = np.unique(bars["entity_key"].to_numpy(dtype=str), return_inverse=True)
    shape = (len(event_times_T), len(entities))
    first_known_TN = np.full(shape, _NEVER)
    order = np.argsort(known_B, kind="stable")
    first_known_TN[row_B[order[::-1]], column_B[order[::-1]]] = known_B[order[::-1]]

    def prices(name: str) -> FloatArray:
        price_TN = np.full(shape, np.nan)
        price_TN[row_B[order], column_B[order]] = bars[name].to_numpy(dtype=np.float64)[order]  # the last written stays
        return price_TN

    open_TN = prices("open") if "open" in bars and bars["open"].notna().any() else None
    open_times_T = None if open_TN is None else _open_times(event_times_T, calendar, interval_length(interval))
    if open_TN is not None and open_times_T is not None:
        open_times_T = np.where(np.isfinite(open_TN).any(axis=1), open_times_T, _NEVER)
    return PriceGrid(
        event_times_T=event_times_T,
        sample_times_T=_sample_times(event_times_T, first_known_TN),
        entities=tuple(entities.tolist()),
        close_TN=prices("close"),
        open_TN=open_TN,
        open_times_T=open_times_T,
    )


def first_price_after(grid: PriceGrid) -> tuple[TimeArray, FloatArray]:
    """The first price strictly after each sample time: its time (T,) and its value for each entity (T, N).

    Of the bars after sample i's own it is, in time, the first open (where its time is known) or close later than the
    sample time. In a session market known 15 minutes after the close that is the next morning's open; in a 24/7
    market the next bar opens the moment this one ends, before anything of it is known, so it is the next bar's close.
    All entities trade at that one time; NaN where an entity has no price then, NaT and NaN where no price is there yet.
    """
    num_bars = len(grid.event_times_T)
    after_T = np.searchsorted(grid.event_times_T, grid.sample_times_T, side="right")
    bar_T = np.maximum(after_T, np.arange(1, num_bars + 1))
    there = np.flatnonzero(bar_T < num_bars)
    bar = bar_T[there]
    times_T, price_TN = np.full(num_bars, _NEVER), np.full(grid.close_TN.shape, np.nan)
    times_T[there], price_TN[there] = grid.event_times_T[bar], grid.close_TN[bar]
    if grid.open_TN is not None and grid.open_times_T is not None:
        at_open = grid.open_times_T[bar] > grid.sample_times_T[there]  # never for NaT
        times_T[there[at_open]] = grid.open_times_T[bar[at_open]]
        price_TN[there[at_open]] = grid.open_TN[bar[at_open]]
    return times_T, price_TN


def _sample_times(event_times_T: TimeArray, first_known_TN: TimeArray) -> TimeArray:
    next_end_T = np.append(event_times_T[1:], np.datetime64("9999-01-01", "us"))
    punctual_TN = first_known_TN <= next_end_T[:, None]  # False for NaT
    counted_TN = punctual_TN | ~punctual_TN.any(axis=1, keepdims=True)
    sample_times_T = np.fmax.reduce(np.where(counted_TN, first_known_TN, _NEVER), axis=1)
    falls_never: TimeArray = np.minimum.accumulate(sample_times_T[::-1])[::-1]
    return falls_never


def _open_times(event_times_T: TimeArray, calendar: str, length: timedelta) -> TimeArray | None:
    """When each bar's open was traded: an interval before its end, but not before the last end or the day's opening."""
    start_T = event_times_T - np.timedelta64(length)
    start_T[1:] = np.maximum(start_T[1:], event_times_T[:-1])
    if calendar == "24/7":
        return start_T
    if calendar != "XNYS":
        return None
    local = pd.DatetimeIndex(event_times_T - _MOMENT).tz_localize("UTC").tz_convert(NEW_YORK).tz_localize(None)
    opening_T = _times((local.normalize() + _NYSE_OPEN).tz_localize(NEW_YORK))
    return np.where(
        opening_T < event_times_T, np.maximum(start_T, opening_T), start_T
    )  # a pre-market bar has no opening


def _times(times: pd.Series | pd.DatetimeIndex) -> TimeArray:
    """Aware times as naive UTC microseconds."""
    naive: TimeArray = pd.DatetimeIndex(times).tz_convert("UTC").tz_localize(None).to_numpy(dtype="datetime64[us]")
    return naive
