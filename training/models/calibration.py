"""From a raw score to the probability that its sign is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from training.models.spec import State

MIN_SAMPLES: Final = 50
PRIOR_SAMPLES: Final = 20.0  # a hit rate is shrunk towards 1/2 as if by this many more, even, outcomes
SLOPE_PENALTY: Final = 1.0  # ridge on the slope, in scores of unit scale
NEWTON_STEPS: Final = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrator:
    """Platt scaling of the strength of a score: P(sign right) = 1 / (1 + exp(-(intercept + slope |score|))).

    Never decreasing in |score|, in [0, 1], NaN for NaN. Scores beyond ``strongest``, the strongest one seen, count as
    that: the validation sample says nothing about them. A slope of 0 is a constant hit rate.
    Platt, J. (1999), Probabilistic outputs for support vector machines.
    """

    intercept: float
    slope: float
    strongest: float

    @classmethod
    def fit(cls, score: NDArray[np.float64], y: NDArray[np.float64]) -> Self:
        """Learn from raw scores and labels of any one shape; pairs without a sign on both sides are left out.

        Fewer than ``MIN_SAMPLES`` pairs, or strength that does not help, give the constant shrunken hit rate.
        """
        usable = np.isfinite(score) & np.isfinite(y) & (score != 0) & (y != 0)
        strength_S, hit_S = np.abs(score[usable]), np.sign(score[usable]) == np.sign(y[usable])
        strongest = float(strength_S.max(initial=0.0))
        scale = float(strength_S.mean()) if len(strength_S) else 0.0
        if len(strength_S) >= MIN_SAMPLES and scale > 0:
            intercept, slope = _logistic(strength_S / scale, hit_S)
            if slope > 0 and np.isfinite(slope / scale):
                return cls(intercept=intercept, slope=slope / scale, strongest=strongest)
        rate = (hit_S.sum() + PRIOR_SAMPLES / 2) / (len(hit_S) + PRIOR_SAMPLES)
        return cls(intercept=float(np.log(rate / (1 - rate))), slope=0.0, strongest=strongest)

    def confidence(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability that the sign of each score is right."""
        strength = np.minimum(np.abs(score), self.strongest)
        return expit(self.intercept + self.slope * strength)

    def state(self) -> State:
        """The fitted arrays."""
        return {"calibrator.platt": np.array([self.intercept, self.slope, self.strongest])}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The calibrator whose ``state`` this is."""
        intercept, slope, strongest = (float(value) for value in state["calibrator.platt"])
        return cls(intercept=intercept, slope=slope, strongest=strongest)


def _logistic(x_S: NDArray[np.float64], hit_S: NDArray[np.bool_]) -> tuple[float, float]:
    """Intercept and (ridged) slope of a logistic regression by Newton's method, on Platt's smoothed targets."""
    hits, misses = hit_S.sum(), (~hit_S).sum()
    target_S = np.where(hit_S, (hits + 1) / (hits + 2), 1 / (misses + 2))
    design_S2 = np.column_stack([np.ones_like(x_S), x_S])
    penalty = np.array([0.0, SLOPE_PENALTY])
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p_S = expit(design_S2 @ weights)
        gradient = design_S2.T @ (p_S - target_S) + penalty * weights
        curvature = (design_S2 * (p_S * (1 - p_S))[:, None]).T @ design_S2 + np.diag(penalty + 1e-9)
        weights = weights - np.linalg.solve(curvature, gradient)
    return float(weights[0]), float(weights[1])
