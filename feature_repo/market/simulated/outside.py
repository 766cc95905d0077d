"""What is published beside prices: sentiment, on-chain metrics, fundamentals, membership and corporate actions.

Every table comes with its usual ingest times; :mod:`feature_repo.market.simulated.faults` makes some rows late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.simulated.bars import Bars
from feature_repo.market.simulated.rounding import significant
from feature_repo.market.simulated.signals import news_tone, trailing_mean
from feature_repo.market.simulated.spec import random_stream
from feature_repo.market.simulated.world import DAYS_PER_YEAR, World

FloatArray = NDArray[np.float64]
TimeArray = NDArray[np.datetime64]

# Tensor suffixes: T days, N assets.

EVERYONE: Final = "*"
ONCHAIN_LAG: Final = pd.Timedelta(hours=13, minutes=6)  # as measured on Coin Metrics' daily publications
MOOD_DAYS: Final = 30
WEEK_DAYS: Final = 7
QUARTER_DAYS: Final = 91
_HOUR: Final = np.timedelta64(1, "h")
_REALISED_SPEED: Final = 0.02  # share of the coins that move at the day's price


def with_ingest(frame: pd.DataFrame, rng: np.random.Generator, least: pd.Timedelta, most: pd.Timedelta) -> pd.DataFrame:
    """The rows with an ``ingest_time`` after ``event_time``: evenly between ``least`` and ``most`` later."""
    lag = rng.integers(least // pd.Timedelta("1us"), most // pd.Timedelta("1us"), len(frame))
    ingest = frame["event_time"] + pd.to_timedelta(lag, unit="us").as_unit("us")
    place = frame.columns.get_loc("event_time")
    frame = frame.copy()
    frame.insert(int(place) + 1, "ingest_time", ingest)
    return frame


def sentiment_table(world: World) -> pd.DataFrame:
    """``news_tone`` and a noisier ``social_tone`` of each asset, an hour before the day ends; of all, ``*``:
    ``fear_greed`` at the day's end and ``news_volume`` a day after the week's.
    """
    rng = random_stream(world.spec, "sentiment")
    minute = pd.Timedelta(minutes=1)
    tone = _by_asset(world, world.ends_T - _HOUR, "news_tone", np.round(news_tone(world.tone_TN), 4))
    heard_TN = news_tone(world.tone_TN + 0.5 * rng.standard_normal(world.tone_TN.shape))
    talk = _by_asset(world, world.ends_T - _HOUR, "social_tone", np.round(heard_TN, 4))
    mood = _by_all(world.ends_T[MOOD_DAYS - 1 :], "fear_greed", _fear_greed(world, rng))
    weeks_T = world.ends_T[WEEK_DAYS - 1 :: WEEK_DAYS]
    news = _by_all(weeks_T, "news_volume", np.rint(np.exp(5.0 + 0.4 * rng.standard_normal(len(weeks_T)))))
    parts = [
        *(with_ingest(table, rng, minute, 10 * minute) for table in (tone, talk, mood)),
        with_ingest(news, rng, pd.Timedelta(hours=24), pd.Timedelta(hours=26)),
    ]
    return pd.concat(parts).sort_values(["entity_key", "name", "event_time"], kind="stable", ignore_index=True)


def onchain_table(world: World, daily: Bars) -> pd.DataFrame:
    """Daily metrics under Coin Metrics' names, known the next day at about 13:06 UTC."""
    rng = random_stream(world.spec, "onchain")
    num_days, num_assets = world.close_TN.shape
    price_TN = daily.close_DSN[:, 0, :num_assets]
    users_TN = np.rint(np.exp(rng.uniform(9.0, 13.0, num_assets) + world.log_users_TN))
    num_tx_TN = np.rint(users_TN * 1.4 * _noise(rng, 0.05, users_TN))
    supply_N = np.rint(np.exp(rng.uniform(np.log(1e9), np.log(1e11), num_assets)) / price_TN[0])
    minted_N = np.rint(supply_N * rng.uniform(0.0, 0.04, num_assets) / DAYS_PER_YEAR)
    supply_TN = supply_N + minted_N * np.arange(1, num_days + 1)[:, None]
    cap_TN = price_TN * supply_TN
    realised_TN = _realised(cap_TN)
    moved_TN = 0.02 * cap_TN * np.exp(0.8 * world.log_users_TN) * _noise(rng, 0.2, cap_TN)
    fee_TN = significant(0.3 * np.exp(0.5 * world.log_users_TN) * _noise(rng, 0.2, cap_TN))
    metrics: Mapping[str, FloatArray] = {
        "AdrActCnt": users_TN,
        "CapMVRVCur": significant(cap_TN / realised_TN),
        "CapMrktCurUSD": significant(cap_TN, 10),
        "CapRealUSD": significant(realised_TN, 10),
        "FeeMeanUSD": fee_TN,
        "FeeTotUSD": significant(fee_TN * num_tx_TN, 10),
        "IssTotUSD": np.round(minted_N * price_TN, 2),
        "NVTAdj": significant(cap_TN / moved_TN),
        "PriceUSD": price_TN,
        "SplyCur": supply_TN,
        "TxCnt": num_tx_TN,
        "TxTfrCnt": np.rint(num_tx_TN * 1.6 * _noise(rng, 0.05, cap_TN)),
        "TxTfrValAdjUSD": significant(moved_TN),
    }
    listed = world.listed_TN.T.ravel()
    keys = pd.DataFrame(
        {
            "entity_key": np.repeat(np.array(world.entities, dtype=object), num_days),
            "event_time": _utc(np.tile(world.ends_T, num_assets)),
        }
    )
    table = pd.concat([keys, pd.DataFrame({name: values_TN.T.ravel() for name, values_TN in metrics.items()})], axis=1)
    slack = pd.Timedelta(minutes=10)
    return with_ingest(table[listed].reset_index(drop=True), rng, ONCHAIN_LAG - slack, ONCHAIN_LAG + slack)


