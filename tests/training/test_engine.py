"""The pool: order, progress, workers that die."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from training.engine import Lost, local_pool


def _square(x: int) -> int:
    return x * x


def _die_once(flag: str) -> str:
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def _die_always(_: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@pytest.fixture(scope="module")
def pool():
    with local_pool(2) as pool:
        yield pool


def test_results_come_in_the_order_of_the_tasks_and_each_is_announced(pool):
    done: list[int] = []
    assert pool.map(_square, list(range(20)), on_done=done.append) == [x * x for x in range(20)]
    assert sorted(done) == list(range(20))


def test_a_killed_worker_costs_a_retry_not_the_run(pool, tmp_path):
    assert pool.map(_die_once, [str(tmp_path / "flag")]) == ["lived"]


def test_a_task_that_always_kills_its_worker_is_lost_with_a_reason(pool):
    [lost] = pool.map(_die_always, ["x"])
    assert isinstance(lost, Lost)
    assert "died" in lost.reason
    assert pool.map(_square, [3]) == [9]  # and the pool lives on


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_an_interrupted_pool_ends_at_once_and_frees_who_waits_in_another_thread():
    outcome: list[str] = []

    def wait_for_tasks(pool):
        try:
            pool.map(_sleep, [600.0] * 6)
        except BaseException as error:
            outcome.append(type(error).__name__)

    def interrupted():
        with local_pool(2) as pool:
            pool.map(_square, [1, 2])  # the workers are up
            waiter = threading.Thread(target=wait_for_tasks, args=[pool])
            waiter.start()
            time.sleep(0.5)
            threads.append(waiter)
            raise KeyboardInterrupt

    threads: list[threading.Thread] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    threads[0].join(timeout=60)
    assert not threads[0].is_alive()
    assert outcome in (["BrokenProcessPool"], ["CancelledError"])


_ORPHAN = """
import os, sys, time
from training.engine import local_pool
def main():
    with local_pool(1) as pool:
        [pid] = pool.map(worker_pid, [0])
        print(pid, flush=True)
        time.sleep(60)
from tests_worker import worker_pid
if __name__ == "__main__":
    main()
"""


def test_workers_die_with_a_killed_parent(tmp_path):
    (tmp_path / "tests_worker.py").write_text("import os\ndef worker_pid(_):\n    return os.getpid()\n")
    (tmp_path / "parent.py").write_text(_ORPHAN)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    worker.kill()
    pytest.fail("the worker outlived its parent")
