"""What ``perennial factory train`` does: a catalogue's variants trained and rated walk-forward, with no stage changed.

Every variant is trained with its architecture's default parameters (a cycle tunes them) and leaves its out-of-sample
signals, a run in MLflow and a registered version of its newest fold's model. What a killed training had finished is not
fitted again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from feature_repo.market.schema import Market
from feature_repo.pipelines.catalog import CATALOGUE
from flows.console import variants_phase
from flows.cycle import CycleConfig
from flows.postgres import Hold
from flows.settings import Settings
from flows.steps import data, describe, fit, judge, record
from flows.steps.fit import Trained
from flows.steps.run import Run, alone, name_run
from training.engine import Pool
from training.models.registry import architecture
from training.models.spec import Budget
from training.stacking import plan_stacks
from training.tracking import Tracker
from training.variants import Variant

_FAMILIES = ("deep", "classical", "econometric", "agent")
_NUM_SHOWN = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class FactoryReport:
    """What a training came to.

    ``failed`` maps a variant to the reason of its failure, ``not_applicable`` one whose pipeline has no data in this
    market to that reason. Of the ``num_networks`` fits by gradient descent ``num_at_cap`` ran to the last epoch of
    their budget instead of stopping early. ``ranking`` is out of sample.
    """

    cycle_id: str
    market: str
    facts: Mapping[str, str]
    num_by_family: Mapping[str, int]
    trained: Sequence[str]
    failed: Mapping[str, str]
    not_applicable: Mapping[str, str]
    num_networks: int
    num_at_cap: int
    ranking: pd.DataFrame
    seconds: Mapping[str, float]


def train_catalogue(settings: Settings, config: CycleConfig, bars: Progress) -> FactoryReport:
    """Train every variant of the catalogue that the market has data for, rate them and log them to MLflow."""
    started, now = time.monotonic(), datetime.now(UTC)
    fit.prepare(settings)
    with Hold(settings) as hold, fit.fit_pool(settings) as pool:
        market = data.load(config, now)
        run = name_run(settings, config, market, now)
        listed = fit.listed_variants(config)
        with alone(hold.databases, run.market) as connection:
            with ThreadPoolExecutor(1) as beside:  # the workers build while this process imports what takes seconds
                tables = beside.submit(data.build_tables, run, market, connection, pool)
                tracker = Tracker(hold.databases.url("mlflow"), settings.artifacts_url, run.market)
                store = data.open_store(run, hold.databases.url("feast"))
                absent = tables.result()
            panels = data.assemble_panels(run, market, [name for name in CATALOGUE if name not in absent], store)
            prepared = time.monotonic()
            chosen = fit.choose_variants(config, list(panels.folders))
            trained = _train(pool, run, market, panels, chosen, bars)
            fitted = time.monotonic()
            rated = judge.rate_all(run, market.info, panels, trained)
            ranking = record.ranking_table(trained, rated).assign(stage="None")
            _log(run, tracker, market, panels, trained, rated, ranking)
    ended = time.monotonic()
    no_panel = {**absent, **panels.not_applicable}
    networks = [result for each in trained.values() for result in each.results if result.epochs]
    return FactoryReport(
        cycle_id=run.cycle_id,
        market=run.market,
        facts=_facts(market, panels, config, run),
        num_by_family={name: sum(variant.family == name for variant in chosen) for name in _FAMILIES},
        trained=list(rated.tracks.variants),
        failed=rated.failed,
        not_applicable={variant.id: no_panel[variant.pipeline] for variant in listed if variant.pipeline in no_panel},
        num_networks=len(networks),
        num_at_cap=sum(result.epochs >= Budget().max_epochs for result in networks),
        ranking=ranking,
        seconds={
            "features and panels": prepared - started,
            "training": fitted - prepared,
            "rating and MLflow": ended - fitted,
        },
    )


def _train(
    pool: Pool, run: Run, market: Market, panels: data.Panels, chosen: Sequence[Variant], bars: Progress
) -> dict[str, Trained]:
    """Every fold of every variant through the pool, what takes longest first so that no core is left waiting."""
    jobs = {
        variant.id: [
            fit.fold_task(
                run,
                panels,
                variant,
                fold,
                kind="oos",
                costs=market.info.costs,
                tuned={},
                keeps_model=fold is panels.folds[-1],
            )
            for fold in panels.folds
        ]
        for variant in chosen
    }
    slowest_first = sorted(chosen, key=lambda variant: -architecture(variant.architecture).cost_s * variant.lookback)
    tasks = plan_stacks([task for variant in slowest_first for task in jobs[variant.id]])
    jobs = {name: [task for task in tasks if task.variant.id == name] for name in jobs}
    num_fits = {name: len(job) for name, job in jobs.items()}
    with variants_phase(bars, f"Training {len(jobs)} variants", num_fits) as ended:
        results = fit.run_tasks(tasks, pool, lambda result: ended(result.variant, ok=result.ok))
    by_task = {(result.variant, result.fold): result for result in results}
    return {
        variant.id: Trained(
            variant=variant,
            tasks=jobs[variant.id],
            results=[by_task[variant.id, task.fold.index] for task in jobs[variant.id]],
        )
        for variant in chosen
    }


def _log(
    run: Run,
    tracker: Tracker,
    market: Market,
    panels: data.Panels,
    trained: Mapping[str, Trained],
    rated: judge.Rated,
    ranking: pd.DataFrame,
) -> None:
    registered = record.log_and_register_all(run, tracker, trained, panels, rated, market.info.sessions_per_year)
    record.log_summary(
        run,
        tracker,
        panels,
        ranking,
        rated.tracks,
        num_variants=len(trained),
        num_trials=0,
        fold_tables=registered.fold_tables,
        reports=(),
        ended_at=datetime.now(UTC),
    )


def _facts(market: Market, panels: data.Panels, config: CycleConfig, run: Run) -> dict[str, str]:
    bars = market.traded_bars(config.interval)
    return {
        "data": f"{bars['entity_key'].nunique()} assets, {len(bars):,} bars of {config.interval}, "
        f"{bars['event_time'].min():%Y-%m-%d} to {bars['event_time'].max():%Y-%m-%d}",
        "folds": f"{len(panels.folds)} {describe.split_of(config)}",
        "seed": f"{config.seed}; code {run.git_sha[:12]}",
    }


def render(console: Console, report: FactoryReport) -> None:
    """Print what was trained, what was not and why, and the top of the ranking."""
    console.rule(f"[bold]{report.market}[/] · factory {report.cycle_id}")
    for name, value in report.facts.items():
        console.print(f"[bold]{name}[/]  {escape(value)}")
    num = len(report.trained) + len(report.failed) + len(report.not_applicable)
    families = ", ".join(f"{count} {name}" for name, count in report.num_by_family.items())
    share = len(report.trained) / num
    console.print(f"[bold]trained[/]  {len(report.trained)} of {num} variants ({share:.1%}); {families}")
    if report.num_networks:
        share = report.num_at_cap / report.num_networks
        console.print(
            f"[bold]networks[/]  {report.num_at_cap} of {report.num_networks} fits ({share:.1%}) ran to the cap of "
            f"{Budget().max_epochs} epochs, the others stopped early"
        )
    _print_reasons(console, "failed", report.failed)
    _print_reasons(console, "not applicable", report.not_applicable)
    console.print(_ranking(report.ranking))
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in report.seconds.items())
    console.print(f"Done in {sum(report.seconds.values()):.0f} s: {seconds}.")


def _print_reasons(console: Console, title: str, reasons: Mapping[str, str]) -> None:
    """Variants by reason: how many, and one of them."""
    by_reason: dict[str, list[str]] = {}
    for variant, reason in reasons.items():
        by_reason.setdefault(reason, []).append(variant)
    for reason, variants in by_reason.items():
        console.print(f"[yellow]{title}[/] {len(variants)} (such as {variants[0]}): {escape(reason)}", soft_wrap=True)


def _ranking(ranking: pd.DataFrame) -> Table:
    table = Table(title=f"The top {_NUM_SHOWN}, out of sample, net of costs; no gate was asked", title_justify="left")
    for column in ("variant", "Sharpe net", "IC", "turnover/y", "bars"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=column == "variant")
    for row in ranking.head(_NUM_SHOWN).to_dict("records"):
        table.add_row(
            row["variant"],
            f"{row['sharpe_net']:+.2f}",
            f"{row['ic']:+.3f}",
            f"{row['turnover_ann']:.0f}x",
            f"{row['num_days']:.0f}",
        )
    return table
