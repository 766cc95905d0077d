"""The system of record: the query is the rule of ``join``, writers take turns, and a killed write leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from feature_repo import database
from feature_repo.database import connect, migrate
from feature_repo.store import partitions
from feature_repo.store import postgres as store
from feature_repo.store.api import FeatureTable
from feature_repo.store.join import NO_ROW, find_answers
from flows import postgres
from tests.databases import migrated_database
from tests.feature_repo.store.record_makers import new_view

START = datetime(2024, 1, 31, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
RUN = {"producer": "test", "run_id": "run-1"}
ENTITIES = "ABC"
READ = database._read


def real_clock() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def migrated(dsn: str) -> str:
    migrate(dsn, "feature_repo")
    return dsn


@pytest.fixture
def connection(migrated: str) -> Iterator[psycopg.Connection]:
    with connect(migrated, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def shared(databases: postgres.Databases) -> Iterator[str]:
    with migrated_database(databases, "feature_repo") as dsn:
        yield dsn


@pytest.fixture
def shared_connection(shared: str) -> Iterator[psycopg.Connection]:
    with connect(shared, autocommit=True) as connection:
        yield connection


def make_table(connection: psycopg.Connection, view: str = "v") -> FeatureTable:
    return FeatureTable(connection=connection, view=view, producer_version="abc", clock=real_clock)


def rows_of(num_rows: int, value: float = 1.0) -> pd.DataFrame:
    times = pd.date_range(START, periods=num_rows, freq="h").as_unit("us")
    return pd.DataFrame({"entity_key": "A", "event_time": times, "x": value})


def count(connection: psycopg.Connection, what: str = "feature_rows") -> int:
    return connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0]


# Schema.


def test_migrations_may_be_run_again(migrated: str) -> None:
    assert migrate(migrated, "feature_repo") == []


def test_partitions_are_made_by_month_in_utc(connection: psycopg.Connection) -> None:
    table = make_table(connection)
    table.write_features("A", datetime.fromisoformat("2024-12-31T23:30:00-02:00"), {"x": 1.0}, **RUN)
    table.write_features("A", datetime(2024, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), {"x": 1.0}, **RUN)
    table.write_features("A", datetime(1969, 12, 31, tzinfo=UTC), {"x": 1.0}, **RUN)
    found = connection.execute("SELECT tableoid::regclass::text, event_time FROM feature_rows ORDER BY 2").fetchall()
    assert [name for name, _ in found] == ["feature_rows_1969_12", "feature_rows_2024_12", "feature_rows_2025_01"]


def test_a_bulk_write_makes_all_its_months(connection: psycopg.Connection) -> None:
    times = pd.date_range("1969-11-15", periods=4, freq="MS", tz="UTC").as_unit("us")
    rows = pd.DataFrame({"entity_key": "A", "event_time": times, "x": 1.0})
    assert make_table(connection).write_many(rows, **RUN) == 4
    assert count(connection, "pg_inherits WHERE inhparent = 'feature_rows'::regclass") == 4


def test_partitions_wanted_by_many_at_once_are_made_once(migrated: str) -> None:
    months = [(2020 + month // 12, month % 12 + 1) for month in range(15)]

    def ensure(_: int) -> None:
        with connect(migrated, autocommit=True) as connection:
            partitions.ensure_months(connection, months)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ensure, range(4)))
    with connect(migrated) as connection:
        assert count(connection, "pg_inherits WHERE inhparent = 'feature_rows'::regclass") == 15


def test_making_a_partition_keeps_no_reader_and_no_writer_out(migrated: str) -> None:
    with connect(migrated, autocommit=True) as maker, connect(migrated, autocommit=True) as other:
        make_table(other).write_features("A", START, {"x": 1.0}, **RUN)
        other.execute("SET statement_timeout = '5s'")
        with maker.transaction():
            partitions.ensure_months(maker, [(2030, 1)])
            assert make_table(other).get_latest("A")["x"].value == 1.0
            assert make_table(other).write_features("B", START, {"x": 1.0}, **RUN) == 1


def test_latest_reads_use_the_index_and_stop_at_the_first_row(connection: psycopg.Connection) -> None:
    make_table(connection).write_many(rows_of(3000), availability_lag=HOUR, **RUN)
    connection.execute("ANALYZE feature_rows")
    parameters = {"view": "v", "version": 1, "entity": "A", "time": real_clock(), "written_before": None}
    query = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {store._LATEST}"
    plan = "\n".join(line for (line,) in connection.execute(query, parameters))
    assert "Index Scan Backward" in plan
    assert "Sort" not in plan
    assert "Seq Scan" not in plan
    assert plan.count("never executed") == 5, "of six months only the newest is read"


def test_the_long_form_has_what_was_said_and_nothing_else(connection: psycopg.Connection) -> None:
    table = make_table(connection)
    table.write_features("A", START, {"x": 1.0, "y": None}, availability_lag=2 * HOUR, **RUN)
    table.write_features("A", START, {"y": [2.0]}, availability_lag=3 * HOUR, producer="two", run_id="run-2")
    table.write_features("A", START, {"z": 3.0}, availability_lag=HOUR, **RUN)
    assert count(connection) == 5, "the first two rows have copies with z"
    query = "SELECT entity_key, feature, feature_version, ingest_time, value, producer, producer_version, run_id"
    found = connection.execute(f"{query} FROM feature_events WHERE view = 'v' ORDER BY ingest_time, feature").fetchall()
    assert found == [
        ("A", "z", 1, START + HOUR, 3.0, "test", "abc", "run-1"),
        ("A", "x", 1, START + 2 * HOUR, 1.0, "test", "abc", "run-1"),
        ("A", "y", 1, START + 2 * HOUR, None, "test", "abc", "run-1"),
        ("A", "y", 1, START + 3 * HOUR, [2.0], "two", "abc", "run-2"),
    ]


def test_a_row_is_unique(connection: psycopg.Connection) -> None:
    make_table(connection).write_features("A", START, {"x": 1.0}, **RUN)
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO feature_rows SELECT * FROM feature_rows")


# TimescaleDB is nowhere to be had here: its branch of the migration runs on look-alikes as far as they go.

LOOK_ALIKES = """
    CREATE SCHEMA fake;
    CREATE VIEW fake.pg_extension AS SELECT 'timescaledb' AS extname;
    CREATE FUNCTION fake.by_range(column_name name, partition_interval interval) RETURNS text
        LANGUAGE sql AS $$ SELECT format('%s by %s', column_name, partition_interval) $$;
    CREATE FUNCTION fake.create_hypertable(relation regclass, dimension text, create_default_indexes boolean)
        RETURNS void LANGUAGE plpgsql AS $$ BEGIN {does}; END $$;
