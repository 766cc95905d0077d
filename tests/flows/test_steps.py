"""The steps' own sums: sessions, benchmarks, bars a year."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.market.calendar import price_grid
from feature_repo.market.schema import MarketInfo
from flows.cycle import CycleConfig
from flows.steps.data import TEST, feast_project, load, market_returns, per_bar, sessions_needed, still_fed
from tests.flows.small_market import write_small_market
from tests.training.panel_makers import make_panel
from training.panels import PanelError


@given(available=st.integers(1, 9000), folds=st.integers(1, 60))
def test_sessions_are_dropped_by_whole_steps_and_enough_are_kept(available, folds):
    config = CycleConfig(folds=folds)
    kept = sessions_needed(config, available)
    assert 0 < kept <= available
    assert (available - kept) % TEST == 0
    if kept < available:
        assert kept >= 90 + 252 + 63 + folds * 21 + 2 * 21


def test_growing_history_keeps_the_folds_where_they_are():
    config = CycleConfig()
    starts = {available - sessions_needed(config, available) for available in range(2000, 2020)}
    assert len(starts) <= 2


def _bars(times, prices):
    ends = pd.DatetimeIndex(times).tz_localize("UTC").astype("datetime64[us, UTC]")
    parts = [
        pd.DataFrame({"entity_key": name, "event_time": ends, "ingest_time": ends, **columns})
        for name, columns in prices.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_a_benchmark_of_closes_beside_assets_with_opens_has_returns():
    days = pd.bdate_range("2020-01-01", periods=6) + pd.Timedelta(hours=21)
    close = np.array([100.0, 101, 102, 103, 104, 105])
    bars = _bars(days, {"A": {"close": close, "open": close - 0.5}, "I": {"close": 2 * close, "open": np.nan}})
    grid = price_grid(bars, calendar="XNYS", interval="1d")
    benchmark_T, mean_T = market_returns(grid, "I", np.full((6, 1), 0.01))
    np.testing.assert_allclose(benchmark_T[:4], close[2:] / close[1:-1] - 1)
    np.testing.assert_allclose(mean_T, 0.01)


def test_without_a_benchmark_the_market_is_the_mean_of_what_is_there():
    hold_TN = np.array([[0.1, 0.3], [np.nan, 0.2], [np.nan, np.nan]])
    np.testing.assert_allclose(market_returns(None, None, hold_TN), [[0.2, 0.2, 0.0]])


@pytest.mark.parametrize(("freq", "bars"), [("1D", 252), ("1h", 252 * 24)])
def test_yearly_rates_count_bars(freq, bars):
    ends = pd.date_range("2020-01-01 01:00" if freq == "1h" else "2020-01-01", periods=240, freq=freq, tz="UTC")
    info = per_bar(MarketInfo(name="m"), pd.DataFrame({"event_time": ends}))
    assert (info.sessions_per_year, info.costs.sessions_per_year) == (bars, bars)


def test_an_as_of_time_hides_what_became_known_later(tmp_path):
    folder = write_small_market(tmp_path / "m", num_days=100)
    now = pd.Timestamp("2022-01-01", tz="UTC").to_pydatetime()
    as_of = pd.Timestamp("2019-03-01T21:10", tz="UTC")  # after that day's close, before it was known
    cut = load(CycleConfig(market=str(folder), as_of=as_of.to_pydatetime()), now)
    whole = load(CycleConfig(market=str(folder)), now)
    assert cut.bars("1d")["event_time"].max() == pd.Timestamp("2019-02-28T21:00", tz="UTC")
    assert cut.fingerprint != whole.fingerprint


def test_feast_projects_are_plain_names():
    assert feast_project("my market-2", "1d") == "my_market_2_1d"


def test_a_pipeline_whose_data_ended_is_not_applicable():
    panel = make_panel(num_times=120)
    x = panel.x_TNF.copy()
    x[-TEST + 1 :] = np.nan
    still = dataclasses.replace(panel, x_TNF=x)
    assert still_fed(still) is still
    x[-TEST] = np.nan
    last = str(panel.event_times_T[-TEST - 1])[:10]
    with pytest.raises(PanelError, match=f"no feature with a value since {last}"):
        still_fed(dataclasses.replace(panel, x_TNF=x))
