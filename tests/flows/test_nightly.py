"""The nightly flow runs what was run: how a cycle was asked for is kept, and one market's trouble is not another's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps.run import Run, remember, remembered

NOW = datetime(2024, 5, 6, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def run_of(settings: Settings, market: str, **asked: object) -> Run:
    places = {name: settings.home / name for name in ("features", "panels", "fits", "signals", "reports")}
    config = replace(CycleConfig(market=market), **asked)
    return Run(config=config, cycle_id="c", market=Path(market).name, now=NOW, code="code", git_sha="sha", **places)


def test_the_newest_question_on_each_market_interval_and_horizon_is_kept(settings: Settings) -> None:
    for run in (
        run_of(settings, "a", variants=3),
        run_of(settings, "a", variants=5, policy="manual"),
        run_of(settings, "a", horizon=5),
        run_of(settings, "b", interval="1h", label="sign"),
    ):
        remember(settings, run)
    assert remembered(settings) == {
        "a-1d-1": CycleConfig(market="a", variants=5, policy="manual"),
        "a-1d-5": CycleConfig(market="a", horizon=5),
        "b-1h-1": CycleConfig(market="b", interval="1h", label="sign"),
    }


def test_a_look_at_the_past_is_not_what_every_night_asks(settings: Settings) -> None:
    remember(settings, run_of(settings, "a", variants=3))
    remember(settings, run_of(settings, "a", variants=5, as_of=NOW))
    assert remembered(settings) == {"a-1d-1": CycleConfig(market="a", variants=3)}


def test_files_and_folders_are_found_from_anywhere(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    remember(settings, run_of(settings, "mine", catalogue="some.toml"))
    (config,) = remembered(settings).values()
    assert (config.market, config.catalogue) == (str(tmp_path / "mine"), str(tmp_path / "some.toml"))
    assert asdict(config) == asdict(CycleConfig(market=config.market, catalogue=config.catalogue))


def nightly(settings: Settings) -> subprocess.CompletedProcess[str]:
    script = "from flows.nightly_flow import nightly; print('ran', nightly())"
    env = {**os.environ, "PERENNIAL_HOME": str(settings.home), "PREFECT_HOME": str(settings.home / "prefect")}
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)


def test_one_that_fails_holds_up_no_other_and_is_named_in_the_end(settings: Settings, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        remember(settings, run_of(settings, str(tmp_path / name)))
    ended = nightly(settings)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert re.search("RunError: 2 of 2 failed; one-1d-1: .+; two-1d-1: ", last)
