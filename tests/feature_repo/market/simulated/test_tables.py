"""Tables agree: bars with finer bars, ticks with bars, and signals with what is published."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.schema import Market
from feature_repo.market.simulated.bars import INDEX
from feature_repo.market.simulated.days import WARMUP, price_signals
from feature_repo.market.simulated.market import simulate
from feature_repo.market.simulated.signals import activity_growth, flow_imbalance, volume_surprise
from feature_repo.market.simulated.spec import PRICE_SIGNALS, Drift, SimSpec
from feature_repo.market.simulated.world import World, draw_world

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = SimSpec(
    num_assets=4,
    num_sectors=2,
    num_days=150,
    num_delistings=1,
    num_days_15m=10,
    num_tick_days=2,
    num_tick_assets=2,
    late_share=0.02,
    restated_share=0.02,
    gap_share=0.02,
    benchmark=True,
)
CLEAN = replace(SMALL, late_share=0.0, restated_share=0.0, gap_share=0.0, num_bad_rows=0, num_odd_rows=0)
HOUR = pd.Timedelta(hours=1)
NO_TIME = pd.Timedelta(0)
COLUMNS = ["open", "high", "low", "close", "volume"]


@pytest.fixture(scope="module")
def market() -> Market:
    return simulate(SMALL).read(now=NOW)


@pytest.fixture(scope="module")
def clean() -> Market:
    found = simulate(CLEAN).read(now=NOW)
    assert found.quarantine.empty
    assert found.flags.empty
    return found


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(CLEAN)


def latest(bars: pd.DataFrame) -> pd.DataFrame:
    """Each bar's last restatement, by entity and end."""
    return bars.sort_values("ingest_time", kind="stable").groupby(["entity_key", "event_time"]).last()[COLUMNS]


def aggregated(bars: pd.DataFrame, length: str, num_finer: int) -> pd.DataFrame:
    """Bars of ``length`` where all the finer ones exist."""
    finer = latest(bars).reset_index()
    ends = finer["event_time"].dt.ceil(length)
    groups = finer.groupby(["entity_key", ends])
    coarse = groups.agg({"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"})
    coarse["volume"] = groups["volume"].sum(min_count=1)  # the index has none
    return coarse[groups.size() == num_finer]


def differing(coarse: pd.DataFrame, bars: pd.DataFrame) -> tuple[int, int]:
    """How many bars were compared, and how many of them differ."""
    both = coarse.join(latest(bars), how="inner", rsuffix="_told")
    told = both[[f"{name}_told" for name in COLUMNS]].to_numpy()
    made = both[COLUMNS].to_numpy()
    return len(both), int((~((made == told) | (np.isnan(made) & np.isnan(told)))).any(axis=1).sum())


@pytest.mark.parametrize("which", ["clean", "market"])
def test_bars_are_the_sum_of_finer_bars(which, request):
    tables = request.getfixturevalue(which).tables
    num_days, num_wrong_days = differing(aggregated(tables["bars_1h"], "1d", 24), tables["bars_1d"])
    num_hours, num_wrong_hours = differing(aggregated(tables["bars_15m"], "1h", 4), tables["bars_1h"])
    assert (num_wrong_days, num_wrong_hours) == (0, 0)
    assert num_hours > 800
    if which == "clean":
        assert num_days == len(tables["bars_1d"]) == len(tables["bars_1h"]) / 24
        assert num_hours == len(tables["bars_15m"]) / 4
    else:
        assert num_days > 200


def test_a_bar_that_is_not_the_sum_is_seen(clean):
    daily = clean.tables["bars_1d"].copy()
    daily.loc[7, "high"] *= 1.001
    assert differing(aggregated(clean.tables["bars_1h"], "1d", 24), daily)[1] == 1


def test_first_versions_of_restated_bars_differ_from_the_finer_bars(market):
    bars = market.tables["bars_1d"]
    restated = bars[bars.duplicated(["entity_key", "event_time"], keep=False)]
    versions = restated.groupby(["entity_key", "event_time"])
    assert (versions["ingest_time"].nunique() == 2).all()
    assert (versions["volume"].nunique() == 2).all()
    assert versions.ngroups > 5


