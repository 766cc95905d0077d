"""The pool: order, progress, and workers that die, hang, eat memory, are interrupted or lose their parent."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.training import engine_tasks as tasks
from tests.training.engine_tasks import has_ended
from training.engine import Limits, Lost, Pool, local_pool, open_pool
from training.worker import AbortedError, EngineError, LocalWorker

DIED = "its worker process died (SIGKILL), twice"
REPOSITORY = Path(__file__).resolve().parents[2]


BROKEN = """
import sys
from training import worker
from training.engine import local_pool
from tests.training.engine_tasks import square

worker._CONTEXT.set_forkserver_preload(["broken"])
try:
    with local_pool(1) as pool:
        pool.map(square, [2])
except Exception as error:
    print(type(error).__name__)
    print(error, file=sys.stderr)
"""


PREPARED = """
from tests.training.engine_tasks import thread_counts
from training.engine import local_pool
from training.worker import prepare_workers

if __name__ == "__main__":
    prepare_workers()
    with local_pool(1) as pool:
        print(pool.map(thread_counts, [0]))
"""


@pytest.fixture(scope="module")
def pool():
    with local_pool(2) as pool:
        yield pool


# Results, progress and exceptions.


def test_results_come_in_the_order_of_the_tasks_and_each_is_announced(pool):
    done: list[int] = []
    squares = [x * x for x in range(20)]
    assert pool.map(tasks.square, list(range(20)), on_done=done.append) == squares
    assert sorted(done) == squares
    assert pool.map(tasks.square, []) == []


def test_threads_map_over_one_pool_at_once_and_get_their_own(pool):
    got: dict[int, list[int]] = {}

    def ask(first):
        got[first] = pool.map(tasks.square, list(range(first, first + 50)))

    threads = [threading.Thread(target=ask, args=[first]) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert got == {first: [x * x for x in range(first, first + 50)] for first in (0, 100, 200)}


def test_what_a_task_raises_is_raised_with_its_traceback_and_the_pool_lives_on(pool):
    with pytest.raises(ValueError, match="no such thing") as caught:
        pool.map(tasks.refuse, ["fine", "error"])
    assert "engine_tasks.py" in caught.value.__notes__[0]
    with pytest.raises(EngineError, match="UnportableError: this that"):
        pool.map(tasks.refuse, ["unportable"])
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        pool.map(tasks.refuse, ["answer"])
    assert pool.map(tasks.square, [3]) == [9]


def test_after_an_exception_the_tasks_not_begun_are_dropped(tmp_path):
    flags = [tmp_path / f"{i}" for i in range(50)]
    with local_pool(1) as pool:
        with pytest.raises(ValueError, match="no such thing"):
            pool.map(tasks.mixed, [("refuse", "error"), *(("wait_for", str(flag)) for flag in flags)])
        for flag in flags:
            flag.touch()
        pool.map(tasks.square, [1])
    assert len(list(tmp_path.glob("*.runs"))) <= 1  # the one that was next


# Workers that end.


def test_a_killed_worker_costs_a_retry_not_the_run(pool, tmp_path):
    assert pool.map(tasks.die_once, [str(tmp_path / "flag")]) == ["lived"]


def test_a_task_that_always_kills_its_worker_is_lost_with_a_reason(pool):
    exited = "its worker process died (exit status 3), twice"
    assert pool.map(tasks.die, ["kill", "exit"]) == [Lost("kill", DIED), Lost("exit", exited)]
    assert pool.map(tasks.square, [3]) == [9]  # and the pool lives on


def test_a_worker_that_died_between_tasks_costs_nothing(pool):
    for pid in set(pool.map(tasks.pid, [0, 1])):
        os.kill(pid, signal.SIGKILL)
    assert pool.map(tasks.square, [1, 2, 3]) == [1, 4, 9]


def test_a_death_never_disturbs_a_neighbour(pool, tmp_path):
    flag = str(tmp_path / "flag")
    waited, lost = pool.map(tasks.mixed, [("wait_for", flag), ("kill_beside", flag)])
    assert (waited, lost.reason) == ("waited", DIED)
    assert Path(f"{flag}.runs").read_text() == "run\n"


@pytest.mark.parametrize("how", ["sleep", "lock", "numpy"])
def test_a_task_that_hangs_is_lost_whatever_it_hangs_in(how, tmp_path):
    with open_pool("local", 1, shared=tmp_path, limits=Limits(time_s=1.0)) as pool:
        [lost, fine] = pool.map(tasks.mixed, [("hang", how), ("square", 2)])
    assert (lost.reason, fine) == ("no answer within 1 s", 4)


def test_a_task_that_eats_memory_is_lost_and_a_mapped_file_is_not_eaten(tmp_path):
    panel = tmp_path / "panel"
    with panel.open("wb") as file:
        file.truncate(400 << 20)
    with local_pool(2, limits=Limits(memory_gib=0.25)) as pool:
        lost, full, held_gib = pool.map(tasks.mixed, [("eat", 1000), ("eat", 80), ("read_mapped", str(panel))])
    assert lost == Lost(("eat", 1000), "took more than 0.25 GiB of memory, twice")
    assert full == "full"
    assert held_gib > 0.25  # so a watch that counted the pages of files would have killed it


def test_without_a_limit_a_worker_may_take_its_share_of_the_machine():
    pool = Pool([LocalWorker(Limits(), share_gib=0.25)])
    assert pool.map(tasks.eat, [1000]) == [Lost(1000, "took more than 0.25 GiB of memory, twice")]
    pool.shutdown()


def test_what_tasks_leave_behind_is_cleared_before_it_costs_another_its_limit():
    with local_pool(1, limits=Limits(memory_gib=0.5)) as pool:
        little, same, much, fresh = (pool.map(tasks.leak, [mib])[0] for mib in (1, 1, 300, 1))
    assert little == same == much
    assert fresh != much


def test_of_486_tasks_exactly_the_bad_ones_are_lost():
    bad = {17: ("die", "kill"), 18: ("die", "kill"), 200: ("hang", "lock"), 301: ("eat", 1000), 485: ("die", "kill")}
    jobs = [bad.get(i, ("square", i)) for i in range(486)]
    done: list[object] = []
    with local_pool(2, limits=Limits(time_s=4.0, memory_gib=0.3)) as pool:
        results = pool.map(tasks.mixed, jobs, on_done=done.append)
    assert {i for i, result in enumerate(results) if isinstance(result, Lost)} == set(bad)
    assert [result for i, result in enumerate(results) if i not in bad] == [i * i for i in range(486) if i not in bad]
    assert [results[i].reason.split(" (")[0] for i in bad] == [
        "its worker process died",
        "its worker process died",
        "no answer within 4 s",
        "took more than 0.3 GiB of memory, twice",
        "its worker process died",
    ]
    assert Counter(map(repr, done)) == Counter(map(repr, results))


# The end of the pool.


def test_an_interrupted_pool_leaves_no_process_and_frees_who_waits_in_another_thread(tmp_path):
    outcome: list[str] = []

    def wait_for_tasks(pool):
        try:
            pool.map(tasks.announce_and_hang, [(str(tmp_path), "sleep")] * 6)
        except AbortedError as error:
            outcome.append(str(error))

    def interrupted():
        with local_pool(2) as pool:
            waiter = threading.Thread(target=wait_for_tasks, args=[pool])
            waiter.start()
            threads.append(waiter)
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.01)
            raise KeyboardInterrupt

    threads: list[threading.Thread] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    threads[0].join(timeout=60)
    assert outcome == ["the pool was aborted"]
    pids = [int(file.name) for file in tmp_path.iterdir()]
    assert len(pids) == 2  # no other was begun
    assert all(has_ended(pid) for pid in pids)


def test_an_ended_pool_takes_no_tasks_and_leaves_no_process():
    with local_pool(2) as pool:
        pids = pool.map(tasks.pid, [0, 1])
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(AbortedError, match="ended"):
        pool.map(tasks.square, [1])


PARENT = """
import sys
from tests.training import engine_tasks as tasks
from training.engine import local_pool
if __name__ == "__main__":
    with local_pool(2) as pool:
        pool.map(tasks.announce_and_hang, [(sys.argv[1], "sleep"), (sys.argv[1], "lock")])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_workers_die_with_their_parent_even_when_they_never_look_up(tmp_path, how):
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "pids").mkdir()
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "pids")], env=env, stderr=subprocess.DEVNULL
    )
    try:
        while len(pids := [int(file.name) for file in (tmp_path / "pids").iterdir()]) < 2:
            assert parent.poll() is None
            time.sleep(0.01)
        parent.send_signal(how)
        assert parent.wait(timeout=60) != 0
    finally:
        parent.kill()
        parent.wait()
    assert all(has_ended(pid) for pid in pids)


