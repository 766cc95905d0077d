"""What trades and best quotes say of a bar: who bought, how one-sidedly, and how the book stood.

A bar that ends at b has the ticks of (b - interval, b]. Those of one interval more, back to b - 2 interval, only say
how things stood when the bar began: the quote in force, the price before. A market gives the columns of the tables it
has, and none that its bars have themselves.

Of trades: ``buy_volume`` and ``sell_volume``, in units of size; ``num_trades``; ``vpin``, over ``NUM_BUCKETS`` buckets
of the bar's own volume. A trade's side is what the table says it is, else Lee and Ready's where a quote is in force
(which takes both tables to be dated by one clock), else the tick rule's; one that nothing tells counts half to each,
and where that is all of them only the number is given. A trade told again under its ``trade_id`` replaces what was
told before; a null size withdraws it.

Of quotes: ``ofi``, the order flow imbalance, and ``depth``, the mean of the two best sizes, in units of size;
``quoted_spread``, a share of the midpoint; ``depth_imbalance``, (bid size - ask size) over their sum. All but ``ofi``
are weighted by time; a crossed or one-sided quote counts only to ``ofi``.

Columns are null for a bar without ticks of the table. They are given from the moment on at which the bar itself is
known; each later moment at which a tick of the bar's becomes known or is replaced restates them, computed afresh from
all ticks known by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.aggregates.base import Aggregate
from feature_repo.aggregates.levels import late_rows, micros, utc
from feature_repo.kernels.elementwise import ratio
from feature_repo.kernels.order_flow import order_flow_imbalance, time_weighted_mean, vpin
from feature_repo.kernels.signing import lee_ready, midpoint_in_force
from feature_repo.market.layout import interval_length
from feature_repo.market.schema import Market, MarketError
from feature_repo.store.join import NEVER, IntArray

# Array suffixes: N rows of one entity by event and ingest time, C columns, K its bars, V versions: (bar, moment) pairs.

FloatArray: TypeAlias = NDArray[np.float64]

NUM_BUCKETS: Final = 10
OF_TABLE: Final = {
    "trades": ("buy_volume", "sell_volume", "num_trades", "vpin"),
    "quotes": ("ofi", "depth", "quoted_spread", "depth_imbalance"),
}
_READ: Final = {"trades": ("price", "size", "side"), "quotes": ("bid", "bid_size", "ask", "ask_size")}
_COLUMNS: Final = tuple(name for names in OF_TABLE.values() for name in names)
_SIDES: Final = {"buy": 1.0, "sell": -1.0}
_FOREVER: Final = int(np.iinfo(np.int64).max)
_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ticks:
    """One entity's rows of a table, and from when until when each is what is known."""

    event_N: IntArray
    known_N: IntArray
    until_N: IntArray
    values_CN: FloatArray

    def as_known(self, rows: slice, moment: int) -> tuple[IntArray, FloatArray]:
        """Event times and values of those of the rows that hold at ``moment``."""
        event_N, values_CN = self.event_N[rows], self.values_CN[:, rows]
        holds_N = (self.known_N[rows] <= moment) & (moment < self.until_N[rows])
        if holds_N.all():
            return event_N, values_CN
        return event_N[holds_N], np.compress(holds_N, values_CN, axis=1)  # C order, as kernels are compiled for


def versions(market: Market, interval: str) -> pd.DataFrame | None:
    """The columns of this module, as an aggregate gives them."""
    bars = market.traded_bars(interval)
    ticks = {name: dict(_by_entity(name, market)) for name in OF_TABLE}
    parts = [
        _entity_versions(end_K, first_K, interval_length(interval), of_entity).assign(entity_key=entity)
        for entity, end_K, first_K in _first_known(bars)
        if any(entity in by_entity for by_entity in ticks.values())
        for of_entity in [{name: by_entity.get(entity, _no_ticks(name)) for name, by_entity in ticks.items()}]
    ]
    if not parts:
        return None
    given = [name for table, names in OF_TABLE.items() if table in market.tables for name in names]
    return pd.concat(parts, ignore_index=True)[
        ["entity_key", "event_time", "ingest_time", *(name for name in given if name not in bars)]
    ]


