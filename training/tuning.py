"""Optuna picks the hyperparameters that are not part of a variant's id, on validation windows before any test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from training.models.registry import architecture
from training.models.spec import Value
from training.trainer import FoldTask

if TYPE_CHECKING:
    import optuna

Evaluate: TypeAlias = Callable[[Sequence[FoldTask]], Sequence[float]]
BATCH: Final = 2  # trials asked at once: fixed, so that the answer doesn't depend on the number of workers


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """The parameters picked for an architecture; every trial counts, failed ones too."""

    architecture: str
    params: Mapping[str, Value]
    validation_ic: float
    num_trials: int
    num_failed: int


def tune(
    tasks: Sequence[FoldTask],
    *,
    num_trials: int,
    storage: str,
    evaluate: Evaluate,
) -> Tuned:
    """Search the space of the tasks' architecture; the objective is the mean validation IC over the tasks (folds).

    The first trial is the architecture's defaults. A study that was cut off is begun again, so that the same seed
    always gives the same answer; a finished one is read back.
    """
    with _opened(storage) as opened:
        return _search(_study(tasks, num_trials, opened), tasks, num_trials, evaluate)


def _search(study: optuna.Study, tasks: Sequence[FoldTask], num_trials: int, evaluate: Evaluate) -> Tuned:
    spec = architecture(tasks[0].variant.architecture)
    if not study.trials:
        study.enqueue_trial(spec.defaults())
    while len(_finished(study)) < num_trials:
        _run_batch(study, tasks, min(BATCH, num_trials - len(_finished(study))), evaluate)
    good = [trial for trial in study.trials if trial.value is not None]
    best = max(good, key=lambda trial: (trial.value, -trial.number), default=None)
    return Tuned(
        architecture=spec.name,
        params=spec.defaults() if best is None else best.params,
        validation_ic=float("nan") if best is None or best.value is None else best.value,
        num_trials=len(study.trials),
        num_failed=len(study.trials) - len(good),
    )


def _run_batch(study: optuna.Study, tasks: Sequence[FoldTask], size: int, evaluate: Evaluate) -> None:
    import optuna

    # Seeded by position, not by a running generator: the same history always leads to the same next trials.
    study.sampler = optuna.samplers.TPESampler(seed=tasks[0].seed + len(study.trials), n_startup_trials=4)
    space = architecture(tasks[0].variant.architecture).space
    choices: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution(values) for name, values in space.items()
    }
    trials = [study.ask(fixed_distributions=choices) for _ in range(size)]
    jobs = [replace(task, params={**task.params, **trial.params}) for trial in trials for task in tasks]
    values = np.array(evaluate(jobs)).reshape(size, len(tasks)).mean(axis=1)
    for trial, value in zip(trials, values, strict=True):
        if np.isfinite(value):
            study.tell(trial, float(value))
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


@contextmanager
def _opened(url: str) -> Iterator[optuna.storages.RDBStorage]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _study(tasks: Sequence[FoldTask], num_trials: int, storage: optuna.storages.RDBStorage) -> optuna.Study:
    import optuna

    content = json.dumps([*(task.key for task in tasks), num_trials])
    name = f"{tasks[0].variant.architecture}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    if study.trials and len(_finished(study)) < num_trials:
        optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    return study


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.trials if trial.state.is_finished()]
