"""A temporal fusion transformer: it picks features and rows, gates what it needs not, and gives quantiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params
from training.models.torch_training import Objective

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features, R rows (B L), E width of a
# feature's network, H hidden units, N heads, D width of a head, Q quantiles.

QUANTILES: Final = (0.1, 0.5, 0.9)
EMBEDDING: Final = 4
WEIGHING: Final = 32  # hidden units of the network that weighs the features
NUM_HEADS: Final = 4
NORM_EPSILON: Final = 1e-5


def pinball_loss(outputs_BQ: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the pinball losses at ``QUANTILES``, summed.

    A loss is q (y - o) for a label above the output o and (1 - q) (o - y) below, which the q-quantile of y minimises
    (paper, equations 24 and 25).
    """
    import torch

    quantile_Q = outputs_BQ.new_tensor(QUANTILES)
    above_BQ = y_B[:, None] - outputs_BQ
    return torch.maximum(quantile_Q * above_BQ, (quantile_Q - 1) * above_BQ).sum(dim=1).mean()


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:  # noqa: ARG001 (every network's)
    """The quantiles (B, Q) of the label, by the paper's path from observed inputs to the newest row.

    There are neither static covariates nor known future inputs here, so their encoders, the static enrichment and the
    decoder's later rows fall away; the newest row alone asks the attention. What is selected is narrow (E): the memory
    reads it as it is, since a widening before its own input weights would be multiplied into them, and the skip past
    the memory widens it.
    """
    import torch

    hidden_size, dropout = int(params["hidden_size"]), float(params["dropout"])

    class TemporalFusion(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.selection = variable_selection(num_features, dropout)
            self.expand = torch.nn.Linear(EMBEDDING, hidden_size)
            self.memory = torch.nn.LSTM(EMBEDDING, hidden_size, batch_first=True)
            self.memory_gate = gated_skip(hidden_size, hidden_size, dropout)
            self.attention = interpretable_attention(hidden_size)
            self.attention_gate = gated_skip(hidden_size, hidden_size, dropout)
            self.feed_forward = gated_residual(hidden_size, hidden_size, dropout=dropout)
            self.output_gate = gated_skip(hidden_size, hidden_size, dropout=0.0)
            self.quantiles = torch.nn.Linear(hidden_size, len(QUANTILES))
            torch.nn.init.zeros_(self.quantiles.weight)  # no guess to unlearn: the first steps follow the labels alone

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            selected_BLE, _ = self.selection(x_BLF)
            temporal_BLH = self.memory_gate(self.memory(selected_BLE)[0], self.expand(selected_BLE))
            newest_BH, (attended_BH, _) = temporal_BLH[:, -1], self.attention(temporal_BLH)
            fused_BH = self.feed_forward(self.attention_gate(attended_BH, newest_BH))
            return self.quantiles(self.output_gate(fused_BH, newest_BH))

    return TemporalFusion()


def gated_skip(num_inputs: int, num_outputs: int, dropout: float) -> torch.nn.Module:
    """Of (inputs, skip): LayerNorm(skip + GLU(inputs)), the gated linear unit of equation 5."""
    import torch

    class GatedSkip(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = torch.nn.Dropout(dropout)
            self.linear = torch.nn.Linear(num_inputs, 2 * num_outputs)
            self.norm = torch.nn.LayerNorm(num_outputs)

        def forward(self, inputs: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
            return self.norm(skip + torch.nn.functional.glu(self.linear(self.dropout(inputs))))

    return GatedSkip()


def gated_residual(
    num_inputs: int, hidden_size: int, *, dropout: float, num_outputs: int | None = None
) -> torch.nn.Module:
    """Gated residual network, equations 2 to 4 without context: LayerNorm(a + GLU(W1 ELU(W2 a + b2) + b1)).

    Where the numbers of inputs and outputs (``hidden_size`` unless given) differ, the skip is a linear map of a.
    """
    import torch

    width = hidden_size if num_outputs is None else num_outputs

    class GatedResidual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip = torch.nn.Identity() if num_inputs == width else torch.nn.Linear(num_inputs, width)
            self.inner = torch.nn.Linear(num_inputs, hidden_size)
            self.outer = torch.nn.Linear(hidden_size, hidden_size)
            self.gate = gated_skip(hidden_size, width, dropout)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outer = self.outer(torch.nn.functional.elu(self.inner(inputs)))
            return self.gate(outer, self.skip(inputs))

    return GatedResidual()


def variable_selection(num_features: int, dropout: float) -> torch.nn.Module:
    """Of (B, L, F): the selected inputs (B, L, E) and the weights (B, L, F) of the features, which sum to 1 in a row.

    Equations 6 to 8: features pass networks of their own and are summed by weights that depend on all of them. The
    features' first, linear embeddings are left to the networks' first layers, which they would be multiplied into.
    """
    import torch

    class VariableSelection(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = feature_residuals(num_features)
            self.weigh = gated_residual(num_features, WEIGHING, dropout=dropout, num_outputs=num_features)

        def forward(self, x_BLF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            weights_BLF = self.weigh(x_BLF).softmax(dim=2)
            weights_F1R, x_F1R = (each.flatten(0, 1).T.contiguous()[:, None] for each in (weights_BLF, x_BLF))
            selected_ER = (weights_F1R * self.transform(x_F1R)).sum(dim=0)
            return selected_ER.T.unflatten(0, x_BLF.shape[:2]), weights_BLF

    return VariableSelection()


def feature_residuals(num_features: int) -> torch.nn.Module:
    """A gated residual network for each feature, from (F, 1, R) to (F, E, R), all computed at once.

    Rows come last because they are many: the sums and activations then run along memory. Too narrow to drop units
    from.
    """
    import torch

    class FeatureLinear(torch.nn.Module):
        def __init__(self, num_inputs: int, num_outputs: int) -> None:
            super().__init__()
            bound = num_inputs**-0.5
            self.weight = torch.nn.Parameter(torch.empty(num_features, num_outputs, num_inputs).uniform_(-bound, bound))
            self.bias = torch.nn.Parameter(torch.empty(num_features, num_outputs, 1).uniform_(-bound, bound))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.baddbmm(self.bias, self.weight, inputs)

    class FeatureResiduals(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip = FeatureLinear(1, EMBEDDING)
            self.inner = FeatureLinear(1, EMBEDDING)
            self.outer = FeatureLinear(EMBEDDING, EMBEDDING)
            self.gate = FeatureLinear(EMBEDDING, 2 * EMBEDDING)
            self.scale = torch.nn.Parameter(torch.ones(num_features, EMBEDDING, 1))
            self.shift = torch.nn.Parameter(torch.zeros(num_features, EMBEDDING, 1))

        def forward(self, x_F1R: torch.Tensor) -> torch.Tensor:
            outer_FER = self.outer(torch.nn.functional.elu(self.inner(x_F1R)))
            gated_FER = torch.nn.functional.glu(self.gate(outer_FER), dim=1)
            return torch.addcmul(self.shift, self.scale, normalise(self.skip(x_F1R) + gated_FER))

    return FeatureResiduals()


def normalise(x_FER: torch.Tensor) -> torch.Tensor:
    """``torch.nn.LayerNorm`` without its weights, over E in the middle."""
    centred_FER = x_FER - x_FER.mean(dim=1, keepdim=True)
    return centred_FER * (centred_FER.square().mean(dim=1, keepdim=True) + NORM_EPSILON).rsqrt()


def interpretable_attention(hidden_size: int) -> torch.nn.Module:
    """Of (B, L, H): what the newest row gathers (B, H) and the weights (B, L) it gives the rows, which sum to 1.

    Equations 13 to 16: heads have queries and keys of their own and one value in common, so the mean of their weights
    is the weight of a row. With one query, its product with the keys' map and the values' map of the weighted rows
    come to the same as keys and values of every row, for a fraction of the work.
    """
    import torch

    head_size = hidden_size // NUM_HEADS

    class InterpretableAttention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = torch.nn.Linear(hidden_size, hidden_size)
            self.key = torch.nn.Linear(hidden_size, hidden_size, bias=False)  # one would cancel in the softmax
            self.value = torch.nn.Linear(hidden_size, head_size)
            self.output = torch.nn.Linear(head_size, hidden_size)

        def forward(self, rows_BLH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            query_BND = self.query(rows_BLH[:, -1]).unflatten(1, (NUM_HEADS, head_size))
            key_NDH = self.key.weight.unflatten(0, (NUM_HEADS, head_size))
            asked_BNH = torch.einsum("bnd,ndh->bnh", query_BND, key_NDH)
            logits_BNL = torch.einsum("bnh,blh->bnl", asked_BNH, rows_BLH) / head_size**0.5
            weights_BL = logits_BNL.softmax(dim=2).mean(dim=1)
            gathered_BH = torch.einsum("bl,blh->bh", weights_BL, rows_BLH)
            return self.output(self.value(gathered_BH)), weights_BL

    return InterpretableAttention()


ARCHITECTURE = Architecture(
    name="tft",
    family="deep",
    cost_s=6.6,
    source=(
        "Lim, Arik, Loeff and Pfister (2021), Temporal Fusion Transformers for Interpretable Multi-horizon Time Series "
        "Forecasting, International Journal of Forecasting 37(4)"
    ),
    model=SequenceRegressor(
        build, Objective(loss=pinball_loss, num_outputs=len(QUANTILES), score_output=QUANTILES.index(0.5))
    ),
    grid={"hidden_size": ("h", (64, 128, 256))},
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "dropout": (0.1, 0.2, 0.3),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
    },
)
