"""The online store through Feast's own API: after ``materialize`` as of T it serves what was known at T."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import redis
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig

from feature_repo.store.online import BitemporalOnlineStore, BitemporalOnlineStoreConfig, online_view
from feature_repo.store.packed import OnlineStoreError
from tests.feature_repo.store.desk_makers import (
    BARS,
    QUOTES,
    REFS,
    TICKERS,
    ZERO,
    definitions,
    hours,
    random_bars,
    random_quotes,
    simple_bars,
    write_bars,
    write_quotes,
)

STORE = "feature_repo.store.online.BitemporalOnlineStore"
VIEWS = ["bars", "quotes"]
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
# Feast calls what it has offered for years experimental.
pytestmark = pytest.mark.filterwarnings(r"ignore:On demand.* experimental feature:RuntimeWarning")


class OnlineDesk:
    """A feature store with an online store of ours, asked as of a time."""

    def __init__(self, folder: Path, online: dict[str, Any]) -> None:
        self.folder = folder
        config = RepoConfig(
            project="desk",
            registry={"path": str(folder / "registry.db"), "enable_online_feature_view_versioning": True},
            provider="local",
            offline_store={"type": "feature_repo.store.offline.BitemporalOfflineStore"},
            online_store=online,
            entity_key_serialization_version=3,
            repo_path=folder,
        )
        self.feast = FeatureStore(config=config)
        self.feast.apply(definitions())

    def at(self, hour: float) -> datetime:
        """Make it ``hour`` hours after ``ZERO``."""
        now = (ZERO + pd.Timedelta(hours=hour)).to_pydatetime()
        self.feast.config.online_store.as_of = now
        return now

    def materialize(self, hour: float, since: datetime = LONG_AGO, views: list[str] = VIEWS) -> datetime:
        now = self.at(hour)
        self.feast.materialize(since, now, feature_views=views)
        return now

    def forget(self) -> None:
        """An empty online store."""
        views = [self.feast.get_feature_view(name) for name in VIEWS]
        self.online.update(self.feast.config, views, [], [], [], partial=True)

    @property
    def online(self) -> BitemporalOnlineStore:
        return self.feast._get_provider().online_store

    def ask(self, refs: list[str], tickers: list[str], **more: list[Any]) -> pd.DataFrame:
        return self.feast.get_online_features(refs, {"entity_key": tickers, **more}).to_df()

    def sizes(self, *tickers: str) -> list[int | None]:
        return [None if pd.isna(size) else int(size) for size in self.ask(["bars:size"], list(tickers))["size"]]


@pytest.fixture(scope="module", params=["embedded", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnlineDesk]:
    folder = tmp_path_factory.mktemp("repo")
    online: dict[str, Any] = {"type": STORE, "backend": request.param}
    online |= {"path": "online"} if request.param == "embedded" else {"url": request.getfixturevalue("redis_url")}
    rng = np.random.default_rng(0)
    write_bars(folder, random_bars(rng))
    write_quotes(folder, random_quotes(rng))
    desk = OnlineDesk(folder, online)
    yield desk
    desk.feast.teardown()


@pytest.fixture
def desk(shared: OnlineDesk) -> OnlineDesk:
    shared.forget()
    return shared


def plain(value: Any) -> Any:
    """One spelling of null, and lists that compare."""
    if isinstance(value, list | np.ndarray):
        return list(value)
    return None if pd.isna(value) else value


def answers(frame: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    return [tuple(plain(value) for value in row) for row in frame[columns].itertuples(index=False)]


def test_what_is_served_is_what_the_offline_store_says_was_known(desk: OnlineDesk) -> None:
    """Random tables, step by step through time: every feature type, composite keys, ttl, late and restated rows."""
    rng = np.random.default_rng(5)
    pairs = [(ticker, venue) for ticker in [*TICKERS, "absent"] for venue in (1, 11, 111)]
    tickers, venues = (list(part) for part in zip(*pairs, strict=True))
    num_values = 0
    for _ in range(6):
        write_bars(desk.folder, random_bars(rng))
        write_quotes(desk.folder, random_quotes(rng))
        desk.forget()
        since = LONG_AGO
        for hour in np.sort(rng.integers(0, 16, 3)):
            since = desk.materialize(int(hour), since)
            asked = pd.DataFrame({"entity_key": tickers, "venue": venues, "event_timestamp": since})
            want = desk.feast.get_historical_features(asked, REFS).to_df()
            got = desk.ask(REFS, tickers, venue=venues)
            assert answers(got, [*BARS, *QUOTES]) == answers(want, [*BARS, *QUOTES])
            num_values += int(want[[*BARS, *QUOTES]].notna().sum().sum())
    assert num_values > 300


def test_late_and_restated_rows_step_by_step(desk: OnlineDesk) -> None:
    rows = [
        ("A", 1, 1, 10),
        ("A", 2, 2, 20),
        ("A", 1, 3, 11),  # restates a bar that is no longer the last
        ("A", 2, 5, 21),  # restates the last bar
        ("A", 4, 7, 40),  # late
        ("A", 3, 9, 30),  # later still, and superseded before it is known
        ("A", 12, 12, 99),
    ]
    write_bars(desk.folder, simple_bars(rows))
    seen = {}
    for hour in range(11):
        desk.materialize(hour)
        seen[hour] = desk.sizes("A")[0]
    assert list(seen.values()) == [None, 10, 20, 20, 20, 21, 21, 40, 40, 40, 40]


def test_an_earlier_materialisation_repeated_takes_nothing_back(desk: OnlineDesk) -> None:
    write_bars(desk.folder, simple_bars([("A", 1, 1, 10), ("A", 2, 2, 20), ("A", 2, 3, 21)]))
    desk.materialize(3)
    desk.materialize(1)
    assert desk.sizes("A") == [None], "at 1 the value of 3 is not known"
    desk.at(4)
    assert desk.sizes("A") == [21]


def test_a_plain_store_takes_it_back(tmp_path: Path) -> None:
    write_bars(tmp_path, simple_bars([("A", 1, 1, 10), ("A", 2, 2, 20)]))
    write_quotes(tmp_path, random_quotes(np.random.default_rng(0)))
    desk = OnlineDesk(tmp_path, {"type": "sqlite", "path": str(tmp_path / "online.db")})
    for hour in (2, 1):
        desk.feast.materialize(LONG_AGO, (ZERO + pd.Timedelta(hours=hour)).to_pydatetime(), feature_views=["bars"])
    assert desk.sizes("A") == [10]
    desk.feast.teardown()


def test_rows_pushed_in_any_order(desk: OnlineDesk) -> None:
    desk.at(20)
    rng = np.random.default_rng(1)
    rows = [("A", 2, 2, 1), ("A", 3, 9, 2), ("A", 3, 4, 3), ("A", 1, 12, 4), ("B", 1, 1, 5), ("A", 3, 9, 6)]
    for at in [*rng.permutation(5), 5]:
        desk.feast.write_to_online_store("bars", pushed([rows[at]]))
    assert desk.sizes("A", "B", "C") == [6, 5, None]
    desk.at(8)
    assert desk.sizes("A", "B") == [None, 5]


def pushed(rows: list[tuple[str, float, float, int]]) -> pd.DataFrame:
    return simple_bars(rows).astype({"size": "int64"})


def test_a_push_from_the_future_is_refused(desk: OnlineDesk) -> None:
    desk.at(5)
    desk.feast.write_to_online_store("bars", pushed([("A", 5, 5, 1)]))
    for event, ingest in ((6, 5), (5, 6)):
        with pytest.raises(OnlineStoreError, match="1 of 2 rows for bars become known only after"):
            desk.feast.write_to_online_store("bars", pushed([("B", 5, 5, 1), ("A", event, ingest, 2)]))
    assert desk.sizes("A", "B") == [1, None]


def test_without_as_of_the_clock_decides(desk: OnlineDesk) -> None:
    desk.feast.config.online_store.as_of = None
    desk.feast.write_to_online_store("bars", pushed([("A", 5, 5, 1)]))
    coming = 24 * (datetime.now(UTC) + timedelta(days=1) - ZERO).days
    with pytest.raises(OnlineStoreError, match="become known only after"):
        desk.feast.write_to_online_store("bars", pushed([("A", coming + 24, 5, 2)]))
    assert desk.sizes("A") == [1]


def test_a_view_without_a_created_timestamp_is_refused(desk: OnlineDesk) -> None:
    desk.at(20)
    with pytest.raises(OnlineStoreError, match="rows for undated lack an event or ingest time"):
        desk.feast.write_to_online_store("undated", pushed([("A", 5, 5, 1)]))


def test_rows_must_be_complete_and_typed(desk: OnlineDesk) -> None:
    table, now = desk.feast.get_feature_view("quotes"), desk.at(20)
    key = EntityKey(join_keys=["entity_key", "venue"], entity_values=[Value(string_val="A"), Value(int64_val=1)])
    for row, message in (
        ({"bid": Value(double_val=1.0)}, "without feature depth"),
        ({"depth": Value(int64_val=1)}, "without feature bid"),
        ({"bid": Value(int64_val=1), "depth": Value(int64_val=1)}, "bid is a Float64 and was given as int64_val"),
    ):
        with pytest.raises(OnlineStoreError, match=message):
            desk.online.online_write_batch(desk.feast.config, table, [(key, row, now, now)], None)
    done: list[int] = []
    row = {"bid": Value(double_val=1.0), "depth": Value(int64_val=1)}
    naive = now.replace(tzinfo=None)
    desk.online.online_write_batch(desk.feast.config, table, [(key, row, naive, naive)], done.append)
    desk.online.online_write_batch(desk.feast.config, table, [], done.append)
    assert done == [1]
    assert desk.online.online_read(desk.feast.config, table, [key]) == [(now, row)]
    assert desk.online.online_read(desk.feast.config, table, [key], ["depth"]) == [(now, {"depth": row["depth"]})]


def test_the_fast_read_has_the_same_numbers(desk: OnlineDesk) -> None:
    rng = np.random.default_rng(2)
    write_bars(desk.folder, random_bars(rng))
    now = desk.materialize(12)
    view = online_view(desk.feast.get_feature_view("bars"), desk.feast.config)
    assert (view.features, view.others) == (("price",), ("size", "halted", "tier", "levels"))
    found = desk.online.values(desk.feast.config).read_features(view, [*TICKERS, "absent"], now=now)
    want = desk.ask(["bars:price"], [*TICKERS, "absent"])["price"].astype(float)
    assert found.values_NF[:, 0].tolist() == pytest.approx(want.tolist(), abs=0, nan_ok=True)
    assert np.isfinite(found.values_NF).any()


def test_a_view_that_is_gone_is_forgotten(desk: OnlineDesk) -> None:
    desk.at(3)
    for name, row in (("bars", pushed([("A", 1, 1, 10)])), ("quotes", quote())):
        desk.feast.write_to_online_store(name, row)
    assert (desk.sizes("A"), bids(desk)) == ([10], [2.5])
    gone, stays = (desk.feast.get_feature_view(name) for name in VIEWS)
    desk.online.update(desk.feast.config, [gone], [stays], [], [], partial=True)
    assert (desk.sizes("A"), bids(desk)) == ([None], [2.5])


def quote() -> pd.DataFrame:
    times = {"made": hours([1]), "seen": hours([1])}
    return pd.DataFrame({"entity_key": ["A"], "venue": [11], "bid": [2.5], "depth": [5], **times})


def bids(desk: OnlineDesk) -> list[float | None]:
    frame = desk.ask(["quotes:bid"], ["A"], venue=[11])
    return [plain(bid) for bid in frame["bid"]]


def test_apply_and_teardown_forget(tmp_path: Path) -> None:
    write_bars(tmp_path, simple_bars([("A", 1, 1, 10)]))
    write_quotes(tmp_path, random_quotes(np.random.default_rng(0)))
    desk = OnlineDesk(tmp_path, {"type": STORE, "path": str(tmp_path / "online")})
    now = desk.at(3)
    desk.feast.write_to_online_store("bars", pushed([("A", 1, 1, 10)]))
    desk.feast.write_to_online_store("quotes", quote())
    project = desk.online.values(desk.feast.config)
    bars = online_view(desk.feast.get_feature_view("bars"), desk.feast.config)
    assert project.read_features(bars, ["A"], now=now).values_NF.tolist() == [[10.0]]
    gone = [known for known in definitions() if known.name in ("bars", "pair", "order_value")]
    desk.feast.apply([], objects_to_delete=gone, partial=False)
    assert np.isnan(project.read_features(bars, ["A"], now=now).values_NF).all()
    assert bids(desk) == [2.5]
    desk.feast.teardown()
    with sqlite3.connect(tmp_path / "online" / "online.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM packed").fetchall() == [(0,)]
    connection.close()


def test_versions_of_a_view_are_kept_apart(desk: OnlineDesk) -> None:
    """Feast's own versions: one that has other features doesn't meet the first one's values."""
    table = desk.feast.get_feature_view("bars")
    second = FeatureView.from_proto(table.to_proto())
    second.current_version_number = 2
    second.features = [field for field in table.features if field.name == "price"]
    assert online_view(second, desk.feast.config).name == "bars_v2"
    now = desk.at(20)
    key = EntityKey(join_keys=["entity_key"], entity_values=[Value(string_val="A")])
    desk.feast.write_to_online_store("bars", pushed([("A", 1, 1, 10)]))
    row = {"price": Value(double_val=2.5)}
    desk.online.online_write_batch(desk.feast.config, second, [(key, row, now, now)], None)
    assert desk.online.online_read(desk.feast.config, second, [key]) == [(now, row)]
    assert desk.sizes("A") == [10]
    assert desk.ask(["bars@v0:size"], ["A"]).drop(columns="entity_key").to_numpy().tolist() == [[10]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "embedded backend needs 'path' and nothing else, got \\[\\]"),
        ({"backend": "redis", "path": "online"}, "redis backend needs 'url' and nothing else, got \\['path'\\]"),
        ({"path": "p", "url": "redis://h"}, "embedded backend needs 'path' and nothing else"),
        ({"path": "p", "speed": "high"}, "Extra inputs are not permitted"),
        ({"backend": "memory"}, "Input should be 'embedded' or 'redis'"),
        ({"path": "p", "as_of": "2024-01-01T00:00:00"}, "timezone"),
        ({"path": "p", "entry_ttl_seconds": 0}, "greater than 0"),
    ],
)
def test_a_configuration_that_says_nothing_sensible_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BitemporalOnlineStoreConfig(**options)


def test_an_entry_ttl_reaches_redis(redis_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        online = {"type": STORE, "backend": "redis", "url": redis_url, "entry_ttl_seconds": 300}
        write_bars(tmp_path, simple_bars([("A", 1, 1, 10)]))
        write_quotes(tmp_path, random_quotes(np.random.default_rng(0)))
        desk = OnlineDesk(tmp_path, online)
        desk.materialize(3, views=["bars"])
        lives_ms = [client.pttl(key) for key in client.keys("perennial/1/desk/bars*")]
        desk.feast.teardown()
    assert len(lives_ms) == 1
    assert 0 < lives_ms[0] <= 300_000
