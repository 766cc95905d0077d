import numpy as np
import pytest
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import tensors
from training.models.deep.patchtst import NUM_HEADS, NUM_PATCHES, build, patches

PARAMS = {"hidden_size": 32, "dropout": 0.1}


@pytest.mark.parametrize("lookback", [1, 3, 4, 7, 14, 30, 60, 90])
def test_patches_cover_the_lookback_in_order_and_end_with_the_newest_row(lookback):
    x_BFL = torch.arange(2.0 * lookback).reshape(1, 2, lookback)
    for feature, cut in zip(x_BFL[0], patches(x_BFL)[0], strict=True):
        rows = cut.flatten()
        repeated = len(rows) - lookback
        assert cut.shape[0] == NUM_PATCHES
        assert torch.equal(rows[repeated:], feature)
        assert (rows[:repeated] == feature[0]).all()


def randomised(lookback):
    torch.manual_seed(0)
    network = build(3, lookback, PARAMS).eval()
    with torch.no_grad():
        network.head.weight.normal_()
    return network


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def norm(x, weights, name):
    scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def encoded(weights, tokens_ND):
    """An encoder layer of Vaswani et al. (2017) on the tokens of one feature."""
    queries, keys, values = np.split(
        tokens_ND @ weights["self_attn.in_proj_weight"].T + weights["self_attn.in_proj_bias"], 3, axis=1
    )
    heads = []
    for query, key, value in zip(*(np.split(part, NUM_HEADS, axis=1) for part in (queries, keys, values)), strict=True):
        heads.append(softmax(query @ key.T / np.sqrt(query.shape[1])) @ value)
    mixed = np.hstack(heads) @ weights["self_attn.out_proj.weight"].T + weights["self_attn.out_proj.bias"]
    tokens_ND = norm(tokens_ND + mixed, weights, "norm1")
    hidden = np.maximum(tokens_ND @ weights["linear1.weight"].T + weights["linear1.bias"], 0)
    return norm(tokens_ND + hidden @ weights["linear2.weight"].T + weights["linear2.bias"], weights, "norm2")


@pytest.mark.parametrize("lookback", [7, 30])
def test_the_score_is_the_paper_s(lookback):
    network, x_BLF = randomised(lookback), torch.randn(4, lookback, 3)
    weights, encoder = tensors(network), tensors(network.encoder)
    for x_LF, score in zip(x_BLF.double(), network(x_BLF).detach(), strict=True):
        cut_FNP = patches(x_LF.T[None])[0].numpy()
        tokens_FND = cut_FNP @ weights["embed.weight"].T + weights["embed.bias"] + weights["position_ND"]
        states = np.concatenate([encoded(encoder, tokens_ND).ravel() for tokens_ND in tokens_FND])
        assert score.item() == pytest.approx(weights["head.weight"][0] @ states + weights["head.bias"][0], abs=1e-4)


def test_features_do_not_meet_before_they_are_summed():
    """f(a, b) - f(0, b) - f(a, 0) + f(0, 0) = 0 for any two features."""
    network = randomised(14).double()
    both = torch.randn(6, 14, 3, dtype=torch.float64)
    first, second, neither = both.clone(), both.clone(), both.clone()
    first[..., 1] = second[..., 0] = neither[..., 0] = neither[..., 1] = 0
    difference = network(both) - network(first) - network(second) + network(neither)
    torch.testing.assert_close(difference, torch.zeros_like(difference), atol=1e-12, rtol=0)


def test_it_learns_a_product_of_two_rows_of_a_feature():
    """Rows of one patch and of two; a linear model sees nothing of it."""
    x = planted_features()
    signal = np.zeros(x.shape[:2])
    signal[1:] = x[1:, :, 0] * x[:-1, :, 0]
    panel = planted_panel(x, signal)
    assert skill("patchtst", panel, lookback=4, max_epochs=30) > 0.5
    assert abs(linear_skill(panel, lookback=4)) < 0.15
