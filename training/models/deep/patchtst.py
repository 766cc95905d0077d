"""A transformer over patches of the lookback, one feature at a time with weights in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from training.models.deep.sequence import SequenceRegressor
from training.models.spec import Architecture, Params

if TYPE_CHECKING:
    import torch

# Tensor suffixes: B a batch of samples, L lookback rows, F features, N patches, P rows of a patch, D token width.

NUM_PATCHES: Final = 4
NUM_HEADS: Final = 2


def build(num_features: int, lookback: int, params: Params) -> torch.nn.Module:
    """PatchTST: patches to tokens, an encoder layer that attends within a feature, a linear head over all tokens.

    ``hidden_size`` is the width of the feed-forward layers; tokens have a quarter of it. The head has weights of its
    own for each feature, so the score is the sum of the features' forecasts; it starts at 0, so there is no guess to
    unlearn. The paper's instance normalisation is left out: it would hide the level of a feature, which here informs
    and is scaled already. Its 42 patches and 3 layers are for lookbacks of 336 rows; here it is 4 and 1.
    """
    import torch

    hidden_size, dropout = int(params["hidden_size"]), float(params["dropout"])
    token_size = hidden_size // 4

    class PatchTransformer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Linear(patch_rows(lookback), token_size)
            self.position_ND = torch.nn.Parameter(0.02 * torch.randn(NUM_PATCHES, token_size))
            self.encoder = torch.nn.TransformerEncoderLayer(
                token_size, NUM_HEADS, hidden_size, dropout=0.0, batch_first=True
            )
            self.dropout = torch.nn.Dropout(dropout)
            self.head = torch.nn.Linear(num_features * NUM_PATCHES * token_size, 1)
            torch.nn.init.zeros_(self.head.weight)

        def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
            tokens_BFND = self.dropout(self.embed(patches(x_BLF.transpose(1, 2))) + self.position_ND)
            encoded_BFND = self.encoder(tokens_BFND.flatten(0, 1)).unflatten(0, (-1, num_features))
            return self.head(self.dropout(encoded_BFND.flatten(1)))

    return PatchTransformer()


def patches(x_BFL: torch.Tensor) -> torch.Tensor:
    """Patches (B, F, N, P) one after another, the last of which ends with the newest row.

    Before the oldest row that row is repeated, so that every row of any lookback is in a patch.
    """
    import torch

    num_rows = x_BFL.shape[2]
    missing = NUM_PATCHES * patch_rows(num_rows) - num_rows
    return torch.nn.functional.pad(x_BFL, (missing, 0), mode="replicate").unflatten(2, (NUM_PATCHES, -1))


def patch_rows(lookback: int) -> int:
    """Rows of a patch: the fewest with which ``NUM_PATCHES`` cover the lookback."""
    return -(-lookback // NUM_PATCHES)


ARCHITECTURE = Architecture(
    name="patchtst",
    family="deep",
    cost_s=5.3,
    source="Nie, Nguyen, Sinthong and Kalagnanam (2023), A Time Series is Worth 64 Words, ICLR",
    model=SequenceRegressor(build),
    grid={"hidden_size": ("h", (64, 128, 256))},
    space={
        "learning_rate": (1e-3, 5e-4, 1e-4),
        "dropout": (0.1, 0.2, 0.3),
        "weight_decay": (0.0, 1.0, 10.0),
        "l1": (0.0, 1e-4),
    },
)
