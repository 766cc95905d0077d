"""A bidirectional long short-term memory over the lookback's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features, H hidden units of a direction, D = 2 directions.


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:  # noqa: ARG001 (every network's)
    """One LSTM layer either way, dropout and a linear head on where each ends.

    Both directions stay inside the lookback, so the score at t uses rows up to t inclusive. The backward one ends at
    the oldest row: its output at the newest would have read that row alone.
    """
    import torch

    class EndStatesRegressor(torch.nn.Module):
        def __init__(self, hidden_size: int, dropout: float) -> None:
            super().__init__()
            self.memory = torch.nn.LSTM(num_features, hidden_size, batch_first=True, bidirectional=True)
            self.dropout = torch.nn.Dropout(dropout)
            self.head = torch.nn.Linear(2 * hidden_size, 1)

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            _, (ends_DBH, _) = self.memory(x_BLF)
            return self.head(self.dropout(torch.cat([*ends_DBH], dim=1)))

    return EndStatesRegressor(int(params["hidden_size"]), float(params["dropout"]))


ARCHITECTURE = Architecture(
    name="bilstm",
    family="deep",
    cost_s=3.6,
    source=(
        "Graves and Schmidhuber (2005), Framewise Phoneme Classification with Bidirectional LSTM and Other Neural "
        "Network Architectures, Neural Networks 18(5-6)"
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
