"""Postgres as the record and the folder as its export: equal after any writes, by anyone, killed anywhere."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow.parquet as pq
import pytest

from feature_repo.database import connect
from feature_repo.store import postgres as store
from feature_repo.store import record as module
from feature_repo.store.api import FeatureTable
from feature_repo.store.postgres import View
from feature_repo.store.record import catch_up, record
from feature_repo.store.tables import (
    KEY,
    RESTATES,
    STATED,
    TableError,
    append_rows,
    feature_names,
    read_history,
    read_rows,
)
from flows import postgres
from tests.databases import migrated_database
from tests.feature_repo.store.record_makers import new_view

START = datetime(2024, 1, 31, 20, tzinfo=UTC)  # events an hour apart lie in two partitions
HOUR = timedelta(hours=1)
WRITTEN = START + 100 * HOUR
OTHER = {"producer": "desk", "run_id": "by hand"}
NaN = np.nan


@pytest.fixture(scope="module")
def dsn(databases: postgres.Databases) -> Iterator[str]:
    with migrated_database(databases, "feature_repo") as dsn:
        yield dsn


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    with connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def view() -> View:
    return View(name=f"market/1d/{new_view()}", version=1)


def at(hours: float) -> datetime:
    return START + hours * HOUR


def rows_of(
    *said: tuple[str, float, float, float, float], written_at: datetime = WRITTEN, run: str = "run"
) -> pd.DataFrame:
    """Rows (entity, hour, hour known, x, y) as a pipeline gives them."""
    frame = pd.DataFrame(said, columns=["entity_key", *KEY[1:], "x", "y"])
    times = {name: pd.DatetimeIndex([at(hours) for hours in frame[name]]).as_unit("us") for name in KEY[1:]}
    by = {"producer": "perennial", "producer_version": "abc", "run_id": run}
    return frame.assign(**times, written_at=pd.Timestamp(written_at).as_unit("us"), **by)


def history(num_events: int = 5, *, later: int = 0, **changed: float) -> pd.DataFrame:
    """Rows of two entities, written so many hours later; ``A3=9.0`` changes a value."""
    said = [
        (entity, hour, hour + 1, changed.get(f"{entity}{hour}", hour / 3), NaN if hour % 2 else -0.0)
        for entity in "AB"
        for hour in range(num_events)
    ]
    return rows_of(*said, written_at=WRITTEN + later * HOUR, run=f"run-{later}")


def api(connection: psycopg.Connection, view: View, now: datetime = WRITTEN) -> FeatureTable:
    return FeatureTable(connection=connection, view=view.name, producer_version="abc", clock=lambda: now)


Told = list[tuple[Any, ...]]


def in_postgres(connection: psycopg.Connection, view: View) -> Told:
    """Every row there is; features without nulls."""
    columns = "entity_key, event_time, ingest_time, revision, features, restates, stated, written_at, producer, run_id"
    found = connection.execute(f"SELECT {columns} FROM feature_rows WHERE view = %s ORDER BY 1, 2, 3, 4", [view.name])
    return [(*row[:4], {name: value for name, value in row[4].items() if value is not None}, *row[5:]) for row in found]


def in_folder(folder: Path) -> Told:
    rows = read_history(folder)
    rows["revision"] = rows.groupby(list(KEY)).cumcount()
    names, found = feature_names(folder), []
    for row in rows.sort_values([*KEY, "revision"]).to_dict("records"):
        features = {name: row[name] for name in names if row[name] == row[name]}
        restates = None if pd.isna(row[RESTATES]) else row[RESTATES]
        stated = None if row[STATED] is None else list(row[STATED])
        key = [row[name] for name in (*KEY, "revision")]
        found.append((*key, features, restates, stated, *(row[name] for name in ("written_at", "producer", "run_id"))))
    return found


def num_parts(folder: Path) -> int:
    return len(list(folder.glob("*.parquet")))


def num_writes(connection: psycopg.Connection, view: View) -> int:
    [(number,)] = connection.execute("SELECT count(*) FROM feature_writes WHERE view = %s", [view.name])
    return number


# What a write does.


def test_the_first_write_is_in_postgres_and_in_the_folder(
    connection: psycopg.Connection, view: View, tmp_path: Path
) -> None:
    assert record(connection, view, tmp_path / "t", history()) == 10
    assert in_folder(tmp_path / "t") == in_postgres(connection, view)
    assert len(in_postgres(connection, view)) == 10
    assert append_rows(tmp_path / "appended", history()) == 10
    pd.testing.assert_frame_equal(read_rows(tmp_path / "t"), read_rows(tmp_path / "appended"))
    assert not np.signbit(read_rows(tmp_path / "t")["y"].dropna()).any(), "as Postgres would give it back"
    answer = api(connection, view).get_latest("B")
    assert (answer["x"].value, answer["x"].producer, answer["y"].value) == (4 / 3, "perennial", 0.0)


def test_a_repeat_writes_nothing_and_reads_no_row_of_postgres(
    connection: psycopg.Connection, dsn: str, view: View, tmp_path: Path
) -> None:
    record(connection, view, tmp_path, history())
    connection.execute("SET statement_timeout = '5s'")
    with connect(dsn) as other:
        other.execute("LOCK TABLE feature_rows IN ACCESS EXCLUSIVE MODE")
        assert record(connection, view, tmp_path, history(later=1)) == 0
        assert catch_up(connection, view, tmp_path) == 0
        assert record(connection, view, tmp_path, history().iloc[:0]) == 0
    assert (num_parts(tmp_path), num_writes(connection, view)) == (1, 1)


def test_a_longer_history_and_a_correction_are_further_parts(
    connection: psycopg.Connection, view: View, tmp_path: Path
) -> None:
    record(connection, view, tmp_path, history())
    before = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert record(connection, view, tmp_path, history(6, later=1, A2=9.0)) == 3
    assert {path: path.read_bytes() for path in before} == before
    [restated] = [row for row in in_postgres(connection, view) if row[5] is not None]
    assert restated[:3] == ("A", at(2), WRITTEN + HOUR)
    assert restated[5] == at(3)
    assert in_folder(tmp_path) == in_postgres(connection, view)


def test_what_the_api_writes_between_two_records_is_in_the_folder(
    connection: psycopg.Connection, view: View, tmp_path: Path
) -> None:
    record(connection, view, tmp_path, history())
    table = api(connection, view)
    assert table.write_features("C", at(0), {"x": 7.0}, **OTHER) == 1
    assert catch_up(connection, view, tmp_path) == 1
    assert table.write_features("A", at(2), {"x": 8.0}, **OTHER) == 1
    assert record(connection, view, tmp_path, history(later=1)) == 0, "what the desk said about now stands"
    assert in_folder(tmp_path) == in_postgres(connection, view)
    rows = read_rows(tmp_path).set_index("entity_key")
    assert rows.loc["C", ["x", "producer"]].tolist() == [7.0, "desk"]
    np.testing.assert_array_equal(rows.loc["A", "x"].tolist()[-1], 8.0)
    assert table.get_latest("A", as_of=WRITTEN)["x"].value == 4 / 3


def test_a_partial_row_that_came_first_is_completed(connection: psycopg.Connection, view: View, tmp_path: Path) -> None:
    """Its copy comes after it under the same key, so readers find it."""
    api(connection, view).write_features("A", at(2), {"x": 8.0}, **OTHER)
    assert record(connection, view, tmp_path, rows_of(("A", 2, 3, 1.0, 2.0))) == 2
    told = in_postgres(connection, view)
    assert [(row[2], row[3], row[4]) for row in told] == [
        (at(3), 0, {"x": 1.0, "y": 2.0}),
        (WRITTEN, 0, {"x": 8.0}),
        (WRITTEN, 1, {"x": 8.0, "y": 2.0}),
    ]
    assert in_folder(tmp_path) == told


def test_features_that_only_the_api_knows_stay_there(
    connection: psycopg.Connection, view: View, tmp_path: Path
) -> None:
    record(connection, view, tmp_path, history())
    api(connection, view).write_features("A", at(2), {"note": ["not", "a", "number"], "x": 8.0}, **OTHER)
    assert record(connection, view, tmp_path, history(later=1)) == 0
    assert feature_names(tmp_path) == ["x", "y"]
    assert read_rows(tmp_path)["x"].iloc[-1] == 8.0


def test_markets_with_one_name_for_their_views_do_not_mix(connection: psycopg.Connection, tmp_path: Path) -> None:
    views = [View(name=f"{market}/{new_view()}", version=1) for market in ("us", "sim")]
    for view, value in zip(views, (1.0, 2.0), strict=True):
        assert record(connection, view, tmp_path / view.name, history(A1=value)) == 10
    for view, value in zip(views, (1.0, 2.0), strict=True):
        assert record(connection, view, tmp_path / view.name, history(A1=value, later=1)) == 0
        assert catch_up(connection, view, tmp_path / "anew" / view.name) == 10
        assert read_rows(tmp_path / "anew" / view.name)["x"][1] == value


# Random writes: the folder is the record, and the rule is the API's.


class World:
    """A pipeline and a desk that write to one view; beside it a view to which both write through the API."""

    def __init__(self, connection: psycopg.Connection, folder: Path, seed: int) -> None:
        self.connection, self.folder, self.rng = connection, folder, np.random.default_rng(seed)
        self.view, self.same = (View(name=new_view(), version=1) for _ in range(2))
        self.dates = {event: [1] for event in range(3)}
        self.now = WRITTEN

    def step(self) -> None:
        self.now += HOUR
        act = self.rng.choice([self.pipeline, self.pipeline, self.desk, self.many])
        act()

    def pipeline(self) -> None:
        """Some of its rows, now and then a later date of an event."""
        self.dates[int(self.rng.integers(3))].append(int(self.rng.integers(2, 9)))
        said = [
            (str(entity), event, event + lag, *self.rng.integers(0, 3, 2).astype(float))
            for entity in "AB"
            for event, lags in self.dates.items()
            for lag in sorted(set(lags))
            if self.rng.random() < 0.6
        ]
        rows = rows_of(*said, written_at=self.now)
        table = replace(api(self.connection, self.same), clock=lambda: self.now)
        by = {"producer": "perennial", "run_id": "run"}
        expected = table.write_many(rows[[*KEY, "x", "y"]], **by) if len(rows) else 0
        assert self.record(rows) == expected
        assert self.agrees()

    def record(self, rows: pd.DataFrame) -> int:
        return record(self.connection, self.view, self.folder, rows)

    def desk(self) -> None:
        """Some features of an event, known now or at a date."""
        entity, event = str(self.rng.choice(list("AB"))), at(int(self.rng.integers(3)))
        features = {name: float(self.rng.integers(3)) for name in "xy" if self.rng.random() < 0.7} or {"x": None}
        lag = None if self.rng.random() < 0.5 else int(self.rng.integers(9)) * HOUR
        for view in (self.view, self.same):
            api(self.connection, view, self.now).write_features(entity, event, features, availability_lag=lag, **OTHER)

    def many(self) -> None:
        rows = rows_of(*((entity, 2, 3, 1.0, NaN) for entity in "ABC"))[[*KEY[:2], "x", "y"]]
        for view in (self.view, self.same):
            api(self.connection, view, self.now).write_many(rows, **OTHER)

    def agrees(self) -> bool:
        told = in_postgres(self.connection, self.view)
        return told == in_folder(self.folder) == in_postgres(self.connection, self.same)


SEEDS = range(6)
NUM_STEPS = 12


def live(connection: psycopg.Connection, folder: Path, seed: int) -> World:
    world = World(connection, folder, seed)
    for _ in range(NUM_STEPS):
        world.step()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_writes_the_folder_is_the_record_and_the_rule_the_apis(
    connection: psycopg.Connection, tmp_path: Path, seed: int
) -> None:
    world = live(connection, tmp_path / "t", seed)
    catch_up(connection, world.view, world.folder)
    assert world.agrees()
    assert catch_up(connection, world.view, tmp_path / "anew") == len(in_postgres(connection, world.view)) > 10
    assert in_folder(tmp_path / "anew") == in_folder(world.folder)


def nobody_else(stored: pd.DataFrame, given: pd.DataFrame, producer: object) -> np.ndarray:
    return np.zeros(len(given), dtype=bool)


def knows_no_restatements(folder: Path) -> pd.DataFrame:
    return read_history(folder).assign(**{RESTATES: pd.Series(pd.NaT, dtype="datetime64[us, UTC]")})


BROKEN: dict[str, Callable[..., Any]] = {
    "_is_shared": nobody_else,
    "_export_news": lambda *_: 0,
    "read_history": knows_no_restatements,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_found(
    connection: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Partial rows left incomplete; deciding without what others wrote; forgetting what a restatement is about."""
    monkeypatch.setattr(module, name, BROKEN[name])
    with pytest.raises((AssertionError, psycopg.Error)):
        [live(connection, tmp_path / str(seed), seed) for seed in SEEDS]


