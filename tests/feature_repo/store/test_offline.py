"""The store through Feast's own API: the rule in every shape of table and question, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from feast.errors import EntityTimestampInferenceException, SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.repo_config import RepoConfig

from feature_repo.store.offline import BitemporalOfflineStore
from feature_repo.store.parquet import OfflineStoreError
from tests.feature_repo.store.desk_makers import (
    BARS,
    BIG,
    QUOTES,
    REFS,
    TICKERS,
    TIME_KINDS,
    TTL,
    ZERO,
    Desk,
    as_asked,
    ask_at,
    definitions,
    expected,
    got,
    hours,
    random_bars,
    random_questions,
    random_quotes,
    rule,
    simple_bars,
    stored,
    write_bars,
    write_quotes,
)

# Feast calls what it has offered for years experimental.
pytestmark = pytest.mark.filterwarnings(r"ignore:(On demand|Saving|Retrieving) .* experimental feature:RuntimeWarning")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("repo")
    rng = np.random.default_rng(0)
    write_bars(folder, random_bars(rng))
    write_quotes(folder, random_quotes(rng))
    config = RepoConfig(
        project="desk",
        registry=str(folder / "registry.db"),
        provider="local",
        offline_store={"type": "feature_repo.store.offline.BitemporalOfflineStore"},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    feast = FeatureStore(config=config)
    feast.apply(definitions())
    yield Desk(feast, folder)
    feast.teardown()


def test_hundreds_of_random_tables_follow_the_rule(desk: Desk) -> None:
    """Both views in one call, composite keys, every feature type, ttl, nulls, ties, duplicates, every time type."""
    rng = np.random.default_rng(20240608)
    for _ in range(300):
        bars, quotes, questions = random_bars(rng), random_quotes(rng), random_questions(rng)
        write_bars(desk.folder, bars, str(rng.choice(TIME_KINDS)))
        write_quotes(
            desk.folder, quotes, str(rng.choice(TIME_KINDS)), parts=int(rng.integers(1, 4)), hive=rng.random() < 0.5
        )
        table = desk.ask(as_asked(rng, questions, desk.folder), REFS)
        assert table["note"].to_pylist() == questions["note"].tolist()
        assert got(table, BARS) == expected(bars, questions, ["entity_key"], BARS, None)
        assert got(table, QUOTES) == expected(quotes, questions, ["entity_key", "venue"], QUOTES, TTL)


def test_a_view_blind_to_ingest_time_is_wrong(desk: Desk) -> None:
    """The very same query, its rows dated by event time alone, breaks the rule on most tables."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(40):
        bars, questions = random_bars(rng), random_questions(rng)
        write_bars(desk.folder, bars)
        answers = got(desk.ask(questions, ["blind:size"]), ["size"])
        wrong += answers != expected(bars, questions, ["entity_key"], ["size"], None)
    assert wrong > 8


def test_nothing_switches_the_rule_off(desk: Desk) -> None:
    bars = simple_bars([("A", 1, 1, 10), ("A", 2, 9, 20)])
    write_bars(desk.folder, bars)
    for flag in (True, False):
        assert sizes(desk.ask(ask_at("A", 5), ["bars:size"], filter_by_created_timestamp=flag)) == [10]


def sizes(table: pa.Table, name: str = "size") -> list[int | None]:
    return table[name].to_pylist()


def test_a_part_written_later_wins_an_exact_tie(desk: Desk) -> None:
    quotes = pd.DataFrame(
        {
            "entity_key": "A",
            "venue": 1,
            "event_time": hours([1, 1, 1]),
            "ingest_time": hours([2, 2, 2]),
            "bid": [1.0, 2.0, 3.0],
            "depth": 5,
        }
    )
    write_quotes(desk.folder, quotes, parts=3)
    assert desk.ask(ask_at("A", 3).assign(venue=1), ["quotes:bid"])["bid"].to_pylist() == [3.0]


