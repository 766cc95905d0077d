"""The store API on a real Postgres: every answer against a list of statements, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.database import connect
from feature_repo.store.api import Answer, FeatureTable, FeatureValue
from feature_repo.store.tables import KEY, TableError, append_rows, read_rows
from flows import postgres
from tests.databases import migrated_database
from tests.feature_repo.store.record_makers import new_view

START = datetime(2024, 1, 31, 20, tzinfo=UTC)  # events an hour apart lie in two partitions
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)
RUN = {"producer": "test", "run_id": "run-1"}
NaN = math.nan


class Clock:
    """Stands still until it is set."""

    def __init__(self, now: datetime = START + 100 * HOUR) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def connection(databases: postgres.Databases) -> Iterator[psycopg.Connection]:
    """To a database that the tests of this file share, each with views of its own."""
    with migrated_database(databases, "feature_repo") as dsn, connect(dsn, autocommit=True) as connection:
        yield connection


def make_table(connection: psycopg.Connection, clock: Callable[[], datetime] | None = None) -> FeatureTable:
    return FeatureTable(connection=connection, view=new_view(), producer_version="abc", clock=clock or Clock())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(connection: psycopg.Connection, clock: Clock) -> FeatureTable:
    return make_table(connection, clock)


def num_rows(table: FeatureTable) -> int:
    found = table.connection.execute("SELECT count(*) FROM feature_rows WHERE view = %s", [table.view]).fetchone()
    return found[0]


def plain(answer: Answer) -> dict[str, Any]:
    return {name: found.value for name, found in answer.values.items()}


def at(hours: float) -> datetime:
    return START + hours * HOUR


# What a read returns.


def test_what_was_written_is_read_with_its_times_versions_and_producer(table: FeatureTable) -> None:
    assert table.write_features("BTC", at(0), {"rsi": 61.25}, availability_lag=HOUR, **RUN) == 1
    answer = table.get_latest("BTC")
    assert answer == Answer(
        entity_key="BTC",
        as_of=at(100),
        values={
            "rsi": FeatureValue(
                name="rsi",
                value=61.25,
                event_time=at(0),
                ingest_time=at(1),
                feature_version=1,
                producer="test",
                producer_version="abc",
            )
        },
    )
    assert answer["rsi"].event_time.tzinfo is UTC
    assert not hasattr(answer["rsi"], "__dict__")
    with pytest.raises(FrozenInstanceError):
        answer["rsi"].value = 1.0


def test_without_a_lag_it_is_known_now(table: FeatureTable, clock: Clock) -> None:
    table.write_features("BTC", at(0), {"x": 1.0}, **RUN)
    assert table.get_latest("BTC")["x"].ingest_time == clock.now
    assert not table.get_latest("BTC", as_of=clock.now - TICK)


def test_the_latest_event_answers_and_the_future_does_not(table: FeatureTable) -> None:
    for hours in (0, 2, 1):
        table.write_features("BTC", at(hours), {"x": float(hours)}, availability_lag=HOUR, **RUN)
    assert plain(table.get_latest("BTC")) == {"x": 2.0}
    assert plain(table.get_latest("BTC", as_of=at(2.5))) == {"x": 1.0}, "2 has happened and is not known yet"
    assert not table.get_latest("BTC", as_of=at(0.5))
    assert not table.get_latest("ETH")


def test_one_answer_for_every_pair_asked_in_the_order_asked(table: FeatureTable) -> None:
    table.write_features("BTC", at(0), {"x": 1.0}, availability_lag=0 * HOUR, **RUN)
    table.write_features("BTC", at(2), {"x": 2.0}, availability_lag=0 * HOUR, **RUN)
    asked = [("BTC", at(3)), ("ETH", at(3)), ("BTC", at(1)), ("BTC", at(-1)), ("BTC", at(3)), ("BTC", at(2))]
    answers = table.get_point_in_time(asked)
    assert [(answer.entity_key, answer.as_of) for answer in answers] == asked
    assert [plain(answer).get("x") for answer in answers] == [2.0, None, 1.0, None, 2.0, 2.0]
    assert table.get_point_in_time([]) == []


def test_names_choose_features_and_unknown_ones_are_refused(table: FeatureTable) -> None:
    table.write_features("BTC", at(0), {"x": 1.0, "y": 2.0}, **RUN)
    table.write_features("ETH", at(0), {"x": 1.0}, **RUN)
    assert plain(table.get_latest("BTC", ["y"])) == {"y": 2.0}
    assert plain(table.get_latest("ETH", ["y", "x"])) == {"y": None, "x": 1.0}, "not given yet"
    with pytest.raises(TableError, match=r"no features \['z'\]; it has \['x', 'y'\]"):
        table.get_latest("BTC", ["z"])
    with pytest.raises(TableError, match=r"no features \['z'\]"):
        table.get_point_in_time([("SOL", at(0))], ["x", "z"])


def test_versions_and_views_are_apart(table: FeatureTable, connection: psycopg.Connection) -> None:
    table.write_features("BTC", at(0), {"x": 1.0}, **RUN)
    table.write_features("BTC", at(0), {"x": 2.0}, feature_version=2, **RUN)
    assert plain(table.get_latest("BTC")) == {"x": 1.0}
    assert table.get_latest("BTC", feature_version=2)["x"].feature_version == 2
    assert not make_table(connection).get_latest("BTC")


# What a write does.


def test_the_same_values_again_are_no_new_row(table: FeatureTable, clock: Clock) -> None:
    features = {"x": 0.1, "y": NaN, "z": [1, 2.5, {"k": None}]}
    for lag in (HOUR, HOUR, None, None):
        clock.now += HOUR
        expected = 1 if lag and clock.now == at(101) else 0
        assert table.write_features("BTC", at(0), features, availability_lag=lag, **RUN) == expected
    assert num_rows(table) == 1


@pytest.mark.parametrize("lag", [HOUR, None])
def test_a_different_value_is_a_restatement_known_now(table: FeatureTable, clock: Clock, lag: timedelta | None) -> None:
    table.write_features("BTC", at(0), {"x": 1.0}, availability_lag=lag, **RUN)
    before, clock.now = clock.now, clock.now + HOUR
    assert table.write_features("BTC", at(0), {"x": 2.0}, availability_lag=lag, **RUN) == 1
    assert table.get_latest("BTC")["x"].ingest_time == clock.now
    assert plain(table.get_latest("BTC", as_of=before)) == {"x": 1.0}, "nothing is overwritten"
    assert num_rows(table) == 2


def test_a_restatement_never_comes_before_a_row_that_is_there(table: FeatureTable, clock: Clock) -> None:
    table.write_features("BTC", at(0), {"x": 1.0}, availability_lag=200 * HOUR, **RUN)
    table.write_features("BTC", at(0), {"x": 2.0}, **RUN)
    clock.now = at(300)
    assert table.get_latest("BTC")["x"].ingest_time == at(200) + TICK


def test_a_partial_write_keeps_the_rest_and_who_said_it(table: FeatureTable) -> None:
    table.write_features("BTC", at(0), {"x": 1.0, "y": 1.0}, availability_lag=HOUR, producer="one", run_id="r")
    table.write_features("BTC", at(0), {"y": 2.0}, availability_lag=3 * HOUR, producer="two", run_id="r")
    answer = table.get_latest("BTC")
    assert plain(answer) == {"x": 1.0, "y": 2.0}
    assert [answer[name].producer for name in "xy"] == ["one", "two"]
    assert [answer[name].ingest_time for name in "xy"] == [at(1), at(3)]


def test_a_backdated_part_is_known_since_its_date_and_also_later(table: FeatureTable) -> None:
    table.write_features("BTC", at(0), {"x": 1.0}, availability_lag=2 * HOUR, **RUN)
    table.write_features("BTC", at(0), {"x": 2.0}, availability_lag=4 * HOUR, **RUN)
    assert table.write_features("BTC", at(0), {"y": 9.0}, availability_lag=3 * HOUR, producer="late", run_id="r") == 2
    asked = table.get_point_in_time([("BTC", at(hours)) for hours in (2, 3, 4, 5)])
    assert [plain(answer) for answer in asked] == [
        {"x": 1.0},
        {"x": 1.0, "y": 9.0},
        {"x": 2.0, "y": 9.0},
        {"x": 2.0, "y": 9.0},
    ]
    assert (asked[3]["y"].producer, asked[3]["y"].ingest_time) == ("late", at(3))
    assert (asked[3]["x"].producer, asked[3]["x"].ingest_time) == ("test", at(4))


def test_a_certificate_sees_what_had_been_written(table: FeatureTable, clock: Clock) -> None:
    table.write_features("BTC", at(0), {"x": 1.0}, availability_lag=HOUR, **RUN)
    run_time, clock.now = clock.now, clock.now + HOUR
    table.write_features("BTC", at(0), {"y": 1.0}, availability_lag=HOUR, **RUN)
    table.write_features("BTC", at(1), {"x": 5.0}, availability_lag=HOUR, **RUN)
    assert plain(table.get_latest("BTC", as_of=at(3))) == {"x": 5.0}
    assert plain(table.get_latest("BTC", as_of=at(1))) == {"x": 1.0, "y": 1.0}
    rebuilt = table.get_point_in_time([("BTC", at(3)), ("BTC", at(1))], written_before=run_time)
    assert [plain(answer) for answer in rebuilt] == [{"x": 1.0}, {"x": 1.0}]
    assert plain(table.get_latest("BTC", written_before=run_time)) == {"x": 1.0}


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(allow_infinity=False), st.integers(-(2**53), 2**53))
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("kl"), inner, max_size=2),
    max_leaves=6,
)


def as_stored(value: Any) -> Any:
    """NaN is null and numbers are floats."""
    if isinstance(value, list):
        return [as_stored(item) for item in value]
    if isinstance(value, dict):
        return {key: as_stored(item) for key, item in value.items()}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return None if math.isnan(value) else float(value)


@settings(max_examples=100)
@given(value=VALUES)
def test_every_value_comes_back_as_it_was(connection: psycopg.Connection, value: Any) -> None:
    one, many = make_table(connection), make_table(connection)
    one.write_features("BTC", at(0), {"x": value}, **RUN)
    many.write_many(frame(entity_key=["BTC"], event_time=[at(0)], x=[value]), **RUN)
    for table in (one, many):
        found = table.get_latest("BTC")["x"].value
        assert repr(found).replace("-0.0", "0.0") == repr(sorted_keys(as_stored(value))).replace("-0.0", "0.0")
        assert table.write_features("BTC", at(0), {"x": value}, **RUN) == 0


def sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("number", [1e22, 1e300, 5e-324, 0.1, 1 / 3, -1.7976931348623157e308, 123456789012345680.0])
def test_numbers_are_exact(table: FeatureTable, number: float) -> None:
    table.write_features("A", at(0), {"x": number}, **RUN)
    table.write_many(frame(entity_key=["B"], event_time=[at(0)], x=[number]), **RUN)
    for entity in "AB":
        found = table.get_latest(entity)["x"].value
        assert isinstance(found, float)
        assert found == number


def test_numpy_is_taken(table: FeatureTable) -> None:
    features = {"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(2), "d": np.bool_(True), "e": np.float64("nan")}
    table.write_features("BTC", pd.Timestamp(at(0)), features, **RUN)
    assert plain(table.get_latest("BTC")) == {"a": 0.5, "b": 3.0, "c": [0.0, 1.0], "d": True, "e": None}


def test_nanoseconds_are_never_known_early(table: FeatureTable) -> None:
    table.write_features("BTC", pd.Timestamp(at(0)) + pd.Timedelta(1), {"x": 1.0}, availability_lag=0 * HOUR, **RUN)
    assert not table.get_latest("BTC", as_of=pd.Timestamp(at(0)) + pd.Timedelta(999))
    assert table.get_latest("BTC", as_of=pd.Timestamp(at(0)) + pd.Timedelta(1000))["x"].event_time == at(0) + TICK


# Against a list of statements.

Step = tuple[str, int, int | None, dict[str, Any]]  # entity, event, lag, features
steps = st.lists(
    st.tuples(
        st.sampled_from("AB"),
        st.integers(0, 2),
        st.one_of(st.none(), st.integers(0, 4)),
        st.dictionaries(st.sampled_from("xy"), st.sampled_from([None, 1.0, 2.0]), min_size=1),
    ),
    min_size=1,
    max_size=7,
)


class Statements:
    """Every (entity, event, feature, date, value, origin, producer, written at) that was said, searched plainly."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, str, datetime, Any, datetime, str, datetime]] = []

    def write(self, step: Step, now: datetime, producer: str) -> None:
        entity, event, lag, features = step
        mine = [one for one in self.all if one[:2] == (entity, event)]
        end = max([now, *(one[3] + TICK for one in mine)])
        date = end if lag is None else at(event + lag)

        def say(names: list[str], when: datetime) -> None:
            self.all += [(entity, event, name, when, features[name], date, producer, now) for name in names]

        def current(name: str) -> Any:
            about = [one for one in self.all if one[:3] == (entity, event, name)]
            return max(about, key=lambda one: one[3]) if about else None

        if lag is None:
            if any(current(name) is None or current(name)[4] != value for name, value in features.items()):
                say(list(features), date)
            return
        taken = {one[2] for one in mine if one[3] == date}
        say([name for name in features if name not in taken], date)
        older = [name for name in features if current(name)[5] <= date]
        if any(current(name)[4] != features[name] for name in older):
            say(older, max(now, end, date + TICK))

    def answer(self, entity: str, time: datetime, written_before: datetime) -> dict[str, tuple[Any, ...]]:
        known = [one for one in self.all if one[0] == entity and one[3] <= time and one[7] <= written_before]
        events = [one[1] for one in known if at(one[1]) <= time]
        about = sorted((one for one in known if events and one[1] == max(events)), key=lambda one: one[3])
        return {one[2]: (one[4], at(one[1]), one[3], one[6]) for one in about}


