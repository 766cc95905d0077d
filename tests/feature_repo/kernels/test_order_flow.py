"""Order-flow kernels: hand cases, brute force, the estimators' own models, and python == numba."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.kernels import order_flow

WINDOW = 6
NUM_ROWS = 40
KERNELS = sorted(name.removesuffix("_python") for name in vars(order_flow) if name.endswith("_python"))
ROLLING = ("rolling_vpin", "rolling_illiquidity", "roll_spread")


def of(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def arguments(name: str, rows: slice = slice(None), hole: int | None = None) -> list[object]:
    rng = np.random.default_rng(3)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, NUM_ROWS)))
    time = np.sort(rng.integers(0, 1000, NUM_ROWS))
    series = {
        "change": rng.normal(0.0, 0.02, NUM_ROWS),
        "returns": rng.normal(0.0, 0.02, NUM_ROWS),
        "spread": np.where(np.arange(NUM_ROWS) % 9 == 0, 0.0, 0.02),
        "buy": rng.integers(0, 4, NUM_ROWS) * 1.5,
        "sell": rng.integers(0, 4, NUM_ROWS) * 0.7,
        "value": np.where(np.arange(NUM_ROWS) % 5 == 0, 0.0, close),
        "close": close,
        "high": close * 1.01,
        "low": close * 0.98,
        "bid": np.round(close),
        "ask": np.round(close) + rng.integers(0, 2, NUM_ROWS),
        "bid_size": rng.integers(0, 9, NUM_ROWS).astype(float),
        "ask_size": rng.integers(0, 9, NUM_ROWS).astype(float),
    }
    scalars = {"window": WINDOW, "num_buckets": 4, "start": 300, "end": 900}
    chosen: list[object] = []
    for parameter in inspect.signature(getattr(order_flow, f"{name}_python")).parameters:
        if parameter == "time":
            chosen.append(time[rows].copy())
        elif parameter in scalars:
            chosen.append(scalars[parameter])
        else:
            values = series[parameter].copy()
            if hole is not None:
                values[hole] = np.nan
            chosen.append(values[rows].copy())
    return chosen


@pytest.mark.parametrize("name", KERNELS)
def test_jitted_equals_plain_bit_for_bit(name: str) -> None:
    for hole in (None, 0, 17):
        given_ = arguments(name, hole=hole)
        with np.errstate(invalid="ignore"):
            plain = getattr(order_flow, f"{name}_python")(*given_)
        np.testing.assert_array_equal(getattr(order_flow, name)(*given_), plain)


@pytest.mark.parametrize("name", ROLLING)
def test_rolling_value_depends_on_the_window_alone_and_a_hole_fills_it(name: str) -> None:
    kernel = getattr(order_flow, name)
    full, holed = kernel(*arguments(name)), kernel(*arguments(name, hole=17))
    assert np.isnan(full[: WINDOW - 1]).all()
    for stop in range(WINDOW, NUM_ROWS + 1):
        assert kernel(*arguments(name, slice(stop - WINDOW, stop)))[-1] == full[stop - 1]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(holed) & ~np.isnan(full)), np.arange(17, 17 + WINDOW))
    np.testing.assert_array_equal(holed[17 + WINDOW :], full[17 + WINDOW :])


@pytest.mark.parametrize("name", ["order_flow_imbalance", "corwin_schultz_spread", "bulk_buy_share", *ROLLING])
def test_deleting_the_future_changes_nothing(name: str) -> None:
    kernel = getattr(order_flow, name)
    np.testing.assert_array_equal(kernel(*arguments(name, slice(0, 25))), kernel(*arguments(name))[:25])


def test_bulk_volume_classification_by_hand() -> None:
    got = order_flow.bulk_buy_share(of(0.0, 0.02, -0.02, 0.04, 0.01), np.full(5, 0.02))
    np.testing.assert_allclose(got, [0.5, 0.841344746, 0.158655254, 0.977249868, 0.691462461], atol=1e-9)


def test_bulk_volume_without_spread_is_the_limit() -> None:
    got = order_flow.bulk_buy_share(of(0.1, 0.0, -0.1, np.nan, 0.1), of(0, 0, 0, 0, np.nan))
    np.testing.assert_array_equal(got, of(1, 0.5, 0, np.nan, np.nan))


def test_vpin_by_hand() -> None:
    # Ten units, buckets of five: the second trade is split 2 to 3. |3 + 2| and |3 - 2|.
    assert order_flow.vpin(of(3, 5, 0), of(0, 0, 2), 2) == pytest.approx((5 + 1) / 10)
    # A bar that is bought three to one is split in that proportion.
    assert order_flow.vpin(of(6, 0), of(2, 8), 4) == pytest.approx((2 + 2 + 4 + 4) / 16)
    assert order_flow.vpin(of(1, 1, 1), of(1, 1, 1), 3) == 0.0
    assert order_flow.vpin(of(1, 2, 3), of(0, 0, 0), 2) == pytest.approx(1.0)
    assert np.isnan(order_flow.vpin(of(0, 0), of(0, 0), 2))
    assert np.isnan(order_flow.vpin(of(), of(), 2))


def poured(buy: list[int], sell: list[int], num_buckets: int, *, split: bool = True) -> Fraction:
    """VPIN unit by unit, exactly: every unit of a row has the row's mean side; ``split=False`` keeps rows whole."""
    lots = [
        (Fraction(b - s, b + s), num_buckets) if split else (Fraction(b - s), num_buckets * (b + s))
        for b, s in zip(buy, sell, strict=True)
        if b + s
        for _ in range(b + s if split else 1)
    ]  # a lot is num_buckets parts, so that buckets of total / num_buckets hold whole parts
    total = sum(buy) + sum(sell)
    signed = [Fraction(0)] * (num_buckets + 1)
    at = 0
    for side, parts in lots:
        if split:
            for _ in range(parts):
                signed[at // total] += side / num_buckets
                at += 1
        else:
            signed[at // total] += side
            at += parts
    return sum((abs(of_bucket) for of_bucket in signed), Fraction(0)) / total


lots = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8).filter(
    lambda rows: any(b + s for b, s in rows)
)


@settings(max_examples=60)
@given(lots, st.integers(1, 7))
def test_vpin_equals_pouring_unit_by_unit(rows: list[tuple[int, int]], num_buckets: int) -> None:
    buy, sell = (list(side) for side in zip(*rows, strict=True))
    got = order_flow.vpin(of(*buy), of(*sell), num_buckets)
    assert got == pytest.approx(float(poured(buy, sell, num_buckets)), abs=1e-12)
    assert 0.0 <= got <= 1.0 + 1e-12


def test_vpin_that_keeps_rows_whole_is_another_number() -> None:
    buy, sell = [3, 5, 0], [0, 0, 2]
    assert poured(buy, sell, 2, split=False) != poured(buy, sell, 2)


def test_rolling_vpin_is_the_vpin_of_each_window() -> None:
    buy, sell, window, num_buckets = arguments("rolling_vpin")
    got = order_flow.rolling_vpin(buy, sell, window, num_buckets)
    for stop in range(WINDOW, NUM_ROWS + 1):
        part = slice(stop - WINDOW, stop)
        assert got[stop - 1] == order_flow.vpin(buy[part].copy(), sell[part].copy(), num_buckets)


@pytest.mark.parametrize(
    ("before", "after", "flow"),
    [
        ((10, 5, 11, 7), (10, 8, 11, 7), 3),  # a limit order to buy joins the best bid
        ((10, 5, 11, 7), (10, 2, 11, 7), -3),  # a market order to sell, or a cancellation, takes from it
        ((10, 5, 11, 7), (10, 5, 11, 9), -2),  # a limit order to sell joins the best ask
        ((10, 5, 11, 7), (10, 5, 11, 1), 6),  # a market order to buy takes from it
        ((10, 5, 12, 7), (11, 4, 12, 7), 4),  # a better bid adds its size
        ((10, 5, 11, 7), (9, 6, 11, 7), -5),  # the best bid is emptied
        ((10, 5, 12, 7), (10, 5, 11, 3), -3),  # a better ask adds its size
        ((10, 5, 11, 7), (10, 5, 12, 8), 7),  # the best ask is emptied
        ((10, 5, 11, 7), (11, 6, 12, 8), 13),  # both move up
        ((10, 5, 11, 7), (np.nan, np.nan, 11, 7), -5),  # no bid is left
        ((10, 5, np.nan, np.nan), (10, 5, 11, 7), -7),  # the first ask appears
    ],
)
def test_order_flow_imbalance_of_each_event_of_the_paper(before: tuple, after: tuple, flow: float) -> None:
    columns = (of(*pair) for pair in zip(before, after, strict=True))
    got = order_flow.order_flow_imbalance(*columns)
    assert np.isnan(got[0])
    assert got[1] == flow


def test_at_unchanged_prices_imbalance_is_the_change_of_the_queues() -> None:
    bid_size, ask_size = of(5, 7, 2, 9), of(4, 4, 8, 1)
    flow = order_flow.order_flow_imbalance(np.full(4, 10.0), bid_size, np.full(4, 11.0), ask_size)
    assert flow[1:].sum() == (bid_size[-1] - bid_size[0]) - (ask_size[-1] - ask_size[0])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([1.0, 2.0, 5.0, np.nan])), max_size=8),
    st.integers(0, 6),
    st.integers(6, 14),
)
def test_time_weighted_mean_counts_every_moment(rows: list[tuple[int, float]], start: int, end: int) -> None:
    rows.sort(key=lambda row: row[0])
    time, value = np.array([at for at, _ in rows], dtype=np.int64), of(*(said for _, said in rows))
    held = [
        said
        for moment in range(start, end)
        for before in [[said for at, said in rows if at <= moment]]
        for said in before[-1:]
        if said == said
    ]
    got = order_flow.time_weighted_mean(value, time, start, end)
    np.testing.assert_allclose(got, np.mean(held) if held else np.nan, rtol=1e-12)


