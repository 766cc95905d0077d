"""The online store's backends, embedded and Redis: in whatever order rows come, the rule's answer is served."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from feature_repo.store import online_embedded, online_redis
from feature_repo.store.join import find_answers
from feature_repo.store.online_embedded import EmbeddedBackend
from feature_repo.store.online_redis import RedisBackend, connect_redis
from feature_repo.store.online_values import OnlineValues, OnlineView
from feature_repo.store.packed import OnlineStoreError, Packing, Unpacked, times_of
from tests.feature_repo.store import online_writer

ROOT = Path(__file__).resolve().parents[3]
KINDS = ["embedded", "redis"]
LATE = datetime(2030, 1, 1, tzinfo=UTC)
VIEW = OnlineView(name="small_v1", features=("x", "y"))
ENTITIES = ["A", "B", "C", "never written"]


@pytest.fixture(params=KINDS)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty backend's place, of either kind."""
    if request.param == "embedded":
        yield str(tmp_path / "online")
        return
    url = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(url) as client:
        client.flushall()
    yield url


@pytest.fixture
def values(where: str) -> Iterator[OnlineValues]:
    opened = online_writer.open_values(where)
    yield opened
    opened.backend.close()


def micros(times: Any) -> np.ndarray:
    return np.array(times, "datetime64[us]")


def put(values: OnlineValues, rows: np.ndarray, view: OnlineView = VIEW, now: datetime = LATE) -> int:
    """Write (entity code, event, ingest, number) rows; times are seconds since 1970."""
    return values.write_features(
        view,
        [ENTITIES[code] for code in rows[:, 0]],
        event_N=micros(rows[:, 1] * 1_000_000),
        ingest_N=micros(rows[:, 2] * 1_000_000),
        values_NF=np.stack([rows[:, 3], -rows[:, 3]], axis=1).astype(float),
        now=now,
    )


def second(number: float) -> datetime:
    return datetime.fromtimestamp(number, UTC)


def served(found: Unpacked) -> list[tuple[float, float, float] | None]:
    """(event, ingest, number) of each entity."""
    assert np.array_equal(found.values_NF[:, 0], -found.values_NF[:, 1], equal_nan=True)
    assert np.array_equal(np.isnat(found.event_N), np.isnan(found.values_NF[:, 0]))
    times = zip(found.event_N.astype(np.int64), found.ingest_N.astype(np.int64), found.values_NF[:, 0], strict=True)
    return [
        None if np.isnan(number) else (event / 1_000_000, ingest / 1_000_000, float(number))
        for event, ingest, number in times
    ]


def kept(rows: np.ndarray) -> list[tuple[float, float, float] | None]:
    """By brute force: each entity's row with the latest (event, ingest), the last written of equal ones."""
    best: dict[int, tuple[float, float, float]] = {}
    for code, event, ingest, number in rows.tolist():
        if code not in best or (event, ingest) >= best[code][:2]:
            best[code] = (event, ingest, number)
    return [best.get(code) for code in range(len(ENTITIES))]


def random_rows(rng: np.random.Generator) -> np.ndarray:
    """Few distinct times, in no order: late, restated and duplicated rows."""
    num_rows = int(rng.integers(1, 30))
    event, lag = rng.integers(0, 5, num_rows), rng.integers(-1, 4, num_rows)
    return np.stack([rng.integers(0, 3, num_rows), event, event + lag, np.arange(1, num_rows + 1)], axis=1)


def follow_the_rule(values: OnlineValues, num_histories: int) -> None:
    """Any rows, in any order and any batches: after each batch what is served is the answer among all written."""
    rng = np.random.default_rng(7)
    for at in range(num_histories):
        view = OnlineView(name=f"v{at}", features=("x", "y"))
        rows = random_rows(rng)
        cuts = np.sort(rng.integers(0, len(rows) + 1, 3))
        start = 0
        for until in (*cuts.tolist(), len(rows)):
            put(values, rows[int(rng.integers(0, start + 1)) : until], view)  # from before what is new: repeated
            assert served(values.read_features(view, ENTITIES, now=LATE)) == kept(rows[:until])
            start = until


def test_any_order_of_late_restated_and_duplicate_writes_follows_the_rule(values: OnlineValues) -> None:
    follow_the_rule(values, 100)


