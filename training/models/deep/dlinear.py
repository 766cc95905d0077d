"""Two linear layers over time: one on the moving average of the lookback, one on what remains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features.

LONGEST_AVERAGE: Final = 25


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:  # noqa: ARG001 (it has none)
    """DLinear with layers of their own for each feature (DLinear-I), whose forecasts a linear head mixes.

    It starts from the forecast 0 with a head of ones, so that the first steps are those of a linear regression: of
    random first weights many would outlive a short fit as noise.
    """
    import torch

    class DecomposedLinear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trend_weight_FL = torch.nn.Parameter(torch.zeros(num_features, lookback))
            self.remainder_weight_FL = torch.nn.Parameter(torch.zeros(num_features, lookback))
            self.head = torch.nn.Linear(num_features, 1)
            torch.nn.init.ones_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            trend_BFL, remainder_BFL = decompose(x_BLF.transpose(1, 2))
            return self.head((trend_BFL * self.trend_weight_FL + remainder_BFL * self.remainder_weight_FL).sum(dim=2))

    return DecomposedLinear()


def decompose(x_BFL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Trend and remainder, which add up to the input.

    The trend is the centred moving average over ``LONGEST_AVERAGE`` rows, or the largest odd number of them in the
    lookback, its ends padded with the first and the last row; nothing beyond the lookback is touched.
    """
    import torch

    num_rows = x_BFL.shape[2]
    width = min(LONGEST_AVERAGE, num_rows - 1 + num_rows % 2)
    padded_BFL = torch.nn.functional.pad(x_BFL, (width // 2, width // 2), mode="replicate")
    trend_BFL = torch.nn.functional.avg_pool1d(padded_BFL, width, stride=1)
    return trend_BFL, x_BFL - trend_BFL


ARCHITECTURE = Architecture(
    name="dlinear",
    family="deep",
    cost_s=0.6,
    source="Zeng, Chen, Zhang and Xu (2023), Are Transformers Effective for Time Series Forecasting?, AAAI",
    model=SequenceRegressor(build),
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
    },
)
