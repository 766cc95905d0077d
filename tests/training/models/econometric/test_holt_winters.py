import dataclasses

import numpy as np
import pytest
from statsmodels.tsa.holtwinters import ExponentialSmoothing

from tests.training.models.toys import VOL, panel_of, toy_panel
from training.dataset import window
from training.models.deadline import Deadline
from training.models.econometric.holt_winters import HoltWintersModel, smoothing_parameters, weekdays
from training.models.spec import Budget, ModelError

BUDGET = Budget()


def simulate(num, num_entities, *, level, trend, damping, seed=0):
    """Returns of the innovations form of a damped trend: the errors are standard normal."""
    error = np.random.default_rng(seed).standard_normal((num, num_entities))
    slope, state = np.zeros(num_entities), np.zeros(num_entities)
    price = np.zeros((num + 1, num_entities))
    for t in range(num):
        price[t + 1] = state + damping * slope + error[t]
        state = state + damping * slope + level * error[t]
        slope = damping * slope + level * trend * error[t]
    return np.diff(price, axis=0)


def fitted(panel, *, lookback=10, season_days=0, drift=1.0, first=20, last=160):
    model = HoltWintersModel({"season_days": season_days, "drift": drift}, lookback=lookback)
    train = window(panel, first, last, lookback=lookback, learn_T=np.ones(len(panel.sample_times_T), dtype=bool))
    model.fit(train, train, seed=0, budget=BUDGET)
    return model


def week_panel(*, effect, num_times=700, num_entities=6, memory=0.0, seed=0):
    """Noise with a mean by the day of the week, in volatilities."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((num_times, num_entities))
    z += np.asarray(effect)[(np.arange(num_times) + 2) % 7, None]  # 2020-01-01 was a Wednesday
    forward = np.full_like(z, np.nan)
    forward[:-2] = VOL * z[2:]
    x = rng.standard_normal((num_times, num_entities, 2)).astype(np.float32)
    return panel_of(x=x, returns=VOL * z, forward=forward)


def reference_growth(returns, state, n, *, drift=1.0, season=None):
    """Growth of statsmodels' price forecast from one to two bars ahead, with our parameters and start."""
    start = {"initial_level": 0.0, "initial_trend": drift * state["returns.mean"][n]}
    level, trend, damping = state["smoothing"]
    settings = {"trend": "add", "damped_trend": True, "initialization_method": "known"} | start
    smoothing = {"smoothing_level": level, "smoothing_trend": trend, "damping_trend": damping}
    if season is not None:
        settings |= {"seasonal": "add", "seasonal_periods": 7, "initial_seasonal": season}
        smoothing |= {"smoothing_seasonal": 0.0}
    ahead = ExponentialSmoothing(np.cumsum(returns), **settings).fit(optimized=False, **smoothing).forecast(2)
    return ahead[1] - ahead[0]


@pytest.mark.parametrize(("level", "trend", "damping"), [(0.9, 0.4, 0.9), (0.5, 0.3, 0.95), (1.0, 1.0, 0.85)])
def test_recovers_the_parameters_of_a_damped_trend(level, trend, damping):
    z = simulate(800, 30, level=level, trend=trend, damping=damping)
    found = smoothing_parameters(z, np.zeros(30), 0.01, Deadline(BUDGET))
    np.testing.assert_allclose(found, [level, trend, damping], atol=0.03)


def test_minimises_the_error_as_statsmodels_does():
    z = simulate(500, 1, level=0.7, trend=0.4, damping=0.9, seed=1)
    found = smoothing_parameters(z, np.zeros(1), 0.0, Deadline(BUDGET))
    start = {"initialization_method": "known", "initial_level": 0.0, "initial_trend": 0.0}
    bounds = {"damping_trend": (0.8, 0.98)}
    model = ExponentialSmoothing(np.cumsum(z[:, 0]), trend="add", damped_trend=True, bounds=bounds, **start)
    theirs = model.fit().params
    names = ("smoothing_level", "smoothing_trend", "damping_trend")
    np.testing.assert_allclose(found, [theirs[name] for name in names], atol=2e-3)


@pytest.mark.parametrize("drift", [1.0, 0.0])
def test_score_is_statsmodels_forecast_over_the_lookback(drift):
    panel = toy_panel(memory=0.5)
    panel = dataclasses.replace(panel, returns_TN=panel.returns_TN + 0.2 * VOL)
    model = fitted(panel, drift=drift)
    score = model.predict(window(panel, 350, 353, lookback=10))
    for row, t in enumerate((350, 351, 352)):
        growth = [reference_growth(panel.returns_TN[t - 9 : t + 1, n], model.state(), n, drift=drift) for n in range(6)]
        np.testing.assert_allclose(score[row], np.array(growth) / VOL, rtol=1e-7)


