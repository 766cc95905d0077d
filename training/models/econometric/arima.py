"""ARIMA of each entity's log price, with principal components of the features beside it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.spec import Architecture, Budget, ModelError, Params, State
from training.models.state import load_state, save_state
from training.models.windows import Scaler, forecastable_TN, label_TN, require_labels

# Tensor suffixes: T targets, N entities, R known returns of one entity, S samples, F features, C components,
# P autoregressive and Q moving-average order.

MIN_RETURNS: Final = 60
BARS_AHEAD: Final = 2  # the label starts at the next price, so its return is the one after the next
RIDGE_SHARE: Final = 0.1  # the ridge as a share of the samples
MLE_OPTIONS: Final = {"maxiter": 50, "gtol": 1e-2}  # a log-likelihood of hundreds: finer is below the sampling error
ROOT_MARGIN: Final = 1.01  # stationary and invertible with something to spare: every root at least this large


class Estimator(IntEnum):
    """Where an entity's parameters come from; ``MEAN`` is the fallback, a constant expected return."""

    MEAN = 0
    HANNAN_RISSANEN = 1
    INNOVATIONS_MLE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Arma:
    """ARMA of one entity's returns: r_t - mean = sum ar_i (r_{t-i} - mean) + e_t + sum ma_j e_{t-j}."""

    mean: float
    ar_P: NDArray[np.float64]
    ma_Q: NDArray[np.float64]
    estimator: Estimator


