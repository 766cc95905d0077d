"""The cycle as a Prefect flow: a market goes in, staged models and a drift report come out.

Prefect coordinates in threads; the fits themselves run in the process pool. What a killed cycle had finished (feature
rows, panels, fits, runs, versions) is found again by its key, so running it again ends right.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import psutil
import psycopg
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner
from rich.progress import Progress
from sqlalchemy.exc import OperationalError

from feature_repo.market.schema import Market
from feature_repo.pipelines.catalog import CATALOGUE
from flows import shadow
from flows.console import make_console, phase, progress, variants_phase
from flows.cycle import CycleConfig, CycleSummary, LabelKind, Policy, Splitter
from flows.postgres import Databases, Hold
from flows.settings import Settings, read_settings
from flows.stages import open_log
from flows.steps import data, describe, evidence, fit, judge, leaks, record, watch
from flows.steps.run import Run, RunError, alone, name_run, remember
from training.engine import Pool
from training.latency import latency_p99
from training.model_registry import ModelRegistry
from training.outside_signals import comparable
from training.rating.promotion import current
from training.signals import SignalStore
from training.tracking import Tracker
from training.trainer import FoldResult
from training.tuning import Tuned
from training.variants import Variant

_DEFAULTS = CycleConfig()
PARALLEL_VARIANTS = 4  # how many variants feed the pool at once; the pool itself has one process a core


def _is_transient(_task: object, _run: object, state: Any) -> bool:
    """Whether trying again may help: a database or file system that did not answer, never a wrong input."""
    return isinstance(state.result(raise_on_failure=False), OperationalError | psycopg.OperationalError | OSError)


def step(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A Prefect task under a name a person understands, tried again when a server did not answer."""
    return task(
        name=name, cache_policy=NO_CACHE, retries=2, retry_delay_seconds=3, retry_condition_fn=_is_transient, **options
    )


load = step("Load and validate the market")(data.load)
build_tables = step("Build the feature tables")(data.build_tables)
apply_definitions = step("Apply the Feast definitions")(data.open_store)
assemble = step("Assemble point-in-time panels")(data.assemble_panels)
check_leaks = step("Check for leaks")(leaks.check_leaks)
judge_all = step("Rate and gate all variants")(judge.judge)
register = step("Log and register the variants")(record.log_and_register_all)
compare_staged = step("Test the challengers beside Production")(shadow.beside_production)
change_stages = step("Move the stages")(record.change_stages)
watch_drift = step("Watch for drift")(watch.watch)
log_summary = step("Log the cycle's summary")(record.log_summary)


# ``name`` is what Prefect calls the task's run.
@step("Tune an architecture", task_run_name="Tune {name}")
def tune(name: str, **job: Any) -> Tuned:  # noqa: ARG001
    """Let Optuna pick the parameters of an architecture."""
    return fit.tune_architecture(**job)


@step("Train a variant", task_run_name="Train {name}")
def train(name: str, **job: Any) -> fit.Trained:  # noqa: ARG001
    """Train every fold of a variant, and its live model."""
    return fit.train_variant(**job)


_THREADS: Any = ThreadPoolTaskRunner(max_workers=PARALLEL_VARIANTS)


@flow(name="cycle", task_runner=_THREADS)
def cycle(
    market: str = "us_stocks",
    interval: str = "1d",
    horizon: int = 1,
    label: LabelKind = "vol_scaled",
    as_of: datetime | None = None,
    catalogue: str = "",
    variants: int = _DEFAULTS.variants,
    splitter: Splitter = _DEFAULTS.splitter,
    folds: int = _DEFAULTS.folds,
    agent_folds: int = _DEFAULTS.agent_folds,
    trials: int = _DEFAULTS.trials,
    agent_trials: int = _DEFAULTS.agent_trials,
    seed: int = _DEFAULTS.seed,
    policy: Policy = "strict",
) -> CycleSummary:
    """Run the whole loop once. See ``CycleConfig`` for the parameters; ``PERENNIAL_...`` says where and on what."""
    started = time.monotonic()
    settings = read_settings()
    config = CycleConfig(
        market=market,
        interval=interval,
        horizon=horizon,
        label=label,
        as_of=as_of,
        catalogue=catalogue,
        variants=variants,
        splitter=splitter,
        folds=folds,
        agent_folds=agent_folds,
        trials=trials,
        agent_trials=agent_trials,
        seed=seed,
        policy=policy,
    )
    with Hold(settings) as hold, _ctrl_c_ends(hold), progress(make_console(stderr=True)) as bars:
        return _cycle(settings, hold.databases, config, bars, started)


def run_cycle(settings: Settings, config: CycleConfig) -> CycleSummary:
    """Run the flow from the command line; ``settings`` must be those of the environment."""
    if settings != read_settings():
        raise RunError("the flow reads its settings from the environment: export them before running it")
    return cycle(**asdict(config))


