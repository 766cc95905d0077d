"""A2C; what it shares with PPO is in ``test_ppo.py``."""

import numpy as np

from tests.training.models.rl.test_ppo import learned, market_of, recording, score_correlation, with_rewards_shuffled
from training.models.rl import a2c, ppo
from training.models.rl.policy import WORKERS


def size(x_TK):
    return 2 * (np.abs(x_TK[:, 0]) - 0.8)


def test_one_update_learns_from_a_rollout_of_all_the_workers():
    """What makes it the synchronous form; PPO goes over each rollout many times."""
    market = market_of(size, cost=0.0)
    updates = {}
    for module in (a2c, ppo):
        agent, made = recording(module)
        learned(module.ARCHITECTURE, market, steps=10 * 16 * WORKERS, agent=agent, n_steps=16)
        assert (made[0].n_steps, made[0].n_envs) == (16, WORKERS)
        assert made[0].num_timesteps == 10 * 16 * WORKERS
        updates[module] = int(made[0].policy.optimizer.state_dict()["state"][0]["step"])
    assert updates == {a2c: 10, ppo: 10 * ppo.EPOCHS * ppo.MINIBATCHES}


def test_learns_what_no_line_can_and_nothing_when_the_reward_tells_nothing():
    """The label grows with the size of a feature, whatever its sign: uncorrelated with it."""
    market = market_of(size, cost=0.0)
    assert score_correlation(learned(a2c.ARCHITECTURE, market, steps=6000, gamma=0.0), size) > 0.25
    told_nothing = learned(a2c.ARCHITECTURE, with_rewards_shuffled(market), steps=6000, gamma=0.0)
    assert abs(score_correlation(told_nothing, size)) < 0.2
