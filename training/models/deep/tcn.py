"""A temporal convolutional network: causal dilated convolutions over the lookback's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, M rows kept of the lookback, from the oldest to the newest, F features (and
# L lookback rows), C channels, H hidden channels.

KERNEL: Final = 3  # taps of a convolution


def receptive_field(num_levels: int) -> int:
    """Rows the newest output depends on: two convolutions a level, dilated by 1, 2, 4, ... from level to level."""
    return 1 + 2 * (KERNEL - 1) * (2**num_levels - 1)


def num_levels(lookback: int) -> int:
    """The fewest levels whose receptive field covers the lookback."""
    levels = 1
    while receptive_field(levels) < lookback:
        levels += 1
    return levels


def every(x_BCM: torch.Tensor, step: int) -> torch.Tensor:
    """The newest row and every ``step``-th before it."""
    return x_BCM[..., (x_BCM.shape[-1] - 1) % step :: step]


def causal(x_BCM: torch.Tensor, convolution: torch.nn.Conv1d) -> torch.Tensor:
    """Outputs that see their own row and the ``KERNEL - 1`` before it, 0 before the first.

    They are at the newest row and every ``stride``-th before it.
    """
    import torch

    padded_BCM = torch.nn.functional.pad(x_BCM, (KERNEL - 1, 0))
    return convolution(padded_BCM[..., (x_BCM.shape[-1] - 1) % convolution.stride[0] :])


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:
    """As many levels as the lookback needs and a linear head on the newest output.

    A level is a residual block of two convolutions, each with ReLU and spatial dropout (no weight normalisation).
    Only the newest output is asked for, so level i computes the rows that it needs, those at multiples of 2^i back:
    a dilation of 2^i over all rows is one of 1 over these, at a third of the work.
    """
    import torch

    class Level(torch.nn.Module):
        def __init__(self, num_channels: int, hidden_size: int, dropout: float) -> None:
            super().__init__()
            self.first = torch.nn.Conv1d(num_channels, hidden_size, KERNEL)
            self.second = torch.nn.Conv1d(hidden_size, hidden_size, KERNEL, stride=2)
            self.activation = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout1d(dropout))
            same = num_channels == hidden_size
            self.skip = torch.nn.Identity() if same else torch.nn.Conv1d(num_channels, hidden_size, 1)

        def forward(self, x_BCM: torch.Tensor) -> torch.Tensor:
            first_BHM = self.activation(causal(x_BCM, self.first))
            second_BHM = self.activation(causal(first_BHM, self.second))
            return torch.relu(second_BHM + self.skip(every(x_BCM, 2)))

    class NewestOutputRegressor(torch.nn.Module):
        def __init__(self, hidden_size: int, dropout: float) -> None:
            super().__init__()
            channels = [num_features] + [hidden_size] * (num_levels(lookback) - 1)
            self.levels = torch.nn.Sequential(*(Level(number, hidden_size, dropout) for number in channels))
            self.head = torch.nn.Linear(hidden_size, 1)

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            return self.head(self.levels(x_BLF.transpose(1, 2))[..., -1])

    return NewestOutputRegressor(int(params["hidden_size"]), float(params["dropout"]))


ARCHITECTURE = Architecture(
    name="tcn",
    family="deep",
    cost_s=3.4,
    source=(
        "Bai, Kolter and Koltun (2018), An Empirical Evaluation of Generic Convolutional and Recurrent Networks for "
        "Sequence Modeling, arXiv:1803.01271"
    ),
    model=SequenceRegressor(build),
    grid={"hidden_size": ("h", (64, 128, 256))},
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "dropout": (0.1, 0.2, 0.3),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
    },
)
