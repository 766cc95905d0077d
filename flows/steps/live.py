"""The five-minute snapshot: every variant's live figures, at the newest known prices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from feature_repo.market.calendar import PriceGrid
from feature_repo.market.liquidity import mean_traded_value
from feature_repo.market.schema import Market
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps import data
from training.dataset import Panel
from training.rating.live import SnapshotStore, live_fits, live_panel, newest_prices, snapshot
from training.signals import SignalStore
from training.trainer import FoldResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """A market's live forecasts, and the bars they are held against.

    ``fits`` are those behind the forecasts, by variant, the newest last; ``panel`` is as known at the moment asked for,
    over the bars of ``grid`` without the benchmark; ``traded_value_TN`` is what of an asset trades in a bar.
    """

    grid: PriceGrid
    panel: Panel
    signals: SignalStore
    fits: Mapping[str, Sequence[FoldResult]]
    traded_value_TN: np.ndarray

    def thresholds(self, variants: Collection[str]) -> dict[str, dict[str, float]]:
        """Of those variants that have live forecasts, the model versions and their thresholds."""
        return {name: {fit.key: fit.threshold for fit in fits} for name, fits in self.fits.items() if name in variants}


def read_live(settings: Settings, config: CycleConfig, market: Market, *, now: datetime) -> Live:
    """What a market's variants said live, and the prices up to ``now``."""
    info = market.info
    grid = data.market_grid(market, config.interval)
    traded = grid.only([entity for entity in grid.entities if entity != info.benchmark])
    signals = SignalStore(root=settings.signals / info.name)
    return Live(
        grid=grid,
        panel=live_panel(traded, newest_prices(market, traded.entities, at=now), horizon=config.horizon),
        signals=signals,
        fits=live_fits(signals, settings.cycles / "fits", interval=config.interval, horizon=config.horizon),
        traded_value_TN=mean_traded_value(market.bars(config.interval), traded),
    )


def take_snapshot(
    settings: Settings, config: CycleConfig, market: Market, *, active: Collection[str], now: datetime
) -> pd.DataFrame:
    """Rate all variants of a market by their live signals up to ``now``; kept once every five minutes."""
    info = market.info
    live = read_live(settings, config, market, now=now)
    return snapshot(
        SnapshotStore(root=settings.snapshots / info.name),
        live.signals,
        live.thresholds(live.fits),
        live.panel,
        _benchmark_T(market, live.grid, live.panel.hold_TN, now),
        at=now,
        costs=info.costs,
        periods_per_year=info.sessions_per_year,
        traded_value_TN=live.traded_value_TN,
        active=active,
        num_parameters={variant: each[-1].num_parameters for variant, each in live.fits.items()},
    )


def _benchmark_T(market: Market, grid: PriceGrid, hold_TN: np.ndarray, now: datetime) -> np.ndarray:
    """The benchmark's return over the bars, that of the open one so far."""
    name = market.info.benchmark
    benchmark_T = data.benchmark_returns(grid, name, hold_TN)
    if name is None:
        return benchmark_T
    marked_T = live_panel(grid.only([name]), newest_prices(market, [name], at=now), horizon=1).hold_TN[:, 0]
    return np.where(np.isfinite(benchmark_T), benchmark_T, marked_T)
