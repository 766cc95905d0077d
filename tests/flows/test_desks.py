"""What has live fits: the scheduled flows go over all of it whatever the market, the commands find the only one."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from flows import cli, postgres
from flows.cycle import CycleConfig
from flows.evaluate_flow import evaluate_all
from flows.settings import Settings
from flows.snapshot_flow import snapshot_all
from flows.steps.live import DesksError, desks, the_market
from flows.steps.run import RunError, alone
from tests.flows.evaluation_desk import NUM_DAYS, Desk, bar_known, variants
from tests.flows.small_market import write_small_market
from training.signals import SignalStore

BOOSTED, *_ = variants()
NUM_NEW = 3 * 4
"""Signals on the bars since the fits: of every asset but the benchmark."""
LOG = logging.getLogger("desks")


@dataclass(frozen=True, kw_only=True)
class Home:
    """A home in which one variant has a live fit on each of the markets; ``folders`` is their data, by name."""

    settings: Settings
    folders: dict[str, Path]

    @property
    def names(self) -> list[str]:
        return sorted(self.folders)

    def num_signals(self, market: str) -> int:
        store = SignalStore(root=self.settings.signals / market)
        return sum(len(store.read(name, model_versions=[key], kind="live")) for name, key in store.versions("live"))

    def recipes(self, market: str) -> list[Path]:
        store = SignalStore(root=self.settings.signals / market)
        fits = self.settings.cycles / "fits"
        return [fits / name / key / "model" / "recipe.json" for name, key in store.versions("live")]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A home after a first cycle on each of two markets."""
    root, folders = tmp_path_factory.mktemp("fitted"), {}
    for k in range(2):
        name = f"m{k}-{uuid.uuid4().hex}"  # the session's databases are shared
        folder = write_small_market(root / f"data-{k}", num_assets=5, num_days=NUM_DAYS, seed=k)
        facts = (folder / "market.yaml").read_text().replace("name: small", f"name: {name}")
        (folder / "market.yaml").write_text(facts)
        Desk(home=root / "home", folder=folder, connection=None).fit(bar_known(-4), [BOOSTED])
        folders[name] = folder
    return root / "home", folders


@pytest.fixture
def home(fitted: tuple[Path, dict[str, Path]], databases: postgres.Databases, tmp_path: Path) -> Home:
    made, folders = fitted
    shutil.copytree(made, tmp_path / "home")
    return Home(
        settings=Settings(home=tmp_path / "home", database_url=databases.dsn("postgres"), workers=1), folders=folders
    )


@pytest.fixture
def moved(home: Home) -> Iterator[Path]:
    """The first market's folder is elsewhere for as long as the test runs."""
    folder = home.folders[home.names[0]]
    away = folder.rename(folder.with_name("away"))
    yield folder
    away.rename(folder)


@pytest.fixture
def environment(home: Home) -> Iterator[None]:
    """The home is the environment's, which is put back after each command."""
    before = dict(os.environ)
    os.environ.update({k: v for k, v in home.settings.exported().items() if not k.endswith("_PORT")})
    yield
    os.environ.clear()
    os.environ.update(before)


def _fit_again(home: Home, of: str, key: str, /, *, horizon: int = 1, **told: str) -> None:
    """Another fit of the market's variant, told something else."""
    recipe = home.recipes(of)[-1]
    fit = recipe.parent.parent
    shutil.copytree(fit, fit.with_name(key))
    facts = json.loads(recipe.read_text())
    facts = facts | {"horizon": horizon, "task": facts["task"] | told}
    (fit.with_name(key) / "model" / "recipe.json").write_text(json.dumps(facts))
    said = home.settings.signals / of / BOOSTED.id
    shutil.copy(said / f"{fit.name}-live.parquet", said / f"{key}-live.parquet")


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_every_market_with_live_fits_is_found_with_its_source(home: Home) -> None:
    found, placeless = desks(home.settings)
    assert placeless == {}
    assert {desk.market: desk.config for desk in found} == {
        name: CycleConfig(market=str(folder)) for name, folder in home.folders.items()
    }


def test_each_interval_and_horizon_counts_and_the_newest_fit_says_where_the_data_lies(home: Home) -> None:
    first, second = home.names
    _fit_again(home, first, "a-new", made_at="2999-01-01T00:00:00+00:00", market="/new")
    _fit_again(home, second, "b-old", made_at="1999-01-01T00:00:00+00:00", market="/old")
    _fit_again(home, second, "b-other", interval="1h", horizon=5, market="/hourly")
    found, placeless = desks(home.settings)
    assert [(desk.market, desk.config) for desk in found] == [
        (first, CycleConfig(market="/new")),
        (second, CycleConfig(market=str(home.folders[second]))),
        (second, CycleConfig(market="/hourly", interval="1h", horizon=5)),
    ]
    assert placeless == {}


def test_a_market_of_which_no_recipe_says_where_its_data_lies_is_told_of(home: Home) -> None:
    first, second = home.names
    home.recipes(first)[0].write_text("{}")
    home.recipes(second)[0].unlink()
    found, placeless = desks(home.settings)
    assert found == []
    assert "is not a recipe of this version" in placeless[first]
    assert "does not say where its market's data came from; `perennial run` fits it again" in placeless[second]
    with pytest.raises(RunError, match=f"2 of 2 failed; {first}: .*; {second}: "):
        evaluate_all(home.settings, LOG, clock=lambda: bar_known(-1))


def test_signals_of_other_origin_make_no_live_fit(home: Home) -> None:
    shutil.rmtree(home.settings.cycles / "fits")
    assert desks(home.settings) == ([], {})


# ---- the flows -------------------------------------------------------------------------------------------------------


