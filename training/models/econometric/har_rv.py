"""HAR-RV: past mean returns over a heterogeneous autoregressive forecast of the volatility."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.econometric.returns import (
    BARS_AHEAD,
    MEMORY_ROWS,
    RETURN_LIMIT,
    Moments,
    finite,
    lagged,
    learnable_returns,
    mean_of_known,
    new_returns,
)
from training.models.spec import Architecture, Budget, Params, State
from training.models.state import load_state, save_state
from training.models.windows import LABEL_LIMIT, forecastable_TN, label_TN, require_labels

# Tensor suffixes: T targets, N entities, S samples, C components (daily, weekly, monthly).

DAY, WEEK, MONTH = 1, 5, 22  # bars; Corsi's choice
LOWEST, HIGHEST = 0.2, 5.0  # a forecast stays within these multiples of the training deviation
WHOLE: Final = 2  # the power of a return that is its variance


class HarRvModel:
    """HAR-RV of each entity's |return|^power, and a linear model of past mean returns over its forecast.

    The score is an expected return over the forecast volatility (not over the volatility known now). (1) Volatility:
    RV_t = c + b_d RV_{t-1} + b_w mean(last 5) + b_m mean(last 22) + e_t, by least squares over all entities at once,
    where RV is |return / training deviation|^power, the realised measure that bars without their insides allow
    (``power`` 2: variance; 1: absolute returns, less moved by outliers), and the month is cut to the lookback. It is
    iterated ``BARS_AHEAD`` bars and kept within 0.2 to 5 training deviations. (2) Mean: a ridge regression through
    the origin, over all entities at once, of the label (in forecast volatilities) on the mean returns of the last bar,
    the last 5 and the whole lookback, each a t-value under the forecast volatility: how much of a past move goes on
    or comes back. Exactly the last ``lookback`` returns are read, those known of them. Features are not used.

    Sources: Corsi, F. (2009), A simple approximate long-memory model of realized volatility, Journal of Financial
    Econometrics 7; Forsberg, L. and Ghysels, E. (2007), Why do absolute returns predict volatility so well?, ibid. 5
    """

    def __init__(self, params: Params, *, lookback: int) -> None:
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002
        """Learn from ``train`` alone: nothing here is random or stops early."""
        deadline = Deadline(budget)
        known_TN = learnable_returns(train)
        self._moments = Moments.fit(known_TN)
        self._unit_1 = np.atleast_1d(np.nanmean(self._realised(known_TN)[:, self._moments.enough_N]))
        self._har_C = self._volatility_weights(train, known_TN)
        self._slope_C = self._slopes(train)
        deadline.check("the end")

    def update(self, new: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002 (nothing here is random)
        """Move both regressions towards those of the new rows alone, by the rows' share beside ``MEMORY_ROWS``.

        That is Bayesian least squares under a prior around the present coefficients whose precision has the shape of
        the new rows' cross-products: Zellner, A. (1986), On assessing prior distributions and Bayesian regression
        analysis with g-prior distributions. The unit of the volatility stays that of the fit.
        """
        deadline = Deadline(budget)
        self._moments.require_entities(new)
        known_TN = new_returns(new, self._moments)
        num_rows = int(np.isfinite(known_TN).any(axis=1).sum())
        share = num_rows / (num_rows + MEMORY_ROWS)
        har_C, slope_C = self._volatility_weights(new, known_TN), self._slopes(new)
        deadline.check("the end")
        self._har_C = (1 - share) * self._har_C + share * har_C
        self._slope_C = (1 - share) * self._slope_C + share * slope_C

    def predict(self, window: Window) -> NDArray[np.float64]:
        self._moments.require_entities(window)
        score_TN = np.zeros(window.y_TN[window.num_history :].shape)
        for slope, trend_TN in zip(self._slope_C, self._trends(window), strict=True):
            score_TN = score_TN + slope * trend_TN
        return np.where(forecastable_TN(window), score_TN, np.nan)

    def volatility(self, window: Window) -> NDArray[np.float64]:
        """Forecast standard deviation (num_targets, N) of the return ``BARS_AHEAD`` bars after each target."""
        return self._relative_volatility(window) * self._moments.deviation_N

    def state(self) -> State:
        return {"har": self._har_C, "unit": self._unit_1, "slope": self._slope_C} | self._moments.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, state = load_state(folder)
        model = cls(params, lookback=params.pop("lookback"))
        model._har_C, model._unit_1 = np.asarray(state["har"]), np.asarray(state["unit"])
        model._slope_C = np.asarray(state["slope"])
        model._moments = Moments.from_state(state)
        return model

    def _volatility_weights(self, window: Window, known_TN: NDArray[np.float64]) -> NDArray[np.float64]:
        """Least squares of the known returns' realised measure on the cascade of those before."""
        target_TN = np.where(self._moments.enough_N, self._realised(known_TN), np.nan)[1:]
        past = _cascade(lagged(self._realised(window.returns_TN), window), otherwise=float(self._unit_1[0]))
        learn_TN = np.isfinite(target_TN)
        design_SC = np.column_stack([np.ones(learn_TN.sum()), *(mean_TN[:-1][learn_TN] for mean_TN in past)])
        weight_C, *_ = np.linalg.lstsq(design_SC, target_TN[learn_TN], rcond=None)
        return np.asarray(weight_C, dtype=np.float64)

    def _slopes(self, window: Window) -> NDArray[np.float64]:
        """Ridge regression of the labels, in forecast volatilities, on the trends."""
        forward_TN = label_TN(window) * window.vol_TN[window.num_history :]
        y_TN = np.clip(forward_TN / self.volatility(window), -LABEL_LIMIT, LABEL_LIMIT)
        learn_TN = np.isfinite(y_TN)
        require_labels(y_TN[learn_TN])
        x_SC = np.column_stack([trend_TN[learn_TN] for trend_TN in self._trends(window)])
        ridge = float(self._params["ridge"]) * len(x_SC) * np.eye(x_SC.shape[1])
        return np.asarray(np.linalg.solve(x_SC.T @ x_SC + ridge, x_SC.T @ y_TN[learn_TN]), dtype=np.float64)

    def _realised(self, returns_TN: NDArray[np.float64]) -> NDArray[np.float64]:
        """|return|^power in training deviations, NaN where unknown."""
        size_TN = np.minimum(np.abs(finite(returns_TN)) / self._moments.deviation_N, RETURN_LIMIT)
        return size_TN**2 if self._params["power"] == WHOLE else size_TN

    def _relative_volatility(self, window: Window) -> NDArray[np.float64]:
        """Forecast standard deviation as a multiple of the training deviation."""
        power = int(self._params["power"])
        realised, unit = lagged(self._realised(window.returns_TN), window), float(self._unit_1[0])
        for _ in range(BARS_AHEAD):
            forecast_TN = np.full_like(realised[-1], self._har_C[0])
            for weight, mean_TN in zip(self._har_C[1:], _cascade(realised, otherwise=unit), strict=True):
                forecast_TN = forecast_TN + weight * mean_TN
            realised = [*realised[1:], np.clip(forecast_TN, unit * LOWEST**power, unit * HIGHEST**power)]
        return np.sqrt(realised[-1] / unit) if power == WHOLE else realised[-1] / unit

    def _trends(self, window: Window) -> list[NDArray[np.float64]]:
        """t-values (T, N) of the mean return over the last bar, the last week and the lookback."""
        z_TN = np.clip(finite(window.returns_TN) / self._moments.deviation_N, -RETURN_LIMIT, RETURN_LIMIT)
        returns, volatility_TN = lagged(z_TN, window), self._relative_volatility(window)
        return [
            np.sqrt(bars) * mean_of_known(returns[-bars:], otherwise=0.0) / volatility_TN
            for bars in (DAY, WEEK, len(returns))
        ]


def _cascade(realised: Sequence[NDArray[np.float64]], *, otherwise: float) -> list[NDArray[np.float64]]:
    """Means of the known values over the last day, week and month, a month no longer than there are arrays."""
    return [mean_of_known(realised[-bars:], otherwise=otherwise) for bars in (DAY, WEEK, MONTH)]


ARCHITECTURE = Architecture(
    name="har_rv",
    family="econometric",
    cost_s=0.01,
    source="Corsi (2009), A Simple Approximate Long-Memory Model of Realized Volatility, JFEC 7",
    model=HarRvModel,
    reads_features=False,
    grid={"power": ("p", (2, 1))},
    space={"ridge": (0.1, 0.01, 1.0)},
)
