"""The store API: write features, read the latest, read what was known at any time.

    table = FeatureTable(connection=connection, view="momentum_v1", producer_version=git_sha, clock=clock)
    table.write_features("BTC", bar_end, {"rsi": 61.2}, producer="nightly", run_id=run_id)
    table.get_latest("BTC")["rsi"].value
    table.get_point_in_time([("BTC", monday), ("BTC", friday)], ["rsi"])

Rows live in two times, in the Postgres table ``feature_rows`` (``migrations/``), and are only ever added. What a write
adds is told in ``completion``, what a read finds in ``join``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.store import postgres
from feature_repo.store.completion import Statement
from feature_repo.store.export import replace_export, to_arrow
from feature_repo.store.postgres import Found, Producer, View
from feature_repo.store.tables import TableError
from feature_repo.store.values import Statements, Value, clean_features, statements

_ROWS_AT_ONCE = 50_000


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureValue:
    """What was known of one feature.

    ``value`` is a float or JSON; None: withdrawn, not computable or not given yet. ``event_time`` is the business time
    that it describes and ``ingest_time`` when this value of it became known, both in UTC; ``producer`` and
    ``producer_version`` (git SHA) said it.
    """

    name: str
    value: Value
    event_time: datetime
    ingest_time: datetime
    feature_version: int
    producer: str
    producer_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was known of an entity at ``as_of``: ``answer["rsi"].value``.

    All ``values`` describe one event time. There are none where nothing was known yet.
    """

    entity_key: str
    as_of: datetime
    values: Mapping[str, FeatureValue]

    def __getitem__(self, name: str) -> FeatureValue:
        return self.values[name]

    def __bool__(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureTable:
    """The feature rows of one view.

    Parameters
    ----------
    connection
        In autocommit mode, so that what was written is there when a write returns; several writes are one transaction
        within ``with connection.transaction()``. One thread at a time; the isolation is Postgres' own, read committed.
    view
        Name of the feature view. Those of a market's pipelines are called ``<market>/<interval>/<view>``, as their
        folder is: ``us_stocks/1d/momentum_v1``. Others may have any name.
    producer_version
        git SHA of the code that writes.
    clock
        The real clock, aware: dates ``written_at``, and what becomes known by being written.
    """

    connection: psycopg.Connection
    view: str
    producer_version: str
    clock: Callable[[], datetime]

    def __post_init__(self) -> None:
        if not self.connection.autocommit:
            raise TableError(
                "a FeatureTable needs a connection in autocommit mode, or its writes would wait for a commit that "
                "never comes; use database.connect(dsn, autocommit=True)"
            )
        _require_texts(view=self.view, producer_version=self.producer_version)

    def write_features(
        self,
        entity_key: str,
        timestamp: datetime,
        features: Mapping[str, Any],
        *,
        feature_version: int = 1,
        availability_lag: timedelta | None = None,
        producer: str,
        run_id: str,
    ) -> int:
        """Write some or all features of one event; returns the number of rows added, 0 where nothing is new.

        Parameters
        ----------
        timestamp
            The event time, aware: for a bar its end.
        features
            Numbers or JSON; null (or NaN) withdraws a feature. Those not named keep what is known of them.
        availability_lag
            Dates the knowledge at ``timestamp + availability_lag``, in the past for a backfill. Without it the
            features are known now.

        Notes
        -----
        The same values again are no news. A different value, undated or under a date that has one, is a restatement
        known now, after every row of this event; nothing is overwritten. A dated write that comes before rows of the
        event completes those that lack its features, by copies which count among the rows added.
        """
        _require_texts(entity_key=entity_key)
        event = _microseconds("timestamp", timestamp, up=True)
        date = None if availability_lag is None else event + _lag(availability_lag)
        statement = Statement(ingest_time=date, features=clean_features(features))
        view, writer = self._of(feature_version), self._producer(producer, run_id)
        return postgres.write_event(self.connection, view, writer, self._now, entity_key, event, statement)

    def write_many(
        self,
        rows: pd.DataFrame | pa.Table,
        *,
        feature_version: int = 1,
        availability_lag: timedelta | None = None,
        producer: str,
        run_id: str,
    ) -> int:
        """Write many events by COPY, all of them or none; returns the number of rows added.

        ``rows`` has ``entity_key``, ``event_time`` and features in the other columns, null or NaN where one is
        withdrawn or not computable. An ``ingest_time`` column dates each row, ``availability_lag`` all of them; with
        neither they are known now. The rule is that of ``write_features``; of several rows with one key the last
        counts, and of several dates of one event only the newest can be a restatement.
        """
        said = statements(rows)
        if availability_lag is not None:
            said = _dated(said, availability_lag)
        view, writer = self._of(feature_version), self._producer(producer, run_id)
        return postgres.write_bulk(self.connection, view, writer, self._now, said)

    def get_latest(
        self,
        entity_key: str,
        names: Sequence[str] | None = None,
        *,
        as_of: datetime | None = None,
        feature_version: int = 1,
        written_before: datetime | None = None,
    ) -> Answer:
        """What is known of the entity now, or was at ``as_of``; all features or those named.

        ``written_before`` looks only at what had been written up to then, for certificates and replays.
        """
        time = self._now() if as_of is None else _microseconds("as_of", as_of, up=False)
        _require_texts(entity_key=entity_key)
        view = self._of(feature_version)
        limit = self._written_limit(view, written_before)
        found = postgres.read_latest(self.connection, view, entity_key, time, limit)
        return self._answers(view, [(entity_key, time)], found, names, limit)[0]

    def get_point_in_time(
        self,
        entity_times: Iterable[tuple[str, datetime]],
        names: Sequence[str] | None = None,
        *,
        feature_version: int = 1,
        written_before: datetime | None = None,
    ) -> list[Answer]:
        """What was known of each entity at each time: one answer a pair, in the order asked."""
        asked = [(entity, _microseconds("time", time, up=False)) for entity, time in entity_times]
        entities = [entity for entity, _ in asked]
        view = self._of(feature_version)
        limit = self._written_limit(view, written_before)
        found = postgres.read_as_of(self.connection, view, entities, [time for _, time in asked], limit)
        return self._answers(view, asked, found, names, limit)

    def export_parquet(self, folder: Path, *, feature_version: int = 1, written_before: datetime | None = None) -> int:
        """Write the table as training reads it (``tables``), in place of an earlier export; returns the number of rows.

        The folder is the export's own: rows go into Postgres. Numbers only; a feature never given is null.
        """
        view = self._of(feature_version)
        names = postgres.read_names(self.connection, view)
        if not names:
            raise TableError(f"view {self.view!r} has no rows of version {feature_version}; write some, or correct it")
        limit = self._written_limit(view, written_before)
        with self.connection.transaction():
            batches = postgres.stream_rows(self.connection, view, limit, num_at_once=_ROWS_AT_ONCE)
            return replace_export(folder, names, (to_arrow(rows, names) for rows in batches))

    def _of(self, feature_version: int) -> View:
        return View(name=self.view, version=feature_version)

    def _producer(self, producer: str, run_id: str) -> Producer:
        _require_texts(producer=producer, run_id=run_id)
        return Producer(producer=producer, producer_version=self.producer_version, run_id=run_id)

    def _now(self) -> datetime:
        return _microseconds("the clock's time", self.clock(), up=False)

    def _written_limit(self, view: View, written_before: datetime | None) -> datetime | None:
        """The limit in microseconds, once all that was written before it can be read."""
        if written_before is None:
            return None
        limit = _microseconds("written_before", written_before, up=False)
        with self.connection.transaction():
            postgres.wait_for_writers(self.connection, view)
        return limit

    def _answers(
        self,
        view: View,
        asked: Sequence[tuple[str, datetime]],
        found: Sequence[Found],
        names: Sequence[str] | None,
        limit: datetime | None,
    ) -> list[Answer]:
        self._check_names(view, names, found)
        partial = [row for row in found if row.stated is not None]
        said: dict[int, dict[str, Found]] = {row.asked: {} for row in partial}
        if partial:
            entities = [asked[row.asked][0] for row in partial]
            for step in postgres.read_said(self.connection, view, entities, partial, limit):
                own = step.features if step.stated is None else step.stated
                said[partial[step.asked].asked] |= dict.fromkeys(own, step)
        by_question = {row.asked: row for row in found}
        return [
            Answer(
                entity_key=entity,
                as_of=as_of,
                values=_values(view, by_question.get(n), said.get(n, {}), names),
            )
            for n, (entity, as_of) in enumerate(asked)
        ]

    def _check_names(self, view: View, names: Sequence[str] | None, found: Sequence[Found]) -> None:
        """Refuse names that the view never had, which is looked up only where a row lacks one."""
        if names is None or (found and all(name in row.features for row in found for name in names)):
            return
        known = postgres.read_names(self.connection, view)
        unknown = [name for name in names if name not in known]
        if known and unknown:
            raise TableError(f"view {view.name!r} version {view.version} has no features {unknown}; it has {known}")


def _values(
    view: View, row: Found | None, said: Mapping[str, Found], names: Sequence[str] | None
) -> dict[str, FeatureValue]:
    if row is None:
        return {}
    wanted = row.features if names is None else names
    return {name: _value(view, name, row, said.get(name, row)) for name in wanted}


def _value(view: View, name: str, row: Found, said_by: Found) -> FeatureValue:
    return FeatureValue(
        name=name,
        value=row.features.get(name),
        event_time=row.event_time,
        ingest_time=said_by.ingest_time,
        feature_version=view.version,
        producer=said_by.producer,
        producer_version=said_by.producer_version,
    )


def _dated(said: Statements, lag: timedelta) -> Statements:
    """The undated statements, dated by the lag."""
    if said.keys["ingest_time"].null_count < len(said.keys):
        raise TableError("the rows have an ingest_time and there is an availability_lag; give one of the two")
    dates = pc.add(said.keys["event_time"], _lag(lag))
    return replace(said, keys=said.keys.set_column(2, "ingest_time", dates))


def _microseconds(what: str, time: datetime, *, up: bool) -> datetime:
    """The time in UTC; pandas' nanoseconds are rounded, so that rounding can't make anything known early."""
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise TableError(f"{what} is {time!r}; it must be aware: say its timezone, e.g. datetime(..., tzinfo=UTC)")
    if isinstance(time, pd.Timestamp):
        time = (time.ceil("us") if up else time.floor("us")).to_pydatetime()
    return time.astimezone(UTC)


def _lag(lag: timedelta) -> timedelta:
    if lag < timedelta(0):
        raise TableError(f"availability_lag is {lag}; nothing is known before it happens: give zero or more")
    return lag


def _require_texts(**texts: str) -> None:
    for what, text in texts.items():
        if not isinstance(text, str) or not text or "\x00" in text:
            raise TableError(f"{what} is {text!r}; it must be a text, and not an empty one")
