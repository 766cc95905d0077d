"""``perennial evaluate``: the bars that are new, forecast by every variant's newest model; nothing is fitted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from rich.console import Console

from flows import postgres
from flows.cycle import CycleConfig
from flows.postgres import Hold
from flows.settings import Settings
from flows.steps import data
from flows.steps.evaluate import EvaluateError, Evaluation, evaluate
from flows.steps.run import alone, name_run
from training.engine import open_pool
from training.rating.promotion import current
from training.tracking import connect
from training.worker import Limits

LIMIT_S: Final = 300.0
"""What one task may take, of some models or a feature table: a model that hangs costs this much of a worker, twice."""
_NUM_SHOWN: Final = 5


def evaluate_market(settings: Settings, config: CycleConfig, *, clock: Callable[[], datetime]) -> Evaluation:
    """Bring a market's signals up to date with its bars; no other run may be on it."""
    started, now = time.monotonic(), clock()
    if not postgres.exists(settings):
        raise EvaluateError(f"there is no model in {settings.home} yet, and an evaluation fits none: `perennial run`")
    market = data.load(config, now)
    run = name_run(settings, config, market, now)
    loaded_s = time.monotonic() - started
    limits = Limits(time_s=LIMIT_S)
    with Hold(settings) as hold, alone(hold.databases, run.market) as connection:
        client = connect(hold.databases.url("mlflow"))
        held = {each.variant: each for each in current(client, run.market)}
        with open_pool(settings.engine, settings.workers, shared=settings.home, limits=limits) as pool:
            done = evaluate(
                run,
                market,
                connection,
                lambda: data.open_store(run, hold.databases.url("feast")),
                pool,
                clock=clock,
                held=held,
            )
    return replace(done, seconds={"market data": loaded_s, **done.seconds, "in all": time.monotonic() - started})


def render(console: Console, done: Evaluation) -> None:
    """Print what was forecast, what failed and why, and how long it took."""
    if done.num_bars:
        late = f", {done.num_late:,} of a variant's bars caught up" if done.num_late else ""
        console.print(
            f"{done.num_scored} of {done.num_variants} variants of {done.market} forecast {done.num_bars} new "
            f"bar{'s' if done.num_bars > 1 else ''}: {done.num_signals:,} signals{late}."
        )
    elif not done.failed:
        console.print(f"No new bar: all {done.num_variants} variants of {done.market} have forecast what there is.")
    if done.waits_for:
        console.print(f"The bar of {done.waits_for} is not whole yet; it is forecast once it is.")
    _print_failures(console, done)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in done.seconds.items())
    console.print(f"Seconds: {seconds}.", style="dim")


def _print_failures(console: Console, done: Evaluation) -> None:
    by_reason: dict[str, list[str]] = {}
    for variant, reason in done.failed.items():
        by_reason.setdefault(reason, []).append(variant)
    if done.failed:
        console.print(f"{len(done.failed)} failed, and are tried again the next time:", style="yellow")
    for reason, variants in by_reason.items():
        more = f" and {len(variants) - _NUM_SHOWN} more" if len(variants) > _NUM_SHOWN else ""
        names = ", ".join(variants[:_NUM_SHOWN])
        console.print(f"  {names}{more}: {reason}", markup=False, soft_wrap=True)
