"""Panels whose labels are a planted function of the lookback's rows, and how well a model finds it."""

import numpy as np

from tests.training.models.toys import VOL, panel_of
from training.dataset import Panel, window
from training.models.fitted import fit_model
from training.models.registry import architecture
from training.models.spec import Budget
from training.models.windows import sequence_samples

NUM_TIMES, NUM_ENTITIES, NUM_FEATURES = 400, 10, 3
TRAIN, VALID, TEST = (30, 260), (260, 310), (310, NUM_TIMES)
RIDGE = 10.0


def planted_features(seed=0) -> np.ndarray:
    """Normal noise, (T, N, F) float32."""
    return np.random.default_rng(seed).standard_normal((NUM_TIMES, NUM_ENTITIES, NUM_FEATURES)).astype(np.float32)


def planted_panel(x, signal, *, noise=0.3) -> Panel:
    """Labels are the signal (T, N) of unit variance, NaN where there is none, plus noise of that deviation."""
    forward = VOL * (signal + noise * np.random.default_rng(1).standard_normal(signal.shape))
    return panel_of(x=x, returns=np.zeros_like(forward), forward=forward)


def parts(panel: Panel, lookback: int) -> list:
    learn = np.ones(NUM_TIMES, dtype=bool)
    return [window(panel, *span, lookback=lookback, learn_T=learn) for span in (TRAIN, VALID, TEST)]


def skill(name: str, panel: Panel, *, lookback: int, max_epochs=20) -> float:
    """Out-of-sample correlation of the architecture's scores with the labels."""
    train, valid, test = parts(panel, lookback)
    params = {"hidden_size": 32, "learning_rate": 3e-3}
    budget = Budget(max_epochs=max_epochs)
    model = fit_model(architecture(name), params, train, valid, lookback=lookback, seed=1, budget=budget)
    return float(np.corrcoef(model.predict(test).score_TN.ravel(), test.y_TN[test.num_history :].ravel())[0, 1])


def linear_skill(panel: Panel, *, lookback: int) -> float:
    """The same of a ridge regression on every feature of every row of the lookback."""
    train, _, test = (sequence_samples(part, labelled=True) for part in parts(panel, lookback))
    x, x_test = (part.x_SLF.reshape(len(part.y_S), -1).astype(np.float64) for part in (train, test))
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ train.y_S)
    return float(np.corrcoef(x_test @ weights, test.y_S)[0, 1])
