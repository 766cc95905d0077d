"""Mini-batches with early stopping: the fit that torch regressors share, by least squares unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.models.deadline import Deadline
from training.models.spec import Budget, ModelError
from training.models.torch_runtime import restore_tensors, score_in_chunks, tensors_state

if TYPE_CHECKING:
    import torch

# Tensor suffixes: S samples, B a batch of them, Q outputs; the other axes of x are the network's own.

BATCH: Final = 512
PATIENCE: Final = 3
MAX_GRADIENT_NORM: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Regression:
    """Inputs (first axis S, float32, finite) and labels (S,) to learn from or to check with."""

    x: NDArray[np.float32]
    y_S: NDArray[np.float64]


Loss: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"


def squared_error(outputs_BQ: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the first output."""
    import torch

    return torch.nn.functional.mse_loss(outputs_BQ[:, 0], y_B)


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What a network's outputs (B, Q) are fitted to, and which of them is the score.

    ``loss`` takes outputs (B, Q) and labels (B,) and gives its mean over the batch.
    """

    loss: Loss
    num_outputs: int = 1
    score_output: int = 0


LEAST_SQUARES: Final = Objective(loss=squared_error)


def train_network(
    network: torch.nn.Module,
    learn: Regression,
    check: Regression,
    *,
    learning_rate: float,
    weight_decay: float,
    budget: Budget,
    deadline: Deadline,
    objective: Objective = LEAST_SQUARES,
) -> None:
    """Fit by AdamW and leave the network, in evaluation mode, with the weights of the epoch best on ``check``.

    Stops after ``PATIENCE`` epochs without a better one; without any ``check`` samples the last epoch stands. Draws
    from torch's random state: call it inside ``private_randomness``.
    """
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best_loss, best_epoch, best = np.inf, 0, tensors_state(network)
    for epoch in range(budget.max_epochs):
        _train_epoch(network, optimizer, learn, deadline, objective)
        loss = _check_loss(network, check, objective)
        if loss < best_loss or not len(check.y_S):
            best_loss, best_epoch, best = loss, epoch, tensors_state(network)
        elif epoch - best_epoch >= PATIENCE:
            break
    restore_tensors(network, best)
    network.eval()


def score_samples(
    network: torch.nn.Module, x: NDArray[np.float32], *, objective: Objective = LEAST_SQUARES
) -> NDArray[np.float64]:
    """Scores (S,): the output of the network that the objective names."""
    return score_in_chunks(network, x, num_outputs=objective.num_outputs)[:, objective.score_output]


def _train_epoch(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    learn: Regression,
    deadline: Deadline,
    objective: Objective,
) -> None:
    import torch

    x, y_S = torch.from_numpy(learn.x), torch.from_numpy(learn.y_S.astype(np.float32))
    network.train()
    for batch in torch.randperm(len(y_S)).split(BATCH):
        deadline.check("a training batch")
        optimizer.zero_grad()
        loss = objective.loss(network(x[batch]), y_S[batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()


def _check_loss(network: torch.nn.Module, check: Regression, objective: Objective) -> float:
    """The loss on ``check``, 0 without samples; a network that diverged fails the fit."""
    import torch

    network.eval()
    outputs_SQ = torch.from_numpy(score_in_chunks(network, check.x, num_outputs=objective.num_outputs))
    loss = float(objective.loss(outputs_SQ, torch.from_numpy(check.y_S))) if len(check.y_S) else 0.0
    if not np.isfinite(loss) or not all(np.isfinite(array).all() for array in tensors_state(network).values()):
        raise ModelError("the network diverged: its loss or weights are not finite; lower learning_rate")
    return loss