"""


@pytest.mark.parametrize(
    ("does", "expected"),
    [
        ("RAISE '% % %', relation, dimension, create_default_indexes", "feature_rows event_time by 1 mon f"),
        ("NULL", 'unrecognized parameter namespace "timescaledb"'),
    ],
)
def test_where_timescaledb_is_the_migration_makes_a_hypertable(dsn: str, does: str, expected: str) -> None:
    with connect(dsn) as connection:
        connection.execute(LOOK_ALIKES.format(does=does))
    with pytest.raises(psycopg.Error, match=expected):
        migrate(make_conninfo(dsn, options="-csearch_path=fake,public,pg_catalog"), "feature_repo")


def test_a_hypertable_needs_no_partitions(dsn: str) -> None:
    """A plain table stands for it: it is not partitioned either."""
    with connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE feature_rows (event_time timestamptz)")
        partitions.ensure_months(connection, [(2024, 1)])
        assert count(connection, "pg_tables WHERE tablename LIKE 'feature_rows%'") == 1


# Reads: the query is the rule.


def random_rows(rng: np.random.Generator, num_rows: int) -> list[tuple[Any, ...]]:
    """Late, restated, tied (by revision) and even known before they happen; in the order written."""
    rows: dict[tuple[Any, ...], int] = {}
    for _ in range(num_rows):
        event = int(rng.integers(0, 12))
        key = (str(rng.choice(list(ENTITIES))), event, event + int(rng.integers(-2, 8)))
        rows[key] = rows.get(key, -1) + 1
    return [(*key, revision) for key, last in rows.items() for revision in range(last + 1)]


def insert(table: FeatureTable, rows: list[tuple[Any, ...]]) -> None:
    partitions.ensure_months(table.connection, [(2024, 1), (2024, 2)])
    with table.connection.cursor() as cursor, cursor.copy(store._BULK_ADD) as copy:
        for number, (entity, event, ingest, revision) in enumerate(rows):
            times = (START + event * HOUR, START + ingest * HOUR)
            what = (revision, f'{{"n": {number}}}', None, None, START + number * HOUR, "p", "v", "r", 0)
            copy.write_row((table.view, 1, entity, *times, *what))


def by_join(rows: list[tuple[Any, ...]], asked: list[tuple[str, int]]) -> list[float | None]:
    entity_N, event_N, ingest_N = (np.array(column) for column in list(zip(*rows, strict=True))[:3])
    codes = {entity: code for code, entity in enumerate(ENTITIES)}
    answers = find_answers(np.array([codes[one] for one in entity_N]), event_N, ingest_N, len(ENTITIES))
    entity_Q = np.array([codes.get(entity, -1) for entity, _ in asked])
    found_Q = answers.as_of(entity_Q, np.array([time for _, time in asked]))
    return [None if row == NO_ROW else float(row) for row in found_Q]


def by_table(table: FeatureTable, asked: list[tuple[str, int]], **how: Any) -> list[float | None]:
    pairs = [(entity, START + hours * HOUR) for entity, hours in asked]
    answers = table.get_point_in_time(pairs, **how)
    return [answer["n"].value if answer else None for answer in answers]


ASKED = [(entity, hours) for entity in "ABCD" for hours in range(-3, 22)]


@pytest.mark.parametrize("seed", range(8))
def test_the_query_is_the_rule_of_join(shared_connection: psycopg.Connection, seed: int) -> None:
    rows = random_rows(np.random.default_rng(seed), 10 + 15 * seed)
    table = make_table(shared_connection, new_view())
    insert(table, rows)
    expected = by_join(rows, ASKED)
    assert by_table(table, ASKED) == expected
    latest = [table.get_latest(entity, as_of=START + hours * HOUR) for entity, hours in ASKED]
    assert [answer["n"].value if answer else None for answer in latest] == expected
    half = len(rows) // 2
    assert by_table(table, ASKED, written_before=START + (half - 1) * HOUR) == by_join(rows[:half], ASKED)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("AND r.ingest_time <= asked.as_of", ""),
        ("r.event_time <= asked.as_of AND", ""),
        ("ORDER BY r.event_time DESC, r.ingest_time DESC", "ORDER BY r.ingest_time DESC, r.event_time DESC"),
        ("r.revision DESC", "r.revision"),
    ],
)
def test_a_query_that_breaks_the_rule_is_found(
    shared_connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    rows = random_rows(np.random.default_rng(3), 60)
    table = make_table(shared_connection, new_view())
    insert(table, rows)
    assert right in store._AS_OF
    monkeypatch.setattr(store, "_AS_OF", store._AS_OF.replace(right, wrong))
    assert by_table(table, ASKED) != by_join(rows, ASKED)


# The numbers of writes: an export rests on them.


def writes(connection: psycopg.Connection) -> list[tuple[int, int]]:
    """Number and rows of each write."""
    query = "SELECT number, count(event_time) FROM feature_writes LEFT JOIN feature_rows ON number = write_number"
    return connection.execute(f"{query} GROUP BY 1 ORDER BY 1").fetchall()


def test_every_write_that_adds_rows_has_the_next_number(connection: psycopg.Connection) -> None:
    table = make_table(connection)
    for value in (1.0, 2.0, 2.0):
        table.write_features("A", START, {"x": value}, availability_lag=HOUR, **RUN)
        table.write_many(rows_of(3, value), availability_lag=HOUR, **RUN)
    assert writes(connection) == [(1, 1), (2, 2), (3, 1), (4, 2)], "the last two changed nothing"


def test_rows_from_before_the_numbers_are_write_0(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of the first migration, with rows; whoever names no number writes as such."""
    with monkeypatch.context() as patch:
        patch.setattr(database, "_read", lambda package: READ(package)[:1])
        migrate(dsn, "feature_repo")
    with connect(dsn, autocommit=True) as connection:
        partitions.ensure_months(connection, [(2024, 1)])
        row = "('v', 1, 'A', '2024-01-31Z', '2024-01-31Z', 0, '{}', NULL, NULL, now(), 'p', 'v', 'r')"
        connection.execute(f"INSERT INTO feature_rows VALUES {row}")
        connection.execute("INSERT INTO feature_names VALUES ('v', 1, 'x')")
        assert migrate(dsn, "feature_repo") == ["0002_feature_writes.sql"]
        make_table(connection).write_features("A", START, {"x": 1.0}, **RUN)
        assert writes(connection) == [(0, 1), (1, 1)]