def _first_known(bars: pd.DataFrame) -> Iterator[tuple[str, IntArray, IntArray]]:
    """Every entity, the ends of its bars (rising) and when each was first known."""
    known = np.maximum(micros(bars["event_time"]), micros(bars["ingest_time"]))
    for entity, first in bars.assign(known=known).groupby("entity_key"):
        first_K = first.groupby("event_time")["known"].min()
        yield str(entity), micros(first_K.index.to_series()), first_K.to_numpy(np.int64)


def _by_entity(table: str, market: Market) -> Iterator[tuple[str, _Ticks]]:
    if table not in market.tables:
        return
    rows = market.tables[table].sort_values(["entity_key", "event_time", "ingest_time"], kind="stable")
    event = micros(rows["event_time"])
    known = np.maximum(event, micros(rows["ingest_time"]))
    until = _replaced(rows, known)
    values = np.stack([_numbers(rows, name) for name in _READ[table]])
    codes, entities = pd.factorize(rows["entity_key"])
    starts = np.searchsorted(codes, np.arange(len(entities) + 1))
    for entity, start, stop in zip(entities, starts, starts[1:], strict=False):
        own = slice(start, stop)
        yield (
            str(entity),
            _Ticks(event_N=event[own], known_N=known[own], until_N=until[own], values_CN=values[:, own]),
        )


def _no_ticks(table: str) -> _Ticks:
    never = np.empty(0, np.int64)
    return _Ticks(event_N=never, known_N=never, until_N=never, values_CN=np.empty((len(_READ[table]), 0)))


def _replaced(rows: pd.DataFrame, known: IntArray) -> IntArray:
    """When another row of the same trade becomes known, ``_FOREVER`` where none does; rows sorted by ingest time."""
    if "trade_id" not in rows:
        return np.full(len(rows), _FOREVER)
    trade = [rows["entity_key"], rows["event_time"], rows["trade_id"]]
    until = micros(pd.Series(utc(known), index=rows.index).groupby(trade, sort=False).shift(-1))
    return np.where(until == NEVER, _FOREVER, until)


def _numbers(rows: pd.DataFrame, name: str) -> FloatArray:
    if name == "side":
        return _sides(rows[name]) if name in rows else np.zeros(len(rows))
    return rows[name].to_numpy(np.float64, na_value=np.nan)


def _sides(column: pd.Series) -> FloatArray:
    """+1 for a buy, -1 for a sell, 0 where the table does not say."""
    if column.dtype.kind in "iuf":
        sides = column.to_numpy(np.float64, na_value=0.0)
    else:
        sides = column.astype("string").str.lower().map(_SIDES).mask(column.isna(), 0.0).to_numpy(np.float64)
    odd = column[~np.isin(sides, (-1.0, 0.0, 1.0))]
    if len(odd):
        raise MarketError(
            f"the side of {len(odd)} trades is not understood, such as {odd.iloc[0]!r}; it may be buy or sell, 1 or -1 "
            "(the side that started the trade), or null: map the others to these"
        )
    return sides


def _entity_versions(
    end_K: IntArray, first_K: IntArray, interval: timedelta, ticks: Mapping[str, _Ticks]
) -> pd.DataFrame:
    """``event_time, ingest_time`` and all columns of one entity's bars, at every change of them."""
    length = interval // _TICK
    spans = {name: _spans(of_table.event_N, end_K, 2 * length) for name, of_table in ticks.items()}
    bar_V, moment_V = _moments(end_K, first_K, interval, ticks)
    values_VC = np.empty((len(bar_V), len(_COLUMNS)))
    for v, (bar, moment) in enumerate(zip(bar_V.tolist(), moment_V.tolist(), strict=True)):
        trades, quotes = (ticks[name].as_known(spans[name][bar], moment) for name in OF_TABLE)
        end = int(end_K[bar])
        values_VC[v] = *_of_trades(*trades, *quotes, end - length), *_of_quotes(*quotes, end - length, end)
    kept = _changes(bar_V, values_VC)
    times = {"event_time": utc(end_K[bar_V[kept]]), "ingest_time": utc(moment_V[kept])}
    return pd.DataFrame(times | dict(zip(_COLUMNS, values_VC[kept].T, strict=True)))