def test_bars_are_continuous_and_hold_their_prices(clean):
    for interval in ("1d", "1h", "15m"):
        bars = clean.tables[f"bars_{interval}"]
        before = bars.groupby("entity_key")["close"].shift()
        gap = (bars["open"] / before - 1).abs()
        assert gap.max() < 2e-5  # the last digit
        assert (gap > 0).mean() < 0.01
        assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
        assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
        assets = bars[bars["entity_key"] != INDEX]
        assert (assets["high"] > assets["low"]).mean() > 0.99
        assert (assets["volume"] > 0).all()


def test_ranges_are_those_of_brownian_motion(clean, world):
    """Parkinson's estimator sees the volatility that the days were drawn with."""
    bars = clean.tables["bars_1h"]
    bars = bars[bars["entity_key"] != INDEX]
    parkinson = np.log(bars["high"] / bars["low"]) ** 2 / (4 * np.log(2))
    squares = np.log(bars["close"] / bars["open"]) ** 2
    assert parkinson.mean() / squares.mean() == pytest.approx(1.0, abs=0.06)


def test_daily_bars_are_the_worlds_days(clean, world):
    bars = clean.tables["bars_1d"]
    for i, entity in enumerate(world.entities):
        own = bars[bars["entity_key"] == entity]
        num_days = world.num_days_N[i]
        assert len(own) == num_days
        np.testing.assert_allclose(own["close"], world.close_TN[:num_days, i], rtol=1e-5)
        np.testing.assert_allclose(own["volume"], world.volume_THN[:num_days, :, i].sum(axis=1))
    index = bars[bars["entity_key"] == INDEX]
    returns_T = world.returns_TN.mean(axis=1)
    alive = slice(None, world.num_days_N.min())
    np.testing.assert_allclose((index["close"] / index["open"] - 1).to_numpy()[alive], returns_T[alive], atol=3e-5)


def test_trades_build_their_bars(clean):
    trades = clean.tables["trades"]
    groups = trades.groupby(["entity_key", trades["event_time"].dt.ceil("15min")])
    built = pd.DataFrame(
        {
            "open": groups["price"].first(),
            "high": groups["price"].max(),
            "low": groups["price"].min(),
            "close": groups["price"].last(),
            "volume": groups["size"].sum(),
        }
    )
    num_bars, num_wrong = differing(built, clean.tables["bars_15m"])
    assert (num_bars, num_wrong) == (2 * 2 * 96, 0)
    worse = built.copy()
    worse.iloc[5, 4] += 1 / 128
    assert differing(worse, clean.tables["bars_15m"])[1] == 1
    assert groups.size().min() >= 6
    assert (trades["size"] > 0).all()
    assert trades["trade_id"].is_unique


def test_a_trade_is_at_the_quote_before_it(clean):
    trades, quotes = clean.tables["trades"], clean.tables["quotes"]
    assert (quotes["bid"] < quotes["ask"]).all()
    spread_bps = (quotes["ask"] - quotes["bid"]) / quotes["bid"] * 1e4
    assert 2.0 < spread_bps.median() < 8.0
    joined = pd.merge_asof(
        trades.sort_values("event_time"),
        quotes.sort_values("event_time").drop(columns="ingest_time"),
        on="event_time",
        by="entity_key",
    )
    at_ask, at_bid = joined["price"] == joined["ask"], joined["price"] == joined["bid"]
    assert (at_ask == (joined["side"] == 1)).mean() > 0.99
    assert (at_bid == (joined["side"] == -1)).mean() > 0.99
    signed = joined["side"] * joined["size"]
    moves = clean.tables["bars_15m"].set_index(["entity_key", "event_time"])
    flow = signed.groupby([joined["entity_key"], joined["event_time"].dt.ceil("15min")]).sum()
    move = (moves["close"] / moves["open"] - 1).reindex(flow.index)
    for entity in flow.index.levels[0]:
        assert np.corrcoef(flow[entity], move[entity])[0, 1] > 0.2  # buying goes with rising


