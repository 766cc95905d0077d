"""Stacked blocks that each explain a part of the lookback away and add a part of the forecast."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features, I = L F inputs, K blocks.

NUM_BLOCKS: Final = 3
NUM_LAYERS: Final = 4


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:
    """Generic N-BEATS over the flattened rows of all features, with a forecast of one step.

    The paper's blocks are fully connected with a free basis (its trend and season bases need a horizon of many
    steps); its series is one, here the features of the lookback are the one input.
    """
    import torch

    num_inputs, hidden_size = lookback * num_features, int(params["hidden_size"])

    def trunk() -> torch.nn.Sequential:
        widths = [num_inputs] + NUM_LAYERS * [hidden_size]
        layers = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
        activated = [module for layer in layers for module in (layer, torch.nn.ReLU())]
        return torch.nn.Sequential(*activated, torch.nn.Dropout(float(params["dropout"])))

    class DoublyResidual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunks = torch.nn.ModuleList(trunk() for _ in range(NUM_BLOCKS))
            self.backcasts = torch.nn.ModuleList(torch.nn.Linear(hidden_size, num_inputs) for _ in range(NUM_BLOCKS))
            self.forecasts = torch.nn.ModuleList(torch.nn.Linear(hidden_size, 1) for _ in range(NUM_BLOCKS))

        def parts(self, x_BLF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """Backcasts (B, K, I), forecasts (B, K, 1) and what of the input no block explained (B, I)."""
            left_BI, backcasts, forecasts = x_BLF.flatten(1), [], []
            for trunk_, backcast, forecast in zip(self.trunks, self.backcasts, self.forecasts, strict=True):
                hidden_BH = trunk_(left_BI)
                backcasts.append(backcast(hidden_BH))
                forecasts.append(forecast(hidden_BH))
                left_BI = left_BI - backcasts[-1]
            return torch.stack(backcasts, dim=1), torch.stack(forecasts, dim=1), left_BI

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            return self.parts(x_BLF)[1].sum(dim=1)

    return DoublyResidual()


ARCHITECTURE = Architecture(
    name="nbeats",
    family="deep",
    cost_s=1.2,
    source="Oreshkin, Carpov, Chapados and Bengio (2020), N-BEATS: Neural Basis Expansion Analysis, ICLR",
    model=SequenceRegressor(build),
    grid={"hidden_size": ("h", (64, 128, 256))},
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "dropout": (0.1, 0.2, 0.3),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
    },
)
