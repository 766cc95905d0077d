"""A deep Q-network that chooses a position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from training.models.rl.environment import POSITIONS, TradingEnv, Walk, action_space, observation_space
from training.models.rl.policy import Agent, Callback, net_arch
from training.models.spec import Architecture, Budget, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: S samples, Q action values.

LEARNING_STARTS: Final = 200
TARGET_UPDATE_STEPS: Final = 200
BATCH: Final = 128


def learn(
    market: tuple[Walk, ...], params: Params, *, seed: int, budget: Budget, callback: Callback
) -> torch.nn.Module:
    """The network of Q-learning over positions -1, 0, +1, after exactly ``Budget.max_agent_steps`` steps."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.logger import Logger

    agent = DQN(
        "MlpPolicy",
        TradingEnv(market),
        seed=seed,
        device="cpu",
        learning_rate=float(params["learning_rate"]),
        gamma=float(params["gamma"]),
        policy_kwargs={"net_arch": net_arch(params)},
        buffer_size=budget.max_agent_steps,
        learning_starts=LEARNING_STARTS,
        batch_size=BATCH,
        train_freq=4,
        target_update_interval=TARGET_UPDATE_STEPS,
        exploration_fraction=0.5,
        exploration_final_eps=0.1,
    )
    agent.set_logger(Logger(folder=None, output_formats=[]))  # the default one leaves a folder for every fit
    agent.learn(budget.max_agent_steps, callback=callback)
    return agent.policy.q_net


def build(num_features: int, params: Params) -> torch.nn.Module:
    """A Q-network of the fitted one's shape."""
    from stable_baselines3.dqn.policies import DQNPolicy

    return DQNPolicy(
        observation_space(num_features), action_space(), lr_schedule=lambda _: 0.0, net_arch=net_arch(params)
    ).q_net


def score(q_SQ: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q(+1) - Q(-1)) / 2.

    Rewards are in label units, so this is the expected label plus the discounted advantage of having ended long rather
    than short, which costs keep small; it is not rescaled.
    """
    return (q_SQ[:, -1] - q_SQ[:, 0]) / 2


ARCHITECTURE = Architecture(
    name="dqn",
    family="agent",
    cost_s=1.75,
    source="Mnih et al. (2015), Human-Level Control through Deep Reinforcement Learning, Nature 518",
    model=Agent(learn=learn, build=build, prefix="q_net.", num_outputs=len(POSITIONS), score=score),
    grid={"net_width": ("w", (32,))},
    space={"learning_rate": (1e-3, 3e-4, 3e-3), "gamma": (0.5, 0.0, 0.9), "cost_bps": (3.0,)},
)
