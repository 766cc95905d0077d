import numpy as np
import pytest
import torch

from tests.training.models.toys import panel_of
from training.dataset import window
from training.models.deep.dlinear import LONGEST_AVERAGE, build, decompose
from training.models.fitted import fit_model
from training.models.registry import architecture
from training.models.spec import Budget


def series(num_rows, seed=0):
    return np.random.default_rng(seed).standard_normal((3, 2, num_rows)).cumsum(axis=2)


def moving_average(row_L, width):
    padded = np.r_[np.full(width // 2, row_L[0]), row_L, np.full(width // 2, row_L[-1])]
    return np.array([padded[i : i + width].mean() for i in range(len(row_L))])


@pytest.mark.parametrize(
    ("num_rows", "width"), [(1, 1), (7, 7), (14, 13), (30, LONGEST_AVERAGE), (90, LONGEST_AVERAGE)]
)
def test_the_decomposition_adds_up_and_its_trend_is_the_moving_average(num_rows, width):
    x = series(num_rows)
    trend, remainder = (part.numpy() for part in decompose(torch.from_numpy(x)))
    np.testing.assert_allclose(trend + remainder, x, rtol=0, atol=1e-12)
    expected = np.apply_along_axis(moving_average, 2, x, width)
    np.testing.assert_allclose(trend, expected, atol=1e-12)


def test_the_score_is_the_paper_s_sum():
    network = build(2, 30, {}).double()
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal((2, 30)), rng.standard_normal((2, 30)), rng.standard_normal((1, 2)), np.array([0.5])]
    with torch.no_grad():
        for parameter, values in zip(network.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(values))
    x = series(30)
    trend = np.apply_along_axis(moving_average, 2, x, LONGEST_AVERAGE)
    features = (trend * weights[0]).sum(axis=2) + ((x - trend) * weights[1]).sum(axis=2)
    score = network(torch.from_numpy(x).transpose(1, 2)).detach().numpy()
    np.testing.assert_allclose(score, features @ weights[2].T + weights[3], atol=1e-10)


def test_it_learns_what_the_last_row_does_not_tell():
    """The label is feature 0's trend less feature 1's of three bars ago: neither is in the last row."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 6, 2)).astype(np.float32)
    signal = np.full((600, 6), np.nan)
    mean = np.stack([x[t - 8 : t + 1, :, 0].mean(axis=0) for t in range(8, 600)])
    signal[8:] = 3 * mean - x[5:-3, :, 1]
    forward = 0.01 * (signal + 0.5 * rng.standard_normal(signal.shape))
    panel = panel_of(x=x, returns=0.01 * rng.standard_normal((600, 6)), forward=forward)
    learn = np.ones(600, dtype=bool)
    train, valid = (window(panel, *span, lookback=9, learn_T=learn) for span in ((10, 400), (400, 450)))
    params = {"learning_rate": 1e-2}
    model = fit_model(architecture("dlinear"), params, train, valid, lookback=9, seed=1, budget=Budget(max_epochs=20))
    score = model.predict(window(panel, 450, 600, lookback=9)).score_TN
    assert np.corrcoef(score.ravel(), signal[450:].ravel())[0, 1] > 0.9
    assert max(abs(np.corrcoef(x[450:, :, f].ravel(), signal[450:].ravel())[0, 1]) for f in (0, 1)) < 0.4
