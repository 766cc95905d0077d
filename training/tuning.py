"""Optuna picks the hyperparameters that are not part of a variant's id, on validation windows before any test.

A study in Postgres is a journal of finished trials, and what is tried next is a function of the journal alone: the
first half of the trials are points of the grid, spread out; the others come from TPE, seeded by position. Trials are
asked for in batches and fitted fold by fold; the pruner ends those that fall behind, by what finished batches did. So
the answer depends on no number of workers and no order in which fits end, and a journal cut off anywhere leads to the
same end.

Whoever searches holds a lock on the study, which Postgres lets go of when the process dies, however it dies. Another
process that wants the same study waits, then reads the answer back or goes on where the journal ends.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from feature_repo.database import connect
from training.models.registry import architecture
from training.models.spec import Value
from training.trainer import FoldTask

if TYPE_CHECKING:
    import optuna
    import psycopg

Evaluate: TypeAlias = Callable[[Sequence[FoldTask]], Sequence[float]]
Space: TypeAlias = Mapping[str, Sequence[Value]]
BATCH: Final = 4  # trials asked at once: fixed, so that the answer doesn't depend on the number of workers
MIN_COMPLETE: Final = 2  # trials the pruner must have seen to their end before it ends another
MAX_ASKS: Final = 8  # of TPE for one new point: on small spaces it comes back to those it likes

# Tensor suffixes: P points of the grid, D parameters.


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """The parameters picked for an architecture, or its defaults where no trial was completed.

    ``num_trials`` counts every trial: the completed, the ``num_failed`` and the ``num_pruned``. ``validation_ic`` is
    that of the parameters picked, NaN where every trial failed.
    """

    architecture: str
    params: Mapping[str, Value]
    validation_ic: float
    num_trials: int
    num_failed: int
    num_pruned: int


def tune(
    tasks: Sequence[FoldTask],
    *,
    num_trials: int,
    storage: str,
    evaluate: Evaluate,
) -> Tuned:
    """Search the space of the tasks' architecture; the objective is the mean validation IC over the tasks (folds).

    A trial is fitted on the tasks in their order, and only as far as it doesn't fail (NaN) and isn't pruned: put the
    folds of one variant, or of several. The first trial is the architecture's defaults; no point is tried twice, so a
    space smaller than ``num_trials`` is searched whole and no further. ``storage`` is a Postgres URL, ``evaluate``
    gives the values of fits in their order, however it runs them.
    """
    import optuna

    name = study_name(tasks, num_trials)
    with _locked(storage, f"study {name}") as lock, _opened(storage) as opened:
        study = optuna.create_study(study_name=name, storage=opened, direction="maximize", load_if_exists=True)
        space = architecture(tasks[0].variant.architecture).space
        wanted = min(num_trials, math.prod(map(len, space.values())))
        num_grid = (wanted + 1) // 2
        while (num_done := len(study.trials)) < wanted:
            batch = _batch(num_done, num_grid, wanted)
            ended = _run_batch(study.trials, batch, tasks, evaluate, is_grid=num_done < num_grid)
            lock.execute("SELECT 1")  # a connection that was lost lost the lock with it: then the journal is another's
            study.add_trials(ended)
        return _tuned(tasks[0].variant.architecture, study.trials)


def study_name(tasks: Sequence[FoldTask], num_trials: int) -> str:
    """The study's name in Optuna; anything that could change its answer is in it."""
    content = json.dumps([*(task.key for task in tasks), num_trials])
    return f"{tasks[0].variant.architecture}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def grid_points(space: Space) -> Iterator[dict[str, Value]]:
    """Every point of the space once: the defaults, then always the one farthest from all that came before.

    Far means different in many parameters; of points equally far the one whose choices came up least is next, then
    the first in the order of the product. Source: Gonzalez (1985), Clustering to minimize the maximum intercluster
    distance (farthest-first traversal), in Hamming distance.
    """
    index_PD = np.array(list(np.ndindex(*map(len, space.values()))), dtype=np.intp)
    distance_P, used_P = np.full(len(index_PD), len(space) + 1), np.zeros(len(index_PD), dtype=np.intp)
    for _ in index_PD:
        p = np.lexsort((used_P, -distance_P))[0]
        yield {name: choices[i] for (name, choices), i in zip(space.items(), index_PD[p], strict=True)}
        equal_PD = index_PD == index_PD[p]
        distance_P = np.minimum(distance_P, (~equal_PD).sum(axis=1))
        used_P += equal_PD.sum(axis=1)


