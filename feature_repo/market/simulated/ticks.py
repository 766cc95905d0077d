"""Trades and quotes that add up to their quarter-hourly bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.simulated.bars import Bars
from feature_repo.market.simulated.rounding import LOT, significant
from feature_repo.market.simulated.spec import random_stream
from feature_repo.market.simulated.world import DAY, World

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Array suffixes: B quarter-hourly bars, by asset, then time; K trades, in order of their bars and times.

BUY: Final = 1
SELL: Final = -1
MIN_TRADES: Final = 6
MEAN_MORE_TRADES: Final = 16.0
MAX_TRADES: Final = 40
HALF_SPREAD: Final = 2e-4  # of the price, of a typical asset
_BAR_US: Final = 15 * 60 * 1_000_000
_FLOW_TO_SIZE: Final = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class _TickBars:
    """The bars to be made of ticks, (B,); ``asset_B`` numbers the asset, ``imbalance_B`` is the latent order flow."""

    asset_B: IntArray
    start_B: IntArray
    open_B: FloatArray
    high_B: FloatArray
    low_B: FloatArray
    close_B: FloatArray
    lots_B: IntArray
    imbalance_B: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sequence:
    """Which bar each trade is of (K,), and whether it is the bar's first or last."""

    bar_K: IntArray
    place_K: IntArray
    first_B: IntArray
    last_B: IntArray

    @property
    def is_inner_K(self) -> BoolArray:
        inner_K = np.ones(len(self.bar_K), dtype=bool)
        inner_K[self.first_B] = inner_K[self.last_B] = False
        return inner_K


def make_ticks(world: World, quarters: Bars) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trades and quotes of the newest days of the first living assets, without ingest times.

    A bar's first trade is at its open, its last at its close, its highest and lowest at its extremes, and the sizes
    add up to its volume. A quote precedes each trade by some milliseconds: a buy is at its ask, a sell at its bid.
    Rising prices are bought, falling ones sold, nearly always; buys are larger where the planted imbalance is high.
    """
    bars = _tick_bars(world, quarters)
    rng = random_stream(world.spec, "ticks")
    sequence = _draw_sequence(rng, len(bars.asset_B))
    time_K = _draw_times(rng, bars, sequence)
    price_K = _draw_prices(rng, bars, sequence)
    side_K = _draw_sides(rng, bars, sequence, price_K)
    keys = {"entity_key": np.array(world.entities, dtype=object)[bars.asset_B[sequence.bar_K]]}
    trades = pd.DataFrame(
        keys
        | {
            "event_time": _utc(time_K),
            "price": price_K,
            "size": _draw_sizes(rng, bars, sequence, side_K) * LOT,
            "side": side_K.astype(np.int8),
            "trade_id": np.char.add("T", np.arange(len(time_K)).astype(str)).astype(object),
        }
    )
    quotes = pd.DataFrame(keys | _draw_quotes(rng, bars, sequence, time_K, price_K, side_K))
    return trades, quotes.sort_values(["entity_key", "event_time"], kind="stable", ignore_index=True)


def _tick_bars(world: World, quarters: Bars) -> _TickBars:
    spec = world.spec
    assets = np.flatnonzero(world.num_days_N == spec.num_days)[: spec.num_tick_assets]
    newest = slice(spec.num_days_15m - spec.num_tick_days, None)
    num_steps = quarters.close_DSN.shape[1]

    def flat(values_DSN: FloatArray) -> FloatArray:
        series_B: FloatArray = values_DSN[newest][:, :, assets].transpose(2, 0, 1).ravel()
        return series_B

    day_starts = (world.ends_T[spec.num_days - spec.num_tick_days :] - DAY).astype(np.int64)
    starts = (day_starts[:, None] + np.arange(num_steps) * _BAR_US).ravel()
    imbalance_DN = world.imbalance_TN[spec.num_days - spec.num_tick_days :, assets]
    return _TickBars(
        asset_B=np.repeat(assets, len(starts)),
        start_B=np.tile(starts, len(assets)),
        open_B=flat(quarters.open_DSN),
        high_B=flat(quarters.high_DSN),
        low_B=flat(quarters.low_DSN),
        close_B=flat(quarters.close_DSN),
        lots_B=np.rint(flat(quarters.volume_DSN) / LOT).astype(np.int64),
        imbalance_B=np.repeat(imbalance_DN.T.ravel(), num_steps),
    )


def _draw_sequence(rng: np.random.Generator, num_bars: int) -> _Sequence:
    num_B = np.minimum(MIN_TRADES + rng.poisson(MEAN_MORE_TRADES, num_bars), MAX_TRADES)
    last_B = np.cumsum(num_B) - 1
    first_B = last_B - num_B + 1
    bar_K = np.repeat(np.arange(num_bars), num_B)
    return _Sequence(bar_K=bar_K, place_K=np.arange(len(bar_K)) - first_B[bar_K], first_B=first_B, last_B=last_B)


def _draw_times(rng: np.random.Generator, bars: _TickBars, sequence: _Sequence) -> IntArray:
    """Microseconds within the bar, after its start and before its end."""
    within_K = rng.integers(50_000, _BAR_US, len(sequence.bar_K))
    order = np.lexsort((within_K, sequence.bar_K))
    return bars.start_B[sequence.bar_K] + within_K[order]


def _draw_prices(rng: np.random.Generator, bars: _TickBars, sequence: _Sequence) -> FloatArray:
    """A bridge from open to close within the extremes, which two inner trades touch."""
    bar_K, place_K = sequence.bar_K, sequence.place_K
    num_K = (sequence.last_B - sequence.first_B)[bar_K]
    walk_K = np.cumsum(rng.standard_normal(len(bar_K)))
    from_first_K = walk_K - walk_K[sequence.first_B][bar_K]
    bridge_K = from_first_K - from_first_K[sequence.last_B][bar_K] * place_K / num_K
    deviation_K = ((bars.high_B - bars.low_B) / 4.0)[bar_K] / np.sqrt(num_K)
    line_K = bars.open_B[bar_K] + (bars.close_B - bars.open_B)[bar_K] * place_K / num_K
    price_K = np.clip(significant(line_K + deviation_K * bridge_K), bars.low_B[bar_K], bars.high_B[bar_K])
    price_K[sequence.first_B], price_K[sequence.last_B] = bars.open_B, bars.close_B
    top_B, bottom_B = _extreme_places(bridge_K, sequence)
    price_K[top_B], price_K[bottom_B] = bars.high_B, bars.low_B
    return price_K


def _extreme_places(bridge_K: FloatArray, sequence: _Sequence) -> tuple[IntArray, IntArray]:
    """Rows of each bar's highest and lowest inner step; they differ, for the bridge has no ties."""
    inner = np.flatnonzero(sequence.is_inner_K)
    order = inner[np.lexsort((bridge_K[inner], sequence.bar_K[inner]))]
    starts_B = sequence.first_B - 2 * np.arange(len(sequence.first_B))  # two rows a bar are not inner
    ends_B = np.append(starts_B[1:], len(order)) - 1
    return order[ends_B], order[starts_B]


