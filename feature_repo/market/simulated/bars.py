"""Bars at every interval, each the sum of the finer ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.simulated.rounding import LOT, significant
from feature_repo.market.simulated.shocks import HOUR_SHARE_H, HOURS
from feature_repo.market.simulated.spec import random_stream
from feature_repo.market.simulated.world import DAY, World

FloatArray = NDArray[np.float64]
TimeArray = NDArray[np.datetime64]

# Tensor suffixes: D days, S steps of a day (24 hours, 96 quarters, 1 day), Q quarters of an hour, N assets, the index
# last where there is one.

INDEX: Final = "INDEX"
QUARTERS: Final = 4
INDEX_LEVEL: Final = 1_000.0
_MAX_EXPONENTIAL: Final = 8.0  # a bar's extremes stay within what one draw in 3,000 would pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """Bars of some days, S a day: prices and volume (D, S, N); the volume of the index is NaN."""

    open_DSN: FloatArray
    high_DSN: FloatArray
    low_DSN: FloatArray
    close_DSN: FloatArray
    volume_DSN: FloatArray

    def coarser(self, num_steps: int) -> Bars:
        """Bars of ``num_steps`` a day, of these."""
        num_days, num_finer, num_assets = self.open_DSN.shape
        open_, high, low, close, volume = (
            values.reshape(num_days, num_steps, num_finer // num_steps, num_assets)
            for values in (self.open_DSN, self.high_DSN, self.low_DSN, self.close_DSN, self.volume_DSN)
        )
        return Bars(
            open_DSN=open_[:, :, 0],
            high_DSN=high.max(axis=2),
            low_DSN=low.min(axis=2),
            close_DSN=close[:, :, -1],
            volume_DSN=volume.sum(axis=2),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AllBars:
    """Hourly bars of the whole history, quarter-hourly ones of its newest days."""

    hourly: Bars
    quarterly: Bars

    @property
    def daily(self) -> Bars:
        """One bar a day, of the hours."""
        return self.hourly.coarser(1)


def make_bars(world: World) -> AllBars:
    """Bars of every asset, delisted or not, and of the index where the spec wants one."""
    quarters = _make_quarters(world)
    hours = _make_hours(world)
    newest = quarters.coarser(HOURS)
    first = len(world.ends_T) - world.spec.num_days_15m
    return AllBars(
        hourly=Bars(
            open_DSN=hours.open_DSN,
            high_DSN=np.concatenate([hours.high_DSN[:first], newest.high_DSN]),
            low_DSN=np.concatenate([hours.low_DSN[:first], newest.low_DSN]),
            close_DSN=hours.close_DSN,
            volume_DSN=hours.volume_DSN,
        ),
        quarterly=quarters,
    )


def bars_frame(world: World, bars: Bars, interval: str) -> pd.DataFrame:
    """The newest days' bars as a table without ingest times, by entity and time; nothing after a delisting."""
    num_days, num_steps, num_assets = bars.close_DSN.shape
    length = DAY.astype("timedelta64[us]") // num_steps
    newest = slice(len(world.ends_T) - num_days, None)
    ends = ((world.ends_T[newest] - DAY)[:, None] + np.arange(1, num_steps + 1) * length).ravel()
    names = np.array([*world.entities, *([INDEX] if num_assets > len(world.entities) else [])], dtype=object)
    listed_DN = np.ones((num_days, num_assets), dtype=bool)
    listed_DN[:, : len(world.entities)] = world.listed_TN[newest]
    kept = np.repeat(listed_DN.T, num_steps, axis=1).ravel()

    def column(values_DSN: FloatArray) -> FloatArray:
        flat: FloatArray = values_DSN.transpose(2, 0, 1).ravel()[kept]
        return flat

    return pd.DataFrame(
        {
            "entity_key": np.repeat(names, len(ends))[kept],
            "interval": interval,
            "event_time": pd.DatetimeIndex(np.tile(ends, num_assets)[kept]).tz_localize("UTC"),
            "open": column(bars.open_DSN),
            "high": column(bars.high_DSN),
            "low": column(bars.low_DSN),
            "close": column(bars.close_DSN),
            "volume": column(bars.volume_DSN),
        }
    )


def _make_hours(world: World) -> Bars:
    return _walk(world, world.shocks.hour_THN, HOUR_SHARE_H, world.volume_THN, purpose="hour extremes")