_FLOWS = """
from prefect.logging import disable_run_logger
from flows.evaluate_flow import evaluate
from flows.snapshot_flow import snapshot

with disable_run_logger():
    print(evaluate.fn(), evaluate.fn(), snapshot.fn())
"""
_EVALUATE = """
import logging
from datetime import datetime
from flows.evaluate_flow import evaluate_all
from flows.settings import Settings

evaluate_all(Settings(), logging.getLogger("desks"), clock=lambda: datetime.fromisoformat("{now}"))
"""


def _python(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as flows are: Feast closes no connection before its end."""
    told = {name: value for name, value in home.settings.exported().items() if not name.endswith("_PORT")}
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )


def _evaluate_all(home: Home) -> str:
    """What evaluating all of the home told, which ended with an error."""
    ended = _python(home, "-c", _EVALUATE.format(now=bar_known(-1).isoformat()))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stderr


def test_the_flows_go_over_every_market(home: Home) -> None:
    """By their defaults, as they are scheduled; the clock is the machine's, so all bars are known."""
    ended = _python(home, "-c", _FLOWS)
    assert ended.stdout.split() == [str(2 * NUM_NEW), "0", "2"], ended.stderr
    assert {name: len(_snapshots(home, name)) for name in home.names} == dict.fromkeys(home.names, 1)


def test_one_whose_folder_is_gone_holds_up_no_other(home: Home, moved: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone, there = home.names
    before = home.num_signals(there)
    said = f"1 of 2 failed; {gone} (1d bars, 1 ahead): no market '{moved}'"
    assert f"RunError: {said}" in _evaluate_all(home)
    assert home.num_signals(there) == before + NUM_NEW
    with pytest.raises(RunError, match=re.escape(said)):
        snapshot_all(home.settings, LOG, now=bar_known(-1))
    assert f"{gone} (1d bars, 1 ahead) failed" in caplog.text
    assert [len(_snapshots(home, name)) for name in (gone, there)] == [0, 1]


def test_one_that_another_run_holds_holds_up_no_other(home: Home, databases: postgres.Databases) -> None:
    held, _ = home.names
    said = f"1 of 2 failed; {held} (1d bars, 1 ahead): another run on market '{held}' is running"
    with alone(databases, held), pytest.raises(RunError, match=re.escape(said)):
        evaluate_all(home.settings, LOG, clock=lambda: bar_known(-4))  # there is no new bar


def test_a_folder_that_holds_another_market_now_is_not_taken_for_the_old_one(home: Home) -> None:
    first, second = home.names
    _fit_again(home, first, "a-new", made_at="2999-01-01T00:00:00+00:00", market=str(home.folders[second]))
    with pytest.raises(RunError, match=f"1 of 2 failed; {first} .* holds the market '{second}' now"):
        snapshot_all(home.settings, LOG, now=bar_known(-1))
    assert [len(_snapshots(home, name)) for name in (first, second)] == [0, 1]


def test_by_horizon_a_market_has_snapshots_of_its_own(home: Home) -> None:
    """Both fall into one slot, of which the first snapshot stays."""
    first, second = home.names
    shutil.rmtree(home.settings.signals / second)
    _fit_again(home, first, "a-far", horizon=5)
    said = home.settings.signals / first / BOOSTED.id / "a-far-live.parquet"
    pd.read_parquet(said).assign(horizon=5, model_version="a-far").to_parquet(said)
    snapshot_all(home.settings, LOG, now=bar_known(-1))
    assert {file.parent.parent.name for file in _snapshots(home, first)} == {"1d-1", "1d-5"}


def test_before_the_first_cycle_there_is_nothing_to_do_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(home=tmp_path)
    with caplog.at_level(logging.INFO):
        assert evaluate_all(settings, LOG, clock=lambda: bar_known(-1)) == 0
        assert snapshot_all(settings, LOG, now=bar_known(-1)) == 0
    assert caplog.text.count(f"Nothing to do: there is no live fit in {tmp_path} yet; `perennial run` makes some") == 2
    assert list(tmp_path.iterdir()) == []


# ---- the commands ----------------------------------------------------------------------------------------------------


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


@pytest.mark.parametrize("command", ["evaluate", "shadow"])
def test_without_a_name_a_command_takes_the_only_market(home: Home, environment: None, command: str) -> None:
    only, other = home.names
    said = _run(command)
    assert said.exit_code == 1
    assert said.output.split() == (
        f"several markets have live fits; name one with --market: {home.folders[only]}, {home.folders[other]}".split()
    )
    shutil.rmtree(home.settings.signals / other)
    ended = _python(home, "-m", "flows.cli", command, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["market"] == only


def test_the_only_market_is_named_for_the_bars_asked_for_or_by_any(home: Home) -> None:
    only, other = home.names
    shutil.rmtree(home.settings.signals / other)
    _fit_again(home, only, "a-hourly", interval="1h", market="/hourly")
    asked = [("1d", 1), ("1h", 1), ("15m", 1)]
    folder = str(home.folders[only])
    assert [the_market(home.settings, interval=i, horizon=h) for i, h in asked] == [folder, "/hourly", folder]
    for recipe in home.recipes(only):
        recipe.unlink()
    with pytest.raises(DesksError, match=f"nobody knows where the data of market '{only}' lies .* with --market"):
        the_market(home.settings, interval="1d", horizon=1)


def test_before_the_first_cycle_a_command_asks_for_the_default(tmp_path: Path) -> None:
    assert the_market(Settings(home=tmp_path), interval="1d", horizon=1) == CycleConfig().market


def _snapshots(home: Home, market: str) -> list[Path]:
    return sorted((home.settings.snapshots / market).rglob("*.parquet"))
