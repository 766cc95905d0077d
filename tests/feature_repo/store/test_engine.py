"""Every engine and number of partitions gives the same answers, with memory for less than the history."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.repo_config import RepoConfig
from pydantic import ValidationError

from feature_repo.store.engine import Engine, Split
from feature_repo.store.join import NO_ROW, IntArray, find_answers
from feature_repo.store.offline import BitemporalOfflineStore
from feature_repo.store.parquet import History, Keys, OfflineStoreError
from tests.feature_repo.store.desk_makers import (
    REFS,
    TICKERS,
    ZERO,
    Desk,
    as_asked,
    ask_at,
    definitions,
    hours,
    random_bars,
    random_questions,
    random_quotes,
    simple_bars,
    stored,
    write_bars,
    write_quotes,
)

# Feast calls what it has offered for years experimental.
pytestmark = pytest.mark.filterwarnings(r"ignore:(On demand|Saving|Retrieving) .* experimental feature:RuntimeWarning")

PARTITIONS = [2, 3, 7]
Desks = Callable[..., Desk]


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desks]:
    """Feature stores over the same files and registry, that differ in the settings of their offline store."""
    folder = tmp_path_factory.mktemp("repo")
    rng = np.random.default_rng(0)
    write_bars(folder, random_bars(rng))
    write_quotes(folder, random_quotes(rng))

    def desk(**settings: Any) -> Desk:
        return Desk(FeatureStore(config=config_of(folder, **settings)), folder)

    first = desk()
    first.feast.apply(definitions())
    yield desk
    first.feast.teardown()


def config_of(folder: Path, **settings: Any) -> RepoConfig:
    return RepoConfig(
        project="desk",
        registry=str(folder / "registry.db"),
        provider="local",
        offline_store={"type": "feature_repo.store.offline.BitemporalOfflineStore", **settings},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


@pytest.fixture(scope="module")
def whole(desks: Desks) -> Desk:
    return desks()


@pytest.fixture(scope="module")
def split(desks: Desks) -> dict[int, Desk]:
    return {partitions: desks(partitions=partitions) for partitions in PARTITIONS}


def write_random(rng: np.random.Generator, folder: Path) -> None:
    write_bars(folder, random_bars(rng))
    write_quotes(folder, random_quotes(rng), parts=int(rng.integers(1, 4)), hive=rng.random() < 0.5)


def test_random_tables_answer_alike_in_any_number_of_partitions(whole: Desk, split: dict[int, Desk]) -> None:
    """Rows, order, types and nulls: two views, composite keys, ttl, ties, every form of the questions, absent keys."""
    rng = np.random.default_rng(41)
    for _ in range(25):
        write_random(rng, whole.folder)
        asked = as_asked(rng, random_questions(rng), whole.folder)
        want = whole.ask(asked, REFS)
        for desk in split.values():
            assert desk.ask(asked, REFS).equals(want)


def test_pandas_gets_the_same_types(whole: Desk, split: dict[int, Desk]) -> None:
    rng = np.random.default_rng(42)
    for num_asked in (None, None, 1, 0):
        write_random(rng, whole.folder)
        asked = random_questions(rng).iloc[:num_asked]
        want = whole.feast.get_historical_features(asked, REFS).to_df()
        for desk in split.values():
            pd.testing.assert_frame_equal(desk.feast.get_historical_features(asked, REFS).to_df(), want)


def test_views_under_other_names_without_entities_and_on_demand(whole: Desk, split: dict[int, Desk]) -> None:
    rng = np.random.default_rng(43)
    for _ in range(4):
        write_bars(whole.folder, random_bars(rng))
        asked = pd.DataFrame(
            {
                "left_key": rng.choice(TICKERS, 9),
                "right_key": rng.choice(TICKERS, 9),
                "event_timestamp": hours(rng.integers(-1, 16, 9).tolist()),
            }
        )
        orders = asked.rename(columns={"left_key": "entity_key"}).assign(lots=2.0)
        pair = whole.feast.get_feature_service("pair")
        want = [
            whole.ask(asked, pair, full_feature_names=True),
            whole.ask(orders, ["bars:price", "order_value:notional", "world:price"], full_feature_names=True),
        ]
        for desk in split.values():
            assert desk.ask(asked, pair, full_feature_names=True).equals(want[0])
            refs = ["bars:price", "order_value:notional", "world:price"]
            assert desk.ask(orders, refs, full_feature_names=True).equals(want[1])


def test_dates_alone_ask_at_the_same_moments(whole: Desk, split: dict[int, Desk]) -> None:
    rng = np.random.default_rng(44)
    span = {"start_date": ZERO.to_pydatetime(), "end_date": (ZERO + timedelta(hours=9)).to_pydatetime()}
    for refs in (["bars:size"], ["quotes:bid", "quotes:depth"], ["world:price"]):
        for _ in range(3):
            write_random(rng, whole.folder)
            want = whole.ask(None, refs, **span)
            for desk in split.values():
                assert desk.ask(None, refs, **span).equals(want)


def pulled(desk: Desk, view: str, keys: list[str], features: list[str], *, latest: bool) -> pa.Table:
    """What a materialisation of the hours 3 to 8 is handed."""
    pull = (
        BitemporalOfflineStore.pull_latest_from_table_or_query
        if latest
        else BitemporalOfflineStore.pull_all_from_table_or_query
    )
    source = desk.feast.get_feature_view(view).batch_source
    times = (source.timestamp_field, source.created_timestamp_column)
    span = [(ZERO + timedelta(hours=at)).to_pydatetime() for at in (3, 8)]
    return pull(desk.feast.config, source, keys, features, *times, *span).to_arrow()


@pytest.mark.parametrize("latest", [True, False])
def test_materialisation_is_handed_the_same_rows(whole: Desk, split: dict[int, Desk], latest: bool) -> None:
    rng = np.random.default_rng(45)
    shapes = [("bars", ["entity_key"], ["size", "levels"]), ("world", [], ["price"])]
    shapes.append(("quotes", ["entity_key", "venue_id"], ["bid_px"]))
    for _ in range(8):
        write_random(rng, whole.folder)
        for shape in shapes:
            want = pulled(whole, *shape, latest=latest)
            for desk in split.values():
                assert pulled(desk, *shape, latest=latest).equals(want)


def test_materialised_and_persisted(desks: Desks) -> None:
    desk = desks(partitions=2)
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10), ("B", 1, 1, 20), ("B", 2, 9, 21)]))
    desk.feast.materialize(ZERO.to_pydatetime(), (ZERO + timedelta(hours=5)).to_pydatetime(), ["bars"])
    served = desk.feast.get_online_features(["bars:size"], [{"entity_key": key} for key in "AB"]).to_dict()
    assert served["size"] == [10, 20]
    job = desk.feast.get_historical_features(ask_at("B", 5, 9), ["bars:size"])
    job.persist(SavedDatasetFileStorage("saved.parquet"))
    assert pq.read_table(desk.folder / "saved.parquet")["size"].to_pylist() == [20, 21]


def test_rows_written_later_are_left_out_in_partitions_too(desks: Desks) -> None:
    desk = desks(partitions=3, written_before=(ZERO + timedelta(hours=5)).to_pydatetime())
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10), ("A", 2, 2, 11), ("B", 1, 1, 20)]))
    path = desk.folder / "bars.parquet"
    written = stored(hours([1, 9, 1]), "us UTC")
    pq.write_table(pq.read_table(path).append_column("written_at", written), path)
    asked = pd.concat([ask_at("A", 8), ask_at("B", 8)], ignore_index=True)
    assert desk.ask(asked, ["bars:size"])["size"].to_pylist() == [10, 20]


@pytest.mark.parametrize("partitions", [1, *PARTITIONS])
@pytest.mark.parametrize(
    ("asked", "refs", "message"),
    [
        (ask_at("A", 1).assign(entity_key=5), ["bars:size"], "entity_key' is int64 in entity_df and string"),
        (ask_at("A", 1).assign(venue=1.5), ["quotes:bid"], "venue_id' is an integer .* fractions"),
        (ask_at("A", 1).assign(venue="x"), ["quotes:bid"], "venue_id' is string in entity_df and int64"),
    ],
)
def test_the_same_questions_are_refused(
    desks: Desks, partitions: int, asked: pd.DataFrame, refs: list[str], message: str
) -> None:
    desk = desks(partitions=partitions)
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10)]))
    write_quotes(desk.folder, random_quotes(np.random.default_rng(1)))
    with pytest.raises(OfflineStoreError, match=message):
        desk.ask(asked, refs)


# Broken variants.


@pytest.fixture
def ties(whole: Desk) -> pd.DataFrame:
    """Questions about tables in which the last of three rows answers, over several row groups and two parts."""
    bars = [(ticker, 1, 1, 10 * at) for at in range(3) for ticker in TICKERS]
    write_bars(whole.folder, simple_bars(bars))
    rows = pd.DataFrame([(ticker, venue) for _ in range(3) for ticker in TICKERS for venue in (1, 11, 111)])
    times = {"event_time": hours([1] * len(rows)), "ingest_time": hours([1] * len(rows))}
    quotes = pd.DataFrame({"entity_key": rows[0], "venue": rows[1], **times, "bid": 1.0, "depth": range(len(rows))})
    write_quotes(whole.folder, quotes, parts=2)
    return rows[[0, 1]].set_axis(["entity_key", "venue"], axis=1).assign(event_timestamp=hours([2] * len(rows)))


def rows_backwards(self: History, keys: Keys, first: int, table: pa.Table) -> tuple[IntArray, ...]:
    """A partition's rows, but not in written order: exact ties go to the wrong row."""
    return tuple(column[::-1] for column in ROWS_OF(self, keys, first, table))