class ArimaModel:
    """ARIMA(p, 1, q) of each entity's log price, that is ARMA(p, q) of its returns, plus a regression on features.

    The score is the sum of (1) the ARMA mean of the return ``BARS_AHEAD`` bars ahead, divided by the volatility known
    now (exact for a label of one bar from the next close; for longer ones the first bar of it), and (2) a ridge
    regression of what (1) leaves of the label on the first ``num_components`` principal components of the scaled
    features. The ARMA is filtered over exactly the last ``lookback`` returns, from the mean as its start; a missing
    return counts as the expected one. Parameters come from the training targets that have a label, an entity at a
    time, by Hannan and Rissanen's regressions, or where those leave the stationary and invertible region by the
    maximum likelihood of the innovations; an entity for which both fail gets its mean. Entities keep their order.

    Sources: Box, G. and Jenkins, G. (1970), Time series analysis: forecasting and control; Hannan, E. and Rissanen,
    J. (1982), Recursive estimation of mixed autoregressive-moving average order; Brockwell, P. and Davis, R. (2016),
    Introduction to time series and forecasting, 5.1.3-5.2.
    """

    def __init__(self, params: Params, *, lookback: int) -> None:
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002
        """Learn from ``train`` alone: nothing here is random or stops early."""
        deadline = Deadline(budget)
        labels_TN = label_TN(train)
        known_TN = np.where(np.isfinite(labels_TN), train.returns_TN[train.num_history :], np.nan)
        self._fit_arma(known_TN, deadline)
        self._fit_regression(train, labels_TN)
        deadline.check("the end")

    def predict(self, window: Window) -> NDArray[np.float64]:
        score_TN = self._arma_score(window) + self._regression_score(window)
        return np.where(forecastable_TN(window), score_TN, np.nan)

    def state(self) -> State:
        return {
            "mean": self._mean_N,
            "ar": self._ar_NP,
            "ma": self._ma_NQ,
            "estimator": self._estimator_N,
            "slope": self._slope_F,
            "offset": self._offset_1,
        } | self._scaler.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, state = load_state(folder)
        model = cls(params, lookback=params.pop("lookback"))
        model._mean_N, model._ar_NP, model._ma_NQ = (np.asarray(state[name]) for name in ("mean", "ar", "ma"))
        model._slope_F, model._offset_1 = np.asarray(state["slope"]), np.asarray(state["offset"])
        model._estimator_N = np.asarray(state["estimator"], dtype=np.int8)
        model._scaler = Scaler.from_state(state)
        return model

    def _fit_arma(self, known_TN: NDArray[np.float64], deadline: Deadline) -> None:
        entities: list[Arma] = []
        for returns_T in known_TN.T:
            deadline.check(f"entity {len(entities) + 1} of {known_TN.shape[1]}")
            returns_R = returns_T[np.isfinite(returns_T)]
            entities.append(estimate(returns_R, num_ar=int(self._params["p"]), num_ma=int(self._params["q"])))
        if all(entity.estimator is Estimator.MEAN for entity in entities):
            raise ModelError(
                f"no ARMA could be estimated for any of {len(entities)} entities; each needs {MIN_RETURNS} returns "
                "that vary: give a longer training window"
            )
        self._mean_N = np.array([entity.mean for entity in entities])
        self._ar_NP = np.array([entity.ar_P for entity in entities])
        self._ma_NQ = np.array([entity.ma_Q for entity in entities])
        self._estimator_N = np.array([entity.estimator for entity in entities], dtype=np.int8)

    def _fit_regression(self, train: Window, labels_TN: NDArray[np.float64]) -> None:
        now_TNF = train.x_TNF[train.num_history :]
        self._scaler = Scaler.fit(now_TNF.reshape(-1, now_TNF.shape[2]))
        rest_TN = labels_TN - self._arma_score(train)
        learn_TN = np.isfinite(rest_TN) & np.isfinite(now_TNF).any(axis=2)
        require_labels(rest_TN[learn_TN])
        x_SF = self._scaler.transform(now_TNF[learn_TN]).astype(np.float64)
        self._slope_F = _component_regression(x_SF, rest_TN[learn_TN], int(self._params["num_components"]))
        self._offset_1 = -np.atleast_1d(x_SF.mean(axis=0) @ self._slope_F)

    def _regression_score(self, window: Window) -> NDArray[np.float64]:
        # Not a matrix product: its order of summation, and so the last bit, would depend on the window's length.
        weighted_TNF = self._scaler.transform(window.x_TNF[window.num_history :]) * self._slope_F
        return weighted_TNF.sum(axis=2) + self._offset_1

    def _arma_score(self, window: Window) -> NDArray[np.float64]:
        """ARMA mean of the return ``BARS_AHEAD`` bars ahead over the volatility now; NaN where that is unknown."""
        if window.returns_TN.shape[1] != len(self._mean_N):
            raise ModelError(
                f"a window of {window.returns_TN.shape[1]} entities for an ARIMA of {len(self._mean_N)}; "
                "its parameters belong to the entities it was fitted on, in their order"
            )
        first, num_rows = window.num_history, len(window.returns_TN)
        missing_TN = np.full((self._lookback - 1, window.returns_TN.shape[1]), np.nan)
        returns_TN = np.concatenate([missing_TN, window.returns_TN])
        lagged = [returns_TN[first + lag : num_rows + lag] for lag in range(self._lookback)]
        ahead = [np.full_like(lagged[0], np.nan)] * BARS_AHEAD
        vol_TN = np.where(window.vol_TN[first:] > 0, window.vol_TN[first:], np.nan)
        return self._filter([*lagged, *ahead]) / vol_TN

    def _filter(self, returns: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Expected value of the last of these returns, given those before it."""
        zero = np.zeros_like(returns[0])
        deviations, shocks = [zero] * self._ar_NP.shape[1], [zero] * self._ma_NQ.shape[1]
        expected = zero
        for return_TN in returns:
            expected = zero
            for weight_N, past in zip([*self._ar_NP.T, *self._ma_NQ.T], [*deviations, *shocks], strict=True):
                expected = expected + weight_N * past
            deviation = np.where(np.isfinite(return_TN), return_TN - self._mean_N, expected)
            deviations = [deviation, *deviations][: len(deviations)]
            shocks = [deviation - expected, *shocks][: len(shocks)]
        return self._mean_N + expected


def estimate(returns_R: NDArray[np.float64], *, num_ar: int, num_ma: int) -> Arma:
    """ARMA of one entity's returns (all finite), or their mean where they are few, constant, or no fit is stable."""
    mean = float(returns_R.mean()) if len(returns_R) else 0.0
    deviation = float(returns_R.std()) if len(returns_R) else 0.0
    if len(returns_R) >= MIN_RETURNS and deviation > 1e-12:
        for estimator in (Estimator.HANNAN_RISSANEN, Estimator.INNOVATIONS_MLE):
            found = _solve(estimator, (returns_R - mean) / deviation, num_ar, num_ma)
            if found is not None:
                return Arma(mean=mean, ar_P=found[0], ma_Q=found[1], estimator=estimator)
    return Arma(mean=mean, ar_P=np.zeros(num_ar), ma_Q=np.zeros(num_ma), estimator=Estimator.MEAN)


def _solve(
    estimator: Estimator, z_R: NDArray[np.float64], num_ar: int, num_ma: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(ar_P, ma_Q) by one estimator, None where it fails or ends at the edge of the stable region."""
    from statsmodels.tsa.arima.estimators.hannan_rissanen import hannan_rissanen
    from statsmodels.tsa.arima.estimators.innovations import innovations_mle

    try:
        with warnings.catch_warnings():
            # Both warn of unstable start values and overflow on the way; what comes out is judged below.
            warnings.simplefilter("ignore")
            if estimator is Estimator.HANNAN_RISSANEN:
                params, _ = hannan_rissanen(z_R, ar_order=num_ar, ma_order=num_ma, demean=False)
            else:
                params, details = innovations_mle(
                    z_R, order=(num_ar, 0, num_ma), demean=False, minimize_kwargs={"options": dict(MLE_OPTIONS)}
                )
                if not details.minimize_results.success:
                    return None
    except (ValueError, np.linalg.LinAlgError):
        return None
    ar_P, ma_Q = np.asarray(params.ar_params), np.asarray(params.ma_params)
    return (ar_P, ma_Q) if _is_stable(-ar_P) and _is_stable(ma_Q) else None


def _is_stable(weights: NDArray[np.float64]) -> bool:
    """Whether all roots of 1 + w1 z + w2 z^2 + ... lie outside the circle of ``ROOT_MARGIN``."""
    if not np.isfinite(weights).all():
        return False
    roots = np.roots([*weights[::-1], 1.0])
    return bool((np.abs(roots) >= ROOT_MARGIN).all())


def _component_regression(
    x_SF: NDArray[np.float64], y_S: NDArray[np.float64], num_components: int
) -> NDArray[np.float64]:
    """Slopes (F,) of a ridge regression on the first principal components, brought back to the features."""
    centred_SF = x_SF - x_SF.mean(axis=0)
    _, vectors_FF = np.linalg.eigh(centred_SF.T @ centred_SF)
    loadings_FC = vectors_FF[:, ::-1][:, :num_components]
    components_SC = centred_SF @ loadings_FC
    ridge = RIDGE_SHARE * len(y_S) * np.eye(components_SC.shape[1])
    return loadings_FC @ np.linalg.solve(components_SC.T @ components_SC + ridge, components_SC.T @ y_S)


ARCHITECTURE = Architecture(
    name="arima",
    family="econometric",
    cost_s=0.02,
    source="Box and Jenkins (1970), Time Series Analysis: Forecasting and Control",
    model=ArimaModel,
    grid={"p": ("p", (1, 2)), "q": ("q", (0, 1))},
    space={"num_components": (1, 0, 3)},
)
