"""Mini-batches with early stopping: the fit that torch regressors share, by least squares unless told otherwise.

Regularised by dropout (the network's own), by ``weight_decay`` (L2, decoupled as in Loshchilov and Hutter 2019) and by
``l1``, which leaves weights at exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.models.deadline import Deadline
from training.models.spec import Budget, ModelError
from training.models.torch_runtime import kept_memory, restore_tensors, score_in_chunks, tensors_state

if TYPE_CHECKING:
    import torch

# Tensor suffixes: S samples, B a batch of them, Q outputs; the other axes of x are the network's own.

BATCH: Final = 512
PATIENCE: Final = 5
MAX_GRADIENT_NORM: Final = 1.0
LONGEST_SHRINK: Final = 2.0  # learning rates; above 1, which Adam's steps come to, so that l1 wins where it should


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Epochs:
    """How a fit went: epochs it ran, and which of them left its weights, from 1."""

    num: int
    best: int


def train_network(
    network: torch.nn.Module,
    learn: Regression,
    check: Regression,
    *,
    learning_rate: float,
    weight_decay: float,
    l1: float = 0.0,
    budget: Budget,
    deadline: Deadline,
    objective: Objective = LEAST_SQUARES,
    batch_size: int = BATCH,
) -> Epochs:
    """Fit by AdamW and leave the network, in evaluation mode, with the weights of the epoch best on ``check``.

    Stops after ``PATIENCE`` epochs without a better one; without any ``check`` samples the last epoch stands. It fits
    where the network lies (CPU or GPU). Draws from torch's random state: call it inside ``private_randomness``.
    """
    import torch

    device = _device_of(network)
    x, y_S = torch.from_numpy(learn.x).to(device), torch.from_numpy(learn.y_S.astype(np.float32)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best_loss, course, best = np.inf, Epochs(num=0, best=0), tensors_state(network)
    with kept_memory():
        for epoch in range(1, budget.max_epochs + 1):
            network.train()
            for batch in torch.randperm(len(y_S)).to(device).split(batch_size):
                deadline.check("a training batch")
                _step(network, optimizer, objective, x[batch], y_S[batch])
                _shrink_weights(network, optimizer, l1)
            loss = _check_loss(network, check, objective)
            is_better = loss < best_loss or not len(check.y_S)
            course = Epochs(num=epoch, best=epoch if is_better else course.best)
            if is_better:
                best_loss, best = loss, tensors_state(network)
            elif epoch - course.best >= PATIENCE:
                break
    restore_tensors(network, best)
    network.eval()
    return course


def penalised(network: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights, by name, that ``l1`` draws to 0: what multiplies inputs, neither biases nor scales of norms."""
    import torch

    return {
        f"{path}.{name}".lstrip("."): parameter
        for path, module in network.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if "weight" in name and not isinstance(module, torch.nn.LayerNorm)
    }


def shrink(weight: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Nearer to 0 by the threshold, and 0 where that would cross it: the proximal operator of threshold |w|."""
    return weight.sign() * (weight.abs() - threshold).clamp(min=0.0)


def l1_threshold(rate: torch.Tensor | float, l1: torch.Tensor | float, scale: torch.Tensor) -> torch.Tensor:
    """How far a step of this rate draws weights to 0 whose gradients Adam divides by ``scale``.

    It is l1 times the step size a weight has in Adam's metric. With the same step for gradient and penalty a fit rests
    where the penalised loss is least (Yun, Lozano and Yang 2021, Adaptive Proximal Gradient Methods for Structured
    Neural Networks, NeurIPS, section 3, ProxGen); a plain subgradient would never leave a weight at 0. It is at most
    ``LONGEST_SHRINK`` rates: a weight that has no gradient yet, as next to layers that start at 0, would be gone at the
    first step.
    """
    return rate * (l1 / scale).clamp(max=LONGEST_SHRINK)


def score_samples(
    network: torch.nn.Module, x: NDArray[np.float32], *, objective: Objective = LEAST_SQUARES
) -> NDArray[np.float64]:
    """Scores (S,): the output of the network that the objective names."""
    return score_in_chunks(network, x, num_outputs=objective.num_outputs)[:, objective.score_output]


def _step(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    x_B: torch.Tensor,
    y_B: torch.Tensor,
) -> None:
    import torch

    optimizer.zero_grad()
    objective.loss(network(x_B), y_B).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()


def _shrink_weights(network: torch.nn.Module, optimizer: torch.optim.Optimizer, l1: float) -> None:
    """The proximal step of the penalty l1 sum |w|, after the optimizer's own on the loss."""
    import torch

    if not l1:
        return
    group = optimizer.param_groups[0]
    with torch.no_grad():
        for weight in penalised(network).values():
            moments = optimizer.state[weight]
            if moments:  # none where the outputs do not depend on it
                scale = (moments["exp_avg_sq"] / (1 - group["betas"][1] ** moments["step"])).sqrt() + group["eps"]
                weight.copy_(shrink(weight, l1_threshold(group["lr"], l1, scale)))


def _check_loss(network: torch.nn.Module, check: Regression, objective: Objective) -> float:
    """The loss on ``check``, 0 without samples; a network that diverged fails the fit."""
    import torch

    network.eval()
    loss = 0.0
    if len(check.y_S):
        with torch.inference_mode():
            parts = [network(x.to(_device_of(network))).double().cpu() for x in torch.from_numpy(check.x).split(BATCH)]
        loss = float(objective.loss(torch.cat(parts), torch.from_numpy(check.y_S)))
    if not np.isfinite(loss) or not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        raise ModelError("the network diverged: its loss or weights are not finite; lower learning_rate")
    return loss


def _device_of(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device
