"""A gated recurrent unit whose states a long short-term memory reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features, H hidden units.


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:  # noqa: ARG001 (every network's)
    """A GRU layer, an LSTM layer over its states and a linear head on the last one, with dropout after each layer."""
    import torch

    class HybridRegressor(torch.nn.Module):
        def __init__(self, hidden_size: int, dropout: float) -> None:
            super().__init__()
            self.lower = torch.nn.GRU(num_features, hidden_size, batch_first=True)
            self.upper = torch.nn.LSTM(hidden_size, hidden_size, batch_first=True)
            self.dropout = torch.nn.Dropout(dropout)
            self.head = torch.nn.Linear(hidden_size, 1)

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            lower_BLH, _ = self.lower(x_BLF)
            upper_BLH, _ = self.upper(self.dropout(lower_BLH))
            return self.head(self.dropout(upper_BLH[:, -1]))

    return HybridRegressor(int(params["hidden_size"]), float(params["dropout"]))


ARCHITECTURE = Architecture(
    name="gru_lstm",
    family="deep",
    cost_s=5.1,
    source=(
        "Islam and Hossain (2021), Foreign exchange currency rate prediction using a GRU-LSTM hybrid network, "
        "Soft Computing Letters 3"
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
