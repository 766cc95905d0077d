import dataclasses
from pathlib import Path

import numpy as np
import pytest
from arch import arch_model

from tests.training.models.toys import VOL, learning_windows, panel_of, toy_panel
from training.dataset import window
from training.models.econometric.garch import (
    GarchModel,
    estimate,
    negative_log_likelihood,
    negative_log_likelihood_python,
)
from training.models.spec import Budget, ModelError

REFERENCE = Path(__file__).resolve().parents[4] / "../shared/data/reference/reference_bg96_dem_gbp.parquet"
BUDGET = Budget()
GARCH_11 = {"num_ar": 1, "num_shocks": 1, "num_variances": 1}


def simulate(num, *, omega=0.1, alpha=(0.15,), beta=(0.75,), ar=0.0, seed=0):
    normal = np.random.default_rng(seed).standard_normal(num + 200)
    r, shock, variance = (np.zeros(num + 200) for _ in range(3))
    variance[:2] = omega / (1 - sum(alpha) - sum(beta))
    for t in range(2, num + 200):
        variance[t] = omega + sum(a * shock[t - i] ** 2 for i, a in enumerate(alpha, 1))
        variance[t] += sum(b * variance[t - j] for j, b in enumerate(beta, 1))
        shock[t] = np.sqrt(variance[t]) * normal[t]
        r[t] = ar * r[t - 1] + shock[t]
    return r[200:]


def garch_panel(*, num_times=900, num_entities=2, **params):
    z = np.column_stack([simulate(num_times, seed=n, **params) for n in range(num_entities)])
    forward = np.full_like(z, np.nan)
    forward[:-2] = VOL * z[2:]
    return panel_of(x=z[..., None].astype(np.float32), returns=VOL * z, forward=forward)


def fitted(panel, *, lookback=10, last=160, p=1, q=1, num_ar=1):
    model = GarchModel({"p": p, "q": q, "num_ar": num_ar}, lookback=lookback)
    train = window(panel, 20, last, lookback=lookback, learn_T=np.ones(len(panel.sample_times_T), dtype=bool))
    model.fit(train, train, seed=0, budget=BUDGET)
    return model


def score_by_hand(model, n, returns, *, ahead=2):
    """One entity's score by the textbook's recursion, a return at a time."""
    state = {name: array[n] for name, array in model.state().items()}
    before, doubt, shocks, variances = state["returns.mean"], 0.0, [], []
    past = lambda values, lag: values[-lag] if len(values) >= lag else state["start"]  # noqa: E731
    for r in [*returns, *[np.nan] * ahead]:
        expected = state["intercept"] + state["ar"] * before
        variance = state["start"]
        if variances:
            variance = state["omega"] + sum(a * past(shocks, i) for i, a in enumerate(state["alpha"], 1))
            variance += sum(b * past(variances, j) for j, b in enumerate(state["beta"], 1))
        total = variance + state["ar"] ** 2 * doubt
        shocks.append((r - expected) ** 2 if np.isfinite(r) else variance)
        variances.append(variance)
        before, doubt = (r, 0.0) if np.isfinite(r) else (expected, total)
    return expected / np.sqrt(total)


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"{REFERENCE} is not here")
def test_published_estimates_of_bollerslev_and_ghysels():
    import pyarrow.parquet

    returns = pyarrow.parquet.read_table(REFERENCE)["return_pct"].to_numpy()
    found = estimate(returns, **GARCH_11 | {"num_ar": 0})
    got = [found.omega, *found.alpha_P, *found.beta_Q]
    # The estimates of ARCHModels.jl, which too takes the backcast for the variance of the first return.
    np.testing.assert_allclose(got, [0.0107606, 0.153411, 0.805875], rtol=1e-4)
    assert found.intercept == pytest.approx(-0.00616637, rel=1e-4)
    # Fiorentini, Calzolari and Panattoni (1996): that variance is omega + (alpha + beta) backcast; it matters little.
    np.testing.assert_allclose(got, [0.0107613, 0.153134, 0.805974], rtol=2e-3)
    assert found.start == pytest.approx(returns.var())


