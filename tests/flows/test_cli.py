from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows import cli, services
from flows.cycle import CycleConfig
from flows.settings import Settings


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home of its own, and the environment put back after each command."""
    before = dict(os.environ)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    yield
    os.environ.clear()
    os.environ.update(before)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, CycleConfig]]:
    """What `perennial run` asks the cycle for, in place of running one."""
    seen: list[tuple[Settings, CycleConfig]] = []
    flow = types.ModuleType("flows.cycle_flow")
    flow.run_cycle = lambda settings, config: seen.append((settings, config))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flows.cycle_flow", flow)
    monkeypatch.setattr("flows.summary.render", lambda console, summary: None)
    return seen


def test_help_shows_every_command() -> None:
    shown = _run("--help").stdout
    for command in (
        "run",
        "up",
        "down",
        "status",
        "leakcheck",
        "factory",
        "features",
        "ingest",
        "compare",
        "verify",
        "signals",
        "promote",
        "demote",
        "rollback",
        "history",
        "audit",
        "shadow",
        "evaluate",
    ):
        assert f" {command} " in shown


def test_run_asks_for_the_defaults_of_a_cycle(asked: list[tuple[Settings, CycleConfig]], tmp_path: Path) -> None:
    assert _run("run").exit_code == 0
    [(settings, config)] = asked
    assert config == CycleConfig()
    assert settings.home == tmp_path


def test_run_hands_on_every_option(asked: list[tuple[Settings, CycleConfig]]) -> None:
    options = "--market /data --interval 1h --variants 9 --folds 8 --agent-folds 3 --trials 2 --seed 1"
    assert _run("run", *options.split(), "--as-of", "2020-02-29", "--policy", "advisory").exit_code == 0
    assert asked[0][1] == CycleConfig(
        market="/data",
        interval="1h",
        variants=9,
        folds=8,
        agent_folds=3,
        trials=2,
        seed=1,
        as_of=datetime(2020, 2, 29, tzinfo=UTC),
        policy="advisory",
    )


def test_a_policy_that_is_none_is_refused(asked: list[tuple[Settings, CycleConfig]]) -> None:
    result = _run("run", "--policy", "lax")
    assert result.exit_code == 2
    assert all(policy in result.output for policy in ("strict", "advisory", "manual"))
    assert asked == []


def test_the_run_of_mlflow_that_started_us_is_not_ours(
    asked: list[tuple[Settings, CycleConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "theirs")
    assert _run("run").exit_code == 0
    assert not [name for name, value in os.environ.items() if value == "theirs"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "PREFECT_API_URL" not in os.environ


def test_an_error_of_ours_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_API_PORT", "99999")
    result = _run("status")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "wrong settings: PERENNIAL_API_PORT='99999': Input should be less than or equal to 65535"
    ]


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_API_PORT", "99999")
    result = _run("--debug", "status")
    assert type(result.exception).__name__ == "SettingsError"


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "down", lambda settings: {}["absent"])
    assert isinstance(_run("down").exception, KeyError)


def test_no_right_to_a_file_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: Settings) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(services, "down", refuse)
    result = _run("down")
    assert (result.exit_code, result.output.strip()) == (1, "[Errno 13] Permission denied: '/somewhere'")


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(services, "down", interrupt)
    result = _run("down")
    assert result.exit_code == 130
    assert result.output.strip() == "stopped; type `perennial down` again to continue"


def test_a_python_that_is_not_supported_is_refused(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    monkeypatch.setattr(cli, "_PYTHONS", ((3, 8),))
    result = _run("run")
    assert result.exit_code == 1
    assert "runs on Python 3.11, 3.12 or 3.13" in result.output
    assert asked == []


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is a library of Linux")
def test_a_missing_system_library_is_named_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    cli.check_machine()
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(cli.MachineError, match="sudo apt-get install libgomp1"):
        cli.check_machine()


def test_status_of_a_new_home_starts_nothing(tmp_path: Path) -> None:
    result = _run("status", "--json")
    shown = json.loads(result.stdout)
    names = ("postgres", "mlflow", "prefect", "evidently", "api", "deployments")
    assert {state["name"]: state["state"] for state in shown["services"]} == dict.fromkeys(names, "down")
    assert shown["trading"] == []
    assert not (tmp_path / "postgres").exists()
    assert "Nothing is trading" in _run("status").stdout


def test_status_shows_what_is_trading(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.trading import TradingRow

    row = TradingRow(
        market="us", variant="lstm-l30", version=3, stage="Staging", allocation=0.125,
        trained_on="2001-01-01 to 2020-01-01", dataset="abc", since="2020-01-02T00:00:00+00:00", by="strict",
    )  # fmt: skip
    monkeypatch.setattr(cli, "_trading", lambda settings: [row])
    shown = _run("status").stdout
    assert "What is trading now" in shown
    assert "lstm-l30" in shown
    assert "12.5%" in shown
    assert json.loads(_run("status", "--json").stdout)["trading"][0]["version"] == 3


def test_down_when_nothing_is_up() -> None:
    assert _run("down").stdout == "Nothing was up.\n"


def test_the_catalogue_is_listed() -> None:
    variants = json.loads(_run("factory", "list", "--json").stdout)
    assert len({variant["id"] for variant in variants}) == len(variants) > 0
    assert f"{len(variants)} variants" in _run("factory", "list").stdout


def test_a_signal_from_the_terminal_ends_a_command_with_130(tmp_path: Path) -> None:
    script = (
        "import os, signal, flows.cli as cli, flows.services as services\n"
        "services.down = lambda settings: os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.app(['down'])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
