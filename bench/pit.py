"""Point-in-time retrieval: the store through Feast's API beside Feast's duckdb store, polars, DuckDB and the kernel.

All answer the same question by the same rule (event and ingest time up to the as-of time, latest wins, 10 days' ttl)
from the same Parquet file, each alone in a process, and must come to the same checksum. Polars and DuckDB are given the
fast form of the rule, on the key columns only, which is the quickest right way we found for them; a plain as-of join
would be wrong. The bare kernel starts from arrays in memory: it reads no file, parses no keys and builds no frame.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.report import (
    Report,
    Row,
    alone,
    at_least,
    at_most,
    median_seconds,
    options,
    peak_mb,
    progress,
    publish,
    ratio,
)

NUM_FEATURES = 30
FEATURES = [f"f{at:02d}" for at in range(NUM_FEATURES)]
TTL = timedelta(days=10)
DAY = 86_400_000_000
FIRST = 1_500_000_000_000_000
GROWTH = 4
RESTATED, LATE = 0.05, 0.05

OURS, DUCKDB_STORE, POLARS, DUCKDB, KERNEL = (
    "Perennial, through Feast's API",
    "Feast duckdb, ttl 10 d",
    "polars join_asof",
    "DuckDB ASOF",
    "bare numba kernel",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """``num_entities`` x ``history`` feature rows and ``num_asked`` entity rows."""

    num_entities: int
    history: int
    num_asked: int

    @property
    def num_rows(self) -> int:
        return self.num_entities * self.history

    def grown(self) -> Size:
        """The same entities with a longer history, and as many more questions."""
        return Size(num_entities=self.num_entities, history=GROWTH * self.history, num_asked=GROWTH * self.num_asked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Time all contenders on ``size``, and ours and the kernel on ``small`` and ``large`` (one of them is ``size``)."""

    size: Size
    small: Size
    large: Size
    runs: int  # of ours and the kernel
    peer_runs: int
    slow_runs: int  # of Feast's duckdb store, which takes 10 seconds a run


def _full() -> Plan:
    size = Size(num_entities=1000, history=1310, num_asked=500_000)
    return Plan(size=size, small=size, large=size.grown(), runs=7, peer_runs=5, slow_runs=3)


def _quick() -> Plan:
    small = Size(num_entities=400, history=328, num_asked=50_000)
    return Plan(size=small.grown(), small=small, large=small.grown(), runs=5, peer_runs=2, slow_runs=1)


