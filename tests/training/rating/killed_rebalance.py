"""A rebalance that is killed with SIGKILL at a given write, in a process of its own.

``python -m tests.training.rating.killed_rebalance`` does once what takes seconds; for each line of its input, a JSON
object, it forks a child that opens its own connections and rebalances. A line of its output tells which signal ended
the child, and at how many points it could have been killed before it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psycopg

from tests.training.dying_client import WRITES
from training.rating.audit import AuditLog
from training.rating.moves import rebalance
from training.rating.promotion import Target
from training.tracking import connect

NOW = datetime(2024, 5, 6, 21, tzinfo=UTC)


class Points:
    """Counts the moments before a write; at one of them the process is no more."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.count = kill_at, 0

    def pass_by(self) -> None:
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


class Client:
    """MLflow's, with a point before every write."""

    def __init__(self, client, points: Points) -> None:
        self.client, self.points = client, points

    def __getattr__(self, name: str):
        if name.startswith(WRITES):
            self.points.pass_by()
        return getattr(self.client, name)


class Connection(psycopg.Connection):
    """Postgres's, with a point before every statement: locks, reads, the row of the log."""

    points: Points

    def execute(self, *args, **kwargs):
        self.points.pass_by()
        return super().execute(*args, **kwargs)


@cache
def prepared(url: str):
    """An MLflow client that has checked its tables, and no connection for children to share."""
    client = connect(url)
    client.search_registered_models(max_results=1)
    client._get_registry_client().store.engine.dispose()
    return client


def run(job: dict, points: Points) -> None:
    move = Path.replace

    def replace(self, target):  # the log's head
        points.pass_by()
        return move(self, target)

    Path.replace = replace
    Connection.points = points
    with Connection.connect(job["dsn"], autocommit=True) as connection:
        rebalance(
            Client(prepared(job["url"]), points),
            AuditLog(connection=connection, head_file=Path(job["head_file"])),
            {variant: Target(**target) for variant, target in job["desired"].items()},
            market=job["market"],
            policy="strict",
            now=NOW,
            actor="cycle",
        )


def fork(job: dict) -> dict:
    """Run a job in a child; how it ended."""
    prepared(job["url"])
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        points = Points(job["kill_at"])
        run(job, points)
        os.write(tell, str(points.count).encode())
        os._exit(0)
    os.close(tell)
    _, status = os.waitpid(child, 0)
    with os.fdopen(told) as counted:
        return {"status": status, "num_points": int(counted.read() or 0)}


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(fork(json.loads(line))) + "\n")
        sys.stdout.flush()
