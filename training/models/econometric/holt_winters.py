"""Holt and Winters' exponential smoothing of each entity's log price: damped trend, day-of-week season."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import TimeArray, Window
from training.models.deadline import Deadline
from training.models.econometric.returns import (
    BARS_AHEAD,
    Moments,
    finite,
    known_volatility,
    lagged,
    learnable_returns,
)
from training.models.spec import Architecture, Budget, Params, State
from training.models.state import load_state, save_state
from training.models.windows import forecastable_TN

# Tensor suffixes: T targets (or rows), N entities, G candidate parameters, 3 smoothing parameters, 7 days of the week.

# A damping below 0.8 would leave no trend but the memory of one bar, one above 0.98 is next to none (Hyndman and
# Athanasopoulos (2021), Forecasting: principles and practice, 8.2).
DAMPING_LIMITS: Final = (0.8, 0.98)
COARSE: Final = ((0.05, 0.3, 0.6, 0.95), (0.01, 0.1, 0.4, 0.9), (0.8, 0.87, 0.93, 0.98))
STEP: Final = 1e-5  # of the numerical gradient
SEASON_PRIOR_DAYS: Final = 50.0  # a day's mean is shrunk to zero as if by this many more days without an effect


class HoltWintersModel:
    """Additive Holt-Winters smoothing with a damped trend of each entity's log price (the sum of its returns).

    The score is the expected return ``BARS_AHEAD`` bars ahead, the growth of the price forecast from the next bar to
    that one, over the volatility known now (exact for a label of one bar from the next close; for longer ones the
    first bar of it). The smoothing parameters are one set for all entities: they minimise the squared one-step
    errors, in standard deviations, over the training returns. Level and trend smoothing are at least 1 / lookback: a
    longer memory could not be rebuilt from it (left free, a market without trends gets a trend that never moves). The
    state is rebuilt from exactly the last ``lookback`` returns, started at the price before them with ``drift`` times
    the training mean as its trend; a missing return counts as the expected one. ``season_days`` of 7 adds an additive
    season by the day of the week of the sample time, common to all entities in standard deviations and constant
    between fits (a seasonal smoothing of 0); which day follows which is learned from the training times. Features are
    not used.

    Sources: Holt, C. (1957), Forecasting seasonals and trends by exponentially weighted moving averages; Winters, P.
    (1960), Forecasting sales by exponentially weighted moving averages; Gardner, E. and McKenzie, E. (1985),
    Forecasting trends in time series.
    """

    def __init__(self, params: Params, *, lookback: int) -> None:
        self._params = dict(params)
        self._lookback = lookback

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:  # noqa: ARG002
        """Learn from ``train`` alone: nothing here is random or stops early."""
        deadline = Deadline(budget)
        known_TN = learnable_returns(train)
        self._moments = Moments.fit(known_TN)
        z_TN = self._moments.standardise(known_TN)[:, self._moments.enough_N]
        weekday_T = weekdays(train.sample_times_T)
        self._following_7 = _following(weekday_T)
        self._season_7 = np.zeros(7)
        if self._params["season_days"]:
            self._season_7 = _season(z_TN, weekday_T[train.num_history :])
        calm_TN = z_TN - self._season_7[weekday_T[train.num_history :], None]
        mean_N = (self._moments.mean_N / self._moments.deviation_N)[self._moments.enough_N]
        start_N = mean_N * float(self._params["drift"])
        self._smoothing_3 = smoothing_parameters(calm_TN + mean_N, start_N, 1 / self._lookback, deadline)

    def predict(self, window: Window) -> NDArray[np.float64]:
        self._moments.require_entities(window)
        weekday_T = weekdays(window.sample_times_T)
        season_TN = self._season_7[weekday_T, None] * self._moments.deviation_N
        start_N = self._moments.mean_N * float(self._params["drift"])
        level, trend, damping = self._smoothing_3
        _, slope_TN = smooth(lagged(finite(window.returns_TN) - season_TN, window), start_N, level, trend, damping)
        ahead_T = weekday_T[window.num_history :]
        for _ in range(BARS_AHEAD):
            slope_TN, ahead_T = damping * slope_TN, self._following_7[ahead_T]
        expected_TN = slope_TN + self._season_7[ahead_T, None] * self._moments.deviation_N
        return np.where(forecastable_TN(window), expected_TN / known_volatility(window), np.nan)

    def state(self) -> State:
        return {
            "smoothing": self._smoothing_3,
            "season": self._season_7,
            "following": self._following_7,
        } | self._moments.state()

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params | {"lookback": self._lookback}, state=self.state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, state = load_state(folder)
        model = cls(params, lookback=params.pop("lookback"))
        model._smoothing_3, model._season_7 = np.asarray(state["smoothing"]), np.asarray(state["season"])
        model._following_7 = np.asarray(state["following"], dtype=np.int64)
        model._moments = Moments.from_state(state)
        return model


def smooth(
    returns: list[NDArray[np.float64]],
    start: NDArray[np.float64],
    level: NDArray[np.float64],
    trend: NDArray[np.float64],
    damping: NDArray[np.float64],
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """One-step errors (0 for a missing return) of these returns, and the trend after the last one.

    Holt's recursions l_t = level p_t + (1 - level) (l_{t-1} + damping b_{t-1}) and b_t = trend (l_t - l_{t-1}) +
    (1 - trend) damping b_{t-1} of the price p in the form of its error e_t: the level is p_t - (1 - level) e_t, so
    only the trend and the last error need keeping and the price never appears. It starts with the level at the price
    before the first return and the trend ``start``.
    """
    slope, gap = start + np.zeros_like(returns[0]), np.zeros_like(returns[0])
    errors = []
    for return_ in returns:
        expected = gap + damping * slope
        errors.append(np.where(np.isfinite(return_), return_ - expected, 0.0))
        gap, slope = (level - 1) * errors[-1], damping * slope + level * trend * errors[-1]
    return errors, slope


def smoothing_parameters(
    z_TN: NDArray[np.float64], start_N: NDArray[np.float64], least: float, deadline: Deadline
) -> NDArray[np.float64]:
    """(level, trend, damping) with the least mean squared error: the best of a coarse grid, refined by L-BFGS-B.

    Level and trend lie between ``least`` and 1.
    """
    from scipy.optimize import minimize

    limits = np.array([(least, 1.0), (least, 1.0), DAMPING_LIMITS])

    def loss_and_gradient(guess_3: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        deadline.check("smoothing parameters")
        # One-sided steps that stay inside: a parameter often ends on its upper limit.
        sign_3 = np.where(guess_3 + STEP > limits[:, 1], -1.0, 1.0)
        loss_G = _losses(z_TN, start_N, guess_3 + np.vstack([np.zeros(3), np.diag(STEP * sign_3)]))
        return float(loss_G[0]), (loss_G[1:] - loss_G[0]) / (STEP * sign_3)

    coarse_G3 = np.stack(np.meshgrid(*COARSE, indexing="ij"), axis=-1).reshape(-1, 3).clip(*limits.T)
    deadline.check("the coarse grid of smoothing parameters")
    start_3 = coarse_G3[np.argmin(_losses(z_TN, start_N, coarse_G3))]
    found = minimize(loss_and_gradient, start_3, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 50})
    return np.asarray(found.x, dtype=np.float64)


def _losses(
    z_TN: NDArray[np.float64], start_N: NDArray[np.float64], candidates_G3: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean squared one-step error of each candidate (level, trend, damping)."""
    level_G1, trend_G1, damping_G1 = (column[:, None] for column in candidates_G3.T)
    returns = [np.broadcast_to(z_N, (len(candidates_G3), len(z_N))) for z_N in z_TN]
    errors, _ = smooth(returns, start_N, level_G1, trend_G1, damping_G1)
    total_G = np.zeros(len(candidates_G3))
    for error_GN in errors:
        total_G += (error_GN**2).sum(axis=1)
    return total_G / np.isfinite(z_TN).sum()


