"""A worker: one single-threaded process that does tasks one after another, within limits that hold for C code too."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final, NoReturn, Protocol, TypeVar

import psutil

Task = TypeVar("Task")
Result = TypeVar("Result")

# One thread a worker, or the numeric libraries fight over the cores. They look when they are imported.
_THREAD_COUNTS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# Forked from a process that has the libraries imported; elsewhere than on Linux some of them don't survive a fork.
_FORKS: Final = sys.platform == "linux"
_CONTEXT: Final = multiprocessing.get_context("forkserver") if _FORKS else multiprocessing.get_context("spawn")
_CONTEXT.set_forkserver_preload(["training.preload"])
_LOOK_EVERY_S: Final = 0.2
_START_WITHIN_S: Final = 300.0  # a process and the imports of its first task, on a machine that is busy
_END_WITHIN_S: Final = 10.0
_BEGUN: Final = b""
_GIB: Final = 2.0**30


class EngineError(RuntimeError):
    """The engine can't be had or can't go on; the message says why and what to do."""


class AbortedError(EngineError):
    """The pool was aborted while its tasks were under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one task may take; its worker is killed over it.

    ``memory_gib`` is memory of the worker's own (neither the pages of mapped files, such as panels, nor what it was
    forked with count); ``None`` is its fair share of the machine.
    """

    time_s: float = inf
    memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker that ended before it answered, and whether another try may go better."""

    reason: str
    again: bool


class Worker(Protocol):
    """Does tasks, one at a time; where they run is its own affair. A worker that is gone begins anew when asked."""

    def ask(self, question: bytes) -> bytes | Gone:
        """What the worker answers to a packed task."""

    def end(self) -> None:
        """End the process, which is idle."""

    def abort(self) -> None:
        """End the process at once, and begin no other; to be called from another thread than ``ask``."""


def pack(run: Callable[[Task], Result], task: Task) -> bytes:
    """A task as a worker is asked it."""
    return pickle.dumps((run, task))


def unpack(answer: bytes) -> Any:
    """What the task returned; what it raised is raised."""
    ok, value = pickle.loads(answer)  # noqa: S301 - from our own worker
    if not ok:
        raise value
    return value


def prepare_workers() -> None:
    """Begin to import what workers need beside whatever this process does next; else the first worker has it done."""
    if _FORKS:
        with _PROCESSES, _one_thread_each():
            forkserver.ensure_running()


class LocalWorker:
    """A worker process of this machine. It dies with the process that began it, however that one dies."""

    def __init__(self, limits: Limits, *, share_gib: float) -> None:
        self._time_s = limits.time_s
        self._memory_gib = share_gib if limits.memory_gib is None else limits.memory_gib
        self._aborted = False
        self._forked_gib = 0.0
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def ask(self, question: bytes) -> bytes | Gone:
        process, pipe = self._begun()
        try:
            pipe.send_bytes(question)
            answer = self._wait(process, pipe)
        except (EOFError, OSError):
            process.kill()  # or it died of something that left its other end open
            return Gone(f"its worker process died ({self._reap()})", again=True)
        if isinstance(answer, Gone):
            process.kill()
            self._reap()
        elif self._own_gib(process) > self._memory_gib / 2:
            self.end()  # what earlier tasks left behind must not cost a later one its limit
        return answer

    def end(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.join(_END_WITHIN_S)
            self._process.kill()
            self._reap()

    def abort(self) -> None:
        with _PROCESSES:
            self._aborted = True
            if self._process is not None:
                self._process.kill()

    def _begun(self) -> tuple[BaseProcess, Connection]:
        with _PROCESSES:
            if self._aborted:
                raise AbortedError("the pool was aborted")
            if self._process is None or self._pipe is None:
                self._pipe, theirs = multiprocessing.Pipe()
                process = _CONTEXT.Process(target=_serve, args=[theirs], daemon=True)
                with _one_thread_each():
                    _start(process)
                theirs.close()  # ours then ends with theirs
                self._forked_gib = _private_gib(process) if _FORKS else 0.0
                self._process = process
            return self._process, self._pipe

    def _wait(self, process: BaseProcess, pipe: Connection) -> bytes | Gone:
        ends_at = time.monotonic() + max(_START_WITHIN_S, self._time_s)
        while time.monotonic() < ends_at:
            if pipe.poll(_LOOK_EVERY_S):
                message = pipe.recv_bytes()
                if message != _BEGUN:
                    return message
                ends_at = time.monotonic() + self._time_s
            elif self._own_gib(process) > self._memory_gib:
                return Gone(f"took more than {self._memory_gib:.3g} GiB of memory", again=True)
        return Gone(f"no answer within {self._time_s:g} s", again=False)

    def _own_gib(self, process: BaseProcess) -> float:
        return _private_gib(process) - self._forked_gib

    def _reap(self) -> str:
        """Forget the process, which has ended or is about to; says how it ended."""
        with _PROCESSES:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
            if process is None or pipe is None:
                return "aborted"
            pipe.close()
            process.join()  # while no other thread begins one, which would look at all that have ended
        code = process.exitcode or 0
        return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


# Guards the environment and the table of processes while one begins or ends, and a worker's against an abort.
_PROCESSES: Final = threading.Lock()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREAD_COUNTS}
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _private_gib(process: BaseProcess) -> float:
    try:
        memory = psutil.Process(process.pid).memory_info()
    except psutil.NoSuchProcess:
        return 0.0  # its pipe tells
    return float(memory.rss - getattr(memory, "shared", 0)) / _GIB  # only Linux tells pages of files apart


def _start(process: BaseProcess) -> None:
    try:
        process.start()
    except (EOFError, ConnectionError) as error:
        raise EngineError(
            "no worker could be begun: the process that they are forked from ended while it imported training.preload; "
            "its own error is above, or the machine is out of memory"
        ) from error


# In the worker process.


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent()
    while True:
        try:
            question = pipe.recv_bytes()
        except EOFError:
            _leave()
        pipe.send_bytes(_answer(question, pipe))


def _leave() -> NoReturn:
    """End at once: an interpreter that has torch takes most of a second to take itself apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _answer(question: bytes, pipe: Connection) -> bytes:
    try:
        run, task = pickle.loads(question)  # noqa: S301 - from our own parent
        pipe.send_bytes(_BEGUN)
        return pickle.dumps((True, run(task)))
    except Exception as error:
        error.add_note(f"In the worker:\n{traceback.format_exc()}")
        return pickle.dumps((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error, or one that tells of it where it does not survive pickling."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return EngineError("".join(traceback.format_exception(error)))
    return copy


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    threading.Thread(target=_exit_after, args=[parent], daemon=True).start()
    if sys.platform == "linux":  # a thread never runs while C code holds the interpreter's lock; the kernel does
        import fcntl

        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, os.O_ASYNC)


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # a killed parent leaves nobody to report to