def test_imbalance_shows_in_ticks_too():
    spec = replace(CLEAN, num_assets=8, num_sectors=8, num_days=30, num_delistings=0, num_days_15m=10, num_tick_days=10)
    spec = replace(spec, num_tick_assets=8, benchmark=False)
    trades, world = simulate(spec).tables["trades"], draw_world(spec)
    signed = trades["side"] * trades["size"]
    keys = [trades["entity_key"], trades["event_time"].dt.ceil("D")]
    sided = (signed.groupby(keys).sum() / trades["size"].groupby(keys).sum()).unstack(0)[list(world.entities)]
    share_TN = sided.reindex(pd.DatetimeIndex(world.ends_T).tz_localize("UTC")).to_numpy()[-10:]
    assert np.corrcoef(share_TN.ravel(), world.imbalance_TN[-10:].ravel())[0, 1] > 0.4


def by_day(clean: Market, table: str, column: str, world: World, offset: pd.Timedelta = NO_TIME) -> np.ndarray:
    rows = clean.tables[table]
    rows = rows[rows["name"] == column] if "name" in rows else rows
    wide = rows.pivot_table(index="event_time", columns="entity_key", values="value" if "name" in rows else column)
    ends = pd.DatetimeIndex(world.ends_T).tz_localize("UTC") + offset
    return wide.reindex(index=ends, columns=list(world.entities)).to_numpy()


def assert_same_signal(name: str, raw_TN: np.ndarray, world: World) -> None:
    signal_TN = world.signals[name]
    seen = np.isfinite(raw_TN) & world.listed_TN
    assert seen.sum() > 200
    slope = np.polyfit(raw_TN[seen], signal_TN[seen], 1)
    np.testing.assert_allclose(np.polyval(slope, raw_TN[seen]), signal_TN[seen], atol=0.02)


def test_signals_are_what_the_tables_tell(clean, world):
    """Each planted signal, made again from published rows alone."""
    close_TN = by_day(clean, "bars_1d", "close", world)
    open_TN = by_day(clean, "bars_1d", "open", world)
    returns_TN = close_TN / open_TN - 1
    raw_PTN = np.full((len(PRICE_SIGNALS), *returns_TN.shape), np.nan)
    for t in range(WARMUP - 1, len(returns_TN)):
        price_signals(returns_TN, world.leader_N, t, raw_PTN[:, t])
    for name, raw_TN in zip(PRICE_SIGNALS, raw_PTN, strict=True):
        assert_same_signal(name, raw_TN, world)
    assert_same_signal("ohlcv", volume_surprise(by_day(clean, "bars_1d", "volume", world)), world)
    assert_same_signal("onchain", activity_growth(np.log(by_day(clean, "onchain_1d", "AdrActCnt", world))), world)
    hours = clean.tables["bars_1h"].sort_values(["entity_key", "event_time"])
    hours = hours[hours["entity_key"] != INDEX]
    shape = (-1, 24)
    for i, entity in enumerate(world.entities):
        own = hours[hours["entity_key"] == entity]
        volume, rises = own["volume"].to_numpy(), (own["close"] > own["open"]).to_numpy()
        raw = flow_imbalance(volume.reshape(shape)[:, :, None], rises.reshape(shape)[:, :, None])[:, 0]
        told = np.isfinite(raw)
        assert np.corrcoef(raw[told], world.signals["order_flow"][: len(raw), i][told])[0, 1] > 0.99


def test_sentiment_is_what_the_tables_tell_until_it_drifts():
    spec = replace(CLEAN, drifts=(Drift(feature="sentiment", at=0.5, size=2.0),))
    clean, world = simulate(spec).read(now=NOW), draw_world(spec)
    tone_TN = by_day(clean, "sentiment", "news_tone", world, -HOUR)
    before, after = slice(0, 75), slice(75, None)
    slope = np.polyfit(tone_TN[before].ravel(), world.signals["sentiment"][before].ravel(), 1)
    listed = world.listed_TN[before]
    np.testing.assert_allclose(
        np.polyval(slope, tone_TN[before])[listed], world.signals["sentiment"][before][listed], atol=0.02
    )
    assert np.nanmean(tone_TN[after]) > np.nanmean(tone_TN[before]) + 0.4
    assert abs(world.signals["sentiment"][after].mean()) < 0.5