def test_hive_partitions_serve_as_keys(desk: Desk) -> None:
    shutil.rmtree(desk.folder / "quotes", ignore_errors=True)
    for venue, bid in ((1, 10.0), (11, 20.0)):
        folder = desk.folder / "quotes" / f"venue_id={venue}"
        folder.mkdir(parents=True)
        times = stored(hours([1]), "us UTC")
        rows = {"entity_key": ["A"], "made": times, "seen": times, "bid_px": [bid], "depth": [1]}
        pq.write_table(pa.table(rows), folder / "rows.parquet")
    asked = ask_at("A", 2, 2, 2).assign(venue=[11, 1, 2])
    assert desk.ask(asked, ["quotes:bid"])["bid"].to_pylist() == [20.0, 10.0, None]


def test_a_part_may_have_more_columns_than_an_older_one(desk: Desk) -> None:
    shutil.rmtree(desk.folder / "quotes", ignore_errors=True)
    (desk.folder / "quotes").mkdir()
    for part, extra in enumerate([{}, {"depth": [7]}]):
        times = stored(hours([part]), "us UTC")
        rows = {"entity_key": ["A"], "venue_id": [1], "made": times, "seen": times, "bid_px": [1.0], **extra}
        pq.write_table(pa.table(rows), desk.folder / "quotes" / f"part-{part}.parquet")
    assert sizes(desk.ask(ask_at("A", 0.5, 1.5).assign(venue=1), ["quotes:depth"]), "depth") == [None, 7]


def test_times_finer_than_a_microsecond_never_leak(desk: Desk) -> None:
    bars = simple_bars([("A", 1, 1, 10)])
    write_bars(desk.folder, bars)
    table = pq.read_table(desk.folder / "bars.parquet")
    late = pa.array([ZERO.value + 3_600_000_000_000 + 500]).cast(pa.timestamp("ns", "UTC"))
    pq.write_table(table.set_column(2, "ingest_time", late), desk.folder / "bars.parquet")
    at = pd.to_datetime(ZERO.value + 3_600_000_000_000 + np.array([400, 1000]), utc=True)
    asked = pd.DataFrame({"entity_key": "A", "event_timestamp": at})
    assert sizes(desk.ask(asked, ["bars:size"])) == [None, 10]


def test_pandas_keeps_integers_and_booleans_exact(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, BIG)]))
    job = desk.feast.get_historical_features(ask_at("A", 0, 5), ["bars:size", "bars:halted", "bars:price"])
    frame = job.to_df()
    assert frame["size"].tolist() == [pd.NA, BIG]
    assert frame["halted"].tolist() == [pd.NA, True]
    assert frame["price"].dtype == np.float64
    assert list(frame.columns) == ["entity_key", "event_timestamp", "size", "halted", "price"]


def test_views_under_other_names_and_keys(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10), ("B", 1, 1, 20)]))
    asked = pd.DataFrame({"left_key": ["A", "B"], "right_key": ["B", "C"], "event_timestamp": hours([2, 2])})
    table = desk.ask(asked, desk.feast.get_feature_service("pair"), full_feature_names=True)
    assert got(table, ["left__size", "right__size"]) == [(10, 20), (20, None)]


def test_a_view_without_entities_is_one_history(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10), ("B", 3, 3, 20)]))
    asked = pd.DataFrame({"event_timestamp": hours([0, 2, 4])})
    assert desk.ask(asked, ["world:price"])["price"].to_pylist() == [None, 10.0, 20.0]


def test_the_only_column_of_times_is_the_as_of_time(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10)]))
    renamed = ask_at("A", 2).rename(columns={"event_timestamp": "decided_at"})
    assert sizes(desk.ask(renamed, ["bars:size"])) == [10]
    with pytest.raises(EntityTimestampInferenceException):
        desk.ask(renamed.assign(other=renamed["decided_at"]), ["bars:size"])


def test_naive_times_in_sql_are_utc(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 2, 2, 10)]))
    times = "unnest([TIMESTAMP '2024-01-01 01:59', TIMESTAMP '2024-01-01 02:00'])"
    sql = f"SELECT 'A' AS entity_key, {times} AS event_timestamp"
    assert sizes(desk.ask(sql, ["bars:size"])) == [None, 10]
    zoned = desk.ask(f"SELECT entity_key, event_timestamp::TIMESTAMPTZ AS event_timestamp FROM ({sql})", ["bars:size"])
    assert zoned.schema.field("event_timestamp").type == pa.timestamp("us", "UTC")
    assert sizes(zoned) == [None, 10]


