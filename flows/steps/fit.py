"""Choosing, tuning and training variants over the process pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from feature_repo.market.costs import CostModel
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps.data import Panels
from flows.steps.run import Run, place
from training.catalogue_file import read_catalogue
from training.engine import Lost, Pool, open_pool
from training.models.spec import Budget, Value
from training.splits.walk_forward import Fold
from training.stacking import map_stacks, plan_stacks, train_folds, validation_ics
from training.trainer import FoldResult, FoldTask, Kind
from training.tuning import BATCH, Tuned, tune
from training.variants import Variant, catalogue, choose
from training.worker import Limits, prepare_workers

Done = Callable[[FoldResult], None]
FIT_LIMITS = Limits(time_s=3.0 * Budget().deadline_s)
"""A fit looks at its deadline itself; one that has not for three of them never will."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A variant with its fits, in the order of its tasks: the test folds, then the live one."""

    variant: Variant
    tasks: Sequence[FoldTask]
    results: Sequence[FoldResult]


def prepare(settings: Settings) -> None:
    """Have local workers begin their imports, which take seconds, beside what comes before the first fit."""
    if settings.engine == "local":
        prepare_workers()


def fit_pool(settings: Settings) -> AbstractContextManager[Pool]:
    """The workers that fits run in."""
    return open_pool(settings.engine, settings.workers, shared=settings.home, limits=FIT_LIMITS)


def listed_variants(config: CycleConfig) -> list[Variant]:
    """The catalogue's variants: the default one's, or those of the file that the configuration names."""
    return read_catalogue(Path(config.catalogue)) if config.catalogue else catalogue()


def choose_variants(config: CycleConfig, pipelines: Sequence[str]) -> list[Variant]:
    """The budget's choice from the catalogue over the pipelines that apply."""
    return choose([variant for variant in listed_variants(config) if variant.pipeline in pipelines], config.variants)


def fold_task(
    run: Run,
    panels: Panels,
    variant: Variant,
    fold: Fold,
    *,
    kind: Kind,
    costs: CostModel,
    tuned: Mapping[str, Value],
    keeps_model: bool = False,
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
        budget=Budget(device=run.device),
        costs=costs,
        code=run.code,
        git_sha=run.git_sha,
        folder=run.fits,
        signals=run.signals,
        made_at=run.now.isoformat(),
        keeps_model=keeps_model,
        market=place(run.config.market),
        market_name=run.market,
        as_of=run.config.as_of.isoformat() if run.config.as_of else "",
    )


def num_trials(config: CycleConfig, variant: Variant) -> int:
    """What Optuna may try: agents are slow, so they are given less."""
    return config.agent_trials if variant.family == "agent" else config.trials


def tune_architecture(
    run: Run,
    panels: Panels,
    variants: Sequence[Variant],
    *,
    costs: CostModel,
    storage: str,
    pool: Pool,
    done: Callable[[object], None],
) -> Tuned:
    """Tune one architecture; all its variants take the answer, so each fold is fitted on another of them.

    They lie evenly over the lookbacks: this costs about what the middle one would, without fitting the parameters to
    one lookback, pipeline and size.
    """
    ordered, num_folds = sorted(variants, key=lambda variant: (variant.lookback, variant.id)), len(panels.tuning)
    spread = [ordered[(2 * k + 1) * len(ordered) // (2 * num_folds)] for k in range(num_folds)]
    tasks = [
        fold_task(run, panels, variant, fold, kind="oos", costs=costs, tuned={})
        for variant, fold in zip(spread, panels.tuning, strict=True)
    ]

    def evaluate(jobs: Sequence[FoldTask]) -> list[float]:
        values = map_stacks(validation_ics, plan_stacks(jobs, expected=BATCH), pool, on_done=done)
        return [float("nan") if isinstance(value, Lost) else value for value in values]

    return tune(tasks, num_trials=num_trials(run.config, spread[0]), storage=storage, evaluate=evaluate)


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
    return Trained(variant=variant, tasks=tasks, results=run_tasks(tasks, pool, done))


def run_tasks(tasks: Sequence[FoldTask], pool: Pool, done: Done) -> list[FoldResult]:
    """Train folds of any variants, in stacks where so planned; results in the tasks' order."""
    results = map_stacks(train_folds, tasks, pool, on_done=lambda result: done(_settled(result)))
    return [_settled(result) for result in results]


def _settled(result: FoldResult | Lost[FoldTask]) -> FoldResult:
    if not isinstance(result, Lost):
        return result
    task = result.task
    return FoldResult(variant=task.variant.id, fold=task.fold.index, kind=task.kind, key=task.key, reason=result.reason)
