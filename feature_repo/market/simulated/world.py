"""A simulated world before any of it is published: shocks, signals and daily prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_repo.market.simulated.days import WARMUP
from feature_repo.market.simulated.rounding import whole_lots
from feature_repo.market.simulated.shocks import (
    MIN_HOUR_LOTS,
    VOLUME_SIZE,
    Shocks,
    draw_latent,
    draw_shocks,
    draw_volume,
)
from feature_repo.market.simulated.signals import (
    Conditions,
    Planting,
    activity_growth,
    flow_imbalance,
    news_tone,
    plant,
    volume_surprise,
)
from feature_repo.market.simulated.spec import SIGNALS, SimSpec, random_stream

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
TimeArray = NDArray[np.datetime64]

# Tensor suffixes: T days, H hours of the day, N assets. B days with the burn-in before the start.

NUM_BURN: Final = WARMUP + 4
DAYS_PER_YEAR: Final = 365
USERS_SIZE: Final = 0.3  # of log active addresses
DAY: Final = np.timedelta64(1, "D")


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What truly happens, day by day; everything published derives from it.

    ``ends_T`` are the days' ends (datetime64[us], UTC), ``num_days_N`` how many days each asset lives (its arrays go
    on after that, unpublished). ``returns_TN`` are simple returns, ``volatility_TN`` their conditional standard
    deviation, ``close_TN`` prices. ``signals`` are the planted signals (T, N) of mean 0 and variance 1 by name, at
    the day's end. Of the day's path: ``previous_TN`` is where it starts, ``drift_TN`` its expected return, and
    ``scale_TN`` brings ``shocks`` to returns. ``volume_THN`` is what is traded, ``tone_TN``, ``log_users_TN`` and
    ``imbalance_TN`` are the series below sentiment, on-chain activity and order flow, drifts included.
    """

    spec: SimSpec
    entities: tuple[str, ...]
    sector_N: IntArray
    leader_N: IntArray
    ends_T: TimeArray
    num_days_N: IntArray
    returns_TN: FloatArray
    volatility_TN: FloatArray
    close_TN: FloatArray
    signals: Mapping[str, FloatArray]
    planting: Planting
    shocks: Shocks
    previous_TN: FloatArray
    drift_TN: FloatArray
    scale_TN: FloatArray
    volume_THN: FloatArray
    tone_TN: FloatArray
    log_users_TN: FloatArray
    imbalance_TN: FloatArray

    @property
    def listed_TN(self) -> NDArray[np.bool_]:
        """Whether the asset lives on that day."""
        listed: NDArray[np.bool_] = np.arange(len(self.ends_T))[:, None] < self.num_days_N
        return listed


def draw_world(spec: SimSpec) -> World:
    """Everything that happens in the market of this spec."""
    num_all = NUM_BURN + spec.num_days
    sector_N = np.arange(spec.num_assets) % spec.num_sectors
    leader_N = _leaders(sector_N, spec.num_sectors)
    shocks = draw_shocks(spec, num_all, sector_N)
    assets = _draw_assets(spec)
    series = _draw_series(spec, num_all, shocks, assets.volume_N)
    vol_factor_T, drift_T = _regimes(spec)
    conditions = Conditions(
        shock_TN=shocks.day_TN,
        reach_TN=shocks.reach_TN,
        vol_TN=assets.vol_N * vol_factor_T[:, None],
        drift_T=drift_T,
        leader_N=leader_N,
    )
    planting, path = plant(spec, _outside_signals(shocks, series), conditions, num_burn=NUM_BURN)
    growth_TN = np.cumprod(1.0 + path.returns_TN, axis=0)
    close_TN = assets.price_N * growth_TN / growth_TN[NUM_BURN - 1]
    days = slice(NUM_BURN, None)
    return World(
        spec=spec,
        entities=entity_names(spec.num_assets),
        sector_N=sector_N,
        leader_N=leader_N,
        ends_T=np.datetime64(spec.start, "us") + np.arange(1, spec.num_days + 1) * DAY,
        num_days_N=_draw_lives(spec),
        returns_TN=path.returns_TN[days],
        volatility_TN=path.sigma_TN[days],
        close_TN=close_TN[days],
        signals=dict(zip(SIGNALS, path.signal_STN[:, days], strict=True)),
        planting=planting,
        shocks=Shocks(hour_THN=shocks.hour_THN[days], mix_TN=shocks.mix_TN[days]),
        previous_TN=close_TN[NUM_BURN - 1 : -1],
        drift_TN=path.drift_TN[days],
        scale_TN=path.scale_TN[days],
        volume_THN=_drifted(spec, series.volume_THN[days]),
        tone_TN=series.tone_TN[days] + drift_steps(spec, "sentiment")[:, None],
        log_users_TN=series.log_users_TN[days] + USERS_SIZE * drift_steps(spec, "onchain")[:, None],
        imbalance_TN=series.imbalance_TN[days],
    )


