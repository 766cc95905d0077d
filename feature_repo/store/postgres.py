# ruff: noqa: S608 (the queries are put together from constants)
"""The table ``feature_rows``: the system of record's SQL.

The knowledge-time rule of ``join`` as a query: of an entity's rows with ``event_time`` and ``ingest_time`` up to T the
one with the latest event time, then ingest time, then revision. Each is the first that the primary key's index finds.

Writers of one view and version take turns by an advisory lock, which they hold until they commit. Under it a write
takes its number, so whoever sees a write's rows sees those of all smaller numbers; and the API reads ``written_at``, so
a reader that has waited for the lock sees all that it wrote before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from psycopg import sql

from feature_repo.store.completion import EventRow, Statement, rows_to_add
from feature_repo.store.copy_text import copy_text
from feature_repo.store.partitions import ensure_months, month_of
from feature_repo.store.values import Statements, dumps, loads

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_LOCK_SHARED = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))"
_OF_VIEW = "r.view = %(view)s AND r.feature_version = %(version)s"
_WRITTEN = "(%(written_before)s::timestamptz IS NULL OR r.written_at <= %(written_before)s)"
_COLUMNS: Final = (
    "view, feature_version, entity_key, event_time, ingest_time, revision, features, stated, restates, written_at, "
    "producer, producer_version, run_id, write_number"
)
_EVENT = f"""
    SELECT r.ingest_time, r.revision, r.features::text, r.stated, r.restates FROM feature_rows r
    WHERE {_OF_VIEW} AND r.entity_key = %(entity)s AND r.event_time = %(event)s
"""
_NAME = "INSERT INTO feature_names SELECT %s, %s, unnest(%s::text[]) ON CONFLICT DO NOTHING"
_NAMES = "SELECT name FROM feature_names WHERE view = %s AND feature_version = %s ORDER BY name"
_NAMES_OF = f"""
    SELECT jsonb_object_keys(features) FROM (
        SELECT r.features FROM feature_rows r WHERE {_OF_VIEW} AND r.producer = %(producer)s AND r.stated IS NULL
        ORDER BY r.write_number DESC LIMIT 1
    ) newest
"""
_FOUND: Final = """
    r.event_time, r.ingest_time, r.revision, r.features::text, r.stated, r.producer, r.producer_version
"""
_AS_OF = f"""
    SELECT asked.n - 1, found.*
    FROM unnest(%(entities)s::text[], %(times)s::timestamptz[]) WITH ORDINALITY AS asked (entity_key, as_of, n)
    CROSS JOIN LATERAL (
        SELECT {_FOUND} FROM feature_rows r
        WHERE {_OF_VIEW} AND r.entity_key = asked.entity_key
            AND r.event_time <= asked.as_of AND r.ingest_time <= asked.as_of AND {_WRITTEN}
        ORDER BY r.event_time DESC, r.ingest_time DESC, r.revision DESC
        LIMIT 1
    ) found
    ORDER BY asked.n
"""
_LATEST = f"""
    SELECT 0, {_FOUND} FROM feature_rows r
    WHERE {_OF_VIEW} AND r.entity_key = %(entity)s
        AND r.event_time <= %(time)s AND r.ingest_time <= %(time)s AND {_WRITTEN}
    ORDER BY r.event_time DESC, r.ingest_time DESC, r.revision DESC
    LIMIT 1
"""
# Who said what: the rows of the same event up to the row found, the first first.
_SAID = f"""
    SELECT asked.n - 1, {_FOUND}
    FROM unnest(%(entities)s::text[], %(events)s::timestamptz[], %(ingests)s::timestamptz[], %(revisions)s::int[])
        WITH ORDINALITY AS asked (entity_key, event_time, ingest_time, revision, n)
    JOIN feature_rows r ON {_OF_VIEW} AND r.entity_key = asked.entity_key AND r.event_time = asked.event_time
        AND (r.ingest_time, r.revision) <= (asked.ingest_time, asked.revision) AND {_WRITTEN}
    ORDER BY asked.n, r.ingest_time, r.revision
