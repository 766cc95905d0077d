import dataclasses

import numpy as np
import pytest
from statsmodels.tsa.api import VAR

from tests.training.models.toys import VOL, learning_windows, panel_of, toy_panel
from training.dataset import window
from training.models.econometric.arima import ArimaModel
from training.models.econometric.returns import MEMORY_ROWS
from training.models.econometric.var import VarModel
from training.models.spec import Budget, ModelError

BUDGET = Budget()
LOOSE = 1e4
LEADER = np.array([[0.7, 0.0, 0.0], [0.6, 0.0, 0.0], [-0.6, 0.0, 0.0]])  # the first entity leads the others


def var_panel(matrix, *, num_times=420, seed=0, cause=1.0):
    """Returns of a VAR(1) of that matrix, in volatilities; the label is the return after the next."""
    rng = np.random.default_rng(seed)
    z = np.zeros((num_times, len(matrix)))
    for t in range(1, num_times):
        z[t] = matrix @ z[t - 1] + rng.standard_normal(len(matrix))
    forward = np.full_like(z, np.nan)
    forward[:-2] = VOL * z[2:]
    x = rng.standard_normal((*z.shape, 2)).astype(np.float32)
    return panel_of(x=x, returns=VOL * z, forward=forward)


def fitted(panel, *, lookback=10, p=1, tightness=0.2, cross_tightness=0.2, last=160):
    model = VarModel({"p": p, "tightness": tightness, "cross_tightness": cross_tightness}, lookback=lookback)
    train = window(panel, 20, last, lookback=lookback, learn_T=np.ones(len(panel.sample_times_T), dtype=bool))
    model.fit(train, train, seed=0, budget=BUDGET)
    return model


def standardised(model, returns):
    state = model.state()
    z = np.clip((returns - state["returns.mean"]) / state["returns.deviation"], -5, 5)
    return np.where(state["returns.enough"], np.nan_to_num(z), 0.0)


def design(z, first, last, *, p, lookback):
    """Rows first..last-1: the last p values, newest first, and the mean of the lookback before each."""
    rows = range(first, last)
    return np.array([[*z[t - p : t][::-1].ravel(), *z[t - lookback : t].mean(axis=0)] for t in rows])


@pytest.mark.parametrize("p", [1, 2])
def test_without_shrinkage_it_is_statsmodels(p):
    panel = var_panel(LEADER)
    model = fitted(panel, p=p, tightness=LOOSE, cross_tightness=LOOSE)
    z = standardised(model, panel.returns_TN)
    means = np.array([z[t - 10 : t].mean(axis=0) for t in range(21, 160)])
    # Its rows are those it can lag: the p rows before ours come with means that nobody reads.
    endog, exog = z[21 - p : 160], np.vstack([np.zeros((p, 3)), means])
    params = VAR(endog, exog).fit(p, trend="n").params
    got = model.state()["weight"]
    np.testing.assert_allclose(np.vstack([got[-1].T, *(got[b].T for b in range(p))]), params, atol=1e-6)


def test_recovers_the_matrix():
    panel = var_panel(LEADER, num_times=8000)
    weight = fitted(panel, last=7900, tightness=LOOSE, cross_tightness=LOOSE).state()["weight"]
    deviation = np.std(panel.returns_TN[20:7900], axis=0)
    np.testing.assert_allclose(weight[0] * deviation[:, None] / deviation, LEADER, atol=0.05)
    np.testing.assert_allclose(weight[1], 0, atol=0.1)


@pytest.mark.parametrize("holes", [False, True])
def test_shrinkage_is_the_ridge_of_the_prior(holes):
    """Each equation solved on its own known rows, plainly."""
    panel = var_panel(LEADER)
    if holes:
        returns = panel.returns_TN.copy()
        returns[60:75, 1] = returns[90, :] = np.nan
        panel = dataclasses.replace(panel, returns_TN=returns)
    model = fitted(panel, p=2, tightness=0.3, cross_tightness=0.1)
    z = standardised(model, panel.returns_TN)
    x = design(z, 21, 160, p=2, lookback=10)
    lag = np.repeat([1.0, 2.0, 1.0], 3)
    for n in range(3):
        own = np.tile(np.arange(3) == n, 3)
        spread = np.where(own, 0.3, 0.1 / np.sqrt(2)) / lag
        known = np.isfinite(panel.returns_TN[21:160, n])
        gram = x[known].T @ x[known] + np.diag(spread**-2)
        plain = np.linalg.solve(gram, x[known].T @ z[21:160, n][known])
        np.testing.assert_allclose(model.state()["weight"][:, n].ravel(), plain, rtol=1e-8, atol=1e-12)


def test_score_is_two_steps_of_the_recursion():
    panel = var_panel(LEADER)
    model = fitted(panel, p=2)
    score = model.predict(window(panel, 300, 320, lookback=10))
    weight, state = model.state()["weight"], model.state()
    for row, t in enumerate(range(300, 320)):
        z = list(standardised(model, panel.returns_TN[t - 9 : t + 1]))
        for _ in range(2):
            z.append(weight[0] @ z[-1] + weight[1] @ z[-2] + weight[2] @ np.mean(z[-10:], axis=0))
        expected = (state["returns.mean"] + state["returns.deviation"] * z[-1]) / VOL
        np.testing.assert_allclose(score[row], expected, rtol=1e-9)