def found(answer: Answer) -> dict[str, tuple[Any, ...]]:
    return {name: (one.value, one.event_time, one.ingest_time, one.producer) for name, one in answer.values.items()}


@settings(max_examples=40)
@given(steps=steps)
def test_every_read_answers_as_the_list_of_statements(connection: psycopg.Connection, steps: list[Step]) -> None:
    """Values, times and producers, at every moment, and as far as each write, also after all later ones."""
    clock, said = Clock(), Statements()
    table = make_table(connection, clock)
    for number, (entity, event, lag, features) in enumerate(steps):
        clock.now = at(2.5 + number)
        who = {"producer": f"p{number}", "run_id": "r"}
        lag_of = None if lag is None else lag * HOUR
        table.write_features(entity, at(event), features, availability_lag=lag_of, **who)
        said.write((entity, event, lag, features), clock.now, who["producer"])
    times = [at(half / 2) + shift for half in range(-1, 2 * len(steps) + 14) for shift in (-TICK, timedelta(0), TICK)]
    asked = list(itertools.product("AB", times))
    for number in range(len(steps)):
        limit = at(2.5 + number)
        answers = table.get_point_in_time(asked, written_before=limit)
        assert [found(answer) for answer in answers] == [said.answer(*pair, limit) for pair in asked]
    assert table.get_point_in_time(asked) == answers
    entity, time = asked[len(asked) // 3]
    assert table.get_latest(entity, as_of=time) == answers[len(asked) // 3]


# The bulk form.


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype=_dtype(name)) for name, values in columns.items()})


