"""Histogram gradient boosting of scikit-learn on the lookback's summary statistics."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from training.models.classical.tabular import Table, TabularRegressor, Task
from training.models.classical.trees import GROWN_AT_ONCE, Tree, Trees
from training.models.spec import Architecture

PATIENCE: Final = 15


def learn(train: Table, check: Table, task: Task) -> Trees:
    """Least-squares boosting over binned features; as many trees as are best on ``check``, where that has labels."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    # scikit-learn can't bin a feature that was never known; of a constant it makes no split, so it is never read
    never_known_K = np.isnan(train.x_SK).all(axis=0)
    learn_SK = np.where(never_known_K, np.float32(0.0), train.x_SK)
    stops_early = len(check.y_S) > 0
    booster = HistGradientBoostingRegressor(
        **task.params,
        early_stopping=stops_early,
        n_iter_no_change=PATIENCE,
        tol=0.0,
        random_state=task.seed,
        warm_start=True,
    )
    check_SK = np.where(never_known_K, np.float32(0.0), check.x_SK) if stops_early else check.x_SK
    beside = {"X_val": check_SK, "y_val": check.y_S} if stops_early else {}
    for num_trees in range(GROWN_AT_ONCE, task.budget.max_trees + GROWN_AT_ONCE, GROWN_AT_ONCE):
        booster.set_params(max_iter=min(num_trees, task.budget.max_trees))
        booster.fit(learn_SK, train.y_S, **beside)
        task.deadline.check(f"tree {booster.n_iter_}")
        if booster.n_iter_ < booster.max_iter:
            break
    return taken(booster, num_trees=_best_num_trees(booster))


def taken(booster: Any, *, num_trees: int) -> Trees:
    """The first trees of a fitted ``HistGradientBoostingRegressor``."""
    grown = [_of_nodes(predictors[0].nodes) for predictors in booster._predictors[:num_trees]]
    return Trees.join(grown, start=float(booster._baseline_prediction.item()), divisor=1)


def _best_num_trees(booster: Any) -> int:
    # scores[n] is the one of n trees; as with the other boosters, at least one tree is kept.
    scores = booster.validation_score_
    return max(int(np.argmax(scores)), 1) if len(scores) else booster.n_iter_


def _of_nodes(nodes: Any) -> Tree:
    leaf_M = nodes["is_leaf"].astype(bool)
    return Tree(
        feature_M=nodes["feature_idx"],
        threshold_M=nodes["num_threshold"],
        left_M=np.where(leaf_M, -1, nodes["left"].astype(np.int64)),
        right_M=np.where(leaf_M, -1, nodes["right"].astype(np.int64)),
        missing_left_M=nodes["missing_go_to_left"],
        value_M=nodes["value"],
    )


ARCHITECTURE = Architecture(
    name="hist_boosting",
    family="classical",
    cost_s=0.24,
    source="Friedman (2001), Greedy Function Approximation: A Gradient Boosting Machine, Annals of Statistics 29(5)",
    model=TabularRegressor(learn=learn, restore=Trees.restore, scaled=False),
    grid={"max_leaf_nodes": ("n", (7, 15))},
    space={
        "learning_rate": (0.05, 0.02, 0.1),
        "min_samples_leaf": (40, 20, 100),
        "max_features": (0.5, 0.25, 1.0),
        "l2_regularization": (1.0, 10.0, 0.0),
    },
)
