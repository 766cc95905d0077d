"""Evaluation: on time or caught up the same, idempotent, and no variant's trouble is another's."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
from rich.console import Console

from feature_repo.database import connect, migrate
from flows import evaluate_flow, postgres, stages
from flows.evaluate import evaluate_market, render
from flows.settings import Settings
from flows.stages import Decision
from flows.steps import data
from flows.steps import evaluate as step
from flows.steps.evaluate import EvaluateError, Evaluation, due
from tests.flows.evaluation_desk import ENDS, Desk, Inline, bar_known, variants, write_market
from tests.training.rating.stage_desk import Desk as Registry
from training.engine import Pool
from training.evaluation import score_models
from training.latency import latency_p99
from training.rating.promotion import Assignment, assignments
from training.worker import Gone

FIRST = -4
"""The bar whose closing the first fits were made after; the three after it are new."""
SAME = ["variant", "model_version", "event_time", "entity_key", "score", "confidence"]
BOOSTED, VAR, NETWORK = (variant.id for variant in variants())

Connections = Callable[[], psycopg.Connection]


@pytest.fixture(scope="module")
def connections(databases: postgres.Databases) -> Iterator[Connections]:
    """Opens databases of their own."""
    with ExitStack() as stack:
        admin = stack.enter_context(connect(databases.dsn("postgres"), autocommit=True))

        def opened() -> psycopg.Connection:
            name = f"test_evaluate_{uuid.uuid4().hex}"  # it goes with the session's server: to drop it takes seconds
            admin.execute(f"CREATE DATABASE {name}")
            for package in ("feature_repo", "training"):
                migrate(databases.dsn(name), package)
            return stack.enter_context(connect(databases.dsn(name), autocommit=True))

        yield opened


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, connections: Connections) -> Desk:
    """A home after its first cycle."""
    home = tmp_path_factory.mktemp("fitted")
    desk = Desk(home=home / "home", folder=write_market(home / "small"), connection=connections())
    desk.fit(bar_known(FIRST), variants())
    return desk


@pytest.fixture(scope="module")
def on_time(fitted: Desk, connections: Connections, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Every bar evaluated when it was new, but for a cycle a night after the first of them."""
    desk = fitted.copy(tmp_path_factory.mktemp("on_time") / "home", connections())
    for number in (-3, -2, -1):
        done = desk.evaluate(bar_known(number))
        assert (done.num_scored, done.num_bars, done.num_late, done.failed) == (3, 1, 0, {})
        if number == -3:
            desk.fit(bar_known(number) + timedelta(hours=8), variants(), seed=8)
    return desk


@pytest.fixture
def late(fitted: Desk, connections: Connections, tmp_path: Path) -> Desk:
    """The same cycles, and no evaluation yet."""
    desk = fitted.copy(tmp_path / "late", connections())
    desk.fit(bar_known(-3) + timedelta(hours=8), variants(), seed=8)
    return desk


@pytest.fixture
def home(fitted: Desk, connections: Connections, tmp_path: Path) -> Desk:
    """A home after its first cycle, to be disturbed."""
    return fitted.copy(tmp_path / "home", connections())


def forecast_now(desk: Desk) -> pd.DataFrame:
    """What evaluations said, without what the second cycle said itself of bars before it."""
    rows = desk.said(since=-3)
    second = {models[-1].key for models in desk.models().values()}
    return rows[~(rows["model_version"].isin(second) & (rows["event_time"] <= ENDS[-3]))].reset_index(drop=True)


# ---- on time and late ------------------------------------------------------------------------------------------------


def test_caught_up_is_as_on_time(on_time: Desk, late: Desk) -> None:
    done = late.evaluate(bar_known(-1))
    assert (done.num_scored, done.num_bars, done.num_late, done.failed) == (3, 3, 6, {})
    one, other = forecast_now(on_time), forecast_now(late)
    assert len(one) == 3 * 3 * 4
    pd.testing.assert_frame_equal(one[SAME], other[SAME], check_exact=True)
    assert (other["made_at"] > pd.Timestamp(bar_known(-1))).all()  # and it says that it is late
    assert (one.loc[one["event_time"] == ENDS[-3], "made_at"] < pd.Timestamp(bar_known(-2))).all()


def test_each_bar_has_the_model_that_was_newest_before_it(on_time: Desk) -> None:
    rows = forecast_now(on_time)
    for variant, (first, second) in on_time.models().items():
        by_bar = rows[rows["variant"] == variant].groupby("event_time")["model_version"].unique()
        assert [list(keys) for keys in by_bar] == [[first.key], [second.key], [second.key]]


