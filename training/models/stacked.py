"""Networks of one shape and one training window trained together, as one network whose weights are stacked.

Each keeps its own seed, order of batches, dropout, learning rate, penalties, clipping and early stopping, so that a
stacked fit is, but for the order of float32 sums, what ``fit_model`` gives for each of them alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from training.dataset import Window
from training.models.batched_layers import PureNetwork, batchable_kernels, dropout_calls, dropout_rates
from training.models.deadline import Deadline
from training.models.deep.sequence import NETWORK, SequenceModel, SequenceRegressor
from training.models.fitted import FittedModel, complete_params, fit_model
from training.models.spec import EPOCHS, Architecture, Budget, ModelError, Params, State
from training.models.torch_runtime import choose_device, kept_memory, one_thread, private_randomness, tensors_state
from training.models.torch_training import (
    BATCH,
    MAX_GRADIENT_NORM,
    PATIENCE,
    Epochs,
    Objective,
    Regression,
    l1_threshold,
    penalised,
    shrink,
)
from training.models.windows import Scaler, require_labels

if TYPE_CHECKING:
    from pathlib import Path

    import torch

# Tensor suffixes: K networks, S samples, B a batch of them, Q outputs; the other axes of x and of weights are the
# network's own.

SHAPELESS: Final = frozenset({"learning_rate", "weight_decay", "l1", "dropout"})
"""The parameters in which stacked networks may differ: they leave the shape as it is."""
FEWEST: Final = 2
"""Members of the smallest stack: of one, torch makes other kernels, and no fit should depend on its company."""
QUICKER_ON_CPU: Final = frozenset({"dlinear"})
"""On a CPU those measured at least 1.3 times as quick.

``bench/stacking.py``, CPU time of 18 variants of hidden size 64 in a stack over one after another (1,120 samples x 20
features x 30 rows, 5 epochs): DLinear 0.65, N-HiTS 0.92, GRU 0.95, transformer 1.03, TCN 1.07, TSMixer 1.08, PatchTST
1.11, N-BEATS 1.14, GRU-LSTM 1.47, TFT 1.52, LSTM 2.00, bidirectional LSTM 2.15. One core has no units that idle, and a
loop over rows replaces a fused kernel.
"""
LOOPED: Final = frozenset({"bilstm", "gru", "gru_lstm", "lstm", "tft"})
FEWEST_LOOPED: Final = 8
"""On a GPU recurrent networks are stacked from this number on, others always.

