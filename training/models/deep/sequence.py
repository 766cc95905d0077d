"""What all networks over the rows of the lookback share: scaling, fitting, scoring, saving; each adds its module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.spec import Budget, Params, State
from training.models.state import load_state, save_state
from training.models.torch_runtime import one_thread, private_randomness, restore_tensors, tensors_state
from training.models.torch_training import LEAST_SQUARES, Objective, Regression, score_samples, train_network
from training.models.windows import Scaler, SequenceSamples, require_labels, scatter_TN, sequence_samples

if TYPE_CHECKING:
    import torch

# Tensor suffixes: T targets, N entities, S samples, B a batch of them, L lookback rows, F features.

NETWORK: Final = "network."

Build: TypeAlias = "Callable[[int, int, Params], torch.nn.Module]"
"""``(num_features, lookback, params)`` to a module from (B, L, F) to (B, 1), or to the objective's outputs.

Its first weights come from torch's random state; importing torch is left to the call.
"""


class SequenceModel:
    """A network over the scaled rows of the lookback, pooled over entities, fitted to the objective.

    Unknown features are 0, their median, after scaling. ``params`` hold the network's own, ``learning_rate`` and
    ``weight_decay``.
    """

    def __init__(self, build: Build, params: Params, *, lookback: int, objective: Objective = LEAST_SQUARES) -> None:
        self._build = build
        self._params = dict(params)
        self._lookback = lookback
        self._objective = objective

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:
        deadline = Deadline(budget)
        learn, check = sequence_samples(train, labelled=True), sequence_samples(valid, labelled=True)
        require_labels(learn.y_S)
        self._scaler = Scaler.fit(train.x_TNF.reshape(-1, train.x_TNF.shape[2]))
        with one_thread(), private_randomness(seed):
            self._network = self._new_network()
            train_network(
                self._network,
                self._scaled(learn),
                self._scaled(check),
                learning_rate=float(self._params["learning_rate"]),
                weight_decay=float(self._params["weight_decay"]),
                budget=budget,
                deadline=deadline,
                objective=self._objective,
            )

    def predict(self, window: Window) -> NDArray[np.float64]:
        samples = sequence_samples(window)
        score_S = score_samples(self._network, self._scaled(samples).x, objective=self._objective)
        return scatter_TN(window, score_S, samples.index_S2)

    def state(self) -> State:
        tensors = {NETWORK + name: array for name, array in tensors_state(self._network).items()}
        return tensors | self._scaler.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    def restore(self, state: State) -> None:
        """Become the model that ``state`` was taken from."""
        self._scaler = Scaler.from_state(state)
        self._network = self._new_network()
        tensors = {name.removeprefix(NETWORK): array for name, array in state.items() if name.startswith(NETWORK)}
        restore_tensors(self._network, tensors)

    def _new_network(self) -> torch.nn.Module:
        return self._build(len(self._scaler.centre_F), self._lookback, self._params).eval()

    def _scaled(self, samples: SequenceSamples) -> Regression:
        return Regression(x=self._scaler.transform(samples.x_SLF), y_S=samples.y_S)


@dataclass(frozen=True, slots=True)
class SequenceRegressor:
    """The factory of an architecture: ``SequenceRegressor(build)``."""

    build: Build
    objective: Objective = LEAST_SQUARES

    def __call__(self, params: Params, *, lookback: int) -> SequenceModel:
        return SequenceModel(self.build, params, lookback=lookback, objective=self.objective)

    def load(self, folder: Path) -> SequenceModel:
        """A saved model, as it was."""
        params, state = load_state(folder)
        model = self(params, lookback=params.pop("lookback"))
        model.restore(state)
        return model
