import numpy as np

from tests.training.models.toys import panel_of
from training.dataset import window
from training.models.fitted import fit_model
from training.models.registry import architecture
from training.models.spec import Budget


def test_it_learns_what_only_the_order_of_rows_tells():
    """The label is the feature of three bars ago: a mean or a last value would not do."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6, 2)).astype(np.float32)
    forward = np.full((500, 6), np.nan)
    forward[3:] = 0.01 * (x[:-3, :, 0] + 0.5 * rng.standard_normal((497, 6)))
    panel = panel_of(x=x, returns=0.01 * rng.standard_normal((500, 6)), forward=forward)
    learn = np.ones(500, dtype=bool)
    train, valid = (window(panel, *span, lookback=5, learn_T=learn) for span in ((10, 300), (300, 360)))
    params = {"hidden_size": 32, "learning_rate": 1e-2, "dropout": 0.0}
    model = fit_model(architecture("lstm"), params, train, valid, lookback=5, seed=1, budget=Budget(max_epochs=15))
    score = model.predict(window(panel, 360, 500, lookback=5)).score_TN
    assert np.corrcoef(score.ravel(), forward[360:].ravel())[0, 1] > 0.5
