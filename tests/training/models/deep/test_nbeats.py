import numpy as np
import pytest
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import tensors
from training.models.deep.nbeats import NUM_BLOCKS, NUM_LAYERS, build


def network_of(lookback=7):
    torch.manual_seed(0)
    return build(3, lookback, {"hidden_size": 8, "dropout": 0.1}).eval()


@pytest.mark.parametrize("lookback", [1, 7, 30])
def test_the_backcasts_and_what_is_left_are_the_input(lookback):
    network, x_BLF = network_of(lookback).double(), torch.randn(5, lookback, 3, dtype=torch.float64)
    backcasts, forecasts, left = network.parts(x_BLF)
    assert backcasts.shape == (5, NUM_BLOCKS, lookback * 3)
    torch.testing.assert_close(backcasts.sum(dim=1) + left, x_BLF.flatten(1))
    torch.testing.assert_close(forecasts.sum(dim=1), network(x_BLF))


def test_the_score_is_the_paper_s_recursion():
    """Equations 1 and 7 to 9: four rectified layers a block, whose backcast the next one does not see."""
    network, x_BLF = network_of(), torch.randn(4, 7, 3)
    weights, left, score = tensors(network), x_BLF.double().numpy().reshape(4, -1), 0.0

    def linear(name, inputs):
        return inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for block in range(NUM_BLOCKS):
        hidden = left
        for layer in range(NUM_LAYERS):
            hidden = np.maximum(linear(f"trunks.{block}.{2 * layer}", hidden), 0)
        score = score + linear(f"forecasts.{block}", hidden)
        left = left - linear(f"backcasts.{block}", hidden)
    np.testing.assert_allclose(network(x_BLF).detach().numpy(), score, atol=1e-5)


def test_it_learns_a_product_of_two_features():
    """A linear model sees nothing of it."""
    x = planted_features()
    panel = planted_panel(x, x[..., 0] * x[..., 1])
    assert skill("nbeats", panel, lookback=2) > 0.6
    assert abs(linear_skill(panel, lookback=2)) < 0.15
