"""Who started a trade: by hand, causally, and against the sides that a real exchange tells."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.kernels import signing
from feature_repo.market.directory import read_market_directory

CRYPTO = Path(__file__).resolve().parents[3] / "../shared/data/crypto_ticks_20240809"


def of(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


prices = st.lists(st.sampled_from([1.0, 2.0, 3.0, np.nan]), max_size=12).map(lambda values: of(*values))


@given(prices, st.randoms(use_true_random=False))
def test_jitted_equals_plain(price: np.ndarray, random) -> None:
    num = len(price)
    mid = of(*(random.choice([1.5, 2.0, np.nan]) for _ in range(num)))
    time, quote_time = (np.sort([random.randrange(9) for _ in range(size)]).astype(np.int64) for size in (num, 6))
    bid, ask = (of(*(random.choice([1.0, 2.0, np.nan]) for _ in range(6))) for _ in range(2))
    for name, arguments in (
        ("tick_rule", (price,)),
        ("lee_ready", (price, mid)),
        ("midpoint_in_force", (time, quote_time, bid, ask)),
    ):
        plain = getattr(signing, f"{name}_python")(*arguments)
        np.testing.assert_array_equal(getattr(signing, name)(*arguments), plain)


def test_tick_rule_by_hand() -> None:
    np.testing.assert_array_equal(signing.tick_rule(of(5, 5, 6, 6, 5, 5, 7)), of(0, 0, 1, 1, -1, -1, 1))
    assert len(signing.tick_rule(of())) == 0


def test_lee_ready_by_hand() -> None:
    price = of(10.0, 10.1, 10.0, 10.05, 10.05, 10.2)
    mid = of(np.nan, 10.05, 10.05, 10.05, 10.05, np.nan)
    # untold; above; below; at the midpoint after a rise, twice; no quote, a rise
    np.testing.assert_array_equal(signing.lee_ready(price, mid), of(0, 1, -1, 1, 1, 1))


def test_at_the_midpoint_the_tick_rule_counts_trades_that_quotes_have_signed() -> None:
    np.testing.assert_array_equal(signing.lee_ready(of(10, 11, 11), of(np.nan, 12, 11)), of(0, -1, 1))


def test_quote_in_force_is_the_last_strictly_before_and_sound() -> None:
    quote_time = np.array([10, 20, 20, 30, 40], dtype=np.int64)
    bid, ask = of(1, 2, 3, np.nan, 9), of(2, 4, 5, 7, 8)
    got = signing.midpoint_in_force(np.array([10, 11, 20, 21, 30, 31, 50], dtype=np.int64), quote_time, bid, ask)
    np.testing.assert_array_equal(got, of(np.nan, 1.5, 1.5, 4, 4, np.nan, np.nan))
    nothing = np.empty(0, dtype=np.int64)
    assert np.isnan(signing.midpoint_in_force(quote_time, nothing, of(), of())).all()


@given(prices)
def test_signs_do_not_depend_on_trades_to_come(price: np.ndarray) -> None:
    mid = np.where(np.arange(len(price)) % 3 == 0, 2.0, np.nan)
    for stop in range(len(price) + 1):
        np.testing.assert_array_equal(signing.tick_rule(price[:stop]), signing.tick_rule(price)[:stop])
        np.testing.assert_array_equal(signing.lee_ready(price[:stop], mid[:stop]), signing.lee_ready(price, mid)[:stop])


@pytest.mark.skipif(not CRYPTO.exists(), reason=f"no real ticks in {CRYPTO}")
def test_real_sides_are_found_and_better_with_quotes() -> None:
    """On the futures: the spot quotes are dated by a receiver whose clock ran 1.3 s behind the trades'."""
    tables = read_market_directory(CRYPTO, now=datetime(2024, 9, 1, tzinfo=UTC)).tables
    for entity in ("cm:BTCUSD_PERP", "cm:ETHUSD_PERP", "usdm:BTCUSDT", "usdm:ETHUSDT"):
        trades, quotes = (tables[name][tables[name]["entity_key"] == entity] for name in ("trades", "quotes"))
        time, quote_time = (
            table["event_time"].to_numpy("datetime64[us]").astype(np.int64) for table in (trades, quotes)
        )
        price, side = trades["price"].to_numpy(copy=True), trades["side"].to_numpy()
        mid = signing.midpoint_in_force(time, quote_time, quotes["bid"].to_numpy(), quotes["ask"].to_numpy())
        by_tick = (signing.tick_rule(price) == side).mean()
        by_quote = (signing.lee_ready(price, mid) == side).mean()
        assert by_quote > 0.99 > by_tick > 0.75
