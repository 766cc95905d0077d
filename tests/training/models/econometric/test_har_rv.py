import dataclasses

import numpy as np
import pytest
from arch.univariate import HARX

from tests.training.models.toys import VOL, panel_of, toy_panel
from training.dataset import window
from training.models.econometric.har_rv import HarRvModel
from training.models.econometric.returns import MEMORY_ROWS
from training.models.spec import Budget, ModelError

BUDGET = Budget()
HAR = (0.1, 0.3, 0.3, 0.3)  # constant, day, week, month; persistent


def simulate(num, *, har=HAR, drift=0.0, seed=0):
    """Returns whose variance is a HAR of past squared returns."""
    rng = np.random.default_rng(seed)
    r, variance = np.zeros(num + 300), np.ones(num + 300)
    r[:22] = rng.standard_normal(22)
    for t in range(22, num + 300):
        square = r[t - 22 : t] ** 2
        variance[t] = har[0] + har[1] * square[-1] + har[2] * square[-5:].mean() + har[3] * square.mean()
        r[t] = np.sqrt(variance[t]) * rng.uniform(-np.sqrt(3), np.sqrt(3))
    return drift + r[300:], variance[300:]


def har_panel(*, num_times=900, num_entities=3, drift=0.0, har=HAR):
    z = np.column_stack([simulate(num_times, seed=n, har=har, drift=drift)[0] for n in range(num_entities)])
    return panel_from(z)


def panel_from(z):
    forward = np.full_like(z, np.nan)
    forward[:-2] = VOL * z[2:]
    return panel_of(x=z[..., None].astype(np.float32), returns=VOL * z, forward=forward)


def fitted(panel, *, lookback=30, power=2, ridge=0.1, first=40, last=160):
    model = HarRvModel({"power": power, "ridge": ridge}, lookback=lookback)
    train = window(panel, first, last, lookback=lookback, learn_T=np.ones(len(panel.sample_times_T), dtype=bool))
    model.fit(train, train, seed=0, budget=BUDGET)
    return model


def realised(model, panel, *, power=2):
    return np.minimum(np.abs(panel.returns_TN) / model.state()["returns.deviation"], 5) ** power


def test_one_entity_is_the_har_of_arch():
    panel = har_panel(num_entities=1)
    model = fitted(panel, last=600)
    rv = realised(model, panel)[:, 0]
    # The first target's own value is the first explaining one: arch holds back the 22 it lags.
    reference = HARX(rv[41 - 22 : 600], lags=[1, 5, 22], rescale=False).fit(disp="off")
    np.testing.assert_allclose(model.state()["har"], reference.params.to_numpy()[:4], rtol=1e-7)
    ahead = reference.forecast(horizon=2).mean.to_numpy()[-1, 1]
    got = model.volatility(window(panel, 599, 600, lookback=30))[0, 0]
    deviation, unit = model.state()["returns.deviation"][0], model.state()["unit"][0]
    assert got == pytest.approx(deviation * np.sqrt(ahead / unit), rel=1e-7)


def test_entities_share_one_regression():
    panel = har_panel()
    model = fitted(panel, last=400)
    rv = realised(model, panel)
    rows = [
        (rv[t, n], 1.0, rv[t - 1, n], rv[t - 5 : t, n].mean(), rv[t - 22 : t, n].mean())
        for n in range(3)
        for t in range(41, 400)
    ]
    table = np.array(rows)
    expected = np.linalg.lstsq(table[:, 1:], table[:, 0], rcond=None)[0]
    np.testing.assert_allclose(model.state()["har"], expected, rtol=1e-8)


def test_recovers_the_cascade():
    panel = har_panel(num_times=6000, num_entities=5, har=(0.4, 0.2, 0.2, 0.2))
    har = fitted(panel, last=5900).state()["har"]
    np.testing.assert_allclose(har[1:], [0.2, 0.2, 0.2], atol=0.06)
    assert har[0] == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize("power", [2, 1])
def test_score_and_volatility_by_hand(power):
    panel = har_panel()
    model = fitted(panel, power=power, lookback=10, last=400)
    part = window(panel, 500, 510, lookback=10)
    score, volatility = model.predict(part), model.volatility(part)
    state = model.state()
    constant, *weights = state["har"]
    for row, t in enumerate(range(500, 510)):
        for n in range(3):
            rv = list(realised(model, panel, power=power)[t - 9 : t + 1, n])
            for _ in range(2):
                past = (rv[-1], np.mean(rv[-5:]), np.mean(rv[-10:]))  # the month is cut to the lookback
                rv.append(constant + sum(w * mean for w, mean in zip(weights, past, strict=True)))
            relative = (rv[-1] / state["unit"][0]) ** (1 / power)
            z = np.clip(panel.returns_TN[t - 9 : t + 1, n] / state["returns.deviation"][n], -5, 5)
            trends = [np.sqrt(bars) * z[-bars:].mean() / relative for bars in (1, 5, 10)]
            assert volatility[row, n] == pytest.approx(relative * state["returns.deviation"][n], rel=1e-9)
            assert score[row, n] == pytest.approx(state["slope"] @ trends, rel=1e-9)


@pytest.mark.parametrize("power", [2, 1])
def test_forecasts_volatility_where_a_constant_one_cannot(power):
    panel = har_panel(num_entities=6)
    model = fitted(panel, power=power, last=600)
    square = panel.returns_TN[622:892] ** 2
    variances = (model.volatility(window(panel, 620, 890, lookback=30)) ** 2, model.state()["returns.deviation"] ** 2)
    loss = [np.mean(np.log(variance) + square / variance) for variance in variances]
    assert loss[0] < loss[1] - 0.05


