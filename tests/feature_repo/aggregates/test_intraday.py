"""Realised variances in two times, against a plain reading of their rule at every kind of moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.attach import aggregates
from feature_repo.aggregates.intraday import intraday_versions, realised_versions, trading_time
from feature_repo.kernels.realised import realised_moments
from feature_repo.market.schema import Market
from tests.feature_repo.aggregates.market_makers import ORIGIN, TIMES, known, toy_market

HOUR = pd.Timedelta(hours=1)
DAY = pd.Timedelta(days=1)
KEYS = ["entity_key", "event_time"]
VALUES = ["realised_variance", "bipower_variation", "upside_semivariance", "num_intraday_bars"]


def fine_bars(entity: str, num_hours: int, *, step: pd.Timedelta = HOUR, seed: int = 0) -> pd.DataFrame:
    """Bars that end every step after ``ORIGIN`` and are known a minute later."""
    rng = np.random.default_rng(seed)
    event = ORIGIN + step * np.arange(1, num_hours + 1)
    close = 100.0 * np.exp(rng.normal(0.0, 0.01, num_hours).cumsum())
    table = pd.DataFrame(
        {
            "entity_key": entity,
            "event_time": event,
            "ingest_time": event + pd.Timedelta(minutes=1),
            "open": close * np.exp(rng.normal(0.0, 0.001, num_hours)),
            "close": close,
        }
    )
    return table.astype(TIMES)


def day_bars(*entities: str, num_days: int) -> pd.DataFrame:
    parts = [fine_bars(entity, num_days, step=DAY) for entity in entities]
    return pd.concat(parts, ignore_index=True)[[*KEYS, "ingest_time", "close"]]


def messy_hours(seed: int, *, num_days: int = 6) -> pd.DataFrame:
    """Some late, some restated, some missing, some never known, in no order."""
    rng = np.random.default_rng(seed)
    table = pd.concat([fine_bars(name, 24 * num_days, seed=seed + ord(name)) for name in "AB"], ignore_index=True)
    table = table[rng.random(len(table)) > 0.05]
    lag = np.where(rng.random(len(table)) < 0.1, rng.integers(1, 60, len(table)), 0)
    table["ingest_time"] += pd.to_timedelta(lag, unit="h")
    again = table.sample(n=15, random_state=seed)
    again = again.assign(
        close=again["close"] * rng.uniform(0.9, 1.1, 15),
        ingest_time=again["ingest_time"] + pd.to_timedelta(rng.integers(0, 60, 15), unit="h"),
    )
    everything = pd.concat([table, again]).sample(frac=1.0, random_state=seed, ignore_index=True)
    everything.loc[rng.random(len(everything)) < 0.02, "ingest_time"] = pd.NaT
    return everything.astype(TIMES)


def direct(days: pd.DataFrame, fine: pd.DataFrame, moment: pd.Timestamp, min_bars: int) -> pd.DataFrame:
    """Every day that has ended from the hours known at the moment."""
    hours = known(fine, moment).sort_values("event_time")
    rows = []
    for entity, end in days[KEYS].drop_duplicates().itertuples(index=False):
        inside = hours[(hours["entity_key"] == entity) & hours["event_time"].between(end - DAY, end, inclusive="right")]
        if end > moment or inside.empty:
            continue
        of_day = realised_moments(inside["open"].to_numpy(), inside["close"].to_numpy(), np.array([0, len(inside)]))
        values = [float(value[0]) for value in of_day]
        rows.append([entity, end, *(values if values[3] >= min_bars else [np.nan, np.nan, np.nan, values[3]])])
    return pd.DataFrame(rows, columns=[*KEYS, *VALUES]).set_index(KEYS).astype(float).sort_index()


def agrees(found: pd.DataFrame, days: pd.DataFrame, fine: pd.DataFrame, moment: pd.Timestamp) -> bool:
    want, got = direct(days, fine, moment, 20), known(found, moment).set_index(KEYS)[VALUES].sort_index()
    same = np.array_equal(want.to_numpy(), got.to_numpy(), equal_nan=True)
    return list(want.index) == list(got.index) and same


MOMENTS = [ORIGIN + hours * HOUR for hours in (5, 24, 24.5, 31, 48, 73.02, 100, 121, 144, 170, 300)]


@pytest.mark.parametrize("seed", range(5))
def test_at_every_moment_the_versions_say_what_the_fine_bars_known_then_say(seed: int) -> None:
    days, fine = day_bars("A", "B", "C", num_days=6), messy_hours(seed)
    found = realised_versions(days, fine, timedelta(days=1), min_bars=20)
    assert not found.duplicated([*KEYS, "ingest_time"]).any()
    assert found["realised_variance"].isna().any()
    for moment in [*MOMENTS, *fine["ingest_time"].dropna().sample(10, random_state=seed)]:
        assert agrees(found, days, fine, moment), moment


def test_deleting_the_future_changes_nothing_that_was_known() -> None:
    days, fine = day_bars("A", "B", num_days=6), messy_hours(9)
    everything = realised_versions(days, fine, timedelta(days=1), min_bars=20)
    for moment in MOMENTS:
        visible = fine[(fine["event_time"] <= moment) & (fine["ingest_time"] <= moment)]
        ended = days[days["event_time"] <= moment]
        past = realised_versions(ended, visible, timedelta(days=1), min_bars=20)
        expected = everything[everything["ingest_time"] <= moment].reset_index(drop=True)
        pd.testing.assert_frame_equal(past, expected, check_exact=True)


def test_fine_bars_not_yet_known_break_the_rule() -> None:
    days, fine = day_bars("A", "B", num_days=6), messy_hours(0)
    final = fine.sort_values("ingest_time").drop_duplicates(KEYS, keep="last")
    as_if = final.assign(ingest_time=final["event_time"])
    broken = realised_versions(days, as_if, timedelta(days=1), min_bars=20)
    assert not all(agrees(broken, days, fine, moment) for moment in MOMENTS)


def test_the_wrong_bar_edge_breaks_the_rule() -> None:
    days, fine = day_bars("A", "B", num_days=6), messy_hours(0)
    shifted = fine.assign(event_time=fine["event_time"] - HOUR)
    broken = realised_versions(days, shifted, timedelta(days=1), min_bars=20)
    assert not all(agrees(broken, days, fine, moment) for moment in MOMENTS)


def test_a_day_is_its_24_hours_from_the_first_open() -> None:
    fine = fine_bars("A", 72)
    found = realised_versions(day_bars("A", num_days=3), fine, timedelta(days=1), min_bars=20)
    latest = found.drop_duplicates("event_time", keep="last")
    assert (latest["ingest_time"] - latest["event_time"] == pd.Timedelta(minutes=1)).all()
    for day, got in enumerate(latest.itertuples()):
        path = np.log(np.append(fine["open"].iloc[24 * day], fine["close"].iloc[24 * day : 24 * day + 24]))
        returns = np.diff(path)
        assert got.num_intraday_bars == 24
        assert got.realised_variance == pytest.approx((returns**2).sum())
        assert got.upside_semivariance == pytest.approx((returns[returns > 0] ** 2).sum())
        products = (np.abs(returns[1:]) * np.abs(returns[:-1])).sum()
        assert got.bipower_variation == pytest.approx(np.pi / 2 * 24 / 23 * products)


def test_a_restated_hour_is_a_version_at_its_arrival() -> None:
    fine, when = fine_bars("A", 72), ORIGIN + 90 * HOUR
    restated = fine.iloc[[30]].assign(close=1.0, ingest_time=when)
    days = day_bars("A", num_days=3)
    before, after = (
        realised_versions(days, table, timedelta(days=1), min_bars=20) for table in (fine, pd.concat([fine, restated]))
    )
    added = after[after["ingest_time"] == when]
    assert list(added["event_time"]) == [ORIGIN + 2 * DAY]
    pd.testing.assert_frame_equal(after[after["ingest_time"] < when].reset_index(drop=True), before)


def test_an_incomplete_day_is_null_and_says_how_many_bars_it_has() -> None:
    fine = fine_bars("A", 24).iloc[5:]
    market = market_of(day_bars("A", num_days=1), bars_1h=fine)
    for rows, is_null in ((fine, True), (fine_bars("A", 24).iloc[4:], False)):
        found = intraday_versions(replace(market, tables=market.tables | {"bars_1h": rows}), "1d")
        assert found is not None
        assert found["num_intraday_bars"].iloc[-1] == len(rows)
        assert found[VALUES[:3]].iloc[-1].isna().all() == is_null


def market_of(days: pd.DataFrame, **finer: pd.DataFrame) -> Market:
    market = toy_market(bars_1d=days, **finer)
    return replace(market, info=replace(market.info, calendar="24/7"))


def test_the_finest_bars_that_divide_the_interval_are_taken() -> None:
    days = day_bars("A", num_days=2)
    tables = {
        "bars_1h": fine_bars("A", 48),
        "bars_15m": fine_bars("A", 192, step=HOUR / 4),
        "bars_7m": fine_bars("A", 400, step=HOUR * 7 / 60),
    }
    found = intraday_versions(market_of(days, **tables), "1d")
    assert found is not None
    assert found["num_intraday_bars"].max() == 96
    recent = tables["bars_15m"][tables["bars_15m"]["event_time"] > days["event_time"].min()]
    longer = intraday_versions(market_of(days, **tables | {"bars_15m": recent}), "1d")
    assert longer is not None
    assert longer["num_intraday_bars"].max() == 24, "hours that reach back further are better"
    assert aggregates()["intraday"].versions is intraday_versions


def test_without_finer_bars_it_says_nothing() -> None:
    days = day_bars("A", num_days=2)
    assert intraday_versions(market_of(days), "1d") is None
    assert intraday_versions(market_of(days, bars_1w=days), "1d") is None
    of_another = intraday_versions(market_of(days, bars_1h=fine_bars("B", 48)), "1d")
    assert of_another is not None
    assert of_another.empty
    assert list(of_another.columns) == [*KEYS, "ingest_time", *VALUES]


def test_closes_are_enough() -> None:
    fine = fine_bars("A", 24).drop(columns="open")
    found = realised_versions(day_bars("A", num_days=1), fine, timedelta(days=1), min_bars=20)
    returns = np.diff(np.log(fine["close"]))
    assert found["realised_variance"].iloc[-1] == pytest.approx((returns**2).sum())


def test_trading_time_is_the_sessions() -> None:
    hours = {
        ("24/7", "1d"): 24.0,
        ("24/7", "7d"): 168.0,
        ("XNYS", "1d"): 6.5,
        ("XNYS", "7d"): 32.5,
        ("XNYS", "1h"): 1.0,
        ("weekdays", "1d"): 24.0,
        ("weekdays", "7d"): 120.0,
    }
    for (calendar, length), want in hours.items():
        got = trading_time(calendar, pd.Timedelta(length).to_pytimedelta())
        assert got / timedelta(hours=1) == pytest.approx(want)
