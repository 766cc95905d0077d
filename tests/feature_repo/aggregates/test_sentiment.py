"""Sentiment beside bars against its definition, read row by row at every moment; and broken readings fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates import sentiment
from feature_repo.aggregates.base import EVERYONE
from feature_repo.aggregates.market_sentiment import AGGREGATE as OF_MARKET
from feature_repo.aggregates.sentiment import AGGREGATE as OF_ASSET
from feature_repo.aggregates.sentiment import MAX_AGE, MEASURES, NUM_NEEDED, NUM_PAST
from feature_repo.market.assembly import known_at
from feature_repo.market.schema import Market
from tests.feature_repo.aggregates.market_makers import at, bars_with, daily_bars, known, rows, toy_market

DAY, HOUR = pd.Timedelta(days=1), pd.Timedelta(hours=1)
Rule = Callable[[pd.DataFrame, pd.Timestamp, pd.Timestamp], list[float]]

NUM_DAYS = 90


def series(rng: np.random.Generator, entity: str, name: str, every: float, *, scale: float) -> pd.DataFrame:
    """One named series; some days have two observations, some come late, some are restated or withdrawn."""
    event = np.arange(0, NUM_DAYS, every)
    event = np.concatenate([event, rng.choice(event, 8) + 0.3, rng.choice(event, 12)])
    ingest = event + rng.choice([-0.00001, 0.04, 0.04, 0.04, 1.2, 5.0], len(event))
    ingest[-12:] += rng.integers(1, 20, 12)
    value = scale * rng.normal(size=len(event))
    value[rng.random(len(event)) < 0.05] = np.nan
    return rows(entity, event, ingest, name=name, value=value)


def random_market(seed: int) -> Market:
    rng = np.random.default_rng(seed)
    parts = [
        series(rng, EVERYONE, "fear_greed", 1.0, scale=30.0),
        series(rng, EVERYONE, "news", 3.0, scale=0.1),
        series(rng, "A", "tone", 1.0, scale=2.0),
        series(rng, "A", "votes", 0.5, scale=100.0),
        series(rng, "X", "tone", 1.0, scale=2.0),
    ]
    keys = ["entity_key", "name", "event_time", "ingest_time"]
    table = pd.concat(parts).drop_duplicates(keys).sort_values(keys, kind="stable", ignore_index=True)
    return toy_market(bars_1d=daily_bars(["A", "B"], NUM_DAYS), sentiment=table)


def told(observations: pd.DataFrame, bar: pd.Timestamp) -> tuple[float, float]:
    """Level and count of one series' known observations, by the words of the module."""
    cut = bar - HOUR
    inside: dict[int, list[float]] = {}
    past = observations[observations["event_time"] <= cut].dropna(subset=["value"]).sort_values("event_time")
    for event, value in reversed(list(zip(past["event_time"], past["value"], strict=True))):
        inside.setdefault((cut - event) // DAY, []).append(value)
    if not inside:
        return math.nan, math.nan
    means = [sum(values) / len(values) for values in list(inside.values())[:NUM_PAST]]
    level, count = math.nan, float(len(inside.get(0, [])))
    if len(means) >= NUM_NEEDED and cut - past["event_time"].iloc[-1] <= MAX_AGE and np.ptp(means) > 0:
        level = (means[0] - np.mean(means)) / np.std(means, ddof=1)
    return level, count


def rule(of_entity: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> list[float]:
    visible = known(of_entity, moment, "name")
    each = np.array([told(observations, bar) for _, observations in visible.groupby("name")]).reshape(-1, 2)
    levels, counts = each[~np.isnan(each[:, 0]), 0], each[~np.isnan(each[:, 1]), 1]
    return [
        levels.mean() if len(levels) else np.nan,
        levels.std() if len(levels) > 1 else np.nan,
        counts.sum() if len(counts) else np.nan,
    ]


def by_event_time_only(of_entity: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> list[float]:
    return rule(of_entity.assign(ingest_time=of_entity["event_time"]), bar, moment)


def ignoring_withdrawals(of_entity: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> list[float]:
    return rule(of_entity.dropna(subset=["value"]), bar, moment)


def to_the_very_end(of_entity: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> list[float]:
    return rule(of_entity, bar + HOUR, moment)


def standardised_by_all(of_entity: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> list[float]:
    """Mean and deviation over the whole table, the future with it."""
    visible = known(of_entity, moment, "name")
    newest = [
        ((past["value"].iloc[-1] - everything.mean()) / everything.std())
        for name, observations in visible.groupby("name")
        for past in [observations[observations["event_time"] <= bar - HOUR].dropna(subset=["value"])]
        for everything in [of_entity.loc[of_entity["name"] == name, "value"]]
        if len(past) >= NUM_NEEDED
    ]
    return [float(np.mean(newest)) if newest else np.nan, *rule(of_entity, bar, moment)[1:]]


def num_wrong(by: Rule, market: Market, entity: str, days: list[float]) -> int:
    """Bars of some moments that have other columns than the rule gives."""
    aggregate, whose = (OF_MARKET, "market") if entity == EVERYONE else (OF_ASSET, "asset")
    table = market.tables["sentiment"]
    of_entity = table[table["entity_key"] == entity]
    attached, wrong = bars_with(market, "1d", aggregate), 0
    for moment in at(days):
        visible = known(attached, moment)
        for _, row in visible[visible["entity_key"] == "A"].sort_values("event_time").tail(25).iterrows():
            got = row[[f"{whose}_{measure}" for measure in MEASURES]].to_numpy(float)
            want = by(of_entity, row["event_time"], moment)
            wrong += not np.allclose(got, want, rtol=1e-9, atol=1e-12, equal_nan=True)
    return wrong


DAYS = [20.1, 30.7, 55.02, 75.5, 95.0]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("entity", ["A", EVERYONE])
def test_at_every_moment_bars_have_what_was_said_as_known_then(entity: str, seed: int) -> None:
    assert num_wrong(rule, random_market(seed), entity, DAYS) == 0


@pytest.mark.parametrize("broken", [by_event_time_only, ignoring_withdrawals, to_the_very_end, standardised_by_all])
def test_a_broken_reading_is_told_apart(broken: Rule) -> None:
    assert num_wrong(broken, random_market(0), "A", DAYS) > 10


@pytest.mark.parametrize("seed", range(2))
def test_deleting_what_is_known_later_changes_nothing(seed: int) -> None:
    market = random_market(seed)
    attached = bars_with(market, "1d", OF_ASSET, OF_MARKET)
    for moment in at([25.3, 60.0, 88.8]):
        past = bars_with(known_at(market, moment), "1d", OF_ASSET, OF_MARKET)
        before = attached[attached["ingest_time"] <= moment].reset_index(drop=True)
        pd.testing.assert_frame_equal(past, before, check_exact=True)


def test_kernels_equal_their_python() -> None:
    rng = np.random.default_rng(3)
    event = np.sort(rng.integers(0, 400, 300))
    ingest = event + rng.integers(0, 30, 300)
    order = np.lexsort((ingest, event))
    value = np.where(rng.random(300) < 0.1, np.nan, rng.normal(size=300))
    cut = rng.integers(0, 420, 40)
    given = (event[order], ingest[order], value[order], cut, cut + rng.integers(0, 20, 40), 5, 30)
    plain = sentiment._series_levels.py_func(*given)
    for jitted, python in zip(sentiment._series_levels(*given), plain, strict=True):
        np.testing.assert_array_equal(jitted, python)
    x = rng.normal(size=30)
    assert sentiment._standardise_first(x) == sentiment._standardise_first.py_func(x)
    assert sentiment._standardise_first(x) == pytest.approx((x[0] - x.mean()) / x.std(ddof=1), rel=1e-12)
    totals = [(np.full(NUM_PAST, np.nan), np.full(NUM_PAST, np.nan)) for _ in range(2)]
    jitted, python = (
        gather(*given[:3], 300, 310, 5, *buffers)
        for gather, buffers in zip((sentiment._gather, sentiment._gather.py_func), totals, strict=True)
    )
    assert jitted == python
    np.testing.assert_array_equal(totals[0], totals[1])


def test_two_observations_in_a_bar_count_by_their_mean_and_are_counted() -> None:
    day = np.arange(30.0)
    value = np.where(day % 2 == 0, 1.0, -1.0)
    once = rows(EVERYONE, day + 0.5, day + 0.5, name="tone", value=value)
    twice = pd.concat(
        [
            rows(EVERYONE, day + hour / 24, day + hour / 24, name="tone", value=value + gap)
            for hour, gap in ((6, 5), (18, -5))
        ]
    )
    bars = daily_bars(["A"], 31)
    one, two = (bars_with(toy_market(bars_1d=bars, sentiment=table), "1d", OF_MARKET) for table in (once, twice))
    np.testing.assert_array_equal(one["market_sentiment"], two["market_sentiment"])
    assert one["market_sentiment"].notna().sum() == 31 - NUM_NEEDED
    np.testing.assert_array_equal(2 * one["market_sentiment_count"], two["market_sentiment_count"])
    assert set(two["market_sentiment_count"].dropna()) == {2.0}


def test_scale_and_level_of_a_series_do_not_matter() -> None:
    market = random_market(1)
    table = market.tables["sentiment"]
    stretched = toy_market(bars_1d=market.tables["bars_1d"], sentiment=table.assign(value=50.0 + 8.0 * table["value"]))
    one, other = (bars_with(given, "1d", OF_ASSET, OF_MARKET) for given in (market, stretched))
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_a_weekly_series_keeps_its_level_until_it_speaks_again_or_is_too_old() -> None:
    week = np.arange(0.0, 7 * 25, 7)
    value = np.arange(25.0) ** 2
    table = rows(EVERYONE, week, week, name="news", value=value)
    attached = bars_with(toy_market(bars_1d=daily_bars(["A"], 7 * 24 + 20), sentiment=table), "1d", OF_MARKET)
    level = attached["market_sentiment"].to_numpy()
    last = int(week[-1])
    assert len(set(level[last - 6 : last + 1])) == 1
    assert level[last + 1] == pytest.approx((value[-1] - value.mean()) / value.std(ddof=1))
    assert len(set(level[last + 1 : last + 15])) == 1
    assert np.isnan(level[last + 15 :]).all()
    np.testing.assert_array_equal(
        attached["market_sentiment_count"].to_numpy()[last - 6 : last + 3], [1, *[0] * 6, 1, 0]
    )


def test_an_index_published_within_the_hour_restates_no_bar() -> None:
    day = np.arange(60.0)
    table = rows(EVERYONE, day, day + 1 / 24, name="fear_greed", value=np.sin(day))
    attached = bars_with(toy_market(bars_1d=daily_bars(["A"], 60), sentiment=table), "1d", OF_MARKET)
    assert len(attached) == 60
    assert set(attached["market_sentiment_count"].dropna()) == {1.0}


def test_a_bulk_load_restates_each_bar_once() -> None:
    day = np.arange(200.0)
    table = rows(EVERYONE, day, 300.0 + 0 * day, name="fear_greed", value=np.sin(day))
    versions = OF_MARKET.versions(toy_market(bars_1d=daily_bars(["A"], 200), sentiment=table), "1d")
    assert versions is not None
    assert len(versions) == 199
    assert set(versions["ingest_time"]) == {at([300.0])[0]}


def test_a_series_that_never_moves_says_nothing() -> None:
    day = np.arange(0.0, 40.0, 0.3)
    table = rows(EVERYONE, day, day, name="index", value=7.1)
    attached = bars_with(toy_market(bars_1d=daily_bars(["A"], 40), sentiment=table), "1d", OF_MARKET)
    assert attached["market_sentiment"].isna().all()


def test_a_market_has_the_columns_that_its_rows_can_feed() -> None:
    market = random_market(0)
    table, bars = market.tables["sentiment"], market.tables["bars_1d"]
    only = {
        "market": toy_market(bars_1d=bars, sentiment=table[table["entity_key"] == EVERYONE]),
        "asset": toy_market(bars_1d=bars, sentiment=table[table["entity_key"] != EVERYONE]),
    }
    for whose, given in only.items():
        attached = bars_with(given, "1d", OF_ASSET, OF_MARKET)
        assert set(attached.columns[4:]) == {f"{whose}_{measure}" for measure in MEASURES}
    assert OF_ASSET.versions(toy_market(bars_1d=bars), "1d") is None
    assert OF_MARKET.versions(toy_market(bars_1d=bars), "1d") is None
    strangers = toy_market(bars_1d=bars, sentiment=table[table["entity_key"] == "X"])
    assert OF_ASSET.versions(strangers, "1d") is None
    both = {*OF_ASSET.columns, *OF_MARKET.columns}
    assert both == set(bars_with(market, "1d", OF_ASSET, OF_MARKET).columns[4:])
