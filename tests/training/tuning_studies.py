"""Studies whose fits are a plain function, and a process that searches one and may be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from feature_repo.market.costs import CostModel
from training.models.registry import architecture, architectures
from training.models.spec import Architecture, Budget
from training.splits.walk_forward import Fold
from training.trainer import FoldTask
from training.tuning import Tuned, tune
from training.variants import make_variant

SPACE = {"a": (2, 1, 3), "b": ("x", "y", "z"), "c": (0.5, 0.1, 2.5), "d": (0.0, 1e-4, 1e-2), "e": (10, 30, 20)}


def toys() -> dict[str, Architecture]:
    """Architectures with spaces of 3 and of 5 parameters, 27 and 243 points; what they would fit doesn't matter."""
    model = architecture("elastic_net")
    spaces = {"three": {name: SPACE[name] for name in "abc"}, "five": SPACE}
    return {name: replace(model, name=name, grid={}, space=space) for name, space in spaces.items()}


def make_tasks(name="three", *, num_folds=2, seed=3, code="code") -> list[FoldTask]:
    """Tasks without data; another ``code`` is another study of the same question."""
    spec = architecture(name)
    variant = make_variant(spec, 7, "toy", tuple(choices[0] for _, choices in spec.grid.values()))
    none_T = np.zeros(0, dtype=bool)
    folds = [
        Fold(index=k, train=slice(k, 5), validate=slice(5, 8), test=slice(8, 9), learn_T=none_T, validate_T=none_T)
        for k in range(num_folds)
    ]
    return [
        FoldTask(
            variant=variant,
            params=dict(variant.params),
            panel=Path("nowhere"),
            panel_fingerprint="none",
            fold=fold,
            kind="oos",
            interval="1d",
            seed=seed,
            budget=Budget(),
            costs=CostModel(),
            code=code,
            git_sha="sha",
            folder=Path("nowhere"),
            signals=Path("nowhere"),
        )
        for fold in folds
    ]


def merit(task: FoldTask, *, noise=0.3) -> float:
    """What a fit is worth: a random number for each choice and, smaller, for each point and fold."""
    space = architecture(task.variant.architecture).space
    own = sum(_normal(task.seed, name, task.params[name]) for name in space)
    return own + noise * _normal(task.seed, task.fold.index, *(task.params[name] for name in space))


def evaluate(jobs) -> list[float]:
    return [merit(job) for job in jobs]


def point(task: FoldTask) -> tuple:
    """The job's parameters that are searched."""
    return tuple(task.params[name] for name in architecture(task.variant.architecture).space)


def _normal(*of) -> float:
    return float(np.random.default_rng(zlib.crc32(repr(of).encode())).normal())


def read_log(log: Path) -> list[str]:
    """One line a fit that any process began."""
    return log.read_text().splitlines() if log.exists() else []


def told(tuned: Tuned) -> str:
    return json.dumps(asdict(tuned), sort_keys=True)


def main(url: str, log: str, num_trials: str, kill_at: str, go: str) -> None:
    """Search once ``go`` exists; at fit number ``kill_at``, wait until ``go`` is gone and die by kill -9."""
    architectures().update(toys())
    print("ready", flush=True)  # noqa: T201
    _until(Path(go).exists)
    num_begun = 0

    def logged(jobs):
        nonlocal num_begun
        for job in jobs:
            num_begun += 1
            if num_begun == int(kill_at):
                Path(f"{log}.dying").touch()
                _until(lambda: not Path(go).exists())
                os.kill(os.getpid(), signal.SIGKILL)
            with Path(log).open("a") as lines:
                lines.write(f"{job.fold.index} {point(job)}\n")
        return evaluate(jobs)

    print(told(tune(make_tasks(), num_trials=int(num_trials), storage=url, evaluate=logged)))  # noqa: T201


def _until(happened) -> None:
    while not happened():
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
