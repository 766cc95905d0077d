"""The alpha is there, just as strong as asked for, and where none is planted nothing predicts."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.market.schema import MarketError
from feature_repo.market.simulated.bars import make_bars
from feature_repo.market.simulated.days import (
    MOMENTUM,
    TREND,
    WARMUP,
    price_signals,
    price_signals_python,
    simulate_days,
    simulate_days_python,
)
from feature_repo.market.simulated.shocks import HOUR_SHARE_H, autoregression, autoregression_python
from feature_repo.market.simulated.spec import SIGNALS, Drift, Regime, SimSpec
from feature_repo.market.simulated.world import World, draw_world

NUM_SEEDS = 3
TARGET = 0.06


def products(signal_TN: np.ndarray, world: World) -> np.ndarray:
    """Mean product of each day's signals with the next day's returns over their volatility (T-1,)."""
    scaled_TN = world.returns_TN / world.volatility_TN
    return (signal_TN[:-1] * scaled_TN[1:]).mean(axis=1)


def measure(worlds: list[World], name: str) -> tuple[float, float]:
    """The signal's information coefficient over all the worlds, and its standard error, days being independent."""
    daily = np.concatenate([products(world.signals[name], world) for world in worlds])
    return daily.mean(), daily.std() / np.sqrt(len(daily))


@pytest.fixture(scope="module")
def silent() -> list[World]:
    return [draw_world(SimSpec(seed=seed, alpha={})) for seed in range(2 * NUM_SEEDS)]


@pytest.mark.parametrize(("name", "sign"), [*((name, 1.0) for name in SIGNALS), ("momentum", -1.0)])
def test_a_planted_alpha_is_as_strong_as_asked(name, sign):
    worlds = [draw_world(SimSpec(seed=seed, alpha={name: sign * TARGET})) for seed in range(NUM_SEEDS)]
    for world in worlds:
        assert world.planting.expected_ic[name] == pytest.approx(sign * TARGET, abs=2e-4)
    ic, error = measure(worlds, name)
    assert abs(ic - sign * TARGET) < 3.5 * error
    assert sign * ic > 3 * error  # and it would not pass for nothing


def test_alphas_planted_together_are_each_as_strong_as_asked():
    alpha = {"momentum": 0.05, "technical": 0.05, "cross_asset": 0.04, "order_flow": -0.05, "sentiment": 0.06}
    worlds = [draw_world(SimSpec(seed=seed, alpha=alpha)) for seed in range(NUM_SEEDS)]
    for name, target in alpha.items():
        ic, error = measure(worlds, name)
        assert abs(ic - target) < 3.5 * error
        for world in worlds:
            assert world.planting.expected_ic[name] == pytest.approx(target, abs=1e-3)


def test_the_truth_tells_what_unplanted_and_later_ics_are():
    worlds = [draw_world(SimSpec(seed=seed)) for seed in range(NUM_SEEDS)]
    for name in SIGNALS:
        ic, error = measure(worlds, name)
        assert abs(ic - np.mean([world.planting.expected_ic[name] for world in worlds])) < 3.5 * error
        later = np.concatenate(
            [(world.signals[name][:-2] * (world.returns_TN / world.volatility_TN)[2:]).mean(axis=1) for world in worlds]
        )
        tradable = np.mean([world.planting.tradable_ic[name] for world in worlds])
        assert abs(later.mean() - tradable) < 3.5 * later.std() / np.sqrt(len(later))
    for name in SimSpec().alpha:  # what is planted lasts long enough to trade on
        assert worlds[0].planting.tradable_ic[name] > 0.9 * worlds[0].planting.expected_ic[name]


@pytest.mark.parametrize("name", SIGNALS)
def test_no_signal_predicts_where_none_is_planted(silent, name):
    assert {world.planting.expected_ic[name] for world in silent} == {0.0}
    ic, error = measure(silent, name)
    assert abs(ic) < 3.5 * error
    assert error < 0.007  # so that a planted TARGET would be seen


