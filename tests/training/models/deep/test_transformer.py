import numpy as np
import pytest
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from training.models.deep.transformer import HEADS, attend, build, positions_LH

LOOKBACK, HIDDEN = 6, 16


def network_of(num_layers):
    torch.manual_seed(0)
    network = build(3, LOOKBACK, {"hidden_size": HIDDEN, "dropout": 0.1, "num_layers": num_layers}).eval()
    for tensor in network.parameters():
        torch.nn.init.normal_(tensor, std=0.5)
    return network


def test_positions_are_the_papers_waves():
    positions = positions_LH(90, 8)
    for row in (0, 1, 50, 89):
        for pair in range(4):
            angle = row / 10_000 ** (2 * pair / 8)
            np.testing.assert_allclose(
                positions[row, 2 * pair : 2 * pair + 2], [np.sin(angle), np.cos(angle)], atol=1e-6
            )


@pytest.mark.parametrize("num_asking", [1, LOOKBACK])
def test_attention_is_a_softmax_of_scaled_products_in_each_head(num_asking):
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.standard_normal((2, rows, HIDDEN)) for rows in (num_asking, LOOKBACK, LOOKBACK))
    got = attend(*(torch.from_numpy(array) for array in (queries, keys, values))).numpy()
    width = HIDDEN // HEADS
    for head in range(HEADS):
        own = slice(head * width, (head + 1) * width)
        products = queries[..., own] @ keys[..., own].transpose(0, 2, 1) / np.sqrt(width)
        weights = np.exp(products - products.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        np.testing.assert_allclose(got[..., own], weights @ values[..., own], atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_score_is_that_of_the_full_encoder_at_the_newest_row(num_layers):
    network = network_of(num_layers)
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(HIDDEN, HEADS, 2 * HIDDEN, batch_first=True, norm_first=True),
        num_layers,
        norm=network.normalise,
        enable_nested_tensor=False,
    ).eval()
    for theirs, ours in zip(encoder.layers, network.layers, strict=True):
        copy_layer(theirs, ours)
    x_BLF = torch.randn(5, LOOKBACK, 3)
    with torch.no_grad():
        expected = network.head(encoder(network.embed(x_BLF) + torch.from_numpy(positions_LH(LOOKBACK, HIDDEN)))[:, -1])
        np.testing.assert_allclose(network(x_BLF).numpy(), expected.numpy(), atol=1e-4)


def copy_layer(theirs, ours) -> None:
    with torch.no_grad():
        projections = (ours.query, ours.key, ours.value)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
    theirs.self_attn.out_proj = ours.mix
    theirs.norm1 = ours.before_attention
    theirs.norm2, theirs.linear1, _, theirs.linear2 = ours.feed_forward


def test_the_order_of_the_older_rows_matters_by_their_positions_alone():
    network = network_of(2)
    x_BLF = torch.randn(4, LOOKBACK, 3)
    shuffled = x_BLF[:, [3, 0, 4, 2, 1, 5]]
    with torch.no_grad():
        assert (network(x_BLF) - network(shuffled)).abs().min() > 1e-3
        network.positions.zero_()
        torch.testing.assert_close(network(x_BLF), network(shuffled))


def test_it_learns_to_look_up_the_row_that_a_flag_marks():
    """The label is feature 0 in the one row of each ten that is flagged: where that is, a linear model cannot know."""
    x, lookback = planted_features(), 10
    marked = np.random.default_rng(2).integers(lookback, size=(len(x) // lookback, x.shape[1])).repeat(lookback, axis=0)
    flagged = np.arange(len(x))[:, None] % lookback == marked
    x[..., 1] = np.where(flagged, 3, 0)
    panel = planted_panel(x, latest(x[..., 0], flagged))
    assert skill("transformer", panel, lookback=lookback) > 0.7
    assert linear_skill(panel, lookback=lookback) < 0.5


def latest(values, flagged) -> np.ndarray:
    """The value at the latest flag, 0 before the first."""
    held = np.zeros(values.shape)
    for t in range(1, len(values)):
        held[t] = np.where(flagged[t], values[t], held[t - 1])
    return held