# Writers at the same time, and killed ones.


def race(dsn: str, num_writers: int, **changes: Any) -> list[int]:
    """Rows added by writers of one row that start together."""
    start, view = threading.Barrier(num_writers), new_view()

    def write(_: int) -> int:
        with connect(dsn, autocommit=True) as connection:
            table = replace(make_table(connection, view), **changes)
            start.wait(timeout=20)
            return table.write_features("A", START, {"x": 1.0}, **RUN)

    with ThreadPoolExecutor(num_writers) as pool:
        return list(pool.map(write, range(num_writers)))


def test_two_writers_of_one_row_at_once_write_it_once(shared: str) -> None:
    for _ in range(5):
        assert sorted(race(shared, 4)) == [0, 0, 0, 1]


def test_without_taking_turns_two_would_write_it_and_take_one_number(
    shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_read = threading.Barrier(2)
    times = [real_clock(), real_clock() + HOUR]

    def clock() -> datetime:
        both_have_read.wait(timeout=20)
        return times.pop()

    monkeypatch.setattr(store, "_LOCK", "SELECT %s::text")
    with pytest.raises(psycopg.errors.UniqueViolation, match="feature_writes"):
        race(shared, 2, clock=clock)


def test_bulk_writers_of_the_same_rows_write_them_once(shared: str) -> None:
    view = new_view()

    def write(_: int) -> int:
        with connect(shared, autocommit=True) as connection:
            return make_table(connection, view).write_many(rows_of(800), **RUN)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(write, range(3))) == [0, 0, 800]


