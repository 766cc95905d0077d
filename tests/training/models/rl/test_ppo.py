"""PPO, and what every actor-critic agent shares with it."""

import dataclasses
import warnings

import gymnasium.utils.env_checker
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch

from tests.training.models.rl.test_dqn import wealth_per_step
from tests.training.models.toys import VOL, learning_windows, panel_of, toy_panel
from training.dataset import window
from training.models.rl import a2c, ppo
from training.models.rl.environment import TradingEnv, Walk, observe, walks
from training.models.rl.policy import PositionEnv, actor_critic
from training.models.spec import Budget, ModelError
from training.models.torch_runtime import one_thread, private_randomness
from training.models.windows import Scaler, summary_samples

BUDGET = Budget(max_agent_steps=1500)
LOOKBACK = 5

every_agent = pytest.mark.parametrize("module", [ppo, a2c], ids=["ppo", "a2c"])


def parameters(architecture, **params):
    return {"net_width": 32} | architecture.defaults() | params


def fitted(architecture, panel, **params):
    model = architecture.model(parameters(architecture, **params), lookback=LOOKBACK)
    model.fit(*learning_windows(panel, lookback=LOOKBACK), seed=1, budget=BUDGET)
    return model


def learned(architecture, market, *, steps, agent=None, **params):
    """The network learned on walks of any making."""
    with one_thread(), private_randomness(1):
        return (agent or architecture.model).learn(
            market,
            parameters(architecture, **params),
            seed=1,
            budget=Budget(max_agent_steps=steps),
            callback=lambda *_: True,
        )


def recording(module):
    """The module's agent, and the list in which the algorithms it makes are found."""
    made = []

    def make(env, **settings):
        made.append(module.algorithm(env, **settings))
        return made[-1]

    return actor_critic(make), made


def positions(network, x_SK, held) -> np.ndarray:
    """Mean positions before clipping."""
    with torch.inference_mode():
        return network.mean(network.hidden(torch.from_numpy(observe(x_SK, held))))[:, 0].numpy()


def market_of(label_of, *, cost, num_steps=200, num_walks=8, seed=0):
    """Walks with two normal features; ``label_of`` gives their rewards."""
    rng = np.random.default_rng(seed)
    return tuple(
        Walk(x_TK=x, reward_T=np.asarray(label_of(x), dtype=np.float64), cost_T=np.full(num_steps, cost))
        for x in rng.standard_normal((num_walks, num_steps, 2)).astype(np.float32)
    )


def with_rewards_shuffled(market):
    """The same rewards, of which the features tell nothing."""
    rng = np.random.default_rng(2)
    return tuple(dataclasses.replace(walk, reward_T=rng.permutation(walk.reward_T)) for walk in market)


def same_signs(x_TK):
    return np.sign(x_TK[:, 0] * x_TK[:, 1])


def score_correlation(network, label_of) -> float:
    x_SK = np.random.default_rng(9).standard_normal((2000, 2)).astype(np.float32)
    return float(np.corrcoef(positions(network, x_SK, 0.0), label_of(x_SK))[0, 1])


@pytest.fixture(scope="module")
def noise():
    return toy_panel(memory=0.0)


@pytest.fixture(scope="module")
def toy():
    return toy_panel(memory=0.8)


@pytest.fixture(scope="module")
def taught(toy):
    """The model of each agent on the toy."""
    return {module: fitted(module.ARCHITECTURE, toy) for module in (ppo, a2c)}


@pytest.fixture
def part():
    panel = toy_panel(memory=0.5, num_times=60, num_entities=3, num_features=2)
    return window(panel, 10, 50, lookback=5, learn_T=np.arange(60) != 30)


def observed(part):
    return np.clip(part.x_TNF[part.num_history :], -5, 5)


def env_of(part, kind=PositionEnv):
    return kind(walks(part, observed(part), cost_bps=3.0))


def act(*position):
    return np.array(position, dtype=np.float32)


# The environment with positions anywhere in [-1, 1].


def test_passes_the_checkers(part):
    with warnings.catch_warnings():
        # Gymnasium warns that an environment outside its registry cannot be re-created to compare render modes.
        warnings.filterwarnings("ignore", message=".*not able to test alternative render modes.*")
        gymnasium.utils.env_checker.check_env(env_of(part))
    stable_baselines3.common.env_checker.check_env(env_of(part))