@pytest.mark.parametrize(
    ("alpha", "beta", "ar"), [((0.15,), (0.75,), 0.4), ((0.1, 0.2), (0.6,), 0.0), ((0.3,), (0.2, 0.4), -0.3)]
)
def test_recovers_the_parameters(alpha, beta, ar):
    returns = 0.01 * simulate(20_000, alpha=alpha, beta=beta, ar=ar)
    found = estimate(returns, num_ar=1, num_shocks=len(alpha), num_variances=len(beta))
    np.testing.assert_allclose(found.alpha_P, alpha, atol=0.05)
    np.testing.assert_allclose(found.beta_Q, beta, atol=0.1)
    assert found.ar == pytest.approx(ar, abs=0.03)
    assert found.omega == pytest.approx(1e-4 * 0.1, rel=0.3)


def test_white_noise_is_estimated_all_the_same():
    found = [estimate(np.random.default_rng(n).standard_normal(252), **GARCH_11) for n in range(20)]
    assert None not in found
    assert all(min(g.alpha_P[0], g.beta_Q[0]) >= 0 and g.alpha_P[0] + g.beta_Q[0] < 1 for g in found)


@pytest.mark.parametrize(("num_shocks", "num_variances"), [(1, 1), (2, 2)])
def test_is_as_likely_as_what_arch_finds(num_shocks, num_variances):
    """On series as short as ours the parameters are weakly determined: the likelihood counts."""
    orders = {"num_shocks": num_shocks, "num_variances": num_variances}
    for seed in range(10):
        z = simulate(252, seed=seed)
        z = (z - z.mean()) / z.std()
        found = estimate(z, num_ar=0, **orders)
        reference = arch_model(z, p=num_shocks, q=num_variances, rescale=False)
        theirs = reference.fit(disp="off", show_warning=False, backcast=1.0).params.to_numpy()
        before, ours = np.zeros(252), [found.intercept, 0.0, found.omega, *found.alpha_P, *found.beta_Q]
        losses = [
            negative_log_likelihood(z, before, np.array(theta), num_shocks, 1.0)[0]
            for theta in (ours, [theirs[0], 0.0, *theirs[1:]])
        ]
        assert losses[0] < losses[1] + 2e-3


@pytest.mark.parametrize(("num_shocks", "num_variances"), [(1, 1), (2, 1), (1, 2)])
def test_likelihood_gradient_and_its_compiled_twin(num_shocks, num_variances):
    z = simulate(60)
    before = np.concatenate([[0.0], z[:-1]])
    theta = np.array([0.1, 0.3, 0.2, *[0.2 / num_shocks] * num_shocks, *[0.6 / num_variances] * num_variances])
    loss, gradient = negative_log_likelihood_python(z, before, theta, num_shocks, 1.5)
    compiled = negative_log_likelihood(z, before, theta, num_shocks, 1.5)
    assert compiled[0] == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(compiled[1], gradient, rtol=1e-10)
    steps = 1e-6 * np.eye(len(theta))
    up, down = (
        [negative_log_likelihood_python(z, before, theta + sign * step, num_shocks, 1.5)[0] for step in steps]
        for sign in (1, -1)
    )
    np.testing.assert_allclose(gradient, (np.array(up) - down) / 2e-6, atol=1e-8)


def test_likelihood_is_that_of_arch():
    """Apart from the first return, of which each assumes another variance."""
    z = simulate(300)
    params = np.array([0.05, 0.2, 0.15, 0.7])
    theirs = arch_model(z, rescale=False).fix(params)
    start = theirs.conditional_volatility[0] ** 2
    ours = negative_log_likelihood_python(z, np.zeros(300), np.array([0.05, 0.0, *params[1:]]), 1, start)[0]
    # Before the second return there is nothing but the first: from there on the recursions are one.
    assert -300 * (ours + 0.5 * np.log(2 * np.pi)) == pytest.approx(theirs.loglikelihood, rel=1e-10)


@pytest.mark.parametrize(("p", "q", "num_ar"), [(1, 1, 1), (2, 1, 0), (1, 2, 1), (2, 2, 1)])
def test_score_is_the_textbook_recursion_over_the_lookback(p, q, num_ar):
    panel = garch_panel(ar=0.4)
    returns = panel.returns_TN.copy()
    returns[705:707, 0] = np.nan
    panel = dataclasses.replace(panel, returns_TN=returns)
    model = fitted(panel, p=p, q=q, num_ar=num_ar, last=600)
    score = model.predict(window(panel, 700, 720, lookback=10))
    by_hand = [[score_by_hand(model, n, returns[t - 9 : t + 1, n]) for n in range(2)] for t in range(700, 720)]
    np.testing.assert_allclose(score, by_hand, rtol=1e-9)


