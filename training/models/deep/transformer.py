"""A Transformer encoder over the lookback's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows from the oldest to the newest, Q rows that ask, F features,
# H hidden units = A attention heads x D units of a head.

HEADS: Final = 4
FEED_FORWARD: Final = 2  # width of the feed-forward network in widths of the model
LONGEST_WAVE: Final = 10_000.0


def positions_LH(lookback: int, hidden_size: int) -> NDArray[np.float32]:
    """Sine and cosine waves of the row number, from the oldest: section 3.5 of the paper."""
    rates_D = LONGEST_WAVE ** (-np.arange(0, hidden_size, 2) / hidden_size)
    angles_LD = np.arange(lookback)[:, None] * rates_D
    return np.stack([np.sin(angles_LD), np.cos(angles_LD)], axis=2).reshape(lookback, hidden_size).astype(np.float32)


def attend(queries_BQH: torch.Tensor, keys_BLH: torch.Tensor, values_BLH: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention in ``HEADS`` heads, (B, Q, H): equation 1 of the paper."""
    import torch

    heads = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (queries_BQH, keys_BLH, values_BLH))
    return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:
    """Encoder layers and a linear head on the newest row.

    Attention is over the whole lookback, which ends at the row to score: no mask is needed for causality. Layers
    normalise their input (Xiong et al. 2020, On Layer Normalization in the Transformer Architecture), which trains
    without a warm-up. Only the newest row's output is asked for, so in the last layer no other row asks.
    """
    import torch

    class EncoderLayer(torch.nn.Module):
        def __init__(self, hidden_size: int, dropout: float) -> None:
            super().__init__()
            self.before_attention = torch.nn.LayerNorm(hidden_size)
            self.query = torch.nn.Linear(hidden_size, hidden_size)
            self.key = torch.nn.Linear(hidden_size, hidden_size)
            self.value = torch.nn.Linear(hidden_size, hidden_size)
            self.mix = torch.nn.Linear(hidden_size, hidden_size)
            self.dropout = torch.nn.Dropout(dropout)
            self.feed_forward = torch.nn.Sequential(
                torch.nn.LayerNorm(hidden_size),
                torch.nn.Linear(hidden_size, FEED_FORWARD * hidden_size),
                torch.nn.ReLU(),
                torch.nn.Linear(FEED_FORWARD * hidden_size, hidden_size),
            )

        def forward(self, x_BLH: torch.Tensor, num_asking: int) -> torch.Tensor:
            normal_BLH = self.before_attention(x_BLH)
            queries_BQH = self.query(normal_BLH[:, -num_asking:])
            attended_BQH = attend(queries_BQH, self.key(normal_BLH), self.value(normal_BLH))
            x_BQH = x_BLH[:, -num_asking:] + self.dropout(self.mix(attended_BQH))
            return x_BQH + self.dropout(self.feed_forward(x_BQH))

    class EncoderRegressor(torch.nn.Module):
        def __init__(self, hidden_size: int, num_layers: int, dropout: float) -> None:
            super().__init__()
            self.embed = torch.nn.Linear(num_features, hidden_size)
            self.register_buffer("positions", torch.from_numpy(positions_LH(lookback, hidden_size)), persistent=False)
            self.dropout = torch.nn.Dropout(dropout)
            self.layers = torch.nn.ModuleList(EncoderLayer(hidden_size, dropout) for _ in range(num_layers))
            self.normalise = torch.nn.LayerNorm(hidden_size)
            self.head = torch.nn.Linear(hidden_size, 1)

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            x_BLH = self.dropout(self.embed(x_BLF) + self.positions)
            for layer in self.layers[:-1]:
                x_BLH = layer(x_BLH, num_asking=lookback)
            newest_BH = self.layers[-1](x_BLH, num_asking=1)[:, 0]
            return self.head(self.normalise(newest_BH))

    return EncoderRegressor(int(params["hidden_size"]), int(params["num_layers"]), float(params["dropout"]))


ARCHITECTURE = Architecture(
    name="transformer",
    family="deep",
    cost_s=2.4,
    source="Vaswani et al. (2017), Attention Is All You Need, NeurIPS",
    model=SequenceRegressor(build),
    grid={"hidden_size": ("h", (64, 128, 256))},
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "dropout": (0.1, 0.2, 0.3),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
        "num_layers": (1, 2),
    },
)
