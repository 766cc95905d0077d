"""GARCH of each entity's returns: an autoregressive mean over the forecast of its volatility."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.econometric.returns import BARS_AHEAD, Moments, finite, lagged, learnable_returns
from training.models.spec import Architecture, Budget, Params, State
from training.models.state import load_state, save_state
from training.models.windows import forecastable_TN

# Tensor suffixes: T targets, N entities, R known returns of one entity, P shocks and Q variances that a variance
# depends on.

MAX_AR: Final = 1 / 1.01  # stationary with something to spare, as for the ARIMA's roots
MAX_PERSISTENCE: Final = 0.9999  # of the sum of all weights
MIN_OMEGA: Final = 1e-6  # of the entity's variance
SHOCK_SHARES: Final = (0.05, 0.15)
PERSISTENCES: Final = (0.5, 0.8, 0.95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Garch:
    """AR(1)-GARCH of one entity's returns: r_t = intercept + ar r_{t-1} + e_t, and the variance of e_t is s_t.

    s_t = omega + sum alpha_i e_{t-i}^2 + sum beta_j s_{t-j}; ``start`` is the variance of the first return and stands
    for e^2 and s before it.
    """

    intercept: float
    ar: float
    omega: float
    alpha_P: NDArray[np.float64]
    beta_Q: NDArray[np.float64]
    start: float


class GarchModel:
    """AR(1)-GARCH(p, q) or constant-mean GARCH(p, q) of each entity's returns, by maximum likelihood.

    The score is the expected return of the bar ``BARS_AHEAD`` ahead over its own forecast standard deviation (not
    over the volatility known now), exact for a label of one bar from the next close, for longer ones the first bar of
    it. Mean and variance are filtered over exactly the last ``lookback`` returns, started from the training mean and
    the ``start`` variance; a missing return counts as the expected one and its squared shock as the expected
    variance, and forecasting is filtering ``BARS_AHEAD`` missing returns more. ``p`` counts squared shocks and ``q``
    variances, as in the library ``arch`` (Bollerslev's paper has the letters the other way round). An entity for
    which the likelihood finds no stable maximum has a constant mean and variance. Features are not used.

    Source: Bollerslev, T. (1986), Generalized autoregressive conditional heteroskedasticity, Journal of
    Econometrics 31.
    """

    def __init__(self, params: Params, *, lookback: int) -> None:
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002
        """Learn from ``train`` alone: nothing here is random or stops early."""
        deadline = Deadline(budget)
        known_TN = learnable_returns(train)
        self._moments = Moments.fit(known_TN)
        entities: list[Garch] = []
        for n, returns_T in enumerate(known_TN.T):
            deadline.check(f"entity {n + 1} of {known_TN.shape[1]}")
            entities.append(self._entity(n, returns_T[np.isfinite(returns_T)]))
        self._intercept_N = np.array([entity.intercept for entity in entities])
        self._ar_N = np.array([entity.ar for entity in entities])
        self._omega_N = np.array([entity.omega for entity in entities])
        self._alpha_NP = np.array([entity.alpha_P for entity in entities])
        self._beta_NQ = np.array([entity.beta_Q for entity in entities])
        self._start_N = np.array([entity.start for entity in entities])

    def predict(self, window: Window) -> NDArray[np.float64]:
        self._moments.require_entities(window)
        mean_TN, variance_TN = self._forecast(lagged(finite(window.returns_TN), window))
        known_TN = forecastable_TN(window) & (variance_TN > 0)
        return np.where(known_TN, mean_TN / np.sqrt(np.where(known_TN, variance_TN, 1.0)), np.nan)

    def state(self) -> State:
        return {
            "intercept": self._intercept_N,
            "ar": self._ar_N,
            "omega": self._omega_N,
            "alpha": self._alpha_NP,
            "beta": self._beta_NQ,
            "start": self._start_N,
        } | self._moments.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, state = load_state(folder)
        model = cls(params, lookback=params.pop("lookback"))
        model._intercept_N, model._ar_N = np.asarray(state["intercept"]), np.asarray(state["ar"])
        model._omega_N, model._start_N = np.asarray(state["omega"]), np.asarray(state["start"])
        model._alpha_NP, model._beta_NQ = np.asarray(state["alpha"]), np.asarray(state["beta"])
        model._moments = Moments.from_state(state)
        return model

    def _entity(self, n: int, returns_R: NDArray[np.float64]) -> Garch:
        num_shocks, num_variances = int(self._params["p"]), int(self._params["q"])
        if self._moments.enough_N[n]:
            found = estimate(
                returns_R,
                num_ar=int(self._params["num_ar"]),
                num_shocks=num_shocks,
                num_variances=num_variances,
            )
            if found is not None:
                return found
        variance = float(self._moments.deviation_N[n] ** 2)
        return Garch(
            intercept=float(self._moments.mean_N[n]),
            ar=0.0,
            omega=variance,
            alpha_P=np.zeros(num_shocks),
            beta_Q=np.zeros(num_variances),
            start=variance,
        )

    def _forecast(self, returns: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance (T, N) of the return ``BARS_AHEAD`` after the last of these."""
        before = np.broadcast_to(self._moments.mean_N, returns[0].shape)
        variance = np.broadcast_to(self._start_N, returns[0].shape)
        shocks, variances = [variance] * self._alpha_NP.shape[1], [variance] * self._beta_NQ.shape[1]
        expected, doubt, total = before, np.zeros_like(variance), variance
        for step, return_TN in enumerate([*returns, *[np.full_like(returns[0], np.nan)] * BARS_AHEAD]):
            expected = self._intercept_N + self._ar_N * before
            if step > 0:
                variance = np.broadcast_to(self._omega_N, return_TN.shape)
                for weight_N, past in zip([*self._alpha_NP.T, *self._beta_NQ.T], [*shocks, *variances], strict=True):
                    variance = variance + weight_N * past
            # Of an unknown return before this one, the doubt about it is carried on by the autoregression.
            total = variance + self._ar_N**2 * doubt
            known = np.isfinite(return_TN)
            shock = np.where(known, (return_TN - expected) ** 2, variance)
            before, doubt = np.where(known, return_TN, expected), np.where(known, 0.0, total)
            shocks = [shock, *shocks][: len(shocks)]
            variances = [variance, *variances][: len(variances)]
        return expected, total


def estimate(returns_R: NDArray[np.float64], *, num_ar: int, num_shocks: int, num_variances: int) -> Garch | None:
    """AR-GARCH of one entity's returns (finite, varying) by maximum likelihood, None where no stable one is found.

    ``start`` is the mean squared deviation, less what a first autocorrelation explains of it. Sequential quadratic
    programming keeps the weights in their simplex; it sets out from the most likely of six guesses.
    """
    from scipy.optimize import minimize

    mean, scale = float(returns_R.mean()), float(returns_R.std())
    z_R = (returns_R - mean) / scale
    before_R = np.concatenate([[0.0], z_R[:-1]])
    slope = num_ar * float(np.clip(np.mean(z_R * before_R), -MAX_AR, MAX_AR))
    start = 1.0 - slope**2
    num_weights = num_shocks + num_variances

    def loss_and_gradient(theta_K: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        return negative_log_likelihood(z_R, before_R, theta_K, num_shocks, start)

    stable = {
        "type": "ineq",
        "fun": lambda theta_K: MAX_PERSISTENCE - theta_K[3:].sum(),
        "jac": lambda _: np.array([0.0] * 3 + [-1.0] * num_weights),
    }
    with warnings.catch_warnings():
        # It warns of trial points outside the bounds, which it clips.
        warnings.simplefilter("ignore")
        found = minimize(
            loss_and_gradient,
            min(_guesses(slope, start, num_shocks, num_variances), key=lambda theta_K: loss_and_gradient(theta_K)[0]),
            jac=True,
            method="SLSQP",
            bounds=[(None, None), (-MAX_AR * num_ar, MAX_AR * num_ar), (MIN_OMEGA, None), *[(0.0, 1.0)] * num_weights],
            constraints=[stable],
            options={"maxiter": 200, "ftol": 1e-10},
        )
    constant, ar, omega, *weights = found.x
    if not found.success or abs(ar) > MAX_AR - 1e-6:
        return None
    return Garch(
        intercept=mean * (1 - ar) + constant * scale,
        ar=float(ar),
        omega=omega * scale**2,
        alpha_P=np.array(weights[:num_shocks]),
        beta_Q=np.array(weights[num_shocks:]),
        start=start * scale**2,
    )


def _guesses(slope: float, start: float, num_shocks: int, num_variances: int) -> list[NDArray[np.float64]]:
    """Parameters of unconditional variance ``start`` in several persistences and shares of the shocks in them."""
    return [
        np.array(
            [
                *(0.0, slope, (1 - persistence) * start),
                *[share / num_shocks] * num_shocks,
                *[(persistence - share) / num_variances] * num_variances,
            ]
        )
        for share, persistence in itertools.product(SHOCK_SHARES, PERSISTENCES)
    ]


def negative_log_likelihood_python(
    r_R: NDArray[np.float64], before_R: NDArray[np.float64], theta_K: NDArray[np.float64], num_shocks: int, start: float
) -> tuple[float, NDArray[np.float64]]:
    """Mean Gaussian loss (without its constant) and gradient of returns given the returns before them.

    ``theta_K`` is (intercept, ar, omega, alpha_1.., beta_1..); ``start`` stands for squared shocks and variances
    before the first return and for the variance of that return.
    """
    num, num_params = len(r_R), len(theta_K)
    num_variances = num_params - 3 - num_shocks
    first = max(num_shocks, num_variances)
    square_R, variance_R = np.full(first + num, start), np.full(first + num, start)
    square_slope_RK, variance_slope_RK = np.zeros((first + num, num_params)), np.zeros((first + num, num_params))
    loss, gradient_K = 0.0, np.zeros(num_params)
    for row in range(first, first + num):
        before = before_R[row - first]
        shock = r_R[row - first] - theta_K[0] - theta_K[1] * before
        square_R[row] = shock * shock
        square_slope_RK[row, 0] = -2.0 * shock
        square_slope_RK[row, 1] = -2.0 * shock * before
        if row > first:
            variance_R[row] = theta_K[2]
            variance_slope_RK[row, 2] = 1.0
            for lag in range(1, num_shocks + 1):
                weight = theta_K[2 + lag]
                variance_R[row] += weight * square_R[row - lag]
                variance_slope_RK[row, 2 + lag] += square_R[row - lag]
                for k in range(2):
                    variance_slope_RK[row, k] += weight * square_slope_RK[row - lag, k]
            for lag in range(1, num_variances + 1):
                weight = theta_K[2 + num_shocks + lag]
                variance_R[row] += weight * variance_R[row - lag]
                variance_slope_RK[row, 2 + num_shocks + lag] += variance_R[row - lag]
                for k in range(num_params):
                    variance_slope_RK[row, k] += weight * variance_slope_RK[row - lag, k]
        ratio = square_R[row] / variance_R[row]
        loss += 0.5 * (np.log(variance_R[row]) + ratio)
        for k in range(num_params):
            slope = square_slope_RK[row, k] + (1.0 - ratio) * variance_slope_RK[row, k]
            gradient_K[k] += 0.5 * slope / variance_R[row] / num
    return loss / num, gradient_K


negative_log_likelihood = njit(cache=True, nogil=True)(negative_log_likelihood_python)


ARCHITECTURE = Architecture(
    name="garch",
    family="econometric",
    cost_s=0.02,
    source="Bollerslev (1986), Generalized Autoregressive Conditional Heteroskedasticity, Journal of Econometrics 31",
    model=GarchModel,
    reads_features=False,
    grid={"p": ("p", (1, 2)), "q": ("q", (1, 2))},
    space={"num_ar": (1, 0)},
)
