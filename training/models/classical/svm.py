"""Support vector regression with kernels on the lookback's summary statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.models.classical.distances import LINEAR, POLY, RBF, kernel_sums
from training.models.classical.tabular import Table, TabularRegressor, Task, must_converge, subsample
from training.models.spec import Architecture, Params, State

# Tensor suffixes: S samples, K summary features, V support vectors.

KERNELS: Final = {"rbf": RBF, "linear": LINEAR, "poly": POLY}
DEGREE: Final = 2  # products of two features; the values of higher powers grow beyond what converges
MAX_ROWS: Final = 2_000  # the work grows with the square of the rows
MAX_STEPS: Final = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SupportVectors:
    """offset + the sum over support vectors of weight times kernel, in features times ``scale``."""

    kernel: str
    scale_1: NDArray[np.float64]
    point_KV: NDArray[np.float64]
    weight_V: NDArray[np.float64]
    offset_1: NDArray[np.float64]

    def score(self, x_SK: NDArray[np.float32]) -> NDArray[np.float64]:
        """The regression's value (S,) for each sample."""
        x_scaled_SK = x_SK.astype(np.float64) * self.scale_1
        return kernel_sums(x_scaled_SK, self.point_KV, self.weight_V, KERNELS[self.kernel]) + self.offset_1

    def state(self) -> State:
        """The fitted arrays."""
        return {"scale": self.scale_1, "point": self.point_KV, "weight": self.weight_V, "offset": self.offset_1}

    @classmethod
    def restore(cls, params: Params, state: State) -> Self:
        """The support vectors whose ``state`` this is."""
        return cls(
            kernel=str(params["kernel"]),
            scale_1=np.asarray(state["scale"]),
            point_KV=np.asarray(state["point"]),
            weight_V=np.asarray(state["weight"]),
            offset_1=np.asarray(state["offset"]),
        )


def learn(train: Table, check: Table, task: Task) -> SupportVectors:  # noqa: ARG001 (nothing to stop early)
    """Epsilon-insensitive regression on at most ``MAX_ROWS`` samples, drawn by the seed.

    ``gamma`` multiplies x . x' / K (linear and poly) or |x - x'|^2 / K (rbf), K the number of features: one value
    suits any number of them.
    """
    from sklearn.svm import SVR

    rows = subsample(train, MAX_ROWS, seed=task.seed)
    scale = np.sqrt(float(task.params["gamma"]) / rows.x_SK.shape[1])
    machine = SVR(
        kernel=str(task.params["kernel"]),
        degree=DEGREE,
        gamma=1.0,
        coef0=1.0,
        C=float(task.params["C"]),
        epsilon=float(task.params["epsilon"]),
        max_iter=MAX_STEPS,
    )
    machine.random_state = task.seed  # no argument of SVR; unset, it draws from numpy's global state
    with must_converge("lower C or raise epsilon"):
        machine.fit(rows.x_SK.astype(np.float64) * scale, rows.y_S)
    return SupportVectors(
        kernel=str(task.params["kernel"]),
        scale_1=np.array([scale]),
        point_KV=np.ascontiguousarray(machine.support_vectors_.T),
        weight_V=machine.dual_coef_[0],
        offset_1=machine.intercept_,
    )


ARCHITECTURE = Architecture(
    name="svm",
    family="classical",
    cost_s=0.13,
    source="Smola and Schoelkopf (2004), A Tutorial on Support Vector Regression, Statistics and Computing 14",
    model=TabularRegressor(learn=learn, restore=SupportVectors.restore, scaled=True),
    grid={"kernel": ("k", tuple(KERNELS))},
    space={
        "C": (0.3, 0.1, 1.0),
        "epsilon": (0.25, 0.1, 0.5),
        "gamma": (0.5, 0.2, 1.0),
    },
)