def _dtype(name: str) -> Any:
    return "datetime64[us, UTC]" if name.endswith("_time") else object


bulk = st.lists(
    st.dictionaries(
        st.tuples(st.sampled_from("AB"), st.integers(0, 2), st.integers(0, 4)),
        st.tuples(st.sampled_from([None, 1.0, 2.0]), st.sampled_from([None, 1.0, [2.0]])),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(batches=bulk, names=st.lists(st.sampled_from(["xy", "x", "y"]), min_size=4, max_size=4))
def test_many_are_written_as_one_by_one(
    connection: psycopg.Connection, batches: list[dict[tuple[str, int, int], tuple[Any, Any]]], names: list[str]
) -> None:
    """Each batch's events once, as in one write of many dates only the newest may restate."""
    clock = Clock()
    one, many = make_table(connection, clock), make_table(connection, clock)
    for batch, columns in zip(batches, names, strict=False):
        clock.now += HOUR
        events = {key[:2]: (key[2], dict(zip("xy", values, strict=True))) for key, values in batch.items()}
        num_added = sum(
            one.write_features(
                entity, at(event), {name: said[name] for name in columns}, availability_lag=lag * HOUR, **RUN
            )
            for (entity, event), (lag, said) in events.items()
        )
        rows = frame(
            entity_key=[entity for entity, _ in events],
            event_time=[at(event) for _, event in events],
            ingest_time=[at(event + lag) for (_, event), (lag, _) in events.items()],
            **{name: [said[name] for _, said in events.values()] for name in columns},
        )
        assert many.write_many(rows, **RUN) == num_added
        assert many.write_many(rows, **RUN) == 0
    assert stored(one) == stored(many)


def stored(table: FeatureTable) -> list[tuple[Any, ...]]:
    columns = "entity_key, event_time, ingest_time, revision, features, stated, restates, written_at, producer, run_id"
    query = f"SELECT {columns} FROM feature_rows WHERE view = %s ORDER BY 1, 2, 3, 4"
    return table.connection.execute(query, [table.view]).fetchall()


@pytest.mark.parametrize("seed", range(6))
def test_postgres_and_parquet_keep_one_rule(
    connection: psycopg.Connection, clock: Clock, tmp_path: Path, seed: int
) -> None:
    """Complete rows of all an event's dates or some, also an old one alone: the same rows as ``append_rows``."""
    rng = np.random.default_rng(seed)
    table = make_table(connection, clock)
    lags_of = {event: [1] for event in range(12)}
    for _ in range(8):
        clock.now += HOUR
        lags_of[int(rng.integers(12))].append(10)
        events = [(event, lag) for event in rng.choice(12, 6, replace=False).tolist() for lag in set(lags_of[event])]
        events = [event for event in events if rng.random() < 0.8] or events
        rows = frame(
            entity_key=["AB"[event % 2] for event, _ in events],
            event_time=[at(event) for event, _ in events],
            ingest_time=[at(event + lag) for event, lag in events],
        )
        rows["x"] = rng.integers(0, 3, len(rows)).astype(float)
        rows["y"] = rng.choice([1.0, NaN], len(rows))
        ours = table.write_many(rows, **RUN)
        provenance = {"written_at": clock.now, **RUN, "producer_version": "abc"}
        assert append_rows(tmp_path / "appended", rows.assign(**provenance)) == ours
    assert table.export_parquet(tmp_path / "exported") == num_rows(table) > 20
    appended = read_rows(tmp_path / "appended").sort_values(list(KEY), ignore_index=True)
    exported = read_rows(tmp_path / "exported")
    pd.testing.assert_frame_equal(exported, appended[exported.columns])


def test_without_dates_many_are_known_now(table: FeatureTable, clock: Clock) -> None:
    rows = frame(entity_key=["A", "B"], event_time=[at(0), at(1)], x=[1.0, NaN])
    assert table.write_many(rows, **RUN) == 2
    clock.now += HOUR
    assert table.write_many(rows, **RUN) == 0
    assert table.write_many(rows.assign(x=[1.0, 2.0]), **RUN) == 1
    assert table.get_latest("A")["x"].ingest_time == clock.now - HOUR
    assert table.get_latest("B")["x"].ingest_time == clock.now


def test_arrow_is_taken_and_a_lag_dates_all(table: FeatureTable) -> None:
    times = pa.array([0, 3_600_000_000_000], pa.timestamp("ns", "Europe/Berlin"))
    columns = {"entity_key": pa.array(["A", "A"]).dictionary_encode(), "event_time": times, "n": pa.array([1, None])}
    vectors = pa.array([[1.0, None], None], pa.list_(pa.float32()))
    rows = pa.table({**columns, "v": vectors, "t": pa.array([True, False])})
    assert table.write_many(rows, availability_lag=HOUR, **RUN) == 2
    first = table.get_latest("A", as_of=datetime(1970, 1, 1, 1, tzinfo=UTC))
    assert plain(first) == {"n": 1.0, "v": [1.0, None], "t": True}
    assert plain(table.get_latest("A")) == {"n": None, "v": None, "t": False}


def test_of_equal_keys_in_one_write_the_last_counts(table: FeatureTable) -> None:
    rows = frame(entity_key=["A", "A"], event_time=[at(0), at(0)], x=[1.0, 2.0])
    assert table.write_many(rows, **RUN) == 1
    assert plain(table.get_latest("A")) == {"x": 2.0}


def test_no_rows_are_nothing(table: FeatureTable) -> None:
    assert table.write_many(frame(entity_key=["A"], event_time=[at(0)], x=[1.0]).iloc[:0], **RUN) == 0


def test_a_restated_bulk_goes_on_past_one_batch(table: FeatureTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_repo.store.postgres._ROWS_AT_ONCE", 7)
    rows = frame(entity_key=[f"E{n:03d}" for n in range(50)], event_time=[at(0)] * 50, x=[1.0] * 50)
    assert table.write_many(rows, availability_lag=HOUR, **RUN) == 50
    assert table.write_many(rows.assign(x=2.0), availability_lag=HOUR, **RUN) == 50
    assert {plain(table.get_latest(entity))["x"] for entity in rows["entity_key"]} == {2.0}


# What training reads.


def test_an_export_is_replaced_and_keeps_one_row_a_key(table: FeatureTable, clock: Clock, tmp_path: Path) -> None:
    table.write_features("B", at(0), {"x": 1.0}, availability_lag=HOUR, **RUN)
    table.write_features("A", at(0), {"x": 0.1}, availability_lag=HOUR, **RUN)
    run_time, clock.now = clock.now, clock.now + HOUR
    table.write_features("A", at(0), {"y": 2.0}, availability_lag=HOUR, **RUN)
    assert table.export_parquet(tmp_path / "t") == 2
    rows = read_rows(tmp_path / "t")
    assert list(rows.columns) == [*KEY, "x", "y", "written_at", "producer", "producer_version", "run_id"]
    np.testing.assert_array_equal(rows[["x", "y"]], [[0.1, 2.0], [1.0, NaN]])
    assert rows["entity_key"].tolist() == ["A", "B"]
    assert table.export_parquet(tmp_path / "t", written_before=run_time) == 2
    np.testing.assert_array_equal(read_rows(tmp_path / "t")["y"], [NaN, NaN])
    assert [path.name for path in (tmp_path / "t").glob("*.parquet")] == ["part-000000.parquet"]


def test_the_same_rows_export_to_the_same_bytes(table: FeatureTable, tmp_path: Path) -> None:
    table.write_many(frame(entity_key=["A", "B"], event_time=[at(0)] * 2, x=[1.0, 2.0]), **RUN)
    for name in ("one", "two"):
        table.export_parquet(tmp_path / name)
    one, two = (tmp_path / name / "part-000000.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_an_export_of_what_is_no_number_or_into_a_foreign_folder_is_refused(
    table: FeatureTable, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match="has no rows of version 1"):
        table.export_parquet(tmp_path / "t")
    table.write_features("A", at(0), {"x": 1.0}, **RUN)
    written = pd.DataFrame({"entity_key": ["A"], "event_time": [at(0)], "ingest_time": [at(0)], "written_at": [at(0)]})
    append_rows(tmp_path / "own", written.assign(x=1.0, producer="p", producer_version="v", run_id="r"))
    with pytest.raises(TableError, match=r"no export wrote: \['part-000000.parquet'\]"):
        table.export_parquet(tmp_path / "own")
    assert len(read_rows(tmp_path / "own")) == 1
    table.write_features("A", at(0), {"x": [1.0]}, **RUN)
    with pytest.raises(TableError, match="a feature is no number"):
        table.export_parquet(tmp_path / "t")
    assert not list((tmp_path / "t").glob("*.parquet"))


def test_the_offline_store_reads_an_export_as_the_api_answers(
    connection: psycopg.Connection, clock: Clock, tmp_path: Path
) -> None:
    from feature_repo.store.join import NO_ROW
    from feature_repo.store.parquet import History

    table, rng = make_table(connection, clock), np.random.default_rng(0)
    for _ in range(60):
        features = {name: float(rng.integers(100)) for name in "xy" if rng.random() < 0.7} or {"x": None}
        lag = None if rng.random() < 0.3 else int(rng.integers(6)) * HOUR
        table.write_features(
            str(rng.choice(list("AB"))), at(int(rng.integers(5))), features, availability_lag=lag, **RUN
        )
        clock.now += HOUR / 4
    table.export_parquet(tmp_path)
    asked = [(entity, at(hours / 2)) for entity in "AB" for hours in [*range(-1, 24), *range(200, 240)]]
    history = History(name="v", path=tmp_path, keys=("entity_key",), event_time="event_time", ingest_time="ingest_time")
    entities, times = zip(*asked, strict=True)
    answers, entity_Q = history.answers(history.open(), pa.table({"entity_key": entities}))
    rows_Q = answers.as_of(entity_Q, pd.DatetimeIndex(times).as_unit("us").asi8)
    exported = read_rows(tmp_path)
    for row, answer in zip(rows_Q, table.get_point_in_time(asked, ["x", "y"]), strict=True):
        values = [NaN, NaN] if row == NO_ROW else exported.loc[row, ["x", "y"]].astype(float).tolist()
        expected = [plain(answer).get(name) for name in "xy"]
        np.testing.assert_array_equal(values, [NaN if value is None else value for value in expected])


# What is refused.


def test_a_naive_time_is_refused(table: FeatureTable, clock: Clock) -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001
    with pytest.raises(TableError, match=r"timestamp is datetime.datetime\(2024, 1, 1, 0, 0\); it must be aware"):
        table.write_features("A", naive, {"x": 1.0}, **RUN)
    with pytest.raises(TableError, match=r"as_of .* must be aware"):
        table.get_latest("A", as_of=naive)
    with pytest.raises(TableError, match="must be aware"):
        table.get_point_in_time([("A", naive)])
    with pytest.raises(TableError, match=r"event_time is timestamp.* aware time in every row"):
        table.write_many(pd.DataFrame({"entity_key": ["A"], "event_time": [naive], "x": [1.0]}), **RUN)
    clock.now = naive
    with pytest.raises(TableError, match="the clock's time"):
        table.write_features("A", at(0), {"x": 1.0}, **RUN)
    assert num_rows(table) == 0


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "at least one feature"),
        ({"x": math.inf}, "'x' is inf"),
        ({"x": [1.0, -math.inf]}, "'x' is -inf"),
        ({"x": 2**53 + 1}, "which no finite float64 is"),
        ({"x": 10**400}, "which no finite float64 is"),
        ({"x": at(0)}, "convert it"),
        ({"x": {1: 2}}, "texts as keys"),
        ({"x": "a\x00b"}, "convert it"),
        ({"event_time": 1.0}, "can't be names of features"),
        ({"": 1.0}, "can't be names of features"),
    ],
)
def test_features_that_cannot_be_stored_are_refused(
    table: FeatureTable, features: dict[str, Any], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        table.write_features("A", at(0), features, **RUN)
    assert num_rows(table) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0, math.inf]}, "infinite in 1 of 2 rows"),
        ({"x": [1, 2**60 + 1]}, "'x'"),
        ({"event_time": [pd.NaT, at(0)]}, "1 nulls"),
        ({"entity_key": ["A", None]}, "1 nulls"),
        ({"entity_key": [1, 2]}, "it is a text in every row"),
        ({"producer": "p"}, r"\['producer'\]; drop them"),
    ],
)
def test_frames_that_cannot_be_stored_are_refused(table: FeatureTable, change: dict[str, Any], message: str) -> None:
    rows = pd.DataFrame({"entity_key": ["A", "B"], "event_time": pd.DatetimeIndex([at(0)] * 2), "x": [1.0, 2.0]})
    with pytest.raises(TableError, match=message):
        table.write_many(rows.assign(**change), **RUN)
    with pytest.raises(TableError, match="at least one feature"):
        table.write_many(rows.drop(columns="x"), **RUN)
    with pytest.raises(TableError, match=r"lack the columns \['event_time'\]"):
        table.write_many(rows.drop(columns="event_time"), **RUN)
    with pytest.raises(TableError, match="give one of the two"):
        table.write_many(rows.assign(ingest_time=rows["event_time"]), availability_lag=HOUR, **RUN)
    assert num_rows(table) == 0