def test_on_demand_features_are_computed_from_what_was_known(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10), ("A", 2, 9, 20)]))
    asked = ask_at("A", 5, 9).assign(lots=2.0)
    assert desk.ask(asked, ["order_value:notional"])["notional"].to_pylist() == [20.0, 40.0]


def test_a_persisted_dataset_reads_back(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, BIG), ("A", 2, 9, 20)]))
    asked = ask_at("A", 5, 9).assign(lots=2.0)
    job = desk.feast.get_historical_features(asked, ["bars:size", "order_value:notional"])
    storage = SavedDatasetFileStorage("saved/set.parquet")
    desk.feast.create_saved_dataset(job, "set", storage, allow_overwrite=True)
    again = desk.feast.get_saved_dataset("set").to_df()
    assert again["size"].tolist() == [BIG, 20]
    assert again["notional"].tolist() == [2.0 * BIG, 40.0]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    assert [path.name for path in (desk.folder / "saved").iterdir()] == ["set.parquet"]


def test_metadata_says_what_was_asked(desk: Desk) -> None:
    metadata = desk.feast.get_historical_features(ask_at("A", 5, 2).assign(label=1), ["bars:size"]).metadata
    assert (metadata.features, metadata.keys) == (["bars:size"], ["entity_key", "label"])
    assert metadata.min_event_timestamp == datetime(2024, 1, 1, 2, tzinfo=UTC)
    assert metadata.max_event_timestamp == datetime(2024, 1, 1, 5, tzinfo=UTC)


def test_dates_alone_ask_at_every_change_of_what_is_known(desk: Desk) -> None:
    """Row by row the same as asking with an entity_df of those moments; a superseded late row makes none."""
    write_bars(
        desk.folder,
        simple_bars(
            [("A", 1, 1, 10), ("A", 3, 4, 20), ("A", 2, 5, 99), ("A", 3, 6, 21), ("B", 5, 5, 30), ("B", 9, 9, 31)]
        ),
    )
    table = desk.ask(
        None,
        ["bars:size"],
        start_date=datetime(2024, 1, 1, 4, tzinfo=UTC),
        end_date=datetime(2024, 1, 1, 6, tzinfo=UTC),
    )
    moments = [(time.hour, key) for time, key in got(table, ["event_timestamp", "entity_key"])]
    assert moments == [(4, "A"), (5, "B"), (6, "A")]
    assert sizes(table) == [20, 30, 21]
    asked = table.select(["entity_key", "event_timestamp"]).to_pandas()
    assert sizes(desk.ask(asked, ["bars:size"])) == [20, 30, 21]


def test_dates_alone_serve_a_view_without_entities(desk: Desk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10), ("B", 3, 3, 20), ("B", 2, 4, 99)]))
    start, end = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)
    assert desk.ask(None, ["world:price"], start_date=start, end_date=end)["price"].to_pylist() == [10.0, 20.0]


def test_dates_alone_need_views_of_the_same_keys(desk: Desk) -> None:
    rng = np.random.default_rng(1)
    write_quotes(desk.folder, random_quotes(rng))
    with pytest.raises(OfflineStoreError, match="same join keys"):
        desk.ask(None, REFS, start_date=datetime(2024, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("flag", [True, False])
def test_a_view_without_ingest_time_is_refused(desk: Desk, flag: bool) -> None:
    with pytest.raises(OfflineStoreError, match="created_timestamp_column='ingest_time'"):
        desk.ask(ask_at("A", 1), ["undated:size"], filter_by_created_timestamp=flag)
    with pytest.raises(OfflineStoreError, match="created_timestamp_column='ingest_time'"):
        desk.feast.materialize(ZERO.to_pydatetime(), ZERO.to_pydatetime() + TTL, ["undated"])


@pytest.mark.parametrize(
    ("asked", "refs", "message"),
    [
        (ask_at("A", 1).drop(columns="entity_key"), ["bars:size"], "no join key entity_key"),
        (ask_at("A", 1).assign(size=1), ["bars:size"], "size would appear twice"),
        (ask_at("A", 1).assign(entity_key=5), ["bars:size"], "entity_key' is int64 in entity_df and string"),
        (ask_at("A", 1).assign(venue=1.5), ["quotes:bid"], "venue_id' is an integer .* fractions"),
        ("SELECT 'A' AS entity_key, 'noon' AS event_timestamp", ["bars:size"], "event_timestamp is string, not a time"),
    ],
)
def test_questions_that_make_no_sense_are_refused(desk: Desk, asked: Any, refs: list[str], message: str) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10)]))
    write_quotes(desk.folder, random_quotes(np.random.default_rng(1)))
    with pytest.raises(OfflineStoreError, match=message):
        desk.ask(asked, refs)


