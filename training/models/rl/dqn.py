"""A deep Q-network that chooses a position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.rl.environment import POSITIONS, TradingEnv, action_space, observation_space, observe, walks
from training.models.spec import Architecture, Budget, Params, State
from training.models.state import load_state, save_state
from training.models.torch_runtime import (
    one_thread,
    private_randomness,
    restore_tensors,
    score_in_chunks,
    tensors_state,
)
from training.models.windows import Scaler, require_labels, scatter_TN, summarise, summary_samples

if TYPE_CHECKING:
    from stable_baselines3.dqn.policies import DQNPolicy

# Tensor suffixes: T targets, N entities, S samples, F features, K = 2 F observed ones, Q action values.

NETWORK: Final = "q_net."
LEARNING_STARTS: Final = 200
TARGET_UPDATE_STEPS: Final = 200
BATCH: Final = 128


class DQNModel:
    """Q-learning over positions -1, 0, +1 in ``TradingEnv``; observed are each feature's last value and lookback mean.

    The score is (Q(+1) - Q(-1)) / 2 with no position held. Rewards are in label units, so this is the expected label
    plus the discounted advantage of having ended long rather than short, which costs keep small; it is not rescaled.
    Trained for exactly ``Budget.max_agent_steps`` steps; the validation window is not used.

    Source: Mnih, V. et al. (2015), Human-level control through deep reinforcement learning, Nature 518.
    """

    def __init__(self, params: Params, *, lookback: int) -> None:
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002
        from stable_baselines3 import DQN
        from stable_baselines3.common.logger import Logger

        deadline = Deadline(budget)
        samples = summary_samples(train, labelled=True)
        require_labels(samples.y_S)
        self._scaler = Scaler.fit(_observed(samples.x_SK))
        x_TNK = self._scaler.transform(_observed(summarise(train)))
        env = TradingEnv(walks(train, x_TNK, cost_bps=float(self._params["cost_bps"])))
        with one_thread(), private_randomness(seed):
            agent = DQN(
                "MlpPolicy",
                env,
                seed=seed,
                device="cpu",
                learning_rate=float(self._params["learning_rate"]),
                gamma=float(self._params["gamma"]),
                policy_kwargs={"net_arch": _net_arch(self._params)},
                buffer_size=budget.max_agent_steps,
                learning_starts=LEARNING_STARTS,
                batch_size=BATCH,
                train_freq=4,
                target_update_interval=TARGET_UPDATE_STEPS,
                exploration_fraction=0.5,
                exploration_final_eps=0.1,
            )
            agent.set_logger(Logger(folder=None, output_formats=[]))  # the default one leaves a folder for every fit
            agent.learn(budget.max_agent_steps, callback=_checking(deadline))
        self._use(agent.policy)

    def predict(self, window: Window) -> NDArray[np.float64]:
        samples = summary_samples(window)
        observations = observe(self._scaler.transform(_observed(samples.x_SK)), 0.0)
        q_SQ = score_in_chunks(self._q_net, observations, num_outputs=len(POSITIONS))
        return scatter_TN(window, (q_SQ[:, -1] - q_SQ[:, 0]) / 2, samples.index_S2)

    def state(self) -> State:
        return {NETWORK + name: array for name, array in tensors_state(self._q_net).items()} | self._scaler.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, state = load_state(folder)
        model = cls(params, lookback=params.pop("lookback"))
        model._scaler = Scaler.from_state(state)
        model._use(_policy(len(model._scaler.centre_F), params))
        tensors = {name.removeprefix(NETWORK): array for name, array in state.items() if name.startswith(NETWORK)}
        restore_tensors(model._q_net, tensors)
        return model

    def _use(self, policy: DQNPolicy) -> None:
        policy.set_training_mode(False)
        self._q_net = policy.q_net


def _observed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first two blocks of the summaries along the last axis: last value and mean."""
    return x[..., : x.shape[-1] // 2]


def _net_arch(params: Params) -> list[int]:
    return [int(params["net_width"])] * 2


def _checking(deadline: Deadline) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """A stable-baselines3 callback, run after every step of the environment; True goes on."""

    def check(local: dict[str, Any], _: dict[str, Any]) -> bool:
        deadline.check(f"step {local['self'].num_timesteps}")
        return True

    return check


def _policy(num_features: int, params: Params) -> DQNPolicy:
    """A policy of the fitted one's shape, its weights still to be restored."""
    from stable_baselines3.dqn.policies import DQNPolicy

    with private_randomness(0):
        return DQNPolicy(
            observation_space(num_features), action_space(), lr_schedule=lambda _: 0.0, net_arch=_net_arch(params)
        )


ARCHITECTURE = Architecture(
    name="dqn",
    family="agent",
    source="Mnih et al. (2015), Human-Level Control through Deep Reinforcement Learning, Nature 518",
    model=DQNModel,
    grid={"net_width": ("w", (32,))},
    space={"learning_rate": (1e-3, 3e-4, 3e-3), "gamma": (0.5, 0.0, 0.9), "cost_bps": (3.0,)},
)
