import numpy as np
import pytest
import torch
from scipy.special import expit

from tests.training.models.deep.planted import linear_skill, planted_features, planted_panel, skill
from tests.training.models.deep.recurrences import lstm_states, tensors
from tests.training.models.toys import panel_of
from training.dataset import window
from training.models.deadline import Deadline
from training.models.deep.tft import (
    NUM_HEADS,
    QUANTILES,
    build,
    feature_residuals,
    gated_residual,
    interpretable_attention,
    pinball_loss,
    variable_selection,
)
from training.models.fitted import fit_model
from training.models.registry import architecture
from training.models.spec import Budget
from training.models.torch_runtime import one_thread, private_randomness
from training.models.torch_training import Regression, train_network

PARAMS = {"hidden_size": 16, "dropout": 0.1}
LOOKBACK = 5


def randomised(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    return module.double().eval()


# The paper's equations in plain numpy, on torch's tensors under a prefix.


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def norm(x, scale=1.0, shift=0.0):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * scale + shift


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def glu(x):
    value, gate = np.split(x, 2, axis=-1)
    return value * expit(gate)


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def numpy_gated_skip(weights, name, inputs, skip):
    gated = glu(linear(weights, f"{name}.linear", inputs))
    return norm(skip + gated, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])


def numpy_gated_residual(weights, name, x):
    skip = linear(weights, f"{name}.skip", x) if f"{name}.skip.weight" in weights else x
    outer = linear(weights, f"{name}.outer", elu(linear(weights, f"{name}.inner", x)))
    return numpy_gated_skip(weights, f"{name}.gate", outer, skip)


def numpy_selection(weights, x_LF):
    """A network a feature, then the weighted sum: equations 6 to 8."""
    weights_LF = softmax(numpy_gated_residual(weights, "weigh", x_LF))
    selected = 0.0
    for feature, x_L in enumerate(x_LF.T):

        def of(name, inputs, feature=feature):
            stacked = weights[f"transform.{name}.weight"][feature], weights[f"transform.{name}.bias"][feature]
            return inputs @ stacked[0].T + stacked[1].T

        x_L1 = x_L[:, None]
        gated = of("skip", x_L1) + glu(of("gate", of("outer", elu(of("inner", x_L1)))))
        scale, shift = (weights[f"transform.{name}"][feature].T for name in ("scale", "shift"))
        selected = selected + weights_LF[:, [feature]] * norm(gated, scale, shift)
    return selected, weights_LF


def numpy_attention(weights, rows_LH):
    """Keys and values of every row, every head's weights, and their mean on the common value: equations 13 to 16."""
    values_LD = linear(weights, "value", rows_LH)
    queries = np.split(linear(weights, "query", rows_LH)[-1], NUM_HEADS)
    keys = np.split(linear(weights, "key", rows_LH), NUM_HEADS, axis=1)
    heads = [softmax(key @ query / np.sqrt(len(query))) for query, key in zip(queries, keys, strict=True)]
    gathered_D = np.mean([head @ values_LD for head in heads], axis=0)
    return linear(weights, "output", gathered_D), np.mean(heads, axis=0)


def part_of(weights, name):
    return {key.removeprefix(f"{name}."): array for key, array in weights.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(6, None), (4, None), (6, 3)])
def test_a_gated_residual_network_is_the_paper_s(num_inputs, num_outputs):
    network = randomised(gated_residual(num_inputs, 6, dropout=0.1, num_outputs=num_outputs))
    x = torch.randn(5, num_inputs, dtype=torch.float64)
    weights = {f"grn.{name}": array for name, array in tensors(network).items()}
    expected = numpy_gated_residual(weights, "grn", x.numpy())
    np.testing.assert_allclose(network(x).detach().numpy(), expected, atol=1e-10)


def test_a_shut_gate_leaves_the_skip():
    network = randomised(gated_residual(6, 6, dropout=0.1))
    with torch.no_grad():
        network.gate.linear.weight[6:], network.gate.linear.bias[6:] = 0, -1e9
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(network(x), network.gate.norm(x))


def test_variable_selection_is_the_paper_s_and_its_weights_sum_to_1():
    selection = randomised(variable_selection(3, 0.1))
    x_BLF = torch.randn(4, LOOKBACK, 3, dtype=torch.float64)
    selected, weights = (part.detach().numpy() for part in selection(x_BLF))
    np.testing.assert_allclose(weights.sum(axis=2), 1)
    for sample in range(4):
        expected = numpy_selection(tensors(selection), x_BLF[sample].numpy())
        np.testing.assert_allclose(selected[sample], expected[0], atol=1e-10)
        np.testing.assert_allclose(weights[sample], expected[1], atol=1e-10)


def test_features_have_networks_of_their_own():
    network = randomised(feature_residuals(3))
    x_F1R = torch.randn(1, 1, 5, dtype=torch.float64).expand(3, 1, 5).clone()
    same = network(x_F1R)
    assert not torch.allclose(same[0], same[1])
    x_F1R[1] += 1
    changed = (network(x_F1R) != same).any(dim=1).all(dim=1)
    assert changed.tolist() == [False, True, False]


def test_attention_is_the_paper_s_and_its_weights_sum_to_1():
    attention = randomised(interpretable_attention(16))
    rows_BLH = torch.randn(4, LOOKBACK, 16, dtype=torch.float64)
    gathered, weights = (part.detach().numpy() for part in attention(rows_BLH))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    for sample in range(4):
        expected = numpy_attention(tensors(attention), rows_BLH[sample].numpy())
        np.testing.assert_allclose(gathered[sample], expected[0], atol=1e-10)
        np.testing.assert_allclose(weights[sample], expected[1], atol=1e-10)


