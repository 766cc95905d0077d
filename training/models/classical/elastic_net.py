"""A linear regression with both penalties on the lookback's summary statistics."""

from __future__ import annotations

import numpy as np

from training.models.classical.linear import LeastSquares, Linear, Penalty, Rehearsal
from training.models.classical.tabular import Table, TabularRegressor, Task
from training.models.spec import Architecture


def learn(train: Table, check: Table, task: Task) -> Linear:  # noqa: ARG001 (nothing to stop early)
    """Least squares; L1 drops features, L2 shares a slope among those that go together."""
    penalty = Penalty.of(task.params, train.x_SK, train.y_S, curvature=1.0)
    return LeastSquares(train.x_SK, penalty).solve(train.y_S)


def relearn(known: Linear, new: Table, task: Task) -> Linear:
    """Least squares over the new samples and the memory of the present slopes."""
    rows = Rehearsal.of(new.x_SK)
    penalty = Penalty.of(task.params, new.x_SK, new.y_S, curvature=1.0) * rows.share
    squares = LeastSquares(rows.x_SK, penalty, weight_S=rows.weight_S)
    return squares.solve(np.concatenate([new.y_S, known.score(rows.probe_SK)]))


ARCHITECTURE = Architecture(
    name="elastic_net",
    family="classical",
    cost_s=0.05,
    source="Zou and Hastie (2005), Regularization and Variable Selection via the Elastic Net, JRSS B 67(2)",
    model=TabularRegressor(learn=learn, restore=Linear.restore, scaled=True, relearn=relearn),
    grid={"l1_share": ("s", (0.5, 0.1, 0.9))},
    space={"strength": (0.3, 0.1, 0.03, 0.6)},
)