# Threads and engines.


def test_a_worker_computes_on_one_thread_and_leaves_the_parent_as_it_was():
    before = dict(os.environ)
    with local_pool(1) as pool:
        [counts] = pool.map(tasks.thread_counts, [0])
        assert dict(os.environ) == before
    assert counts == {"torch": 1, "numba": 1, "pools": {1}}


def test_a_worker_that_was_prepared_for_computes_on_one_thread(tmp_path):
    (tmp_path / "parent.py").write_text(PREPARED)
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in counts}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "parent.py")],
        env={**env, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.stdout == "[{'torch': 1, 'numba': 1, 'pools': {1}}]\n", ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_are_forked_from_a_process_that_has_torch_and_no_thread_a_fork_would_lose():
    with local_pool(2) as pool:
        states = pool.map(tasks.forked_with, [0, 0])
    assert [state["torch"] for state in states] == [True, True]
    assert [state["cuda begun"] for state in states] == [False, False]
    assert [state["collects garbage"] for state in states] == [True, True]
    (server,) = {state["forked by"] for state in states}
    assert server != os.getpid()
    # the allocator of Arrow has a thread of its own, and sees to it that a forked process gets one
    assert set(tasks.thread_names(server)) <= {"jemalloc_bg_thd"}
    with local_pool(1) as pool:
        assert pool.map(tasks.forked_with, [0])[0]["forked by"] == server


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_imports_that_fail_before_the_first_worker_are_told_of(tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError('half installed')")
    (tmp_path / "parent.py").write_text(BROKEN)
    env = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "parent.py")], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "EngineError\n"
    assert "half installed" in ended.stderr
    assert "no worker could be begun: the process that they are forked from ended" in ended.stderr


def test_an_engine_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(EngineError, match=r"no engine 'dask'; there are local, ray"):
        open_pool("dask", 2, shared=tmp_path).__enter__()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'perennial\[ray\]'.*or take --engine local"):
        open_pool("ray", 2, shared=tmp_path).__enter__()


def test_an_address_where_nothing_listens_is_named(tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match=f"no Ray answers at '{address}'.*or take --engine local"):
        open_pool(address, 1, shared=tmp_path).__enter__()
