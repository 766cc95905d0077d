"""Stacked blocks that see the lookback at different rates, from coarse to fine, each explaining a part of it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features, K blocks, P pooled rows, H hidden units.

POOLED_ROWS: Final = (8, 4, 1)  # rows a pooled one stands for, a block each


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:
    """N-HiTS with one block a rate and a forecast of one step.

    A block pools the rows (multi-rate sampling), and its backcast has as many knots as it saw pooled rows, drawn out
    linearly to the lookback (hierarchical interpolation). Of one step there is nothing to draw out in the forecast.
    """
    import torch

    hidden_size, dropout = int(params["hidden_size"]), float(params["dropout"])

    class Block(torch.nn.Module):
        def __init__(self, rate: int) -> None:
            super().__init__()
            self.pool = torch.nn.MaxPool1d(rate, ceil_mode=True)
            num_knots = -(-lookback // rate)
            self.trunk = torch.nn.Sequential(
                torch.nn.Linear(num_knots * num_features, hidden_size),
                torch.nn.ReLU(),
                torch.nn.Linear(hidden_size, hidden_size),
                torch.nn.ReLU(),
                torch.nn.Dropout(dropout),
            )
            self.knots = torch.nn.Linear(hidden_size, num_features * num_knots)
            self.forecast = torch.nn.Linear(hidden_size, 1)

        def forward(self, x_BFL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Backcast (B, F, L) and forecast (B, 1)."""
            hidden_BH = self.trunk(self.pool(x_BFL).flatten(1))
            knots_BFP = self.knots(hidden_BH).unflatten(1, (num_features, -1))
            backcast_BFL = torch.nn.functional.interpolate(knots_BFP, size=lookback, mode="linear")
            return backcast_BFL, self.forecast(hidden_BH)

    class HierarchicalInterpolation(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(Block(rate) for rate in POOLED_ROWS)

        def parts(self, x_BLF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """Backcasts (B, K, F, L), forecasts (B, K, 1) and what of the input no block explained (B, F, L)."""
            left_BFL, backcasts, forecasts = x_BLF.transpose(1, 2), [], []
            for block in self.blocks:
                backcast_BFL, forecast_B1 = block(left_BFL)
                backcasts.append(backcast_BFL)
                forecasts.append(forecast_B1)
                left_BFL = left_BFL - backcast_BFL
            return torch.stack(backcasts, dim=1), torch.stack(forecasts, dim=1), left_BFL

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            return self.parts(x_BLF)[1].sum(dim=1)

    return HierarchicalInterpolation()


ARCHITECTURE = Architecture(
    name="nhits",
    family="deep",
    cost_s=1.2,
    source="Challu et al. (2023), N-HiTS: Neural Hierarchical Interpolation for Time Series Forecasting, AAAI",
    model=SequenceRegressor(build),
    grid={"hidden_size": ("h", (64, 128, 256))},
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "dropout": (0.1, 0.2, 0.3),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
    },
)
