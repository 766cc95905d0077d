"""Evaluation as a Prefect flow: new bars of every market, forecast by every variant's newest model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from prefect import flow, get_run_logger

from flows.cycle import CycleConfig
from flows.evaluate import evaluate_market
from flows.settings import Settings, read_settings
from flows.steps.evaluate import Evaluation
from flows.steps.live import LiveDesk, go_over
from flows.steps.run import Log

_DEFAULTS = CycleConfig()


@flow(name="evaluate")
def evaluate(market: str = "", interval: str = _DEFAULTS.interval, horizon: int = _DEFAULTS.horizon) -> int:
    """Forecast what is new and what was missed; returns how many signals that gave. What failed is in the log.

    Without a market it goes over all that has live fits, each by its own interval and horizon.
    """
    settings = read_settings()
    if not market:
        return evaluate_all(settings, get_run_logger(), clock=_now)
    config = CycleConfig(market=market, interval=interval, horizon=horizon)
    done = evaluate_market(settings, config, clock=_now)
    if done.failed:
        _tell(done, get_run_logger())
    return done.num_signals


def evaluate_all(settings: Settings, log: Log, *, clock: Callable[[], datetime]) -> int:
    """Evaluate all that has live fits; one that fails holds up no other."""

    def work(desk: LiveDesk) -> int:
        done = evaluate_market(settings, desk.config, clock=clock)
        desk.require(done.market)
        _tell(done, log)
        return done.num_signals

    return go_over(settings, work, log)


def _tell(done: Evaluation, log: Log) -> None:
    for variant, reason in done.failed.items():
        log.warning("%s of %s failed: %s", variant, done.market, reason)


def _now() -> datetime:
    return datetime.now(UTC)
