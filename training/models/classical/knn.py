"""The mean label of the nearest training samples, by the lookback's summary statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.models.classical.distances import nearest
from training.models.classical.tabular import Table, TabularRegressor, Task, subsample
from training.models.spec import Architecture, Params, State

# Tensor suffixes: S samples, K summary features, V training samples, C nearest ones of them.

MAX_ROWS: Final = 5_000  # a forecast looks at every one


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The training samples themselves; all of them where there are fewer than ``num_neighbours``.

    Nearness is Euclidean; of equally near samples the older counts. ``weights`` are ``uniform``, or ``distance``:
    1 / distance, and samples at the very place alone where there are any.
    """

    num_neighbours: int
    weights: str
    point_KV: NDArray[np.float32]
    y_V: NDArray[np.float64]

    def score(self, x_SK: NDArray[np.float32]) -> NDArray[np.float64]:
        """The neighbours' weighted mean label (S,) for each sample."""
        num_nearest = min(self.num_neighbours, len(self.y_V))
        index_SC, squared_SC = nearest(x_SK.astype(np.float64), self.point_KV, num_nearest)
        if self.weights == "uniform":
            return self.y_V[index_SC].mean(axis=1)
        here_SC = squared_SC == 0
        with np.errstate(divide="ignore"):
            weight_SC = np.where(here_SC.any(axis=1, keepdims=True), here_SC, 1 / np.sqrt(squared_SC))
        return (weight_SC * self.y_V[index_SC]).sum(axis=1) / weight_SC.sum(axis=1)

    def state(self) -> State:
        """The samples kept."""
        return {"point": self.point_KV, "label": self.y_V}

    @classmethod
    def restore(cls, params: Params, state: State) -> Self:
        """The neighbours whose ``state`` this is."""
        return cls(
            num_neighbours=int(params["num_neighbours"]),
            weights=str(params["weights"]),
            point_KV=np.asarray(state["point"]),
            y_V=np.asarray(state["label"]),
        )


def learn(train: Table, check: Table, task: Task) -> Neighbours:  # noqa: ARG001 (nothing to stop early)
    """Keep at most ``MAX_ROWS`` samples, drawn by the seed."""
    rows = subsample(train, MAX_ROWS, seed=task.seed)
    return Neighbours.restore(task.params, {"point": np.ascontiguousarray(rows.x_SK.T), "label": rows.y_S})


def relearn(known: Neighbours, new: Table, task: Task) -> Neighbours:  # noqa: ARG001 (nothing to choose)
    """Put the new samples to those kept; of more than ``MAX_ROWS`` the oldest go."""
    point_KV = np.concatenate([known.point_KV, new.x_SK.T], axis=1)[:, -MAX_ROWS:]
    y_V = np.concatenate([known.y_V, new.y_S])[-MAX_ROWS:]
    return replace(known, point_KV=np.ascontiguousarray(point_KV), y_V=y_V)


ARCHITECTURE = Architecture(
    name="knn",
    family="classical",
    cost_s=0.11,
    source="Cover and Hart (1967), Nearest Neighbor Pattern Classification, IEEE Trans. Information Theory 13(1)",
    model=TabularRegressor(learn=learn, restore=Neighbours.restore, scaled=True, relearn=relearn),
    grid={"num_neighbours": ("k", (50, 200))},
    space={"weights": ("uniform", "distance")},
)
