"""Evaluation mode at full size: one new bar of 20 assets, forecast by every variant of the catalogue, on 2 workers.

A simulated market is written, and every variant is fitted as known just before its last bar. Then `evaluate` runs in a
process of its own, as the schedule runs it: it reads the market, brings the feature tables up to date, has Feast say
what was known at the bar's sample time, and 486 saved models are checked, loaded and asked. The bar is its wall time
from the interpreter's start. ``--home`` keeps the fits for the next run.

The fits are short (an epoch, a few trees): what is timed is loading and predicting, and a network forecasts as quickly
after one epoch as after thirty. Trees are fewer than a real fit's, and quicker by so much; of what is timed forests and
boosting are a small part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.report import Report, Row, alone, at_least, at_most, options, progress, publish
from feature_repo.database import connect, migrate
from feature_repo.market.simulated.market import write_market
from feature_repo.market.simulated.spec import SimSpec
from feature_repo.pipelines.catalog import CATALOGUE
from flows import postgres
from flows.cycle import CycleConfig
from flows.settings import Settings, quiet_environment
from flows.steps import data, fit
from flows.steps.run import Run, name_run
from flows.steps.run import alone as alone_on
from training.engine import Pool
from training.models.registry import architecture
from training.models.spec import Budget
from training.splits.walk_forward import LIVE
from training.variants import Variant, catalogue

NUM_ASSETS, NUM_WORKERS, SEED = 20, 2, 1
NUM_DAYS, NUM_DAYS_QUICK = 1_500, 520
EVERY_QUICK: Final = 24
MAX_SECONDS: Final = 60.0
SHORT: Final = Budget(max_epochs=1, max_trees=10, max_agent_steps=200, device="cpu")
_BEFORE: Final = timedelta(seconds=1)


def prepare(home: Path, variants: list[Variant], num_days: int) -> None:
    """A market, and a home where the variants were fitted as known before its last bar ended."""
    progress(f"writing the market: {NUM_ASSETS} assets, {num_days} days")
    spec = SimSpec(seed=SEED, num_assets=NUM_ASSETS, num_days=num_days, num_delistings=0)
    write_market(spec, home / "market")
    last_end = datetime(spec.start.year, spec.start.month, spec.start.day, tzinfo=UTC) + timedelta(days=num_days)
    settings, now = _settings(home), datetime.now(UTC)
    config = CycleConfig(market=str(home / "market"), as_of=last_end - _BEFORE, folds=1)
    market = data.load(config, now)
    run = name_run(settings, config, market, now)
    with (
        postgres.Hold(settings) as hold,
        alone_on(hold.databases, run.market) as connection,
        fit.fit_pool(settings) as pool,
    ):
        progress("feature tables and panels")
        absent = data.build_tables(run, market, connection, pool)
        store = data.open_store(run, hold.databases.url("feast"))
        panels = data.assemble_panels(run, market, [name for name in CATALOGUE if name not in absent], store)
        _fit(pool, run, market, panels, variants)
    shutil.copytree(settings.signals, home / "signals before")


def _fit(pool: Pool, run: Run, market: Any, panels: data.Panels, variants: list[Variant]) -> None:
    progress(f"fitting {len(variants)} variants, shortly")
    ordered = sorted(variants, key=lambda variant: -architecture(variant.architecture).cost_s)
    tasks = [
        replace(
            fit.fold_task(run, panels, variant, panels.live, kind="live", costs=market.info.costs, tuned={}),
            budget=SHORT,
        )
        for variant in ordered
    ]
    assert all(task.fold.index == LIVE for task in tasks)
    results = fit.run_tasks(tasks, pool, lambda _: None)
    if failed := [f"{result.variant}: {result.reason}" for result in results if not result.ok]:
        progress(f"{len(failed)} did not fit, the first: {failed[0]}")


def reset(home: Path) -> None:
    """As before the last bar was forecast; the feature tables keep it."""
    settings = _settings(home)
    shutil.rmtree(settings.signals)
    shutil.copytree(home / "signals before", settings.signals)
    with postgres.Hold(settings) as hold:
        dsn = hold.databases.dsn("perennial")
        migrate(dsn, "training")
        with connect(dsn) as connection:
            connection.execute("DELETE FROM evaluated_bars")


def evaluate(home: Path) -> dict[str, Any]:
    """In a process of its own: what `perennial evaluate` does, and how long each model took."""
    from flows.evaluate import evaluate_market

    settings = _settings(home)
    done = evaluate_market(settings, CycleConfig(market=str(home / "market")), clock=lambda: datetime.now(UTC))
    with postgres.Hold(settings) as hold, connect(hold.databases.dsn("perennial")) as connection:
        latency_ms = connection.execute("SELECT variant, latency_ms FROM evaluated_bars").fetchall()
    return {**asdict(done), "latency_ms": dict(latency_ms)}


def _settings(home: Path) -> Settings:
    return Settings(home=home / "home", workers=NUM_WORKERS, device="cpu")


def measure(home: Path, *, quick: bool) -> Report:
    """Prepare what is not there, evaluate, report."""
    variants = catalogue()[:: EVERY_QUICK if quick else 1]
    num_days = NUM_DAYS_QUICK if quick else NUM_DAYS
    os.environ.update(quiet_environment(_settings(home)))
    is_kept = (home / "signals before").exists()
    started = time.perf_counter()
    if is_kept:
        reset(home)
    else:
        prepare(home, variants, num_days)
    prepared_s = time.perf_counter() - started
    progress("evaluating the last bar")
    started, cpu_before_s = time.perf_counter(), _children_cpu_s()
    done = alone("bench.evaluation", "--evaluate", str(home))
    wall_s, cpu_s = time.perf_counter() - started, _children_cpu_s() - cpu_before_s
    progress("and again")
    again = alone("bench.evaluation", "--evaluate", str(home))
    return _report(done, again, (wall_s, cpu_s, prepared_s), is_kept=is_kept, num_days=num_days)


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _report(
    done: dict[str, Any], again: dict[str, Any], taken_s: tuple[float, float, float], *, is_kept: bool, num_days: int
) -> Report:
    wall_s, cpu_s, prepared_s = taken_s
    parts = {name: seconds for name, seconds in done["seconds"].items() if name != "in all"}
    latency_ms = np.array(list(done["latency_ms"].values()))
    slowest = sorted(done["latency_ms"].items(), key=lambda each: -each[1])[:3]
    reasons = Counter(done["failed"].values())
    p50, p99 = np.percentile(latency_ms, [50, 99])
    return Report(
        bench="evaluation",
        rows=[
            Row(name=f"one new bar, {done['num_scored']} variants", seconds=wall_s, more={"CPU s": cpu_s}),
            *(Row(name=f"of it {name}", seconds=seconds) for name, seconds in parts.items()),
            Row(name="of it start-up, Postgres, the rest", seconds=wall_s - sum(parts.values())),
            Row(name="again, with nothing new", seconds=again["seconds"]["in all"]),
            Row(name="before: market and fits", seconds=prepared_s),
        ],
        bars=[
            at_most("seconds until all have forecast the new bar", wall_s, MAX_SECONDS),
            at_least("variants that forecast it, of those fitted", done["num_scored"] / done["num_variants"], 1.0),
            at_most("signals that a second evaluation adds", again["num_signals"], 0),
        ],
        facts=[
            f"{done['num_variants']} fitted variants x {NUM_ASSETS} simulated assets x {done['num_bars']} bar, "
            f"{done['num_signals']:,} signals; {num_days} days of history; {NUM_WORKERS} workers",
            f"one bar of all assets by a loaded model: median {p50:.2f} ms, p99 over variants {p99:.1f} ms; slowest "
            + ", ".join(f"{name} {value:.1f}" for name, value in slowest),
            "fitted for one epoch, 10 trees and 200 agent steps: loading and predicting are what is timed"
            + ("; the home was kept, so its feature tables had the bar already" if is_kept else ""),
            *(f"{num} failed: {reason}" for reason, num in reasons.items()),
        ],
    )


def main() -> int:
    """Run the bench, or the evaluation that it times."""
    parser: argparse.ArgumentParser = options(__doc__)
    parser.add_argument("--home", type=Path, help="keep market and fits here, and take those that are there")
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.evaluate:
        print(json.dumps(evaluate(chosen.evaluate)))
        return 0
    if chosen.home:
        return publish(measure(chosen.home.absolute(), quick=chosen.quick), as_json=chosen.json)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return publish(measure(Path(folder), quick=chosen.quick), as_json=chosen.json)
        finally:
            postgres.remove(_settings(Path(folder)))


if __name__ == "__main__":
    raise SystemExit(main())
