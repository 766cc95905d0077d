"""The mean traded value: brute force in two times, and what is not known."""

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.calendar import price_grid
from feature_repo.market.liquidity import mean_traded_value

WINDOW = 5


@pytest.fixture
def bars():
    """30 days of three assets, known 15 minutes after the bar; some are late, some restated, some missing."""
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01 21:00", periods=30, tz="UTC")
    frame = pd.MultiIndex.from_product([days, list("ABC")], names=["event_time", "entity_key"]).to_frame(index=False)
    frame["ingest_time"] = frame["event_time"] + pd.Timedelta("15min")
    frame["close"], frame["volume"] = rng.uniform(90, 110, len(frame)), rng.uniform(1e3, 2e3, len(frame))
    frame = frame[rng.random(len(frame)) > 0.15]
    frame.loc[frame.sample(6, random_state=1).index, "ingest_time"] += pd.Timedelta("4d")
    restated = frame.sample(15, random_state=2)
    restated = restated.assign(volume=restated["volume"] * 3, ingest_time=restated["ingest_time"] + pd.Timedelta("50h"))
    withdrawn = restated.iloc[:3].assign(volume=np.nan, ingest_time=restated["ingest_time"] + pd.Timedelta("24h"))
    return pd.concat([frame, restated, withdrawn]).sample(frac=1.0, random_state=3, ignore_index=True)


def grid_of(bars):
    return price_grid(bars, calendar="unknown", interval="1d")


def slow_mean(bars, grid, window):
    out = np.full(grid.close_TN.shape, np.nan)
    for t, at in enumerate(pd.DatetimeIndex(grid.sample_times_T).tz_localize("UTC")):
        known = bars[(bars["event_time"] <= at) & (bars["ingest_time"] <= at)]
        known = known.sort_values("ingest_time").groupby(["entity_key", "event_time"]).tail(1)
        recent = pd.DatetimeIndex(grid.event_times_T[max(0, t + 1 - window) : t + 1]).tz_localize("UTC")
        for n, entity in enumerate(grid.entities):
            rows = known[(known["entity_key"] == entity) & known["event_time"].isin(recent)]
            values = (rows["close"] * rows["volume"]).dropna()
            if 2 * len(values) >= window:
                out[t, n] = values.mean()
    return out


def test_equals_brute_force_in_two_times(bars):
    grid = grid_of(bars)
    found = mean_traded_value(bars, grid, window=WINDOW)
    expected = slow_mean(bars, grid, WINDOW)
    assert np.isfinite(expected).mean() > 0.7
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # The broken variant, which knows every restatement from the start, is another one.
    latest = bars.sort_values("ingest_time").drop_duplicates(["entity_key", "event_time"], keep="last")
    hindsight = latest.assign(ingest_time=latest["event_time"] + pd.Timedelta("15min"))
    assert not np.allclose(mean_traded_value(hindsight, grid, window=WINDOW), expected, equal_nan=True)


def test_the_future_changes_nothing(bars):
    grid = grid_of(bars)
    whole = mean_traded_value(bars, grid, window=WINDOW)
    at = pd.Timestamp(grid.sample_times_T[17]).tz_localize("UTC")
    past = bars[(bars["event_time"] <= at) & (bars["ingest_time"] <= at)]
    np.testing.assert_array_equal(mean_traded_value(past, grid, window=WINDOW)[:18], whole[:18])


def test_a_market_without_volumes_has_none(bars):
    grid = grid_of(bars)
    assert np.isnan(mean_traded_value(bars.drop(columns="volume"), grid)).all()
    assert np.isnan(mean_traded_value(bars.assign(volume=np.nan), grid)).all()


def test_only_the_grids_entities_are_looked_at(bars):
    grid = grid_of(bars)
    some = grid.only(["C", "A"])
    expected = mean_traded_value(bars, grid, window=WINDOW)[:, [2, 0]]
    np.testing.assert_array_equal(mean_traded_value(bars, some, window=WINDOW), expected)
