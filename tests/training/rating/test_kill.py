"""kill -9 in the middle of a rebalance, at points spread over all its writes, in a real process."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from feature_repo.database import connect as connect_postgres
from feature_repo.database import migrate
from tests.training.rating.stage_desk import Desk
from training.rating.audit import AuditLog
from training.rating.promotion import Target, current
from training.tracking import connect

ROOT = Path(__file__).resolve().parents[3]
NUM_KILLS = 20
VARIANTS = ("a", "b", "c")


def target(stage, version, allocation):
    return Target(version=version, stage=stage, allocation=allocation, reason="rank", evidence={"score": 1.5})


# between these two one variant goes live and another leaves, one is refitted and one gets another share
MONDAY = {"a": target("Production", 1, 1.0), "b": target("Staging", 1, 0.4)}
TUESDAY = {"b": target("Staging", 2, 0.6), "c": target("Production", 1, 1.0)}


@pytest.fixture
def desk(databases, dsn, tmp_path, monkeypatch):
    monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off")  # a killed client loses no commit by it
    migrate(dsn, "training")
    with connect_postgres(dsn, autocommit=True) as connection:
        log = AuditLog(connection=connection, head_file=tmp_path / "head.json")
        made = Desk(client=connect(databases.url("mlflow")), log=log)
        for variant in VARIANTS:
            made.register(variant, num_versions=2)
        made.rebalance(MONDAY)
        yield made


@pytest.fixture
def rebalancer(desk, databases, dsn):
    """Asks a process of its own for a rebalance that dies at a point."""
    command = [sys.executable, "-m", "tests.training.rating.killed_rebalance"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(desired, kill_at):
            job = {
                "dsn": dsn,
                "url": databases.url("mlflow"),
                "head_file": str(desk.log.head_file),
                "market": desk.market,
                "desired": {variant: asdict(each) for variant, each in desired.items()},
                "kill_at": kill_at,
            }
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask


def trading(desk):
    return {each.variant: (each.version, each.stage, each.allocation) for each in current(desk.client, desk.market)}


def stories(desk):
    return [entry for variant in VARIANTS for entry in desk.story(variant)]


def wanted(desired):
    return {variant: (each.version, each.stage, each.allocation) for variant, each in desired.items()}


def test_whenever_a_rebalance_is_killed_registry_log_and_what_is_served_agree_after_a_restart(desk, rebalancer):
    unharmed = [rebalancer(desired, kill_at=None) for desired in (TUESDAY, MONDAY)]
    assert [each["status"] for each in unharmed] == [0, 0]
    num_points = min(each["num_points"] for each in unharmed)
    rng, rows_left = random.Random(7), set()
    for number in range(NUM_KILLS):
        desired = TUESDAY if number % 2 == 0 else MONDAY
        num_rows = len(stories(desk))
        first, end = (num_points * each // NUM_KILLS for each in (number, number + 1))
        assert rebalancer(desired, kill_at=rng.randrange(first, end))["status"] == signal.SIGKILL
        rows_left.add(len(stories(desk)) - num_rows)
        served = trading(desk)
        desk.reconcile(policy="strict")
        assert trading(desk) == served
        assert all(desk.agree(variant) for variant in VARIANTS)
        assert desk.log.verify().ok
        desk.rebalance(desired)
        assert trading(desk) == wanted(desired)
        assert len(stories(desk)) == num_rows + 4  # no change is missing, none is there twice
    assert rows_left == {0, 1, 2, 3, 4}
    assert {entry[3] for entry in stories(desk)} == {"cycle"}  # no crash was taken for a person
    assert desk.reconcile(policy="strict") == []
