"""The snapshot as a Prefect flow: every five minutes all live figures of a market, at the newest known prices."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow

from flows.cycle import CycleConfig
from flows.postgres import Hold
from flows.settings import read_settings
from flows.steps import data
from flows.steps.live import take_snapshot
from training.rating.promotion import current
from training.tracking import connect

_DEFAULTS = CycleConfig()


@flow(name="snapshot")
def snapshot(market: str = _DEFAULTS.market, interval: str = _DEFAULTS.interval, horizon: int = 1) -> int:
    """Keep one row a variant, once in every five minutes; returns how many variants there are."""
    settings, now = read_settings(), datetime.now(UTC)
    config = CycleConfig(market=market, interval=interval, horizon=horizon)
    known = data.load(config, now)
    with Hold(settings) as hold:
        held = current(connect(hold.databases.url("mlflow")), known.info.name)
    return len(take_snapshot(settings, config, known, active=[each.variant for each in held], now=now))