def _make_quarters(world: World) -> Bars:
    """Each hour's shock is split by a Brownian bridge, its volume at random into whole lots."""
    num_days = world.spec.num_days_15m
    newest = slice(len(world.ends_T) - num_days, None)
    rng = random_stream(world.spec, "quarters")
    shape_DHQN = (num_days, HOURS, QUARTERS, world.spec.num_assets)
    noise_DHQN = rng.standard_normal(shape_DHQN)
    noise_DHQN -= noise_DHQN.mean(axis=2, keepdims=True)
    deviation_H11 = np.sqrt(HOUR_SHARE_H / QUARTERS)[:, None, None]
    shock_DHQN = world.shocks.hour_THN[newest][:, :, None] / QUARTERS + noise_DHQN * deviation_H11
    weight_DHQN = np.exp(0.3 * rng.standard_normal(shape_DHQN))
    hour_lots_DHN = world.volume_THN[newest] / LOT
    lots_DHQN = np.floor(weight_DHQN / weight_DHQN.sum(axis=2, keepdims=True) * hour_lots_DHN[:, :, None])
    lots_DHQN[:, :, -1] += hour_lots_DHN - lots_DHQN.sum(axis=2)
    shape_DSN = (num_days, HOURS * QUARTERS, world.spec.num_assets)
    share_S = np.repeat(HOUR_SHARE_H / QUARTERS, QUARTERS)
    return _walk(
        world, shock_DHQN.reshape(shape_DSN), share_S, lots_DHQN.reshape(shape_DSN) * LOT, purpose="quarter extremes"
    )


def _walk(world: World, shock_DSN: FloatArray, share_S: FloatArray, volume_DSN: FloatArray, *, purpose: str) -> Bars:
    """Prices along the newest days' paths of these steps, with the extremes of Brownian motion between them."""
    newest = slice(len(world.ends_T) - len(shock_DSN), None)
    previous_DN = world.previous_TN[newest]
    unit_DN = world.scale_TN[newest] * np.sqrt(world.shocks.mix_TN[newest])
    passed_S1 = (np.arange(1, len(share_S) + 1) / len(share_S))[:, None]
    move_DSN = world.drift_TN[newest][:, None] * passed_S1 + unit_DN[:, None] * shock_DSN.cumsum(axis=1)
    path_DSN = np.concatenate([previous_DN[:, None], previous_DN[:, None] * (1.0 + move_DSN)], axis=1)
    path_DSN[:, -1] = world.close_TN[newest]
    variance_DSN = (previous_DN * unit_DN)[:, None] ** 2 * share_S[:, None]
    bars = _with_extremes(world, path_DSN, variance_DSN, volume_DSN, purpose)
    return _with_index(world, bars, path_DSN, newest) if world.spec.benchmark else bars


def _with_extremes(
    world: World, path_DSN: FloatArray, variance_DSN: FloatArray, volume_DSN: FloatArray, purpose: str
) -> Bars:
    """The law of a Brownian bridge's maximum: (o + c + sqrt((c - o)^2 + 2 v E)) / 2 with E exponential."""
    rng = random_stream(world.spec, purpose)
    open_DSN, close_DSN = path_DSN[:, :-1], path_DSN[:, 1:]

    def distance_DSN() -> FloatArray:
        draw_DSN = np.minimum(rng.standard_exponential(variance_DSN.shape), _MAX_EXPONENTIAL)
        return np.sqrt((close_DSN - open_DSN) ** 2 + 2.0 * variance_DSN * draw_DSN)

    high_DSN = (open_DSN + close_DSN + distance_DSN()) / 2.0
    low_DSN = (open_DSN + close_DSN - distance_DSN()) / 2.0
    return Bars(
        open_DSN=significant(open_DSN),
        high_DSN=significant(high_DSN),
        low_DSN=significant(np.maximum(low_DSN, 0.5 * np.minimum(open_DSN, close_DSN))),
        close_DSN=significant(close_DSN),
        volume_DSN=volume_DSN,
    )


def _with_index(world: World, bars: Bars, path_DSN: FloatArray, newest: slice) -> Bars:
    """The mean of the listed assets' relative prices, compounded from day to day; of its extremes only its steps."""
    day_TN = world.close_TN / world.previous_TN
    level_T = INDEX_LEVEL * np.cumprod(np.concatenate([[1.0], _mean(day_TN, world.listed_TN)]))
    relative_DSN = path_DSN / path_DSN[:, :1]
    listed_DSN = np.broadcast_to(world.listed_TN[newest][:, None], relative_DSN.shape)
    index_DS = significant(level_T[:-1][newest][:, None] * _mean(relative_DSN, listed_DSN))
    index_DS[:, -1] = significant(level_T[1:][newest])
    open_DS, close_DS = index_DS[:, :-1], index_DS[:, 1:]
    columns = {
        "open_DSN": open_DS,
        "high_DSN": np.maximum(open_DS, close_DS),
        "low_DSN": np.minimum(open_DS, close_DS),
        "close_DSN": close_DS,
        "volume_DSN": np.full_like(open_DS, np.nan),
    }
    return replace(
        bars,
        **{
            name: np.concatenate([getattr(bars, name), index_DS1[:, :, None]], axis=2)
            for name, index_DS1 in columns.items()
        },
    )


def _mean(values: FloatArray, counted: NDArray[np.bool_]) -> FloatArray:
    """Mean over the last axis of what is counted, added in order."""
    total = np.zeros(values.shape[:-1])
    for i in range(values.shape[-1]):
        total += np.where(counted[..., i], values[..., i], 0.0)
    mean: FloatArray = total / counted.sum(axis=-1)
    return mean
