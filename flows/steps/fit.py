"""Choosing, tuning and training variants over the process pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feature_repo.market.costs import CostModel
from flows.cycle import CycleConfig
from flows.steps.data import Panels
from flows.steps.run import Run
from training.engine import Lost, Pool
from training.models.spec import Budget, Value
from training.splits.walk_forward import Fold
from training.trainer import FoldResult, FoldTask, Kind, train_fold, validation_ic
from training.tuning import Tuned, tune
from training.variants import Variant, catalogue, choose

Done = Callable[[FoldTask], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A variant with its fits, in the order of its tasks: the test folds, then the live one."""

    variant: Variant
    tasks: Sequence[FoldTask]
    results: Sequence[FoldResult]


def choose_variants(config: CycleConfig, pipelines: Sequence[str]) -> list[Variant]:
    """The budget's choice from the catalogue over the pipelines that apply."""
    return choose([variant for variant in catalogue() if variant.pipeline in pipelines], config.variants)


def fold_task(
    run: Run,
    panels: Panels,
    variant: Variant,
    fold: Fold,
    *,
    kind: Kind,
    costs: CostModel,
    tuned: Mapping[str, Value],
) -> FoldTask:
    """One fit of a variant, with everything a worker needs to know."""
    return FoldTask(
        variant=variant,
        params={**tuned, **dict(variant.params)},
        panel=panels.folders[variant.pipeline],
        panel_fingerprint=panels.fingerprints[variant.pipeline],
        fold=fold,
        kind=kind,
        interval=run.config.interval,
        seed=run.config.seed,
        budget=Budget(),
        costs=costs,
        code=run.code,
        git_sha=run.git_sha,
        folder=run.fits,
        signals=run.signals,
        made_at=run.now.isoformat(),
    )


def num_trials(config: CycleConfig, variant: Variant) -> int:
    """What Optuna may try: agents are slow, so they are given less."""
    return config.agent_trials if variant.family == "agent" else config.trials


def tune_architecture(
    run: Run, panels: Panels, variants: Sequence[Variant], *, costs: CostModel, storage: str, pool: Pool, done: Done
) -> Tuned:
    """Tune one architecture on its variant of middle lookback; all its variants take the answer."""
    middle = sorted(variants, key=lambda variant: (variant.lookback, variant.id))[len(variants) // 2]
    tasks = [fold_task(run, panels, middle, fold, kind="oos", costs=costs, tuned={}) for fold in panels.tuning]

    def evaluate(jobs: Sequence[FoldTask]) -> list[float]:
        values = pool.map(validation_ic, jobs, on_done=done)
        return [float("nan") if isinstance(value, Lost) else value for value in values]

    return tune(tasks, num_trials=num_trials(run.config, middle), storage=storage, evaluate=evaluate)


def variant_tasks(
    run: Run, panels: Panels, variant: Variant, *, costs: CostModel, tuned: Mapping[str, Value]
) -> list[FoldTask]:
    """Every fit of a variant: its test folds (agents take the newest few) and the live one."""
    newest = run.config.agent_folds if variant.family == "agent" else len(panels.folds)
    tested = [
        fold_task(run, panels, variant, fold, kind="oos", costs=costs, tuned=tuned) for fold in panels.folds[-newest:]
    ]
    return [*tested, fold_task(run, panels, variant, panels.live, kind="live", costs=costs, tuned=tuned)]


def train_variant(variant: Variant, tasks: Sequence[FoldTask], pool: Pool, done: Done) -> Trained:
    """Train every fold of a variant; a fold whose worker died is a failure with that reason."""
    results = pool.map(train_fold, tasks, on_done=done)
    settled = [_lost(result) if isinstance(result, Lost) else result for result in results]
    return Trained(variant=variant, tasks=tasks, results=settled)


def _lost(lost: Lost[FoldTask]) -> FoldResult:
    task = lost.task
    return FoldResult(variant=task.variant.id, fold=task.fold.index, kind=task.kind, key=task.key, reason=lost.reason)
