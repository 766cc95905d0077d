"""On-chain columns beside bars: which row, which table, which way to a metric; in two times, by brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.onchain import AGGREGATE, MAX_AGE, metrics, onchain_table
from feature_repo.market.assembly import known_at
from feature_repo.market.schema import Market
from tests.feature_repo.aggregates.market_makers import ORIGIN, at, bars_with, daily_bars, known, rows, toy_market

DAY = pd.Timedelta(days=1)
COLUMNS = ["onchain_active_addresses", "onchain_mvrv"]
Rule = Callable[[pd.DataFrame, pd.Timestamp, pd.Timestamp], tuple[float, float]]


def random_market(seed: int) -> Market:
    """Ten days of two coins; rows come half a day late or days late, are restated, withdrawn or missing."""
    rng = np.random.default_rng(seed)
    num_rows = 30
    day = rng.integers(-2, 10, num_rows).astype(float)
    lag = rng.choice([0.5, 0.5, 0.5, 1.5, 3.2, 6.0], num_rows) + rng.integers(0, 2, num_rows) * 0.01
    values = {
        name: np.where(rng.random(num_rows) < 0.2, np.nan, rng.integers(1, 9, num_rows))
        for name in ("AdrActCnt", "CapMVRVCur", "CapMrktCurUSD", "CapRealUSD")
    }
    table = rows(rng.choice(["A", "B"], num_rows), day, day + lag, **values)
    withdrawn = rng.random(num_rows) < 0.15
    table.loc[withdrawn, list(values)] = np.nan
    table = table.sort_values(["entity_key", "event_time", "ingest_time"], kind="stable", ignore_index=True)
    return toy_market(bars_1d=daily_bars(["A", "B", "C"], 10), onchain_1d=table)


def of_row(row: pd.Series) -> tuple[float, float]:
    mvrv = row["CapMVRVCur"]
    return row["AdrActCnt"], row["CapMrktCurUSD"] / row["CapRealUSD"] if np.isnan(mvrv) else mvrv


def rule(table: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> tuple[float, float]:
    """Of the rows known, the last of the newest day that is one day back and not too old."""
    visible = known(table, moment)
    within = visible[visible["event_time"].between(bar - (1 + MAX_AGE) * DAY, bar - DAY)]
    return (np.nan, np.nan) if within.empty else of_row(within.sort_values("event_time").iloc[-1])


def by_event_time_only(table: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> tuple[float, float]:
    return rule(table.assign(ingest_time=table["event_time"]), bar, moment)


def ignoring_withdrawals(table: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> tuple[float, float]:
    return rule(table.dropna(subset=["AdrActCnt", "CapMVRVCur"], how="all"), bar, moment)


def of_the_same_day(table: pd.DataFrame, bar: pd.Timestamp, moment: pd.Timestamp) -> tuple[float, float]:
    return rule(table, bar + DAY, moment)


def moments() -> list[pd.Timestamp]:
    return list(at(np.arange(0.1, 18.0, 1.3)))


def num_wrong(by: Rule, market: Market) -> int:
    attached, table, wrong = bars_with(market, "1d", AGGREGATE), market.tables["onchain_1d"], 0
    for moment in moments():
        for _, row in known(attached, moment).iterrows():
            of_entity = table[table["entity_key"] == row["entity_key"]]
            want = np.array(by(of_entity, row["event_time"], moment))
            wrong += not np.array_equal(row[COLUMNS].to_numpy(float), want, equal_nan=True)
    return wrong


@pytest.mark.parametrize("seed", range(3))
def test_at_every_moment_bars_have_what_the_rows_known_then_say(seed: int) -> None:
    assert num_wrong(rule, random_market(seed)) == 0


@pytest.mark.parametrize("broken", [by_event_time_only, ignoring_withdrawals, of_the_same_day])
def test_a_broken_rule_is_told_apart(broken: Rule) -> None:
    assert num_wrong(broken, random_market(0)) > 10


@pytest.mark.parametrize("seed", range(3))
def test_deleting_what_is_known_later_changes_nothing(seed: int) -> None:
    market = random_market(seed)
    attached = bars_with(market, "1d", AGGREGATE)
    for moment in at([4.2, 6.0, 9.7, 13.0]):
        past = bars_with(known_at(market, moment), "1d", AGGREGATE)
        before = attached[attached["ingest_time"] <= moment].reset_index(drop=True)
        pd.testing.assert_frame_equal(past, before, check_exact=True)


def test_an_ordinary_day_is_one_row_that_no_late_publication_restates() -> None:
    day = np.arange(8.0)
    table = rows("A", day, day + 0.55, TxCnt=10.0 + day)
    attached = bars_with(toy_market(bars_1d=daily_bars(["A"], 8), onchain_1d=table), "1d", AGGREGATE)
    assert len(attached) == 8
    np.testing.assert_array_equal(attached["onchain_transactions"], [np.nan, *(10.0 + day[:-1])])


def test_a_withdrawn_row_leaves_no_value_and_a_missing_one_the_day_before_it() -> None:
    table = rows("A", [0, 1, 3, 1], [0.5, 1.5, 3.5, 6.2], TxCnt=[10.0, 11.0, 13.0, np.nan])
    market = toy_market(bars_1d=daily_bars(["A"], 9), onchain_1d=table)
    before, after = (known(bars_with(market, "1d", AGGREGATE), at([day])[0]) for day in (5.9, 8.5))
    np.testing.assert_array_equal(before["onchain_transactions"].to_numpy(), [np.nan, 10.0, 11.0, 11.0, 13.0, 13.0])
    expected = [np.nan, 10.0, np.nan, np.nan, 13.0, 13.0, 13.0, 13.0, np.nan]
    by_day = after.sort_values("event_time")["onchain_transactions"].to_numpy()
    np.testing.assert_array_equal(by_day, expected)


def test_metrics_fall_back_on_their_parts_value_by_value() -> None:
    table = pd.DataFrame(
        {
            "PriceUSD": [2.0, 2.0, 2.0],
            "SplyCur": [100.0, 100.0, np.nan],
            "TxTfrValAdjUSD": [50.0, 0.0, 10.0],
            "CapRealUSD": [80.0, 80.0, 80.0],
            "NVTAdj": [np.nan, np.nan, 7.0],
            "FeeMeanUSD": [0.5, 0.5, 0.5],
            "TxCnt": [10, 20, 30],
            "IssTotNtv": [3.0, 4.0, np.nan],
            "note": "text is no metric",
        }
    )
    got = metrics(table)
    assert "onchain_hash_rate" not in got
    assert "onchain_active_addresses" not in got
    want = {
        "onchain_market_cap_usd": [200.0, 200.0, np.nan],
        "onchain_nvt": [4.0, np.nan, 7.0],
        "onchain_mvrv": [2.5, 2.5, np.nan],
        "onchain_fees_usd": [5.0, 10.0, 15.0],
        "onchain_issuance_usd": [6.0, 8.0, np.nan],
    }
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("tables", "interval", "chosen"),
    [
        ((), "1d", None),
        (("onchain_1d",), "1h", "onchain_1d"),
        (("onchain_1d", "onchain_1h"), "1d", "onchain_1d"),
        (("onchain_1d", "onchain_1h"), "4h", "onchain_1h"),
        (("onchain_1d", "onchain_1h"), "15m", "onchain_1h"),
        (("onchain_1d", "onchain_1w"), "1w", "onchain_1w"),
    ],
)
def test_the_table_is_the_longest_not_longer_than_the_bars(
    tables: tuple[str, ...], interval: str, chosen: str | None
) -> None:
    market = toy_market(**{name: rows("A", [0], [0], TxCnt=1.0) for name in tables})
    assert onchain_table(market, interval) == chosen


def test_hourly_bars_read_the_day_that_ended_a_day_ago() -> None:
    hours = np.arange(0, 72) / 24
    bars = rows("A", hours, hours, close=1.0)
    table = rows("A", [0, 1, 2], [0.55, 1.55, 2.55], TxCnt=[10.0, 11.0, 12.0])
    attached = bars_with(toy_market(bars_1h=bars, onchain_1d=table), "1h", AGGREGATE)
    assert len(attached) == 72
    np.testing.assert_array_equal(attached["onchain_transactions"], np.repeat([np.nan, 10.0, 11.0], 24))


def test_a_market_without_on_chain_rows_of_its_assets_has_no_columns() -> None:
    bars = daily_bars(["A"], 3)
    assert AGGREGATE.versions(toy_market(bars_1d=bars), "1d") is None
    strangers = rows("X", [0], [0.5], TxCnt=1.0)
    assert AGGREGATE.versions(toy_market(bars_1d=bars, onchain_1d=strangers), "1d") is None


def test_columns_are_those_it_declares() -> None:
    found = AGGREGATE.versions(random_market(0), "1d")
    assert found is not None
    assert set(found.columns[3:]) <= set(AGGREGATE.columns)
    assert set(COLUMNS) <= set(found.columns)
    assert at([0])[0] == ORIGIN
