"""A desk's forecasts from a file into the registry and the signal store."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from flows.cycle import CycleConfig
from flows.postgres import Hold
from flows.settings import Settings
from flows.steps import data
from flows.steps.run import alone
from training.model_registry import ModelRegistry
from training.outside_signals import Imported, import_signals, read_signals
from training.signals import SignalStore
from training.tracking import Tracker


def import_file(settings: Settings, config: CycleConfig, file: Path, *, variant: str, now: datetime) -> Imported:
    """Register a file's forecasts as a variant of the market; no cycle may be running on it."""
    raw, market = read_signals(file), data.load(config, now)
    grid = data.market_grid(market, config.interval)
    traded = grid.only([entity for entity in grid.entities if entity != market.info.benchmark])
    name = market.info.name
    with Hold(settings) as hold, alone(hold.databases, name):
        tracker = Tracker(hold.databases.url("mlflow"), settings.artifacts_url, name)
        registry = ModelRegistry(tracker=tracker, signals=SignalStore(root=settings.signals / name))
        return import_signals(
            registry, raw, variant=variant, grid=traded, interval=config.interval, horizon=config.horizon, now=now
        )
