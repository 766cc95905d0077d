"""Which fits are made together in a stack, and making them: hyperparameter variants that share data and shape.

A stack is one task of the pool. Each of its results is published under its own key, so a run that was killed goes on
with those that are missing; they come out the same, for on a CPU a stacked fit does not depend on its company.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from training.dataset import Panel
from training.engine import Lost, Pool
from training.models.fitted import FittedModel
from training.models.registry import architecture
from training.models.stacked import SHAPELESS, fit_stacked, is_worth_stacking
from training.models.torch_runtime import choose_device
from training.panels import load_panel
from training.trainer import (
    Fit,
    FoldResult,
    FoldTask,
    finished_result,
    fit_alone,
    learning_windows,
    train_fold,
    validation_ic,
)

Answer = TypeVar("Answer")

LARGEST: Final = 18  # members of a stack: as many as were measured


def plan_stacks(tasks: Sequence[FoldTask], *, expected: int = 1) -> list[FoldTask]:
    """The tasks in their order, those marked ``stacked`` that are quicker so.

    The mark is part of a task's key, so it must not depend on what is finished: plan all tasks of a run at once, or
    say how many are ``expected`` in a stack where the tasks are what is left of more.
    """
    planned = list(tasks)
    for rows in _alike(tasks):
        num = max(len(rows), expected)
        if num > 1 and tasks[rows[0]].variant.family == "deep" and _is_worth(tasks[rows[0]], num):
            for row in rows:
                planned[row] = replace(tasks[row], stacked=True)
    return planned


def map_stacks(
    run: Callable[[Sequence[FoldTask]], Sequence[Answer]],
    tasks: Sequence[FoldTask],
    pool: Pool,
    *,
    on_done: Callable[[Answer | Lost[FoldTask]], None],
) -> list[Answer | Lost[FoldTask]]:
    """``pool.map`` over tasks of which stacks go together; ``run`` is ``train_folds`` or ``validation_ics``.

    Of a stack that was lost (it took too long, or too much memory) each task is run again by itself.
    """
    answers = _map_parts(run, _in_parts(tasks), pool, on_done)
    return [answers[task.key] for task in tasks]


def train_folds(tasks: Sequence[FoldTask]) -> list[FoldResult]:
    """``train_fold`` of each task, of which those that are not finished are fitted in a stack where so planned."""
    fit = _fit_together([task for task in tasks if finished_result(task) is None])
    return [train_fold(task, fit=fit) for task in tasks]


def validation_ics(tasks: Sequence[FoldTask]) -> list[float]:
    """``validation_ic`` of each task, fitted in a stack where so planned."""
    fit = _fit_together(tasks)
    return [validation_ic(task, fit=fit) for task in tasks]


def _is_worth(task: FoldTask, num: int) -> bool:
    device = choose_device(task.budget.device)  # imports torch: not for a family that has no stacks
    return is_worth_stacking(architecture(task.variant.architecture), device.type, num)


def _map_parts(
    run: Callable[[Sequence[FoldTask]], Sequence[Answer]],
    parts: Sequence[Sequence[FoldTask]],
    pool: Pool,
    on_done: Callable[[Answer | Lost[FoldTask]], None],
) -> dict[str, Answer | Lost[FoldTask]]:
    """Answers by the tasks' keys."""

    def tell(answer: Sequence[Answer] | Lost[Sequence[FoldTask]]) -> None:
        for each in _settled(answer):
            on_done(each)

    answers: dict[str, Answer | Lost[FoldTask]] = {}
    for part, answer in zip(parts, pool.map(run, parts, on_done=tell), strict=True):
        settled = _settled(answer)
        answers |= dict(zip((task.key for task in part), settled, strict=bool(settled)))
    left = [[task] for part in parts for task in part if task.key not in answers]
    return answers | (_map_parts(run, left, pool, on_done) if left else {})


def _settled(answer: Sequence[Answer] | Lost[Sequence[FoldTask]]) -> Sequence[Answer | Lost[FoldTask]]:
    """The answer to each task; none yet to those of a stack that was lost."""
    if not isinstance(answer, Lost):
        return answer
    return [Lost(task, answer.reason) for task in answer.task] if len(answer.task) == 1 else []


def _in_parts(tasks: Sequence[FoldTask]) -> list[list[FoldTask]]:
    """Those of a stack together, every other alone; in the order of their first ones."""
    sized = [(rows, LARGEST if tasks[rows[0]].stacked else 1) for rows in _alike(tasks)]
    parts = sorted(rows[first : first + size] for rows, size in sized for first in range(0, len(rows), size))
    return [[tasks[row] for row in rows] for rows in parts]


def _alike(tasks: Sequence[FoldTask]) -> list[list[int]]:
    """Rows of the tasks that could make one stack."""
    groups: dict[Hashable, list[int]] = {}
    for row, task in enumerate(tasks):
        groups.setdefault(_shared(task), []).append(row)
    return list(groups.values())


def _shared(task: FoldTask) -> Hashable:
    """What the members of a stack have in common."""
    fold = [(part.start, part.stop) for part in (task.fold.train, task.fold.validate)]
    shape = sorted((name, value) for name, value in task.params.items() if name not in SHAPELESS)
    return (
        *(task.variant.architecture, task.variant.lookback, task.panel, task.panel_fingerprint),
        *(*fold, task.fold.learn_T.tobytes(), task.fold.validate_T.tobytes()),
        *(tuple(shape), task.budget, task.stacked),
    )


def _fit_together(tasks: Sequence[FoldTask]) -> Fit:
    """How these tasks, of one stack or one alone, are to be fitted."""
    if not tasks or not tasks[0].stacked:
        return fit_alone
    started = time.monotonic()
    outcomes = dict(zip((task.key for task in tasks), _outcomes(tasks, load_panel(tasks[0].panel)), strict=True))
    share_s = (time.monotonic() - started) / len(tasks)

    def take(task: FoldTask, panel: Panel) -> tuple[FittedModel, float]:  # noqa: ARG001 (how tasks are fitted)
        outcome = outcomes[task.key]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, share_s

    return take


def _outcomes(tasks: Sequence[FoldTask], panel: Panel) -> Sequence[FittedModel | Exception]:
    """Each task's model or why there is none; where the stack as a whole fails, one after another in its stead."""
    try:
        return fit_stacked(
            architecture(tasks[0].variant.architecture),
            [task.params for task in tasks],
            *learning_windows(tasks[0], panel),
            lookback=tasks[0].variant.lookback,
            seeds=[task.fit_seed for task in tasks],
            budget=tasks[0].budget,
        )
    except Exception as error:
        if len(tasks) == 1:
            return [error]
        return [outcome for task in tasks for outcome in _outcomes([task], panel)]