# Writers at the same time.


def test_writers_at_once_write_every_row_once(dsn: str, view: View, tmp_path: Path) -> None:
    """Two runs on one folder, one on another, and a desk."""
    start = threading.Barrier(4)
    folders = [tmp_path / "one", tmp_path / "one", tmp_path / "two"]

    def run(number: int) -> int:
        with connect(dsn, autocommit=True) as connection:
            start.wait(timeout=30)
            return sum(record(connection, view, folders[number], history(events)) for events in range(1, 30, 4))

    def desk(_: int) -> int:
        with connect(dsn, autocommit=True) as connection:
            start.wait(timeout=30)
            table = api(connection, view)
            return sum(table.write_features("C", at(n), {"x": 1.0}, **OTHER) for n in range(20))

    with ThreadPoolExecutor(4) as pool:
        written = sum(future.result() for future in [*(pool.submit(run, n) for n in range(3)), pool.submit(desk, 0)])
    with connect(dsn, autocommit=True) as connection:
        told = in_postgres(connection, view)
        assert written == len(told) == 2 * 29 + 20
        for folder in set(folders):
            catch_up(connection, view, folder)
            assert in_folder(folder) == told


def test_a_record_waits_for_a_write_that_is_not_committed(dsn: str, view: View, tmp_path: Path) -> None:
    with connect(dsn, autocommit=True) as one, connect(dsn, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        record(one, view, tmp_path, history())
        with one.transaction():
            api(one, view).write_features("A", at(2), {"x": 8.0}, **OTHER)
            waiting = pool.submit(record, other, view, tmp_path, history(later=1, A2=9.0))
            while not one.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]:
                assert not waiting.done()
        assert waiting.result(timeout=30) == 0, "what the desk said meanwhile is about a later date"
        assert in_folder(tmp_path) == in_postgres(one, view)


