"""The snapshot as a Prefect flow: every five minutes all live figures of every market, at the newest known prices."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow, get_run_logger

from flows.cycle import CycleConfig
from flows.postgres import Hold
from flows.settings import Settings, read_settings
from flows.steps import data
from flows.steps.live import LiveDesk, go_over, take_snapshot
from flows.steps.run import Log
from training.rating.promotion import current
from training.tracking import connect

_DEFAULTS = CycleConfig()


@flow(name="snapshot")
def snapshot(market: str = "", interval: str = _DEFAULTS.interval, horizon: int = _DEFAULTS.horizon) -> int:
    """Keep one row a variant, once in every five minutes; returns how many variants there are.

    Without a market it goes over all that has live fits, each by its own interval and horizon.
    """
    settings, now = read_settings(), datetime.now(UTC)
    if not market:
        return snapshot_all(settings, get_run_logger(), now=now)
    return snapshot_market(settings, CycleConfig(market=market, interval=interval, horizon=horizon), now=now)


def snapshot_all(settings: Settings, log: Log, *, now: datetime) -> int:
    """Snapshots of all that has live fits; one that fails holds up no other."""

    def work(desk: LiveDesk) -> int:
        return snapshot_market(settings, desk.config, now=now, desk=desk)

    return go_over(settings, work, log)


def snapshot_market(settings: Settings, config: CycleConfig, *, now: datetime, desk: LiveDesk | None = None) -> int:
    """The snapshot of a market; returns how many variants are in it."""
    known = data.load(config, now)
    if desk:
        desk.require(known.info.name)
    with Hold(settings) as hold:
        held = current(connect(hold.databases.url("mlflow")), known.info.name)
    return len(take_snapshot(settings, config, known, active=[each.variant for each in held], now=now))
