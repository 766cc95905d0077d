"""Moments to look at, and markets that differ only in what became known after one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Final, Literal, TypeAlias

import numpy as np
import pandas as pd

from feature_repo.leakage.findings import LeakageError, TimeArray, micros
from feature_repo.market.assembly import canonical, fingerprint, known_at
from feature_repo.market.layout import table_kind
from feature_repo.market.schema import Market

Check: TypeAlias = Literal["truncation", "restatement", "changed future"]

_TICK: Final = np.timedelta64(1, "us")
_LATE: Final = 2.0  # times the usual lag
_MOST_RESTATED: Final = 50  # rows of a table
_RECENT: Final = 400  # of the newest rows known, some are restated: those that a window still holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    """A market that equals another one in all that was known at ``moment``.

    ``truncation`` lacks all that became known later, ``restatement`` has later rows for what had been known,
    ``changed future`` has other values wherever they became known later.
    """

    check: Check
    moment: pd.Timestamp
    market: Market


def challenges(market: Market, moments: Sequence[pd.Timestamp], *, rng: np.random.Generator) -> Iterator[Challenge]:
    """The three challenges of every moment, one in memory at a time; all tables of the market take part."""
    for moment in moments:
        yield Challenge(check="truncation", moment=moment, market=known_at(market, moment))
        yield Challenge(check="restatement", moment=moment, market=restated(market, moment, rng=rng))
        yield Challenge(check="changed future", moment=moment, market=changed_future(market, moment, rng=rng))


def restated(market: Market, moment: pd.Timestamp, *, rng: np.random.Generator) -> Market:
    """The market with some rows of every table restated, with other numbers, in the microsecond after ``moment``."""
    tables = {}
    for name, table in market.tables.items():
        known_R = known_times(name, table)
        past = np.flatnonzero(known_R <= _naive(moment))
        recent = past[np.argsort(known_R[past], kind="stable")][-_RECENT:]
        rows = rng.choice(recent, size=min(_MOST_RESTATED, len(recent)), replace=False)
        later = pd.Timestamp(_naive(moment) + _TICK).tz_localize("UTC").as_unit("us")
        again = other_numbers(name, table.iloc[np.sort(rows)], rng=rng).assign(ingest_time=later)
        again["ingest_time"] = again["ingest_time"].astype(table["ingest_time"].dtype)
        tables[name] = canonical(table_kind(name), pd.concat([table, again], ignore_index=True)) if len(rows) else table
    return replace(market, tables=tables, fingerprint=fingerprint(tables))


def changed_future(market: Market, moment: pd.Timestamp, *, rng: np.random.Generator) -> Market:
    """The market with other numbers in all rows that became known after ``moment``."""
    return _with_numbers(market, {n: known_times(n, t) > _naive(moment) for n, t in market.tables.items()}, rng)


def changed_past(market: Market, moment: pd.Timestamp, *, rng: np.random.Generator) -> Market:
    """The market with other numbers in all rows about the time up to ``moment``, whenever they became known."""
    where = {n: micros(t[table_kind(n).event]) <= _naive(moment) for n, t in market.tables.items()}
    return _with_numbers(market, where, rng)


def newest(market: Market, interval: str, *, num_bars: int) -> Market:
    """The market since the end of its bar ``num_bars`` from the last, to bound the cost of checking it.

    Tables of slow facts (fundamentals, memberships, corporate actions) stay whole.
    """
    ends = market.bars(interval)["event_time"].drop_duplicates().nlargest(num_bars)
    kinds = {name: table_kind(name) for name in market.tables}
    slow = {name for name, kind in kinds.items() if kind.announced or name == "fundamentals"}
    tables = {
        name: table if name in slow else table[table[kinds[name].event] >= ends.min()].reset_index(drop=True)
        for name, table in market.tables.items()
    }
    tables = {name: table for name, table in tables.items() if len(table)}
    return replace(market, tables=tables, fingerprint=fingerprint(tables))


def pick_moments(market: Market, interval: str, *, num_bars: int, num_moments: int) -> tuple[pd.Timestamp, ...]:
    """Moments among the newest ``num_bars`` bars, the same for the same market.

    For ``num_moments`` bars spread evenly, in turn: just before the bar's end, at its end, just before it is known
    and when it is. For half as many late or restated rows of any table, in turn: just before they are known and when
    they are.
    """
    bars = market.bars(interval)
    first_known = pd.Series(known_times(f"bars_{interval}", bars)).groupby(micros(bars["event_time"])).min()
    newest_bars = first_known.sort_index().iloc[-num_bars:]
    if len(newest_bars) < num_moments:
        raise LeakageError(
            f"{num_moments} moments need as many bars and market {market.info.name!r} has {len(newest_bars)} of "
            f"interval {interval}: bring a longer history or ask for fewer moments"
        )
    moments = []
    for (end, known), kind in zip(_spread(list(newest_bars.items()), num_moments), cycle(range(4)), strict=False):
        times = (np.datetime64(end, "us"), np.datetime64(known, "us"))
        moments.append(times[kind // 2] - (_TICK if kind % 2 == 0 else 0 * _TICK))
    late = _late_times(market, since=np.datetime64(newest_bars.index[0], "us"))
    for known, kind in zip(_spread(list(late), num_moments // 2), cycle(range(2)), strict=False):
        moments.append(known - (_TICK if kind == 0 else 0 * _TICK))
    return tuple(pd.Timestamp(moment).tz_localize("UTC") for moment in np.unique(np.array(moments)))


def known_times(name: str, table: pd.DataFrame) -> TimeArray:
    """When each row of a market's table became known (R,); what is announced ahead is known when it is announced."""
    kind, ingest_R = table_kind(name), micros(table["ingest_time"])
    return ingest_R if kind.announced else np.maximum(micros(table[kind.event]), ingest_R)


