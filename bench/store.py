"""The Postgres system of record: a bulk write by COPY beside psycopg's ways to insert, and reads in two times.

All write the same complete rows of 30 features into the same table, from a frame to the commit, each alone in a process
and a database. Ours also holds every row against what is stored: no news, a restatement, a part of a row. The peers
have ``ON CONFLICT DO NOTHING`` or nothing, in one transaction. The slower ones write the first rows only; rows/s are
compared, and the rows that all wrote must be the same. The server is on a local socket, where a round trip costs
least, which favours whoever makes many.

Latest reads run beside the long form, one row a feature with the index for it, which must give the same values.
Point-in-time reads must be what the kernel of the offline store finds in the exported Parquet.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa

from bench.report import Report, Row, alone, at_least, options, peak_mb, progress, publish, ratio
from feature_repo.database import connect, migrate
from feature_repo.store.api import FeatureTable
from feature_repo.store.join import NO_ROW
from feature_repo.store.parquet import History
from feature_repo.store.partitions import ensure_months, month_of
from feature_repo.store.tables import read_rows
from flows import postgres
from flows.settings import Settings

FEATURES = [f"f{at:02d}" for at in range(30)]
NUM_ENTITIES = 500
FIRST, STEP, LAG = datetime(2020, 1, 1, tzinfo=UTC), timedelta(hours=12), timedelta(hours=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHO = {"producer": "bench", "run_id": "run"}

OURS, OURS_AGAIN, OURS_SINGLY, COPY, EXECUTEMANY, ROW_BY_ROW = (
    "Perennial, write_many",
    "Perennial, write_many, nothing new",
    "Perennial, write_features, each committed",
    "psycopg COPY row by row, no rule",
    "psycopg executemany",
    "psycopg execute row by row",
)

COLUMNS = """
    view, feature_version, entity_key, event_time, ingest_time, revision, features, written_at, producer,
    producer_version, run_id
"""
INSERT = f"INSERT INTO feature_rows ({COLUMNS}) VALUES ({', '.join(['%s'] * 11)}) ON CONFLICT DO NOTHING"
WRITTEN = """
    SELECT count(*), md5(string_agg(md5(concat(entity_key, event_time, ingest_time, features)), '' ORDER BY
        event_time, entity_key, ingest_time))
    FROM feature_rows WHERE view = %s AND event_time < %s
"""
LONG_FORM = """
    CREATE TABLE long_form AS
        SELECT view, feature_version, entity_key, feature COLLATE "C" AS feature, event_time, ingest_time, value,
            producer, producer_version
        FROM feature_events;
    ALTER TABLE long_form ADD PRIMARY KEY (view, feature_version, entity_key, feature, event_time, ingest_time);
    ANALYZE long_form