def _cycle(
    settings: Settings, databases: Databases, config: CycleConfig, bars: Progress, started: float
) -> CycleSummary:
    now = datetime.now(UTC)
    fit.prepare(settings)
    with phase(bars, "Market data"):
        market: Market = load(config, now)
    run = name_run(settings, config, market, now)
    tracker = Tracker(databases.url("mlflow"), settings.artifacts_url, run.market)
    with alone(databases, run.market) as connection:
        with fit.fit_pool(settings) as pool:
            with phase(bars, "Features, in two times"):
                not_applicable = build_tables(run, market, connection, pool)
            with phase(bars, "Point-in-time panels, by Feast"):
                panels = _panels(run, market, databases, [name for name in CATALOGUE if name not in not_applicable])
            with phase(bars, "Leaks: who knows the future"):
                checked = check_leaks(run, market, panels)
            chosen = fit.choose_variants(config, list(panels.folders))
            tuned = _tune_all(run, market, panels, chosen, databases, pool, bars)
            trained = _train_all(run, market, panels, chosen, tuned, pool, bars)
        with phase(bars, "Ratings and gates"):
            registry = ModelRegistry(tracker=tracker, signals=SignalStore(root=run.signals))
            judgement = judge_all(
                run,
                market.info,
                panels,
                trained,
                checked,
                active={held.variant: held.stage for held in current(tracker.client, run.market)},
                beside=comparable(registry, interval=config.interval, horizon=config.horizon),
                num_tuning_trials=sum(each.num_trials for each in tuned.values()),
                drift=evidence.read_drift(connection, run, panels),
                latency_p99_ms=latency_p99(connection, run.market),
            )
        with phase(bars, "MLflow runs and versions"):
            registered = register(run, tracker, trained, panels, judgement, market.info.sessions_per_year)
        with phase(bars, "Stages"), open_log(settings, databases) as log:
            # before any stage moves: with another set in Production all tests begin again
            shown = compare_staged(settings, config, market, tracker.client, log, now=run.now)
            shadow.keep(tracker.client, shown)
            change_stages(run, tracker, log, judgement, registered.versions)
        with phase(bars, "Drift and reports"):
            watched = watch_drift(
                run, market.info, panels, judgement, trained, connection, settings.evidently_workspace
            )
            log_summary(
                run,
                tracker,
                panels,
                record.staged_table(trained, judgement),
                judgement.tracks,
                num_variants=len(trained),
                num_trials=sum(each.num_trials for each in tuned.values()),
                fold_tables=registered.fold_tables,
                reports=[*watched.files, judge.write_report(run, judgement)],
                ended_at=datetime.now(UTC),
            )
            remember(settings, run)
    summary = describe.summarise(
        run,
        market,
        panels,
        not_applicable={**not_applicable, **panels.not_applicable},
        tuned=list(tuned.values()),
        trained=trained,
        judgement=judgement,
        watched=watched,
        places={
            "drift reports": ", ".join(str(file) for file in watched.files[:1]) + f" and {len(watched.files) - 1} more",
            "MLflow": f"http://{settings.host}:{settings.mlflow_port}/{tracker.runs_page}"
            " after `perennial up`; the run named summary has the ranking, plots and reports",
        },
        seconds=time.monotonic() - started,
    )
    return replace(summary, gate={**summary.gate, "Leak check": checked.describe(), "Challengers": shown.why})


def _panels(run: Run, market: Market, databases: Databases, applicable: Sequence[str]) -> data.Panels:
    return assemble(run, market, applicable, apply_definitions(run, databases.url("feast")))


def _tune_all(
    run: Run,
    market: Market,
    panels: data.Panels,
    chosen: Sequence[Variant],
    databases: Databases,
    pool: Pool,
    bars: Progress,
) -> dict[str, Tuned]:
    """Tune the architectures side by side: together their batches fill the pool."""
    ordered = sorted(chosen, key=lambda variant: variant.architecture)
    by_name = {name: list(group) for name, group in groupby(ordered, key=lambda variant: variant.architecture)}
    fits = sum(fit.num_trials(run.config, group[0]) * len(panels.tuning) for group in by_name.values())
    with phase(bars, "Hyperparameters, by Optuna", total=fits) as advance:
        futures = {
            name: tune.submit(
                name=name,
                run=run,
                panels=panels,
                variants=group,
                costs=market.info.costs,
                storage=databases.url("optuna"),
                pool=pool,
                done=advance,
            )
            for name, group in by_name.items()
        }
        return {name: future.result() for name, future in futures.items()}


def _train_all(
    run: Run,
    market: Market,
    panels: data.Panels,
    chosen: Sequence[Variant],
    tuned: Mapping[str, Tuned],
    pool: Pool,
    bars: Progress,
) -> dict[str, fit.Trained]:
    jobs = {
        variant.id: fit.variant_tasks(
            run, panels, variant, costs=market.info.costs, tuned=tuned[variant.architecture].params
        )
        for variant in chosen
    }
    num_fits = {name: len(tasks) for name, tasks in jobs.items()}
    with variants_phase(bars, f"Training {len(jobs)} variants", num_fits) as ended:

        def done(result: FoldResult) -> None:
            ended(result.variant, ok=result.ok)

        futures = {
            variant.id: train.submit(name=variant.id, variant=variant, tasks=jobs[variant.id], pool=pool, done=done)
            for variant in chosen
        }
        return {name: future.result() for name, future in futures.items()}


@contextmanager
def _ctrl_c_ends(hold: Hold) -> Iterator[None]:
    """Ctrl-C ends the workers, lets go of Postgres and exits with 130, at once.

    Nothing is lost (what is finished is published), and unwinding would take minutes: the same Ctrl-C ends the server
    that Prefect brought along, and Prefect goes on telling it about every task.
    """

    def end(_signal: int, _frame: object) -> None:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.terminate()
        make_console(stderr=True).print("\nstopped; type `perennial run` again to continue", style="yellow")
        hold.release()
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