def test_after_a_rollback_the_version_that_holds_the_stage_speaks(home: Desk) -> None:
    (old,) = home.models()[BOOSTED]
    home.fit(bar_known(-3), [each for each in variants() if each.id == BOOSTED], seed=8)
    (new,) = (each for each in home.models()[BOOSTED] if each.key != old.key)
    back = Assignment(
        variant=BOOSTED,
        version=1,
        stage="Production",
        allocation=1.0,
        since=bar_known(-2),
        by="anna",
        reason="a rollback",
        training_key=old.key,
    )
    home.evaluate(bar_known(-1), held={BOOSTED: back})
    said = forecast_now(home)
    by_bar = said[said["variant"] == BOOSTED].groupby("event_time")["model_version"].unique()
    assert [list(keys) for keys in by_bar] == [[old.key], [new.key], [old.key]]


def test_with_the_newest_model_it_would_be_hindsight(
    on_time: Desk, late: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "speakers", lambda models, times_T: np.full(len(times_T), len(models) - 1))
    late.evaluate(bar_known(-1))
    assert forecast_now(late)[SAME].shape != forecast_now(on_time)[SAME].shape


def test_with_the_newest_data_it_would_be_hindsight(on_time: Desk, late: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar's features as they are known the next noon, after one of them was restated."""
    real = data.point_in_time_panel
    _, market = late.run(bar_known(-1))
    assert market.tables["bars_1d"].duplicated(["entity_key", "event_time"]).sum() == 1

    def at_noon(name, market, grid, *rest, **more):
        later = grid.sample_times_T + np.timedelta64(15, "h")
        return real(name, market, replace(grid, sample_times_T=later), *rest, **more)

    monkeypatch.setattr(data, "point_in_time_panel", at_noon)
    late.evaluate(bar_known(-1))
    one, other = forecast_now(on_time), forecast_now(late)
    assert not np.array_equal(one["score"], other["score"])


def test_again_changes_nothing(on_time: Desk) -> None:
    before = {path: path.read_bytes() for path in on_time.signals.root.rglob("*") if path.is_file()}
    done = on_time.evaluate(bar_known(-1) + timedelta(hours=1))
    assert (done.num_scored, done.num_signals, done.failed) == (0, 0, {})
    assert {path: path.read_bytes() for path in on_time.signals.root.rglob("*") if path.is_file()} == before
    assert "panels" not in done.seconds  # and nothing was built


def test_what_was_kept_of_a_killed_evaluation_is_not_said_anew(on_time: Desk, late: Desk) -> None:
    """It was killed after it had measured, and before it had told: times are there, some signals are not."""
    late.evaluate(bar_known(-1))
    whole = late.said(since=-3)
    for path in late.signals.root.glob(f"{BOOSTED}/*-live.parquet"):
        path.unlink()
        shutil.copy(on_time.signals.root / BOOSTED / path.name, path)
    shutil.rmtree(late.signals.root / NETWORK)
    shutil.copytree(on_time.signals.root / NETWORK, late.signals.root / NETWORK)
    for path in late.signals.root.glob(f"{NETWORK}/*-live.parquet"):
        rows = pd.read_parquet(path)
        rows[rows["event_time"] < ENDS[-2]].to_parquet(path, index=False)
    assert late.evaluate(bar_known(-1)).num_scored == 1
    pd.testing.assert_frame_equal(late.said(since=-3)[SAME], whole[SAME], check_exact=True)


# ---- who is not well -------------------------------------------------------------------------------------------------


def test_a_tampered_model_is_refused_with_its_reason_and_the_others_go_on(home: Desk) -> None:
    [model] = home.models()[BOOSTED]
    file = model.folder / "model.json"
    file.write_bytes(file.read_bytes() + b" ")
    done = home.evaluate(bar_known(-3))
    assert set(done.failed) == {BOOSTED}
    assert "is not what was saved (changed: " in done.failed[BOOSTED]
    assert set(home.said(since=-3)["variant"]) == {VAR, NETWORK}
    file.write_bytes(file.read_bytes()[:-1])
    assert home.evaluate(bar_known(-3)).num_scored == 1  # it was not given up
    assert set(home.said(since=-3)["variant"]) == {BOOSTED, VAR, NETWORK}


def test_a_model_put_in_anothers_place_is_refused(home: Desk) -> None:
    model, other = (home.models()[name][0] for name in (BOOSTED, NETWORK))
    shutil.rmtree(model.folder)
    shutil.copytree(other.folder, model.folder)
    done = home.evaluate(bar_known(-3))
    assert list(done.failed) == [BOOSTED]
    assert f"holds a fit of {NETWORK}" in done.failed[BOOSTED]
    assert set(home.said(since=-3)["variant"]) == {VAR, NETWORK}


def test_one_without_a_recipe_is_told_of(home: Desk) -> None:
    [model] = home.models()[VAR]
    (model.folder / "recipe.json").unlink()
    done = home.evaluate(bar_known(-3))
    assert "nobody knows when it was made" in done.failed[VAR]
    assert (done.num_variants, done.num_scored) == (3, 2)


def test_parameters_of_entities_need_the_panel_that_names_them(home: Desk) -> None:
    shutil.rmtree(Settings(home=home.home).panels / home.models()[VAR][0].panel_fingerprint[:16])
    done = home.evaluate(bar_known(-3))
    assert "nobody knows which entities its parameters belong to" in done.failed[VAR]
    assert done.num_scored == 2


def test_a_listing_since_the_fit_disturbs_nobody(home: Desk, on_time: Desk) -> None:
    """The newcomer stands first among the entities: parameters of entities must not slip by one."""
    file = home.folder / "bars_1d.parquet"
    bars = pd.read_parquet(file)
    newcomer = bars[(bars["entity_key"] == "A0") & (bars["event_time"] >= ENDS[-300])].assign(entity_key="A")
    pd.concat([newcomer, bars], ignore_index=True).to_parquet(file, index=False)
    assert home.evaluate(bar_known(-3)).failed == {}
    rows, before = home.said(since=-3), on_time.said(since=-3)
    before = before[(before["event_time"] == ENDS[-3]) & before["model_version"].isin(rows["model_version"])]
    known = rows[rows["entity_key"] != "A"].reset_index(drop=True)
    pd.testing.assert_frame_equal(known[SAME], before[SAME].reset_index(drop=True), check_exact=True)
    assert set(rows.loc[rows["entity_key"] == "A", "variant"]) == {BOOSTED, NETWORK}


class Hanging(Inline):
    """A worker in this process that one variant's model takes too long in."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.parts: list[int] = []

    def ask(self, question: bytes) -> bytes | Gone:
        run, tasks = pickle.loads(question)
        if run is not score_models:
            return super().ask(question)
        self.parts.append(len(tasks))
        if self.variant in [task.model.variant for task in tasks]:
            return Gone("no answer within 300 s", again=False)
        return super().ask(question)


def test_a_model_that_hangs_is_told_of_and_the_others_go_on(home: Desk) -> None:
    worker = Hanging(BOOSTED)
    done = home.evaluate(bar_known(-3), Pool([worker]))
    assert worker.parts == [2, 1, 1, 1]  # momentum's together, ohlcv's, and each of those that were lost
    assert done.failed == {BOOSTED: "no answer within 300 s"}
    assert set(home.said(since=-3)["variant"]) == {VAR, NETWORK}


def test_a_bar_without_a_forecast_is_not_asked_for_for_ever(home: Desk) -> None:
    """A bar at which nothing of the pipeline is known: there is nothing to say, and that is on record."""
    real = data.point_in_time_panel

    def blind(*args, **more):
        panel = real(*args, **more)
        x_TNF = panel.x_TNF.copy()
        x_TNF[-1] = np.nan
        return replace(panel, x_TNF=x_TNF, returns_TN=np.full_like(panel.returns_TN, np.nan))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "point_in_time_panel", blind)
        assert home.evaluate(bar_known(-3)).num_signals == 0
    assert home.evaluate(bar_known(-3)).num_bars == 0


# ---- when a bar is due -----------------------------------------------------------------------------------------------


def test_a_bar_that_is_half_there_is_waited_for(home: Desk) -> None:
    """One asset comes twenty minutes after the others; what is said of a bar stays, so it must see all of it."""
    file = home.folder / "bars_1d.parquet"
    bars = pd.read_parquet(file)
    tardy = (bars["entity_key"] == "A2") & (bars["event_time"] == ENDS[-3])
    bars.loc[tardy, "ingest_time"] += pd.Timedelta("20min")
    bars.to_parquet(file, index=False)
    early = ENDS[-3].to_pydatetime() + timedelta(minutes=15)
    done = home.evaluate(early)
    assert (done.num_bars, done.waits_for) == (0, ENDS[-3].isoformat())
    assert home.evaluate(early + timedelta(minutes=25)).num_signals == 12


def test_who_is_later_than_ever_is_not_waited_for(home: Desk) -> None:
    _, market = home.run(bar_known(-3))
    grid = data.market_grid(market, "1d")
    close_TN = grid.close_TN.copy()
    close_TN[-1, 0] = np.nan
    half, all_of_it = replace(grid, close_TN=close_TN), len(grid.event_times_T)
    assert due(grid, bar_known(-3)) == all_of_it
    assert due(half, ENDS[-3].to_pydatetime() + timedelta(minutes=15)) == all_of_it - 1
    assert due(half, ENDS[-3].to_pydatetime() + timedelta(minutes=16)) == all_of_it
    gone_TN = close_TN.copy()
    gone_TN[-2, 0] = np.nan  # it was not there the day before either
    assert due(replace(half, close_TN=gone_TN), ENDS[-3].to_pydatetime()) == all_of_it


# ---- the whole way ---------------------------------------------------------------------------------------------------


def test_latencies_are_kept_and_come_to_a_percentile(on_time: Desk) -> None:
    rows = on_time.connection.execute(
        "SELECT market, variant, event_time, latency_ms, num_signals FROM evaluated_bars ORDER BY variant, event_time"
    ).fetchall()
    assert len(rows) == 9
    assert {row[0] for row in rows} == {"small"}
    assert [row[2] for row in rows[:3]] == [end.to_pydatetime() for end in ENDS[-3:]]
    assert all(latency > 0 and num == 4 for *_, latency, num in rows)
    assert latency_p99(on_time.connection, "small") == {}  # three are too few


def test_before_the_first_cycle_it_says_what_to_do(
    connections: Connections, databases: postgres.Databases, tmp_path: Path
) -> None:
    desk = Desk(home=tmp_path / "home", folder=write_market(tmp_path / "small"), connection=connections())
    with pytest.raises(EvaluateError, match=r"no variant has a live fit for 1d bars of market 'small'.*perennial run"):
        desk.evaluate(bar_known(-1))
    config = desk.run(bar_known(-1))[0].config
    with pytest.raises(EvaluateError, match="there is no model in"):
        evaluate_market(Settings(home=tmp_path / "none"), config, clock=lambda: bar_known(-1))


_COMMAND = """
import typer
from flows.evaluate_command import register

app = typer.Typer()
register(app)
app()
"""


def test_whatever_its_stage_a_variant_is_evaluated(
    home: Desk, databases: postgres.Databases, session_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is archived, one trades, one never did; by the command, and by the flow when nothing is left to do."""
    heads = session_settings.home / "audit"
    heads.mkdir(exist_ok=True)
    (home.home / "audit").symlink_to(heads)  # one log in the shared database has one head
    settings = Settings(home=home.home, database_url=databases.dsn("postgres"), workers=1)
    with stages.open_desk(settings, BOOSTED, market="small", policy="manual") as desk:
        registry = Registry(client=desk.client, log=desk.log, market="small")
        for variant in (BOOSTED, VAR, NETWORK):
            registry.register(variant)
        anna = Decision(by="anna", reason="a test", now=bar_known(-3))
        for variant, *steps in ((BOOSTED, stages.promote, stages.promote, stages.demote), (VAR, stages.promote)):
            for step_ in steps:
                step_(desk, variant, anna)
        held = {each.variant: each.stage for each in assignments(desk.client, "small").values()}
    assert held == {BOOSTED: "Archived", VAR: "Staging", NETWORK: "None"}
    environment = {name: value for name, value in settings.exported().items() if not name.endswith("_PORT")}
    answer = subprocess.run(
        [sys.executable, "-c", _COMMAND, "--market", str(home.folder), "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    said = json.loads(answer.stdout)
    assert (said["num_variants"], said["num_scored"], said["num_bars"], said["failed"]) == (3, 3, 3, {})
    assert said["num_late"] == 6
    rows = home.said(since=-3)
    assert set(rows["variant"]) == set(held)
    assert said["num_signals"] == len(rows) == 3 * 3 * 4
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert evaluate_flow.evaluate.fn(market=str(home.folder)) == 0
    assert stage_of_all(settings) == held  # and an evaluation moves nobody


def stage_of_all(settings: Settings) -> dict[str, str]:
    with stages.open_desk(settings, BOOSTED, market="small", policy="manual") as desk:
        return {each.variant: each.stage for each in assignments(desk.client, "small").values()}


def test_what_is_printed_tells_who_failed_and_why() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    done = Evaluation(
        market="small",
        num_variants=9,
        num_scored=2,
        num_bars=1,
        num_late=0,
        num_signals=8,
        failed={**{f"v{n}": "no panel [1]" for n in range(6)}, "w": "tampered"},
        waits_for="2020-10-05T21:00:00+00:00",
        seconds={"forecasts": 1.25},
    )
    render(console, done)
    render(console, Evaluation(market="small", num_variants=9))
    out = console.export_text()
    for text in (
        "2 of 9 variants of small forecast 1 new bar: 8 signals.",
        "The bar of 2020-10-05T21:00:00+00:00 is not whole yet",
        "7 failed",
        "v0, v1, v2, v3, v4 and 1 more: no panel [1]",
        "w: tampered",
        "Seconds: forecasts 1.2.",
        "No new bar: all 9 variants of small have forecast what there is.",
    ):
        assert text in out
