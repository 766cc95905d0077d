"""Proximal policy optimisation of a position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from training.models.rl.policy import actor_critic
from training.models.spec import Architecture

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

MINIBATCHES: Final = 4
EPOCHS: Final = 10


def algorithm(env: VecEnv, *, rollout: int, settings: dict[str, Any]) -> OnPolicyAlgorithm:
    """The clipped objective, each rollout gone over ``EPOCHS`` times in ``MINIBATCHES``."""
    from stable_baselines3 import PPO

    return PPO(env=env, batch_size=rollout // MINIBATCHES, n_epochs=EPOCHS, **settings)


ARCHITECTURE = Architecture(
    name="ppo",
    family="agent",
    cost_s=1.0,
    source="Schulman et al. (2017), Proximal Policy Optimization Algorithms, arXiv 1707.06347",
    model=actor_critic(algorithm),
    grid={"net_width": ("w", (32, 64))},
    space={
        "learning_rate": (1e-3, 3e-4, 3e-3),
        "ent_coef": (0.0, 0.01),
        "n_steps": (32, 16, 64),
        "gamma": (0.5, 0.0, 0.9),
        "cost_bps": (3.0,),
    },
)
