"""The five-minute snapshot: every variant's live figures, at the newest known prices."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import numpy as np
import pandas as pd

from feature_repo.market.calendar import PriceGrid
from feature_repo.market.liquidity import mean_traded_value
from feature_repo.market.schema import Market
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps import data
from training.rating.live import SnapshotStore, live_fits, live_panel, newest_prices, snapshot
from training.signals import SignalStore


def take_snapshot(
    settings: Settings, config: CycleConfig, market: Market, *, active: Collection[str], now: datetime
) -> pd.DataFrame:
    """Rate all variants of a market by their live signals up to ``now``; kept once every five minutes."""
    info = market.info
    grid = data.market_grid(market, config.interval)
    traded = grid.only([entity for entity in grid.entities if entity != info.benchmark])
    panel = live_panel(traded, newest_prices(market, traded.entities, at=now), horizon=config.horizon)
    signals = SignalStore(root=settings.signals / info.name)
    fits = live_fits(signals, settings.cycles / "fits", interval=config.interval, horizon=config.horizon)
    return snapshot(
        SnapshotStore(root=settings.snapshots / info.name),
        signals,
        {variant: {fit.key: fit.threshold for fit in each} for variant, each in fits.items()},
        panel,
        _benchmark_T(market, grid, panel.hold_TN, now),
        at=now,
        costs=info.costs,
        periods_per_year=info.sessions_per_year,
        traded_value_TN=mean_traded_value(market.bars(config.interval), traded),
        active=active,
        num_parameters={variant: each[-1].num_parameters for variant, each in fits.items()},
    )


def _benchmark_T(market: Market, grid: PriceGrid, hold_TN: np.ndarray, now: datetime) -> np.ndarray:
    """The benchmark's return over the bars, that of the open one so far."""
    name = market.info.benchmark
    benchmark_T = data.benchmark_returns(grid, name, hold_TN)
    if name is None:
        return benchmark_T
    marked_T = live_panel(grid.only([name]), newest_prices(market, [name], at=now), horizon=1).hold_TN[:, 0]
    return np.where(np.isfinite(benchmark_T), benchmark_T, marked_T)
