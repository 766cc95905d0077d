import numpy as np
import torch

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import gru_states, lstm_states, tensors
from training.models.deep.gru_lstm import build


def test_the_score_is_the_head_of_the_lstm_over_the_grus_states():
    torch.manual_seed(0)
    network = build(3, 7, {"hidden_size": 8, "dropout": 0.1}).eval()
    x_BLF = torch.randn(4, 7, 3)
    lower, upper, head = tensors(network.lower), tensors(network.upper), tensors(network.head)
    states_BH = np.array([lstm_states(upper, gru_states(lower, x_LF))[-1] for x_LF in x_BLF.double().numpy()])
    expected = states_BH @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(network(x_BLF).detach().numpy(), expected, atol=1e-5)


def test_it_learns_a_sign_that_lasts_until_the_next_announcement():
    """The label is feature 0 now times the sign that feature 1 last announced: no newest row and no sum tells."""
    x = planted_features()
    rng = np.random.default_rng(2)
    announced = rng.choice([-1.0, 1.0], x.shape[:2]) * (rng.random(x.shape[:2]) < 0.25)
    x[..., 1] = 2 * announced
    sign = np.zeros(x.shape[:2])
    for t in range(1, len(x)):
        sign[t] = np.where(announced[t] == 0, sign[t - 1], announced[t])
    panel = planted_panel(x, sign * x[..., 0])
    assert skill("gru_lstm", panel, lookback=10) > 0.7
    assert linear_skill(panel, lookback=10) < 0.2
    assert linear_skill(panel, lookback=1) < 0.2