def known_values(world: World) -> dict[str, np.ndarray]:
    """What prices tell at each day's end: (T, N) by name."""
    returns_TN = world.returns_TN
    market_T1 = returns_TN.mean(axis=1, keepdims=True)
    return {
        **{f"return {k} days ago": np.roll(returns_TN, k, axis=0) for k in range(5)},
        "size": np.abs(returns_TN),
        "volatility": world.volatility_TN,
        "level": np.log(world.close_TN / world.previous_TN[0]),
        "market": np.broadcast_to(market_T1, returns_TN.shape),
        "one": np.ones_like(returns_TN),
    }


def pooled_t(values: list[np.ndarray], worlds: list[World]) -> float:
    """t of the mean product with the next day's returns, of mean zero for whatever is known, centred or not."""
    daily = np.concatenate([products(value_TN, world)[5:] for value_TN, world in zip(values, worlds, strict=True)])
    return daily.mean() / daily.std() * np.sqrt(len(daily))


def test_nothing_else_known_predicts_either(silent):
    known = [known_values(world) for world in silent]
    for name in known[0]:
        assert abs(pooled_t([values[name] for values in known], silent)) < 3.5, name


def test_what_remains_of_a_day_cannot_be_told_from_what_has_passed(silent):
    """Hourly, too, nothing predicts: not the hour before, nor the day so far, nor the day before."""
    daily = {"hour": [], "day so far": [], "day before": []}
    for world in silent[:NUM_SEEDS]:
        close_TSN = make_bars(world).hourly.close_DSN
        hours_HN = close_TSN.reshape(-1, close_TSN.shape[-1])
        return_TSN = (hours_HN[1:] / hours_HN[:-1] - 1)[23:].reshape(-1, 24, close_TSN.shape[-1])
        half_TN, rest_TN = return_TSN[:, :12].sum(axis=1), close_TSN[1:, -1] / close_TSN[1:, 11] - 1
        daily["hour"].append((return_TSN[:, :-1] * return_TSN[:, 1:]).mean(axis=(1, 2)))
        daily["day so far"].append((half_TN * rest_TN).mean(axis=1))
        daily["day before"].append((world.returns_TN[:-1] * half_TN).mean(axis=1))
    for name, parts in daily.items():
        products_T = np.concatenate(parts)
        assert abs(products_T.mean() / products_T.std() * np.sqrt(len(products_T))) < 3.5, name


def test_a_glimpse_of_the_future_would_be_seen(silent):
    """The measure that finds nothing above is no blunt one: two ways in which backtests peek."""
    tomorrow = [np.roll(world.returns_TN, -1, axis=0) / world.returns_TN.std() for world in silent]
    noise = [np.random.default_rng(0).standard_normal(values.shape) for values in tomorrow]
    assert pooled_t([0.05 * one + other for one, other in zip(tomorrow, noise, strict=True)], silent) > 5.0
    levels = [known_values(world)["level"] for world in silent]
    assert pooled_t([level_TN - level_TN.mean(axis=0) for level_TN in levels], silent) < -5.0


def fitted_t(world: World) -> float:
    """t of the out-of-sample gain of a regression on all the signals, fitted on the first half of the history."""
    x = np.stack([world.signals[name] for name in SIGNALS], axis=-1)[:-1]
    y = (world.returns_TN / world.volatility_TN)[1:]
    half = len(y) // 2
    beta = np.linalg.lstsq(x[:half].reshape(-1, len(SIGNALS)), y[:half].ravel(), rcond=None)[0]
    daily = ((x[half:] @ beta) * y[half:]).mean(axis=1)
    return daily.mean() / daily.std() * np.sqrt(len(daily))


def test_a_fitted_model_finds_the_alpha_and_finds_none_where_none_is(silent):
    assert np.mean([fitted_t(draw_world(SimSpec(seed=seed))) for seed in range(NUM_SEEDS)]) > 4.0
    assert abs(np.mean([fitted_t(world) for world in silent])) < 3.5 / np.sqrt(len(silent))