# Killed.

CHILD = """
import os, signal, sys
from pathlib import Path
import pandas as pd
from feature_repo.database import connect
from feature_repo.store import record as module, tables
from feature_repo.store.postgres import View

dsn, view, folder, rows, where, name, when = sys.argv[1:]
owner = {"record": module, "postgres": module.postgres, "writer": tables.pq.ParquetWriter}[where]
right = getattr(owner, name)

def die(*args, **kwargs):
    if when == "after":
        right(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

with connect(dsn, autocommit=True) as connection:
    setattr(owner, name, die)
    module.record(connection, View(name=view, version=1), Path(folder), pd.read_parquet(rows))
"""


def kill(dsn: str, view: View, folder: Path, rows: pd.DataFrame, *step: str) -> None:
    """Record the rows in a process that is killed at this step."""
    source = folder.parent / "rows.parquet"
    rows.to_parquet(source)
    command = [sys.executable, "-c", CHILD, dsn, view.name, str(folder), str(source), *step]
    assert subprocess.run(command, check=False, timeout=100).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("step", "is_committed"),
    [
        (("postgres", "copy_rows", "after"), False),  # in the transaction, once the folder has caught up
        (("record", "_export", "before"), False),  # catching up, before anything is written
        (("writer", "write_table", "after"), False),  # half a part
        (("record", "_export_committed", "before"), True),  # everything but the rows that are shared with the API
    ],
)
def test_killed_anywhere_and_run_again_ends_right(
    connection: psycopg.Connection, dsn: str, view: View, tmp_path: Path, step: tuple[str, ...], is_committed: bool
) -> None:
    folder = tmp_path / "t"
    record(connection, view, folder, history())
    api(connection, view).write_features("B", at(3), {"y": 8.0}, availability_lag=HOUR / 2, **OTHER)
    kill(dsn, view, folder, history(7, later=1, A2=9.0, B3=9.0), *step)
    again = record(connection, view, folder, history(7, later=2, A2=9.0, B3=9.0))
    assert again == (0 if is_committed else 6)
    told = in_postgres(connection, view)
    assert in_folder(folder) == told
    dates = [(row[0], row[2]) for row in told if row[5] is not None]
    known = WRITTEN + (1 if is_committed else 2) * HOUR
    assert dates == [("A", known), ("B", known)], "dated once, by the run that was committed"
    assert not list(folder.glob("_*.partial"))


