"""What all networks over the rows of the lookback share: scaling, fitting, scoring, saving; each adds its module."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.spec import EPOCHS, Budget, Params, State
from training.models.state import load_state, save_state
from training.models.torch_runtime import (
    choose_device,
    one_thread,
    private_randomness,
    restore_tensors,
    tensors_state,
)
from training.models.torch_training import (
    BATCH,
    LEAST_SQUARES,
    Epochs,
    Objective,
    Regression,
    score_samples,
    train_network,
)
from training.models.windows import (
    Scaler,
    SequenceSamples,
    require_labels,
    require_new_labels,
    scatter_TN,
    sequence_samples,
)

if TYPE_CHECKING:
    import torch

# Tensor suffixes: T targets, N entities, S samples, B a batch of them, L lookback rows, F features.

NETWORK: Final = "network."

UPDATE_EPOCHS: Final = 5
UPDATE_RATE: Final = 0.5  # of the fit's learning rate
UPDATE_BATCH: Final = 64  # samples of an update's step: the fewer are new, the fewer steps it takes

Build: TypeAlias = "Callable[[int, int, Params], torch.nn.Module]"
"""``(num_features, lookback, params)`` to a module from (B, L, F) to (B, 1), or to the objective's outputs.

Its first weights come from torch's random state; importing torch is left to the call.
"""


class SequenceModel:
    """A network over the scaled rows of the lookback, pooled over entities, fitted to the objective.

    Unknown features are 0, their median, after scaling. ``params`` hold the network's own, ``learning_rate``,
    ``weight_decay`` and ``l1``. It is fitted where ``budget.device`` says, and scores and is saved on the CPU.
    """

    def __init__(self, build: Build, params: Params, *, lookback: int, objective: Objective = LEAST_SQUARES) -> None:
        self._build = build
        self._params = dict(params)
        self._lookback = lookback
        self._objective = objective

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:
        deadline = Deadline(budget)
        self._scaler = Scaler.fit(train.x_TNF.reshape(-1, train.x_TNF.shape[2]))
        learn, check = self._samples(train, labelled=True), self._samples(valid, labelled=True)
        require_labels(learn.y_S)
        with one_thread(), private_randomness(seed):
            self._network = self._new_network()
            self._epochs = self._train(self._network, learn, check, budget=budget, deadline=deadline)

    def update(self, new: Window, *, seed: int, budget: Budget) -> None:
        """Go on from the weights for ``UPDATE_EPOCHS`` over the labelled targets of ``new``.

        Where that fails the model stays as it was.
        """
        deadline = Deadline(budget)
        learn = self._samples(new, labelled=True)
        require_new_labels(learn.y_S)
        network, nothing = deepcopy(self._network), replace(learn, x_SLF=learn.x_SLF[:0], y_S=learn.y_S[:0])
        few = replace(budget, max_epochs=min(budget.max_epochs, UPDATE_EPOCHS))
        with one_thread(), private_randomness(seed):
            self._train(
                network, learn, nothing, budget=few, deadline=deadline, rate=UPDATE_RATE, batch_size=UPDATE_BATCH
            )
        self._network = network

    def predict(self, window: Window) -> NDArray[np.float64]:
        samples = self._samples(window)
        score_S = score_samples(self._network, samples.x_SLF, objective=self._objective)
        return scatter_TN(window, score_S, samples.index_S2)

    def state(self) -> State:
        tensors = {NETWORK + name: array for name, array in tensors_state(self._network).items()}
        return tensors | self._scaler.state() | {EPOCHS: np.array([self._epochs.num, self._epochs.best])}

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    def restore(self, state: State) -> None:
        """Become the model that ``state`` was taken from."""
        num, best = (int(value) for value in state[EPOCHS])
        self._epochs = Epochs(num=num, best=best)
        self._scaler = Scaler.from_state(state)
        self._network = self._new_network()
        tensors = {name.removeprefix(NETWORK): array for name, array in state.items() if name.startswith(NETWORK)}
        restore_tensors(self._network, tensors)

    def _new_network(self) -> torch.nn.Module:
        return self._build(len(self._scaler.centre_F), self._lookback, self._params).eval()

    def _train(
        self,
        network: torch.nn.Module,
        learn: SequenceSamples,
        check: SequenceSamples,
        *,
        budget: Budget,
        deadline: Deadline,
        rate: float = 1.0,
        batch_size: int = BATCH,
    ) -> Epochs:
        """Train on the budget's device at ``rate`` times the learning rate; the network ends on the CPU.

        On a GPU a fit repeats as far as cuBLAS does, which needs ``CUBLAS_WORKSPACE_CONFIG`` (torch's notes on
        reproducibility), and is not that of a CPU.
        """
        import torch

        with torch.backends.cudnn.flags(enabled=True, deterministic=True):
            epochs = train_network(
                network.to(choose_device(budget.device)),
                Regression(x=learn.x_SLF, y_S=learn.y_S),
                Regression(x=check.x_SLF, y_S=check.y_S),
                learning_rate=rate * float(self._params["learning_rate"]),
                weight_decay=float(self._params["weight_decay"]),
                l1=float(self._params["l1"]),
                budget=budget,
                deadline=deadline,
                objective=self._objective,
                batch_size=batch_size,
            )
        network.cpu()
        return epochs

    def _samples(self, window: Window, *, labelled: bool = False) -> SequenceSamples:
        """Samples of scaled features. A row is scaled once, before the sequences share it."""
        is_known_TNF = np.isfinite(window.x_TNF)
        scaled_TNF = np.where(is_known_TNF, self._scaler.transform(window.x_TNF), np.float32(np.nan))
        samples = sequence_samples(replace(window, x_TNF=scaled_TNF), labelled=labelled)
        return replace(samples, x_SLF=np.nan_to_num(samples.x_SLF, copy=False))


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
