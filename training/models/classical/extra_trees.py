"""Extremely randomised trees on the lookback's summary statistics."""

from __future__ import annotations

from training.models.classical.tabular import Table, TabularRegressor, Task
from training.models.classical.trees import Trees, grow_forest
from training.models.spec import Architecture


def learn(train: Table, check: Table, task: Task) -> Trees:  # noqa: ARG001 (nothing to stop early)
    """The mean of trees on all samples, each split the best of one random threshold for each of some features."""
    from sklearn.ensemble import ExtraTreesRegressor

    return grow_forest(
        ExtraTreesRegressor(**task.params, random_state=task.seed, n_jobs=1, warm_start=True), train, task
    )


ARCHITECTURE = Architecture(
    name="extra_trees",
    family="classical",
    cost_s=0.69,
    source="Geurts, Ernst and Wehenkel (2006), Extremely Randomized Trees, Machine Learning 63(1)",
    model=TabularRegressor(learn=learn, restore=Trees.restore, scaled=False),
    grid={"max_depth": ("d", (6, 10))},
    space={
        "min_samples_leaf": (20, 50, 100),
        "max_features": (0.5, 0.2, 1.0),
    },
)