def rows_of_the_batch(self: History, keys: Keys, first: int, table: pa.Table) -> tuple[IntArray, ...]:
    """Rows counted within their batch, not within the dataset."""
    return ROWS_OF(self, keys, 0, table)


ROWS_OF = History._rows_of


@pytest.mark.parametrize("broken", [rows_backwards, rows_of_the_batch])
def test_a_partition_that_reads_its_rows_wrongly_is_caught(
    whole: Desk, split: dict[int, Desk], ties: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    want = whole.ask(ties, REFS)
    assert split[3].ask(ties, REFS).equals(want)
    monkeypatch.setattr(History, "_rows_of", broken)
    assert not split[3].ask(ties, REFS).equals(want)


def dealt_by(hash_of: Callable[[pa.Table], IntArray]) -> Any:
    """``Split.find``, with rows and questions each dealt out by a hash of their own form of the key."""

    def find(
        self: Split, history: History, dataset: Any, queries: pa.Table, time_Q: IntArray, ttl: int | None
    ) -> IntArray:
        head = dataset.to_table(columns=history._head)
        part_N, part_Q = hash_of(head.select(list(history.keys))), hash_of(queries)
        row_Q = np.full(len(time_Q), NO_ROW)
        for part in range(7):
            row_N, asked = np.flatnonzero(part_N % 7 == part), np.flatnonzero(part_Q % 7 == part)
            keys, entity_N = Keys.of(head.take(row_N).select(list(history.keys)))
            answers = find_answers(entity_N, *history._times(head.take(row_N)), keys.size)
            found = answers.as_of(keys.find(queries.take(asked)), time_Q[asked], ttl=ttl)
            row_Q[asked] = np.append(row_N, NO_ROW)[found]
        return row_Q

    return find


def hash_of_bytes(table: pa.Table) -> IntArray:
    """Of each value as it is stored: an int32 and the same int64, a string and its category differ."""
    arrays = [column.combine_chunks() for column in table.columns]
    return np.array(
        [zlib.crc32(repr([(str(a.type), a[at].as_py()) for a in arrays]).encode()) for at in range(len(table))]
    )


def hash_of_values(table: pa.Table) -> IntArray:
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return np.array([zlib.crc32(repr(row).encode()) for row in rows])


def test_a_hash_of_the_stored_value_would_lose_answers(
    whole: Desk, split: dict[int, Desk], ties: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dealing by a hash is right only if equal keys hash alike: venue is int32 in the files and int64 in entity_df."""
    want = whole.ask(ties, REFS)
    monkeypatch.setattr(Split, "find", dealt_by(hash_of_values))
    assert split[7].ask(ties, REFS).equals(want)
    monkeypatch.setattr(Split, "find", dealt_by(hash_of_bytes))
    assert split[7].ask(ties, REFS)["bid"].null_count > 0


# Memory.

NUM_ENTITIES, LENGTH, NUM_FEATURES = 40, 5000, 20


@pytest.fixture(scope="module")
def long_history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """200,000 rows of 20 features, 32 MB, in row groups of 10,000."""
    path = tmp_path_factory.mktemp("history") / "rows.parquet"
    rng, num_rows = np.random.default_rng(0), NUM_ENTITIES * LENGTH
    moments = pa.array(np.arange(num_rows) * 1_000_000).cast(pa.timestamp("us", "UTC"))
    columns = {"key": pa.array(np.arange(num_rows) % NUM_ENTITIES), "event": moments, "ingest": moments}
    features = {f"f{at}": rng.normal(size=num_rows) for at in range(NUM_FEATURES)}
    pq.write_table(pa.table({**columns, **features}), path, row_group_size=10_000)
    return History(name="long", path=path, keys=("key",), event_time="event", ingest_time="ingest")


PEAK = """
import sys
import numpy as np, pyarrow as pa
from pathlib import Path
from feature_repo.store.engine import Engine
from feature_repo.store.parquet import History

history = History(name="long", path=Path(sys.argv[1]), keys=("key",), event_time="event", ingest_time="ingest")
dataset = history.open()
asked = pa.table({"key": np.arange(40)})
with Engine(kind="local", partitions=int(sys.argv[2]), ray_address=None).open() as reader:
    find = lambda: reader.find(history, dataset, asked, np.full(40, 10**12), None)
    table = reader.gather(dataset, [f"f{at}" for at in range(20)], find)
print(pa.default_memory_pool().max_memory(), table["f0"].to_numpy().sum())
"""


def test_partitions_need_memory_for_less_than_the_history(long_history: History) -> None:
    """The peak of Arrow's memory, each in a process of its own; what is asked is small, the history is 32 MB."""
    peaks, sums = [], []
    for partitions in (1, 8):
        command = [sys.executable, "-c", PEAK, str(long_history.path), str(partitions)]
        peak, total = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        peaks.append(int(peak))
        sums.append(total)
    assert sums[0] == sums[1]
    assert peaks[0] > 8_000_000
    assert peaks[1] < peaks[0] / 4


def test_a_partition_holds_its_own_entities_rows_and_no_others(long_history: History) -> None:
    dataset = long_history.open()
    entities = long_history.entities(dataset)
    assert sorted(entities["key"].to_pylist()) == list(range(NUM_ENTITIES))
    held = [long_history.answers_of(dataset, entities.take(np.arange(part, NUM_ENTITIES, 8)))[2] for part in range(8)]
    assert [len(rows) for rows in held] == [NUM_ENTITIES * LENGTH // 8] * 8
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(NUM_ENTITIES * LENGTH))


# Ray, and what is refused.


@pytest.fixture
def ray_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray, with a folder of its own for what it leaves behind; its sockets want a short path."""
    try:
        import ray
    except ImportError:
        reason = "ray is not installed"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    folder = tempfile.mkdtemp(prefix="ray-")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_ray_answers_as_one_process_does(ray_home: Any, desks: Desks, whole: Desk) -> None:
    """First on a Ray that runs already and goes on running, then on one that lives for the retrieval."""
    desk, rng = desks(engine="ray", partitions=2), np.random.default_rng(47)
    ray_home.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for _ in range(2):
        write_random(rng, whole.folder)
        asked = as_asked(rng, random_questions(rng), whole.folder)
        want = whole.ask(asked, REFS)
        assert desk.ask(asked, REFS).equals(want)
    shape = ("quotes", ["entity_key", "venue_id"], ["bid_px"])
    assert pulled(desk, *shape, latest=True).equals(pulled(whole, *shape, latest=True))
    bars = pq.read_table(whole.folder / "bars.parquet")
    pq.write_table(bars.set_column(1, "event_time", bars["tier"]), whole.folder / "bars.parquet")
    with pytest.raises(OfflineStoreError, match=r"^bars.event_time is string, not a time"):
        desk.ask(asked, REFS)
    pq.write_table(bars, whole.folder / "bars.parquet")
    assert ray_home.is_initialized()
    ray_home.shutdown()
    others = {process.pid for process in psutil.Process().children(recursive=True)}
    assert desk.ask(asked, REFS).equals(want)
    assert not ray_home.is_initialized()
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= others


def test_a_ray_that_is_not_there_is_named(ray_home: Any) -> None:
    engine = Engine(kind="ray", partitions=2, ray_address="auto")
    with pytest.raises(OfflineStoreError, match="no Ray answers at 'auto'"), engine.open():
        pass


def test_without_ray_the_message_says_what_to_install(desks: Desks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OfflineStoreError, match=r"pip install 'perennial\[ray\]'; or set engine: local"):
        desks(engine="ray").ask(ask_at("A", 1), ["bars:size"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partitions": 0}, "partitions\n.*greater than 0"),
        ({"partitions": "many"}, "partitions\n.*valid integer"),
        ({"engine": "dask"}, "engine\n.*'local' or 'ray'"),
        ({"ray_address": "auto"}, "ray_address is for engine: ray, got engine: local"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(tmp_path, **settings)