def test_silence_and_alpha_share_their_shocks():
    silent, planted = draw_world(SimSpec(alpha={})), draw_world(SimSpec())
    np.testing.assert_array_equal(silent.shocks.hour_THN, planted.shocks.hour_THN)
    np.testing.assert_array_equal(silent.volume_THN, planted.volume_THN)
    assert not np.array_equal(silent.close_TN, planted.close_TN)


def test_regimes_differ_in_drift_and_volatility():
    regimes = (
        Regime(name="up", share=0.5, drift_ann=2.0, vol_factor=0.5),
        Regime(name="down", share=0.5, drift_ann=-2.0, vol_factor=2.0),
    )
    worlds = [draw_world(SimSpec(seed=seed, alpha={"sentiment": 0.05}, regimes=regimes)) for seed in range(4)]
    halves = [np.split(world.returns_TN, 2) for world in worlds]
    up_TN, down_TN = (np.concatenate(parts) for parts in zip(*halves, strict=True))
    assert down_TN.std() / up_TN.std() == pytest.approx(4.0, rel=0.15)
    for days_TN, drift in ((up_TN, 2.0), (down_TN, -2.0)):
        market_T = days_TN.mean(axis=1)
        assert abs(market_T.mean() * 365 - drift) < 3 * market_T.std() / np.sqrt(len(market_T)) * 365
        assert market_T.mean() * drift > 0
    still_T = draw_world(SimSpec(regimes=regimes, alpha={})).returns_TN.mean(axis=1)
    assert abs(still_T.mean() / still_T.std() * np.sqrt(len(still_T))) < 3.0


def test_tails_are_fat_and_volatility_clusters():
    one = (Regime(name="calm", share=1.0, drift_ann=0.0, vol_factor=1.0),)
    world = draw_world(SimSpec(alpha={}, regimes=one, tail_dof=5.0))
    shock_TN = world.shocks.day_TN
    assert shock_TN.var() == pytest.approx(1.0, rel=0.05)
    assert (shock_TN**4).mean() / shock_TN.var() ** 2 > 5.0
    thin = draw_world(SimSpec(alpha={}, regimes=one, tail_dof=500.0)).shocks.day_TN
    assert (thin**4).mean() == pytest.approx(3.0, rel=0.1)
    size_TN = np.abs(world.returns_TN) / world.returns_TN.std(axis=0)
    clustered = np.corrcoef(size_TN[:-1].ravel(), size_TN[1:].ravel())[0, 1]
    scaled_TN = np.abs(world.returns_TN / world.volatility_TN)
    unclustered = np.corrcoef(scaled_TN[:-1].ravel(), scaled_TN[1:].ravel())[0, 1]
    assert clustered > 0.08 > 3 * abs(unclustered)
    assert (world.returns_TN.std(axis=0) / (0.7 / np.sqrt(365))).mean() == pytest.approx(1.0, rel=0.2)


def test_returns_share_the_market_and_their_sector():
    world = draw_world(SimSpec(alpha={}))
    correlation_NN = np.corrcoef((world.returns_TN / world.volatility_TN).T)
    same_NN = world.sector_N[:, None] == world.sector_N
    apart_NN = ~np.eye(len(correlation_NN), dtype=bool)
    inside, outside = correlation_NN[same_NN & apart_NN].mean(), correlation_NN[~same_NN].mean()
    assert 0.2 < outside < inside - 0.05 < 0.6