BROKEN = {
    "embedded, event time only": (
        online_embedded,
        "_WRITE",
        "(excluded.event_time, excluded.ingest_time) >= (packed.event_time, packed.ingest_time)",
        "excluded.event_time > packed.event_time",
    ),
    "embedded, ties to the first": (online_embedded, "_WRITE", "excluded.ingest_time) >=", "excluded.ingest_time) >"),
    "embedded, plain overwrite": (online_embedded, "_WRITE", "packed.expires_at <= :now", "true"),
    "redis, event time only": (online_redis, "_WRITE_NEWER", "{2, 1, 4, 3}", "{2, 1}"),
    "redis, plain overwrite": (online_redis, "_WRITE_NEWER", "return 0", "break"),
    "redis, high halves only": (online_redis, "_WRITE_NEWER", "{2, 1, 4, 3}", "{2, 4}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_comparison_breaks_the_rule(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, constant, right, wrong = BROKEN[name]
    assert right in getattr(module, constant)
    monkeypatch.setattr(module, constant, getattr(module, constant).replace(right, wrong))
    where = str(tmp_path) if module is online_embedded else request.getfixturevalue("redis_url")
    values = online_writer.open_values(where)
    values.backend.drop(b"")
    with pytest.raises(AssertionError):
        follow_the_rule(values, 100)
    values.backend.close()


def test_rows_written_once_known_are_the_offline_answers_at_any_time(values: OnlineValues) -> None:
    """Replay: with the rows known at T written, in any order, T's answers are those of the offline store's join."""
    rng = np.random.default_rng(8)
    for at in range(40):
        rows, now = random_rows(rng), int(rng.integers(0, 9))
        known = rows[rows[:, 1:3].max(axis=1) <= now]
        ttl = int(rng.integers(1, 6))
        view = OnlineView(name=f"v{at}", features=("x", "y"), ttl=timedelta(seconds=ttl))
        put(values, known, view, now=second(now))
        entity, event, ingest, number = rows.T
        answers = find_answers(entity, event, ingest, len(ENTITIES))
        codes = np.arange(len(ENTITIES))
        at_now = answers.as_of(codes, np.full(len(codes), now), ttl=ttl)
        want = [None if row < 0 else (event[row], ingest[row], number[row]) for row in at_now]
        assert served(values.read_features(view, ENTITIES, now=second(now))) == want


def test_times_are_compared_exactly_over_all_of_int64(values: OnlineValues) -> None:
    packing = Packing(("x",))
    edges = [-(2**63) + 1, -(2**32) - 1, -1, 0, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1]
    pairs = [(event, ingest) for event in edges for ingest in edges]
    packed = packing.pack(*np.array(pairs).T, np.zeros((len(pairs), 1)))
    rng = np.random.default_rng(9)
    for at, (one, other) in enumerate(rng.integers(0, len(pairs), (300, 2))):
        key = f"k{at}".encode()
        values.backend.write_newer([(key, packed[one])])
        values.backend.write_newer([(key, packed[other])])
        assert times_of(values.backend.read_many([key])[0] or b"") == max(pairs[one], pairs[other])


def test_a_row_is_not_served_before_it_is_known_nor_after_its_ttl(values: OnlineValues) -> None:
    view = OnlineView(name="v", features=("x", "y"), ttl=timedelta(seconds=10))
    put(values, np.array([[0, 100, 105, 1], [1, 108, 103, 2]]), view)
    seen = {
        t: served(values.read_features(view, ENTITIES[:2], now=second(t))) for t in (104, 105, 108, 110, 110.5, 119)
    }
    one, two = (100.0, 105.0, 1.0), (108.0, 103.0, 2.0)
    assert seen == {
        104: [None, None],
        105: [one, None],
        108: [one, two],
        110: [one, two],
        110.5: [None, two],
        119: [None, None],
    }


def test_rows_that_are_not_known_yet_or_never_are_refused_whole(values: OnlineValues) -> None:
    with pytest.raises(OnlineStoreError, match=r"1 of 2 rows for small_v1 become known only after 1970-01-01T00:00:09"):
        put(values, np.array([[0, 1, 1, 1], [1, 1, 10, 2]]), now=second(9))
    never = {"event_N": micros(["NaT"]), "ingest_N": micros([1]), "values_NF": np.zeros((1, 2))}
    with pytest.raises(OnlineStoreError, match="1 of 1 rows for small_v1 lack an event or ingest time"):
        values.write_features(VIEW, ["A"], **never, now=LATE)
    assert served(values.read_features(VIEW, ENTITIES, now=LATE)) == [None] * 4


def test_times_need_a_zone_and_names_no_slash(values: OnlineValues) -> None:
    with pytest.raises(OnlineStoreError, match="has no time zone"):
        values.read_features(VIEW, ["A"], now=datetime(2024, 1, 1))  # noqa: DTZ001
    with pytest.raises(OnlineStoreError, match="named without '/'"):
        values.read_features(OnlineView(name="a/b", features=("x",)), ["A"], now=LATE)


def test_several_views_come_in_one_round_trip(values: OnlineValues) -> None:
    asked = []

    class Counting:
        def read_many(self, keys: list[bytes]) -> list[bytes | None]:
            asked.append(len(keys))
            return values.backend.read_many(keys)

    views = [OnlineView(name=name, features=("x", "y")) for name in ("v1", "v2")]
    put(values, np.array([[0, 1, 1, 1]]), views[0])
    put(values, np.array([[0, 2, 2, 2], [2, 3, 3, 3]]), views[1])
    counting: Any = Counting()
    one, two = OnlineValues(counting, project="two_writers").read_views(views, ["C", "A", "A"], now=LATE)
    assert asked == [6]
    assert served(one) == [None, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)]
    assert served(two) == [(3.0, 3.0, 3.0), (2.0, 2.0, 2.0), (2.0, 2.0, 2.0)]


def test_thousands_of_entities_in_one_call(values: OnlineValues) -> None:
    names, number = [f"E{at}" for at in range(2500)], np.arange(2500.0)
    times = {"event_N": micros(np.arange(2500)), "ingest_N": micros(np.arange(2500))}
    once = {**times, "values_NF": np.stack([number, -number], axis=1), "now": LATE}
    assert values.write_features(VIEW, names, **once) == 2500
    assert values.write_features(VIEW, names, **once) == 2500, "an equal row is written again"
    older = {**once, "ingest_N": times["ingest_N"] - np.timedelta64(1, "us")}
    assert values.write_features(VIEW, names, **older) == 0
    found = values.read_features(VIEW, [*names, "none"] * 8, now=LATE)
    assert np.array_equal(found.values_NF[:, 0], np.tile([*number, np.nan], 8), equal_nan=True)


@pytest.mark.parametrize("others", [(), ("text",)], ids=["numbers", "with tails"])
def test_missing_entities_are_missing_wherever_they_stand(values: OnlineValues, others: tuple[str, ...]) -> None:
    view = OnlineView(name="v", features=("x", "y"), others=others)
    rows = {"A": (1, b""), "B": (2, b"any bytes"), "C": (3, b"\0" * 300)}
    for entity, (number, tail) in rows.items():
        time, values_NF = micros([number * 1_000_000]), np.array([[number, -number]], float)
        values.write_features(
            view, [entity], event_N=time, ingest_N=time, values_NF=values_NF, tails=[tail] if others else [], now=LATE
        )
    for asked in itertools.product(["A", "B", "C", "none"], repeat=4):
        found = values.read_features(view, asked, now=LATE)
        assert served(found) == [None if name == "none" else (rows[name][0],) * 3 for name in asked]
        assert found.tails == (tuple(rows.get(name, (0, b""))[1] for name in asked) if others else ())


def test_dropping_a_view_leaves_its_namesakes(values: OnlineValues) -> None:
    names = ["v", "v1", "v*", "v?", "v[1]", "w"]
    views = [OnlineView(name=name, features=("x", "y")) for name in names]
    for view in views:
        put(values, np.array([[0, 1, 1, 1]]), view)
    put(OnlineValues(values.backend, project="other"), np.array([[0, 1, 1, 1]]), views[2])
    for dropped in ("v*", "v?", "v[1]", "v"):
        values.drop_view(views[names.index(dropped)])
        names_left = [view.name for view in views if served(values.read_features(view, ["A"], now=LATE)) != [None]]
        assert dropped not in names_left
        assert {"v1", "w"} <= set(names_left)
    other = OnlineValues(values.backend, project="other")
    assert served(other.read_features(views[2], ["A"], now=LATE)) == [(1.0, 1.0, 1.0)]


def test_a_stored_value_of_another_schema_or_altered_is_refused(values: OnlineValues) -> None:
    put(values, np.array([[0, 1, 1, 1]]))
    wider = OnlineView(name=VIEW.name, features=("x", "y", "z"))
    with pytest.raises(OnlineStoreError, match="of A were written with another schema"):
        values.read_features(wider, ENTITIES, now=LATE)
    values.backend.write_newer([(b"perennial/1/two_writers/small_v1/s:A", b"\x7f" * 40)])
    with pytest.raises(OnlineStoreError, match="of A fail their checksum"):
        values.read_features(VIEW, ENTITIES, now=LATE)
    assert put(values, np.array([[0, 1, 1, 1]])) == 0
    values.drop_view(VIEW)
    assert put(values, np.array([[0, 1, 1, 1]])) == 1


def test_an_embedded_entry_expires_by_the_clock_it_was_given(tmp_path: Path) -> None:
    now = [1000.0]
    backend = EmbeddedBackend(tmp_path, entry_ttl=timedelta(seconds=300), clock=lambda: second(now[0]))
    values = OnlineValues(backend, project="p")
    put(values, np.array([[0, 5, 5, 1]]))
    seen = []
    for now[0] in (1000.0, 1299.9, 1300.0):
        seen.append(served(values.read_features(VIEW, ["A"], now=LATE)))
    assert seen == [[(5.0, 5.0, 1.0)], [(5.0, 5.0, 1.0)], [None]]
    assert put(values, np.array([[0, 4, 4, 2]])) == 1, "an expired entry is forgotten, its times too"
    now[0] += 299
    assert put(values, np.array([[0, 3, 3, 3]])) == 0
    assert served(values.read_features(VIEW, ["A"], now=LATE)) == [(4.0, 4.0, 2.0)]
    backend.close()


def test_a_redis_entry_expires(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        for entry_ttl, lowest, highest in ((timedelta(seconds=300), 1, 300_000), (None, -1, -1)):
            put(OnlineValues(RedisBackend(client, entry_ttl=entry_ttl), project="p"), np.array([[0, 5, 5, 1]]))
            assert lowest <= client.pttl("perennial/1/p/small_v1/s:A") <= highest


def test_two_threads_of_writers_leave_the_latest(values: OnlineValues) -> None:
    writers = [threading.Thread(target=online_writer.write, args=(values, seed, 300)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    check_latest(values, np.concatenate([online_writer.rows_of(seed, 300) for seed in (1, 2)]))


def check_latest(values: OnlineValues, rows: np.ndarray) -> None:
    found = values.read_features(online_writer.VIEW, online_writer.ENTITIES, now=LATE)
    want = [max(row for row in rows.tolist() if row[2] == entity) for entity in range(8)]
    assert found.values_NF.astype(int).tolist() == want
    assert found.event_N.astype(np.int64).tolist() == [row[0] for row in want]
    assert found.ingest_N.astype(np.int64).tolist() == [row[1] for row in want]


def start_writer(where: str, seed: int, num_rows: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", online_writer.__name__, where, str(seed), str(num_rows)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_processes_of_writers_leave_the_latest(where: str) -> None:
    writers = [start_writer(where, seed, 300) for seed in (1, 2)]
    for writer in writers:
        assert writer.communicate()[0].splitlines()[-1] == "299"
    values = online_writer.open_values(where)
    check_latest(values, np.concatenate([online_writer.rows_of(seed, 300) for seed in (1, 2)]))
    values.backend.close()


def test_a_killed_writer_leaves_all_that_it_said_was_written(where: str) -> None:
    writer = start_writer(where, 3, 100_000)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 200:
            break
    writer.send_signal(signal.SIGKILL)
    told = [200, *(int(line) for line in writer.communicate()[0].split("\n")[:-1])]
    values = online_writer.open_values(where)
    rows = online_writer.rows_of(3, 100_000)
    found = values.read_features(online_writer.VIEW, online_writer.ENTITIES, now=LATE).values_NF.astype(int).tolist()
    told_rows, perhaps = rows[: told[-1] + 1], rows[: told[-1] + 2]
    for entity in range(8):
        some = [[max(row for row in part.tolist() if row[2] == entity)] for part in (told_rows, perhaps)]
        assert [found[entity]] in some
    online_writer.write(values, 4, 20)
    values.backend.close()
    if "://" not in where:
        with sqlite3.connect(f"{where}/online.sqlite") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_opens_connections_of_its_own(values: OnlineValues) -> None:
    """The child's end must not close what the parent has open."""
    put(values, np.array([[0, 1, 1, 1]]))
    child = os.fork()
    if child == 0:
        found = []
        try:
            found = served(values.read_features(VIEW, ["A"], now=LATE))
            put(values, np.array([[1, 2, 2, 2]]))
            values.backend.close()
        finally:
            os._exit(0 if found == [(1, 1, 1)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    put(values, np.array([[2, 3, 3, 3]]))
    assert served(values.read_features(VIEW, ["A", "B", "C"], now=LATE)) == [(n, n, n) for n in (1.0, 2.0, 3.0)]


def test_a_store_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    gone = OnlineValues(connect_redis(f"unix://{tmp_path}/none.sock"), project="p")
    for call in (lambda: gone.read_features(VIEW, ["A"], now=LATE), lambda: put(gone, np.array([[0, 1, 1, 1]]))):
        with pytest.raises(OnlineStoreError, match=r"Redis did not answer \(ConnectionError"):
            call()
    with pytest.raises(OnlineStoreError, match="Redis url is not understood"):
        connect_redis("http://localhost")
    (tmp_path / "online.sqlite").write_text("no database" * 100)
    with pytest.raises(OnlineStoreError, match="file is not a database; when it is damaged, delete it"):
        EmbeddedBackend(tmp_path)


def test_the_fast_path_does_without_feast() -> None:
    """Importing Feast takes seconds."""
    modules = ("online_values", "online_embedded", "online_redis", "read_through")
    imports = "; ".join(f"import feature_repo.store.{name}" for name in modules)
    subprocess.run(
        [sys.executable, "-c", f"{imports}; import sys; assert 'feast' not in sys.modules"], cwd=ROOT, check=True
    )
