"""A linear regression with both penalties on the lookback's summary statistics."""

from __future__ import annotations

from training.models.classical.linear import LeastSquares, Linear, Penalty
from training.models.classical.tabular import Table, TabularRegressor, Task
from training.models.spec import Architecture


def learn(train: Table, check: Table, task: Task) -> Linear:  # noqa: ARG001 (nothing to stop early)
    """Least squares; L1 drops features, L2 shares a slope among those that go together."""
    penalty = Penalty.of(task.params, train.x_SK, train.y_S, curvature=1.0)
    return LeastSquares(train.x_SK, penalty).solve(train.y_S)


ARCHITECTURE = Architecture(
    name="elastic_net",
    family="classical",
    cost_s=0.05,
    source="Zou and Hastie (2005), Regularization and Variable Selection via the Elastic Net, JRSS B 67(2)",
    model=TabularRegressor(learn=learn, restore=Linear.restore, scaled=True),
    grid={"l1_share": ("s", (0.5, 0.1, 0.9))},
    space={"strength": (0.3, 0.1, 0.03, 0.6)},
)