def test_missing_files_and_columns_are_named(desk: Desk) -> None:
    pq.write_table(pa.table({"entity_key": ["A"]}), desk.folder / "bars.parquet")
    with pytest.raises(OfflineStoreError, match="has no column event_time, ingest_time, size; it has entity_key"):
        desk.ask(ask_at("A", 1), ["bars:size"])
    (desk.folder / "bars.parquet").unlink()
    with pytest.raises(OfflineStoreError, match="bars: no rows at"):
        desk.ask(ask_at("A", 1), ["bars:size"])


def test_parts_that_disagree_are_refused(desk: Desk) -> None:
    quotes = random_quotes(np.random.default_rng(5))
    write_quotes(desk.folder, quotes, "us UTC")
    table = pq.read_table(desk.folder / "quotes").set_column(2, "made", stored(quotes["event_time"], "us"))
    pq.write_table(table, desk.folder / "quotes" / "part-9.parquet")
    with pytest.raises(OfflineStoreError, match="disagree about a column"):
        desk.ask(ask_at("A", 1).assign(venue=1), ["quotes:bid"])


def test_pushing_rows_through_feast_is_refused(desk: Desk) -> None:
    view = desk.feast.get_feature_view("bars")
    with pytest.raises(OfflineStoreError, match=r"store\.api"):
        BitemporalOfflineStore.offline_write_batch(desk.feast.config, view, pa.table({}), None)


def online(desk: Desk) -> dict[str, int | None]:
    rows = [{"entity_key": ticker} for ticker in TICKERS]
    answer = desk.feast.get_online_features(["bars:size"], rows).to_dict()
    return dict(zip(answer["entity_key"], answer["size"], strict=True))


def test_materialising_step_by_step_gives_the_rule_at_each_step(desk: Desk) -> None:
    """Feast writes what it is handed: rows known later are held back, superseded late rows never replace newer ones."""
    rng = np.random.default_rng(11)
    bars = pd.concat([random_bars(rng) for _ in range(3)], ignore_index=True)
    bars["size"] = [BIG + at for at in range(len(bars))]
    write_bars(desk.folder, bars)
    before = ZERO - timedelta(days=1)
    for step in range(0, 18, 2):
        until = ZERO + timedelta(hours=step)
        desk.feast.materialize(before.to_pydatetime(), until.to_pydatetime(), ["bars"])
        asked = pd.DataFrame({"entity_key": TICKERS, "event_timestamp": [until] * 3})
        want = [answer[0] for answer in expected(bars, asked, ["entity_key"], ["size"], None)]
        assert online(desk) == dict(zip(TICKERS, want, strict=True))
        before = until


@pytest.mark.parametrize("seed", range(20))
def test_pulling_the_latest_is_the_rule_at_the_end(desk: Desk, seed: int) -> None:
    bars = random_bars(np.random.default_rng(seed))
    write_bars(desk.folder, bars)
    start, end = ZERO + timedelta(hours=3), ZERO + timedelta(hours=8)
    job = BitemporalOfflineStore.pull_latest_from_table_or_query(
        desk.feast.config,
        desk.feast.get_feature_view("bars").batch_source,
        ["entity_key"],
        ["size", "tier"],
        "event_time",
        "ingest_time",
        start.to_pydatetime(),
        end.to_pydatetime(),
    )
    at_end = {ticker: rule(bars, {"entity_key": ticker}, end, None) for ticker in TICKERS}
    want = {
        ticker: row["tier"]
        for ticker, row in at_end.items()
        if row is not None and max(row["event_time"], row["ingest_time"]) > start
    }
    frame = job.to_df()
    assert list(frame.columns) == ["entity_key", "size", "tier", "event_time", "ingest_time"]
    assert dict(zip(frame["entity_key"], frame["tier"], strict=True)) == want
    assert len(frame) == len(want)