def test_the_quantiles_are_the_paper_s_path():
    network = randomised(build(3, LOOKBACK, PARAMS))
    x_BLF, weights = torch.randn(4, LOOKBACK, 3, dtype=torch.float64), tensors(network)
    for x_LF, outputs in zip(x_BLF.numpy(), network(x_BLF).detach().numpy(), strict=True):
        selected_LE, _ = numpy_selection(part_of(weights, "selection"), x_LF)
        states_LH = lstm_states(part_of(weights, "memory"), selected_LE)
        temporal_LH = numpy_gated_skip(weights, "memory_gate", states_LH, linear(weights, "expand", selected_LE))
        attended_H, _ = numpy_attention(part_of(weights, "attention"), temporal_LH)
        attended_H = numpy_gated_skip(weights, "attention_gate", attended_H, temporal_LH[-1])
        fused_H = numpy_gated_residual(weights, "feed_forward", attended_H)
        fused_H = numpy_gated_skip(weights, "output_gate", fused_H, temporal_LH[-1])
        np.testing.assert_allclose(outputs, linear(weights, "quantiles", fused_H), atol=1e-8)


def test_pinball_loss_by_hand():
    """Labels 2 and -1 for outputs 0, 1, 3: (0.2 + 0.5 + 0.1) and (0.9 + 1 + 0.4)."""
    outputs = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
    assert QUANTILES == (0.1, 0.5, 0.9)
    assert pinball_loss(outputs, torch.tensor([2.0, -1.0])).item() == pytest.approx((0.8 + 2.3) / 2)
    assert pinball_loss(outputs[:, [0, 0, 0]], torch.zeros(2)).item() == 0


def test_the_pinball_loss_is_least_at_the_quantiles():
    y = torch.from_numpy(np.random.default_rng(0).exponential(size=2001))
    best = torch.quantile(y, torch.tensor(QUANTILES, dtype=torch.float64))
    least = pinball_loss(best.expand(len(y), -1), y)
    for shift in torch.eye(3, dtype=torch.float64) * 0.05:
        for moved in (best + shift, best - shift):
            assert pinball_loss(moved.expand(len(y), -1), y) > least


@pytest.fixture(scope="module")
def spread():
    """A network fitted to noise as wide as feature 2 of the newest row tells, round the value of feature 0."""
    rng = np.random.default_rng(0)

    def draw(num):
        x = rng.standard_normal((num, LOOKBACK, 6)).astype(np.float32)
        width = np.where(x[:, -1, 2] > 0, 1.5, 0.3)
        return Regression(x=x, y_S=x[:, -1, 0] + width * rng.standard_normal(num)), width

    budget = Budget(max_epochs=20)
    with one_thread(), private_randomness(1):
        network = build(6, LOOKBACK, PARAMS)
        train_network(
            network,
            draw(4000)[0],
            draw(1000)[0],
            learning_rate=1e-2,
            weight_decay=0.0,
            budget=budget,
            deadline=Deadline(budget),
            objective=architecture("tft").model.objective,
        )
    return network, *draw(2000)


def test_the_quantiles_cover_what_they_say_also_where_the_noise_is_wide_and_where_it_is_narrow(spread):
    """Of labels below a quantile's output, within four standard errors and a little; one width for all would not do."""
    network, fresh, width = spread
    with torch.inference_mode():
        outputs_SQ = network(torch.from_numpy(fresh.x)).numpy()
    for part in (width > 1, width < 1):
        share_Q = (fresh.y_S[part, None] < outputs_SQ[part]).mean(axis=0)
        np.testing.assert_allclose(share_Q, QUANTILES, atol=0.08)
    gap = outputs_SQ[:, 2] - outputs_SQ[:, 0]
    assert gap[width > 1].mean() > 2 * gap[width < 1].mean()


def test_selection_finds_the_features_that_inform(spread):
    network, fresh, _ = spread
    with torch.inference_mode():
        weights_F = network.selection(torch.from_numpy(fresh.x))[1].mean(dim=(0, 1)).numpy()
    assert set(np.argsort(weights_F)[-2:]) == {0, 2}
    assert weights_F[[0, 2]].sum() > 0.5


def test_the_score_is_the_median():
    """Labels without a signal and with a long tail: their mean is 1, their median ln 2."""
    rng = np.random.default_rng(0)
    x, forward = rng.standard_normal((400, 6, 2)).astype(np.float32), 0.01 * rng.exponential(size=(400, 6))
    panel = panel_of(x=x, returns=np.zeros((400, 6)), forward=forward)
    learn = np.ones(400, dtype=bool)
    train, valid = (window(panel, *span, lookback=3, learn_T=learn) for span in ((10, 250), (250, 300)))
    params = {"hidden_size": 16, "learning_rate": 1e-2}
    model = fit_model(architecture("tft"), params, train, valid, lookback=3, seed=1, budget=Budget(max_epochs=30))
    score = model.predict(window(panel, 300, 400, lookback=3)).score_TN
    assert abs(np.median(score) - np.log(2)) < 0.12


def test_it_learns_to_look_up_the_row_that_a_flag_marks():
    """The label is feature 0 as it was at the latest flag: which row that is, a linear model cannot know."""
    x = planted_features()
    flagged = np.random.default_rng(2).random(x.shape[:2]) < 0.25
    x[..., 1] = np.where(flagged, 1, -1)
    held = np.zeros(x.shape[:2])
    for t in range(1, len(x)):
        held[t] = np.where(flagged[t], x[t, :, 0], held[t - 1])
    panel = planted_panel(x, held)
    assert skill("tft", panel, lookback=10) > 0.7
    assert linear_skill(panel, lookback=10) < 0.5