def test_what_signals_are_made_of_is_known_at_the_days_end(clean):
    sentiment, onchain = clean.tables["sentiment"], clean.tables["onchain_1d"]
    tone = sentiment[sentiment["name"] == "news_tone"]
    assert (tone["ingest_time"] <= tone["event_time"].dt.ceil("D")).all()
    assert (onchain["ingest_time"] <= onchain["event_time"] + pd.Timedelta(days=1)).all()
    assert (onchain["ingest_time"] > onchain["event_time"] + pd.Timedelta(hours=12)).all()


def test_ingest_follows_the_event(clean):
    for name, table in clean.tables.items():
        if name not in ("universe", "corporate_actions"):
            assert (table["ingest_time"] > table["event_time"]).all(), name


def test_sentiment_has_several_names_of_assets_and_of_all(clean):
    names = clean.tables["sentiment"].groupby("entity_key")["name"].unique().map(sorted)
    assert names["*"] == ["fear_greed", "news_volume"]
    assert names["SIM00"] == ["news_tone", "social_tone"]
    mood = clean.tables["sentiment"].query("name == 'fear_greed'")["value"]
    assert mood.between(1, 99).all()
    assert mood.std() > 5


def test_onchain_columns_are_coin_metrics_and_agree(clean):
    chain = clean.tables["onchain_1d"]
    assert {"AdrActCnt", "TxCnt", "FeeTotUSD", "CapMrktCurUSD", "CapRealUSD", "CapMVRVCur", "NVTAdj"} <= set(chain)
    assert {"IssTotUSD", "SplyCur", "TxTfrValAdjUSD", "PriceUSD"} <= set(chain)
    np.testing.assert_allclose(chain["CapMrktCurUSD"], chain["PriceUSD"] * chain["SplyCur"], rtol=1e-8)
    np.testing.assert_allclose(chain["CapMVRVCur"], chain["CapMrktCurUSD"] / chain["CapRealUSD"], rtol=1e-5)
    np.testing.assert_allclose(chain["NVTAdj"], chain["CapMrktCurUSD"] / chain["TxTfrValAdjUSD"], rtol=2e-5)
    minted = chain.groupby("entity_key")["SplyCur"].diff() * chain["PriceUSD"]
    np.testing.assert_allclose(minted.dropna(), chain["IssTotUSD"][minted.notna()], rtol=1e-3, atol=1.0)
    bars = clean.tables["bars_1d"].set_index(["entity_key", "event_time"])["close"]
    priced = chain.set_index(["entity_key", "event_time"])["PriceUSD"]
    assert (bars.reindex(priced.index) == priced).all()


def test_a_delisted_asset_ends_everywhere(clean):
    truth = simulate(CLEAN).truth
    (delisting,) = truth.delistings
    end = pd.Timestamp(delisting.end)
    assert pd.Timestamp(truth.start) < end < pd.Timestamp(truth.end)
    for name in ("bars_1d", "bars_1h", "bars_15m", "trades", "quotes", "sentiment", "onchain_1d", "fundamentals"):
        own = clean.tables[name].query("entity_key == @delisting.entity")
        assert len(own) == 0 or own["event_time"].max() <= end
    assert clean.tables["bars_1d"].query("entity_key == @delisting.entity")["event_time"].max() == end
    (action,) = clean.tables["corporate_actions"].to_dict("records")
    assert (action["kind"], action["event_time"], action["delisting_return"]) == (
        "delisting",
        end,
        delisting.delisting_return,
    )
    assert -0.95 <= delisting.delisting_return <= -0.3
    membership = clean.tables["universe"].set_index("entity_key")
    assert membership.loc[delisting.entity, "to"].tolist()[1] == end
    assert membership.drop(index=delisting.entity)["to"].isna().all()
    assert delisting.entity not in truth.leaders.values()