def test_forecast_agrees_with_arch_over_a_long_lookback():
    panel = garch_panel(ar=0.4)
    model = fitted(panel, last=600, lookback=300)
    score = model.predict(window(panel, 800, 801, lookback=300))[0]
    for n in range(2):
        state = {name: array[n] for name, array in model.state().items()}
        params = [state["intercept"], state["ar"], state["omega"], *state["alpha"], *state["beta"]]
        reference = arch_model(panel.returns_TN[501:801, n], mean="AR", lags=1, p=1, q=1, rescale=False).fix(params)
        ahead = reference.forecast(horizon=2)
        expected = ahead.mean.to_numpy()[-1, 1] / np.sqrt(ahead.variance.to_numpy()[-1, 1])
        # Its backcast is another one: over 300 returns that has decayed.
        assert score[n] == pytest.approx(expected, rel=1e-6)


def test_forecasts_volatility_where_a_constant_one_cannot():
    """A constant mean over the forecast: its inverse is the volatility, and the likelihood prefers it."""
    panel = garch_panel(num_entities=4, alpha=(0.3,), beta=(0.6,))
    panel = dataclasses.replace(panel, returns_TN=panel.returns_TN + 0.1 * VOL)
    model = fitted(panel, num_ar=0, last=600, lookback=30)
    forecast = model.state()["intercept"] / model.predict(window(panel, 620, 890, lookback=30))
    square = (panel.returns_TN[622:892] - 0.1 * VOL) ** 2
    loss = [np.mean(np.log(v) + square / v) for v in (forecast**2, model.state()["returns.deviation"] ** 2)]
    assert loss[0] < loss[1] - 0.1


def test_a_score_needs_no_volatility_from_outside():
    panel = toy_panel(memory=0.7)
    unknown = dataclasses.replace(panel, vol_TN=np.full_like(panel.vol_TN, np.nan))
    model = fitted(panel)
    scores = [model.predict(window(data, 300, 320, lookback=10)) for data in (panel, unknown)]
    np.testing.assert_array_equal(*scores)


def test_no_stable_maximum_is_none():
    assert estimate(np.arange(1.0, 301.0) ** 3, **GARCH_11) is None


def test_an_entity_that_cannot_be_estimated_is_constant():
    panel = toy_panel(memory=0.7)
    returns = panel.returns_TN.copy()
    returns[:, 2] = 0.0
    returns[:, 4] = 1e-9 * np.arange(420.0) ** 3
    state = fitted(dataclasses.replace(panel, returns_TN=returns)).state()
    np.testing.assert_array_equal(state["alpha"][[2, 4]], 0)
    np.testing.assert_array_equal(state["ar"][[2, 4]], 0)
    assert state["omega"][2] == pytest.approx(np.median(state["returns.deviation"][[0, 1, 3, 4, 5]]) ** 2)
    assert state["omega"][4] == pytest.approx(returns[20:160, 4].var())
    with pytest.raises(ModelError, match="none of 6 entities"):
        fitted(dataclasses.replace(panel, returns_TN=np.zeros_like(returns)))


def test_returns_whose_label_is_hidden_are_not_learned():
    panel = toy_panel(memory=0.7)
    changed = panel.returns_TN.copy()
    changed[130:160] *= -5
    states = []
    for returns, seen in ((panel.returns_TN, 130), (changed, 130), (changed, 420)):
        learn = np.arange(420) < seen
        train = window(dataclasses.replace(panel, returns_TN=returns), 20, 160, lookback=10, learn_T=learn)
        model = GarchModel({"p": 1, "q": 1, "num_ar": 1}, lookback=10)
        model.fit(train, train, seed=0, budget=BUDGET)
        states.append(model.state()["omega"])
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).all()


def test_entities_must_be_those_it_was_fitted_on():
    model = fitted(toy_panel(memory=0.7))
    with pytest.raises(ModelError, match="4 entities for a model of 6"):
        model.predict(window(toy_panel(memory=0.7, num_entities=4), 300, 310, lookback=10))


def test_a_deadline_fails_the_fit_between_entities():
    model = GarchModel({"p": 1, "q": 1, "num_ar": 1}, lookback=10)
    with pytest.raises(ModelError, match="entity 1 of 6"):
        model.fit(*learning_windows(toy_panel(memory=0.7), lookback=10), seed=0, budget=Budget(deadline_s=0.0))
