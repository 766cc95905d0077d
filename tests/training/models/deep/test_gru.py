import numpy as np
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import gru_states, tensors
from training.models.deep.gru import build


def test_the_score_is_the_head_of_the_recursions_last_state():
    torch.manual_seed(0)
    network = build(3, 7, {"hidden_size": 8, "dropout": 0.1}).eval()
    x_BLF = torch.randn(4, 7, 3)
    states_BH = np.array([gru_states(tensors(network.memory), x_LF)[-1] for x_LF in x_BLF.double().numpy()])
    head = tensors(network.head)
    expected = states_BH @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(network(x_BLF).detach().numpy(), expected, atol=1e-5)


def test_it_learns_to_hold_a_value_until_the_next_flag():
    """The label is feature 0 as it was at the latest flag: which row that is, a linear model cannot know."""
    x = planted_features()
    flagged = np.random.default_rng(2).random(x.shape[:2]) < 0.25
    x[..., 1] = np.where(flagged, 1, -1)
    held = np.zeros(x.shape[:2])
    for t in range(1, len(x)):
        held[t] = np.where(flagged[t], x[t, :, 0], held[t - 1])
    panel = planted_panel(x, held)
    assert skill("gru", panel, lookback=10, max_epochs=25) > 0.7
    assert linear_skill(panel, lookback=10) < 0.5
