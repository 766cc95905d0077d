"""Vector autoregression of all entities' returns, shrunk as Litterman's Minnesota prior does."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.econometric.returns import (
    BARS_AHEAD,
    MEMORY_ROWS,
    Moments,
    finite,
    known_volatility,
    lagged,
    learnable_returns,
    mean_of_known,
    new_returns,
)
from training.models.spec import Architecture, Budget, Params, State
from training.models.state import load_state, save_state
from training.models.windows import forecastable_TN

# Tensor suffixes: T targets, R learned rows, N entities (of the equation), M entities (that explain), B blocks (one a
# lag and the long-run mean), K = B M regressors.


class VarModel:
    """VAR(p) of the entities' standardised returns with each entity's mean over the lookback as a further lag.

    z_t = A_1 z_{t-1} + ... + A_p z_{t-p} + C mean(z_{t-1}, ..., z_{t-lookback}) + e_t: a VAR of the lookback's order
    whose distant coefficients are equal (a cascade as in vector HAR models). The score is its forecast of the
    return ``BARS_AHEAD`` bars ahead over the volatility known now (exact for a label of one bar from the next close;
    for longer ones the first bar of it). Coefficients are posterior means under a normal prior around zero: of
    deviation ``tightness`` / lag for an entity's own past (lag 1 for the long-run mean) and, for everybody else's,
    ``cross_tightness`` / lag / sqrt(N - 1), so that what all others together may explain does not grow with their
    number. Returns beyond 5 deviations count as 5. A missing return counts as the mean where it explains and is left
    out where it is explained; an entity with too few training returns neither explains nor is explained: its score is
    0. Features are not used.

    Sources: Sims, C. (1980), Macroeconomics and reality, Econometrica 48; Litterman, R. (1986), Forecasting with
    Bayesian vector autoregressions, JBES 4; Banbura, M., Giannone, D. and Reichlin, L. (2010), Large Bayesian vector
    auto regressions, Journal of Applied Econometrics 25.
    """

    def __init__(self, params: Params, *, lookback: int) -> None:
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002
        """Learn from ``train`` alone: nothing here is random or stops early."""
        deadline = Deadline(budget)
        known_TN = learnable_returns(train)
        self._moments = Moments.fit(known_TN)
        explained_RN = np.where(self._moments.enough_N, self._moments.standardise(known_TN), np.nan)[1:]
        blocks = _blocks(self._deviations(train), int(self._params["p"]))
        explaining_RK = np.concatenate(blocks, axis=1)[:-1]
        self._weight_BNM = self._posterior(explaining_RK, explained_RN, deadline)

    def update(self, new: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002 (nothing here is random)
        """Move the coefficients by what explains the new returns' surprises, under a prior around the present ones.

        Its precision is that of the fit's own prior and ``MEMORY_ROWS`` rows of independent regressors of variance 1:
        the recursion of Bayesian least squares with the fit's cross-products taken to be those.
        """
        deadline = Deadline(budget)
        self._moments.require_entities(new)
        known_TN = self._moments.standardise(new_returns(new, self._moments))
        blocks = _blocks(self._deviations(new), int(self._params["p"]))
        expected_TN = np.sum([x_TM @ weight_NM.T for x_TM, weight_NM in zip(blocks, self._weight_BNM, strict=True)], 0)
        surprise_RN = known_TN[1:] - expected_TN[:-1]
        step_BNM = self._posterior(np.concatenate(blocks, axis=1)[:-1], surprise_RN, deadline, memory=MEMORY_ROWS)
        deadline.check("the end")
        self._weight_BNM = self._weight_BNM + step_BNM

    def predict(self, window: Window) -> NDArray[np.float64]:
        self._moments.require_entities(window)
        history = self._deviations(window)
        for _ in range(BARS_AHEAD):
            history = [*history[1:], self._next(history)]
        expected_TN = self._moments.mean_N + self._moments.deviation_N * history[-1]
        return np.where(forecastable_TN(window), expected_TN / known_volatility(window), np.nan)

    def state(self) -> State:
        return {"weight": self._weight_BNM} | self._moments.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, state = load_state(folder)
        model = cls(params, lookback=params.pop("lookback"))
        model._weight_BNM = np.asarray(state["weight"])
        model._moments = Moments.from_state(state)
        return model

    def _deviations(self, window: Window) -> list[NDArray[np.float64]]:
        """The lookback's standardised returns, 0 (the mean) where missing or of an entity that is left out."""
        z_TN = self._moments.standardise(finite(window.returns_TN))
        return lagged(np.where(self._moments.enough_N, np.nan_to_num(z_TN), 0.0), window)

    def _posterior(
        self,
        explaining_RK: NDArray[np.float64],
        explained_RN: NDArray[np.float64],
        deadline: Deadline,
        *,
        memory: float = 0.0,
    ) -> NDArray[np.float64]:
        """Coefficients (B, N, M). Entities known in the same rows share one factorisation.

        ``memory`` is precision beyond that of the fit's prior. The ridge of an equation is that of everybody else's
        past, but for the equation's own B columns: a change of rank B, which Woodbury's identity takes from the shared
        inverse.
        """
        num_entities, num_lags = explained_RN.shape[1], int(self._params["p"])
        lag_B = np.array([*range(1, num_lags + 1), 1.0])
        own_B = (lag_B / float(self._params["tightness"])) ** 2 + memory
        cross_B = (lag_B / float(self._params["cross_tightness"])) ** 2 * max(num_entities - 1, 1) + memory
        patterns_PR, pattern_N = np.unique(np.isfinite(explained_RN).T, axis=0, return_inverse=True)
        weight_NBM = np.zeros((num_entities, len(lag_B), num_entities))
        for pattern, known_R in enumerate(patterns_PR):
            deadline.check(f"pattern {pattern + 1} of {len(patterns_PR)} of known returns")
            x_RK = np.nan_to_num(explaining_RK[known_R])
            inverse_KK = np.linalg.inv(x_RK.T @ x_RK + np.diag(np.repeat(cross_B, num_entities)))
            for n in np.flatnonzero(pattern_N.ravel() == pattern):
                own_K = n + num_entities * np.arange(len(lag_B))
                shared_K = inverse_KK @ (x_RK.T @ explained_RN[known_R, n])
                change_BB = np.diag(own_B - cross_B)
                step_B = np.linalg.solve(
                    np.eye(len(lag_B)) + change_BB @ inverse_KK[np.ix_(own_K, own_K)], change_BB @ shared_K[own_K]
                )
                weight_NBM[n] = (shared_K - inverse_KK[:, own_K] @ step_B).reshape(len(lag_B), num_entities)
        return np.ascontiguousarray(weight_NBM.transpose(1, 0, 2))

    def _next(self, history: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Expected standardised return after this history.

        Summed entity by entity, not as a matrix product: its order of summation, and so the last bit, would depend on
        the number of targets.
        """
        expected_TN = np.zeros_like(history[0])
        for weight_NM, block_TM in zip(self._weight_BNM, _blocks(history, len(self._weight_BNM) - 1), strict=True):
            for m, weight_N in enumerate(weight_NM.T):
                expected_TN = expected_TN + weight_N * block_TM[:, m : m + 1]
        return expected_TN


def _blocks(history: list[NDArray[np.float64]], num_lags: int) -> list[NDArray[np.float64]]:
    """The last ``num_lags`` arrays, the newest first, and the mean of all of them."""
    return [*history[: -num_lags - 1 : -1], mean_of_known(history, otherwise=0.0)]


ARCHITECTURE = Architecture(
    name="var",
    family="econometric",
    cost_s=0.01,
    source="Sims (1980), Macroeconomics and Reality, Econometrica 48; Litterman (1986), JBES 4",
    model=VarModel,
    reads_features=False,
    grid={"p": ("p", (1, 2))},
    space={"tightness": (0.2, 0.05, 0.5), "cross_tightness": (0.2, 0.05, 0.5)},
)