def test_whole_positions_are_those_of_the_discrete_environment(part):
    ours, theirs = env_of(part), env_of(part, TradingEnv)
    np.testing.assert_array_equal(ours.reset(options={"walk": 1})[0], theirs.reset(options={"walk": 1})[0])
    over = False
    rng = np.random.default_rng(0)
    while not over:
        choice = rng.integers(3)
        observation, reward, over, *rest = ours.step(act(choice - 1))
        expected, expected_reward, *expected_rest = theirs.step(choice)
        np.testing.assert_array_equal(observation, expected)
        assert (reward, over, *rest) == (expected_reward, *expected_rest)


def test_a_part_of_a_position_earns_and_costs_its_part_and_the_limits_hold(part):
    env = env_of(part)
    env.reset(options={"walk": 1})
    y, cost = part.y_TN[part.num_history :, 1], 3e-4 / VOL
    steps = [env.step(act(position)) for position in (0.25, -0.5, 7.0, -7.0)]
    expected = [0.25 * y[0] - 0.25 * cost, -0.5 * y[1] - 0.75 * cost, y[2] - 1.5 * cost, -y[3] - 2 * cost]
    np.testing.assert_allclose([step[1] for step in steps], expected, atol=1e-12)
    assert [step[0][-1] for step in steps] == [0.25, -0.5, 1.0, -1.0]


def test_nothing_ahead_is_observed(part):
    """Until the 8th step, episodes on data that differ only after it look and pay the same."""
    x, y = part.x_TNF.copy(), part.y_TN.copy()
    x[part.num_history + 8 :], y[part.num_history + 8 :] = 0.0, 3.0
    episodes = []
    for data in (part, dataclasses.replace(part, x_TNF=x, y_TN=y)):
        env = env_of(data)
        first, _ = env.reset(options={"walk": 2})
        steps = [env.step(act(position)) for position in np.linspace(-1, 1, 9)]
        episodes.append(([first, *[step[0] for step in steps]], [step[1] for step in steps]))
    np.testing.assert_array_equal(episodes[0][0][:8], episodes[1][0][:8])
    assert episodes[0][1][:8] == episodes[1][1][:8]
    assert episodes[0][1][8] != episodes[1][1][8]


# What the actor-critic agents share.


@every_agent
def test_an_agent_given_the_future_gets_rich_and_without_it_does_not(module, noise):
    """The first sanity test of any agent: E|y| = 0.80 a step is all there is; flipping for it costs about 0.03."""
    x = noise.x_TNF.copy()
    x[..., 0] = np.nan_to_num(noise.labels.y_TN)
    leaked = panel_of(x=x, returns=noise.returns_TN, forward=noise.labels.forward_TN)
    assert wealth_per_step(fitted(module.ARCHITECTURE, leaked), leaked) > 0.6
    assert abs(wealth_per_step(fitted(module.ARCHITECTURE, noise), noise)) < 4 / np.sqrt(198 * 6)


@every_agent
def test_the_score_is_the_expected_label(module, toy, taught):
    score = taught[module].predict(window(toy, 212, 410, lookback=LOOKBACK))
    slope = np.polyfit(score.ravel(), toy.labels.y_TN[212:410].ravel(), 1)[0]
    assert 0.7 < slope < 1.4