An estimate, not measured: a loop launches about 40 kernels a row, forwards and backwards, however many networks it
stands for, where cuDNN takes a layer at once.
"""
UNTRAINED: Final = Epochs(num=0, best=0)
BETAS: Final = (0.9, 0.999)  # those of torch.optim.AdamW
EPSILON: Final = 1e-8


def is_worth_stacking(architecture: Architecture, device: str, num: int) -> bool:
    """Whether ``num`` fits on this kind of device (``cpu`` or ``cuda``) are quicker stacked than one after another."""
    if num < FEWEST or not isinstance(architecture.model, SequenceRegressor):
        return False
    if device == "cuda":
        return num >= FEWEST_LOOPED or architecture.name not in LOOPED
    return architecture.name in QUICKER_ON_CPU


def fit_stacked(
    architecture: Architecture,
    params_list: Sequence[Params],
    train: Window,
    valid: Window,
    *,
    lookback: int,
    seeds: Sequence[int],
    budget: Budget,
) -> list[FittedModel | ModelError]:
    """Fit a network for each of the parameters and its seed; one that fails is a ``ModelError`` in its place.

    On a CPU dropout draws what it would draw alone; on a GPU it has a stream of its own for each network, other than
    alone. The deadline is the sum of theirs.
    """
    regressor = architecture.model
    if not isinstance(regressor, SequenceRegressor):
        raise ModelError(f"{architecture.name} is no network over the lookback: fit its variants one after another")
    complete = [complete_params(architecture, params) for params in params_list]
    deadline = Deadline(replace(budget, deadline_s=budget.deadline_s * len(complete)))
    scaler, learn, check = _Untrained(regressor.build, complete[0], lookback=train.lookback).prepare(train, valid)
    device = choose_device(budget.device)
    asked = list(zip(complete, seeds, strict=True))
    members = [
        start_member(regressor, train.x_TNF.shape[2], train.lookback, params, seed=seed, device=device)
        for params, seed in asked * (FEWEST if len(asked) < FEWEST else 1)
    ]
    train_stacked(members, learn, check, budget=budget, deadline=deadline, objective=regressor.objective, device=device)
    fixed = [replace(architecture, model=_Given(regressor, member.outcome(scaler))) for member in members]
    return [
        _try_fit(each, params, train, valid, lookback=lookback, seed=seed, budget=budget)
        for each, (params, seed) in zip(fixed, asked, strict=False)  # a member for company was not asked for
    ]


def train_stacked(
    members: Sequence[Member],
    learn: Regression,
    check: Regression,
    *,
    budget: Budget,
    deadline: Deadline,
    objective: Objective,
    device: torch.device,
) -> None:
    """``train_network`` for all members at once: leaves each with its best weights or its failure."""
    with one_thread(), kept_memory(), batchable_kernels():
        stack = Stack(members, learn, objective, device)
        for epoch in range(1, budget.max_epochs + 1):
            try:
                stack.train_epoch(deadline)
            except ModelError as error:
                stack.fail(error)
                return
            for member, loss, state in zip(stack.members, stack.losses(check), stack.states(), strict=True):
                member.note(epoch, loss, state, is_checked=bool(len(check.y_S)))
            if not any(member.goes_on for member in stack.members):
                return
            stack.drop_stopped()


@dataclass(slots=True)
class Member:
    """One network of a stack: what it starts from, what is its own, and how far its fit has got."""

    network: torch.nn.Module
    learning_rate: float
    weight_decay: float
    l1: float
    order: torch.Generator
    noise: torch.Generator
    best: State
    best_loss: float = np.inf
    course: Epochs = UNTRAINED
    failure: ModelError | None = None
    goes_on: bool = True

    def note(self, epoch: int, loss: float, state: State, *, is_checked: bool) -> None:
        """Judge an epoch; one that has stopped is only there for company."""
        if not self.goes_on:
            return
        is_better = loss < self.best_loss or not is_checked
        self.course = Epochs(num=epoch, best=epoch if is_better else self.course.best)
        if not np.isfinite(loss) or not all(np.isfinite(array).all() for array in state.values()):
            self.failure = ModelError("the network diverged: its loss or weights are not finite; lower learning_rate")
        elif is_better:
            self.best_loss, self.best = loss, state
        self.goes_on = self.failure is None and epoch - self.course.best < PATIENCE

    def outcome(self, scaler: Scaler) -> State | ModelError:
        """The state of the model that its fit alone would leave, or why there is none."""
        if self.failure is not None:
            return self.failure
        epochs = {EPOCHS: np.array([self.course.num, self.course.best])}
        return {NETWORK + name: array for name, array in self.best.items()} | scaler.state() | epochs


def start_member(
    regressor: SequenceRegressor, num_features: int, lookback: int, params: Params, *, seed: int, device: torch.device
) -> Member:
    """A network as a fit alone would start it: first weights, then batches and dropout, from one stream."""
    import torch

    with private_randomness(seed):
        network = regressor.build(num_features, lookback, params)
        order = torch.Generator().set_state(torch.get_rng_state())
    return Member(
        network=network,
        learning_rate=float(params["learning_rate"]),
        weight_decay=float(params["weight_decay"]),
        l1=float(params["l1"]),
        order=order,
        noise=order if device.type == "cpu" else torch.Generator(device).manual_seed(seed),
        best=tensors_state(network),
    )


class Stack:
    """The weights of the members that still train, stacked along a first axis K, and AdamW's moments of them."""

    def __init__(
        self, members: Sequence[Member], learn: Regression, objective: Objective, device: torch.device
    ) -> None:
        import torch

        _require_one_shape(members)
        self.members = list(members)
        self._objective = objective
        self._device = device
        self._x = torch.from_numpy(learn.x).to(device)
        self._y_S = torch.from_numpy(learn.y_S.astype(np.float32)).to(device)
        self._weights = {
            name: torch.stack([torch.from_numpy(member.best[name]) for member in members]).to(device).requires_grad_()
            for name in members[0].best
        }
        self._first = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._second = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._num_steps = 0
        self._rate_K, self._decay_K, self._l1_K = (
            torch.tensor([getattr(member, name) for member in members], device=device)
            for name in ("learning_rate", "weight_decay", "l1")
        )
        self._has_l1 = any(member.l1 > 0 for member in members)
        self._dropped = [dropout_rates(member.network) for member in members]
        dropouts = sorted(set().union(*self._dropped))
        self._penalised = set(penalised(members[0].network))
        template, x = members[0].network, torch.from_numpy(learn.x)
        sizes = {min(BATCH, len(x)), len(x) % BATCH} - {0}
        self._calls = {size: dropout_calls(template, x[:size], dropouts=dropouts) for size in sizes}
        self._network = PureNetwork(template.to(device), dropouts=dropouts)

    def train_epoch(self, deadline: Deadline) -> None:
        """A step on every batch, each network's in its own order."""
        import torch

        order_KS = torch.stack([torch.randperm(len(self._y_S), generator=member.order) for member in self.members])
        for batch_KB in order_KS.to(self._device).split(BATCH, dim=1):
            deadline.check("a training batch of a stack")
            factors = self._dropout_factors(batch_KB.shape[1])
            loss_K = torch.vmap(self._loss)(self._weights, self._x[batch_KB], self._y_S[batch_KB], factors)
            gradients = torch.autograd.grad(loss_K.sum(), list(self._weights.values()), allow_unused=True)
            used = {name: each for name, each in zip(self._weights, gradients, strict=True) if each is not None}
            self._step(clipped(used))

    def losses(self, check: Regression) -> list[float]:
        """Each network's loss on ``check``, 0 without samples."""
        import torch

        if not len(check.y_S):
            return [0.0] * len(self.members)
        y_S = torch.from_numpy(check.y_S)
        with torch.no_grad():
            parts = [
                torch.vmap(self._network, in_dims=(0, None))(self._weights, x.to(self._device)).double().cpu()
                for x in torch.from_numpy(check.x).split(BATCH)
            ]
        return [float(self._objective.loss(outputs_SQ, y_S)) for outputs_SQ in torch.cat(parts, dim=1)]

    def states(self) -> list[State]:
        """Each network's tensors as arrays of their own."""
        arrays = {name: weight.detach().cpu().numpy() for name, weight in self._weights.items()}
        return [{name: array[k].copy() for name, array in arrays.items()} for k in range(len(self.members))]

    def drop_stopped(self) -> None:
        """Train only those that go on; the last one keeps a stopped one for company."""
        import torch

        rows = [k for k, member in enumerate(self.members) if member.goes_on]
        stopped = [k for k, member in enumerate(self.members) if not member.goes_on]
        rows += stopped[: max(0, FEWEST - len(rows))]
        if len(rows) == len(self.members):
            return
        at = torch.tensor(rows, device=self._device)
        for tensors in (self._weights, self._first, self._second):
            tensors.update({name: tensor.detach()[at] for name, tensor in tensors.items()})
        for weight in self._weights.values():
            weight.requires_grad_()
        self._rate_K, self._decay_K, self._l1_K = self._rate_K[at], self._decay_K[at], self._l1_K[at]
        self.members = [self.members[k] for k in rows]
        self._dropped = [self._dropped[k] for k in rows]

    def fail(self, error: ModelError) -> None:
        """End the fits that were still going on."""
        for member in self.members:
            if member.goes_on:
                member.failure, member.goes_on = error, False

    def _loss(
        self, weights: Mapping[str, torch.Tensor], x: torch.Tensor, y_B: torch.Tensor, factors: list[torch.Tensor]
    ) -> torch.Tensor:
        return self._objective.loss(self._network(weights, x, factors), y_B)

    def _dropout_factors(self, size: int) -> list[torch.Tensor]:
        """For each dropout the forward pass meets, factors (K, ...): 0, or 1 / (1 - rate) where a unit stays."""
        import torch

        factors = []
        for call in self._calls[size]:
            shape, stride = (len(self.members), *call.shape), (math.prod(call.shape), *call.stride)
            stacked = torch.empty_strided(shape, stride, device=self._device).fill_(1.0)
            for factor, member, rates in zip(stacked, self.members, self._dropped, strict=True):
                if call.layer in rates:
                    stays = 1 - rates[call.layer]
                    factor.bernoulli_(stays, generator=member.noise).div_(stays)
            factors.append(stacked)
        return factors

    def _step(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """AdamW with a rate and a decay for each network, then the proximal step of its l1, as in ``train_network``."""
        import torch

        self._num_steps += 1
        first_scale, second_scale = (1 - beta**self._num_steps for beta in BETAS)
        with torch.no_grad():
            for name, gradient in gradients.items():
                weight, first, second = self._weights[name], self._first[name], self._second[name]
                first.lerp_(gradient, 1 - BETAS[0])
                second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                scale = (second.sqrt() / second_scale**0.5).add_(EPSILON)
                weight.mul_(_each(1 - self._rate_K * self._decay_K, weight))
                weight.sub_((first / scale).mul_(_each(self._rate_K / first_scale, weight)))
                if self._has_l1 and name in self._penalised:
                    threshold = l1_threshold(_each(self._rate_K, weight), _each(self._l1_K, weight), scale)
                    weight.copy_(shrink(weight, threshold))


class _Untrained(SequenceModel):
    """A model before its fit."""

    def prepare(self, train: Window, valid: Window) -> tuple[Scaler, Regression, Regression]:
        """What ``SequenceModel.fit`` learns from and checks with."""
        self._scaler = Scaler.fit(train.x_TNF.reshape(-1, train.x_TNF.shape[2]))
        learn, check = self._samples(train, labelled=True), self._samples(valid, labelled=True)
        require_labels(learn.y_S)
        return self._scaler, Regression(x=learn.x_SLF, y_S=learn.y_S), Regression(x=check.x_SLF, y_S=check.y_S)


class _FromStack(SequenceModel):
    """A model whose ``fit`` takes what a stack found for it, or fails as it did there."""

    def __init__(
        self, regressor: SequenceRegressor, params: Params, *, lookback: int, outcome: State | ModelError
    ) -> None:
        super().__init__(regressor.build, params, lookback=lookback, objective=regressor.objective)
        self._outcome = outcome

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002 (the interface)
        if isinstance(self._outcome, ModelError):
            raise self._outcome
        with private_randomness(seed):  # which a new network draws from
            self.restore(self._outcome)


@dataclass(frozen=True, slots=True)
class _Given:
    """The factory of an architecture, of the one model whose fit had this outcome in a stack."""

    regressor: SequenceRegressor
    outcome: State | ModelError

    def __call__(self, params: Params, *, lookback: int) -> SequenceModel:
        return _FromStack(self.regressor, params, lookback=lookback, outcome=self.outcome)

    def load(self, folder: Path) -> SequenceModel:
        return self.regressor.load(folder)


def _try_fit(
    architecture: Architecture,
    params: Params,
    train: Window,
    valid: Window,
    *,
    lookback: int,
    seed: int,
    budget: Budget,
) -> FittedModel | ModelError:
    try:
        return fit_model(architecture, params, train, valid, lookback=lookback, seed=seed, budget=budget)
    except ModelError as error:
        return error


def _require_one_shape(members: Sequence[Member]) -> None:
    shapes = {str({name: array.shape for name, array in member.best.items()}) for member in members}
    if len(shapes) != 1:
        raise ModelError(
            f"{len(members)} networks of {len(shapes)} shapes cannot be stacked; stack those that differ in "
            f"{sorted(SHAPELESS)} alone"
        )
    trained = {name for name, _ in members[0].network.named_parameters()}
    if trained != set(members[0].best):
        raise ModelError(
            f"{sorted(set(members[0].best) ^ trained)} are not trained weights, which are all that is stacked; fit the "
            "variants one after another"
        )


def clipped(gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each network's gradients, shrunk to ``MAX_GRADIENT_NORM`` where longer: ``torch.nn.utils.clip_grad_norm_``."""
    import torch

    norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients.values()]
    norm_K = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    scale_K = (MAX_GRADIENT_NORM / (norm_K + 1e-6)).clamp(max=1.0)
    return {name: gradient * _each(scale_K, gradient) for name, gradient in gradients.items()}


def _each(value_K: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value for each network, shaped to broadcast over its tensor in ``like`` (K, ...)."""
    return value_K.view(-1, *[1] * (like.dim() - 1))