def weekdays(times_T: TimeArray) -> NDArray[np.int64]:
    """Day of the week of each time, Monday 0."""
    return (times_T.astype("datetime64[D]").astype(np.int64) + 3) % 7


def _following(weekday_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each day of the week the one that most often comes with the next row."""
    following_7 = (np.arange(7) + 1) % 7
    for day in range(7):
        after = weekday_T[1:][weekday_T[:-1] == day]
        if len(after):
            following_7[day] = np.bincount(after).argmax()
    return following_7


def _season(z_TN: NDArray[np.float64], weekday_T: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shrunken mean of each day of the week, over rows of the mean over entities."""
    season_7 = np.zeros(7)
    for day in range(7):
        day_TN = z_TN[weekday_T == day]
        day_TN = day_TN[np.isfinite(day_TN).any(axis=1)]
        if len(day_TN):
            season_7[day] = np.nanmean(day_TN, axis=1).sum() / (len(day_TN) + SEASON_PRIOR_DAYS)
    return season_7


ARCHITECTURE = Architecture(
    name="holt_winters",
    family="econometric",
    cost_s=0.02,
    source="Winters (1960), Forecasting Sales by Exponentially Weighted Moving Averages, Management Science 6",
    model=HoltWintersModel,
    reads_features=False,
    grid={"season_days": ("s", (0, 7))},
    space={"drift": (1.0, 0.5, 0.0)},
)
