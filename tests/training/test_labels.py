"""Labels against brute force, and never about the past."""

import dataclasses
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.models.toys import panel_of
from training.dataset import window
from training.labels import BARRIER, KINDS, LabelError, make_labels
from training.models.fitted import fit_model
from training.models.registry import architecture
from training.models.spec import Budget

NAT = np.datetime64("NaT")

every_kind = pytest.mark.parametrize("kind", list(KINDS))


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


# Kinds of label.


def labelled(price, vol=0.01, *, kind, horizon=1):
    """Labels of daily prices (T,) or (T, N) executed a day apart, of one constant volatility."""
    price = np.array(price, dtype=float)
    price = price[:, None] if price.ndim == 1 else price
    return make_labels(
        exec_times_T=days(len(price)),
        exec_price_TN=price,
        vol_TN=np.full_like(price, vol),
        horizon=horizon,
        kind=kind,
    )


def touched_first(path, entry, barrier, horizon):
    """Plain loop: the first of the next prices beyond a barrier, else how far the last one came."""
    for price in path[:horizon]:
        if price == price and abs(price / entry - 1) >= barrier:
            return 1.0 if price > entry else -1.0
    return (path[horizon - 1] / entry - 1) / barrier


def test_vol_scaled_is_the_default_kind():
    price, vol = market(1)
    given_ = {"exec_times_T": days(len(price)), "exec_price_TN": price, "vol_TN": vol, "horizon": 2}
    np.testing.assert_array_equal(make_labels(**given_).y_TN, make_labels(**given_, kind="vol_scaled").y_TN)


def test_the_return_itself_is_not_winsorised():
    labels = labelled([1.0, 10.0, 5.0, 5.0], kind="return")
    np.testing.assert_allclose(labels.y_TN[:3, 0], [9.0, -0.5, 0.0])


def test_a_sign_is_zero_on_a_tie_and_needs_no_volatility():
    labels = labelled([1.0, 2.0, 2.0, 1.5, np.nan, 1.0], vol=np.nan, kind="sign")
    np.testing.assert_array_equal(labels.y_TN[:, 0], [1.0, 0.0, -1.0, np.nan, np.nan, np.nan])


def test_the_first_barrier_touched_decides():
    up_then_down, down_then_up = [100, 103, 90, 90], [100, 97, 110, 110]  # barriers at +-0.01 sqrt(3) = 1.73%
    for path, want in ((up_then_down, 1.0), (down_then_up, -1.0)):
        assert labelled(path, kind="triple_barrier", horizon=3).y_TN[0, 0] == want
        assert np.sign(labelled(path, kind="vol_scaled", horizon=3).y_TN[0, 0]) == -want


def test_a_price_on_the_barrier_touches_it():
    assert BARRIER == 1.0
    assert labelled([100, 125, 50], vol=0.25 / np.sqrt(2), kind="triple_barrier", horizon=2).y_TN[0, 0] == 1.0
    assert labelled([100, 125, 50], vol=0.26 / np.sqrt(2), kind="triple_barrier", horizon=2).y_TN[0, 0] == -1.0


def test_at_the_vertical_barrier_it_is_the_share_of_the_way():
    labels = labelled([100, 101, 100.5, 100.75, 100], vol=0.02, kind="triple_barrier", horizon=3)
    assert labels.y_TN[0, 0] == pytest.approx(0.0075 / (0.02 * 3**0.5))
    single = labelled([100, 101, 95], vol=0.02, kind="triple_barrier")
    np.testing.assert_allclose(single.y_TN[:2, 0], [0.5, -1.0])


def test_a_missing_price_on_the_way_touches_nothing_and_a_missing_last_one_leaves_no_label():
    path = [100.0, np.nan, 101.0, 103.0]
    assert labelled(path, kind="triple_barrier", horizon=3).y_TN[0, 0] == 1.0
    early = labelled([100.0, 110.0, 101.0, np.nan], kind="triple_barrier", horizon=3)
    assert np.isnan(early.y_TN[0, 0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), horizon=st.integers(1, 6), tail=st.integers(0, 3))
def test_triple_barrier_equals_brute_force(seed, horizon, tail):
    price, vol = market(seed)
    times = days(len(price))
    if tail:
        times[-tail:], price[-tail:] = NAT, np.nan
    labels = make_labels(exec_times_T=times, exec_price_TN=price, vol_TN=vol, horizon=horizon, kind="triple_barrier")
    for i, n in np.ndindex(price.shape):
        want = np.nan
        if i + horizon < len(price) and vol[i, n] > 0 and np.isfinite(price[i, n] * price[i + horizon, n]):
            path = price[i + 1 : i + 1 + horizon, n]
            want = touched_first(path, price[i, n], BARRIER * vol[i, n] * horizon**0.5, horizon)
        np.testing.assert_allclose(labels.y_TN[i, n], want, rtol=1e-12)
    assert (np.abs(labels.y_TN[np.isfinite(labels.y_TN)]) <= 1).all()


@every_kind
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), horizon=st.integers(1, 4))
def test_every_kind_shares_times_returns_and_where_there_is_a_label(kind, seed, horizon):
    price, vol = market(seed)
    given_ = {"exec_times_T": days(len(price)), "exec_price_TN": price, "vol_TN": vol, "horizon": horizon}
    default, labels = make_labels(**given_), make_labels(**given_, kind=kind)
    for field in ("start_T", "end_T", "forward_TN"):
        np.testing.assert_array_equal(getattr(labels, field), getattr(default, field))
    needs_vol = kind in ("vol_scaled", "triple_barrier")
    known = np.isfinite(default.y_TN if needs_vol else default.forward_TN)
    np.testing.assert_array_equal(np.isfinite(labels.y_TN), known)


