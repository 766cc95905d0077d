"""Kernels: the jitted is the plain, the window is all that counts, and the values are the textbooks'."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from feature_repo.kernels import elementwise, rolling, volatility

WINDOW = 7
NUM_BARS = 60


def kernels() -> list[tuple[ModuleType, str]]:
    """Every kernel of the package, found by its plain twin."""
    return [
        (module, name.removesuffix("_python"))
        for module in (elementwise, rolling, volatility)
        for name in vars(module)
        if name.endswith("_python")
    ]


def arguments(function: Callable[..., np.ndarray], rows: slice, *, hole: int | None = None) -> list[object]:
    """Arguments by parameter name: prices of one random market, cut to ``rows``."""
    rng = np.random.default_rng(5)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, NUM_BARS)))
    open_ = close * np.exp(rng.normal(0.0, 0.01, NUM_BARS))
    series = {
        "close": close,
        "open_": open_,
        "high": np.maximum(open_, close) * 1.01,
        "low": np.minimum(open_, close) * 0.99,
        "returns": rng.normal(0.0, 0.02, NUM_BARS),
        "denominator": np.where(np.arange(NUM_BARS) % 11 == 0, 0.0, close),
    }
    scalars: dict[str, object] = {"window": WINDOW, "ddof": 1, "lag": 3, "weights": rolling.decay_weights(0.9, WINDOW)}
    chosen: list[object] = []
    for name in inspect.signature(function).parameters:
        if name in scalars:
            chosen.append(scalars[name])
            continue
        values = series.get(name, close).copy()
        if hole is not None:
            values[hole] = np.nan
        chosen.append(values[rows].copy())
    return chosen


@pytest.mark.parametrize(("module", "name"), kernels())
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar:RuntimeWarning")
def test_jitted_equals_plain_bit_for_bit(module: ModuleType, name: str) -> None:
    plain, jitted = getattr(module, f"{name}_python"), getattr(module, name)
    for hole in (None, 20):
        args = arguments(plain, slice(None), hole=hole)
        np.testing.assert_array_equal(jitted(*args), plain(*args))


@pytest.mark.parametrize(("module", "name"), kernels())
def test_value_depends_on_the_window_alone(module: ModuleType, name: str) -> None:
    jitted, plain = getattr(module, name), getattr(module, f"{name}_python")
    full = jitted(*arguments(plain, slice(None)))
    for stop in range(WINDOW, NUM_BARS + 1):
        cut = jitted(*arguments(plain, slice(stop - WINDOW, stop)))
        np.testing.assert_array_equal(cut[-1], full[stop - 1])


def test_a_running_sum_would_depend_on_the_past() -> None:
    x = np.random.default_rng(0).normal(0.0, 1.0, 500) * 10.0 ** np.arange(500).astype(float) ** 0.1
    running = np.cumsum(x)
    assert (running[100:] - running[93:-7] != rolling.rolling_sum(x, WINDOW)[100:]).any()


@pytest.mark.parametrize(("module", "name"), kernels())
def test_missing_value_spreads_through_its_window_and_no_further(module: ModuleType, name: str) -> None:
    jitted, plain = getattr(module, name), getattr(module, f"{name}_python")
    hole = 20
    clean, holed = jitted(*arguments(plain, slice(None))), jitted(*arguments(plain, slice(None), hole=hole))
    touched = np.flatnonzero(np.isnan(holed) & ~np.isnan(clean))
    assert len(touched) > 0
    assert touched.min() >= hole
    assert touched.max() < hole + WINDOW
    if "window" in inspect.signature(plain).parameters or name == "weighted_average":
        np.testing.assert_array_equal(touched, np.arange(hole, hole + WINDOW))
    outside = np.setdiff1d(np.arange(NUM_BARS), touched)
    np.testing.assert_array_equal(holed[outside], clean[outside])


def test_rolling_statistics_agree_with_pandas() -> None:
    x = np.random.default_rng(1).normal(5.0, 2.0, 300)
    window = pd.Series(x).rolling(21)
    for got, want in [
        (rolling.rolling_sum(x, 21), window.sum()),
        (rolling.rolling_mean(x, 21), window.mean()),
        (rolling.rolling_std(x, 21, 1), window.std()),
        (rolling.rolling_std(x, 21, 0), window.std(ddof=0)),
        (rolling.rolling_min(x, 21), window.min()),
        (rolling.rolling_max(x, 21), window.max()),
        (rolling.rolling_skew(x, 21), window.skew()),
        (rolling.rolling_kurtosis(x, 21), window.kurt()),
        (rolling.rolling_mean_abs_deviation(x, 21), window.apply(lambda w: np.abs(w - w.mean()).mean())),
    ]:
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_trend_t_agrees_with_least_squares() -> None:
    y = np.random.default_rng(2).normal(0.0, 1.0, 30).cumsum()
    design = np.column_stack([np.ones(30), np.arange(30)])
    beta, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = np.sqrt(residual[0] / 28 * np.linalg.inv(design.T @ design)[1, 1])
    assert rolling.rolling_trend_t(y, 30)[-1] == pytest.approx(beta[1] / error, rel=1e-10)


def test_constant_window_has_no_spread_and_no_shape() -> None:
    x = np.full(20, 0.1)
    assert rolling.rolling_std(x, 10, 1)[-1] == 0.0
    assert rolling.rolling_mean_abs_deviation(x, 10)[-1] == 0.0
    for kernel in (rolling.rolling_skew, rolling.rolling_kurtosis, rolling.rolling_trend_t):
        assert np.isnan(kernel(x, 10)).all()


def test_spread_keeps_its_digits_around_a_large_level() -> None:
    x = np.random.default_rng(3).normal(0.0, 1.0, 50)
    np.testing.assert_allclose(rolling.rolling_std(x + 1e9, 20, 1), rolling.rolling_std(x, 20, 1), rtol=1e-6)


def test_weights_sum_to_one_and_fall_by_their_rate() -> None:
    ema, wilder = rolling.ema_weights(12), rolling.wilder_weights(14)
    assert (len(ema), len(wilder)) == (36, 56)
    for weights, decay in ((ema, 1 - 2 / 13), (wilder, 1 - 1 / 14), (rolling.decay_weights(0.94, 100), 0.94)):
        assert weights.sum() == pytest.approx(1.0, abs=1e-15)
        np.testing.assert_allclose(weights[1:] / weights[:-1], decay)


def test_truncated_average_is_near_the_endless_one() -> None:
    x = np.random.default_rng(4).normal(0.0, 1.0, 400).cumsum()
    endless = pd.Series(x).ewm(span=12, adjust=False).mean()
    got = rolling.weighted_average(x, rolling.ema_weights(12))
    assert np.abs(got[100:] - endless[100:]).max() < 0.01 * np.abs(x).max()


def test_ratio_and_log_ratio_refuse_what_has_no_value() -> None:
    got = elementwise.ratio(np.array([1.0, 0.0, np.nan, 3.0]), np.array([0.0, 0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(got, [np.nan, np.nan, np.nan, 1.5])
    got = elementwise.log_ratio(np.array([1.0, -1.0, 0.0, math.e]), np.array([0.0, 1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(got, [np.nan, np.nan, np.nan, 1.0])


def test_range_estimators_by_hand() -> None:
    open_, high, low, close = (np.array([v]) for v in (100.0, 110.0, 95.0, 105.0))
    spread, body = math.log(110 / 95), math.log(105 / 100)
    assert volatility.parkinson_variance(high, low)[0] == pytest.approx(spread**2 / (4 * math.log(2)))
    assert volatility.garman_klass_variance(open_, high, low, close)[0] == pytest.approx(
        0.5 * spread**2 - (2 * math.log(2) - 1) * body**2
    )
    assert volatility.rogers_satchell_variance(open_, high, low, close)[0] == pytest.approx(
        math.log(110 / 105) * math.log(110 / 100) + math.log(95 / 105) * math.log(95 / 100)
    )
    assert volatility.yang_zhang_weight(21) == pytest.approx(0.34 / (1.34 + 22 / 20))


def test_true_range_takes_the_gap() -> None:
    high, low, close = np.array([10.0, 20.0, 6.0]), np.array([9.0, 18.0, 5.0]), np.array([9.5, 19.0, 5.5])
    np.testing.assert_array_equal(volatility.true_range(high, low, close), [np.nan, 10.5, 14.0])


def test_range_estimators_recover_the_volatility_of_a_random_walk() -> None:
    rng = np.random.default_rng(6)
    steps = rng.normal(0.0, 0.02 / math.sqrt(2000), (1000, 2000))
    path = np.concatenate([np.zeros((1000, 1)), steps.cumsum(axis=1)], axis=1)
    open_, high, low, close = (100 * np.exp(v) for v in (path[:, 0], path.max(1), path.min(1), path[:, -1]))
    for variance in (
        volatility.parkinson_variance(high, low),
        volatility.garman_klass_variance(open_, high, low, close),
        volatility.rogers_satchell_variance(open_, high, low, close),
    ):
        assert math.sqrt(variance.mean()) == pytest.approx(0.02, rel=0.06)  # a sampled range falls a little short


def test_drawdown_and_downside_by_hand() -> None:
    price = np.array([1.0, 2.0, 1.5, 1.0, 3.0, 2.4])
    np.testing.assert_allclose(volatility.max_drawdown(price, 4)[3:], [0.5, 0.5, 1 - 1.0 / 1.5])
    returns = np.array([0.1, -0.2, 0.3, -0.1])
    assert volatility.downside_deviation(returns, 4)[-1] == pytest.approx(math.sqrt((0.04 + 0.01) / 4))
