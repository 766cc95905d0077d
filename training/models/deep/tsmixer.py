"""Perceptrons that mix the lookback in turn over time and over features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features.

NUM_LAYERS: Final = 2


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:
    """Mixing layers, a projection over time to one step, and a linear head over the features.

    The projection starts as the last row and the first score of every sample is 0: there is no guess to unlearn.
    """
    import torch

    class Mixer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (num_features, lookback, int(params["hidden_size"]), float(params["dropout"]))
            self.layers = torch.nn.Sequential(*(mixing_layer(*sizes) for _ in range(NUM_LAYERS)))
            self.projection = torch.nn.Linear(lookback, 1)
            self.head = torch.nn.Linear(num_features, 1)
            with torch.no_grad():
                self.projection.weight.zero_()[:, -1] = 1.0
                self.head.weight.zero_()

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            step_BF = self.projection(self.layers(x_BLF).transpose(1, 2))[:, :, 0]
            return self.head(step_BF)

    return Mixer()


def mixing_layer(num_features: int, lookback: int, hidden_size: int, dropout: float) -> torch.nn.Module:
    """Time mixing, the same for every feature, then feature mixing, the same for every row; both residual.

    Normalised over time and features together as in the paper, but by the sample itself rather than by its batch: a
    score must not depend on its company.
    """
    import torch

    class MixingLayer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time_norm = torch.nn.LayerNorm((lookback, num_features))
            self.time = torch.nn.Sequential(
                torch.nn.Linear(lookback, lookback), torch.nn.ReLU(), torch.nn.Dropout(dropout)
            )
            self.feature_norm = torch.nn.LayerNorm((lookback, num_features))
            self.features = torch.nn.Sequential(
                torch.nn.Linear(num_features, hidden_size),
                torch.nn.ReLU(),
                torch.nn.Dropout(dropout),
                torch.nn.Linear(hidden_size, num_features),
                torch.nn.Dropout(dropout),
            )

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            x_BLF = x_BLF + self.time(self.time_norm(x_BLF).transpose(1, 2)).transpose(1, 2)
            return x_BLF + self.features(self.feature_norm(x_BLF))

    return MixingLayer()


ARCHITECTURE = Architecture(
    name="tsmixer",
    family="deep",
    cost_s=3.0,
    source="Chen, Li, Yoder, Arik and Pfister (2023), TSMixer: An All-MLP Architecture for Time Series Forecasting",
    model=SequenceRegressor(build),
    grid={"hidden_size": ("h", (64, 128, 256))},
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "dropout": (0.1, 0.2, 0.3),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
    },
)