# What a label may rest on, also checked on labels that break it.


def executed(closes, price, samples):
    """Execution times and prices: the first close after each sample time."""
    first_after = np.searchsorted(closes, samples, side="right")
    known, at = first_after < len(closes), np.minimum(first_after, len(closes) - 1)
    return np.where(known, closes[at], NAT), np.where(known[:, None], price[at], np.nan)


def check_label_knows_no_past(make, *, horizon=3):
    """Changing every price up to a sample time leaves its label as it was."""
    closes = days(24)
    samples = closes + np.timedelta64(1, "h")
    price, _ = market(4, num_times=24)
    price = np.where(np.isfinite(price), price, 100.0)
    times, before = executed(closes, price, samples)
    whole = make(times, before, horizon)
    for i in (5, 12, 18):
        rewritten = np.where((closes <= samples[i])[:, None], 7.0, price)
        changed = make(times, executed(closes, rewritten, samples)[1], horizon)
        np.testing.assert_array_equal(changed[i], whole[i])


def check_label_knows_nothing_after_its_end(make, *, horizon=3):
    """Deleting or changing every price later than a label's end leaves it as it was."""
    price, _ = market(5, num_times=24)
    times = days(24)
    whole = make(times, price, horizon)
    for i in (5, 12, 18):
        for later in (np.nan, 7.0):
            changed = price.copy()
            changed[i + horizon + 1 :] = later
            np.testing.assert_array_equal(make(times, changed, horizon)[: i + 1], whole[: i + 1])
        stop = i + horizon + 1
        np.testing.assert_array_equal(make(times[:stop], price[:stop], horizon)[: i + 1], whole[: i + 1])


def y_of(kind):
    def make(times, price, horizon):
        vol = np.full_like(price, 0.03)
        return make_labels(exec_times_T=times, exec_price_TN=price, vol_TN=vol, horizon=horizon, kind=kind).y_TN

    return make


@every_kind
def test_no_kind_knows_the_past_or_what_comes_after_its_end(kind):
    check_label_knows_no_past(y_of(kind))
    check_label_knows_nothing_after_its_end(y_of(kind))


def test_a_label_from_the_price_before_the_decision_is_caught():
    def from_the_close(times, price, horizon):
        return y_of("sign")(times, np.vstack([np.full_like(price[:1], 7.0), price[:-1]]), horizon)

    with pytest.raises(AssertionError):
        check_label_knows_no_past(from_the_close)


def test_a_barrier_that_looks_past_the_horizon_is_caught():
    def patient(times, price, horizon):
        return y_of("triple_barrier")(times, price, horizon + 2)

    with pytest.raises(AssertionError):
        check_label_knows_nothing_after_its_end(patient)


def test_an_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(LabelError, match=r"'median'; there are vol_scaled, return, sign, triple_barrier"):
        labelled([1.0, 2.0], kind="median")


def test_the_kinds_are_those_of_the_annotation():
    annotation = inspect.signature(make_labels, eval_str=True).parameters["kind"].annotation
    assert set(annotation.__args__) == set(KINDS)


# Models on every kind.


@pytest.fixture(scope="module")
def market_of_trends():
    """Features, returns with a memory, prices, and volatilities that differ by entity."""
    rng = np.random.default_rng(2)
    vol = np.linspace(0.005, 0.02, 6)
    z = np.zeros((420, 6))
    for t in range(1, 420):
        z[t] = 0.85 * z[t - 1] + 0.53 * rng.standard_normal(6)
    x = rng.standard_normal((420, 6, 3)).astype(np.float32)
    x[..., 0] = z
    return x, vol * z, 100 * np.cumprod(1 + vol * z, axis=0), np.broadcast_to(vol, z.shape)


@every_kind
@pytest.mark.parametrize("name", ["elastic_net", "lightgbm", "dlinear"])
def test_models_learn_every_kind_with_the_right_sign(name, kind, market_of_trends):
    """Momentum: the score must rise with what the asset will earn, in volatilities."""
    x, returns, price, vol = market_of_trends
    exec_price = np.vstack([price[1:], np.full_like(price[:1], np.nan)])
    exec_times = np.append(days(420)[1:], NAT)
    labels = make_labels(exec_times_T=exec_times, exec_price_TN=exec_price, vol_TN=vol, horizon=2, kind=kind)
    panel = dataclasses.replace(panel_of(x=x, returns=returns, forward=labels.forward_TN), vol_TN=vol, labels=labels)
    learn = np.ones(420, dtype=bool)
    train, valid = (window(panel, *span, lookback=7, learn_T=learn) for span in ((20, 160), (163, 210)))
    model = fit_model(
        architecture(name), {}, train, valid, lookback=7, seed=1, budget=Budget(max_epochs=8, max_trees=60)
    )
    score = model.predict(window(panel, 215, 410, lookback=7)).score_TN
    outcome = (labels.forward_TN / vol)[215:410]
    assert np.corrcoef(score.ravel(), outcome.ravel())[0, 1] > 0.3
    assert np.mean(np.sign(score) == np.sign(outcome)) > 0.6