def test_a_certificate_waits_for_a_write_that_its_time_covers(migrated: str) -> None:
    """The write has read the clock and is not committed: read at once it would be missing, and be there on replay."""
    with connect(migrated, autocommit=True) as writing, connect(migrated, autocommit=True) as reading:
        table = make_table(reading)
        with ThreadPoolExecutor(1) as pool:
            with writing.transaction():
                make_table(writing).write_features("A", START, {"x": 1.0}, **RUN)
                run_time = real_clock()
                certificate = pool.submit(table.get_latest, "A", written_before=run_time)
                while not count(writing, "pg_locks WHERE NOT granted"):
                    time.sleep(0.002)
                assert not certificate.done()
            assert certificate.result(timeout=20)["x"].value == 1.0


DIE = """
    CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.event_time = '{moment}' THEN PERFORM {does}; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER {name} BEFORE INSERT ON feature_rows FOR EACH ROW EXECUTE FUNCTION {name}();
"""


def break_at(connection: psycopg.Connection, row: int, does: str) -> None:
    connection.execute(DIE.format(name="die", moment=START + row * HOUR, does=does))


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_a_bulk_write_that_dies_half_way_leaves_nothing(connection: psycopg.Connection, dsn: str, value: float) -> None:
    """In the plain part (new rows, 1.0 is there before) and in the restating part."""
    make_table(connection).write_many(rows_of(400), availability_lag=HOUR, **RUN)
    num_before = count(connection)
    break_at(connection, 300 if value == 2.0 else 900, "pg_terminate_backend(pg_backend_pid())")
    with connect(dsn, autocommit=True) as doomed, pytest.raises(psycopg.OperationalError):
        make_table(doomed).write_many(rows_of(1000, value), availability_lag=HOUR, **RUN)
    assert count(connection) == num_before == 400
    connection.execute("DROP TRIGGER die ON feature_rows")
    num_added = make_table(connection).write_many(rows_of(1000, value), availability_lag=HOUR, **RUN)
    assert num_added == (1000 if value == 2.0 else 600)


WRITER = """
import sys
from datetime import UTC, datetime
import pandas as pd
from feature_repo.database import connect
from feature_repo.store.api import FeatureTable
with connect(sys.argv[1], autocommit=True) as connection:
    table = FeatureTable(connection=connection, view="v", producer_version="abc", clock=lambda: datetime.now(UTC))
    table.write_many(pd.read_parquet(sys.argv[2]), producer="test", run_id="run-1")
"""


def test_a_writer_killed_in_the_middle_leaves_nothing(connection: psycopg.Connection, dsn: str, tmp_path: Any) -> None:
    rows_of(1000).to_parquet(tmp_path / "rows.parquet")
    break_at(connection, 500, "pg_sleep(0.5)")
    sleeping = "pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    with subprocess.Popen([sys.executable, "-c", WRITER, dsn, str(tmp_path / "rows.parquet")]) as writer:
        while writer.poll() is None and not count(connection, sleeping):
            time.sleep(0.005)
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    others = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state IS NOT NULL"
    while count(connection, others):
        time.sleep(0.01)
    assert count(connection) == 0
    assert count(connection, "feature_names") == 0


def test_writes_within_a_transaction_stand_or_fall_together(connection: psycopg.Connection) -> None:
    table = make_table(connection)
    with connection.transaction(force_rollback=True):
        table.write_many(rows_of(3), **RUN)
        table.write_many(rows_of(5), **RUN)
        table.write_features("B", START, {"x": 1.0}, **RUN)
        assert count(connection) == 6
    assert count(connection) == 0
    assert table.write_many(rows_of(5), **RUN) == 5