def test_season_is_an_additive_one_of_statsmodels():
    """Fixed seasonal indices of the price, whose differences are the days' mean returns."""
    panel = week_panel(effect=(0.5, -0.5, 0, 0.3, -0.3, 0.4, -0.4))
    model = fitted(panel, lookback=28, season_days=7, last=500)
    season = model.state()["season"] - model.state()["season"].mean()
    model._season_7 = season  # without the trend that a sum other than zero is
    t = 600
    score = model.predict(window(panel, t, t + 1, lookback=28))[0]
    days = weekdays(panel.sample_times_T[t - 27 : t - 20])
    indices = np.cumsum(season[days])
    for n in range(6):
        deviation = model.state()["returns.deviation"][n]
        # The index before the first return is the last of the week's, 0, so that the level starts at the price.
        growth = reference_growth(panel.returns_TN[t - 27 : t + 1, n], model.state(), n, season=indices * deviation)
        assert score[n] == pytest.approx(growth / VOL, rel=1e-6)


def test_the_season_learns_what_holt_alone_cannot():
    panel = week_panel(effect=(0.6, -0.6, 0, 0.6, -0.6, 0.6, -0.6))
    with_season, without = (
        fitted(panel, season_days=days, last=500).predict(window(panel, 520, 690, lookback=10)).ravel()
        for days in (7, 0)
    )
    label = panel.labels.y_TN[520:690].ravel()
    assert np.corrcoef(with_season, label)[0, 1] > 0.35
    assert abs(np.corrcoef(without, label)[0, 1]) < 0.15


def test_a_season_of_trading_days_follows_the_calendar():
    """Without weekends Monday follows Friday."""
    panel = week_panel(effect=np.zeros(7))
    workday = weekdays(panel.sample_times_T) < 5
    arrays = {name: getattr(panel, name)[workday] for name in ("x_TNF", "returns_TN", "vol_TN", "sample_times_T")}
    fields = ("start_T", "end_T", "forward_TN", "y_TN")
    labels = dataclasses.replace(panel.labels, **{name: getattr(panel.labels, name)[workday] for name in fields})
    model = fitted(dataclasses.replace(panel, labels=labels, **arrays), season_days=7)
    assert model.state()["following"].tolist() == [1, 2, 3, 4, 0, 6, 0]


def test_the_memory_of_the_trend_is_no_longer_than_the_lookback():
    """White returns have no trend: its smoothing goes to the least that the lookback can rebuild."""
    panel = toy_panel(memory=0.0)
    assert [fitted(panel, lookback=n, last=400).state()["smoothing"][1] for n in (7, 20)] == [1 / 7, 1 / 20]


def test_season_is_shrunk_towards_none():
    panel = week_panel(effect=np.zeros(7))
    model = fitted(panel, season_days=7, last=160)
    assert 0 < np.abs(model.state()["season"]).max() < 0.15
    np.testing.assert_array_equal(fitted(panel).state()["season"], 0)


def test_a_missing_return_counts_as_the_expected_one():
    """After the expected return the error is 0, and the trend goes on as it was, damped."""
    panel = toy_panel(memory=0.7)
    model = fitted(panel)
    damping = model.state()["smoothing"][2]
    returns = panel.returns_TN.copy()
    returns[350] = np.nan
    gap = window(dataclasses.replace(panel, returns_TN=returns), 350, 351, lookback=10)
    shorter = HoltWintersModel({"season_days": 0, "drift": 1.0}, lookback=9)
    for name in ("_smoothing_3", "_season_7", "_following_7", "_moments"):
        setattr(shorter, name, getattr(model, name))
    before = shorter.predict(window(panel, 349, 350, lookback=9))
    np.testing.assert_allclose(model.predict(gap), damping * before, rtol=1e-9)


def test_returns_whose_label_is_hidden_are_not_learned():
    panel = toy_panel(memory=0.7)
    changed = panel.returns_TN.copy()
    changed[130:160] *= -5
    states = []
    for returns, seen in ((panel.returns_TN, 130), (changed, 130), (changed, 420)):
        learn = np.arange(420) < seen
        train = window(dataclasses.replace(panel, returns_TN=returns), 20, 160, lookback=10, learn_T=learn)
        model = HoltWintersModel({"season_days": 7, "drift": 1.0}, lookback=10)
        model.fit(train, train, seed=0, budget=BUDGET)
        states.append(np.concatenate([model.state()["smoothing"], model.state()["season"]]))
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).any()


def test_no_volatility_no_forecast_and_no_returns_no_opinion():
    panel = toy_panel(memory=0.7)
    vol, returns = panel.vol_TN.copy(), panel.returns_TN.copy()
    vol[350, 0] = np.nan
    returns[:, 1] = np.nan
    panel = dataclasses.replace(panel, vol_TN=vol, returns_TN=returns)
    score = fitted(panel).predict(window(panel, 350, 351, lookback=10))[0]
    np.testing.assert_array_equal(np.isnan(score), [True, False, False, False, False, False])
    assert score[1] == 0
    with pytest.raises(ModelError, match="none of 6 entities"):
        fitted(dataclasses.replace(panel, returns_TN=np.zeros_like(returns)))


def test_entities_must_be_those_it_was_fitted_on():
    model = fitted(toy_panel(memory=0.7))
    with pytest.raises(ModelError, match="4 entities for a model of 6"):
        model.predict(window(toy_panel(memory=0.7, num_entities=4), 300, 310, lookback=10))
