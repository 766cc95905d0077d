"""The sentiment features: closed forms, an exact window, and restated rows for restated sentiment."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.base import EVERYONE
from feature_repo.aggregates.market_sentiment import AGGREGATE as OF_MARKET
from feature_repo.aggregates.sentiment import AGGREGATE as OF_ASSET
from feature_repo.market.assembly import known_at
from feature_repo.market.schema import Market
from feature_repo.pipelines.build import NotApplicableError
from feature_repo.pipelines.catalog import CATALOGUE
from feature_repo.pipelines.sentiment import PIPELINE
from tests.feature_repo.aggregates.market_makers import at, bars_with, daily_bars, rows, toy_market
from tests.feature_repo.pipelines.window_checks import assert_rows_hold_the_rule, assert_window_is_exact, build

NUM_BARS = 150


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{whose}_{measure}": series
        for whose in ("asset", "market")
        for measure, series in (
            ("sentiment", rng.normal(size=NUM_BARS)),
            ("sentiment_disagreement", rng.random(NUM_BARS)),
            ("sentiment_count", rng.integers(0, 5, NUM_BARS).astype(float)),
        )
    }


def late_market() -> Market:
    """Sixty-odd bars of two assets and three series with late, restated and withdrawn observations."""
    rng = np.random.default_rng(2)
    parts = []
    for entity, name in ((EVERYONE, "fear_greed"), ("A", "tone"), ("B", "tone")):
        event = np.concatenate([np.arange(110.0), rng.integers(30, 105, 4)])
        lag = np.where(np.arange(114) < 110, 0.04, rng.integers(1, 8, 114))
        lag[rng.integers(40, 110, 3)] = 2.5
        value = rng.normal(size=114)
        value[-1] = np.nan
        parts.append(rows(entity, event, event + lag, name=name, value=value))
    keys = ["entity_key", "name", "event_time", "ingest_time"]
    table = pd.concat(parts).drop_duplicates(keys).sort_values(keys, kind="stable", ignore_index=True)
    return toy_market(bars_1d=daily_bars(["A", "B"], 110), sentiment=table)


def test_it_is_in_the_catalogue() -> None:
    assert CATALOGUE["sentiment"] is PIPELINE


def test_value_is_a_function_of_exactly_the_last_warmup_bars() -> None:
    assert_window_is_exact(PIPELINE, columns())


def test_values_are_what_their_descriptions_say() -> None:
    given = columns()
    got = {name: series[-1] for name, series in PIPELINE.compute(given).items()}
    for whose in ("asset", "market"):
        s = pd.Series(given[f"{whose}_sentiment"])
        counts = 1.0 + pd.Series(given[f"{whose}_sentiment_count"])
        before = s.iloc[:-1]
        average = {half_life: s.tail(5 * half_life).ewm(halflife=half_life).mean().iloc[-1] for half_life in (3, 10)}
        average_before = before.tail(50).ewm(halflife=10).mean().iloc[-1]
        low, high = s.tail(63).min(), s.tail(63).max()
        want = {
            "sentiment_level": s.iloc[-1],
            "sentiment_change_1": s.iloc[-1] - s.iloc[-2],
            "sentiment_change_5": s.iloc[-1] - s.iloc[-6],
            "sentiment_change_21": s.iloc[-1] - s.iloc[-22],
            "sentiment_decay_3": average[3],
            "sentiment_decay_10": average[10],
            "sentiment_surprise": (s.iloc[-1] - average_before) / before.tail(50).std(),
            "sentiment_dispersion_21": s.tail(21).std(),
            "sentiment_place_63": (s.iloc[-1] - low) / (high - low),
            "sentiment_disagreement": given[f"{whose}_sentiment_disagreement"][-1],
            "sentiment_attention_63": np.log(counts.iloc[-1] / counts.tail(63).mean()),
        }
        for name, value in want.items():
            assert got[f"{whose}_{name}"] == pytest.approx(value, rel=1e-10), name
    difference = pd.Series(given["asset_sentiment"] - given["market_sentiment"])
    assert got["sentiment_difference"] == difference.iloc[-1]
    assert got["sentiment_difference_change_5"] == pytest.approx(difference.iloc[-1] - difference.iloc[-6])
    decayed = difference.tail(50).ewm(halflife=10).mean().iloc[-1]
    assert got["sentiment_difference_decay_10"] == pytest.approx(decayed)


def test_surprise_stays_finite_when_a_quiet_series_speaks() -> None:
    given = {name: np.zeros(NUM_BARS) for name in columns()}
    given["market_sentiment"][-1] = 2.0
    assert PIPELINE.compute(given)["market_sentiment_surprise"][-1] == pytest.approx(20.0)


def test_features_of_the_asset_are_absent_where_only_the_market_is_talked_about() -> None:
    market_wide = {name: series for name, series in columns().items() if name.startswith("market")}
    got = PIPELINE.compute(market_wide)
    assert len(got) == 11
    assert all(name.startswith("market_sentiment") for name in got)
    table = late_market().tables["sentiment"]
    everyone = toy_market(bars_1d=daily_bars(["A"], 110), sentiment=table[table["entity_key"] == EVERYONE])
    features = build(PIPELINE, bars_with(everyone, "1d", OF_ASSET, OF_MARKET))
    assert features.filter(like="asset_").isna().all(axis=None)
    assert features["sentiment_difference"].isna().all()
    assert features["market_sentiment_level"].notna().any()


def test_a_market_without_sentiment_is_not_applicable_and_the_reason_says_so() -> None:
    with pytest.raises(NotApplicableError, match=r"'sentiment' is not applicable.*market_sentiment"):
        build(PIPELINE, bars_with(toy_market(bars_1d=daily_bars(["A"], 80)), "1d", OF_ASSET, OF_MARKET))


def test_a_missing_bar_blanks_its_windows_without_a_warning() -> None:
    given = columns()
    for series in given.values():
        series[70] = np.nan
    for name, series in PIPELINE.compute(given).items():
        assert np.isnan(series[70]), name
        assert not np.isnan(series[133:]).any(), name


def test_rows_known_at_any_time_are_the_features_of_what_was_known_then() -> None:
    attached = bars_with(late_market(), "1d", OF_ASSET, OF_MARKET).drop(columns="close")
    assert attached.duplicated(["entity_key", "event_time"]).sum() > 20
    assert_rows_hold_the_rule(PIPELINE, attached, at([80.5, 95.02, 103.7, 115.0]))


def test_deleting_what_is_known_later_changes_nothing() -> None:
    market = late_market()
    features = build(PIPELINE, bars_with(market, "1d", OF_ASSET, OF_MARKET))
    for moment in at([85.5, 97.01, 104.9]):
        past = build(PIPELINE, bars_with(known_at(market, moment), "1d", OF_ASSET, OF_MARKET))
        before = features[features["ingest_time"] <= moment].reset_index(drop=True)
        pd.testing.assert_frame_equal(past, before, check_exact=True)
