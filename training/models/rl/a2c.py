"""Advantage actor-critic of a position: A2C, the synchronous form of A3C.

A3C's workers each update the shared weights whenever they are done, so that no run repeats another. Here the workers
step together and one update learns from all their rollouts, which a seed makes repeatable; named A2C by Wu et al.
(2017), Scalable trust-region method for deep reinforcement learning using Kronecker-factored approximation, NeurIPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.models.rl.policy import actor_critic
from training.models.spec import Architecture

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv


def algorithm(env: VecEnv, *, rollout: int, settings: dict[str, Any]) -> OnPolicyAlgorithm:  # noqa: ARG001
    """One update by RMSProp a rollout."""
    from stable_baselines3 import A2C

    return A2C(env=env, **settings)


ARCHITECTURE = Architecture(
    name="a2c",
    family="agent",
    cost_s=0.35,
    source="Mnih et al. (2016), Asynchronous Methods for Deep Reinforcement Learning, ICML (A3C; A2C is its "
    "synchronous form)",
    model=actor_critic(algorithm),
    grid={"net_width": ("w", (32, 64))},
    space={
        "learning_rate": (1e-3, 3e-4, 3e-3),
        "ent_coef": (0.0, 0.01),
        "n_steps": (5, 16),
        "gamma": (0.5, 0.0, 0.9),
        "cost_bps": (3.0,),
    },
)
