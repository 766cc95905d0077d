import dataclasses

import numpy as np
import pytest
from statsmodels.tsa.arima.model import ARIMA

from tests.training.models.toys import VOL, learning_windows, panel_of, toy_panel
from training.dataset import window
from training.models.econometric.arima import ArimaModel, Estimator, estimate
from training.models.spec import Budget, ModelError

BUDGET = Budget()


def simulate(num, *, ar=(), ma=(), mean=0.0, seed=0):
    shocks = np.random.default_rng(seed).standard_normal(num + 50)
    z = np.zeros(num + 50)
    for t in range(2, num + 50):
        z[t] = shocks[t]
        z[t] += sum(weight * z[t - lag] for lag, weight in enumerate(ar, 1))
        z[t] += sum(weight * shocks[t - lag] for lag, weight in enumerate(ma, 1))
    return mean + z[50:]


def fitted(panel, *, lookback=10, p=1, q=0, num_components=0):
    model = ArimaModel({"p": p, "q": q, "num_components": num_components}, lookback=lookback)
    model.fit(*learning_windows(panel, lookback=lookback), seed=0, budget=BUDGET)
    return model


@pytest.mark.parametrize(
    ("ar", "ma"), [((0.6,), ()), ((-0.5,), ()), ((0.5, 0.3), ()), ((0.7,), (0.4,)), ((0.5, 0.2), (-0.4,))]
)
def test_recovers_the_parameters(ar, ma):
    found = estimate(simulate(20_000, ar=ar, ma=ma, mean=0.3), num_ar=len(ar), num_ma=len(ma))
    np.testing.assert_allclose(found.ar_P, ar, atol=0.05)
    np.testing.assert_allclose(found.ma_Q, ma, atol=0.05)
    assert found.mean == pytest.approx(0.3, abs=0.15)


def test_is_as_good_as_exact_maximum_likelihood():
    returns = simulate(252, ar=(0.5,), ma=(0.3,))
    found = estimate(returns, num_ar=1, num_ma=1)
    exact = ARIMA(returns - returns.mean(), order=(1, 0, 1), trend="n").fit()
    np.testing.assert_allclose([*found.ar_P, *found.ma_Q], exact.params[:2], atol=0.05)


def test_white_noise_is_estimated_all_the_same():
    """Where the regressions end outside the stable region, the likelihood takes over."""
    found = [estimate(simulate(252, seed=seed), num_ar=1, num_ma=1) for seed in range(12)]
    assert {entity.estimator for entity in found} >= {Estimator.HANNAN_RISSANEN, Estimator.INNOVATIONS_MLE}
    assert all(abs(weight) < 1 for entity in found for weight in [*entity.ar_P, *entity.ma_Q])


@pytest.mark.parametrize(
    "returns", [np.array([]), np.full(200, 0.3), simulate(59, ar=(0.5,)), np.cumsum(np.ones(300)) ** 3]
)
def test_degenerate_returns_fall_back_to_their_mean(returns):
    found = estimate(returns, num_ar=1, num_ma=1)
    assert found.estimator is Estimator.MEAN
    np.testing.assert_array_equal([*found.ar_P, *found.ma_Q], [0, 0])
    assert found.mean == (returns.mean() if len(returns) else 0)


def test_score_of_an_ar1_in_closed_form():
    panel = toy_panel(memory=0.7)
    model = fitted(panel)
    mean, ar = model.state()["mean"], model.state()["ar"][:, 0]
    score = model.predict(window(panel, 300, 400, lookback=10))
    np.testing.assert_allclose(score, (mean + ar**2 * (panel.returns_TN[300:400] - mean)) / VOL, rtol=1e-9)


def test_filter_agrees_with_statsmodels_over_a_long_lookback():
    panel = toy_panel(memory=0.6, num_entities=2)
    model = fitted(panel, lookback=200, p=2, q=1)
    score = model.predict(window(panel, 350, 351, lookback=200))[0]
    for n in range(2):
        state = {name: array[n] for name, array in model.state().items() if name in {"mean", "ar", "ma"}}
        reference = ARIMA(panel.returns_TN[151:351, n] - state["mean"], order=(2, 0, 1), trend="n")
        ahead = reference.filter([*state["ar"], *state["ma"], VOL**2]).forecast(2)[1]
        # The exact filter starts from the stationary distribution, ours from the mean: the difference has decayed.
        np.testing.assert_allclose(score[n], (state["mean"] + ahead) / VOL, rtol=1e-3)


