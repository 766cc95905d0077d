"""A small market whose data come late and are restated, and builders over it: causal ones and their leaky twins."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from feature_repo.aggregates.attach import attach, pipeline_bars
from feature_repo.kernels.elementwise import lagged, log_return
from feature_repo.kernels.rolling import rolling_mean, rolling_std
from feature_repo.leakage.checks import once_a_market
from feature_repo.market.assembly import canonical, fingerprint
from feature_repo.market.layout import table_kind
from feature_repo.market.records import COLUMNS
from feature_repo.market.schema import Market, MarketInfo
from feature_repo.pipelines.base import Feature, Pipeline, pipeline_of
from feature_repo.pipelines.build import build_features

KEY = ["entity_key", "event_time", "ingest_time"]
LAG = pd.Timedelta(minutes=15)
WRITTEN_AT = datetime(2030, 1, 1, tzinfo=UTC)
ASSETS = ("A", "B", "C", "DEAD")


def make_market(
    *, num_bars: int = 120, num_late: int = 6, num_restated: int = 15, hours: int = 1, seed: int = 0
) -> Market:
    """Four assets, one delisted at two thirds, with every kind of table; some rows are late, some restated."""
    rng = np.random.default_rng(seed)
    ends = pd.bdate_range("2020-01-01", periods=num_bars, tz="UTC").as_unit("us") + pd.Timedelta(hours=21)
    bars = pd.concat([_bars(rng, entity, ends) for entity in ASSETS], ignore_index=True)
    onchain = bars[["entity_key", "event_time"]].assign(ingest_time=bars["event_time"] + pd.Timedelta(hours=13))
    onchain["AdrActCnt"] = rng.uniform(100.0, 200.0, len(onchain))
    mood = pd.DataFrame({"entity_key": "*", "event_time": ends, "ingest_time": ends + 2 * LAG, "name": "mood"})
    mood["value"] = rng.normal(size=num_bars)
    tables = {"bars_1d": bars, "onchain_1d": onchain, "sentiment": mood, **_intraday(rng, bars, hours)}
    return market_of({name: _troubled(rng, name, table, num_late, num_restated) for name, table in tables.items()})


def market_of(tables: dict[str, pd.DataFrame], *, calendar: str = "weekdays") -> Market:
    tables = {name: canonical(table_kind(name), table) for name, table in tables.items()}
    empty = pd.DataFrame(columns=list(COLUMNS))
    info = MarketInfo(name="small", calendar=calendar)
    return Market(info=info, tables=tables, quarantine=empty, flags=empty, fingerprint=fingerprint(tables))


def _bars(rng: np.random.Generator, entity: str, ends: pd.DatetimeIndex) -> pd.DataFrame:
    ends = ends[: 2 * len(ends) // 3] if entity == "DEAD" else ends
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, len(ends))))
    volume = rng.integers(100, 1000, len(ends)).astype(float)
    volume[rng.random(len(ends)) < 0.2] = np.nan
    prices = {"open": close * 1.001, "high": close * 1.01, "low": close * 0.99, "close": close, "volume": volume}
    return pd.DataFrame({"entity_key": entity, "event_time": ends, "ingest_time": ends + LAG, **prices})


def _intraday(rng: np.random.Generator, bars: pd.DataFrame, hours: int) -> dict[str, pd.DataFrame]:
    """In the last hours before each bar's end: an hourly bar, a trade and a quote around its close."""
    rows = bars.loc[bars.index.repeat(hours), ["entity_key", "event_time", "close"]].reset_index(drop=True)
    rows["event_time"] -= pd.to_timedelta(np.tile(np.arange(hours)[::-1], len(bars)), unit="h")
    price = (rows["close"] * rng.uniform(0.995, 1.005, len(rows))).round(2)
    at = rows[["entity_key", "event_time"]].assign(ingest_time=rows["event_time"] + pd.Timedelta(minutes=1))
    size, other = rng.uniform(1.0, 9.0, (2, len(rows)))
    prices = {"open": price * 1.001, "high": price * 1.002, "low": price * 0.998, "close": price}
    return {
        "bars_1h": at.assign(**prices, volume=100.0 * size),
        "trades": at.assign(price=price, size=size, side=rng.choice([-1, 1], len(rows))),
        "quotes": at.assign(bid=price - 0.01, bid_size=size, ask=price + 0.01, ask_size=other),
    }


def _troubled(rng: np.random.Generator, name: str, table: pd.DataFrame, num_late: int, num_restated: int):
    """The table with some rows known days late, and others restated days later; ticks are as they were."""
    if name in ("trades", "quotes"):
        return table
    days = pd.to_timedelta(rng.integers(1, 5, len(table)), unit="D")
    late = rng.choice(len(table), num_late, replace=False)
    table.loc[late, "ingest_time"] += days[late]
    again = table.iloc[rng.choice(len(table), num_restated, replace=False)].copy()
    again["ingest_time"] += pd.to_timedelta(rng.integers(3, 15, num_restated), unit="D")
    numbers = again.select_dtypes("float").columns
    again[numbers] *= rng.uniform(0.9, 1.1, (len(again), 1))
    return pd.concat([table, again], ignore_index=True)


def pipeline(**formulas: Callable) -> Pipeline:
    """A pipeline of formulas that each look back over five bars at most."""
    features = {
        Feature(name=name, inputs=("close", "volume"), description="for a test"): formula
        for name, formula in formulas.items()
    }
    return pipeline_of(name="planted", version=1, warmup_bars=5, formulas=features)


def build(spec: Pipeline, bars: pd.DataFrame) -> pd.DataFrame:
    return build_features(spec, bars, producer="test", producer_version="1", run_id="1", written_at=WRITTEN_AT)