def test_illiquidity_is_the_mean_over_bars_that_traded() -> None:
    returns, value = of(0.01, -0.02, 0.03, 0.04), of(100, 0, 300, 100)
    np.testing.assert_allclose(
        order_flow.rolling_illiquidity(returns, value, 3),
        [np.nan, np.nan, (0.01 / 100 + 0.03 / 300) / 2, (0.03 / 300 + 0.04 / 100) / 2],
    )
    assert np.isnan(order_flow.rolling_illiquidity(returns, np.zeros(4), 3)).all()


def test_roll_finds_the_spread_of_a_bounce() -> None:
    rng = np.random.default_rng(0)
    price = np.cumsum(rng.normal(0.0, 0.001, 20_000)) + 0.005 * rng.choice([-1.0, 1.0], 20_000)
    returns = np.diff(price)
    got = order_flow.roll_spread(returns, len(returns))[-1]
    assert got == pytest.approx(0.01, rel=0.03)
    covariance = np.cov(returns[:-1], returns[1:], ddof=0)[0, 1]
    assert got == pytest.approx(2 * math.sqrt(-covariance), rel=1e-9)
    assert order_flow.roll_spread(np.arange(9.0) ** 2, 9)[-1] == 0.0


def test_corwin_schultz_by_hand() -> None:
    # Two equal ranges are all spread: alpha is their log, and the estimate 2 (101/99 - 1) / (101/99 + 1).
    got = order_flow.corwin_schultz_spread(of(101, 101), of(99, 99), of(100, 100))
    np.testing.assert_allclose(got, [np.nan, 0.02])
    high, low = of(101.0, 101.5), of(99.0, 99.4)
    beta, gamma = math.log(101 / 99) ** 2 + math.log(101.5 / 99.4) ** 2, math.log(101.5 / 99) ** 2
    root = 3 - 2 * math.sqrt(2)
    alpha = (math.sqrt(2 * beta) - math.sqrt(beta)) / root - math.sqrt(gamma / root)
    want = 2 * (math.exp(alpha) - 1) / (1 + math.exp(alpha))
    assert want > 0.005
    np.testing.assert_allclose(order_flow.corwin_schultz_spread(high, low, of(100, 100)), [np.nan, want])


def test_corwin_schultz_takes_out_the_gap_and_never_is_negative() -> None:
    def spread(before: float, top: float, bottom: float) -> float:
        return order_flow.corwin_schultz_spread(of(101, top), of(99, bottom), of(before, bottom))[1]

    assert spread(99.5, 121.5, 120.0) == pytest.approx(spread(99.5, 101.0, 99.5))
    assert spread(100.5, 80.0, 78.5) == pytest.approx(spread(100.5, 100.5, 99.0))
    assert spread(99.5, 101.0, 99.5) > 0.01
    assert spread(101.0, 103.0, 101.0) == 0.0
    assert np.isnan(spread(np.nan, 102.0, 100.0))


def test_corwin_schultz_finds_the_spread_of_a_random_walk() -> None:
    rng = np.random.default_rng(1)
    steps = rng.normal(0.0, 0.01 / math.sqrt(1000), (400, 1000)).cumsum().reshape(400, 1000)
    price = np.exp(steps + 0.005 * rng.choice([-1.0, 1.0], steps.shape))
    spread = order_flow.corwin_schultz_spread(price.max(axis=1), price.min(axis=1), price[:, -1].copy())
    assert np.nanmean(spread) == pytest.approx(0.01, rel=0.15)