def test_a_negative_lag_and_missing_names_are_refused(table: FeatureTable) -> None:
    with pytest.raises(TableError, match="nothing is known before it happens"):
        table.write_features("A", at(0), {"x": 1.0}, availability_lag=-HOUR, **RUN)
    for texts in ({"producer": ""}, {"run_id": ""}):
        with pytest.raises(TableError, match="not an empty one"):
            table.write_features("A", at(0), {"x": 1.0}, **(RUN | texts))
    with pytest.raises(TableError, match="entity_key is ''"):
        table.get_latest("")


def test_a_connection_that_would_not_commit_is_refused(databases: postgres.Databases) -> None:
    with connect(databases.dsn("postgres")) as plain_connection, pytest.raises(TableError, match="autocommit mode"):
        make_table(plain_connection)


# Values that were really restated and withdrawn, over four publications.

VINTAGES = Path(__file__).resolve().parents[3] / "../shared/data/onchain_vintages_2018/onchain_vintages.parquet"


@pytest.mark.skipif(not VINTAGES.exists(), reason="the shared on-chain vintages are not here")
def test_what_was_published_is_what_was_known(table: FeatureTable) -> None:
    """Every publication names only what it changed, and they arrive in any order."""
    rows = pd.read_parquet(VINTAGES).rename(columns={"name": "feature"})
    rows["value"] = rows["value"].mask(rows["withdrawn"])
    rows["entity_key"] += rows["event_time"].dt.strftime(" on %Y-%m-%d")  # so that each day is asked about
    rows = rows[rows.groupby("entity_key")["ingest_time"].transform("nunique") > 1]
    rows = rows[rows["entity_key"].isin(rows["entity_key"].unique()[::350])]
    keys = ["entity_key", "event_time", "ingest_time"]
    said = [(key, dict(zip(part["feature"], part["value"], strict=True))) for key, part in rows.groupby(keys)]
    for number in np.random.default_rng(0).permutation(len(said)).tolist():
        (entity, event, published), features = said[number]
        table.write_features(entity, event, features, availability_lag=published - event, **RUN)
    assert len(said) > 100
    assert rows["withdrawn"].sum() > 10
    publications = [time + shift for time in rows["ingest_time"].unique() for shift in (-pd.Timedelta(TICK), 0 * HOUR)]
    asked = list(itertools.product(rows["entity_key"].unique(), publications))
    for (entity, time), answer in zip(asked, table.get_point_in_time(asked), strict=True):
        known = rows[(rows["entity_key"] == entity) & (rows["ingest_time"] <= time)].sort_values("ingest_time")
        last = known.drop_duplicates("feature", keep="last")
        assert plain(answer) == {row.feature: as_stored(row.value) for row in last.itertuples()}
