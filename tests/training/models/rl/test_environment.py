import dataclasses
import warnings

import gymnasium.utils.env_checker
import numpy as np
import pytest
import stable_baselines3.common.env_checker

from tests.training.models.toys import VOL, toy_panel
from training.dataset import window
from training.models.rl.environment import TradingEnv, walks

LONG, FLAT, SHORT = 2, 1, 0


@pytest.fixture
def part():
    panel = toy_panel(memory=0.5, num_times=60, num_entities=3, num_features=2)
    return window(panel, 10, 50, lookback=5, learn_T=np.arange(60) != 30)


def observed(part):
    return np.clip(part.x_TNF[part.num_history :], -5, 5)


def env_of(part, *, cost_bps=3.0):
    return TradingEnv(walks(part, observed(part), cost_bps=cost_bps))


def test_passes_the_checkers(part):
    with warnings.catch_warnings():
        # Gymnasium warns that an environment outside its registry cannot be re-created to compare render modes.
        warnings.filterwarnings("ignore", message=".*not able to test alternative render modes.*")
        gymnasium.utils.env_checker.check_env(env_of(part))
    stable_baselines3.common.env_checker.check_env(env_of(part))


def test_a_walk_is_one_entity_without_its_unlabelled_target(part):
    env = env_of(part)
    for entity in range(3):
        observation, _ = env.reset(options={"walk": entity})
        seen, over = [observation], False
        while not over:
            observation, _, over, truncated, _ = env.step(FLAT)
            seen.append(observation)
            assert not truncated
        expected = np.delete(observed(part)[:, entity], 20, axis=0)
        np.testing.assert_array_equal(np.array(seen)[:-1, :2], expected)
        np.testing.assert_array_equal(seen[-1], seen[-2], "the last observation repeats")


def test_reward_is_position_times_label_less_costs(part):
    env = env_of(part, cost_bps=3.0)
    env.reset(options={"walk": 1})
    y, cost = part.y_TN[part.num_history :, 1], 3e-4 / VOL
    rewards = [env.step(action)[1] for action in (LONG, LONG, SHORT, FLAT, FLAT)]
    np.testing.assert_allclose(rewards, [y[0] - cost, y[1], -y[2] - 2 * cost, -cost, 0.0], atol=1e-12)


def test_the_position_held_is_observed(part):
    env = env_of(part)
    assert env.reset(options={"walk": 0})[0][-1] == 0
    assert [env.step(action)[0][-1] for action in (LONG, SHORT, FLAT)] == [1, -1, 0]


def test_nothing_ahead_is_observed(part):
    """Until the 8th step, episodes on data that differ only after it look and pay the same."""
    x, y = part.x_TNF.copy(), part.y_TN.copy()
    x[part.num_history + 8 :], y[part.num_history + 8 :] = 0.0, 3.0
    other = dataclasses.replace(part, x_TNF=x, y_TN=y)
    episodes = []
    for window_ in (part, other):
        env = env_of(window_)
        first, _ = env.reset(options={"walk": 2})
        steps = [env.step(action) for action in (LONG, SHORT, FLAT, LONG, LONG, SHORT, LONG, FLAT, LONG)]
        episodes.append(([first, *[step[0] for step in steps]], [step[1] for step in steps]))
    np.testing.assert_array_equal(episodes[0][0][:8], episodes[1][0][:8])
    assert episodes[0][1][:8] == episodes[1][1][:8]
    assert episodes[0][1][8] != episodes[1][1][8]


def test_entities_without_a_usable_target_have_no_walk(part):
    y = part.y_TN.copy()
    y[:, 1] = np.nan
    vol = part.vol_TN.copy()
    vol[:, 2] = 0.0
    assert len(walks(dataclasses.replace(part, y_TN=y, vol_TN=vol), observed(part), cost_bps=3.0)) == 1


def test_resets_under_a_seed_repeat_and_vary_the_entity(part):
    env, again = env_of(part), env_of(part)
    firsts = [env.reset(seed=1)[0]] + [env.reset()[0] for _ in range(20)]
    np.testing.assert_array_equal(firsts, [again.reset(seed=1)[0]] + [again.reset()[0] for _ in range(20)])
    assert len({first.tobytes() for first in firsts}) == 3
