"""The feature tables of a run: recorded in Postgres under the market's name, and the folder is the export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from feature_repo.database import connect, migrate
from feature_repo.market.fundamentals import VIEW
from feature_repo.market.schema import Market
from feature_repo.store.api import FeatureTable
from feature_repo.store.record import catch_up
from feature_repo.store.tables import KEY, feature_names, read_rows
from flows.cycle import CycleConfig
from flows.steps import data
from flows.steps.run import Run
from tests.flows.small_market import write_small_market

NOW = datetime(2023, 1, 1, tzinfo=UTC)
MOMENTUM = "momentum_v1"


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    migrate(dsn, "feature_repo")
    with connect(dsn, autocommit=True) as connection:
        yield connection


def run_of(folder: Path, market: Path, name: str, now: datetime = NOW) -> Run:
    return Run(
        config=CycleConfig(market=str(market)),
        cycle_id=f"cycle {now:%d}",
        market=name,
        now=now,
        code="code",
        git_sha="sha",
        features=folder / name / "1d",
        panels=folder / "panels",
        fits=folder / "fits",
        signals=folder / "signals",
        reports=folder / "reports",
    )


def load(run: Run, *figures: tuple[str, float]) -> Market:
    """The run's market, with figures of one company beside its bars."""
    market = data.load(run.config, run.now)
    times = {name: pd.Timestamp("2020-05-01", tz="UTC").as_unit("us") for name in KEY[1:]}
    table = pd.DataFrame(figures, columns=["name", "value"]).assign(entity_key="A0", **times)
    return replace(market, tables={**market.tables, "fundamentals": table})


def sorted_rows(folder: Path) -> pd.DataFrame:
    return read_rows(folder).sort_values(list(KEY), ignore_index=True)


def test_a_runs_tables_are_recorded_and_exported(connection: psycopg.Connection, tmp_path: Path) -> None:
    source = write_small_market(tmp_path / "small", num_assets=2, num_days=150)
    one, two = (run_of(tmp_path, source, name) for name in ("one", "two"))
    market = load(one, ("eps", 1.0))
    absent = data.build_tables(one, market, connection)
    assert data.build_tables(two, market, None) == absent
    views = {path.name for path in two.features.iterdir()}
    assert {MOMENTUM, VIEW} < views
    for view in views:
        pd.testing.assert_frame_equal(sorted_rows(one.features / view), sorted_rows(two.features / view))
        recorded = data.market_view("one", "1d", view)
        assert catch_up(connection, recorded, tmp_path / "anew" / view) == len(read_rows(one.features / view)) > 0
        columns = read_rows(one.features / view).columns
        pd.testing.assert_frame_equal(sorted_rows(tmp_path / "anew" / view)[columns], sorted_rows(one.features / view))
    [(num_writes,)] = connection.execute("SELECT count(*) FROM feature_writes")
    assert num_writes == len(views)


def test_a_later_run_adds_what_is_new_beside_what_a_desk_wrote(connection: psycopg.Connection, tmp_path: Path) -> None:
    source = write_small_market(tmp_path / "small", num_assets=2, num_days=150)
    first, later = (run_of(tmp_path, source, "one", NOW + timedelta(days=days)) for days in (0, 1))
    data.build_tables(first, load(first, ("eps", 1.0)), connection)
    before = read_rows(first.features / MOMENTUM)
    entity, event = before["entity_key"].iloc[-1], before["event_time"].iloc[-1].to_pydatetime()
    name = feature_names(first.features / MOMENTUM)[0]
    desk = FeatureTable(
        connection=connection,
        view=data.market_view("one", "1d", MOMENTUM).name,
        producer_version="sha",
        clock=lambda: NOW + timedelta(hours=1),
    )
    assert desk.write_features(entity, event, {name: 0.5}, producer="desk", run_id="by hand") == 1
    data.build_tables(later, load(later, ("book", 50.0), ("eps", 1.0)), connection)
    after = read_rows(first.features / MOMENTUM)
    assert len(after) == len(before) + 1
    assert after.iloc[-1][["producer", name]].tolist() == ["desk", 0.5]
    figures = read_rows(first.features / VIEW)
    assert figures[["book", "eps"]].fillna(0.0).to_numpy().tolist() == [[0.0, 1.0], [50.0, 1.0]]


def test_a_run_at_an_earlier_moment_records_what_was_known_then(connection: psycopg.Connection, tmp_path: Path) -> None:
    source = write_small_market(tmp_path / "small", num_assets=2, num_days=150)
    run = run_of(tmp_path, source, "one")
    as_of = pd.Timestamp("2019-07-15 21:10", tz="UTC").to_pydatetime()  # the day's close is known at a quarter past
    early = replace(run, config=replace(run.config, as_of=as_of))
    data.build_tables(early, data.load(early.config, NOW), connection)
    known = read_rows(run.features / MOMENTUM)
    assert known["ingest_time"].max() == pd.Timestamp("2019-07-12 21:15", tz="UTC")
    data.build_tables(run, data.load(run.config, NOW), connection)
    rows = read_rows(run.features / MOMENTUM)
    assert len(rows) > len(known)
    assert not rows.duplicated(list(KEY[:2])).any(), "nothing is restated"
