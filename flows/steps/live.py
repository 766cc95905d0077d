"""What has live fits, and the five-minute snapshot: every variant's live figures, at the newest known prices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
from flows.steps.run import Log, one_by_one
from training.artifacts import ArtifactError
from training.dataset import Panel
from training.evaluation import KIND
from training.rating.live import SnapshotStore, live_fits, live_panel, newest_prices, snapshot, timely
from training.recipe import Recipe, read_recipe
from training.signals import SignalStore
from training.trainer import FoldResult


class DesksError(RuntimeError):
    """Markets with live fits that can't be gone over or chosen from; the message says which and what to do."""


# ---- what there is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveDesk:
    """What has live fits: the market of this name, by the interval and horizon of ``config``, which says its source."""

    market: str
    config: CycleConfig

    def __str__(self) -> str:
        return f"{self.market} ({self.config.interval} bars, {self.config.horizon} ahead)"

    def require(self, name: str) -> None:
        """Raise ``DesksError`` where its source holds a market of another name by now."""
        if name != self.market:
            raise DesksError(
                f"{self.config.market} holds the market {name!r} now, and the live fits are of {self.market!r}: give "
                "it its name back in market.yaml, or fit the new one with `perennial run`"
            )


def desks(settings: Settings) -> tuple[list[LiveDesk], dict[str, str]]:
    """All of the home that has live fits; and the markets of which no fit says where their data lies, with the reason.

    The data lies where the newest of its fits by interval and horizon had it from: a folder may have moved since.
    """
    found, placeless = [], {}
    for folder in sorted(each for each in settings.signals.glob("*") if each.is_dir()):
        newest, why = _newest_recipes(folder.name, settings)
        found += [
            LiveDesk(
                market=folder.name,
                config=CycleConfig(market=recipe.task.market, interval=interval, horizon=horizon),
            )
            for (interval, horizon), recipe in sorted(newest.items())
        ]
        if why and not newest:
            placeless[folder.name] = why
    return found, placeless


def _newest_recipes(market: str, settings: Settings) -> tuple[dict[tuple[str, int], Recipe], str]:
    """By interval and horizon, of those that say where the data came from; and what is wrong with another."""
    newest: dict[tuple[str, int], Recipe] = {}
    why = ""
    for variant, key in SignalStore(root=settings.signals / market).versions(KIND):
        fit = settings.cycles / "fits" / variant / key
        if not (fit / "result.json").exists():
            continue  # it came from elsewhere
        try:
            recipe = read_recipe(fit / "model")
        except (ArtifactError, OSError) as error:
            why = str(error)
            continue
        if recipe is None or not recipe.task.market:
            why = f"{fit} does not say where its market's data came from; `perennial run` fits it again"
            continue
        of = recipe.task.interval, recipe.horizon
        if of not in newest or _made_at(newest[of]) < _made_at(recipe):
            newest[of] = recipe
    return newest, why


def _made_at(recipe: Recipe) -> datetime:
    return datetime.fromisoformat(recipe.task.made_at)


def the_market(settings: Settings, *, interval: str, horizon: int) -> str:
    """The source of the only market that has live fits; the default market where none has any.

    Raises ``DesksError`` with what there is where several have.
    """
    found, placeless = desks(settings)
    sources: dict[str, str] = {}
    for desk in found:
        if desk.market not in sources or (desk.config.interval, desk.config.horizon) == (interval, horizon):
            sources[desk.market] = desk.config.market
    if len(sources) + len(placeless) > 1:
        raise DesksError(f"several markets have live fits; name one with --market: {', '.join(sources.values())}")
    for market, why in placeless.items():
        raise DesksError(f"nobody knows where the data of market {market!r} lies ({why}); name it with --market")
    return next(iter(sources.values()), CycleConfig().market)


def go_over(settings: Settings, work: Callable[[LiveDesk], int], log: Log) -> int:
    """Do ``work`` for all of the home that has live fits, and add up what it gives.

    One that fails is told of in the log and holds up no other; in the end a ``RunError`` names those that did.
    """
    found, placeless = desks(settings)
    for market, why in placeless.items():
        log.error("%s failed: %s", market, why)
    if not found and not placeless:
        log.info("Nothing to do: there is no live fit in %s yet; `perennial run` makes some.", settings.home)
    return one_by_one({str(desk): desk for desk in found}, work, log, failed=placeless)


# ---- the snapshot ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """A market's live forecasts, those made in hindsight left out, and the bars they are held against.

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
    panel = live_panel(traded, newest_prices(market, traded.entities, at=now), horizon=config.horizon)
    signals = timely(SignalStore(root=settings.signals / info.name), panel)
    return Live(
        grid=grid,
        panel=panel,
        signals=signals,
        fits=live_fits(signals, settings.cycles / "fits", interval=config.interval, horizon=config.horizon),
        traded_value_TN=mean_traded_value(market.bars(config.interval), traded),
    )


def take_snapshot(
    settings: Settings, config: CycleConfig, market: Market, *, active: Collection[str], now: datetime
) -> pd.DataFrame:
    """Rate all variants of a market by their live signals up to ``now``; kept once every five minutes.

    By interval and horizon the snapshots have folders of their own: a slot's first one stays.
    """
    info = market.info
    live = read_live(settings, config, market, now=now)
    return snapshot(
        SnapshotStore(root=settings.snapshots / info.name / f"{config.interval}-{config.horizon}"),
        live.signals,
        live.thresholds(live.fits),
        live.panel,
        _market_returns(market, live.grid, live.panel.hold_TN, now),
        at=now,
        costs=info.costs,
        periods_per_year=info.sessions_per_year,
        traded_value_TN=live.traded_value_TN,
        active=active,
        num_parameters={variant: each[-1].num_parameters for variant, each in live.fits.items()},
    )


def _market_returns(market: Market, grid: PriceGrid, hold_TN: np.ndarray, now: datetime) -> np.ndarray:
    """The market's returns (F, T) over the bars, those of the open one so far: ``hold_TN`` has the assets'."""
    name = market.info.benchmark
    market_FT = data.market_returns(grid, name, hold_TN)
    if name is not None:
        marked_T = live_panel(grid.only([name]), newest_prices(market, [name], at=now), horizon=1).hold_TN[:, 0]
        market_FT[0] = np.where(np.isfinite(market_FT[0]), market_FT[0], marked_T)
    return market_FT