"""
LONG_LATEST = """
    SELECT feature.name, found.* FROM feature_names AS feature CROSS JOIN LATERAL (
        SELECT value, event_time, ingest_time, producer, producer_version FROM long_form
        WHERE view = 'v0' AND feature_version = 1 AND entity_key = %(entity)s AND feature = feature.name
            AND event_time <= %(time)s AND ingest_time <= %(time)s
        ORDER BY event_time DESC, ingest_time DESC LIMIT 1
    ) found
    WHERE feature.view = 'v0' AND feature.feature_version = 1
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Rows that each contender writes, rows of the table that is read, and questions."""

    num_rows: dict[str, int]
    runs: int
    num_stored: int
    num_asked: int


FULL = Plan(
    num_rows={
        OURS: 1_000_000,
        OURS_AGAIN: 1_000_000,
        OURS_SINGLY: 5_000,
        COPY: 200_000,
        EXECUTEMANY: 100_000,
        ROW_BY_ROW: 50_000,
    },
    runs=3,
    num_stored=100_000,
    num_asked=20_000,
)
QUICK = Plan(
    num_rows={
        OURS: 100_000,
        OURS_AGAIN: 20_000,
        OURS_SINGLY: 500,
        COPY: 20_000,
        EXECUTEMANY: 20_000,
        ROW_BY_ROW: 10_000,
    },
    runs=3,
    num_stored=10_000,
    num_asked=5_000,
)


def make_rows(num_rows: int) -> pd.DataFrame:
    """Half-daily rows of all entities in turn; fewer rows are the first of more."""
    at = np.arange(num_rows)
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(num_rows, len(FEATURES))), columns=FEATURES)
    rows.insert(0, "entity_key", np.array([f"E{at:03d}" for at in range(NUM_ENTITIES)])[at % NUM_ENTITIES])
    rows.insert(1, "event_time", pd.Timestamp(FIRST).as_unit("us") + at // NUM_ENTITIES * pd.Timedelta(STEP))
    return rows


def time_of(num_rows: int) -> datetime:
    """First event time beyond the first rows."""
    return FIRST + num_rows // NUM_ENTITIES * STEP


def table_of(connection: psycopg.Connection, view: str) -> FeatureTable:
    return FeatureTable(connection=connection, view=view, producer_version="sha", clock=lambda: NOW)


def parameters(view: str, rows: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """What psycopg's ways insert."""
    events = rows["event_time"].tolist()
    values = rows[FEATURES].to_numpy().tolist()
    for entity, event, row in zip(rows["entity_key"], events, values, strict=True):
        features = json.dumps(dict(zip(FEATURES, row, strict=True)))
        yield (
            view,
            1,
            entity,
            event.to_pydatetime(),
            event.to_pydatetime() + LAG,
            0,
            features,
            NOW,
            "bench",
            "sha",
            "run",
        )


# The contenders: each writes the rows of a frame to a view and has committed when it returns.


def write_many(connection: psycopg.Connection, view: str, rows: pd.DataFrame) -> None:
    table_of(connection, view).write_many(rows, availability_lag=LAG, **WHO)


def write_singly(connection: psycopg.Connection, view: str, rows: pd.DataFrame) -> None:
    table = table_of(connection, view)
    for entity, event, *values in rows.itertuples(index=False):
        features = dict(zip(FEATURES, values, strict=True))
        table.write_features(entity, event, features, availability_lag=LAG, **WHO)


def copy_rows(connection: psycopg.Connection, view: str, rows: pd.DataFrame) -> None:
    with connection.cursor().copy(f"COPY feature_rows ({COLUMNS}) FROM STDIN") as copy:
        for row in parameters(view, rows):
            copy.write_row(row)


def executemany(connection: psycopg.Connection, view: str, rows: pd.DataFrame) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(INSERT, parameters(view, rows))


def row_by_row(connection: psycopg.Connection, view: str, rows: pd.DataFrame) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        for row in parameters(view, rows):
            cursor.execute(INSERT, row)


CONTENDERS: dict[str, Callable[[psycopg.Connection, str, pd.DataFrame], None]] = {
    OURS: write_many,
    OURS_AGAIN: write_many,
    OURS_SINGLY: write_singly,
    COPY: copy_rows,
    EXECUTEMANY: executemany,
    ROW_BY_ROW: row_by_row,
}


def contend(name: str, dsn: str, num_rows: int, runs: int, num_common: int) -> dict[str, Any]:
    """One contender's median time over views of its own; all partitions are there before."""
    rows, times = make_rows(num_rows), []
    with connect(dsn, autocommit=True) as connection:
        ensure_months(connection, {month_of(event) for event in rows["event_time"].unique()})
        for run in range(runs):
            if name == OURS_AGAIN:
                write_many(connection, f"v{run}", rows)
            start = time.perf_counter()
            CONTENDERS[name](connection, f"v{run}", rows)
            times.append(time.perf_counter() - start)
        num_written, checksum = connection.execute(WRITTEN, ["v0", time_of(num_common)]).fetchone()
        num_all, _ = connection.execute(WRITTEN, ["v0", NOW]).fetchone()
    assert (num_written, num_all) == (num_common, num_rows), "rows are missing"
    return {"seconds": median(times), "peak_mb": peak_mb(), "checksum": checksum}