@every_agent
def test_the_score_by_hand(module, toy, taught):
    """Two layers of tanh, a linear mean, and the slope through the origin of the training labels on it."""
    model = taught[module]
    tensors = {name.removeprefix("actor."): array for name, array in model.state().items()}
    scaler = Scaler.from_state(model.state())

    def mean_position(samples):
        x_SK = scaler.transform(samples.x_SK[:, : samples.x_SK.shape[1] // 2])
        h = observe(x_SK, 0.0)
        for layer in ("hidden.0", "hidden.2"):
            h = np.tanh(h @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"])
        return (h @ tensors["mean.weight"].T + tensors["mean.bias"])[:, 0]

    learn = summary_samples(learning_windows(toy, lookback=LOOKBACK)[0], labelled=True)
    position_S = mean_position(learn)
    slope = position_S @ learn.y_S / (position_S @ position_S)
    test = window(toy, 212, 410, lookback=LOOKBACK)
    expected = slope * mean_position(summary_samples(test))
    np.testing.assert_allclose(model.predict(test).ravel(), expected, rtol=1e-4, atol=1e-5)


@every_agent
def test_the_clipped_position_is_the_policys_deterministic_action(module):
    agent, made = recording(module)
    network = learned(module.ARCHITECTURE, market_of(same_signs, cost=0.0), steps=600, agent=agent)
    x_SK = np.random.default_rng(1).standard_normal((50, 2)).astype(np.float32)
    for held in (-1.0, 0.0, 0.3):
        action_S1, _ = made[0].policy.predict(observe(x_SK, held), deterministic=True)
        np.testing.assert_allclose(np.clip(positions(network, x_SK, held), -1, 1), action_S1[:, 0], atol=1e-5)


@every_agent
def test_an_agent_whose_positions_lose_expects_nothing(module):
    """Barely learning, the same first weights meet labels and their opposites: one of the two must lose."""
    slopes = []
    for sign in (1.0, -1.0):
        market = market_of(lambda x, sign=sign: sign * x[:, 0], cost=0.0)
        network = learned(module.ARCHITECTURE, market, steps=300, learning_rate=1e-12)
        slopes.append(float(network.get_buffer("label_per_position")))
    assert min(slopes) == 0.0
    assert max(slopes) > 0.1


@every_agent
def test_a_score_does_not_depend_on_its_company(module, toy, taught):
    model = taught[module]
    whole = model.predict(window(toy, 212, 410, lookback=LOOKBACK))
    for alone in range(6):
        x = np.full_like(toy.x_TNF, np.nan)
        x[:, alone] = toy.x_TNF[:, alone]
        panel = dataclasses.replace(toy, x_TNF=x)
        for first, stop in ((212, 410), (250, 251), (300, 337)):
            score_T = model.predict(window(panel, first, stop, lookback=LOOKBACK))[:, alone]
            np.testing.assert_array_equal(score_T, whole[first - 212 : stop - 212, alone])


@every_agent
@pytest.mark.parametrize("steps", [8, 100, 300, 777])
def test_takes_no_more_steps_than_allowed(module, steps):
    agent, made = recording(module)
    learned(module.ARCHITECTURE, market_of(same_signs, cost=0.0), steps=steps, agent=agent)
    assert steps / 2 < made[0].num_timesteps <= steps


@every_agent
def test_too_few_steps_for_the_workers_are_refused(module):
    with pytest.raises(ModelError, match="max_agent_steps"):
        learned(module.ARCHITECTURE, market_of(same_signs, cost=0.0), steps=7)


# PPO.


def test_finds_the_best_policy_under_costs():
    """Long earns 0.3 a step and any change of the position by 1 costs 1.

    Who cares for one step only keeps whatever is held; who cares for ten enters, for 0.3 / (1 - 0.9) = 3.
    """
    x_1K = np.zeros((1, 2), dtype=np.float32)
    market = market_of(lambda x: np.full(len(x), 0.3), cost=1.0, num_steps=50)
    short_sighted = learned(ppo.ARCHITECTURE, market, steps=4000, learning_rate=3e-3, gamma=0.0)
    kept = [float(np.clip(positions(short_sighted, x_1K, held), -1, 1)[0]) for held in (-1.0, 0.0, 1.0)]
    np.testing.assert_allclose(kept, [-1, 0, 1], atol=0.4)
    far_sighted = learned(ppo.ARCHITECTURE, market, steps=4000, learning_rate=3e-3, gamma=0.9)
    assert positions(far_sighted, x_1K, 0.0)[0] > 0.6


def test_learns_what_no_line_can_and_nothing_when_the_reward_tells_nothing():
    """The label is +1 where two features agree in sign and -1 elsewhere: uncorrelated with either."""
    market = market_of(same_signs, cost=0.0)
    assert score_correlation(learned(ppo.ARCHITECTURE, market, steps=3000, gamma=0.0), same_signs) > 0.5
    told_nothing = learned(ppo.ARCHITECTURE, with_rewards_shuffled(market), steps=3000, gamma=0.0)
    assert abs(score_correlation(told_nothing, same_signs)) < 0.2