@pytest.mark.parametrize("memory", [0.8, -0.8])
def test_learns_whether_moves_go_on_or_come_back(memory):
    """Two bars ahead both kinds have the sign of the last return; over the week, only the trend has."""
    panel = toy_panel(memory=memory)
    model = fitted(panel, lookback=10, first=20)
    score = model.predict(window(panel, 212, 410, lookback=10))
    assert np.corrcoef(score.ravel(), panel.labels.y_TN[212:410].ravel())[0, 1] > 0.5
    assert model.state()["slope"][0] > 0.3


def test_reversal_is_learned_as_a_negative_slope():
    z = np.random.default_rng(0).standard_normal((420, 6))
    z[2:] -= 0.7 * z[:-2]
    model = fitted(panel_from(z), lookback=10, first=20)
    assert model.state()["slope"][0] < -0.3


def test_scores_shrink_where_volatility_is_forecast_to_rise():
    """The same past trend counts for less after a wild week: the score is per unit of volatility."""
    panel = har_panel()
    model = fitted(panel, last=600)
    z = np.tile([0.5, 0.5, -0.4], 10)[:, None] * np.ones((1, 3))
    calm = panel.returns_TN.copy()
    calm[671:701] = VOL * z
    wild = calm.copy()
    wild[691:701] *= 4.0
    means = []
    for returns in (calm, wild):
        changed = dataclasses.replace(panel, returns_TN=returns)
        means.append(model.volatility(window(changed, 700, 701, lookback=30)).mean())
    assert means[1] > 2 * means[0]


def test_forecasts_stay_within_what_training_can_vouch_for():
    panel = har_panel()
    model = fitted(panel, last=600)
    returns = panel.returns_TN.copy()
    returns[671:701, 0], returns[671:701, 1] = 100.0, 0.0
    model._har_C = np.array([0.0, 0.5, 0.5, 0.5])
    relative = model.volatility(window(dataclasses.replace(panel, returns_TN=returns), 700, 701, lookback=30))[0]
    np.testing.assert_allclose(relative[:2] / model.state()["returns.deviation"][:2], [5.0, 0.2])


def test_missing_returns_are_left_out_of_the_means_and_none_at_all_is_the_ordinary():
    panel = har_panel()
    model = fitted(panel, last=600)
    returns = panel.returns_TN.copy()
    returns[671:701, 0] = np.nan
    changed = window(dataclasses.replace(panel, returns_TN=returns), 700, 701, lookback=30)
    assert model.predict(changed)[0, 0] == 0.0
    assert np.isfinite(model.volatility(changed)).all()


def test_a_score_needs_no_volatility_from_outside():
    panel = har_panel()
    model = fitted(panel)
    unknown = dataclasses.replace(panel, vol_TN=np.full_like(panel.vol_TN, np.nan))
    scores = [model.predict(window(data, 300, 320, lookback=30)) for data in (panel, unknown)]
    np.testing.assert_array_equal(*scores)


def test_returns_whose_label_is_hidden_are_not_learned():
    panel = toy_panel(memory=0.7)
    changed = panel.returns_TN.copy()
    changed[130:160] *= -5
    states = []
    for returns, seen in ((panel.returns_TN, 130), (changed, 130), (changed, 420)):
        learn = np.arange(420) < seen
        train = window(dataclasses.replace(panel, returns_TN=returns), 20, 160, lookback=10, learn_T=learn)
        model = HarRvModel({"power": 2, "ridge": 0.1}, lookback=10)
        model.fit(train, train, seed=0, budget=BUDGET)
        states.append(np.concatenate([model.state()["har"], model.state()["slope"]]))
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).all()


def test_entities_must_be_those_it_was_fitted_on_and_one_must_have_returns():
    panel = toy_panel(memory=0.7)
    with pytest.raises(ModelError, match="4 entities for a model of 6"):
        fitted(panel).predict(window(toy_panel(memory=0.7, num_entities=4), 300, 310, lookback=30))
    with pytest.raises(ModelError, match="none of 6 entities"):
        fitted(dataclasses.replace(panel, returns_TN=np.zeros_like(panel.returns_TN)))


def test_an_update_goes_the_new_rows_share_of_the_way_to_their_own_fit():
    panel = har_panel(num_times=500)
    model = fitted(panel)
    before = model.state()
    rv, num_new = realised(model, panel), 120
    new = window(panel, 200, 330, lookback=30, learn_T=np.arange(500) < 320)
    past = [[rv[t - bars : t].mean(axis=0) for t in range(201, 320)] for bars in (1, 5, 22)]
    x = np.column_stack([np.ones(119 * 3), *(np.array(mean).ravel() for mean in past)])
    own = np.linalg.lstsq(x, rv[201:320].ravel(), rcond=None)[0]
    model.update(new, seed=0, budget=BUDGET)
    share = num_new / (num_new + MEMORY_ROWS)
    np.testing.assert_allclose(model.state()["har"], (1 - share) * before["har"] + share * own, rtol=1e-9)
    np.testing.assert_array_equal(model.state()["unit"], before["unit"])
    assert (model.state()["slope"] != before["slope"]).all()


def test_labels_that_flip_turn_the_slopes_in_the_end():
    panel = toy_panel(memory=0.8)
    model = fitted(panel)
    assert model.state()["slope"][0] > 0.1
    new = window(panel, 200, 400, lookback=30, learn_T=np.ones(420, dtype=bool))
    for _ in range(10):
        model.update(dataclasses.replace(new, y_TN=-new.y_TN), seed=0, budget=BUDGET)
    assert model.state()["slope"][0] < -0.1
