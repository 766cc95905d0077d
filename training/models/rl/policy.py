"""What the agents share: observing, learning to trade, scoring, saving; each adds its algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.rl.environment import TradingEnv, Walk, observation_space, observe, walks
from training.models.spec import Budget, ModelError, Params, State
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
    import torch
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import VecEnv

# Tensor suffixes: T targets, N entities, S samples, B a batch of them, F features, K = 2 F observed ones (the position
# held comes on top), Q outputs of the network.

WORKERS: Final = 8

Callback: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], bool]
"""What stable-baselines3 calls after every step of the environment; True goes on."""

Build: TypeAlias = "Callable[[int, Params], torch.nn.Module]"
"""``(num_features, params)`` to a network of the fitted one's shape, its weights still to be restored."""


class Learn(Protocol):
    """Learns on the walks, in ``budget.max_agent_steps`` steps at the most; gives the network that scores."""

    def __call__(
        self, market: tuple[Walk, ...], params: Params, *, seed: int, budget: Budget, callback: Callback
    ) -> torch.nn.Module: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Agent:
    """The factory of an architecture.

    The network goes from observations (B, K + 1) to (B, Q); ``score`` from its outputs (S, Q) to scores (S,).
    ``prefix`` precedes its tensors' names in the state.
    """

    learn: Learn
    build: Build
    prefix: str
    num_outputs: int
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def __call__(self, params: Params, *, lookback: int) -> AgentModel:
        return AgentModel(self, params, lookback=lookback)

    def load(self, folder: Path) -> AgentModel:
        """A saved model, as it was."""
        params, state = load_state(folder)
        model = self(params, lookback=params.pop("lookback"))
        model.restore(state)
        return model


class AgentModel:
    """An agent that observes each feature's last value and lookback mean, scaled, and is asked with no position held.

    Pooled over entities. ``params`` hold the algorithm's own, ``net_width`` and ``cost_bps``, what a change of the
    position by 1 costs in training. The validation window is not used.
    """

    def __init__(self, agent: Agent, params: Params, *, lookback: int) -> None:
        self._agent = agent
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002
        deadline = Deadline(budget)
        samples = summary_samples(train, labelled=True)
        require_labels(samples.y_S)
        self._scaler = Scaler.fit(_observed(samples.x_SK))
        x_TNK = self._scaler.transform(_observed(summarise(train)))
        market = walks(train, x_TNK, cost_bps=float(self._params["cost_bps"]))
        with one_thread(), private_randomness(seed):
            network = self._agent.learn(market, self._params, seed=seed, budget=budget, callback=_checking(deadline))
        self._network = network.eval()

    def predict(self, window: Window) -> NDArray[np.float64]:
        samples = summary_samples(window)
        observations = observe(self._scaler.transform(_observed(samples.x_SK)), 0.0)
        output_SQ = score_in_chunks(self._network, observations, num_outputs=self._agent.num_outputs)
        return scatter_TN(window, self._agent.score(output_SQ), samples.index_S2)

    def state(self) -> State:
        tensors = {self._agent.prefix + name: array for name, array in tensors_state(self._network).items()}
        return tensors | self._scaler.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    def restore(self, state: State) -> None:
        """Become the model that ``state`` was taken from."""
        self._scaler = Scaler.from_state(state)
        with private_randomness(0):
            self._network = self._agent.build(len(self._scaler.centre_F), self._params).eval()
        prefix = self._agent.prefix
        tensors = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        restore_tensors(self._network, tensors)


def net_arch(params: Params) -> list[int]:
    """Two hidden layers of ``net_width``."""
    return [int(params["net_width"])] * 2


def _observed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first two blocks of the summaries along the last axis: last value and mean."""
    return x[..., : x.shape[-1] // 2]


def _checking(deadline: Deadline) -> Callback:
    def check(local: dict[str, Any], _: dict[str, Any]) -> bool:
        deadline.check(f"step {local['self'].num_timesteps}")
        return True

    return check


# Actor-critic agents, whose action is a position anywhere in [-1, 1].


class PositionEnv(TradingEnv):
    """``TradingEnv`` with the position itself as the action, shape (1,); one beyond [-1, 1] counts as that limit."""

    def __init__(self, walks: tuple[Walk, ...]) -> None:
        super().__init__(walks)
        self.action_space = position_space()  # type: ignore[assignment]

    def step(  # type: ignore[override]
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Hold the position over the coming label."""
        return self._hold(min(max(float(action[0]), -1.0), 1.0))


