import dataclasses

import numpy as np
import pytest

from tests.training.models.toys import learning_windows, panel_of, toy_panel
from training.dataset import window
from training.models.rl.dqn import ARCHITECTURE
from training.models.rl.environment import TradingEnv, walks
from training.models.spec import Budget

BUDGET = Budget(max_agent_steps=1500)
LOOKBACK = 5


def fitted(panel, **params):
    model = ARCHITECTURE.model({"net_width": 32} | ARCHITECTURE.defaults() | params, lookback=LOOKBACK)
    model.fit(*learning_windows(panel, lookback=LOOKBACK), seed=1, budget=BUDGET)
    return model


def wealth_per_step(model, panel) -> float:
    """Mean reward, costs included, of holding the score's sign through each entity's test targets."""
    part = window(panel, 212, 410, lookback=LOOKBACK, learn_T=np.ones(420, dtype=bool))
    actions = np.sign(model.predict(part)).astype(int) + 1
    env = TradingEnv(walks(part, np.zeros((*actions.shape, 1), dtype=np.float32), cost_bps=3.0))
    rewards = []
    for entity in range(actions.shape[1]):
        env.reset(options={"walk": entity})
        rewards += [env.step(action)[1] for action in actions[:, entity]]
    return float(np.mean(rewards))


@pytest.fixture(scope="module")
def noise():
    return toy_panel(memory=0.0)


def test_an_agent_given_the_future_gets_rich_and_without_it_does_not(noise):
    """The first sanity test of any agent: E|y| = 0.80 a step is all there is; flipping for it costs about 0.03."""
    x = noise.x_TNF.copy()
    x[..., 0] = np.nan_to_num(noise.labels.y_TN)
    leaked = panel_of(x=x, returns=noise.returns_TN, forward=noise.labels.forward_TN)
    assert wealth_per_step(fitted(leaked), leaked) > 0.6
    assert abs(wealth_per_step(fitted(noise), noise)) < 4 / np.sqrt(198 * 6)


def test_without_a_future_to_care_for_the_score_is_the_expected_label():
    """gamma 0: (Q(+1) - Q(-1)) / 2 regresses the label, so labels regressed on it have a slope near 1."""
    panel = toy_panel(memory=0.8)
    score = fitted(panel, gamma=0.0).predict(window(panel, 212, 410, lookback=LOOKBACK))
    slope = np.polyfit(score.ravel(), panel.labels.y_TN[212:410].ravel(), 1)[0]
    assert 0.7 < slope < 1.4


def test_validation_is_not_used(noise):
    train, valid = learning_windows(noise, lookback=LOOKBACK)
    other = dataclasses.replace(valid, y_TN=-valid.y_TN, x_TNF=valid.x_TNF * 2)
    states = []
    for part in (valid, other):
        model = ARCHITECTURE.model({"net_width": 8} | ARCHITECTURE.defaults(), lookback=LOOKBACK)
        model.fit(train, part, seed=1, budget=Budget(max_agent_steps=300))
        states.append(model.state())
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
