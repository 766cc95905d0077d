"""Tasks for worker processes: good ones, and every bad manner they may have. Workers import it: it imports little."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path

_KEPT: list[object] = []  # what a leak leaves behind


class UnportableError(Exception):
    """Pickles, but can't be made again from its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def square(x: int) -> int:
    return x * x


def pid(_: object) -> int:
    return os.getpid()


def die(how: str) -> None:
    sys.exit(3) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)


def die_once(flag: str) -> str:
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def wait_for(flag: str) -> str:
    """Answers once the flag is there, and leaves a line about every time it was run."""
    with open(f"{flag}.runs", "a") as runs:
        runs.write("run\n")
    while not Path(flag).exists():
        time.sleep(0.01)
    return "waited"


def kill_beside(flag: str) -> None:
    """Dies once its neighbour is under way, and lets it go on the second time."""
    while not Path(f"{flag}.runs").exists():
        time.sleep(0.01)
    if Path(f"{flag}.killed").exists():
        Path(flag).touch()
    Path(f"{flag}.killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def hang(how: str) -> None:
    """Never comes back, and asks nobody: not Ctrl-C, not the interpreter's lock."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    if how == "sleep":
        time.sleep(10_000)
    elif how == "lock":
        sum(range(10**15))
    else:
        import numpy as np

        square_NN = np.eye(200)
        while True:
            square_NN @ square_NN


def announce_and_hang(job: tuple[str, str]) -> None:
    where, how = job
    Path(where, str(os.getpid())).touch()
    hang(how)


def eat(mib: int) -> str:
    """Takes so much memory, and holds it for a while so that somebody may look."""
    blocks = []
    for _ in range(mib // 20):
        blocks.append(b"x" * (20 << 20))
        time.sleep(0.01)
    time.sleep(1)
    return "full"


def leak(mib: int) -> int:
    _KEPT.append(b"x" * (mib << 20))
    return os.getpid()


def read_mapped(path: str) -> float:
    """Reads a mapped file and waits to be looked at; returns the GiB in its memory."""
    import numpy as np
    import psutil

    values = np.memmap(path, dtype=np.float32, mode="r")
    assert values.sum() == 0
    time.sleep(1)
    return psutil.Process().memory_info().rss / 2**30


def refuse(what: str) -> object:
    if what == "error":
        raise ValueError("no such thing")
    if what == "unportable":
        raise UnportableError("this", "that")
    if what == "answer":
        return lambda: None
    return what


def mixed(job: tuple[str, object]) -> object:
    """One of the above by its name."""
    name, task = job
    return globals()[name](task)


def thread_counts(_: object) -> dict[str, object]:
    """What the numeric libraries would use."""
    import numba
    import torch
    from threadpoolctl import threadpool_info

    return {
        "torch": torch.get_num_threads(),
        "numba": numba.get_num_threads(),
        "pools": {pool["num_threads"] for pool in threadpool_info()},
    }


def forked_with(_: object) -> dict[str, object]:
    """What a new worker has from the process that it was forked from."""
    torch = sys.modules.get("torch")
    return {
        "torch": torch is not None,
        "cuda begun": torch and torch.cuda.is_initialized(),
        "collects garbage": gc.isenabled(),
        "forked by": os.getppid(),
    }


# Of who watches.


def thread_names(pid: int) -> list[str]:
    """A process's threads besides its first."""
    tasks = Path(f"/proc/{pid}/task")
    return [(task / "comm").read_text().strip() for task in tasks.iterdir() if int(task.name) != pid]


def has_ended(pid: int) -> bool:
    """Whether a process ends within a minute; a zombie has ended."""
    import psutil

    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False