# Reads.


@dataclass(frozen=True, kw_only=True, slots=True)
class Reads:
    """Seconds for one latest read (median, and 99th of 100), and for all point-in-time questions."""

    latest: tuple[float, float]
    long_form: tuple[float, float]
    point_in_time: float
    kernel: float


def read(dsn: str, plan: Plan, folder: Path) -> Reads:
    """Time the reads on a table of its own, and hold them against each other."""
    with connect(dsn, autocommit=True) as connection:
        table = table_of(connection, "v0")
        table.write_many(make_rows(plan.num_stored), availability_lag=LAG, **WHO)
        connection.execute("VACUUM ANALYZE feature_rows")
        connection.execute(LONG_FORM)
        rng = np.random.default_rng(1)
        entities = [f"E{at:03d}" for at in rng.integers(0, NUM_ENTITIES, plan.num_asked)]
        hours = rng.uniform(0, (time_of(plan.num_stored) - FIRST) / timedelta(hours=1), plan.num_asked)
        asked = [(entity, FIRST + timedelta(hours=hour)) for entity, hour in zip(entities, hours, strict=True)]
        compare_latest(table, asked[:200])
        latest = quantiles(lambda entity: table.get_latest(entity), entities[:2000])
        long_form = quantiles(
            lambda entity: connection.execute(LONG_LATEST, {"entity": entity, "time": NOW}).fetchall(), entities[:2000]
        )
        start = time.perf_counter()
        answers = table.get_point_in_time(asked)
        point_in_time = time.perf_counter() - start
        table.export_parquet(folder)
    kernel = compare_kernel(folder, asked, [answer.values["f00"].value if answer else None for answer in answers])
    return Reads(latest=latest, long_form=long_form, point_in_time=point_in_time, kernel=kernel)


def quantiles(action: Callable[[str], Any], entities: list[str]) -> tuple[float, float]:
    """Median and 99th percentile of the seconds of a call."""
    times = []
    for entity in entities:
        start = time.perf_counter()
        action(entity)
        times.append(time.perf_counter() - start)
    return float(np.median(times)), float(np.quantile(times, 0.99))


def compare_latest(table: FeatureTable, asked: list[tuple[str, datetime]]) -> None:
    for entity, as_of in asked:
        found = table.connection.execute(LONG_LATEST, {"entity": entity, "time": as_of}).fetchall()
        long_form = {name: (value, event, ingest, producer) for name, value, event, ingest, producer, _ in found}
        ours = table.get_latest(entity, as_of=as_of).values.items()
        if {name: (one.value, one.event_time, one.ingest_time, one.producer) for name, one in ours} != long_form:
            raise SystemExit(f"the long form says something else of {entity} at {as_of}")


def compare_kernel(folder: Path, asked: list[tuple[str, datetime]], values: list[Any]) -> float:
    """Seconds of the offline store's way to the same answers."""
    entities, times = zip(*asked, strict=True)
    keys, time_Q = pa.table({"entity_key": entities}), pd.DatetimeIndex(times).as_unit("us").asi8
    history = History(name="v", path=folder, keys=("entity_key",), event_time="event_time", ingest_time="ingest_time")
    for _ in range(2):  # the first compiles
        start = time.perf_counter()
        answers, entity_Q = history.answers(history.open(), keys)
        rows_Q = answers.as_of(entity_Q, time_Q)
        column = read_rows(folder)["f00"].to_numpy()
        found = [None if row == NO_ROW else column[row] for row in rows_Q]
        seconds = time.perf_counter() - start
    if found != values:
        raise SystemExit("the offline store's kernel finds other answers")
    return seconds