def _draw_sides(rng: np.random.Generator, bars: _TickBars, sequence: _Sequence, price_K: FloatArray) -> IntArray:
    change_K = np.sign(np.diff(price_K, prepend=price_K[:1]))
    lean_K = 0.5 + 0.2 * np.tanh(bars.imbalance_B)[sequence.bar_K]
    chance_K = np.choose(change_K.astype(np.int64) + 1, [0.08 * np.ones_like(lean_K), lean_K, 0.92 + 0 * lean_K])
    return np.where(rng.random(len(chance_K)) < chance_K, BUY, SELL)


def _draw_sizes(rng: np.random.Generator, bars: _TickBars, sequence: _Sequence, side_K: IntArray) -> IntArray:
    """Lots of each trade, at least one, that add up to the bar's."""
    bar_K = sequence.bar_K
    flow_K = _FLOW_TO_SIZE * bars.imbalance_B[bar_K] * side_K
    weight_K = np.exp(0.8 * rng.standard_normal(len(bar_K)) + flow_K)
    spare_B = bars.lots_B - (sequence.last_B - sequence.first_B + 1)
    sizes_K = 1 + np.floor(weight_K / _sums(weight_K, sequence)[bar_K] * spare_B[bar_K]).astype(np.int64)
    sizes_K[sequence.last_B] += bars.lots_B - _sums(sizes_K, sequence)
    return sizes_K


def _sums(values_K: NDArray, sequence: _Sequence) -> NDArray:
    return np.add.reduceat(values_K, sequence.first_B) if len(values_K) else values_K


def _draw_quotes(
    rng: np.random.Generator,
    bars: _TickBars,
    sequence: _Sequence,
    time_K: IntArray,
    price_K: FloatArray,
    side_K: IntArray,
) -> dict[str, object]:
    num = len(time_K)
    spread_K = price_K * 2 * HALF_SPREAD * np.exp(0.3 * rng.standard_normal(num))
    bid_K = np.where(side_K == BUY, significant(price_K - spread_K), price_K)
    ask_K = np.where(side_K == BUY, price_K, significant(price_K + spread_K))
    depth_K = bars.lots_B[sequence.bar_K] / 20.0
    lean_K = 0.5 * _FLOW_TO_SIZE * bars.imbalance_B[sequence.bar_K]
    sizes = [
        np.maximum(np.rint(depth_K * np.exp(0.6 * rng.standard_normal(num) + sign * lean_K)), 1.0) * LOT
        for sign in (1.0, -1.0)
    ]
    return {
        "event_time": _utc(time_K - rng.integers(1_000, 40_000, num)),
        "bid": bid_K,
        "bid_size": sizes[0],
        "ask": ask_K,
        "ask_size": sizes[1],
    }


def _utc(micros_K: IntArray) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(micros_K.astype("datetime64[us]")).tz_localize("UTC")
