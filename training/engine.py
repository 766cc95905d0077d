"""The pool that fits run in: worker processes of this machine, or of a Ray cluster, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue, SimpleQueue
from typing import Final, Generic, TypeVar

import psutil

from training.worker import AbortedError, EngineError, Gone, Limits, LocalWorker, Worker, pack, unpack

Task = TypeVar("Task")
Result = TypeVar("Result")

_DEFAULTS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Lost(Generic[Task]):
    """A task without a result: over a limit, or it killed its worker twice; ``reason`` says which."""

    task: Task
    reason: str


class Pool:
    """Runs tasks in workers. Several threads may map over one pool at once.

    A task whose worker died or took too much memory is tried once more, in a worker that has done nothing else: what
    was to blame may have been outside, or left behind by earlier tasks. Its neighbours never notice.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._idle: LifoQueue[Worker] = LifoQueue()  # the last in has the packages loaded
        for worker in reversed(workers):
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(len(workers))
        self._aborted = False

    def map(
        self,
        run: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        on_done: Callable[[Result | Lost[Task]], None] | None = None,
    ) -> list[Result | Lost[Task]]:
        """Run every task and return results in the tasks' order; ``on_done`` is called with each as it comes.

        ``run`` is a function that workers can import. What a task raises is raised here, and the tasks not begun yet
        are dropped.
        """
        # Not as_completed: it waits for ever on futures that are cancelled while it waits.
        ended: SimpleQueue[Future[Result | Lost[Task]]] = SimpleQueue()
        futures = {self._submit(run, task): i for i, task in enumerate(tasks)}
        for future in futures:
            future.add_done_callback(ended.put)
        results: dict[int, Result | Lost[Task]] = {}
        try:
            for _ in tasks:
                future = ended.get()
                i = futures[future]
                results[i] = future.result()
                if on_done is not None:
                    on_done(results[i])
        except CancelledError as error:
            raise AbortedError("the pool was aborted") from error
        finally:
            for future in futures:
                future.cancel()
        return [results[i] for i in range(len(tasks))]

    def _submit(self, run: Callable[[Task], Result], task: Task) -> Future[Result | Lost[Task]]:
        try:
            return self._threads.submit(self._do, run, task)
        except RuntimeError as error:
            raise AbortedError("the pool has ended") from error

    def _do(self, run: Callable[[Task], Result], task: Task) -> Result | Lost[Task]:
        question = pack(run, task)
        worker = self._idle.get()
        try:
            answer = worker.ask(question)
            again = isinstance(answer, Gone) and answer.again and not self._aborted
            if again:
                answer = worker.ask(question)
        finally:
            self._idle.put(worker)
        if isinstance(answer, Gone):
            if self._aborted:
                raise AbortedError("the pool was aborted")
            return Lost(task, f"{answer.reason}, twice" if again else answer.reason)
        return unpack(answer)

    def shutdown(self) -> None:
        """End the workers once they are idle."""
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.end()

    def abort(self) -> None:
        """End the workers at once; whoever waits in ``map`` gets ``AbortedError``."""
        self._aborted = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.abort()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.end()


@contextmanager
def open_pool(engine: str, workers: int, *, shared: Path, limits: Limits = _DEFAULTS) -> Iterator[Pool]:
    """A pool of ``workers`` single-threaded processes, ended on exit.

    Parameters
    ----------
    engine
        ``local``; ``ray``, a Ray of this machine; or the address of a Ray cluster as ``ray.init`` takes it:
        ``HOST:6379`` from one of its own nodes, ``ray://HOST:10001`` from elsewhere.
    shared
        The folder that tasks read and write. Every node of a cluster must see it under this path.
    limits
        What one task may take; they hold on every engine.
    """
    if engine == "local":
        with local_pool(workers, limits=limits) as pool:
            yield pool
        return
    if engine != "ray" and ":" not in engine:
        raise EngineError(f"no engine {engine!r}; there are local, ray, HOST:6379 and ray://HOST:10001")
    from training.ray_workers import ray_workers

    address = None if engine == "ray" else engine
    with ray_workers(address, workers, shared=shared, limits=limits) as begun, _running(begun) as pool:
        yield pool


@contextmanager
def local_pool(workers: int, *, limits: Limits = _DEFAULTS) -> Iterator[Pool]:
    """A pool of ``workers`` processes of this machine, ended on exit."""
    share_gib = psutil.virtual_memory().total / 2**30 / (workers + 1)  # the pool's own process has one too
    with _running([LocalWorker(limits, share_gib=share_gib) for _ in range(workers)]) as pool:
        yield pool


@contextmanager
def _running(workers: Sequence[Worker]) -> Iterator[Pool]:
    pool = Pool(workers)
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.abort()
        raise