def compare(plan: Plan, databases: postgres.Databases, folder: Path) -> Report:
    """Run each contender alone, then the reads."""
    num_common = min(plan.num_rows.values())
    figures = {}
    for at, name in enumerate(CONTENDERS):
        progress(f"writing {plan.num_rows[name]:,} rows: {name}")
        dsn = fresh(databases, f"bench_{at}")
        numbers = [str(number) for number in (plan.num_rows[name], plan.runs, num_common)]
        figures[name] = alone("bench.store", "--contender", name, "--dsn", dsn, "--numbers", *numbers)
        drop(databases, f"bench_{at}")
    if len({figure["checksum"] for figure in figures.values()}) != 1:
        raise SystemExit(f"the contenders wrote different rows, so their times mean nothing: {figures}")
    progress(f"reading {plan.num_stored:,} rows")
    return judge(plan, figures, read(fresh(databases, "bench_read"), plan, folder))


def fresh(databases: postgres.Databases, name: str) -> str:
    with connect(databases.dsn("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    migrate(databases.dsn(name), "feature_repo")
    return databases.dsn(name)


def drop(databases: postgres.Databases, name: str) -> None:
    with connect(databases.dsn("postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        admin.execute("CHECKPOINT")  # the next contender does not pay for this one's pages


def judge(plan: Plan, figures: dict[str, dict[str, Any]], reads: Reads) -> Report:
    """Rows and bars."""
    rate = {name: plan.num_rows[name] / figure["seconds"] for name, figure in figures.items()}
    rows = [
        Row(
            name=f"{name}, {plan.num_rows[name]:,} rows",
            seconds=figure["seconds"],
            peak_mb=figure["peak_mb"],
            more={"rows_per_s": rate[name]},
        )
        for name, figure in figures.items()
    ]
    rows += [_latest("get_latest", reads.latest), _latest("latest from the long form", reads.long_form)]
    for name, seconds in (("get_point_in_time", reads.point_in_time), ("offline store's kernel", reads.kernel)):
        rate_of = {"rows_per_s": plan.num_asked / seconds}
        rows.append(Row(name=f"{name}, {plan.num_asked:,} questions", seconds=seconds, more=rate_of))
    return Report(
        bench="store",
        rows=rows,
        bars=[
            at_least("times executemany's rows/s", ratio(rate[OURS], rate[EXECUTEMANY]), 1),
            at_least("times write_features' rows/s", ratio(rate[OURS], rate[OURS_SINGLY]), 20),
            at_least("times row by row's rows/s", ratio(rate[OURS], rate[ROW_BY_ROW]), 1.5),
            at_least(
                "times faster than the long form's latest read, p50", ratio(reads.long_form[0], reads.latest[0]), 1.5
            ),
        ],
        facts=[
            f"rows of {len(FEATURES)} features, {NUM_ENTITIES} entities, monthly partitions; reads on "
            f"{plan.num_stored:,} rows; same rows and same answers for all"
        ],
    )


def _latest(name: str, seconds: tuple[float, float]) -> Row:
    return Row(name=name, seconds=seconds[0], more={"p50_ms": 1e3 * seconds[0], "p99_ms": 1e3 * seconds[1]})


def main() -> int:
    """Run the bench, or one contender of it."""
    parser = options(__doc__)
    parser.add_argument("--contender", choices=list(CONTENDERS), help="run one alone")
    parser.add_argument("--dsn")
    parser.add_argument("--numbers", nargs=3, type=int, help="rows, runs, and rows that all write")
    chosen = parser.parse_args()
    if chosen.contender:
        print(json.dumps(contend(chosen.contender, chosen.dsn, *chosen.numbers)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder) / "home")
        try:
            with postgres.Hold(settings) as hold:
                report = compare(QUICK if chosen.quick else FULL, hold.databases, Path(folder) / "export")
        finally:
            postgres.remove(settings)
    return publish(report, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
