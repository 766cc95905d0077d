import numpy as np
import pytest
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import tensors
from training.models.deep.nhits import POOLED_ROWS, build


def network_of(lookback):
    torch.manual_seed(0)
    return build(3, lookback, {"hidden_size": 8, "dropout": 0.1}).eval()


@pytest.mark.parametrize("lookback", [1, 7, 30, 90])
def test_the_backcasts_and_what_is_left_are_the_input(lookback):
    network, x_BLF = network_of(lookback).double(), torch.randn(5, lookback, 3, dtype=torch.float64)
    backcasts, forecasts, left = network.parts(x_BLF)
    assert backcasts.shape == (5, len(POOLED_ROWS), 3, lookback)
    torch.testing.assert_close(backcasts.sum(dim=1) + left, x_BLF.transpose(1, 2))
    torch.testing.assert_close(forecasts.sum(dim=1), network(x_BLF))


def pooled(x_BFL, rate):
    starts = range(0, x_BFL.shape[2], rate)
    return np.stack([x_BFL[..., start : start + rate].max(axis=2) for start in starts], axis=2)


def drawn_out(knots_BFP, num_rows):
    """Linear between knots that stand in the middle of their rows, flat beyond the first and the last."""
    num_knots = knots_BFP.shape[2]
    places = (np.arange(num_rows) + 0.5) * num_knots / num_rows - 0.5
    return np.apply_along_axis(lambda knots: np.interp(places, np.arange(num_knots), knots), 2, knots_BFP)


@pytest.mark.parametrize("lookback", [7, 30])
def test_the_score_is_the_paper_s_recursion(lookback):
    """Maxima of rows, coarse to fine, and backcasts of as many knots: equations 1 to 5 and the double residual."""
    network, x_BLF = network_of(lookback), torch.randn(4, lookback, 3)
    weights, left, score = tensors(network), x_BLF.double().numpy().transpose(0, 2, 1), 0.0

    def linear(name, inputs):
        return inputs @ weights[f"blocks.{name}.weight"].T + weights[f"blocks.{name}.bias"]

    for block, rate in enumerate(POOLED_ROWS):
        hidden = np.maximum(linear(f"{block}.trunk.0", pooled(left, rate).reshape(4, -1)), 0)
        hidden = np.maximum(linear(f"{block}.trunk.2", hidden), 0)
        score = score + linear(f"{block}.forecast", hidden)
        left = left - drawn_out(linear(f"{block}.knots", hidden).reshape(4, 3, -1), lookback)
    np.testing.assert_allclose(network(x_BLF).detach().numpy(), score, atol=1e-5)


def test_blocks_go_from_coarse_to_fine():
    """Of 8 rows the coarsest block tells one level a feature, the finest a level a row."""
    coarse, _, fine = network_of(8).parts(torch.randn(4, 8, 3))[0].unbind(dim=1)
    assert torch.equal(coarse, coarse[..., :1].expand_as(coarse))
    assert (fine.diff(dim=2) != 0).all()


def test_every_row_reaches_the_score_also_where_a_rate_does_not_divide_the_lookback():
    network = network_of(7)
    x_BLF = torch.zeros(1, 7, 3)
    for row in range(7):
        changed = x_BLF.clone()
        changed[:, row] = 1.0
        assert (network(changed) != network(x_BLF)).all(), row


def test_it_learns_the_range_of_the_lookback():
    """The largest value of the rows less the smallest: linear models of the rows see nothing of it."""
    x, lookback = planted_features(), 16
    highest = np.full(x.shape[:2], np.nan)
    for t in range(lookback - 1, len(x)):
        rows = x[t - lookback + 1 : t + 1, :, 0]
        highest[t] = rows.max(axis=0) - rows.min(axis=0)
    panel = planted_panel(x, (highest - np.nanmean(highest)) / np.nanstd(highest))
    assert skill("nhits", panel, lookback=lookback) > 0.5
    assert linear_skill(panel, lookback=lookback) < 0.15
