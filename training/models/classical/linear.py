"""Linear scores, the penalties on their slopes, and penalised least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.models.classical.tabular import must_converge
from training.models.spec import ModelError, Params, State

# Tensor suffixes: S samples, K summary features.

MAX_PASSES: Final = 100_000  # over the features, the matrix of their products at hand
TOLERANCE: Final = 1e-6  # the gap to the optimum as a share of the labels' sum of squares
MEMORY_ROWS: Final = 5_000  # what a fit knows weighs in an update: the rows of 20 assets in the year it learns from


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """slope . x + offset."""

    slope_K: NDArray[np.float64]
    offset_1: NDArray[np.float64]

    def score(self, x_SK: NDArray[np.float32]) -> NDArray[np.float64]:
        """The linear score (S,) of each sample."""
        # Not a matrix product: its order of summation, and so the last bit, would depend on the number of samples.
        return (x_SK.astype(np.float64) * self.slope_K).sum(axis=1) + self.offset_1

    def state(self) -> State:
        """The fitted arrays."""
        return {"slope": self.slope_K, "offset": self.offset_1}

    @classmethod
    def restore(cls, params: Params, state: State) -> Self:  # noqa: ARG003 (other learners need them)
        """The score whose ``state`` this is."""
        return cls(slope_K=np.asarray(state["slope"]), offset_1=np.asarray(state["offset"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Penalty:
    """``l1 sum |slope| + l2 / 2 sum slope^2``, to be added to the mean loss of a sample."""

    l1: float
    l2: float

    @classmethod
    def of(cls, params: Params, x_SK: NDArray[np.floating], y_S: NDArray[np.floating], *, curvature: float) -> Self:
        """The penalty that ``strength`` and ``l1_share`` in the hyperparameters ask for, alike on any data.

        The steepest slope of the mean loss where all slopes are 0 is the largest covariance of a feature with the
        label; an L1 of strength 1 is that, and just leaves nothing. ``curvature`` is the mean loss's own in a feature
        of unit variance; an L2 of strength 1 is that, and halves a slope.
        """
        strength, l1_share = float(params["strength"]), float(params["l1_share"])
        if strength <= 0:
            raise ModelError(f"a penalty of strength {strength}; it must be above 0, such as 0.1")
        steepest = float(np.abs((x_SK - x_SK.mean(axis=0, dtype=np.float64)).T @ (y_S - y_S.mean())).max()) / len(y_S)
        # Where no feature varies with the label, any L1 at all will do.
        return cls(l1=strength * l1_share * max(steepest, 1e-9), l2=strength * (1 - l1_share) * curvature)

    def __mul__(self, factor: float) -> Self:
        return type(self)(l1=factor * self.l1, l2=factor * self.l2)

    @property
    def total(self) -> float:
        """Scikit-learn's ``alpha``."""
        return self.l1 + self.l2

    @property
    def l1_ratio(self) -> float:
        """Scikit-learn's, the share of L1 in the total."""
        return self.l1 / self.total


class LeastSquares:
    """Penalised least squares of any labels on one set of samples, by coordinate descent; the offset is free.

    Starts from the slopes of the labels before. ``weight_S`` are the samples' shares of the loss, alike where not
    given.
    """

    def __init__(
        self, x_SK: NDArray[np.floating], penalty: Penalty, *, weight_S: NDArray[np.float64] | None = None
    ) -> None:
        from sklearn.linear_model import ElasticNet

        self._weight_S = weight_S
        self._centre_K = self._mean(x_SK)
        self._x_SK = np.asfortranarray(self._rooted((x_SK - self._centre_K).T).T)
        self._net = ElasticNet(
            alpha=penalty.total,
            l1_ratio=penalty.l1_ratio,
            fit_intercept=False,
            precompute=self._x_SK.T @ self._x_SK,
            tol=TOLERANCE,
            max_iter=MAX_PASSES,
            warm_start=True,
            random_state=0,  # nothing is drawn, but without it numpy's global state is advanced
        )

    def solve(self, y_S: NDArray[np.float64]) -> Linear:
        """The best slopes and offset for these labels."""
        mean = self._mean(y_S)
        with must_converge("raise strength or lower l1_share"):
            self._net.fit(self._x_SK, self._rooted(y_S - mean))
        slope_K = self._net.coef_.copy()
        return Linear(slope_K=slope_K, offset_1=np.array([mean - self._centre_K @ slope_K]))

    def _mean(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        if self._weight_S is None:
            return np.asarray(values.mean(axis=0, dtype=np.float64))
        return np.asarray(np.average(values, axis=0, weights=self._weight_S))

    def _rooted(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each sample (last axis) times the root of its weight, of mean 1: its square then weighs as much."""
        if self._weight_S is None:
            return values
        return values * np.sqrt(self._weight_S / self._weight_S.mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """New samples, and after them probes that stand for all that was learned before.

    The probes weigh ``MEMORY_ROWS`` samples of independent features of mean 0 and variance 1, what scaled summaries
    about are; labelled by the present score they hold the slopes where they are, as a normal prior around these does.
    A penalty times ``share``, the new samples' part of the weight, is asked of the new samples alone: repeated
    updates on samples of one kind end at the fit to these, and none at all changes nothing.
    """

    x_SK: NDArray[np.float32]
    weight_S: NDArray[np.float64]
    share: float
    num_new: int

    @classmethod
    def of(cls, new_SK: NDArray[np.float32]) -> Self:
        """The new samples' summaries with probes at +-sqrt(K) on the axis of each feature."""
        num_new, num_features = new_SK.shape
        axes_KK = np.sqrt(num_features) * np.eye(num_features, dtype=np.float32)
        weight_S = np.ones(num_new + 2 * num_features)
        weight_S[num_new:] = MEMORY_ROWS / (2 * num_features)
        return cls(
            x_SK=np.concatenate([new_SK, axes_KK, -axes_KK]),
            weight_S=weight_S,
            share=num_new / (num_new + MEMORY_ROWS),
            num_new=num_new,
        )

    @property
    def probe_SK(self) -> NDArray[np.float32]:
        """The probes alone."""
        return self.x_SK[self.num_new :]
