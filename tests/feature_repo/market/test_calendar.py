"""The price grid and the first price after a decision, against brute force."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.market.calendar import PriceGrid, first_price_after, price_grid
from feature_repo.market.schema import MarketError

LAG = timedelta(minutes=15)


def utc(text: str) -> np.datetime64:
    return np.datetime64(text, "us")


def bars(ends: list[str], entity: str = "A", lag: timedelta = LAG, **columns: list[float]) -> pd.DataFrame:
    event = pd.DatetimeIndex(pd.to_datetime(ends, utc=True)).as_unit("us")
    close = columns.pop("close", np.arange(1.0, 1.0 + len(ends)))
    return pd.DataFrame(
        {"entity_key": entity, "event_time": event, "ingest_time": event + lag, "close": close, **columns}
    )


SESSIONS = ["2024-03-07T21:00", "2024-03-08T21:00", "2024-03-11T20:00", "2024-03-12T20:00"]  # summer time from the 10th


def test_a_session_market_trades_at_the_next_mornings_open():
    frame = bars(SESSIONS, open=[0.5, 1.5, 2.5, 3.5])
    times_T, price_TN = first_price_after(price_grid(frame, calendar="XNYS", interval="1d"))
    assert times_T[:3].tolist() == [utc(t).item() for t in ("2024-03-08T14:30", "2024-03-11T13:30", "2024-03-12T13:30")]
    assert np.isnat(times_T[3])
    np.testing.assert_array_equal(price_TN[:, 0], [1.5, 2.5, 3.5, np.nan])


@pytest.mark.parametrize("calendar", ["weekdays", "unknown"])
def test_without_opening_times_it_trades_at_the_next_close(calendar):
    grid = price_grid(bars(SESSIONS, open=[0.5, 1.5, 2.5, 3.5]), calendar=calendar, interval="1d")
    assert grid.open_times_T is None
    times_T, price_TN = first_price_after(grid)
    np.testing.assert_array_equal(times_T[:3], grid.event_times_T[1:])
    np.testing.assert_array_equal(price_TN[:, 0], [2.0, 3.0, 4.0, np.nan])


def test_closes_only_trade_at_the_next_close():
    times_T, price_TN = first_price_after(price_grid(bars(SESSIONS), calendar="XNYS", interval="1d"))
    assert times_T[0] == utc("2024-03-08T21:00")
    np.testing.assert_array_equal(price_TN[:, 0], [2.0, 3.0, 4.0, np.nan])


def test_round_the_clock_the_next_open_is_already_past():
    days = ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-05"]
    grid = price_grid(bars(days, open=[0.5, 1.5, 2.5, 4.5]), calendar="24/7", interval="1d")
    times_T, price_TN = first_price_after(grid)
    assert times_T[:3].tolist() == [utc(t).item() for t in ("2024-01-02", "2024-01-03", "2024-01-04")]
    np.testing.assert_array_equal(price_TN[:, 0], [2.0, 3.0, 4.5, np.nan])  # after the gap, the open of the 4th's bar


def test_a_price_known_the_moment_it_is_made_is_not_traded_at():
    grid = price_grid(bars(["2024-01-01", "2024-01-02"], lag=timedelta(days=1)), calendar="24/7", interval="1d")
    assert grid.sample_times_T[0] == grid.event_times_T[1]
    assert np.isnat(first_price_after(grid)[0]).all()


def test_the_latest_restatement_gives_the_price_and_the_first_version_the_sample_time():
    restated = bars(SESSIONS[1:2], lag=timedelta(days=30), close=[9.0])
    grid = price_grid(pd.concat([restated, bars(SESSIONS)]), calendar="XNYS", interval="1d")
    np.testing.assert_array_equal(grid.close_TN[:, 0], [1.0, 9.0, 3.0, 4.0])
    assert grid.sample_times_T[1] == utc("2024-03-08T21:15")


def test_the_sample_time_waits_for_the_last_punctual_entity_only():
    slower = bars(SESSIONS, entity="B", lag=timedelta(hours=1))
    late = bars(SESSIONS[:2], entity="C", lag=timedelta(days=20))
    grid = price_grid(pd.concat([bars(SESSIONS), slower, late]), calendar="XNYS", interval="1d")
    np.testing.assert_array_equal(grid.sample_times_T, grid.event_times_T + np.timedelta64(1, "h"))
    assert grid.entities == ("A", "B", "C")
    np.testing.assert_array_equal(np.isnan(grid.close_TN[:, 2]), [False, False, True, True])


def test_sample_times_never_fall_even_after_an_outage():
    outage = pd.concat([bars(SESSIONS[:1]), bars(SESSIONS[1:2], lag=timedelta(days=10)), bars(SESSIONS[2:])])
    grid = price_grid(outage, calendar="XNYS", interval="1d")
    assert (np.diff(grid.sample_times_T) >= np.timedelta64(0)).all()
    assert grid.sample_times_T[1] == grid.sample_times_T[2]


def test_bars_all_known_late_are_sampled_when_they_are_known():
    grid = price_grid(bars(SESSIONS, lag=timedelta(days=5)), calendar="XNYS", interval="1d")
    np.testing.assert_array_equal(grid.sample_times_T, grid.event_times_T + np.timedelta64(5, "D"))


def test_a_slow_receive_clock_knows_nothing_before_the_bar_ends():
    grid = price_grid(bars(SESSIONS, lag=timedelta(seconds=-2)), calendar="XNYS", interval="1d")
    np.testing.assert_array_equal(grid.sample_times_T, grid.event_times_T)


def test_intraday_bars_open_an_interval_before_their_end_but_not_before_the_session():
    ends = ["2024-01-02T13:00", "2024-01-02T15:00", "2024-01-02T16:00", "2024-01-03T15:00"]
    grid = price_grid(bars(ends, open=[1.0] * 4), calendar="XNYS", interval="1h")
    assert grid.open_times_T is not None
    opens = ["2024-01-02T12:00", "2024-01-02T14:30", "2024-01-02T15:00", "2024-01-03T14:30"]
    assert grid.open_times_T.tolist() == [utc(time).item() for time in opens]


def test_one_entity_without_an_open_has_no_price_then():
    frame = pd.concat(
        [bars(SESSIONS, open=[0.5, np.nan, np.nan, 3.5]), bars(SESSIONS, entity="B", open=[5.0, 6.0, np.nan, 8.0])]
    )
    times_T, price_TN = first_price_after(price_grid(frame, calendar="XNYS", interval="1d"))
    np.testing.assert_array_equal(price_TN, [[np.nan, 6.0], [3.0, 3.0], [3.5, 8.0], [np.nan, np.nan]])
    assert times_T[1] == utc("2024-03-11T20:00")  # nobody has that open, so all trade at the close


def test_parts_of_a_grid_keep_its_times():
    frame = pd.concat([bars(SESSIONS, open=[0.5, 1.5, 2.5, 3.5]), bars(SESSIONS, entity="INDEX")])
    grid = price_grid(frame, calendar="XNYS", interval="1d")
    stock, index = grid.only(["A"]), grid.only(["INDEX"])
    np.testing.assert_array_equal(first_price_after(stock)[0], first_price_after(index)[0])
    np.testing.assert_array_equal(grid.only(["INDEX", "A"]).close_TN, grid.close_TN[:, ::-1])
    np.testing.assert_array_equal(grid.tail(2).event_times_T, grid.event_times_T[2:])
    np.testing.assert_array_equal(first_price_after(grid.tail(3))[1], first_price_after(grid)[1][1:])
    assert len(grid.tail(99).close_TN) == 4
    assert len(grid.tail(0).close_TN) == 0
    with pytest.raises(MarketError, match=r"no \['Z'\]; it has \['A', 'INDEX'\]"):
        grid.only(["Z"])


def plain_first_price(grid: PriceGrid, i: int) -> tuple[np.datetime64, np.ndarray]:
    """Every open and close of a later bar, in time: the first one after the sample time."""
    prices = []
    for j in range(i + 1, len(grid.event_times_T)):
        if grid.open_TN is not None and grid.open_times_T is not None and not np.isnat(grid.open_times_T[j]):
            prices.append((grid.open_times_T[j], 2 * j, grid.open_TN[j]))
        prices.append((grid.event_times_T[j], 2 * j + 1, grid.close_TN[j]))
    after = [price for price in prices if price[0] > grid.sample_times_T[i]]
    if not after:
        return np.datetime64("NaT"), np.full(len(grid.entities), np.nan)
    time, _, price = min(after, key=lambda price: price[:2])
    return time, price


number = st.one_of(st.just(float("nan")), st.floats(1, 2))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.integers(0, 12), st.integers(0, 200), number, st.floats(1, 2)), min_size=1
    ),
    st.sampled_from(["24/7", "XNYS", "weekdays"]),
    st.sampled_from(["1h", "1d"]),
)
def test_the_first_price_agrees_with_brute_force(drawn, calendar, interval):
    start, step = pd.Timestamp("2024-03-08T14:00", tz="UTC"), pd.Timedelta(hours=24 if interval == "1d" else 1)
    event = pd.Series([start + step * bar for _, bar, *_ in drawn], dtype="datetime64[us, UTC]")
    frame = pd.DataFrame(
        {
            "entity_key": [entity for entity, *_ in drawn],
            "event_time": event,
            "ingest_time": event + pd.Series([step * late / 50 for _, _, late, *_ in drawn], dtype="timedelta64[us]"),
            "open": [price for *_, price, _ in drawn],
            "close": [price for *_, price in drawn],
        }
    )
    grid = price_grid(frame, calendar=calendar, interval=interval)
    times_T, price_TN = first_price_after(grid)
    for i in range(len(times_T)):
        time, price_N = plain_first_price(grid, i)
        np.testing.assert_array_equal(times_T[i], time)
        np.testing.assert_array_equal(price_TN[i], price_N)
    known = times_T[~np.isnat(times_T)]
    assert (known > grid.sample_times_T[: len(known)]).all()
    assert (np.diff(known) >= np.timedelta64(0)).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 6), st.integers(0, 9), st.floats(1, 2)), min_size=1))
def test_the_grid_agrees_with_brute_force(drawn):
    start, day = pd.Timestamp("2024-01-01", tz="UTC"), pd.Timedelta(days=1)
    event = pd.Series([start + day * bar for _, bar, *_ in drawn], dtype="datetime64[us, UTC]")
    frame = pd.DataFrame({"entity_key": [e for e, *_ in drawn], "event_time": event, "close": [p for *_, p in drawn]})
    frame["ingest_time"] = event + pd.Series([day * late / 4 for _, _, late, _ in drawn], dtype="timedelta64[us]")
    grid = price_grid(frame, calendar="24/7", interval="1d")
    assert (np.diff(grid.sample_times_T) >= np.timedelta64(0)).all()
    assert (grid.sample_times_T >= grid.event_times_T).all()
    for column, entity in enumerate(grid.entities):
        for row, end in enumerate(grid.event_times_T):
            versions = frame[(frame["entity_key"] == entity) & (frame["event_time"] == pd.Timestamp(end, tz="UTC"))]
            latest = versions[versions["ingest_time"] == versions["ingest_time"].max()]["close"]
            expected = latest.iloc[-1] if len(latest) else np.nan
            np.testing.assert_array_equal(grid.close_TN[row, column], expected)
