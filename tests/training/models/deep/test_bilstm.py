import numpy as np
import pytest
import torch

from tests.training.models.deep.planted import planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import lstm_states, tensors
from training.models.deep.bilstm import build

HIDDEN = 8


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build(3, 7, {"hidden_size": HIDDEN, "dropout": 0.1}).eval()


def test_the_score_is_the_head_of_where_both_recursions_end(network):
    x_BLF = torch.randn(4, 7, 3)
    weights, head = tensors(network.memory), tensors(network.head)
    for x_LF, score in zip(x_BLF.double().numpy(), network(x_BLF).detach().numpy(), strict=True):
        forward, backward = lstm_states(weights, x_LF), lstm_states(weights, x_LF[::-1], suffix="_reverse")
        ends = np.concatenate([forward[-1], backward[-1]])
        np.testing.assert_allclose(score, head["weight"] @ ends + head["bias"], atol=1e-5)


def test_the_backward_half_reads_the_whole_lookback(network):
    """Unlike the layer's output at the newest row, whose backward half has read nothing but that row."""
    with torch.no_grad():
        network.head.weight[:, :HIDDEN] = 0
        x_BLF = torch.randn(1, 7, 3).repeat(8, 1, 1)
        for row in range(7):
            x_BLF[row + 1, row] += 1
        scores = network(x_BLF)[:, 0]
        outputs, _ = network.memory(x_BLF)
    assert (scores[1:] != scores[0]).all()
    newest = outputs[:, -1, HIDDEN:]
    assert torch.allclose(newest[1:7], newest[0])


def test_it_learns_what_lies_at_the_far_end_of_a_long_lookback():
    """The label is feature 0 of 24 bars ago: an LSTM has forgotten it, read backwards it comes last."""
    x = planted_features()
    signal = np.full(x.shape[:2], np.nan)
    signal[24:] = x[:-24, :, 0]
    panel = planted_panel(x, signal)
    assert skill("bilstm", panel, lookback=25, max_epochs=12) > 0.7
    assert skill("lstm", panel, lookback=25, max_epochs=12) < 0.3
