import numpy as np
import pytest
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from training.models.deep import tcn
from training.models.deep.tcn import KERNEL, build, causal, every, num_levels, receptive_field

PARAMS = {"hidden_size": 4, "dropout": 0.1}


def dilated(x_CL, convolution, dilation) -> np.ndarray:
    """Equation 2 of the paper at every row: the sum over taps i of f(i) x[row - dilation (KERNEL - 1 - i)]."""
    weight_HCK, bias_H = (tensor.detach().double().numpy() for tensor in (convolution.weight, convolution.bias))
    out_HL = np.repeat(bias_H[:, None], x_CL.shape[1], axis=1)
    for row in range(x_CL.shape[1]):
        for tap in range(KERNEL):
            source = row - dilation * (KERNEL - 1 - tap)
            if source >= 0:
                out_HL[:, row] += weight_HCK[:, :, tap] @ x_CL[:, source]
    return out_HL


def residual_stack(network, x_CL) -> np.ndarray:
    """The whole network as the paper has it: every level at all rows, dilated by 2^level."""
    for number, level in enumerate(network.levels):
        y_HL = np.maximum(dilated(x_CL, level.first, 2**number), 0)
        y_HL = np.maximum(dilated(y_HL, level.second, 2**number), 0)
        if not isinstance(level.skip, torch.nn.Identity):
            weight, bias = (tensor.detach().double().numpy() for tensor in (level.skip.weight, level.skip.bias))
            x_CL = weight[:, :, 0] @ x_CL + bias[:, None]
        x_CL = np.maximum(y_HL + x_CL, 0)
    return x_CL


def positive(network):
    """All weights positive: whatever a row reaches, it changes."""
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.abs_().add_(0.01)
    return network


def rows_that_matter(network, lookback) -> np.ndarray:
    x_BLF = torch.ones(1, lookback, 3, requires_grad=True)
    network(x_BLF).backward()
    return x_BLF.grad[0].abs().sum(dim=1).numpy() > 0


@pytest.mark.parametrize("lookback", [5, 7, 8, 13, 14, 30])
@pytest.mark.parametrize("num_features", [3, 4])
def test_the_score_is_that_of_the_dilated_network_at_the_newest_row(lookback, num_features):
    torch.manual_seed(lookback)
    network = build(num_features, lookback, PARAMS).eval()
    x_BLF = torch.randn(3, lookback, num_features)
    newest_BH = np.array([residual_stack(network, x_LF.T)[:, -1] for x_LF in x_BLF.double().numpy()])
    head = {name: tensor.detach().double().numpy() for name, tensor in network.head.named_parameters()}
    expected = newest_BH @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(network(x_BLF).detach().numpy(), expected, atol=1e-5)


def test_the_receptive_field_is_the_closed_form():
    assert [receptive_field(levels) for levels in (1, 2, 3, 4, 5)] == [5, 13, 29, 61, 125]
    assert {lookback: num_levels(lookback) for lookback in (5, 7, 13, 14, 30, 60, 90)} == {
        5: 1, 7: 2, 13: 2, 14: 3, 30: 4, 60: 4, 90: 5,
    }  # fmt: skip


@pytest.mark.parametrize("lookback", [7, 14, 30, 60, 90])
def test_every_row_of_the_lookback_reaches_the_score(lookback, monkeypatch):
    network = positive(build(3, lookback, PARAMS).eval())
    assert rows_that_matter(network, lookback).all()
    fewer = num_levels(lookback) - 1
    monkeypatch.setattr(tcn, "num_levels", lambda _: fewer)
    shallow = rows_that_matter(positive(build(3, lookback, PARAMS).eval()), lookback)
    assert shallow.sum() == receptive_field(fewer) < lookback
    assert not shallow[0]


def same_padded(x_BCM, convolution):
    """As many zeros after as before: what makes a convolution look ahead."""
    return convolution(torch.nn.functional.pad(x_BCM, ((KERNEL - 1) // 2, KERNEL // 2)))


@pytest.mark.parametrize("length", [1, 2, 9, 10])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_later_row_changes_no_earlier_output(length, stride):
    torch.manual_seed(0)
    convolution = torch.nn.Conv1d(3, 2, KERNEL, stride=stride)
    x_BCM = torch.randn(1, 3, length)
    rows = every(torch.arange(length)[None, None], stride)[0, 0]
    whole = causal(x_BCM, convolution)
    assert whole.shape == (1, 2, len(rows))
    for last in range(length - 1):
        changed = x_BCM.clone()
        changed[..., last + 1 :] += 1
        earlier = rows <= last
        assert torch.equal(causal(changed, convolution)[..., earlier], whole[..., earlier])
        if stride == 1:
            assert not torch.equal(
                same_padded(changed, convolution)[..., last], same_padded(x_BCM, convolution)[..., last]
            )


def test_it_learns_the_product_of_two_bars():
    """The label is feature 0 of two bars ago times that of four bars ago: no linear model can."""
    x = planted_features()
    signal = np.full(x.shape[:2], np.nan)
    signal[4:] = x[2:-2, :, 0] * x[:-4, :, 0]
    panel = planted_panel(x, signal)
    assert skill("tcn", panel, lookback=7) > 0.7
    assert linear_skill(panel, lookback=7) < 0.2
