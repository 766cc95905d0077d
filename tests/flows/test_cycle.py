"""The whole loop as a user runs it: killed, run again, run twice; what MLflow and Postgres hold afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from flows import postgres
from flows.settings import Settings
from tests.flows.small_market import write_small_market

pytestmark = pytest.mark.timeout(600)
OPTIONS = ["--variants", "4", "--folds", "2", "--agent-folds", "1", "--trials", "1", "--seed", "3"]


def _command(market: Path) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "run", "--market", str(market), *OPTIONS]


def _run(home: Path, market: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PERENNIAL_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    return subprocess.run(_command(market), env=env, capture_output=True, text=True, timeout=400, check=False)


def _published(home: Path) -> int:
    return len(list((home / "cycles").rglob("result.json")))


def _kill_in_training(home: Path, market: Path, *, after: int, how: signal.Signals) -> int:
    """Start a run and send a signal once ``after`` more fits are published; returns the exit status."""
    published = _published(home)
    env = {**os.environ, "PERENNIAL_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    run = subprocess.Popen(_command(market), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while run.poll() is None and _published(home) < published + after:
            time.sleep(0.05)
        assert run.poll() is None, "the run ended before it could be killed"
        run.send_signal(how)
        return run.wait(timeout=60)
    finally:
        run.kill()
        run.wait()


def _facts(home: Path) -> dict:
    """What the registry and the tracking store hold: runs, versions, stages, aliases, tags, checksums, ranking."""
    from training.tracking import connect

    with postgres.Hold(Settings(home=home)) as hold:
        client = connect(hold.databases.url("mlflow"))
        experiment = client.get_experiment_by_name("small")
        runs = client.search_runs([experiment.experiment_id])
        versions = client.search_model_versions()
        models = {model.name: model for model in client.search_registered_models()}
        [summary] = [run for run in runs if run.data.tags["kind"] == "summary"]
        ranking = pd.read_parquet(client.download_artifacts(summary.info.run_id, "ranking.parquet"))
        return {
            "runs": sorted((run.data.tags["perennial.run_key"], run.info.status) for run in runs),
            "versions": sorted((each.name, int(each.version)) for each in versions),
            "checksums": {each.name: each.tags["checksum"] for each in versions},
            "stages": {each.name: (each.current_stage, each.tags.get("stage", "None")) for each in versions},
            "aliases": {name: dict(model.aliases) for name, model in models.items()},
            "ranking": ranking.drop(columns="allocation"),
            "params": {run.data.tags["perennial.run_key"]: run.data.params for run in runs},
        }


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return write_small_market(tmp_path_factory.mktemp("markets") / "small")


@pytest.fixture(scope="module")
def killed(market, tmp_path_factory):
    """A home where the run was killed with -9, interrupted with Ctrl-C, then run to its end."""
    home = tmp_path_factory.mktemp("killed")
    statuses = [
        _kill_in_training(home, market, after=2, how=signal.SIGKILL),
        _kill_in_training(home, market, after=3, how=signal.SIGINT),
    ]
    before = {path.parent.name: path.stat().st_mtime_ns for path in (home / "cycles").rglob("result.json")}
    done = _run(home, market)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = {path.parent.name: path.stat().st_mtime_ns for path in (home / "cycles").rglob("result.json")}
    yield {"home": home, "statuses": statuses, "before": before, "after": after, "out": done.stdout, **_facts(home)}
    postgres.remove(Settings(home=home))


@pytest.fixture(scope="module")
def undisturbed(market, tmp_path_factory):
    """A second home where the same command ran once, undisturbed."""
    home = tmp_path_factory.mktemp("undisturbed")
    done = _run(home, market)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    yield {"home": home, "out": done.stdout, **_facts(home)}
    postgres.remove(Settings(home=home))


def test_ctrl_c_says_what_to_type_and_kill_9_is_a_kill(killed):
    assert killed["statuses"] == [-signal.SIGKILL, 130]


def test_finished_fits_are_not_repeated_after_a_kill(killed):
    assert len(killed["before"]) >= 5
    assert killed["before"].items() <= killed["after"].items()


def test_a_killed_run_leaves_no_prefect_server_behind_once_it_was_run_again(killed):
    servers = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "prefect.server.api.server:create_app" in (process.info["cmdline"] or [])
        and (process.info["environ"] or {}).get("PREFECT_HOME") == str(killed["home"] / "prefect")
    ]
    assert servers == []


def test_a_killed_run_leaves_one_run_and_one_version_a_variant(killed):
    assert all(status == "FINISHED" for _, status in killed["runs"])
    assert len({key for key, _ in killed["runs"]}) == len(killed["runs"]) == 5  # four variants and the summary
    assert len(killed["versions"]) == 4
    assert {version for _, version in killed["versions"]} == {1}


def test_stage_alias_and_tags_agree(killed):
    alias = {"Staging": {"staging": 1}, "Production": {"production": 1}, "None": {}}
    for name, (stage, tag) in killed["stages"].items():
        assert stage == tag
        assert {key: int(value) for key, value in killed["aliases"][name].items()} == alias[stage]
    assert sum(stage == "Staging" for stage, _ in killed["stages"].values()) >= 1


def test_a_killed_run_ends_as_an_undisturbed_one(killed, undisturbed):
    """The same seed gives the same ranking, checksums and tuned parameters, whatever happened on the way."""
    assert killed["checksums"] == undisturbed["checksums"]
    assert killed["params"] == undisturbed["params"]
    pd.testing.assert_frame_equal(killed["ranking"], undisturbed["ranking"])


def test_running_again_changes_nothing(undisturbed):
    """By the nightly flow, which asks what was asked."""
    home = undisturbed["home"]
    env = {**os.environ, "PERENNIAL_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    script = "from flows.nightly_flow import nightly; print('ran', nightly())"
    again = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "ran 1" in again.stdout
    facts = _facts(undisturbed["home"])
    for name in ("runs", "versions", "checksums", "stages", "aliases"):
        assert facts[name] == undisturbed[name]


def test_the_summary_tells_a_person_what_happened(undisturbed):
    out = undisturbed["out"]
    for said in ("5 assets", "INDEX", "Ranking", "Staging", "Gate (strict)", "Drift", "drift reports", "perennial up"):
        assert said in out
    assert "No variant deserves Production" in out or "live: every gate passed" in out


def test_drift_metrics_and_reports_are_there(undisturbed):
    from feature_repo.database import connect

    with (
        postgres.Hold(Settings(home=undisturbed["home"])) as hold,
        connect(hold.databases.dsn("perennial")) as connection,
    ):
        rows = connection.execute("SELECT DISTINCT strategy, signal FROM drift_metrics").fetchall()
    staged = {name.split(".", 1)[1] for name, (stage, _) in undisturbed["stages"].items() if stage != "None"}
    assert set(rows) == {(variant, signal) for variant in staged for signal in ("psi", "ic", "sharpe")}
    pages = list((undisturbed["home"] / "reports").rglob("*.html"))
    assert {page.stem for page in pages} == {
        "promotion",
        *(f"drift_{name}" for name in ("cross_asset", "momentum", "ohlcv", "order_flow", "technical", "volatility")),
    }


def test_status_shows_what_is_trading(undisturbed):
    env = {**os.environ, "PERENNIAL_HOME": str(undisturbed["home"])}
    command = [sys.executable, "-m", "flows.cli", "status", "--json"]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    trading = json.loads(answer.stdout)["trading"]
    assert {row["variant"] for row in trading} == {
        name.split(".", 1)[1] for name, (stage, _) in undisturbed["stages"].items() if stage != "None"
    }
    assert all(row["since"] and row["by"] == "perennial" and row["trained_on"] for row in trading)