"""
_EXPORT = f"""
    SELECT DISTINCT ON (r.entity_key, r.event_time, r.ingest_time)
        r.entity_key, r.event_time, r.ingest_time, r.features::text, r.written_at, r.producer, r.producer_version,
        r.run_id
    FROM feature_rows r WHERE {_OF_VIEW} AND {_WRITTEN}
    ORDER BY r.entity_key, r.event_time, r.ingest_time, r.revision DESC
"""
_NEXT_WRITE = """
    INSERT INTO feature_writes (view, feature_version, number)
    SELECT %(view)s::text, %(version)s, 1 + coalesce(max(number), 0)
    FROM feature_writes WHERE view = %(view)s AND feature_version = %(version)s
    RETURNING number, id::text
"""
_NO_WRITE = "DELETE FROM feature_writes WHERE view = %s AND feature_version = %s AND number = %s"
_WRITES = """
    SELECT number, id::text FROM feature_writes
    WHERE view = %(view)s AND feature_version = %(version)s ORDER BY number DESC LIMIT 1
"""
_IS_WRITE = "SELECT FROM feature_writes WHERE view = %s AND feature_version = %s AND number = %s AND id = %s"
_WRITTEN_SINCE = f"""
    SELECT r.entity_key, r.event_time, r.ingest_time, r.features::text, r.written_at, r.producer, r.producer_version,
        r.run_id, r.restates, r.stated
    FROM feature_rows r WHERE {_OF_VIEW} AND r.write_number > %(after)s AND r.write_number <= %(until)s
    ORDER BY r.write_number, r.entity_key, r.event_time, r.ingest_time, r.revision
"""

# The bulk write. What is plain is done in one statement each; the rest of the rule is ``rows_to_add``'s. Conditions on
# a stored row are conditions on what was said too: any other makes Postgres believe that a table without fresh
# statistics has a single such row, and go through all that was said for each of them.
_BULK_TABLE = sql.SQL("""
    CREATE TEMPORARY TABLE bulk_said (
        entity_key text COLLATE "C", event_time timestamptz, ingest_time timestamptz, features jsonb,
        view text COLLATE "C" DEFAULT {view}, feature_version integer DEFAULT {version}
    ) ON COMMIT DROP
""")
_BULK_COPY = "COPY bulk_said (entity_key, event_time, ingest_time, features) FROM STDIN (FORMAT csv)"
_SAME_EVENT = """
    r.view = s.view AND r.feature_version = s.feature_version AND r.entity_key = s.entity_key
    AND r.event_time = s.event_time
"""
_BULK_SEEN = f"""
    CREATE TEMPORARY TABLE bulk_seen ON COMMIT DROP AS
    SELECT s.* FROM bulk_said s WHERE EXISTS (SELECT FROM feature_rows r WHERE {_SAME_EVENT})
"""
_BULK_UNSEEN = f"""
    INSERT INTO feature_rows ({_COLUMNS})
    SELECT s.view, s.feature_version, s.entity_key, s.event_time, coalesce(s.ingest_time, %(written_at)s), 0,
        s.features, NULL, NULL, %(written_at)s, %(producer)s, %(producer_version)s, %(run_id)s, %(number)s
    FROM bulk_said s
    WHERE NOT EXISTS (
        SELECT FROM bulk_seen seen WHERE seen.entity_key = s.entity_key AND seen.event_time = s.event_time
    )
"""
_BULK_SAID_BEFORE = f"""
    DELETE FROM bulk_seen s USING feature_rows r
    WHERE {_SAME_EVENT} AND r.ingest_time = s.ingest_time
        AND CASE WHEN r.stated IS NULL THEN r.features || s.features = r.features END
        AND NOT EXISTS (SELECT FROM feature_rows r WHERE {_SAME_EVENT} AND r.restates IS NOT NULL)
