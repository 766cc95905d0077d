"""The pool on Ray: the same results, limits and manners as the pool of this machine."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from feature_repo.market.costs import CostModel
from feature_repo.ray_connection import connected
from tests.training import engine_tasks as tasks
from tests.training.engine_tasks import has_ended
from tests.training.panel_makers import make_panel
from training.engine import Limits, Lost, local_pool, open_pool
from training.models.registry import architecture
from training.models.spec import Budget
from training.panels import save_panel
from training.splits.walk_forward import walk_forward
from training.trainer import FoldTask, train_fold
from training.variants import full_grid
from training.worker import AbortedError, EngineError

REPOSITORY = Path(__file__).resolve().parents[2]
LIMITS = Limits(time_s=3.0)
JOBS = [("square", 2), ("die", "kill"), ("hang", "lock"), ("square", 3)]


@pytest.fixture(scope="module")
def cluster():
    """A Ray of this machine, to which this process is connected; gives its address."""
    try:
        import ray
    except ImportError:
        reason = "ray is not installed"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets want a short path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        with connected(None, num_cpus=2):
            yield ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fits(tmp_path):
    panel = make_panel(num_times=260, signal=0.5)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    fold = walk_forward(*times, train=120, validate=40, test=20, step=20, num_folds=1)[0]
    variants = [variant for variant in full_grid(["toy"]) if variant.architecture == "elastic_net"][:2]
    return [
        FoldTask(
            variant=variant,
            params={**architecture(variant.architecture).defaults(), **dict(variant.params)},
            panel=save_panel(panel, tmp_path / "panels"),
            panel_fingerprint=panel.fingerprint,
            fold=fold,
            kind="oos",
            interval="1d",
            seed=3,
            budget=Budget(),
            costs=CostModel(),
            code="code",
            git_sha="sha",
            folder=tmp_path / "fits",
            signals=tmp_path / "signals",
        )
        for variant in variants
    ]


def test_ray_gives_what_the_local_pool_gives(cluster, fits, tmp_path):
    here = [replace(fit, folder=tmp_path / "here") for fit in fits]
    with local_pool(1) as pool:
        want = pool.map(train_fold, here)
    with open_pool("ray", 2, shared=tmp_path) as pool:
        got = pool.map(train_fold, fits)
        with pytest.raises(ValueError, match="no such thing"):
            pool.map(tasks.refuse, ["error"])
    assert all(result.ok and result.checksum for result in got)
    assert [replace(result, fit_s=0.0) for result in got] == [replace(result, fit_s=0.0) for result in want]


def test_limits_and_deaths_are_told_on_ray_as_they_are_locally(cluster, tmp_path):
    with local_pool(2, limits=LIMITS) as pool:
        want = pool.map(tasks.mixed, JOBS)
    with open_pool("ray", 2, shared=tmp_path, limits=LIMITS) as pool:
        assert pool.map(tasks.mixed, JOBS) == want
    assert [isinstance(result, Lost) for result in want] == [False, True, True, False]


def test_a_dead_actor_costs_a_retry_and_an_ended_pool_leaves_no_process(cluster, tmp_path):
    with open_pool("ray", 1, shared=tmp_path) as pool:
        [first] = pool.map(tasks.pid, [0])
        begun_by = psutil.Process(first).parents()
        begun_by[1 if sys.platform == "linux" else 0].kill()  # on Linux its parent is what workers are forked from
        [second] = pool.map(tasks.pid, [0])
    assert first != second
    assert has_ended(first)
    assert has_ended(second)


def test_an_interrupted_pool_frees_who_waits_in_another_thread(cluster, tmp_path):
    outcome: list[str] = []

    def wait_for_tasks(pool):
        try:
            pool.map(tasks.announce_and_hang, [(str(tmp_path), "lock")] * 4)
        except AbortedError as error:
            outcome.append(str(error))

    def interrupted():
        with open_pool("ray", 1, shared=tmp_path) as pool:
            threads.append(threading.Thread(target=wait_for_tasks, args=[pool]))
            threads[0].start()
            while not list(tmp_path.iterdir()):
                time.sleep(0.01)
            raise KeyboardInterrupt

    threads: list[threading.Thread] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    threads[0].join(timeout=60)
    assert outcome == ["the pool was aborted"]
    [pid] = [int(file.name) for file in tmp_path.iterdir()]
    assert has_ended(pid)


DRIVER = """
import sys
from pathlib import Path
from tests.training import engine_tasks as tasks
from training.engine import open_pool
if __name__ == "__main__":
    with open_pool(sys.argv[1], 1, shared=Path(sys.argv[2])) as pool:
        assert pool.map(tasks.square, [3]) == [9]
        pool.map(tasks.announce_and_hang, [(sys.argv[2], "lock")])
"""


def test_a_pool_opens_at_an_address_and_its_workers_die_with_a_killed_driver(cluster, tmp_path):
    script, pids = tmp_path / "driver.py", tmp_path / "pids"
    script.write_text(DRIVER)
    pids.mkdir()
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    driver = subprocess.Popen([sys.executable, str(script), cluster, str(pids)], env=env, stderr=subprocess.DEVNULL)
    try:
        while not (found := list(pids.iterdir())):
            assert driver.poll() is None
            time.sleep(0.01)
    finally:
        driver.kill()
        driver.wait()
    assert has_ended(int(found[0].name))


def test_a_cluster_that_can_not_serve_is_refused_with_the_reason(cluster, tmp_path, monkeypatch):
    with pytest.raises(EngineError, match=r"3 workers want a CPU each, the Ray cluster has 2; set PERENNIAL_WORKERS"):
        open_pool("ray", 3, shared=tmp_path).__enter__()
    missing = tmp_path / "missing"
    with (
        pytest.raises(EngineError, match=f"has no folder {missing}.*must see"),
        open_pool("ray", 1, shared=missing) as pool,
    ):
        pool.map(tasks.square, [1])
    monkeypatch.setattr("training.ray_workers.code_fingerprint", lambda _: "of another checkout")
    with pytest.raises(EngineError, match="has other source code"), open_pool("ray", 1, shared=tmp_path) as pool:
        pool.map(tasks.square, [1])