def test_volume_and_activity_shift_where_a_drift_is_injected():
    drifts = (
        Drift(feature="volume", at=0.5, size=2.0),
        Drift(feature="onchain", at=0.5, size=2.0),
        Drift(feature="sentiment", at=0.5, size=2.0),
    )
    drifted, still = draw_world(SimSpec(drifts=drifts)), draw_world(SimSpec(drifts=()))
    for one, other, shift in (
        (np.log(drifted.volume_THN.sum(axis=1)), np.log(still.volume_THN.sum(axis=1)), 1.0),
        (drifted.log_users_TN, still.log_users_TN, 0.6),
        (drifted.tone_TN, still.tone_TN, 2.0),
    ):
        np.testing.assert_array_equal(one[:750], other[:750])
        np.testing.assert_allclose(one[750:] - other[750:], shift, atol=1e-3)
    np.testing.assert_array_equal(drifted.close_TN, still.close_TN)


def test_alphas_that_explain_too_much_are_refused():
    with pytest.raises(MarketError, match="more than 25%: plant weaker or fewer ones"):
        draw_world(SimSpec(alpha=dict.fromkeys(SIGNALS, 0.2)))


def test_no_day_falls_or_rises_by_more_than_can_be():
    world = draw_world(SimSpec(alpha={}, tail_dof=4.1, vol_ann=2.0))
    assert np.abs(world.returns_TN).max() <= 0.5 + 1e-12
    assert np.abs(world.returns_TN).max() > 0.4
    assert (world.close_TN > 0).all()


def test_hours_share_the_day():
    assert HOUR_SHARE_H.sum() == pytest.approx(1.0, abs=1e-12)
    assert (HOUR_SHARE_H > 0).all()


def test_python_equals_numba():
    rng = np.random.default_rng(3)
    noise_TN = rng.standard_normal((WARMUP + 20, 3))
    np.testing.assert_array_equal(autoregression(noise_TN, 0.9), autoregression_python(noise_TN, 0.9))
    leader_N = np.array([1, 0, 0])
    for t in (WARMUP - 1, WARMUP + 19):
        jitted, plain = np.empty((4, 3)), np.empty((4, 3))
        price_signals(0.03 * noise_TN, leader_N, t, jitted)
        price_signals_python(0.03 * noise_TN, leader_N, t, plain)
        np.testing.assert_allclose(jitted, plain, rtol=1e-13)
    arguments = (
        noise_TN,
        2.0 + np.abs(noise_TN),
        np.full_like(noise_TN, 0.15),
        np.full(len(noise_TN), 0.001),
        0.02 * noise_TN[::-1],
        np.array([0.1, -0.1, 0.05, 0.02]),
        np.array([0.0, 0.1, 0.0, 0.0]),
        np.array([1.0, 2.0, 1.0, 1.0]),
        0.98,
        leader_N,
    )
    for jitted, plain in zip(simulate_days(*arguments), simulate_days_python(*arguments), strict=True):
        np.testing.assert_allclose(jitted, plain, rtol=1e-12, atol=1e-15)


def test_price_signals_have_their_closed_forms():
    rng = np.random.default_rng(4)
    returns_TN = 0.04 * rng.standard_normal((80, 2))
    out_PN = np.empty((4, 2))
    price_signals(returns_TN, np.array([1, 0]), 75, out_PN)
    seen = returns_TN[:76]
    old, near, far = seen[-TREND - MOMENTUM : -TREND], seen[-TREND:], seen[-60:]
    weighted = near * np.arange(1, 11)[:, None]
    lead = seen[-5:][:, ::-1]
    np.testing.assert_allclose(out_PN[0], old.sum(axis=0) / np.sqrt((old**2).sum(axis=0)))
    np.testing.assert_allclose(out_PN[1], -weighted.sum(axis=0) / np.sqrt((weighted**2).sum(axis=0)))
    np.testing.assert_allclose(out_PN[2], -np.log(np.sqrt((near**2).mean(axis=0) / (far**2).mean(axis=0))))
    np.testing.assert_allclose(out_PN[3], lead.sum(axis=0) / np.sqrt((lead**2).sum(axis=0)))
    future_TN = returns_TN.copy()
    future_TN[76:] = 9.0
    again_PN = np.empty((4, 2))
    price_signals(future_TN, np.array([1, 0]), 75, again_PN)
    np.testing.assert_array_equal(out_PN, again_PN)
