"""A logistic regression of the label's sign, with L1, L2 or both penalties, on the lookback's summary statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from training.models.classical.linear import LeastSquares, Linear, Penalty, Rehearsal
from training.models.classical.tabular import Table, TabularRegressor, Task
from training.models.deadline import Deadline
from training.models.spec import Architecture, ModelError, Params, State

# Tensor suffixes: S samples, K summary features.

MAX_STEPS: Final = 1_000
TOLERANCE: Final = 1e-3  # of the log-odds of any sample, from step to step
CURVATURE: Final = 0.25  # of the logistic loss at even odds


@dataclass(frozen=True, kw_only=True, slots=True)
class Odds:
    """(2 p - 1) E|y|: the expected label, where its size (E|y|) does not depend on its sign.

    p is the probability that the label is positive, its log-odds linear.
    """

    log_odds: Linear
    size_1: NDArray[np.float64]

    def score(self, x_SK: NDArray[np.float32]) -> NDArray[np.float64]:
        """The expected label (S,) of each sample."""
        return (2 * expit(self.log_odds.score(x_SK)) - 1) * self.size_1

    def state(self) -> State:
        """The fitted arrays."""
        return self.log_odds.state() | {"size": self.size_1}

    @classmethod
    def restore(cls, params: Params, state: State) -> Self:
        """The odds whose ``state`` this is."""
        return cls(log_odds=Linear.restore(params, state), size_1=np.asarray(state["size"]))


def learn(train: Table, check: Table, task: Task) -> Odds:  # noqa: ARG001 (nothing to stop early)
    """Maximum likelihood of the signs; labels of exactly 0 have none and are left out."""
    signed_S = train.y_S != 0
    up_S = (train.y_S[signed_S] > 0).astype(np.float64)
    if np.ptp(up_S) == 0:
        raise ModelError("all training labels have one sign, there is nothing to tell apart; give a longer window")
    penalty = Penalty.of(task.params, train.x_SK[signed_S], up_S, curvature=CURVATURE)
    log_odds = most_likely(train.x_SK[signed_S], up_S, penalty, task.deadline)
    return Odds(log_odds=log_odds, size_1=np.array([np.abs(train.y_S).mean()]))


def relearn(known: Odds, new: Table, task: Task) -> Odds:
    """Maximum likelihood of the new signs, and of the present odds at the memory's probes."""
    signed_S = new.y_S != 0
    if not signed_S.any():
        return known
    rows, up_S = Rehearsal.of(new.x_SK[signed_S]), (new.y_S[signed_S] > 0).astype(np.float64)
    penalty = Penalty.of(task.params, new.x_SK[signed_S], up_S, curvature=CURVATURE) * rows.share
    odds_S = np.concatenate([up_S, expit(known.log_odds.score(rows.probe_SK))])
    log_odds = most_likely(rows.x_SK, odds_S, penalty, task.deadline, weight_S=rows.weight_S)
    size_1 = (1 - rows.share) * known.size_1 + rows.share * np.abs(new.y_S).mean()
    return Odds(log_odds=log_odds, size_1=size_1)


def most_likely(
    x_SK: NDArray[np.float32],
    up_S: NDArray[np.float64],
    penalty: Penalty,
    deadline: Deadline,
    *,
    weight_S: NDArray[np.float64] | None = None,
) -> Linear:
    """The penalised log-odds, by least squares one after the other; ``up_S`` are 0 or 1, or chances between them.

    The mean logistic loss lies below a parabola of curvature 1/4 that touches it at the present log-odds; the next
    ones are the best on that parabola, so that the loss falls at every step: Boehning, D. and Lindsay, B. (1988),
    Monotonicity of quadratic-approximation algorithms, Ann. Inst. Statist. Math. 40(4).
    """
    parabola = LeastSquares(x_SK, penalty * (1 / CURVATURE), weight_S=weight_S)
    log_odds_S = np.full(len(up_S), logit(up_S.mean()))
    for step in range(MAX_STEPS):
        deadline.check(f"step {step + 1}")
        linear = parabola.solve(log_odds_S + (up_S - expit(log_odds_S)) / CURVATURE)
        before_S, log_odds_S = log_odds_S, linear.score(x_SK)
        if np.abs(log_odds_S - before_S).max() < TOLERANCE:
            return linear
    raise ModelError(f"the log-odds did not settle within {MAX_STEPS} steps; raise strength")


ARCHITECTURE = Architecture(
    name="logistic",
    family="classical",
    cost_s=0.06,
    source="Cox (1958), The Regression Analysis of Binary Sequences, JRSS B 20(2)",
    model=TabularRegressor(learn=learn, restore=Odds.restore, scaled=True, relearn=relearn),
    grid={"l1_share": ("s", (0.0, 0.5, 1.0))},
    space={"strength": (0.3, 0.1, 0.03, 0.6)},
)
