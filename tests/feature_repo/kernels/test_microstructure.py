"""The ten features of a trade: by hand, against plain slices on hard and real trades, one at a time, without drift."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core.runtime import _nrt_python, rtsys
from numpy.lib.stride_tricks import sliding_window_view

from feature_repo.kernels import microstructure
from feature_repo.kernels.microstructure import TICK_FEATURES, TICK_WINDOW, new_tick_state, tick_features, update_tick
from feature_repo.kernels.signing import lee_ready, midpoint_in_force, quote_sign, tick_rule
from feature_repo.market.directory import read_market_directory
from feature_repo.market.schema import Market

DATA = Path(__file__).resolve().parents[3] / "../shared/data"
CRYPTO, EQUITY = DATA / "crypto_ticks_20240809", DATA / "us_equity_ticks_201310"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

Trades = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def trades_of(price: np.ndarray, size: np.ndarray, *, seed: int = 1) -> Trades:
    """With times, of which many are equal, and the tick rule's signs."""
    gap = np.random.default_rng(seed).integers(0, 3, len(price)) * 333_333
    return 1_700_000_000_000_000 + np.cumsum(gap), price, size, tick_rule(price)


def trades(name: str, num: int = 3000) -> Trades:
    rng = np.random.default_rng(7)
    walk = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 1e-3, num)))
    size = rng.exponential(2.0, num)
    cents = 1e6 + 0.01 * np.cumsum(rng.integers(-1, 2, num))
    is_block = rng.random(num) < 0.02
    hard = {
        "random walk": (walk, size),
        "a million, by the cent": (cents, size),
        "equal sizes": (cents, np.full(num, 0.1)),
        "equal sizes after a block": (cents, np.where(is_block, 3e9, 0.001)),
        "sizes of zero": (walk, np.where(np.arange(num) // 25 % 2, 0.0, size)),
        "repeated prices": (np.repeat(walk[::25], 25)[:num], size),
        "one price": (np.full(num, 1e6 + 0.01), size),
        "jumps": (walk * np.where(np.arange(num) // 40 % 2, 1.0, 1000.0), size),
        "tiny prices": (1e-8 * walk, 1e12 * size),
    }
    return trades_of(*hard[name])


HARD = (
    "random walk",
    "a million, by the cent",
    "equal sizes",
    "equal sizes after a block",
    "sizes of zero",
    "repeated prices",
    "one price",
    "jumps",
    "tiny prices",
)


def from_windows(totals: tuple[np.ndarray, ...], of_trades: Trades) -> np.ndarray:
    """The features from sums over ten trades of p v, v, s v, r^2 and over the last five of v: (trades - 10,) each."""
    value, volume, signed, squares, late = totals
    time, price, _, sign = of_trades
    out = np.full((len(price), len(TICK_FEATURES)), np.nan)
    for column, lag in enumerate((1, 5, 10)):
        out[10:, column] = np.log(price[10:] / price[10 - lag : -lag])
    windows = sliding_window_view(price, 10)[1:]
    high, low = windows.max(axis=1), windows.min(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        out[10:, 3] = np.where(volume > 0, price[10:] / (value / volume) - 1, np.nan)
        out[10:, 5] = np.where(volume > 0, signed / volume, np.nan)
        out[10:, 9] = np.where(volume > 0, (late - (volume - late)) / 5 / (volume / 10), np.nan)
        out[10:, 4] = np.sqrt(squares)
    out[10:, 6] = sign[10:]
    out[10:, 7] = np.diff(time)[9:] / 1e6
    out[10:, 8] = (high - low) / ((high + low) / 2)
    return out


def sliced(of_trades: Trades) -> np.ndarray:
    """The straightforward form: a slice of every window, summed."""
    _, price, size, sign = of_trades

    def totals(x: np.ndarray) -> np.ndarray:
        return sliding_window_view(x, 10)[-(len(price) - 10) :].sum(axis=1)

    returns = np.log(price[1:] / price[:-1])
    late = sliding_window_view(size, 5)[6:].sum(axis=1)
    sums = (totals(price * size), totals(size), totals(sign * size), totals(returns**2), late)
    return from_windows(sums, of_trades)


def running(of_trades: Trades) -> np.ndarray:
    """The naive fast form: sums that go on for ever, and their differences."""
    _, price, size, sign = of_trades

    def totals(x: np.ndarray, window: int = 10) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(x)])
        return (total[window:] - total[:-window])[-(len(price) - 10) :]

    squares = np.maximum(totals(np.log(price[1:] / price[:-1]) ** 2), 0.0)
    return from_windows((totals(price * size), totals(size), totals(sign * size), squares, totals(size, 5)), of_trades)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-9 of the value itself; next to zero within 1e-13, a thousandfold of the slices' own rounding."""
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", HARD)
def test_equals_plain_slices_on_hard_trades(name: str) -> None:
    of_trades = trades(name)
    got = tick_features(*of_trades)
    assert got.shape == (3000, 10)
    assert np.isnan(got[:TICK_WINDOW]).all()
    assert_close(got, sliced(of_trades))


@pytest.mark.parametrize(
    "name", ["a million, by the cent", "equal sizes after a block", "sizes of zero", "repeated prices", "tiny prices"]
)
def test_running_sums_would_fail(name: str) -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(running(trades(name)), sliced(trades(name)))


def test_by_hand() -> None:
    price = np.array([100.0, 100, 101, 102, 102, 101, 101, 103, 103, 102, 104])
    size = np.array([9.0, 1, 1, 2, 2, 0, 4, 1, 3, 1, 5])
    time = np.arange(11) * 1_500_000
    got = dict(zip(TICK_FEATURES, tick_features(time, price, size, np.full(11, np.nan))[10], strict=True))
    # by the tick rule: 0 0 + + + - - + + - +; sizes of the window 1 | 1 2 2 0 4 1 3 1 5, ten of them from the second
    vwap = (100 * 1 + 101 * 1 + 102 * 2 + 102 * 2 + 101 * 4 + 103 * 1 + 103 * 3 + 102 * 1 + 104 * 5) / 20
    steps = [100 / 100, 101 / 100, 102 / 101, 1, 101 / 102, 1, 103 / 101, 1, 102 / 103, 104 / 102]
    expected = {
        "return_1": math.log(104 / 102),
        "return_5": math.log(104 / 101),
        "return_10": math.log(104 / 100),
        "vwap_distance": 104 / vwap - 1,
        "realised_vol": math.sqrt(sum(math.log(step) ** 2 for step in steps)),
        "flow_imbalance": (1 + 2 + 2 - 0 - 4 + 1 + 3 - 1 + 5) / 20,
        "trade_sign": 1.0,
        "seconds_since_trade": 1.5,
        "high_low_spread": 4 / 102,
        "volume_acceleration": (14 / 5 - 6 / 5) / 2,
    }
    assert got == pytest.approx(expected, rel=1e-14)


def test_given_signs_count_and_the_tick_rule_fills_what_is_not_given() -> None:
    time, price, size, by_tick = trades("random walk", 200)
    by_side = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 200)
    sign = np.where(np.arange(200) % 3 == 0, np.nan, by_side)
    resolved = np.where(np.isnan(sign), by_tick, sign)
    np.testing.assert_array_equal(tick_features(time, price, size, sign), tick_features(time, price, size, resolved))
    np.testing.assert_array_equal(tick_features(time, price, size, sign)[10:, 6], resolved[10:])


def test_what_does_not_move_is_exactly_zero() -> None:
    of = dict(zip(TICK_FEATURES, tick_features(*trades("one price"))[10:].T, strict=True))
    for name in ("return_1", "return_5", "return_10", "vwap_distance", "realised_vol", "high_low_spread"):
        assert not of[name].any()
    assert not tick_features(*trades("equal sizes"))[10:, TICK_FEATURES.index("volume_acceleration")].any()


def test_a_cent_on_a_million_keeps_its_digits_and_a_jump_is_no_step() -> None:
    price = np.full(12, 1e6)
    for after in (1e6 + 0.01, 1e6 * 1.01, 1e6 * 1.0101, 2e6, 1.0):
        price[-1] = after
        got = tick_features(*trades_of(price, np.ones(12)))[-1, 0]
        exact = (Decimal.from_float(after) / 1_000_000).ln()
        assert abs(Decimal.from_float(got) / exact - 1) < Decimal("4e-16")
    quotient = Decimal.from_float((1e6 + 0.01) / 1e6)
    assert abs(quotient.ln() / (Decimal.from_float(1e6 + 0.01) / 1_000_000).ln() - 1) > Decimal("1e-10")  # its digits


def with_holes() -> Trades:
    time, price, size, sign = trades("sizes of zero", 400)
    sign = np.where(np.arange(400) % 7 == 0, np.nan, sign)
    price, size = price.copy(), size.copy()
    price[[0, 60, 200]], price[90], price[120:140], size[[61, 150]] = np.nan, -1.0, 0.0, np.nan
    return time, price, size, sign


@pytest.mark.parametrize("of_trades", [trades("jumps", 300), trades("equal sizes", 300), with_holes()])
def test_jitted_equals_plain_bit_for_bit(of_trades: Trades) -> None:
    plain = np.empty((len(of_trades[0]), 10))
    microstructure.fill_tick_features_python(new_tick_state(), *of_trades, plain)
    np.testing.assert_array_equal(tick_features(*of_trades), plain)
    state, one_state = new_tick_state(), new_tick_state()
    for trade in zip(*of_trades, strict=True):
        row = microstructure.update_tick_python(state, *trade)
        np.testing.assert_array_equal(update_tick(one_state, *trade), row)
    np.testing.assert_array_equal(one_state, state)


@pytest.mark.parametrize("of_trades", [trades("jumps"), trades("equal sizes after a block"), with_holes()])
def test_one_at_a_time_is_bit_for_bit_the_batch_also_from_a_kept_state(of_trades: Trades) -> None:
    state, rows = new_tick_state(), []
    for trade in zip(*(series.tolist() for series in of_trades), strict=True):
        if len(rows) % 131 == 0:
            state = np.frombuffer(state.tobytes()).reshape(state.shape).copy()
        rows.append(update_tick(state, *trade))
    assert np.array(rows).tobytes() == tick_features(*of_trades).tobytes()


def test_one_at_a_time_signs_by_quotes_as_lee_and_ready_do() -> None:
    time, price, size, _ = trades("random walk", 500)
    mid = np.where(np.arange(500) % 4 == 0, np.nan, np.round(price, 1))
    price = np.round(price, 1)  # often at the midpoint, where the quote is silent
    state = new_tick_state()
    rows = [
        update_tick(state, t, p, v, quote_sign(p, m, np.nan)) for t, p, v, m in zip(time, price, size, mid, strict=True)
    ]
    assert np.array(rows).tobytes() == tick_features(time, price, size, lee_ready(price, mid)).tobytes()


def test_a_million_trades_later_nothing_has_drifted() -> None:
    rng = np.random.default_rng(3)
    num = 1_000_000
    price = 1e6 + 0.01 * np.cumsum(rng.integers(-3, 4, num))
    of_trades = trades_of(price, np.where(rng.random(num) < 1e-3, 1e9, 0.001 * rng.integers(1, 4, num)))
    rows = tick_features(*of_trades)
    for stop in (num, num - 1, num - 53, num // 2):
        fresh = tick_features(*(series[stop - 11 : stop] for series in of_trades))[-1]
        assert fresh.tobytes() == rows[stop - 1].tobytes()
    tail = tuple(series[-2000:] for series in of_trades)
    assert_close(rows[-1990:], sliced(tail)[10:])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(running(of_trades)[-1990:], sliced(tail)[10:])


def test_deleting_the_future_changes_nothing() -> None:
    of_trades = with_holes()
    full = tick_features(*of_trades)
    for stop in range(0, 401, 23):
        np.testing.assert_array_equal(tick_features(*(series[:stop] for series in of_trades)), full[:stop])


def test_a_hole_fills_the_windows_that_hold_it_and_no_other() -> None:
    time, price, size, sign = trades("random walk", 100)
    whole = tick_features(time, price, size, sign)
    for holed in (price, size):
        before, holed[50] = holed[50], np.nan
        changed = (tick_features(time, price, size, sign) != whole)[10:].any(axis=1).nonzero()[0] + 10
        missing = np.isnan(tick_features(time, price, size, sign))
        assert set(changed) <= set(range(50, 61))
        assert missing[50:60, [3, 5 if holed is size else 8]].all()
        assert not missing[61:].any()
        holed[50] = before


def test_no_volume_is_not_a_number_but_for_prices() -> None:
    time, price, _, sign = trades("random walk", 50)
    missing = np.isnan(tick_features(time, price, np.zeros(50), sign)[10:]).all(axis=0)
    assert {name for name, is_missing in zip(TICK_FEATURES, missing, strict=True) if is_missing} == {
        "vwap_distance",
        "flow_imbalance",
        "volume_acceleration",
    }


def num_allocated(action: Callable[[], object]) -> int:
    action()  # compiled and warm
    before = rtsys.get_allocation_stats().alloc
    action()
    return int(rtsys.get_allocation_stats().alloc - before)


def test_nothing_is_allocated_in_the_loop() -> None:
    def batch(num: int) -> Callable[[], object]:
        of_trades, state, out = trades("random walk", num), new_tick_state(), np.empty((num, 10))
        return lambda: microstructure.fill_tick_features(state, *of_trades, out)

    state, one = new_tick_state(), (0, 1.0, 1.0, 1.0)
    _nrt_python.memsys_enable_stats()
    try:
        assert num_allocated(batch(30)) == num_allocated(batch(3000))  # a handle for each argument, whatever its length
        assert num_allocated(lambda: [update_tick(state, *one) for _ in range(30)]) >= 30  # the counter does count
    finally:
        _nrt_python.memsys_disable_stats()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=11, max_size=40), st.integers(-8, 8))
def test_bounds_and_units(pairs: list[tuple[int, int]], power: int) -> None:
    price, size = np.array(pairs, dtype=float).T
    time, price, size, sign = trades_of(price.copy(), 0.1 * size)
    rows = tick_features(time, price, size, sign)
    # neither the currency nor the unit of size counts; by powers of two no digit is rounded
    np.testing.assert_array_equal(tick_features(time, price * 2.0**power, size * 2.0**-power, sign), rows)
    _, _, _, _, vol, imbalance, _, seconds, spread, acceleration = rows[10:].T
    assert (vol >= 0).all()
    assert (seconds >= 0).all()
    assert ((spread >= 0) & (spread < 2)).all()
    assert (np.abs(imbalance[~np.isnan(imbalance)]) <= 1).all()
    assert (np.abs(acceleration[~np.isnan(acceleration)]) <= 2).all()


def read(folder: Path) -> Market:
    if not folder.exists():
        pytest.skip(f"no real ticks in {folder}")
    return read_market_directory(folder, now=NOW)


def reasons(market: Market) -> dict[tuple[str, str], int]:
    return market.flags.groupby(["table", "reason"]).size().to_dict()


def micros(times: object) -> np.ndarray:
    return times.to_numpy("datetime64[us]").astype(np.int64)


def test_real_crypto_trades_whose_receive_times_precede_their_exchange_times() -> None:
    """Exchange times order them. The receiver's clock was slow, so validation flags every trade and refuses none."""
    market = read(CRYPTO)
    assert market.quarantine.empty
    assert reasons(market) == {
        ("trades", "slow receive clock: ingest_time before event_time"): 78_638,
        ("quotes", "slow receive clock: ingest_time before event_time"): 203_999,
        ("quotes", "repeats an earlier tick to the last column"): 4,
    }
    tables = market.tables
    num_failing = 0
    for entity, own in tables["trades"].groupby("entity_key"):
        quotes = tables["quotes"][tables["quotes"]["entity_key"] == entity]
        time, price, size = micros(own["event_time"]), own["price"].to_numpy(), own["size"].to_numpy()
        mid = midpoint_in_force(time, micros(quotes["event_time"]), quotes["bid"].to_numpy(), quotes["ask"].to_numpy())
        for sign in (own["side"].to_numpy(np.float64), lee_ready(price.copy(), mid), tick_rule(price.copy())):
            rows = tick_features(time, price.copy(), size.copy(), sign)
            assert_close(rows, sliced((time, price, size, sign)))
            assert np.isfinite(rows[10:]).all()
            assert (rows[10:, 7] >= 0).all()
        try:
            assert_close(running((time, price, size, sign)), sliced((time, price, size, sign)))
        except AssertionError:
            num_failing += 1
    assert num_failing >= 5  # of six: naive sums are not within 1e-9 on real trades either


def test_real_equity_trades() -> None:
    """IBM, pre- and post-market too; 8,152 trades repeat another to the last column and are flagged, not refused."""
    market = read(EQUITY)
    assert market.quarantine.empty
    assert reasons(market) == {("trades", "repeats an earlier tick to the last column"): 8_152}
    trades_ = market.tables["trades"]
    time, price = micros(trades_["event_time"]), trades_["price"].to_numpy(copy=True)
    size, sign = trades_["size"].to_numpy(np.float64, copy=True), tick_rule(price)
    rows = tick_features(time, price, size, np.full(len(price), np.nan))
    assert len(rows) == 126_395
    assert_close(rows, sliced((time, price, size, sign)))
    state, some = new_tick_state(), slice(0, 20_000)
    one = [update_tick(state, *trade) for trade in zip(*(x[some].tolist() for x in (time, price, size)), strict=True)]
    assert np.array(one).tobytes() == rows[some].tobytes()
