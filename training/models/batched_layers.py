"""A network as a pure function of its weights that ``torch.vmap`` can batch over many networks of its shape.

Two kinds of layers stand in the way. Dropout draws for itself, and each network has a rate and random numbers of its
own: here its factors are given. The recurrent layers have no batching rule: here they are loops over the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from training.models.spec import ModelError
from training.models.torch_runtime import private_randomness

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L rows of the lookback, F features, H hidden units, D directions, G gates x
# hidden units, K networks.

Recurrence: TypeAlias = "Callable[[torch.nn.RNNBase, torch.Tensor, str], tuple[torch.Tensor, tuple[torch.Tensor, ...]]]"
"""A layer, its inputs and the suffix of a direction's weights to the states of every row and the last ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DropoutCall:
    """A dropout that the forward pass meets: its layer, and how the layer's random numbers lie in memory."""

    layer: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class PureNetwork:
    """``network`` as a function of weights, inputs and dropout factors; its own weights are not used.

    The network is taken over: its layers are changed. ``dropouts`` names the layers that drop in any of the networks
    it stands for; others pass their input on.
    """

    def __init__(self, network: torch.nn.Module, *, dropouts: Sequence[str]) -> None:
        self._network = network.train()  # the faster paths of evaluation cannot be batched
        self._factors: Iterator[torch.Tensor] | None = None
        for name, layer in network.named_modules():
            forward = self._drop if name in dropouts else _batchable(layer)
            if forward is not None:
                layer.forward = forward
        network.requires_grad_(requires_grad=False)

    def __call__(
        self, weights: Mapping[str, torch.Tensor], x: torch.Tensor, factors: Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Outputs (B, Q); ``factors`` in the order of the calls, without them nothing is dropped."""
        from torch.func import functional_call

        self._factors = None if factors is None else iter(factors)
        return functional_call(self._network, dict(weights), (x,))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._factors is None else x * next(self._factors)


@contextmanager
def batchable_kernels() -> Iterator[None]:
    """Meanwhile attention by its formula, whose fused kernels have no batching rule, and cuDNN exact and repeatable."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with sdpa_kernel(SDPBackend.MATH), exact:
        yield


def dropout_rates(network: torch.nn.Module) -> dict[str, float]:
    """The rate of every dropout layer, by the layer's name; those that never drop are left out."""
    return {name: layer.p for name, layer in network.named_modules() if _is_dropout(layer) and layer.p > 0}


def dropout_calls(network: torch.nn.Module, x: torch.Tensor, *, dropouts: Sequence[str]) -> list[DropoutCall]:
    """The dropouts of these layers that the forward pass of ``x`` meets, in order; ``network`` is as it was built."""
    import torch

    calls: list[DropoutCall] = []

    def note(name: str, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        noise = inputs[0] if type(layer) is torch.nn.Dropout else inputs[0].new_empty((*inputs[0].shape[:2], 1))
        calls.append(DropoutCall(layer=name, shape=tuple(noise.shape), stride=noise.stride()))

    hooks = [network.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in dropouts]
    with private_randomness(0), torch.no_grad():
        network.train()(x)
    for hook in hooks:
        hook.remove()
    return calls


def _is_dropout(layer: torch.nn.Module) -> bool:
    import torch

    return type(layer) in (torch.nn.Dropout, torch.nn.Dropout1d)


def _batchable(layer: torch.nn.Module) -> Callable[..., Any] | None:
    """Another forward for a layer without a batching rule, of the same inputs, weights and outputs."""
    import torch

    if _is_dropout(layer):
        return _pass_on
    if not isinstance(layer, torch.nn.RNNBase):
        return None
    run = {"LSTM": _run_lstm, "GRU": _run_gru}.get(layer.mode)
    plain = layer.num_layers == 1 and not layer.proj_size and layer.batch_first and layer.bias
    if run is None or not plain:
        raise ModelError(
            f"{layer} cannot be stacked, only an LSTM or GRU of one layer with biases and the batch first can; "
            "write it as several of those or fit the variants one after another"
        )
    return partial(_recur, layer, run)


def _pass_on(x: torch.Tensor) -> torch.Tensor:
    return x


def _recur(
    layer: torch.nn.RNNBase, run: Recurrence, x_BLF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | tuple[torch.Tensor, ...]]:
    """States (B, L, D H) and where each direction ended (D, B, H), as ``torch.nn.LSTM`` and ``torch.nn.GRU`` do."""
    import torch

    states_BLG, ends = run(layer, x_BLF, "_l0")
    directions, ends_D = [states_BLG], [ends]
    if layer.bidirectional:
        states_BLG, ends = run(layer, x_BLF.flip(1), "_l0_reverse")
        directions.append(states_BLG.flip(1))
        ends_D.append(ends)
    stacked = tuple(torch.stack(each) for each in zip(*ends_D, strict=True))
    return torch.cat(directions, dim=2), stacked if layer.mode == "LSTM" else stacked[0]


def _run_lstm(
    layer: torch.nn.RNNBase, x_BLF: torch.Tensor, suffix: str
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Hidden states of every row, and the last hidden and cell state."""
    import torch

    recurrent_HG = getattr(layer, "weight_hh" + suffix).T
    bias_G = getattr(layer, "bias_ih" + suffix) + getattr(layer, "bias_hh" + suffix)
    inputs_BLG = x_BLF @ getattr(layer, "weight_ih" + suffix).T + bias_G
    hidden_BH = cell_BH = x_BLF.new_zeros(len(x_BLF), layer.hidden_size)
    rows = []
    for inputs_BG in inputs_BLG.unbind(1):  # not by index: each index would cost a gradient of all rows
        ingate, forget, new, outgate = (inputs_BG + hidden_BH @ recurrent_HG).chunk(4, dim=1)
        cell_BH = forget.sigmoid() * cell_BH + ingate.sigmoid() * new.tanh()
        hidden_BH = outgate.sigmoid() * cell_BH.tanh()
        rows.append(hidden_BH)
    return torch.stack(rows, dim=1), (hidden_BH, cell_BH)


def _run_gru(
    layer: torch.nn.RNNBase, x_BLF: torch.Tensor, suffix: str
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Hidden states of every row, and the last one."""
    import torch

    recurrent_HG = getattr(layer, "weight_hh" + suffix).T
    bias_G = getattr(layer, "bias_hh" + suffix)
    inputs_BLG = x_BLF @ getattr(layer, "weight_ih" + suffix).T + getattr(layer, "bias_ih" + suffix)
    hidden_BH = x_BLF.new_zeros(len(x_BLF), layer.hidden_size)
    rows = []
    for inputs_BG in inputs_BLG.unbind(1):
        reset_x, update_x, new_x = inputs_BG.chunk(3, dim=1)
        reset_h, update_h, new_h = (hidden_BH @ recurrent_HG + bias_G).chunk(3, dim=1)
        update = (update_x + update_h).sigmoid()
        new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        hidden_BH = new + update * (hidden_BH - new)
        rows.append(hidden_BH)
    return torch.stack(rows, dim=1), (hidden_BH,)
