"""The layout of a market directory: its kinds of table, their columns and what a sound row is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from feature_repo.market.schema import MarketError

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_INTERVAL: Final = re.compile(r"([1-9]\d*)([smhdw])")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableKind:
    """One kind of table.

    Parameters
    ----------
    required
        Columns it can't do without, besides ``ingest_time`` (or a lag that dates it).
    key
        What, with both times, names a row; also the series within which rows are ordered.
    event
        Its column of business times.
    needed
        Numbers that may not be null; a null elsewhere means absent or withdrawn.
    positive, non_negative
        Numbers that must be above zero, or not below it, where they are not null.
    metrics
        Every column that is no text and no time is a number (on-chain tables).
    ticks
        Several rows of one key and the same times are ordinary (trades, quotes).
    announced
        Rows may be known before they take effect (an index addition, a split), so neither a future
        ``event`` nor an earlier ``ingest_time`` is a fault, and the file's order means nothing.
    """

    required: tuple[str, ...]
    key: tuple[str, ...] = ("entity_key",)
    event: str = "event_time"
    needed: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    non_negative: tuple[str, ...] = ()
    metrics: bool = False
    ticks: bool = False
    announced: bool = False


_NAMED: Final = TableKind(required=("entity_key", "event_time", "name", "value"), key=("entity_key", "name"))

KINDS: Final[Mapping[str, TableKind]] = {
    "bars_<interval>": TableKind(
        required=("entity_key", "event_time", "close"),
        needed=("close",),
        positive=("open", "high", "low", "close"),
        non_negative=("volume",),
    ),
    "trades": TableKind(
        required=("entity_key", "event_time", "price", "size"),
        needed=("price",),
        positive=("price",),
        non_negative=("size",),
        ticks=True,
    ),
    "quotes": TableKind(
        required=("entity_key", "event_time", "bid", "bid_size", "ask", "ask_size"),
        positive=("bid", "ask"),
        non_negative=("bid_size", "ask_size"),
        ticks=True,
    ),
    "sentiment": _NAMED,
    "onchain_<interval>": TableKind(required=("entity_key", "event_time"), metrics=True),
    "fundamentals": _NAMED,
    "universe": TableKind(
        required=("entity_key", "from", "to"), key=("entity_key", "from"), event="from", announced=True
    ),
    "corporate_actions": TableKind(
        required=("entity_key", "event_time", "kind"),
        key=("entity_key", "kind"),
        positive=("ratio",),
        announced=True,
    ),
}
TEXTS: Final = frozenset({"entity_key", "interval", "name", "kind", "trade_id"})
TIMES: Final = frozenset({"event_time", "ingest_time", "from", "to"})
NUMBERS: Final = frozenset({"value"}) | {n for kind in KINDS.values() for n in (*kind.positive, *kind.non_negative)}


def interval_length(interval: str) -> timedelta:
    """Length of an interval such as ``1d``, ``1h``, ``15m``; an error names the units."""
    match = _INTERVAL.fullmatch(interval)
    if match is None:
        raise MarketError(f"interval {interval!r} is not understood: give a whole number and one of {'/'.join(_UNITS)}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def interval_of(table: str) -> str | None:
    """The interval in a table's name: ``1d`` of ``bars_1d``, ``None`` of ``trades``."""
    _, _, interval = table.partition("_")
    return interval if _INTERVAL.fullmatch(interval) else None


def find_kind(table: str) -> TableKind | None:
    """The kind of a table by its name, ``None`` where the layout has no such table."""
    if interval_of(table) is not None:
        return KINDS.get(f"{table.partition('_')[0]}_<interval>")
    return KINDS.get(table) if "<" not in table else None


def table_kind(table: str) -> TableKind:
    """The kind of a table by its name, or an error that lists the layout."""
    kind = find_kind(table)
    if kind is None:
        raise MarketError(
            f"no kind of table is named {table!r}; a market directory may hold {', '.join(KINDS)}, "
            "with intervals such as 1d, 1h, 15m: rename the table"
        )
    return kind