@once_a_market
def all_bars(market: Market) -> pd.DataFrame:
    """A market's bars with all that is attached; none lacks a volume, which would blank its windows."""
    bars = pipeline_bars(market, "1d")
    return bars.assign(volume=bars["volume"].fillna(500.0))


def build_pipeline(spec: Pipeline, market: Market) -> pd.DataFrame:
    """A catalogue pipeline's table, as a cycle builds it."""
    return build(spec, all_bars(market))


def builder(**formulas: Callable) -> Callable[[Market], pd.DataFrame]:
    spec = pipeline(**formulas)
    return lambda market: build(spec, market.traded_bars("1d"))


# Formulas: from a bar's columns to a series.


def trailing_return(columns):
    return log_return(columns["close"], 1)


def next_return(columns):
    return lagged(log_return(columns["close"], 1)[::-1], 1)[::-1].copy()


def trailing_mean(columns):
    return rolling_mean(columns["close"], 5)


def centred_mean(columns):
    return pd.Series(columns["close"]).rolling(5, center=True).mean().to_numpy()


def trailing_z(columns):
    close = columns["close"]
    return (close - rolling_mean(close, 5)) / rolling_std(close, 5, 1)


def full_sample_z(columns):
    close = columns["close"]
    return (close - np.nanmean(close)) / np.nanstd(close)


def filled_forward(columns):
    volume = pd.Series(columns["volume"])
    return volume.ffill(limit=4).to_numpy()


def filled_backward(columns):
    return pd.Series(columns["volume"]).bfill().to_numpy()


# Builders: from a market to a feature table.


def restated_early(market: Market) -> pd.DataFrame:
    """Final values, dated when the first version became known."""
    bars = market.traded_bars("1d").sort_values("ingest_time", kind="stable")
    values = bars.groupby(KEY[:2], as_index=False).last()
    values["ingest_time"] = bars.groupby(KEY[:2], as_index=False).first()["ingest_time"]
    return build(pipeline(mean_5=trailing_mean), values)


def dated_early(market: Market) -> pd.DataFrame:
    """Rows said to be known at the bar's end, before it was published."""
    table = builder(mean_5=trailing_mean)(market)
    punctual = table["ingest_time"] - table["event_time"] <= LAG
    return table.assign(ingest_time=table["ingest_time"].where(~punctual, table["event_time"]))


def hourly_market(num_days: int = 20, seed: int = 0) -> Market:
    rng = np.random.default_rng(seed)
    ends = pd.date_range("2020-01-01 01:00", periods=24 * num_days, freq="1h", tz="UTC").as_unit("us")
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, len(ends))))
    columns = {"entity_key": "A", "event_time": ends, "ingest_time": ends + pd.Timedelta(minutes=1), "close": close}
    return market_of({"bars_1h": pd.DataFrame(columns)}, calendar="24/7")


def daily_range(market: Market, *, edge: str) -> pd.DataFrame:
    """A day's high over its low from hourly closes; ``edge`` left labels the day by its start, which is wrong."""
    bars = market.bars("1h").drop_duplicates(KEY[:2])  # as first published
    bars = bars.assign(day_end=bars["event_time"].dt.ceil("D"))
    days = bars.groupby(["entity_key", "day_end"]).agg(
        high=("close", "max"), low=("close", "min"), known=("ingest_time", "max"), hours=("close", "size")
    )
    days = days[days["hours"] == 24].reset_index()
    shift = pd.Timedelta(days=1 if edge == "left" else 0)
    return pd.DataFrame(
        {
            "entity_key": days["entity_key"],
            "event_time": days["day_end"] - shift,
            "ingest_time": days["known"] - shift,
            "daily_range": days["high"] / days["low"],
        }
    )


def active_level(market: Market, *, by_event_time_only: bool) -> pd.DataFrame:
    """On-chain activity beside each bar; joined by event time alone it is there before it was published."""
    bars, onchain = market.traded_bars("1d"), market.tables.get("onchain_1d")
    if onchain is None:
        onchain = bars[KEY].iloc[:0].assign(AdrActCnt=0.0)
    if by_event_time_only:
        last = onchain.drop_duplicates(KEY[:2], keep="last").drop(columns="ingest_time")
        return bars[KEY].merge(last, on=KEY[:2], how="left")
    return attach(bars, [onchain])[[*KEY, "AdrActCnt"]]


def rank(market: Market, *, among_survivors: bool) -> pd.DataFrame:
    """Each close's rank among the assets known at that moment; or only among those that live to the end."""
    bars = market.traded_bars("1d").assign(known=lambda bars: bars[KEY[1:]].max(axis=1))
    if among_survivors:
        bars = bars[bars.groupby("entity_key")["event_time"].transform("max") >= bars["event_time"].max()]
    rows = []
    for event, versions in bars.sort_values("known", kind="stable").groupby("event_time"):
        for known in versions["known"].drop_duplicates():
            seen = versions["known"] <= known
            closes = dict(zip(versions["entity_key"][seen], versions["close"][seen], strict=True))
            order = sorted(closes.values())
            rows += [(entity, event, known, order.index(close) / len(order)) for entity, close in closes.items()]
    return pd.DataFrame(rows, columns=[*KEY, "rank"])


def share_of_all_trades(market: Market) -> pd.DataFrame:
    """A bar's volume over the volume of all trades there ever are: the leak comes from a table beside the bars."""
    bars = market.traded_bars("1d")
    trades = market.tables.get("trades")
    total = np.nan if trades is None else trades["size"].sum()
    return bars[KEY].assign(trade_share=bars["volume"] / total)