class MakeAlgorithm(Protocol):
    """Builds an on-policy algorithm of stable-baselines3; ``settings`` are those that all of them take."""

    def __call__(self, env: VecEnv, *, rollout: int, settings: dict[str, Any]) -> OnPolicyAlgorithm: ...


def actor_critic(make: MakeAlgorithm) -> Agent:
    """An agent whose score is the mean position of its Gaussian policy, in units of the label.

    The mean is taken before it is clipped to [-1, 1], which would tie all strong forecasts, and multiplied by the
    slope of a least-squares line through the origin of the training labels on it, never below 0: an agent whose
    positions lost money in training, costs aside, expects nothing.

    ``WORKERS`` copies of the environment step together, each through walks of its own; steps count over all of them
    and stop at the last full rollout of ``n_steps`` a worker within the budget. The critic is left behind.
    """
    return Agent(learn=partial(_learn, make), build=_build, prefix="actor.", num_outputs=1, score=_only_output)


def position_space() -> gymnasium.spaces.Box:
    """Bounds of a position."""
    return gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def _learn(
    make: MakeAlgorithm, market: tuple[Walk, ...], params: Params, *, seed: int, budget: Budget, callback: Callback
) -> torch.nn.Module:
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    n_steps = min(int(params["n_steps"]), budget.max_agent_steps // WORKERS)
    if n_steps == 0:
        raise ModelError(f"{budget.max_agent_steps} steps for {WORKERS} workers; raise Budget.max_agent_steps")
    rollout = n_steps * WORKERS
    settings = {
        "policy": "MlpPolicy",
        "seed": seed,
        "device": "cpu",
        "n_steps": n_steps,
        "learning_rate": float(params["learning_rate"]),
        "gamma": float(params["gamma"]),
        "ent_coef": float(params["ent_coef"]),
        "policy_kwargs": {"net_arch": net_arch(params)},
    }
    algorithm = make(DummyVecEnv([partial(PositionEnv, market)] * WORKERS), rollout=rollout, settings=settings)
    algorithm.set_logger(Logger(folder=None, output_formats=[]))  # the default one leaves a folder for every fit
    algorithm.learn(budget.max_agent_steps // rollout * rollout, callback=callback)
    network = _actor(algorithm.policy)
    network.get_buffer("label_per_position").fill_(_label_per_position(network.eval(), market))
    return network


def _build(num_features: int, params: Params) -> torch.nn.Module:
    from stable_baselines3.common.policies import ActorCriticPolicy

    return _actor(
        ActorCriticPolicy(
            observation_space(num_features), position_space(), lr_schedule=lambda _: 0.0, net_arch=net_arch(params)
        )
    )


def _actor(policy: ActorCriticPolicy) -> torch.nn.Module:
    """The policy's mean position times ``label_per_position``, 1 until it is set."""
    import torch

    class Actor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = policy.mlp_extractor.policy_net
            self.mean = policy.action_net
            self.register_buffer("label_per_position", torch.ones(1))

        def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
            return self.get_buffer("label_per_position") * self.mean(self.hidden(x_BK))

    return Actor()


def _label_per_position(network: torch.nn.Module, market: tuple[Walk, ...]) -> float:
    observations = observe(np.concatenate([walk.x_TK for walk in market]), 0.0)
    position_S = _only_output(score_in_chunks(network, observations, num_outputs=1))
    label_S = np.concatenate([walk.reward_T for walk in market])
    size = float(position_S @ position_S)
    return max(float(position_S @ label_S) / size, 0.0) if size > 0 else 0.0


def _only_output(output_SQ: NDArray[np.float64]) -> NDArray[np.float64]:
    return output_SQ[:, 0]