def test_a_missing_return_counts_as_the_expected_one():
    panel = toy_panel(memory=0.7)
    model = fitted(panel)
    mean, ar = model.state()["mean"], model.state()["ar"][:, 0]
    returns = panel.returns_TN.copy()
    returns[350] = np.nan
    score = model.predict(window(dataclasses.replace(panel, returns_TN=returns), 350, 351, lookback=10))[0]
    np.testing.assert_allclose(score, (mean + ar**3 * (panel.returns_TN[349] - mean)) / VOL, rtol=1e-9)


def test_no_volatility_no_forecast():
    panel = toy_panel(memory=0.7)
    vol = panel.vol_TN.copy()
    vol[350, 0], vol[350, 1] = np.nan, 0.0
    score = fitted(panel).predict(window(dataclasses.replace(panel, vol_TN=vol), 350, 351, lookback=10))[0]
    np.testing.assert_array_equal(np.isnan(score), [True, True, False, False, False, False])


def test_components_learn_what_the_returns_do_not_tell():
    """White returns whose label a feature knows: only the regression sees it, and it gives the ridge's share of it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((420, 6, 3)).astype(np.float32)
    x[..., 1] = x[..., 0] + 0.1 * rng.standard_normal((420, 6))
    label = 0.6 * x[..., 0] + 0.8 * rng.standard_normal((420, 6))
    panel = panel_of(x=x, returns=VOL * rng.standard_normal((420, 6)), forward=VOL * label)
    test = window(panel, 212, 410, lookback=10)
    with_features, without = (fitted(panel, num_components=k).predict(test) for k in (1, 0))
    assert np.corrcoef(with_features.ravel(), label[212:410].ravel())[0, 1] > 0.5
    assert abs(np.corrcoef(without.ravel(), label[212:410].ravel())[0, 1]) < 0.1


def test_all_components_are_the_full_ridge():
    from training.models.econometric.arima import RIDGE_SHARE, _component_regression

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 4)), rng.standard_normal(300)
    centred = x - x.mean(axis=0)
    ridge = np.linalg.solve(centred.T @ centred + RIDGE_SHARE * 300 * np.eye(4), centred.T @ y)
    np.testing.assert_allclose(_component_regression(x, y, 4), ridge, rtol=1e-9)
    np.testing.assert_array_equal(_component_regression(x, y, 0), np.zeros(4))


def test_returns_whose_label_is_hidden_are_not_learned():
    """Purged targets may lie next to a test block: their returns are as forbidden as their labels."""
    panel = toy_panel(memory=0.7)
    learn = np.arange(420) < 130
    changed = panel.returns_TN.copy()
    changed[130:160] *= -5
    states = []
    for returns, seen in ((panel.returns_TN, learn), (changed, learn), (changed, np.ones(420, dtype=bool))):
        train = window(dataclasses.replace(panel, returns_TN=returns), 20, 160, lookback=10, learn_T=seen)
        model = ArimaModel({"p": 1, "q": 0, "num_components": 0}, lookback=10)
        model.fit(train, train, seed=0, budget=BUDGET)
        states.append(model.state()["ar"])
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).any()


def test_one_entity_without_returns_gets_the_mean_and_all_fail_the_fit():
    panel = toy_panel(memory=0.7)
    flat = panel.returns_TN.copy()
    flat[:, 2] = 0.0
    model = fitted(dataclasses.replace(panel, returns_TN=flat))
    assert model.state()["estimator"].tolist() == [1, 1, 0, 1, 1, 1]
    with pytest.raises(ModelError, match="any of 6 entities"):
        fitted(dataclasses.replace(panel, returns_TN=np.zeros_like(flat)))


def test_entities_must_be_those_it_was_fitted_on():
    model = fitted(toy_panel(memory=0.7))
    with pytest.raises(ModelError, match="4 entities for an ARIMA of 6"):
        model.predict(window(toy_panel(memory=0.7, num_entities=4), 300, 310, lookback=10))
