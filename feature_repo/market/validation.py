"""Validation: a bad row is kept aside with its reason, never silently dropped and never fatal.

A row has the first reason that applies, in this order:

1. a text or a time that names the row is null, or the time is not ISO 8601 or has no zone;
2. ``event_time`` or ``ingest_time`` lies after ``now``, or the row was known more than 5 s before it happened;
3. the ``interval`` label is not the table's;
4. a number does not read or is infinite, is null where it is needed, not positive, or negative;
5. ``high`` below ``low``, ``open`` or ``close`` outside them, an empty quote, a membership that ends before it starts;
6. a duplicate: same key and times as an earlier sound row, which stays; the reason tells a repetition from a
   contradiction;
7. out of order: within its series (the table's key) the row lies behind the furthest row of the file so far and was
   not known later than that one. Late data and restatements, known later, may stand anywhere. Blaming the rows that
   lie *ahead* of their successors reads the same file as well; a series takes the reading that blames fewer rows, so
   one mistyped date costs one row, not all that follow;
8. a bar overlaps the one before: their ends are closer than three quarters of the interval (a quarter is left for
   daylight saving and early closes). The earlier bar stays, with all its restatements.

Flagged but accepted, again by the first reason: receive clocks up to 5 s slow, crossed quotes, and ticks that repeat
an earlier one to the last column (two fills may look the same; a ``trade_id`` tells them apart, and then counts in 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.layout import TableKind, interval_length, interval_of, table_kind
from feature_repo.market.parsing import Fault, Mask, parse_table
from feature_repo.market.records import aside
from feature_repo.market.schema import MarketError

# Tensor suffixes: R rows of the file, S those of them still sound, in the file's order, E bar ends.

SLOW_CLOCK: Final = timedelta(seconds=5)
FLOAT_NOISE: Final = 1e-6  # relative; single-precision prices carry 1.2e-7
MIN_BAR_GAP: Final = 0.75  # of the interval

IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated:
    """What validation made of a table.

    ``accepted`` is typed (times aware UTC microseconds, numbers float64, texts str) and in the file's order; its index
    is the 0-based row of the file. ``quarantine`` and ``flags`` have ``table, row, reason, record``, the record as JSON
    of what the file said. Every row is either in ``accepted`` or in ``quarantine``; the rows of ``flags`` are accepted.
    """

    accepted: pd.DataFrame
    quarantine: pd.DataFrame
    flags: pd.DataFrame


class _Reasons:
    """The first reason said of each row."""

    def __init__(self, num_rows: int) -> None:
        self.text_R: NDArray[np.object_] = np.full(num_rows, None, dtype=object)
        self.clear_R: Mask = np.ones(num_rows, dtype=bool)

    def say(self, reason: str, rows: IntArray) -> None:
        new = rows[self.clear_R[rows]]
        self.text_R[new] = reason
        self.clear_R[new] = False


def validate(table: str, frame: pd.DataFrame, *, now: datetime, lag: timedelta | None) -> Validated:
    """Type a table and keep its bad rows aside; the module's docstring has the rules and their order.

    Parameters
    ----------
    table
        Its name in the layout (``bars_1d``, ``trades`` …).
    frame
        The rows as the file has them, in the file's order.
    now
        Aware; what lies after it is in the future.
    lag
        Dates ``ingest_time`` as event time plus lag where the table has no such column; otherwise not used.

    Raises
    ------
    MarketError
        A name outside the layout, a missing column, no ``ingest_time`` and no lag, or a naive ``now``.
    """
    kind = table_kind(table)
    _require(table, kind, frame, now, lag)
    raw = frame.reset_index(drop=True)
    parsed = parse_table(kind, raw, lag=lag)
    rows = parsed.rows
    if table.startswith("bars_") and "interval" not in rows:
        rows.insert(1, "interval", interval_of(table))
    refused = _Reasons(len(rows))
    for reason, bad_R in [
        *parsed.name_faults,
        *_time_faults(kind, rows, now),
        *_label_faults(table, rows),
        *parsed.cell_faults,
        *_number_faults(kind, rows),
        *_shape_faults(rows),
    ]:
        refused.say(reason, np.flatnonzero(bad_R))
    for check in (_duplicates, _out_of_order, _overlaps):
        sound = np.flatnonzero(refused.clear_R)
        for reason, bad_S in check(table, kind, rows.iloc[sound]):
            refused.say(reason, sound[bad_S])
    flagged = _Reasons(len(rows))
    for reason, odd_R in _oddities(kind, rows):
        flagged.say(reason, np.flatnonzero(odd_R & refused.clear_R))
    bad, odd = np.flatnonzero(~refused.clear_R), np.flatnonzero(~flagged.clear_R)
    return Validated(
        accepted=rows[refused.clear_R],
        quarantine=aside(table, raw, bad, refused.text_R[bad]),
        flags=aside(table, raw, odd, flagged.text_R[odd]),
    )


def _require(table: str, kind: TableKind, frame: pd.DataFrame, now: datetime, lag: timedelta | None) -> None:
    if now.tzinfo is None:
        raise MarketError(f"now={now.isoformat()} has no time zone; give an aware time, such as datetime.now(UTC)")
    twice = frame.columns[frame.columns.duplicated()].unique().tolist()
    if twice:
        raise MarketError(f"table {table!r} has the columns {twice} more than once; each may appear once: rename them")
    missing = [name for name in kind.required if name not in frame.columns]
    if missing:
        raise MarketError(
            f"table {table!r} lacks the columns {missing}; it has {list(frame.columns)} and needs "
            f"{[*kind.required, 'ingest_time']}: rename or add them"
        )
    if "ingest_time" not in frame.columns and lag is None:
        raise MarketError(
            f"table {table!r} has no ingest_time and no lag that dates it, and none is guessed: add the column, or say "
            f"how long after its {kind.event} a row is known, in market.yaml, such as `lags: {{{table}: 15min}}`"
        )


def _time_faults(kind: TableKind, rows: pd.DataFrame, now: datetime) -> Iterator[Fault]:
    event, ingest, latest = rows[kind.event], rows["ingest_time"], pd.Timestamp(now)
    if not kind.announced:
        yield f"{kind.event} is in the future", (event > latest).to_numpy()
    yield "ingest_time is in the future", (ingest > latest).to_numpy()
    if not kind.announced:
        yield "ingest_time is more than 5 s before event_time", (ingest < event - SLOW_CLOCK).to_numpy()


def _label_faults(table: str, rows: pd.DataFrame) -> Iterator[Fault]:
    interval = interval_of(table)
    if interval is not None and "interval" in rows:
        yield f"interval is not {interval}", (rows["interval"] != interval).to_numpy()


def _number_faults(kind: TableKind, rows: pd.DataFrame) -> Iterator[Fault]:
    for name in kind.needed:
        yield f"{name} is null", rows[name].isna().to_numpy()
    for name in rows.columns.intersection(list(kind.positive), sort=False):
        yield f"{name} is not positive", (rows[name] <= 0).to_numpy()
    for name in rows.columns.intersection(list(kind.non_negative), sort=False):
        yield f"{name} is negative", (rows[name] < 0).to_numpy()


def _shape_faults(rows: pd.DataFrame) -> Iterator[Fault]:
    """Cells that contradict each other; where one is null nothing does."""
    if {"high", "low"} <= set(rows):
        yield "high is below low", (rows["high"] < rows["low"]).to_numpy()
    for name in rows.columns.intersection(["open", "close"], sort=False):
        if "high" in rows:
            yield f"{name} is above high", (rows[name] > rows["high"] * (1 + FLOAT_NOISE)).to_numpy()
        if "low" in rows:
            yield f"{name} is below low", (rows[name] < rows["low"] * (1 - FLOAT_NOISE)).to_numpy()
    if {"bid", "ask"} <= set(rows):
        yield "neither bid nor ask is there", (rows["bid"].isna() & rows["ask"].isna()).to_numpy()
    if {"from", "to"} <= set(rows):
        yield "to is not after from", (rows["to"] <= rows["from"]).to_numpy()


def _duplicates(_table: str, kind: TableKind, sound: pd.DataFrame) -> Iterator[Fault]:
    if kind.ticks and "trade_id" not in sound:
        return
    names = list(dict.fromkeys([*kind.key, kind.event, "ingest_time", *(["trade_id"] if kind.ticks else [])]))
    again_S = (sound.duplicated(names) & sound[names[-1]].notna()).to_numpy()
    if again_S.any():
        same_S = np.zeros_like(again_S)
        same_S[again_S] = _says_what_the_first_said(sound, names, again_S)
        yield "duplicate: repeats an earlier row", again_S & same_S
        yield "duplicate: contradicts an earlier row of the same times (a correction is known later)", again_S & ~same_S


def _says_what_the_first_said(sound: pd.DataFrame, names: list[str], again_S: Mask) -> Mask:
    """For each repeated row: whether the first row of its names is equal in every column."""
    group_S = sound.groupby(names, sort=False, dropna=False).ngroup().to_numpy()
    said = sound[again_S].to_numpy(dtype=object)
    first = sound[~again_S].set_index(group_S[~again_S]).loc[group_S[again_S]].to_numpy(dtype=object)
    equal: Mask = ((said == first) | (pd.isna(said) & pd.isna(first))).all(axis=1)
    return equal


def _out_of_order(_table: str, kind: TableKind, sound: pd.DataFrame) -> Iterator[Fault]:
    if kind.announced:
        return
    series_S = _series(kind, sound)
    order = np.argsort(series_S, kind="stable")
    series, event, ingest = series_S[order], _micros(sound[kind.event])[order], _micros(sound["ingest_time"])[order]
    behind = _behind(series, event, ingest)
    ahead = _behind(series[::-1], -event[::-1], -ingest[::-1])[::-1]
    fewer_ahead = np.bincount(series, ahead) < np.bincount(series, behind)
    bad_S = np.zeros(len(sound), dtype=bool)
    bad_S[order] = np.where(fewer_ahead[series], ahead, behind)
    yield "out of order in the file, and not known later: sort it, or date late data by its ingest_time", bad_S


def _behind(series: IntArray, event: IntArray, ingest: IntArray) -> Mask:
    """Rows behind the furthest one of their series so far and known no later; equal series stand together."""
    furthest = pd.Series(event).groupby(series).cummax().to_numpy()
    rises = np.ones(len(event), dtype=bool)
    rises[1:] = (furthest[1:] != furthest[:-1]) | (series[1:] != series[:-1])
    leader = np.maximum.accumulate(np.where(rises, np.arange(len(event)), 0))
    behind: Mask = (event < furthest) & (ingest <= ingest[leader])
    return behind


def _overlaps(table: str, kind: TableKind, sound: pd.DataFrame) -> Iterator[Fault]:
    interval = interval_of(table)
    if interval is None or not table.startswith("bars_"):
        return
    series_S, event_S = _series(kind, sound), _micros(sound["event_time"])
    min_gap = int(MIN_BAR_GAP * interval_length(interval).total_seconds() * 1_000_000)
    order = np.lexsort((event_S, series_S))
    gap = np.diff(event_S[order])
    close = (np.diff(series_S[order]) == 0) & (gap > 0) & (gap < min_gap)
    bad_S = np.zeros(len(sound), dtype=bool)
    for series in np.unique(series_S[order][1:][close]):  # usually none
        rows = np.flatnonzero(series_S == series)
        bad_S[rows] = ~np.isin(event_S[rows], _spaced(np.unique(event_S[rows]), min_gap))
    yield "overlaps the bar before", bad_S


def _spaced(end_E: IntArray, min_gap: int) -> IntArray:
    """The ends that stay when each must lie ``min_gap`` after the last that stayed."""
    following = np.searchsorted(end_E, end_E + min_gap).tolist()
    kept, at = [], 0
    while at < len(end_E):
        kept.append(at)
        at = following[at]
    return end_E[kept]


def _oddities(kind: TableKind, rows: pd.DataFrame) -> Iterator[Fault]:
    if not kind.announced:
        yield "slow receive clock: ingest_time before event_time", (rows["ingest_time"] < rows[kind.event]).to_numpy()
    if {"bid", "ask"} <= set(rows):
        yield "bid is above ask", (rows["bid"] > rows["ask"]).to_numpy()
    if kind.ticks and "trade_id" not in rows:
        yield "repeats an earlier tick to the last column", rows.duplicated().to_numpy()


def _series(kind: TableKind, rows: pd.DataFrame) -> IntArray:
    """A number for each row's key."""
    codes: IntArray = rows.groupby(list(kind.key), sort=False).ngroup().to_numpy(dtype=np.int64)
    return codes


def _micros(times: pd.Series) -> IntArray:
    micros: IntArray = times.to_numpy(dtype="datetime64[us]").astype(np.int64)
    return micros
