"""A random forest on the lookback's summary statistics."""

from __future__ import annotations

from training.models.classical.tabular import Table, TabularRegressor, Task
from training.models.classical.trees import Trees, grow_forest
from training.models.spec import Architecture


def learn(train: Table, check: Table, task: Task) -> Trees:  # noqa: ARG001 (nothing to stop early)
    """The mean of least-squares trees, each on a bootstrap sample, each split among a share of the features."""
    from sklearn.ensemble import RandomForestRegressor

    return grow_forest(
        RandomForestRegressor(**task.params, random_state=task.seed, n_jobs=1, warm_start=True), train, task
    )


ARCHITECTURE = Architecture(
    name="random_forest",
    family="classical",
    cost_s=0.93,
    source="Breiman (2001), Random Forests, Machine Learning 45(1)",
    model=TabularRegressor(learn=learn, restore=Trees.restore, scaled=False),
    grid={"max_depth": ("d", (4, 8))},
    space={
        "min_samples_leaf": (20, 50, 100),
        "max_features": (0.2, 0.1, 0.5),
        "max_samples": (0.5, 0.25, 0.8),
    },
)