"""
_BULK_REST = f"""
    SELECT s.entity_key, s.event_time, s.ingest_time, s.features::text,
        r.ingest_time, r.revision, r.features::text, r.stated, r.restates
    FROM bulk_seen s JOIN feature_rows r ON {_SAME_EVENT}
    ORDER BY s.entity_key, s.event_time
"""
_BULK_ADD = f"COPY feature_rows ({_COLUMNS}) FROM STDIN"

_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A view and version: whose rows are meant."""

    name: str
    version: int

    @property
    def parameters(self) -> dict[str, Any]:
        """For the queries."""
        return {"view": self.name, "version": self.version}

    @property
    def lock(self) -> str:
        """What its writers lock."""
        return f"feature_rows {self.version} {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Producer:
    """Who writes, and by which code."""

    producer: str
    producer_version: str
    run_id: str

    @property
    def parameters(self) -> dict[str, Any]:
        """For the queries."""
        return {"producer": self.producer, "producer_version": self.producer_version, "run_id": self.run_id}


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """A write that added rows to a view: its place among the view's writes, and what no other one has."""

    number: int
    id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A row that a read found; ``asked`` is the position of the question. ``stated`` None means all features."""

    asked: int
    event_time: datetime
    ingest_time: datetime
    revision: int
    features: dict[str, Any]
    stated: frozenset[str] | None
    producer: str
    producer_version: str


def write_event(
    connection: psycopg.Connection,
    view: View,
    producer: Producer,
    clock: Callable[[], datetime],
    entity: str,
    event: datetime,
    statement: Statement,
) -> int:
    """Write one statement in a transaction of its own; returns the number of rows added."""
    ensure_months(connection, [month_of(event)])
    with connection.transaction():
        lock(connection, view)
        found = connection.execute(_EVENT, {**view.parameters, "entity": entity, "event": event})
        stored = [_event_row(row) for row in found]
        written_at = clock()
        added = rows_to_add(stored, [statement], written_at)
        if added:
            write = next_write(connection, view)
            _add(connection, view, producer, written_at, write, ((entity, event, row) for row in added))
            add_names(connection, view, list(statement.features))
    return len(added)


def write_bulk(
    connection: psycopg.Connection,
    view: View,
    producer: Producer,
    clock: Callable[[], datetime],
    said: Statements,
) -> int:
    """Write many statements, all or none; returns the number of rows added."""
    if not len(said.keys):
        return 0
    months = pc.unique(said.keys["event_time"]).to_numpy().astype("datetime64[M]").astype(int).tolist()
    ensure_months(connection, {(month // 12 + 1970, month % 12 + 1) for month in months})
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(_BULK_TABLE.format(view=sql.Literal(view.name), version=sql.Literal(view.version)))
        with cursor.copy(_BULK_COPY) as copy:
            _send(copy, _csv(said))
        cursor.execute("ANALYZE bulk_said (entity_key, event_time, ingest_time)")
        lock(connection, view)
        written_at, write = clock(), next_write(connection, view)
        cursor.execute(_BULK_SEEN)
        cursor.execute(_BULK_UNSEEN, {**producer.parameters, "written_at": written_at, "number": write.number})
        num_added = cursor.rowcount
        cursor.execute("ANALYZE bulk_seen (entity_key, event_time, ingest_time)")
        cursor.execute(_BULK_SAID_BEFORE)
        for batch in _rest(connection, written_at):
            num_added += _add(connection, view, producer, written_at, write, batch)
        if not num_added:
            cursor.execute(_NO_WRITE, [view.name, view.version, write.number])
        add_names(connection, view, list(said.features))
        cursor.execute("DROP TABLE bulk_said, bulk_seen")
    return num_added


def copy_rows(connection: psycopg.Connection, view: View, write: Write, rows: pa.Table) -> None:
    """Add complete rows (a part's columns and ``revision``) as they are: the caller has decided, under the lock."""
    with connection.cursor() as cursor, cursor.copy(_BULK_ADD) as copy:
        head, tail = (view.name, view.version), (write.number,)
        _send(copy, (copy_text(batch, head, tail) for batch in rows.to_batches(_ROWS_AT_ONCE)))


def _csv(said: Statements) -> Iterator[pa.Buffer]:
    for batch in said.batches(_ROWS_AT_ONCE):
        text = pa.BufferOutputStream()
        pa_csv.write_csv(batch, text, pa_csv.WriteOptions(include_header=False))
        yield text.getvalue()


def _send(copy: psycopg.Copy, texts: Iterator[pa.Buffer]) -> None:
    """Send the texts; each is made while the one before is on its way."""
    with ThreadPoolExecutor(1) as pool:
        on_its_way: Future[None] | None = None
        for text in texts:
            if on_its_way:
                on_its_way.result()
            on_its_way = pool.submit(copy.write, text)
        if on_its_way:
            on_its_way.result()


def _rest(connection: psycopg.Connection, written_at: datetime) -> Iterator[list[tuple[str, datetime, EventRow]]]:
    """The rows that the statements about known events add, some thousand at a time."""
    batch: list[tuple[str, datetime, EventRow]] = []
    with connection.cursor(name="bulk_rest") as cursor:
        cursor.itersize = _ROWS_AT_ONCE
        cursor.execute(_BULK_REST)
        for (entity, event), group in groupby(cursor, key=lambda row: row[:2]):
            stored: dict[Any, EventRow] = {}
            said: dict[datetime | None, Statement] = {}
            for _, _, date, features, *row in group:  # each statement beside each row
                if date not in said:
                    said[date] = Statement(ingest_time=date, features=loads(features))
                if (row[0], row[1]) not in stored:
                    stored[row[0], row[1]] = _event_row(row)
            added = rows_to_add(list(stored.values()), list(said.values()), written_at)
            batch += [(entity, event, row) for row in added]
            if len(batch) >= _ROWS_AT_ONCE:
                yield batch
                batch = []
    yield batch


def _add(
    connection: psycopg.Connection,
    view: View,
    producer: Producer,
    written_at: datetime,
    write: Write,
    rows: Iterable[tuple[str, datetime, EventRow]],
) -> int:
    written = (written_at, producer.producer, producer.producer_version, producer.run_id, write.number)
    num_rows = 0
    with connection.cursor() as cursor, cursor.copy(_BULK_ADD) as copy:
        for entity, event, row in rows:
            stated = None if row.stated == row.features.keys() else sorted(row.stated)
            what = (row.ingest_time, row.revision, dumps(row.features), stated, row.restates)
            copy.write_row((view.name, view.version, entity, event, *what, *written))
            num_rows += 1
    return num_rows


def _event_row(row: Sequence[Any]) -> EventRow:
    ingest, revision, text, stated, restates = row
    features = loads(text)
    return EventRow(
        ingest_time=ingest,
        revision=revision,
        features=features,
        stated=frozenset(features if stated is None else stated),
        restates=restates,
    )


def read_latest(
    connection: psycopg.Connection, view: View, entity: str, as_of: datetime, written_before: datetime | None
) -> list[Found]:
    """The entity's row at ``as_of``, if there is one."""
    parameters = {**view.parameters, "entity": entity, "time": as_of, "written_before": written_before}
    return [_found(row) for row in connection.execute(_LATEST, parameters)]


def read_as_of(
    connection: psycopg.Connection,
    view: View,
    entities: Sequence[str],
    times: Sequence[datetime],
    written_before: datetime | None,
) -> list[Found]:
    """The row of each (entity, as-of time) for which there is one."""
    parameters = {
        **view.parameters,
        "entities": list(entities),
        "times": list(times),
        "written_before": written_before,
    }
    return [_found(row) for row in connection.execute(_AS_OF, parameters)]


def read_said(
    connection: psycopg.Connection,
    view: View,
    entities: Sequence[str],
    rows: Sequence[Found],
    written_before: datetime | None,
) -> list[Found]:
    """Of each row (of these entities) the rows that completed it and itself, in knowledge order.

    ``asked`` is the position in ``rows``.
    """
    parameters = {
        **view.parameters,
        "entities": list(entities),
        "events": [row.event_time for row in rows],
        "ingests": [row.ingest_time for row in rows],
        "revisions": [row.revision for row in rows],
        "written_before": written_before,
    }
    return [_found(row) for row in connection.execute(_SAID, parameters)]


def _found(row: Sequence[Any]) -> Found:
    asked, event, ingest, revision, text, stated, producer, producer_version = row
    return Found(
        asked=asked,
        event_time=event.astimezone(UTC),
        ingest_time=ingest.astimezone(UTC),
        revision=revision,
        features=loads(text),
        stated=None if stated is None else frozenset(stated),
        producer=producer,
        producer_version=producer_version,
    )


def read_names(connection: psycopg.Connection, view: View) -> list[str]:
    """Every feature that the view has ever had."""
    return [name for (name,) in connection.execute(_NAMES, [view.name, view.version])]


def read_names_of(connection: psycopg.Connection, view: View, producer: str) -> list[str]:
    """The features in the producer's newest row that says all of them; looks through the whole view."""
    return [name for (name,) in connection.execute(_NAMES_OF, {**view.parameters, "producer": producer})]


def add_names(connection: psycopg.Connection, view: View, names: Sequence[str]) -> None:
    """Remember which features the view has."""
    connection.execute(_NAME, [view.name, view.version, list(names)])


def lock(connection: psycopg.Connection, view: View) -> None:
    """Wait for the turn to write to the view, and hold it until the transaction ends."""
    connection.execute(_LOCK, [view.lock])


def next_write(connection: psycopg.Connection, view: View) -> Write:
    """The write of this turn; it must add rows."""
    [(number, id_)] = connection.execute(_NEXT_WRITE, view.parameters)
    return Write(number=number, id=id_)


def last_write(connection: psycopg.Connection, view: View) -> Write | None:
    """The last write that is committed, or this turn's."""
    row = connection.execute(_WRITES, view.parameters).fetchone()
    return None if row is None else Write(number=row[0], id=row[1])


def has_write(connection: psycopg.Connection, view: View, write: Write) -> bool:
    """Whether it was this database that the write was made to."""
    return bool(connection.execute(_IS_WRITE, [view.name, view.version, write.number, write.id]).rowcount)


def wait_for_writers(connection: psycopg.Connection, view: View) -> None:
    """Until all that the clock dated before now is there to be read."""
    connection.execute(_LOCK_SHARED, [view.lock])


def stream_rows(
    connection: psycopg.Connection, view: View, written_before: datetime | None, *, num_at_once: int
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows that count, one a key, by entity, event and ingest time; within a transaction.

    Each is ``entity_key, event_time, ingest_time, features as JSON, written_at, producer, producer_version, run_id``.
    """
    return _stream(connection, _EXPORT, {**view.parameters, "written_before": written_before}, num_at_once)


def stream_written(
    connection: psycopg.Connection, view: View, *, after: int, until: int, num_at_once: int
) -> Iterator[list[tuple[Any, ...]]]:
    """All rows of the writes with these numbers, in the order written, in a write by key; within a transaction.

    The columns are those of ``stream_rows``, then ``restates, stated``.
    """
    return _stream(connection, _WRITTEN_SINCE, {**view.parameters, "after": after, "until": until}, num_at_once)


def _stream(
    connection: psycopg.Connection, query: str, parameters: dict[str, Any], num_at_once: int
) -> Iterator[list[tuple[Any, ...]]]:
    with connection.cursor(name="export_rows") as cursor:
        cursor.execute(query, parameters)
        while rows := cursor.fetchmany(num_at_once):
            yield rows
