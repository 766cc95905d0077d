"""Labels against brute force, and never about the past."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.labels import LabelError, make_labels

NAT = np.datetime64("NaT")


def days(num, start="2020-01-01"):
    return (np.datetime64(start, "us") + np.arange(num) * np.timedelta64(1, "D")).astype("datetime64[us]")


def market(seed, num_times=30, num_entities=4):
    rng = np.random.default_rng(seed)
    price = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.03, (num_times, num_entities)), axis=0))
    price[rng.random(price.shape) < 0.1] = np.nan
    vol = rng.uniform(0.001, 0.05, price.shape)
    vol[rng.random(vol.shape) < 0.1] = np.nan
    vol[rng.random(vol.shape) < 0.05] = 0.0
    return price, vol


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), horizon=st.integers(1, 6), tail=st.integers(0, 3))
def test_labels_equal_brute_force(seed, horizon, tail):
    price, vol = market(seed)
    times = days(len(price))
    if tail:
        times[-tail:], price[-tail:] = NAT, np.nan
    labels = make_labels(exec_times_T=times, exec_price_TN=price, vol_TN=vol, horizon=horizon)
    for i in range(len(price)):
        j = i + horizon
        inside = j < len(price)
        assert (labels.end_T[i] == times[j]) if inside and not np.isnat(times[j]) else np.isnat(labels.end_T[i])
        for n in range(price.shape[1]):
            forward = price[j, n] / price[i, n] - 1 if inside else np.nan
            y = forward / (vol[i, n] * horizon**0.5) if vol[i, n] > 0 else np.nan
            np.testing.assert_allclose(labels.forward_TN[i, n], forward, rtol=1e-12)
            np.testing.assert_allclose(labels.y_TN[i, n], min(max(y, -5.0), 5.0) if y == y else np.nan, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(lags=st.lists(st.integers(0, 40), min_size=8, max_size=20), horizon=st.integers(1, 3))
def test_a_label_starts_after_its_sample_time_and_uses_no_earlier_price(lags, horizon):
    closes = days(len(lags))
    samples = np.maximum.accumulate(closes + np.array(lags) * np.timedelta64(1, "h"))
    first_after = np.searchsorted(closes, samples, side="right")
    known = first_after < len(closes)
    price = np.exp(np.random.default_rng(0).normal(size=(len(closes), 1)))
    exec_times = np.where(known, closes[np.minimum(first_after, len(closes) - 1)], NAT)
    exec_price = np.where(known[:, None], price[np.minimum(first_after, len(closes) - 1)], np.nan)
    labels = make_labels(exec_times_T=exec_times, exec_price_TN=exec_price, vol_TN=np.ones_like(price), horizon=horizon)
    assert not (labels.start_T <= samples).any()
    assert not (labels.end_T <= samples).any()
    # Rewriting every price up to and including the sample time leaves the label as it was.
    i = len(lags) // 2
    rewritten = np.where((closes <= samples[i])[:, None], 7.0, price)
    again = np.where(known[:, None], rewritten[np.minimum(first_after, len(closes) - 1)], np.nan)
    changed = make_labels(exec_times_T=exec_times, exec_price_TN=again, vol_TN=np.ones_like(price), horizon=horizon)
    np.testing.assert_array_equal(changed.forward_TN[i], labels.forward_TN[i])


def test_non_positive_prices_and_infinite_volatility_have_no_label():
    price = np.array([[1.0, 0.0, 2.0], [2.0, 1.0, -1.0], [3.0, 2.0, 1.0]])
    vol = np.array([[np.inf, 1.0, 1.0]] * 3)
    labels = make_labels(exec_times_T=days(3), exec_price_TN=price, vol_TN=vol, horizon=1)
    np.testing.assert_allclose(labels.forward_TN, [[1.0, np.nan, np.nan], [0.5, 1.0, np.nan], [np.nan] * 3])
    assert np.isnan(labels.y_TN[:, 0]).all()
    assert labels.y_TN[1, 1] == 1.0


def test_extreme_labels_are_winsorised():
    labels = make_labels(
        exec_times_T=days(3),
        exec_price_TN=np.array([[1.0], [10.0], [1.0]]),
        vol_TN=np.full((3, 1), 0.01),
        horizon=1,
    )
    np.testing.assert_array_equal(labels.y_TN[:2, 0], [5.0, -5.0])
    np.testing.assert_allclose(labels.forward_TN[:2, 0], [9.0, -0.9])


def test_a_horizon_longer_than_the_history_labels_nothing():
    labels = make_labels(exec_times_T=days(3), exec_price_TN=np.ones((3, 1)), vol_TN=np.ones((3, 1)), horizon=5)
    assert np.isnat(labels.end_T).all()
    assert np.isnan(labels.y_TN).all()


@pytest.mark.parametrize(
    ("times", "horizon", "message"),
    [
        (days(3), 0, "at least 1"),
        (days(4), 1, "don't match"),
        (np.array([days(1)[0], NAT, days(1)[0]]), 1, "before the tail"),
        (days(3)[::-1], 1, "go backwards"),
    ],
)
def test_unusable_input_is_refused_with_a_reason(times, horizon, message):
    with pytest.raises(LabelError, match=message):
        make_labels(exec_times_T=times, exec_price_TN=np.ones((3, 2)), vol_TN=np.ones((3, 2)), horizon=horizon)
