"""What a write adds to the rows of one event: statements in, complete rows out.

An event is an (entity, event time). A statement says some of its features, known at some time. The rows are the
statements in knowledge order, each completed by what the earlier ones said, so that the last row known at T answers for
every feature as the last statement about it known at T does.

The rule is that of ``tables.new_rows``, a feature at a time:

- A statement dated at a time for which nothing was said about a feature is new, also when its date lies in the past
  or its value equals the one before: a third may come to lie between them.
- What was said for a date stays. If the newest statement about a feature differs from the current value, it is a
  restatement known now, after every row of the event, unless the current value goes back to a later date.
- An undated statement is known now, after every row of the event, and is new if it changes anything.

Rows after a new statement lack what it said, where nothing later did. They are not changed: each gets a copy that has
it, of the same ingest time and the next revision, which counts from then on. So who looks only at what was written up
to some moment still sees the rows of that moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final, TypeAlias

from feature_repo.store.values import Value, same

Features: TypeAlias = Mapping[str, Value]
_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """Features as known at ``ingest_time``; None: known now."""

    ingest_time: datetime | None
    features: Features


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRow:
    """One row of an event.

    ``features`` is complete; ``stated`` names those that the row itself says, empty for a copy. ``restates`` is the
    date that a restatement known now contradicts.
    """

    ingest_time: datetime
    revision: int
    features: Features
    stated: frozenset[str]
    restates: datetime | None

    @property
    def position(self) -> tuple[datetime, int]:
        """Its place in knowledge order."""
        return self.ingest_time, self.revision

    @property
    def origin(self) -> datetime:
        """The date that its statement is about."""
        return self.restates or self.ingest_time

    @property
    def said(self) -> dict[str, Value]:
        """The features that it says itself."""
        return {name: self.features[name] for name in self.stated}


def rows_to_add(stored: Sequence[EventRow], statements: Sequence[Statement], now: datetime) -> list[EventRow]:
    """The rows that the statements of one write add to an event's rows, in knowledge order.

    Parameters
    ----------
    stored
        All the event's rows, in any order.
    statements
        At most one a date; either all are dated or there is a single undated one.
    now
        The real clock.
    """
    log = sorted(stored, key=lambda row: row.position)
    dated = sorted((date, statement.features) for statement in statements if (date := statement.ingest_time))
    for statement in statements:
        if statement.ingest_time is None and _changes(_current(log), statement.features):
            log.append(_entry(_after(log, now), 0, statement.features))
    for date, features in dated:
        at_date = [row for row in log if row.ingest_time == date]
        said = {name for row in at_date for name in row.stated}
        new = {name: value for name, value in features.items() if name not in said}
        if new:
            log.append(_entry(date, 1 + max((row.revision for row in at_date), default=-1), new))
    told: set[str] = set()
    for date, features in reversed(dated):
        current = _current(log)
        newest = {name: value for name, value in features.items() if name not in told}
        open_to_it = {name: value for name, value in newest.items() if current[name].origin <= date}
        if _changes(current, open_to_it):
            log.append(_entry(_after(log, now), 0, open_to_it, restates=date))
        told |= newest.keys()
    return _complete(log, {row.position for row in stored})


def _entry(date: datetime, revision: int, features: Features, restates: datetime | None = None) -> EventRow:
    return EventRow(
        ingest_time=date, revision=revision, features=features, stated=frozenset(features), restates=restates
    )


def _after(log: Sequence[EventRow], now: datetime) -> datetime:
    return max([now, *(row.ingest_time + _TICK for row in log)])


def _current(log: Sequence[EventRow]) -> dict[str, EventRow]:
    """The last row that says each feature."""
    return {name: row for row in sorted(log, key=lambda row: row.position) for name in row.stated}


def _changes(current: Mapping[str, EventRow], features: Features) -> bool:
    """Whether any feature differs from its current value, or has none."""
    return any(name not in current or not same(current[name].features[name], value) for name, value in features.items())


def _complete(log: Sequence[EventRow], stored: set[tuple[datetime, int]]) -> list[EventRow]:
    """The rows that are not stored yet, completed, and copies of stored rows that lack something now."""
    added: list[EventRow] = []
    known: dict[str, Value] = {}
    in_order = sorted(log, key=lambda row: row.position)
    for date, group in groupby(in_order, key=lambda row: row.ingest_time):
        rows = list(group)
        for row in rows:
            known |= row.said
        last = rows[-1]
        if last.position not in stored:
            added.append(replace(last, features=dict(known)))
        elif not _equal(last.features, known):
            copy = _entry(date, last.revision + 1, {})
            added.append(replace(copy, features=dict(known)))
    return added


def _equal(one: Features, other: Features) -> bool:
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
