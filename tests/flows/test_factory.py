"""``perennial factory train`` as a user types it: trained and failed variants, killed and typed again, in MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import postgres
from flows.settings import Settings
from tests.flows.small_market import write_small_market

pytestmark = pytest.mark.timeout(600)
GOOD = [
    "elastic_net-l7-momentum-s0.5",
    "knn-l7-technical-k50",
    "dlinear-l7-momentum",
    "nbeats-l7-technical-h64",
    "a2c-l7-momentum-w32",
]
WRONG = "lightgbm-l7-momentum-n1"  # a tree of one leaf is none: LightGBM refuses it
ELSEWHERE = "elastic_net-l7-onchain-s0.5"  # the market has no on-chain metrics
CATALOGUE = f"""
ids = {json.dumps([*GOOD, ELSEWHERE])}
[[variants]]
architecture = "lightgbm"
lookbacks = [7]
pipelines = ["momentum"]
num_leaves = [1]
"""


class Desk:
    """A home with a market and a catalogue."""

    def __init__(self, folder: Path) -> None:
        self.home, self.market, self.catalogue = (
            folder / "home",
            write_small_market(folder / "small"),
            folder / "a.toml",
        )
        self.catalogue.write_text(CATALOGUE)

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "flows.cli", "factory", "train", "--json", "--folds", "2"]
        places = ["--market", str(self.market), "--catalogue", str(self.catalogue)]
        env = {**os.environ, "PERENNIAL_HOME": str(self.home)}
        return subprocess.Popen([*command, *places], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def train(self) -> dict:
        process = self.start()
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err[-3000:]
        return json.loads(out)

    def published(self) -> dict[str, dict]:
        found = (self.home / "cycles").rglob("result.json")
        return {  # a folder with a dot is still being written
            path.parent.name: json.loads(path.read_text()) for path in found if not path.parent.name.startswith(".")
        }

    def runs(self) -> list:
        from training.tracking import connect

        with postgres.Hold(Settings(home=self.home)) as hold:
            client = connect(hold.databases.url("mlflow"))
            return list(client.search_runs([client.get_experiment_by_name("small").experiment_id]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    desk = Desk(tmp_path_factory.mktemp("undisturbed"))
    report = desk.train()
    yield desk, report
    postgres.remove(Settings(home=desk.home))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Killed with -9 once some fits are finished, then typed again."""
    desk = Desk(tmp_path_factory.mktemp("killed"))
    with desk.start() as process:
        try:
            while process.poll() is None and len(desk.published()) < 3:
                time.sleep(0.05)
            assert process.poll() is None, "the training ended before it could be killed"
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        finally:
            process.kill()
    before = desk.published()
    report = desk.train()
    yield desk, report, before
    postgres.remove(Settings(home=desk.home))


def test_what_trains_is_trained_and_what_does_not_says_why(undisturbed):
    _, report = undisturbed
    assert sorted(report["trained"]) == sorted(GOOD)
    assert {row["variant"] for row in report["ranking"]} == set(GOOD)
    assert list(report["failed"]) == [WRONG]
    assert report["failed"][WRONG].startswith("2 of 2 fits failed; the first: ")
    assert "num_leaves" in report["failed"][WRONG]
    assert list(report["not_applicable"]) == [ELSEWHERE]
    assert "onchain" in report["not_applicable"][ELSEWHERE]
    assert report["num_networks"] == 4  # two networks, two folds


def test_a_killed_training_ends_as_an_undisturbed_one(killed, undisturbed):
    """Finished fits are read back (their times stay), and everything that was fitted is the same."""
    desk, report, before = killed
    after = desk.published()
    assert len(before) >= 3
    assert {key: after[key] for key in before} == before
    other, expected = undisturbed
    timeless = [{key: {**result, "fit_s": 0} for key, result in each.published().items()} for each in (desk, other)]
    assert timeless[0] == timeless[1]
    assert report["ranking"] == expected["ranking"]


def test_mlflow_can_be_searched_for_what_was_trained(killed):
    desk, _, _ = killed
    runs = {run.data.tags["perennial.run_key"].rpartition("/")[2]: run for run in desk.runs()}
    assert set(runs) == {*GOOD, WRONG, "summary"}
    assert runs["dlinear-l7-momentum"].data.tags["family"] == "deep"
    assert runs[WRONG].info.status == "FAILED"
    assert "num_leaves" in runs[WRONG].data.tags["failure"]
    assert {run.info.status for name, run in runs.items() if name != WRONG} == {"FINISHED"}