def other_numbers(name: str, table: pd.DataFrame, *, rng: np.random.Generator) -> pd.DataFrame:
    """The rows with every number changed; prices of one row move together, so that highs stay above lows."""
    kind = table_kind(name)
    together_R = rng.uniform(1.5, 2.5, len(table))
    changed = {}
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]):
            continue
        factor_R = together_R if column in kind.positive else rng.uniform(1.5, 2.5, len(table))
        if table[column].isin([-1, 0, 1]).all() and (table[column] < 0).any():  # sides of trades
            factor_R = np.full(len(table), -1.0)
        changed[column] = (table[column] * factor_R).astype(table[column].dtype)
    return table.assign(**changed)


def _with_numbers(market: Market, where: dict[str, np.ndarray], rng: np.random.Generator) -> Market:
    tables = {}
    for name, table in market.tables.items():
        changed = other_numbers(name, table[where[name]], rng=rng)
        parts = [table[~where[name]], changed]
        tables[name] = pd.concat(parts).sort_index() if len(changed) else table
    return replace(market, tables=tables, fingerprint=fingerprint(tables))


def _late_times(market: Market, *, since: np.datetime64) -> TimeArray:
    """When rows became known that came much later than their table's usual."""
    found = []
    for name, table in market.tables.items():
        kind = table_kind(name)
        if kind.announced:
            continue
        known_R = known_times(name, table)
        lag_R = known_R - micros(table[kind.event])
        is_late_R = (lag_R > _LATE * np.median(lag_R)) & (micros(table[kind.event]) >= since)
        found.append(known_R[is_late_R])
    return np.unique(np.concatenate([np.empty(0, "datetime64[us]"), *found]))


def _spread(values: list, num: int) -> list:
    """``num`` of the values, evenly, the last one included; all of them where there are fewer."""
    if num >= len(values):
        return values
    return [values[int(at)] for at in np.linspace(0, len(values) - 1, num + 1)[1:]] if num else []


def _naive(moment: pd.Timestamp) -> np.datetime64:
    return np.datetime64(moment.tz_convert("UTC").tz_localize(None).to_datetime64(), "us")