def _spans(event_N: IntArray, end_K: IntArray, length: int) -> list[slice]:
    """The rows of each bar's (end - length, end]."""
    starts, stops = (np.searchsorted(event_N, edge_K, side="right").tolist() for edge_K in (end_K - length, end_K))
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _moments(
    end_K: IntArray, first_K: IntArray, interval: timedelta, ticks: Mapping[str, _Ticks]
) -> tuple[IntArray, IntArray]:
    """Every bar with ticks when it is first known, and at each later moment at which its ticks change; sorted."""
    has_ticks_K = np.zeros(len(end_K), dtype=bool)
    bars, moments = [], []
    for of_table in ticks.values():
        has_ticks_K |= [rows.start < rows.stop for rows in _spans(of_table.event_N, end_K, interval // _TICK)]
        # what replaces a tick lies in the same bars, so that its moment is one of these too
        bar_P, row_P = late_rows(of_table.event_N, of_table.known_N, end_K, max_age=2 * interval - _TICK)
        is_late_P = of_table.known_N[row_P] > first_K[bar_P]
        bars.append(bar_P[is_late_P])
        moments.append(of_table.known_N[row_P[is_late_P]])
    bar_V = np.concatenate([np.flatnonzero(has_ticks_K), *bars])
    moment_V = np.concatenate([first_K[has_ticks_K], *moments])
    order = np.lexsort((moment_V, bar_V))
    bar_V, moment_V = bar_V[order], moment_V[order]
    is_new_V = np.append(True, (bar_V[1:] != bar_V[:-1]) | (moment_V[1:] != moment_V[:-1]))[: len(bar_V)]
    is_new_V &= has_ticks_K[bar_V]
    return bar_V[is_new_V], moment_V[is_new_V]


def _of_trades(
    time_N: IntArray, trades_CN: FloatArray, quote_time_N: IntArray, quotes_CN: FloatArray, start: int
) -> tuple[float, ...]:
    """``OF_TABLE["trades"]`` of the trades after ``start``; those before it say how prices stood."""
    is_trade_N = trades_CN[1] > 0.0
    if not is_trade_N.all():
        time_N, trades_CN = time_N[is_trade_N], np.compress(is_trade_N, trades_CN, axis=1)
    price, size, side = trades_CN
    own = slice(int(np.searchsorted(time_N, start, side="right")), None)
    if not side[own].all():
        bid, _, ask, _ = quotes_CN
        mid = np.full(len(time_N), np.nan)
        mid[own] = midpoint_in_force(time_N[own], quote_time_N, bid, ask)
        side = np.where(side != 0.0, side, lee_ready(price, mid))
    size, side = size[own], side[own]
    if not len(size):
        return np.nan, np.nan, np.nan, np.nan
    if not side.any():
        return np.nan, np.nan, float(len(size)), np.nan
    buy, sell = size * (0.5 + 0.5 * side), size * (0.5 - 0.5 * side)
    return float(buy.sum()), float(sell.sum()), float(len(size)), vpin(buy, sell, NUM_BUCKETS)


def _of_quotes(time_N: IntArray, quotes_CN: FloatArray, start: int, end: int) -> tuple[float, ...]:
    """``OF_TABLE["quotes"]`` of the quotes after ``start``; those before it say how the book stood."""
    first = int(np.searchsorted(time_N, start, side="right"))
    if first == len(time_N):
        return np.nan, np.nan, np.nan, np.nan
    at_start = max(first - 1, 0)
    time_N, (bid, bid_size, ask, ask_size) = time_N[at_start:], quotes_CN[:, at_start:]
    flow = order_flow_imbalance(bid, bid_size, ask, ask_size)[1:]
    is_sound = bid <= ask
    both = np.where(is_sound, bid_size + ask_size, np.nan)
    spread = np.where(is_sound, ratio(ask - bid, 0.5 * (bid + ask)), np.nan)
    held = (time_weighted_mean(of, time_N, start, end) for of in (0.5 * both, spread, ratio(bid_size - ask_size, both)))
    return float(flow.sum()) if len(flow) else np.nan, *held


def _changes(bar_V: IntArray, values_VC: FloatArray) -> NDArray[np.bool_]:
    """True where a bar's columns differ from those it had before, all null to begin with."""
    is_first_V = np.append(True, bar_V[1:] != bar_V[:-1])[: len(bar_V)]
    before_VC = np.roll(values_VC, 1, axis=0)
    before_VC[is_first_V] = np.nan
    changed: NDArray[np.bool_] = ~((values_VC == before_VC) | (np.isnan(values_VC) & np.isnan(before_VC))).all(axis=1)
    return changed


AGGREGATE = Aggregate(name="order_flow", columns=_COLUMNS, versions=versions)