def fundamentals_table(world: World) -> pd.DataFrame:
    """Slow figures, as of each quarter's first day and known some days to weeks later, to the second."""
    rng = random_stream(world.spec, "fundamentals")
    days = np.arange(0, len(world.ends_T), QUARTER_DAYS)
    shape = (len(days), len(world.entities))
    figures = {
        "developers": np.rint(
            np.exp(rng.uniform(2.0, 6.0, shape[1]) + 0.1 * rng.standard_normal(shape).cumsum(axis=0))
        ),
        "treasury_usd": significant(np.exp(rng.uniform(14.0, 20.0, shape[1]) + 0.2 * rng.standard_normal(shape))),
    }
    tables = [_by_asset(world, world.ends_T[days], name, values, days=days) for name, values in figures.items()]
    table = with_ingest(pd.concat(tables), rng, pd.Timedelta(days=5), pd.Timedelta(days=20))
    table["ingest_time"] = table["ingest_time"].dt.floor("s")
    return table.sort_values(["entity_key", "name", "event_time"], kind="stable", ignore_index=True)


def universe_table(world: World) -> pd.DataFrame:
    """Membership: open-ended from the start, and closed by a later row a week before a delisting."""
    start = _utc(world.ends_T[:1]).floor("D")[0] - pd.Timedelta(days=1)
    ended = np.flatnonzero(world.num_days_N < len(world.ends_T))
    names = np.array(world.entities, dtype=object)
    until = _utc(world.ends_T[world.num_days_N[ended] - 1])
    rows = pd.DataFrame(
        {
            "entity_key": np.concatenate([names, names[ended]]),
            "from": pd.DatetimeIndex([start]).as_unit("us").repeat(len(names) + len(ended)),
            "to": pd.DatetimeIndex([pd.NaT] * len(names), tz="UTC").as_unit("us").append(until),
        }
    )
    rows["ingest_time"] = (rows["to"] - pd.Timedelta(days=7)).fillna(start - pd.Timedelta(days=1)).dt.as_unit("us")
    return rows.sort_values(["entity_key", "from", "ingest_time"], kind="stable", ignore_index=True)


def delistings(world: World) -> pd.DataFrame:
    """The corporate actions: each delisting, what a holder lost by it, known an hour after the last bar's end."""
    ended = np.flatnonzero(world.num_days_N < len(world.ends_T))
    lost_N = random_stream(world.spec, "delisting returns").uniform(0.3, 0.95, len(world.entities))
    ends = _utc(world.ends_T[world.num_days_N[ended] - 1])
    return pd.DataFrame(
        {
            "entity_key": np.array(world.entities, dtype=object)[ended],
            "event_time": ends,
            "ingest_time": ends + pd.Timedelta(hours=1),
            "kind": np.full(len(ended), "delisting", dtype=object),
            "ratio": np.full(len(ended), np.nan),
            "delisting_return": -np.round(lost_N[ended], 4),
        }
    )


def _fear_greed(world: World, rng: np.random.Generator) -> FloatArray:
    """0 to 100: how the assets did over the last month, and noise; it knows nothing that prices don't."""
    listed_TN = world.listed_TN
    market_TN = np.where(listed_TN, world.returns_TN, 0.0).sum(axis=1, keepdims=True) / listed_TN.sum(axis=1)[:, None]
    trend_T = trailing_mean(market_TN, MOOD_DAYS) / np.sqrt(trailing_mean(market_TN**2, MOOD_DAYS))
    greed_T = 50.0 + 90.0 * trend_T[MOOD_DAYS - 1 :, 0] + 4.0 * rng.standard_normal(len(trend_T) - MOOD_DAYS + 1)
    mood: FloatArray = np.clip(np.rint(greed_T), 1.0, 99.0)
    return mood


def _noise(rng: np.random.Generator, size: float, like: FloatArray) -> FloatArray:
    noise: FloatArray = np.exp(size * rng.standard_normal(like.shape))
    return noise


def _realised(cap_TN: FloatArray) -> FloatArray:
    """Value at the prices at which coins last moved: an exponential average of the market value."""
    realised_TN = cap_TN.copy()
    for t in range(1, len(cap_TN)):
        realised_TN[t] = (1.0 - _REALISED_SPEED) * realised_TN[t - 1] + _REALISED_SPEED * cap_TN[t]
    return realised_TN


def _by_asset(
    world: World, times_T: TimeArray, name: str, values_TN: FloatArray, *, days: NDArray[np.int64] | None = None
) -> pd.DataFrame:
    """Named values of each listed asset; ``days`` where the times are not every day's."""
    listed = (world.listed_TN if days is None else world.listed_TN[days]).T.ravel()
    table = pd.DataFrame(
        {
            "entity_key": np.repeat(np.array(world.entities, dtype=object), len(times_T)),
            "event_time": _utc(np.tile(times_T, len(world.entities))),
            "name": name,
            "value": values_TN.T.ravel(),
        }
    )
    return table[listed]


def _by_all(times_T: TimeArray, name: str, values_T: FloatArray) -> pd.DataFrame:
    return pd.DataFrame({"entity_key": EVERYONE, "event_time": _utc(times_T), "name": name, "value": values_T})


def _utc(times: TimeArray) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(times.astype("datetime64[us]")).tz_localize("UTC")
