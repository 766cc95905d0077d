"""Tables whose labels follow a planted rule, and the task of a fit on them."""

import numpy as np

from training.models.classical.tabular import Table, Task
from training.models.deadline import Deadline
from training.models.fitted import complete_params
from training.models.registry import architecture
from training.models.spec import Budget

NOTHING = Table(x_SK=np.empty((0, 6), dtype=np.float32), y_S=np.empty(0))


def task(name, *, seed=1, num_trees=60, deadline_s=60.0, **params) -> Task:
    budget = Budget(max_trees=num_trees, deadline_s=deadline_s)
    asked = complete_params(architecture(name), params)
    return Task(params=asked, seed=seed, budget=budget, deadline=Deadline(budget))


def table(rule, *, num_samples=1200, num_features=6, noise=0.5, seed=0) -> Table:
    """Standard normal features; the label is ``rule`` of them plus noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_samples, num_features)).astype(np.float32)
    return Table(x_SK=x, y_S=rule(x.astype(np.float64)) + noise * rng.standard_normal(num_samples))


def with_holes(rows: Table, *, share=0.2) -> Table:
    x = rows.x_SK.copy()
    holes = np.random.default_rng(9).random(x.shape) < share
    holes[:, 0] = False  # never unknown where it is learned from
    x[holes] = np.nan
    return Table(x_SK=x, y_S=rows.y_S)


def line(x):
    return 0.7 * x[:, 0] - 0.7 * x[:, 1]


def exclusive_or(x):
    """Up where two features agree in sign: no linear score of them tells anything."""
    return np.sign(x[:, 0] * x[:, 1])


def correlation(learned, rows: Table) -> float:
    score_S = learned.score(rows.x_SK)
    return float(np.corrcoef(score_S, rows.y_S)[0, 1]) if np.ptp(score_S) else 0.0


def learned(name, rule, **params):
    """(what ``name`` learned of a rule, its out-of-sample correlation with the labels)."""
    train, check, test = (table(rule, seed=seed) for seed in range(3))
    got = architecture(name).model.learn(train, check, task(name, **params))
    return got, correlation(got, test)
