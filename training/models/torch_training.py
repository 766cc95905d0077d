"""Least squares by mini-batches with early stopping: the fit that torch regressors share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from training.models.deadline import Deadline
from training.models.spec import Budget, ModelError
from training.models.torch_runtime import restore_tensors, score_in_chunks, tensors_state

if TYPE_CHECKING:
    import torch

# Tensor suffixes: S samples; the other axes of x are the network's own.

BATCH: Final = 512
PATIENCE: Final = 3
MAX_GRADIENT_NORM: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Regression:
    """Inputs (first axis S, float32, finite) and labels (S,) to learn from or to check with."""

    x: NDArray[np.float32]
    y_S: NDArray[np.float64]


def train_network(
    network: torch.nn.Module,
    learn: Regression,
    check: Regression,
    *,
    learning_rate: float,
    weight_decay: float,
    budget: Budget,
    deadline: Deadline,
) -> None:
    """Fit by AdamW and leave the network, in evaluation mode, with the weights of the epoch best on ``check``.

    Stops after ``PATIENCE`` epochs without a better one; without any ``check`` samples the last epoch stands. Draws
    from torch's random state: call it inside ``private_randomness``.
    """
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best_loss, best_epoch, best = np.inf, 0, tensors_state(network)
    for epoch in range(budget.max_epochs):
        _train_epoch(network, optimizer, learn, deadline)
        loss = _check_loss(network, check)
        if loss < best_loss or not len(check.y_S):
            best_loss, best_epoch, best = loss, epoch, tensors_state(network)
        elif epoch - best_epoch >= PATIENCE:
            break
    restore_tensors(network, best)
    network.eval()


def score_samples(network: torch.nn.Module, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores (S,) of a network with one output."""
    return score_in_chunks(network, x, num_outputs=1)[:, 0]


def _train_epoch(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, learn: Regression, deadline: Deadline
) -> None:
    import torch

    x, y_S = torch.from_numpy(learn.x), torch.from_numpy(learn.y_S.astype(np.float32))
    network.train()
    for batch in torch.randperm(len(y_S)).split(BATCH):
        deadline.check("a training batch")
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(x[batch])[:, 0], y_S[batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()


def _check_loss(network: torch.nn.Module, check: Regression) -> float:
    """Mean squared error on ``check``, 0 without samples; a network that diverged fails the fit."""
    network.eval()
    loss = float(np.square(score_samples(network, check.x) - check.y_S).sum()) / max(len(check.y_S), 1)
    if not np.isfinite(loss) or not all(np.isfinite(array).all() for array in tensors_state(network).values()):
        raise ModelError("the network diverged: its loss or weights are not finite; lower learning_rate")
    return loss