def entity_names(num_assets: int) -> tuple[str, ...]:
    """``SIM00``, ``SIM01`` ..., as wide as they must be to sort."""
    width = max(2, len(str(num_assets - 1)))
    return tuple(f"SIM{i:0{width}d}" for i in range(num_assets))


def drift_steps(spec: SimSpec, feature: str) -> FloatArray:
    """What was injected into the feature's series (T,), in its standard deviations: 0 before the drift's day."""
    shift_T = np.zeros(spec.num_days)
    for drift in spec.drifts:
        if drift.feature == feature:
            shift_T[round(drift.at * spec.num_days) :] += drift.size
    return shift_T


@dataclass(frozen=True, kw_only=True, slots=True)
class _Assets:
    """First price, usual volume and volatility a day."""

    price_N: FloatArray
    volume_N: FloatArray
    vol_N: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class _Series:
    """The series below the outside signals, with the burn-in and without drifts."""

    imbalance_TN: FloatArray
    volume_THN: FloatArray
    tone_TN: FloatArray
    log_users_TN: FloatArray


def _draw_assets(spec: SimSpec) -> _Assets:
    rng = random_stream(spec, "assets")
    price_N = np.exp(rng.uniform(np.log(0.5), np.log(30_000.0), spec.num_assets))
    turnover_usd_N = 2e8 * np.exp(0.8 * rng.standard_normal(spec.num_assets))
    vol_N = spec.vol_ann / np.sqrt(DAYS_PER_YEAR) * np.exp(0.2 * rng.standard_normal(spec.num_assets))
    return _Assets(price_N=price_N, volume_N=turnover_usd_N / price_N, vol_N=vol_N)


def _draw_series(spec: SimSpec, num_days: int, shocks: Shocks, base_volume_N: FloatArray) -> _Series:
    imbalance_TN = draw_latent(spec, "order_flow", num_days)
    activity_TN = draw_latent(spec, "volume", num_days)
    noise_TN = random_stream(spec, "users").standard_normal((num_days, spec.num_assets))
    return _Series(
        imbalance_TN=imbalance_TN,
        volume_THN=draw_volume(spec, shocks, activity_TN=activity_TN, imbalance_TN=imbalance_TN, base_N=base_volume_N),
        tone_TN=draw_latent(spec, "sentiment", num_days),
        log_users_TN=USERS_SIZE * draw_latent(spec, "onchain", num_days) + 0.05 * noise_TN,
    )


def _outside_signals(shocks: Shocks, series: _Series) -> dict[str, FloatArray]:
    return {
        "ohlcv": volume_surprise(series.volume_THN.sum(axis=1)),
        "order_flow": flow_imbalance(series.volume_THN, shocks.hour_THN > 0),
        "sentiment": news_tone(series.tone_TN),
        "onchain": activity_growth(series.log_users_TN),
    }


def _leaders(sector_N: IntArray, num_sectors: int) -> IntArray:
    """A sector's first asset leads it, and follows the next sector's first."""
    num_assets = len(sector_N)
    is_first_N = np.arange(num_assets) < num_sectors
    return np.where(is_first_N, (sector_N + 1) % num_sectors, sector_N)


def _regimes(spec: SimSpec) -> tuple[FloatArray, FloatArray]:
    """Volatility factor and drift of each day, the burn-in's as the first day's; no drift where nothing is planted."""
    num_days = np.diff(spec.regime_days())
    factor_T = np.repeat([regime.vol_factor for regime in spec.regimes], num_days)
    drift_T = np.repeat([regime.drift_ann / DAYS_PER_YEAR for regime in spec.regimes], num_days)
    factor_T, drift_T = (np.concatenate([np.full(NUM_BURN, day_T[0]), day_T]) for day_T in (factor_T, drift_T))
    return factor_T, np.zeros_like(drift_T) if spec.is_silent else drift_T


def _draw_lives(spec: SimSpec) -> IntArray:
    """How many days each asset lives; leaders live on, others may end between 40 % and 90 % of the history."""
    rng = random_stream(spec, "delistings")
    lives_N = np.full(spec.num_assets, spec.num_days)
    ended = rng.choice(np.arange(spec.num_sectors, spec.num_assets), spec.num_delistings, replace=False)
    lives_N[ended] = rng.integers(int(0.4 * spec.num_days), int(0.9 * spec.num_days), spec.num_delistings)
    return lives_N


def _drifted(spec: SimSpec, volume_THN: FloatArray) -> FloatArray:
    factor_T11 = np.exp(VOLUME_SIZE * drift_steps(spec, "volume"))[:, None, None]
    return whole_lots(volume_THN * factor_T11, MIN_HOUR_LOTS)