def _batch(num_done: int, num_grid: int, num_trials: int) -> range:
    """Numbers of the trials of the batch under way, of which some may be done; it is all grid or all TPE."""
    start, stop = (0, num_grid) if num_done < num_grid else (num_grid, num_trials)
    first = start + (num_done - start) // BATCH * BATCH
    return range(first, min(first + BATCH, stop))


def _run_batch(
    journal: Sequence[optuna.trial.FrozenTrial],
    batch: range,
    tasks: Sequence[FoldTask],
    evaluate: Evaluate,
    *,
    is_grid: bool,
) -> list[optuna.trial.FrozenTrial]:
    """The batch's trials that the journal lacks, ended, in their order.

    They are asked for and told in a study in memory that knows the batches before this one and nothing else.
    """
    import optuna

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=tasks[0].seed + batch.start, n_startup_trials=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=MIN_COMPLETE),
    )
    study.add_trials(journal[: batch.start])
    asked = _ask(study, architecture(tasks[0].variant.architecture).space, batch, is_grid=is_grid)
    trials = asked[len(journal) - batch.start :]
    values = _evaluate(trials, tasks, evaluate)
    return [_tell(study, trial, values[trial.number], len(tasks)) for trial in trials]


def _ask(study: optuna.Study, space: Space, batch: range, *, is_grid: bool) -> list[optuna.Trial]:
    import optuna

    choices: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution(values) for name, values in space.items()
    }
    if is_grid:
        for point in islice(grid_points(space), batch.start, batch.stop):
            study.enqueue_trial(point)
        return [study.ask(choices) for _ in batch]
    tried = [trial.params for trial in study.trials]
    trials = []
    for _ in batch:
        trials.append(_ask_new(study, space, choices, tried))
        tried.append(trials[-1].params)
    return trials


def _ask_new(
    study: optuna.Study,
    space: Space,
    choices: dict[str, optuna.distributions.BaseDistribution],
    tried: Sequence[Mapping[str, Value]],
) -> optuna.Trial:
    """A trial of a point not tried yet: TPE's, or the grid's next if TPE keeps coming back to old ones."""
    for _ in range(MAX_ASKS):
        trial = study.ask(choices)
        if trial.params not in tried:
            return trial  # the others stay under way in memory, and TPE keeps away from such (its constant liar)
    study.enqueue_trial(next(point for point in grid_points(space) if point not in tried))
    return study.ask(choices)


def _evaluate(trials: Sequence[optuna.Trial], tasks: Sequence[FoldTask], evaluate: Evaluate) -> dict[int, list[float]]:
    """Each trial's values by its number, one a task, as far as it got."""
    values: dict[int, list[float]] = {trial.number: [] for trial in trials}
    going_on = list(trials)
    for task in tasks:
        jobs = [replace(task, params={**task.params, **trial.params}) for trial in going_on]
        for trial, value in zip(going_on, evaluate(jobs), strict=True):
            values[trial.number].append(value)
        going_on = [trial for trial in going_on if _goes_on(trial, values[trial.number])]
        if not going_on:
            break
    return values


def _goes_on(trial: optuna.Trial, values: Sequence[float]) -> bool:
    if not math.isfinite(values[-1]):
        return False
    trial.report(float(np.mean(values)), step=len(values) - 1)
    return not trial.should_prune()


def _tell(
    study: optuna.Study, trial: optuna.Trial, values: Sequence[float], num_folds: int
) -> optuna.trial.FrozenTrial:
    import optuna

    if not math.isfinite(values[-1]):
        return study.tell(trial, state=optuna.trial.TrialState.FAIL)
    if len(values) < num_folds:
        return study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return study.tell(trial, float(np.mean(values)))


def _tuned(name: str, trials: Sequence[optuna.trial.FrozenTrial]) -> Tuned:
    from optuna.trial import TrialState

    complete = [(trial.value, trial) for trial in trials if trial.state == TrialState.COMPLETE]
    value, best = max(complete, key=lambda each: (each[0], -each[1].number), default=(None, None))
    return Tuned(
        architecture=name,
        params=architecture(name).defaults() if best is None else best.params,
        validation_ic=float("nan") if value is None else value,
        num_trials=len(trials),
        num_failed=sum(trial.state == TrialState.FAIL for trial in trials),
        num_pruned=sum(trial.state == TrialState.PRUNED for trial in trials),
    )


@contextmanager
def _opened(url: str) -> Iterator[optuna.storages.RDBStorage]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _locked(url, "tables"):  # of two processes that find an empty database one makes Optuna's tables
        storage = optuna.storages.RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _locked(url: str, what: str) -> Iterator[psycopg.Connection]:
    """A lock that one process has at a time, on a connection of its own: it ends with it."""
    from sqlalchemy import make_url

    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"tuning {what}"])
        yield connection
