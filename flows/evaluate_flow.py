"""Evaluation as a Prefect flow: new bars of a market, forecast by every variant's newest model."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow, get_run_logger

from flows.cycle import CycleConfig
from flows.evaluate import evaluate_market
from flows.settings import read_settings

_DEFAULTS = CycleConfig()


@flow(name="evaluate")
def evaluate(
    market: str = _DEFAULTS.market, interval: str = _DEFAULTS.interval, horizon: int = _DEFAULTS.horizon
) -> int:
    """Forecast what is new and what was missed; returns how many signals that gave. What failed is in the log."""
    config = CycleConfig(market=market, interval=interval, horizon=horizon)
    done = evaluate_market(read_settings(), config, clock=lambda: datetime.now(UTC))
    for variant, reason in done.failed.items():
        get_run_logger().warning("%s failed: %s", variant, reason)
    return done.num_signals