def test_learns_who_leads_whom_as_no_univariate_model_can():
    """The followers' own past tells little: what they will do is in the leader's."""
    panel = var_panel(LEADER, num_times=700)
    test = window(panel, 400, 690, lookback=10)
    arima = ArimaModel({"p": 2, "q": 1, "num_components": 0}, lookback=10)
    train, _ = learning_windows(panel, lookback=10)
    arima.fit(train, train, seed=0, budget=BUDGET)
    label = panel.labels.y_TN[400:690, 1:].ravel()
    ours, theirs = (
        np.corrcoef(model.predict(test)[:, 1:].ravel(), label)[0, 1] for model in (fitted(panel, p=1), arima)
    )
    assert ours > 0.3
    assert ours > theirs + 0.1


def test_many_noisy_entities_are_shrunk_to_next_to_nothing():
    """100 entities on 139 rows: without shrinkage the fit would be almost perfect and worthless."""
    panel = toy_panel(memory=0.0, num_entities=100)
    weight = fitted(panel, p=2).state()["weight"]
    assert weight.shape == (3, 100, 100)
    assert np.abs(weight).max() < 0.3
    loose = fitted(panel, p=2, tightness=LOOSE, cross_tightness=LOOSE).state()["weight"]
    assert (weight**2).sum() < 0.02 * (loose**2).sum()


def test_the_long_run_mean_is_a_memory_beyond_the_lags():
    """Two variants that differ in the lookback alone are two models."""
    panel = toy_panel(memory=0.7)
    short, long = (
        fitted(panel, lookback=lookback).predict(window(panel, 300, 301, lookback=lookback)) for lookback in (7, 30)
    )
    assert (short != long).all()


def test_an_entity_without_returns_neither_explains_nor_is_explained():
    panel = var_panel(LEADER)
    returns = panel.returns_TN.copy()
    returns[:160, 1] = np.nan
    without = dataclasses.replace(panel, returns_TN=returns)
    weight = fitted(without).state()["weight"]
    np.testing.assert_array_equal(weight[:, 1, :], 0)
    np.testing.assert_array_equal(weight[:, :, 1], 0)
    assert (weight[0][np.ix_([0, 2], [0, 2])] != 0).all()
    score = fitted(without).predict(window(without, 300, 310, lookback=10))
    np.testing.assert_array_equal(score[:, 1], 0)
    with pytest.raises(ModelError, match="none of 3 entities"):
        fitted(dataclasses.replace(panel, returns_TN=np.zeros_like(returns)))


def test_one_entity_alone_is_an_autoregression():
    panel = toy_panel(memory=0.7, num_entities=1)
    assert fitted(panel).state()["weight"][0, 0, 0] > 0.4


def test_no_volatility_no_forecast():
    panel = toy_panel(memory=0.7)
    vol = panel.vol_TN.copy()
    vol[350, 0], vol[350, 1] = np.nan, 0.0
    score = fitted(panel).predict(window(dataclasses.replace(panel, vol_TN=vol), 350, 351, lookback=10))[0]
    np.testing.assert_array_equal(np.isnan(score), [True, True, False, False, False, False])


def test_returns_whose_label_is_hidden_are_not_learned():
    panel = toy_panel(memory=0.7)
    changed = panel.returns_TN.copy()
    changed[130:160] *= -5
    states = []
    for returns, seen in ((panel.returns_TN, 130), (changed, 130), (changed, 420)):
        learn = np.arange(420) < seen
        train = window(dataclasses.replace(panel, returns_TN=returns), 20, 160, lookback=10, learn_T=learn)
        model = VarModel({"p": 1, "tightness": 0.2, "cross_tightness": 0.2}, lookback=10)
        model.fit(train, train, seed=0, budget=BUDGET)
        states.append(model.state()["weight"])
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).all()


def test_entities_must_be_those_it_was_fitted_on():
    model = fitted(toy_panel(memory=0.7))
    with pytest.raises(ModelError, match="4 entities for a model of 6"):
        model.predict(window(toy_panel(memory=0.7, num_entities=4), 300, 310, lookback=10))


@pytest.mark.parametrize("p", [1, 2])
def test_an_update_is_the_posterior_around_the_present_coefficients(p):
    """Each equation solved plainly: the prior's precision is the fit's and MEMORY_ROWS of unit regressors."""
    returns = var_panel(LEADER).returns_TN.copy()
    returns[210:225, 1] = returns[240, :] = np.nan
    panel = dataclasses.replace(var_panel(LEADER), returns_TN=returns)
    model = fitted(panel, p=p)
    before = model.state()["weight"]
    new = window(panel, 200, 300, lookback=10, learn_T=np.arange(420) < 290)
    model.update(new, seed=0, budget=BUDGET)
    z = standardised(model, panel.returns_TN)
    x = design(z, 201, 290, p=p, lookback=10)
    lag = np.repeat([*range(1, p + 1), 1.0], 3)
    for n in range(3):
        own = np.tile(np.arange(3) == n, p + 1)
        precision = np.where(own, 0.2, 0.2 / np.sqrt(2)) ** -2.0 * lag**2 + MEMORY_ROWS
        known = np.isfinite(panel.returns_TN[201:290, n])
        gram = x[known].T @ x[known] + np.diag(precision)
        want = np.linalg.solve(gram, x[known].T @ z[201:290, n][known] + precision * before[:, n].ravel())
        np.testing.assert_allclose(model.state()["weight"][:, n].ravel(), want, rtol=1e-8, atol=1e-12)


def test_one_new_decision_tells_nothing():
    panel = toy_panel(memory=0.7)
    model = fitted(panel)
    new = window(panel, 200, 201, lookback=10, learn_T=np.ones(420, dtype=bool))
    with pytest.raises(ModelError, match="of 1 targets none but the first"):
        model.update(new, seed=0, budget=BUDGET)
