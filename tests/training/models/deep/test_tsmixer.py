import numpy as np
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import tensors
from training.models.deep.tsmixer import NUM_LAYERS, build, mixing_layer


def numpy_layer(weights, x_BLF):
    """Time mixing, then feature mixing, each of what is normalised over both axes and added to its input."""

    def norm(name, x):
        deviation = np.sqrt(x.var(axis=(1, 2), keepdims=True) + 1e-5)
        return (x - x.mean(axis=(1, 2), keepdims=True)) / deviation * weights[f"{name}.weight"] + weights[
            f"{name}.bias"
        ]

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    over_time = np.maximum(linear("time.0", norm("time_norm", x_BLF).transpose(0, 2, 1)), 0).transpose(0, 2, 1)
    x_BLF = x_BLF + over_time
    return x_BLF + linear("features.3", np.maximum(linear("features.0", norm("feature_norm", x_BLF)), 0))


def randomised(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    return module.eval()


def test_a_mixing_layer_is_the_paper_s():
    layer, x_BLF = randomised(mixing_layer(3, 7, 8, 0.1)), torch.randn(4, 7, 3)
    expected = numpy_layer(tensors(layer), x_BLF.double().numpy())
    np.testing.assert_allclose(layer(x_BLF).detach().numpy(), expected, atol=1e-4)


def test_the_score_is_a_projection_over_time_then_over_features():
    network, x_BLF = randomised(build(3, 7, {"hidden_size": 8, "dropout": 0.1})), torch.randn(4, 7, 3)
    mixed, weights = x_BLF.double().numpy(), tensors(network)
    for layer in range(NUM_LAYERS):
        mixed = numpy_layer(tensors(network.layers[layer]), mixed)
    step = np.einsum("blf,l->bf", mixed, weights["projection.weight"][0]) + weights["projection.bias"]
    expected = step @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(network(x_BLF).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_time_mixing_is_the_same_for_every_feature_and_feature_mixing_for_every_row():
    """So the layer has weights in time squared and in features, none in their product but the normalisations'."""
    layer = mixing_layer(5, 30, 8, 0.1)
    norms = 2 * 2 * 30 * 5
    assert sum(p.numel() for p in layer.parameters()) - norms == 30 * 30 + 30 + 5 * 8 + 8 + 8 * 5 + 5


def test_it_learns_a_product_of_two_features():
    """Feature mixing does; what takes features one by one or linearly sees nothing of it."""
    x = planted_features()
    panel = planted_panel(x, x[..., 0] * x[..., 1])
    assert skill("tsmixer", panel, lookback=2, max_epochs=30) > 0.6
    assert abs(linear_skill(panel, lookback=2)) < 0.15
    assert abs(skill("patchtst", panel, lookback=2, max_epochs=5)) < 0.2
