"""A gated recurrent unit over the lookback's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features, H hidden units.


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:  # noqa: ARG001 (every network's)
    """One GRU layer, dropout and a linear head on its last state."""
    import torch

    class LastStateRegressor(torch.nn.Module):
        def __init__(self, hidden_size: int, dropout: float) -> None:
            super().__init__()
            self.memory = torch.nn.GRU(num_features, hidden_size, batch_first=True)
            self.dropout = torch.nn.Dropout(dropout)
            self.head = torch.nn.Linear(hidden_size, 1)

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            states_BLH, _ = self.memory(x_BLF)
            return self.head(self.dropout(states_BLH[:, -1]))

    return LastStateRegressor(int(params["hidden_size"]), float(params["dropout"]))


ARCHITECTURE = Architecture(
    name="gru",
    family="deep",
    cost_s=2.8,
    source=(
        "Cho et al. (2014), Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine "
        "Translation, EMNLP"
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