def test_killed_between_commit_and_export_the_correction_stands(
    connection: psycopg.Connection, dsn: str, view: View, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    record(connection, view, folder, history())
    kill(dsn, view, folder, history(7, later=1, A2=9.0), "record", "_export", "before")
    assert (num_parts(folder), len(in_postgres(connection, view))) == (1, 15)
    assert record(connection, view, folder, history(7, later=2, A2=9.0)) == 0
    assert in_folder(folder) == in_postgres(connection, view)
    [restated] = [row for row in in_folder(folder) if row[5] is not None]
    assert restated[2] == WRITTEN + HOUR


# Folders and databases that do not know each other.


def early(folder: Path, *frames: pd.DataFrame) -> None:
    """A folder from before the record: parts without what restatements are about."""
    for frame in frames:
        append_rows(folder, frame)
    for part in folder.glob("*.parquet"):
        pq.write_table(pq.ParquetFile(part).read().drop_columns([RESTATES, STATED]), part)


@pytest.mark.parametrize("make", [early, lambda folder, *frames: [append_rows(folder, frame) for frame in frames]])
def test_a_folder_from_before_is_taken_in_once(
    connection: psycopg.Connection, view: View, tmp_path: Path, make: Callable[..., None]
) -> None:
    make(tmp_path, history(), history(later=1, A2=9.0))
    assert record(connection, view, tmp_path, history(6, later=2, A2=9.0)) == 2
    told = in_postgres(connection, view)
    assert in_folder(tmp_path) == told
    assert len(told) == 13
    [restated] = [row for row in told if row[5] is not None]
    assert (restated[2], restated[5]) == (WRITTEN + HOUR, at(3))
    for later, value in enumerate([7.0, 2 / 3, 9.0], start=3):
        assert record(connection, view, tmp_path, history(6, later=later, A2=value)) == 1, "forth and back"
    assert record(connection, view, tmp_path, history(6, later=6, A2=9.0)) == 0
    assert in_folder(tmp_path) == in_postgres(connection, view)


def test_killed_while_a_folder_is_taken_in_it_is_taken_in_once(
    connection: psycopg.Connection, dsn: str, view: View, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    early(folder, history(), history(later=1, A2=9.0))
    kill(dsn, view, folder, history(6, later=2, A2=9.0), "record", "_export", "before")
    assert len(in_postgres(connection, view)) == 11, "committed, and the folder doesn't say so yet"
    assert record(connection, view, folder, history(6, later=3, A2=9.0)) == 2
    assert in_folder(folder) == in_postgres(connection, view)


def test_a_folder_outlives_its_database(
    connection: psycopg.Connection, databases: postgres.Databases, view: View, tmp_path: Path
) -> None:
    """Also partial rows and revisions; a write's number alone would be taken for one of the new database's."""
    record(connection, view, tmp_path, history())
    api(connection, view).write_features("A", at(2), {"x": 8.0}, **OTHER)
    api(connection, view).write_features("A", at(2), {"y": 5.0}, availability_lag=2 * HOUR, **OTHER)
    record(connection, view, tmp_path, history(later=1, B2=7.0))
    told = in_postgres(connection, view)
    with migrated_database(databases, "feature_repo") as dsn, connect(dsn, autocommit=True) as new:
        for hour in range(9):
            api(new, view).write_features("D", at(hour), {"x": 1.0}, **OTHER)
        assert record(new, view, tmp_path, history(later=2, B2=7.0)) == 0
        assert [row for row in in_postgres(new, view) if row[0] != "D"] == told
        assert in_folder(tmp_path) == in_postgres(new, view)


def test_without_asking_whose_write_it_was_rows_are_lost(
    connection: psycopg.Connection,
    databases: postgres.Databases,
    view: View,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record(connection, view, tmp_path, history())
    monkeypatch.setattr(store, "has_write", lambda *_: True)
    with migrated_database(databases, "feature_repo") as dsn, connect(dsn, autocommit=True) as new:
        api(new, view).write_features("D", at(0), {"x": 1.0}, **OTHER)
        record(new, view, tmp_path, history(later=2))
        assert in_folder(tmp_path) != in_postgres(new, view)


def test_histories_that_contradict_each_other_are_refused(
    connection: psycopg.Connection, view: View, tmp_path: Path
) -> None:
    record(connection, view, tmp_path / "one", history())
    append_rows(tmp_path / "two", history(7, A1=5.0))
    with pytest.raises(TableError, match=r"1 of 10 rows have other values in the folder .*two than in Postgres' view"):
        record(connection, view, tmp_path / "two", history())
    with pytest.raises(TableError, match="move the folder away"):
        catch_up(connection, view, tmp_path / "two")
    assert (num_parts(tmp_path / "two"), num_writes(connection, view)) == (1, 1)
    append_rows(tmp_path / "three", history(7))
    assert record(connection, view, tmp_path / "three", history(later=1)) == 0
    assert catch_up(connection, view, tmp_path / "one") == 4
    assert in_folder(tmp_path / "one") == in_folder(tmp_path / "three") == in_postgres(connection, view)


# Columns, and what is refused.


def test_names_may_become_columns_where_that_is_said(
    connection: psycopg.Connection, view: View, tmp_path: Path
) -> None:
    record(connection, view, tmp_path / "t", history(), may_grow=True)
    grown = history(6, later=1).assign(book=[NaN, 1.0] * 6)
    assert record(connection, view, tmp_path / "t", grown, may_grow=True) == 6, "two rows and four restatements"
    assert feature_names(tmp_path / "t") == ["x", "y", "book"]
    assert in_folder(tmp_path / "t") == in_postgres(connection, view)
    assert record(connection, view, tmp_path / "t", grown, may_grow=True) == 0
    fewer = grown[grown["book"].isna()].drop(columns="book")
    assert record(connection, view, tmp_path / "t", fewer, may_grow=True) == 0
    catch_up(connection, view, tmp_path / "anew", may_grow=True)
    assert in_folder(tmp_path / "anew") == in_folder(tmp_path / "t")
    assert record(connection, view, tmp_path / "anew", grown, may_grow=True) == 0


@pytest.mark.parametrize("is_lost", [False, True])
def test_other_columns_need_another_version(
    connection: psycopg.Connection, view: View, tmp_path: Path, is_lost: bool
) -> None:
    """Also where the folder was lost."""
    record(connection, view, tmp_path / "t", history())
    folder = tmp_path / ("lost" if is_lost else "t")
    with pytest.raises(TableError, match=r"only stored \['y'\], only given \['z'\]; raise the pipeline's version"):
        record(connection, view, folder, history().rename(columns={"y": "z"}))
    assert num_writes(connection, view) == 1


def test_what_the_record_cannot_hold_is_refused(connection: psycopg.Connection, view: View, tmp_path: Path) -> None:
    rows = history()
    with pytest.raises(TableError, match=r"infinite in so many of 10 rows: {'x': 2}; write null"):
        record(connection, view, tmp_path, rows.assign(x=[np.inf, -np.inf, *range(8)]))
    with pytest.raises(TableError, match=r"\['written_at', 'run_id'\] differ among these"):
        record(connection, view, tmp_path, pd.concat([rows, history(6, later=1)]))
    with pytest.raises(TableError, match=r"have the columns \['restates'\]"):
        record(connection, view, tmp_path, rows.assign(restates=1.0))
    with connection.transaction(), pytest.raises(TableError, match="outside any transaction"):
        record(connection, view, tmp_path, rows)
    append_rows(tmp_path / "early", rows.assign(x=np.inf))
    with pytest.raises(TableError, match=r"infinite in so many of 10 rows: {'x': 10}; move .*early away"):
        record(connection, view, tmp_path / "early", rows)
    assert (num_parts(tmp_path), num_writes(connection, view)) == (0, 0)


def test_texts_of_any_kind_come_back(connection: psycopg.Connection, view: View, tmp_path: Path) -> None:
    odd = 'a\\b\t"c"\nd\r{e},é\\N'
    rows = history(1).replace({"entity_key": {"A": odd, "B": "\\N"}}).rename(columns={"x": odd})
    rows["producer"] = odd
    assert record(connection, view, tmp_path / "t", rows) == 2
    api(connection, view).write_features("\\N", at(0), {odd: 8.0}, **OTHER)
    catch_up(connection, view, tmp_path / "anew")
    catch_up(connection, view, tmp_path / "t")
    assert in_folder(tmp_path / "t") == in_folder(tmp_path / "anew") == in_postgres(connection, view)
    assert {row[0] for row in in_folder(tmp_path / "t")} == {odd, "\\N"}


def test_numbers_of_any_size_come_back_as_they_were(connection: psycopg.Connection, view: View, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = np.concatenate([[5e-324, 1.7976931348623157e308, 0.1, -1e-7, 2**53 + 2, NaN], rng.normal(size=94)])
    scaled = np.concatenate([numbers[:6], numbers[6:] * 10.0 ** rng.integers(-200, 200, 94)])
    rows = rows_of(*(("A", hour, hour + 1, x, y) for hour, (x, y) in enumerate(zip(scaled, -scaled, strict=True))))
    record(connection, view, tmp_path / "t", rows)
    catch_up(connection, view, tmp_path / "anew")
    for folder in ("t", "anew"):
        np.testing.assert_array_equal(read_rows(tmp_path / folder)[["x", "y"]], np.stack([scaled, -scaled], axis=1))