def write_data(folder: Path, size: Size) -> None:
    """Daily bars in the order they became known: some restated hours later, some days late; questions in any order."""
    rng = np.random.default_rng(0)
    num_restated = int(size.history * RESTATED)
    day = np.arange(size.history - num_restated)
    day = np.concatenate([day, rng.choice(day, num_restated, replace=False)])
    entity_N = np.repeat(np.arange(size.num_entities), size.history)
    event_N = FIRST + np.tile(day, size.num_entities) * DAY
    delay_N = rng.integers(0, DAY // 24, event_N.size)
    delay_N[rng.random(event_N.size) < LATE] += 3 * DAY
    delay_N[np.tile(np.arange(size.history) >= size.history - num_restated, size.num_entities)] += DAY // 2
    order = np.argsort(event_N + delay_N, kind="stable")
    keys = np.array([f"E{at:05d}" for at in range(size.num_entities)])
    columns = {
        "entity_key": pa.array(keys[entity_N[order]]),
        "event_time": _times(event_N[order]),
        "ingest_time": _times((event_N + delay_N)[order]),
        **{name: pa.array(rng.normal(size=event_N.size)) for name in FEATURES},
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "features.parquet", use_dictionary=["entity_key"])
    asked = {
        "row": pa.array(np.arange(size.num_asked)),
        "entity_key": pa.array(keys[rng.integers(0, size.num_entities, size.num_asked)]),
        "event_timestamp": _times(rng.integers(FIRST, FIRST + size.history * DAY, size.num_asked)),
    }
    pq.write_table(pa.table(asked), folder / "asked.parquet")


def _times(micros: np.ndarray) -> pa.Array:
    return pa.array(micros).cast(pa.timestamp("us", "UTC"))


def checksum(row: np.ndarray, columns: list[np.ndarray]) -> str:
    """Exact over all values and where they stand; every missing value counts the same."""
    weight = (2 * row + 1).astype(np.uint64)
    total = 0
    for at, values in enumerate(columns):
        bits = np.where(np.isnan(values), 0.5, values).view(np.uint64)
        total ^= int(np.bitwise_xor.reduce(bits * (weight + np.uint64(2 * at))))
    return f"{total:016x}"


# The contenders: each prepares what is not timed and returns what is, whose result the second function reads back.

Prepared = tuple[Callable[[], Any], Callable[[Any], tuple[np.ndarray, list[np.ndarray]]]]


def through_feast(store: str, folder: Path, **how: Any) -> Prepared:
    """``FeatureStore.get_historical_features(...).to_df()`` with an offline store of type ``store``."""
    if store == "duckdb":
        import ibis  # noqa: F401 (Feast's duckdb extra; Feast itself would hide that it is missing)
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float64

    config = RepoConfig(
        project="pit",
        registry=str(folder / f"{store}.registry"),
        provider="local",
        offline_store={"type": store},
        online_store=None,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    feast = FeatureStore(config=config)
    entity = Entity(name="entity", join_keys=["entity_key"], value_type=ValueType.STRING)
    source = FileSource(
        path=str(folder / "features.parquet"), timestamp_field="event_time", created_timestamp_column="ingest_time"
    )
    schema = [Field(name=name, dtype=Float64) for name in FEATURES]
    feast.apply([entity, FeatureView(name="view", entities=[entity], ttl=TTL, schema=schema, source=source)])
    asked = pq.read_table(folder / "asked.parquet").to_pandas()
    refs = [f"view:{name}" for name in FEATURES]
    return (
        lambda: feast.get_historical_features(asked, refs, **how).to_df(),
        lambda frame: (frame["row"].to_numpy(), [frame[name].to_numpy() for name in FEATURES]),
    )


def polars_asof(folder: Path) -> Prepared:
    """Fast form and as-of join on the key columns, then a gather of the features."""
    import polars as pl

    asked = pl.read_parquet(folder / "asked.parquet").with_columns(T=pl.col("event_timestamp"))
    event, ingest = pl.col("event_time"), pl.col("ingest_time")

    def run() -> pl.DataFrame:
        features = pl.read_parquet(folder / "features.parquet")
        answers = (
            features.lazy()
            .select("entity_key", "event_time", "ingest_time")
            .with_row_index("at")
            .drop_nulls(["event_time", "ingest_time"])
            .with_columns(known=pl.max_horizontal(event, ingest))
            .sort("known", maintain_order=True)
            .filter(event == event.cum_max().over("entity_key"))
            .filter(ingest == ingest.cum_max().over("entity_key", "event_time"))
            .filter(pl.int_range(pl.len()).reverse().over("entity_key", "known") == 0)
        )
        found = (
            asked.lazy()
            .sort("T")
            .join_asof(answers, left_on="T", right_on="known", by="entity_key", check_sortedness=False)
            .with_columns(at=pl.when(pl.col("T") - event <= TTL).then("at"))
            .sort("row")
            .collect()
        )
        return asked.with_columns(features.select(pl.col(FEATURES).gather(found["at"])))

    return run, lambda frame: (frame["row"].to_numpy(), [frame[name].to_numpy() for name in FEATURES])


def duckdb_asof(folder: Path) -> Prepared:
    """The same in SQL: as-of join on the key columns, then a join by row number."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE asked AS FROM '{folder / 'asked.parquet'}'")
    features = f"read_parquet('{folder / 'features.parquet'}', file_row_number = true)"
    sql = f"""
        WITH keyed AS (
            SELECT entity_key, event_time, ingest_time, file_row_number AS nr,
                   greatest(event_time, ingest_time) AS known
            FROM {features} WHERE event_time IS NOT NULL AND ingest_time IS NOT NULL
        ), ranked AS (
            SELECT *, max(ROW(event_time, ingest_time, nr)) OVER (PARTITION BY entity_key ORDER BY known, nr) AS top
            FROM keyed
        ), answers AS (
            SELECT entity_key, known, max(event_time) AS event_time, arg_max(nr, ROW(event_time, ingest_time, nr)) AS nr
            FROM ranked WHERE ROW(event_time, ingest_time, nr) = top GROUP BY entity_key, known
        ), found AS (
            SELECT asked.row, CASE WHEN event_timestamp - INTERVAL 10 DAY <= answers.event_time THEN nr END AS nr
            FROM asked ASOF LEFT JOIN answers
                ON asked.entity_key = answers.entity_key AND asked.event_timestamp >= answers.known
        )
        SELECT found.row, {", ".join(FEATURES)} FROM found LEFT JOIN {features} ON nr = file_row_number ORDER BY row
    """

    def read(table: pa.Table) -> tuple[np.ndarray, list[np.ndarray]]:
        return table["row"].to_numpy(), [table[name].to_numpy() for name in FEATURES]

    return lambda: connection.sql(sql).to_arrow_table(), read


def bare_kernel(folder: Path) -> Prepared:
    """The join and a gather into 30 new columns, everything already in memory as arrays, two threads in the gather."""
    from numba import njit

    from feature_repo.store.join import find_answers

    @njit(nogil=True)
    def gather(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        out = np.empty(rows.size)
        for at in range(rows.size):
            out[at] = values[rows[at]] if rows[at] >= 0 else np.nan
        return out

    features, asked = pq.read_table(folder / "features.parquet"), pq.read_table(folder / "asked.parquet")
    coded = features["entity_key"].combine_chunks().dictionary_encode()
    entity_N = coded.indices.to_numpy().astype(np.int64)
    entity_Q = pc.index_in(asked["entity_key"], value_set=coded.dictionary).to_numpy().astype(np.int64)
    event_N, ingest_N = (features[name].cast(pa.int64()).to_numpy() for name in ("event_time", "ingest_time"))
    time_Q = asked["event_timestamp"].cast(pa.int64()).to_numpy()
    columns = [features[name].to_numpy() for name in FEATURES]
    pool = ThreadPoolExecutor(2)

    def run() -> list[np.ndarray]:
        answers = find_answers(entity_N, event_N, ingest_N, len(coded.dictionary))
        rows = answers.as_of(entity_Q, time_Q, ttl=TTL // timedelta(microseconds=1))
        return list(pool.map(partial(gather, rows=rows), columns))

    return run, lambda result: (asked["row"].to_numpy(), result)


CONTENDERS: dict[str, Callable[[Path], Prepared]] = {
    OURS: partial(through_feast, "feature_repo.store.offline.BitemporalOfflineStore"),
    DUCKDB_STORE: partial(through_feast, "duckdb", filter_by_created_timestamp=True),
    POLARS: polars_asof,
    DUCKDB: duckdb_asof,
    KERNEL: bare_kernel,
}


def contend(name: str, runs: int, folders: list[Path]) -> list[dict[str, Any]]:
    """One contender's figures on each folder's data in turn; a first call is not timed unless it is the only one."""
    figures = []
    for folder in folders:
        try:
            action, read = CONTENDERS[name](folder)
        except ModuleNotFoundError as error:
            return [{"seconds": None, "peak_mb": None, "checksum": f"not run: needs {error.name}"} for _ in folders]
        if runs > 1:
            action()
        seconds, result = median_seconds(action, runs)
        peak = peak_mb()  # before the checksum takes memory of its own
        figures.append({"seconds": seconds, "peak_mb": peak, "checksum": checksum(*read(result))})
    return figures


Figures = dict[tuple[str, Size], dict[str, Any]]


def compare(plan: Plan, folder: Path) -> Report:
    """Write the data and run each contender alone."""
    folders = {size: folder / str(size.num_rows) for size in (plan.small, plan.large)}
    for size, where in folders.items():
        progress(f"writing {size.num_rows:,} feature rows")
        write_data(where, size)
    figures: Figures = {}
    for name in CONTENDERS:
        progress(f"running {name}")
        ours = name in (OURS, KERNEL)
        sizes = list(folders) if ours else [plan.size]
        runs = plan.runs if ours else plan.slow_runs if name == DUCKDB_STORE else plan.peer_runs
        results = alone("bench.pit", "--contender", name, "--runs", str(runs), *(str(folders[size]) for size in sizes))
        figures |= {(name, size): result for size, result in zip(sizes, results, strict=True)}
    return judge(plan, figures)


def judge(plan: Plan, figures: Figures) -> Report:
    """Rows and bars; contenders that disagree are an error, not a slow result."""
    for size in (plan.small, plan.large):
        sums = {fig["checksum"] for (_, at), fig in figures.items() if at == size and fig["seconds"] is not None}
        if len(sums) != 1:
            raise SystemExit(f"the contenders disagree, so their times mean nothing: {figures}")
    time = {name: figures[name, plan.size]["seconds"] for name in CONTENDERS}
    growth = ratio(figures[OURS, plan.large]["seconds"], figures[OURS, plan.small]["seconds"])
    return Report(
        bench="pit",
        rows=[_row(name, size, plan, figure) for (name, size), figure in figures.items()],
        bars=[
            at_least("times faster than Feast duckdb", ratio(time[DUCKDB_STORE], time[OURS]), 10),
            at_least("times faster than polars", ratio(time[POLARS], time[OURS]), 2),
            at_most("times the bare kernel's time", ratio(time[OURS], time[KERNEL]), 2.5),
            at_most(f"time on {GROWTH}x the data / time", growth, 5),
        ],
        facts=[
            f"{plan.size.num_rows:,} feature rows x {NUM_FEATURES} ({RESTATED:.0%} restated, {LATE:.0%} late), "
            f"{plan.size.num_asked:,} entity rows, unless said; medians; same checksum for all that ran"
        ],
    )


def _row(name: str, size: Size, plan: Plan, figure: dict[str, Any]) -> Row:
    rate = None if figure["seconds"] is None else size.num_asked / figure["seconds"]
    label = name if size == plan.size else f"{name} on {size.num_rows:,}"
    more = {"rows_per_s": rate, "checksum": figure["checksum"]}
    return Row(name=label, seconds=figure["seconds"], peak_mb=figure["peak_mb"], more=more)


def main() -> int:
    """Run the bench, or one contender of it."""
    parser = options(__doc__)
    parser.add_argument("--contender", choices=list(CONTENDERS), help="run one alone on data already written")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("folders", nargs="*", type=Path)
    chosen = parser.parse_args()
    if chosen.contender:
        print(json.dumps(contend(chosen.contender, chosen.runs, chosen.folders)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return publish(compare(_quick() if chosen.quick else _full(), Path(folder)), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
