"""XGBoost's regularised boosting on the lookback's summary statistics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from training.models.classical.tabular import Table, TabularRegressor, Task
from training.models.classical.trees import TREES_OF_AN_UPDATE, Tree, Trees
from training.models.deadline import Deadline
from training.models.spec import Architecture

if TYPE_CHECKING:
    import xgboost

PATIENCE: Final = 15


def learn(train: Table, check: Table, task: Task) -> Trees:
    """Second-order boosting with penalised leaves; as many trees as are best on ``check``, where that has labels."""
    import xgboost

    start = float(np.float32(train.y_S.mean()))
    booster = xgboost.train(
        _settings(task, start=start),
        xgboost.DMatrix(train.x_SK, train.y_S, nthread=1),
        num_boost_round=task.budget.max_trees,
        evals=[(xgboost.DMatrix(check.x_SK, check.y_S, nthread=1), "check")] if len(check.y_S) else None,
        early_stopping_rounds=PATIENCE if len(check.y_S) else None,
        callbacks=[_watch(task.deadline)],
        verbose_eval=False,
    )
    num_trees = booster.best_iteration + 1 if len(check.y_S) else booster.num_boosted_rounds()
    return taken(booster, num_trees=num_trees, start=start)


def relearn(known: Trees, new: Table, task: Task) -> Trees:
    """Go on boosting on the new samples, from the present score."""
    import xgboost

    booster = xgboost.train(
        _settings(task, start=0.0),
        xgboost.DMatrix(new.x_SK, new.y_S, base_margin=known.score(new.x_SK), nthread=1),
        num_boost_round=min(TREES_OF_AN_UPDATE, task.budget.max_trees),
        callbacks=[_watch(task.deadline)],
        verbose_eval=False,
    )
    return known.followed_by(taken(booster, num_trees=booster.num_boosted_rounds(), start=0.0))


def taken(booster: xgboost.Booster, *, num_trees: int, start: float) -> Trees:
    """The first trees of a booster whose ``base_score`` is ``start``."""
    model = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]["model"]
    return Trees.join([_of_json(tree) for tree in model["trees"][:num_trees]], start=start, divisor=1)


def _of_json(tree: dict[str, Any]) -> Tree:
    split_M = np.array(tree["split_conditions"], dtype=np.float32)
    return Tree(
        feature_M=np.array(tree["split_indices"]),
        # XGBoost goes left below the split, our trees at most at the threshold: the next smaller number.
        threshold_M=np.nextafter(split_M, np.float32(-np.inf)),
        left_M=np.array(tree["left_children"]),
        right_M=np.array(tree["right_children"]),
        missing_left_M=np.array(tree["default_left"]),
        value_M=split_M,  # in a leaf the same field holds the value
    )


def _watch(deadline: Deadline) -> xgboost.callback.TrainingCallback:
    import xgboost

    class Watch(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002 (its interface)
            deadline.check(f"tree {epoch + 1}")
            return False

    return Watch()


def _settings(task: Task, *, start: float) -> dict[str, Any]:
    return dict(task.params) | {
        "objective": "reg:squarederror",
        "tree_method": "hist",
        "subsample": 0.8,
        "base_score": start,
        "seed": task.seed,
        "nthread": 1,
        "verbosity": 0,
    }


ARCHITECTURE = Architecture(
    name="xgboost",
    family="classical",
    cost_s=0.12,
    source="Chen and Guestrin (2016), XGBoost: A Scalable Tree Boosting System, KDD",
    model=TabularRegressor(learn=learn, restore=Trees.restore, scaled=False, relearn=relearn),
    grid={"max_depth": ("d", (3, 5))},
    space={
        "learning_rate": (0.05, 0.02, 0.1),
        "min_child_weight": (40.0, 20.0, 100.0),
        "colsample_bynode": (0.5, 0.25, 1.0),
        "lambda": (1.0, 10.0, 0.0),
        "alpha": (0.0, 1.0, 10.0),
    },
)
