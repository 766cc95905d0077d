"""The local process pool: single-threaded workers that die with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

# One thread a worker, or the numeric libraries fight over the cores. Set before a worker imports them.
_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Lost(Generic[Task]):
    """A task that killed its worker process twice, the second time alone; ``reason`` says so."""

    task: Task
    reason: str


class Pool:
    """Runs tasks in worker processes. Several threads may map over one pool at once.

    When a worker dies (killed, out of memory) the tasks under way are tried once more, each in a process of its own,
    so that the one that kills is told from its neighbours.
    """

    def __init__(self, make: Callable[[int], ProcessPoolExecutor], workers: int) -> None:
        self._make, self._workers = make, workers
        self._executor = make(workers)
        self._renewing = threading.Lock()
        self._aborted = False

    def map(
        self, run: Callable[[Task], Result], tasks: Sequence[Task], *, on_done: Callable[[Task], None] | None = None
    ) -> list[Result | Lost[Task]]:
        """Run every task and return results in the tasks' order; ``on_done`` is called as each one ends."""
        executor = self._executor
        # Not as_completed: it waits for ever on futures that are cancelled while it waits.
        ended: SimpleQueue[Future[Result]] = SimpleQueue()
        futures = {_submit(executor, run, task): i for i, task in enumerate(tasks)}
        for future in futures:
            future.add_done_callback(ended.put)
        results: dict[int, Result | Lost[Task]] = {}
        for _ in tasks:
            future = ended.get()
            i = futures[future]
            try:
                results[i] = future.result()
            except BrokenProcessPool:
                if self._aborted:
                    raise
                self._renew(executor)
                results[i] = self._run_alone(run, tasks[i])
            if on_done is not None:
                on_done(tasks[i])
        return [results[i] for i in range(len(tasks))]

    def _run_alone(self, run: Callable[[Task], Result], task: Task) -> Result | Lost[Task]:
        with self._make(1) as executor:
            try:
                return executor.submit(run, task).result()
            except BrokenProcessPool as error:
                return Lost(task, f"its worker process died twice: {error}")

    def _renew(self, broken: ProcessPoolExecutor) -> None:
        with self._renewing:  # of several that saw it break, one makes the new one
            if self._executor is broken:
                self._executor = self._make(self._workers)

    def shutdown(self) -> None:
        """End the workers once they are idle."""
        self._executor.shutdown(wait=True)

    def abort(self) -> None:
        """End the workers at once; whoever waits in ``map`` gets an exception."""
        self._aborted = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()


def _submit(executor: ProcessPoolExecutor, run: Callable[[Task], Result], task: Task) -> Future[Result]:
    try:
        return executor.submit(run, task)
    except BrokenProcessPool as error:
        future: Future[Result] = Future()
        future.set_exception(error)
        return future


@contextmanager
def local_pool(workers: int) -> Iterator[Pool]:
    """A pool of ``workers`` spawned processes, ended on exit."""
    before = {name: os.environ.get(name) for name in _THREAD_COUNTS}
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, "1"))
    context = multiprocessing.get_context("spawn")
    pool = Pool(lambda size: ProcessPoolExecutor(size, mp_context=context, initializer=_begin_worker), workers)
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.abort()
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch  # not at the top: only workers need it

    torch.set_num_threads(1)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent leaves nobody to report to
