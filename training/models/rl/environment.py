"""The market as an agent meets it: one entity at a time, one position, one bar a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.windows import FEATURE_LIMIT, forecastable_TN, label_TN

# Tensor suffixes: T targets, N entities, K observed features (the position comes on top).

POSITIONS: Final = (-1.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """One entity's usable training targets in time order, in units of the volatility known at each.

    ``x_TK`` float32 within +-``FEATURE_LIMIT``, known at the target; ``reward_T`` what a position of 1 then earns;
    ``cost_T`` what a change of the position by 1 costs.
    """

    x_TK: NDArray[np.float32]
    reward_T: NDArray[np.float64]
    cost_T: NDArray[np.float64]


def walks(window: Window, x_TNK: NDArray[np.float32], *, cost_bps: float) -> tuple[Walk, ...]:
    """A walk for each entity that has a target with a label and a forecastable row; ``x_TNK`` is per target."""
    reward_TN, vol_TN = label_TN(window), window.vol_TN[window.num_history :]
    usable_TN = forecastable_TN(window) & np.isfinite(reward_TN) & (vol_TN > 0)
    return tuple(
        Walk(
            x_TK=x_TNK[usable_T, entity],
            reward_T=reward_TN[usable_T, entity],
            cost_T=cost_bps * 1e-4 / vol_TN[usable_T, entity],
        )
        for entity, usable_T in enumerate(usable_TN.T)
        if usable_T.any()
    )


def observation_space(num_features: int) -> gymnasium.spaces.Space[NDArray[np.float32]]:
    """Bounds of an observation of that many features and the position."""
    return gymnasium.spaces.Box(-FEATURE_LIMIT, FEATURE_LIMIT, (num_features + 1,), np.float32)


def action_space() -> gymnasium.spaces.Discrete[np.int64]:
    """One action a position."""
    return gymnasium.spaces.Discrete(len(POSITIONS))


def observe(x_RK: NDArray[np.float32], position: float) -> NDArray[np.float32]:
    """Observations (R, K + 1): the features, then the position held."""
    return np.concatenate([x_RK, np.full((len(x_RK), 1), position, dtype=np.float32)], axis=1)


class TradingEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """An episode walks one entity, drawn at reset, from its first usable target to its last.

    The action 0, 1 or 2 is the position -1, 0 or +1 held over the coming label; the reward is
    position * label - cost * |change of position|, and the observation the features known at the target and the
    position held before. The label is seen only as a reward, never observed. After the last target the observation
    repeats that target's features: the episode is over and nothing is learned from it.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(self, walks: tuple[Walk, ...]) -> None:
        self.observation_space = observation_space(walks[0].x_TK.shape[1])
        self.action_space = action_space()
        self._walks = walks
        self._walk, self._step, self._position = walks[0], 0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a walk without a position; ``options={"walk": i}`` chooses it."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self._walks)))
        self._walk = self._walks[(options or {}).get("walk", drawn)]
        self._step, self._position = 0, 0.0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Hold the position of ``action`` over the coming label."""
        return self._hold(POSITIONS[int(action)])

    def _hold(self, position: float) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        cost = self._walk.cost_T[self._step] * abs(position - self._position)
        reward = position * self._walk.reward_T[self._step] - cost
        self._step, self._position = self._step + 1, position
        return self._observation(), float(reward), self._step == len(self._walk.reward_T), False, {}

    def _observation(self) -> NDArray[np.float32]:
        row = min(self._step, len(self._walk.reward_T) - 1)
        return observe(self._walk.x_TK[row : row + 1], self._position)[0]
