"""A long short-term memory over the lookback's rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.spec import Architecture, Budget, Params, State
from training.models.state import load_state, save_state
from training.models.torch_runtime import one_thread, private_randomness, restore_tensors, tensors_state
from training.models.torch_training import Regression, score_samples, train_network
from training.models.windows import Scaler, SequenceSamples, require_labels, scatter_TN, sequence_samples

if TYPE_CHECKING:
    import torch

# Tensor suffixes: T targets, N entities, S samples, B a batch of them, L lookback rows, F features, H hidden units.

NETWORK: Final = "network."


class LSTMModel:
    """One LSTM layer over the scaled features, dropout and a linear head on its last state, pooled over entities.

    Unknown features are 0, their median, after scaling. Source: Hochreiter, S. and Schmidhuber, J. (1997), Long
    short-term memory, Neural Computation 9(8).
    """

    def __init__(self, params: Params, *, lookback: int) -> None:
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:
        deadline = Deadline(budget)
        learn, check = sequence_samples(train, labelled=True), sequence_samples(valid, labelled=True)
        require_labels(learn.y_S)
        num_features = train.x_TNF.shape[2]
        self._scaler = Scaler.fit(train.x_TNF.reshape(-1, num_features))
        with one_thread(), private_randomness(seed):
            self._network = _network(num_features, self._params)
            train_network(
                self._network,
                self._scaled(learn),
                self._scaled(check),
                learning_rate=float(self._params["learning_rate"]),
                weight_decay=float(self._params["weight_decay"]),
                budget=budget,
                deadline=deadline,
            )

    def predict(self, window: Window) -> NDArray[np.float64]:
        samples = sequence_samples(window)
        return scatter_TN(window, score_samples(self._network, self._scaled(samples).x), samples.index_S2)

    def state(self) -> State:
        tensors = {NETWORK + name: array for name, array in tensors_state(self._network).items()}
        return tensors | self._scaler.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, state = load_state(folder)
        model = cls(params, lookback=params.pop("lookback"))
        model._scaler = Scaler.from_state(state)
        model._network = _network(len(model._scaler.centre_F), params)
        tensors = {name.removeprefix(NETWORK): array for name, array in state.items() if name.startswith(NETWORK)}
        restore_tensors(model._network, tensors)
        return model

    def _scaled(self, samples: SequenceSamples) -> Regression:
        return Regression(x=self._scaler.transform(samples.x_SLF), y_S=samples.y_S)


def _network(num_features: int, params: Params) -> torch.nn.Module:
    """A module from (B, L, F) to (B, 1), in evaluation mode; its first weights come from torch's random state."""
    import torch

    class LastStateRegressor(torch.nn.Module):
        def __init__(self, hidden_size: int, dropout: float) -> None:
            super().__init__()
            self.memory = torch.nn.LSTM(num_features, hidden_size, batch_first=True)
            self.head = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(hidden_size, 1))

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            states_BLH, _ = self.memory(x_BLF)
            return self.head(states_BLH[:, -1])

    return LastStateRegressor(int(params["hidden_size"]), float(params["dropout"])).eval()


ARCHITECTURE = Architecture(
    name="lstm",
    family="deep",
    source="Hochreiter and Schmidhuber (1997), Long Short-Term Memory, Neural Computation 9(8)",
    model=LSTMModel,
    grid={"hidden_size": ("h", (32, 64))},
    space={
        "learning_rate": (3e-3, 1e-3, 1e-2),
        "dropout": (0.1, 0.0, 0.3),
        "weight_decay": (1e-4, 1e-2),
    },
)
