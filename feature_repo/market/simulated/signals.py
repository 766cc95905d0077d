"""The planted signals: what they are, and how strongly they must push to have the information that is asked for.

Each is a function of what is known at the day's end, made of published series by the formula below, then brought to
mean 0 and variance 1 over the history:

- ``momentum``: sum of the returns 10 to 51 days back over the root of the sum of their squares;
- ``technical``: less the weighted sum of the last 10 returns (10, 9, ... 1) over the root of its squares: reversal to
  the mean of the last 10 closes;
- ``volatility``: less the log of the last 10 returns' root mean square over that of the last 60: calm pays;
- ``cross_asset``: sum of the leader's last 5 returns over the root of the sum of their squares;
- ``ohlcv``: log volume, mean of 3 days less mean of 30;
- ``order_flow``: log of the mean volume of rising hours over that of falling ones, mean of 5 days;
- ``sentiment``: the day's ``news_tone``;
- ``onchain``: log active addresses, mean of 3 days less mean of 28, a day old, for they are published next day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from feature_repo.market.schema import MarketError
from feature_repo.market.simulated.days import simulate_days
from feature_repo.market.simulated.spec import OUTSIDE_SIGNALS, PRICE_SIGNALS, SIGNALS, SimSpec

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

# Tensor suffixes: T days with the burn-in, H hours of the day, N assets, S signals in the order of SIGNALS.


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What the days' recursion is given (T, N): unit shocks, how far their paths reach, volatility; drift (T,)."""

    shock_TN: FloatArray
    reach_TN: FloatArray
    vol_TN: FloatArray
    drift_T: FloatArray
    leader_N: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Planting:
    """How the alpha was planted, by signal.

    ``weight`` is the part of its volatility by which a day's expected return rises a standard deviation of the
    signal. ``expected_ic`` is the correlation with the next day's return that follows, also of signals that only
    resemble a planted one or the regimes' drift; ``tradable_ic`` with the return of the day after, which a decision
    on this day's end earns where the first price after it is the next close.
    """

    weight: Mapping[str, float]
    expected_ic: Mapping[str, float]
    tradable_ic: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class DailyPath:
    """What the days' recursion gave, (T, N), and the signals (S, T, N).

    ``drift_TN`` is what a day's return was expected to be, ``regime_TN`` the regime's part of it over volatility,
    ``scale_TN`` what a unit shock moved the return.
    """

    returns_TN: FloatArray
    sigma_TN: FloatArray
    drift_TN: FloatArray
    regime_TN: FloatArray
    scale_TN: FloatArray
    signal_STN: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    """Of the signals' recursion, (S,): weight, and the centre and scale of the raw signal."""

    beta_S: FloatArray
    centre_S: FloatArray
    scale_S: FloatArray
    shock_scale: float


_NUM_PRICE: Final = len(PRICE_SIGNALS)
_NUM_ROUNDS: Final = 6
MAX_EXPLAINED: Final = 0.25


def trailing_mean(x_TN: FloatArray, window: int) -> FloatArray:
    """Mean of the last ``window`` days, that day included; NaN before there are so many."""
    mean_TN = np.full_like(x_TN, np.nan)
    mean_TN[window - 1 :] = sliding_window_view(x_TN, window, axis=0).mean(axis=-1)
    return mean_TN


def volume_surprise(volume_TN: FloatArray) -> FloatArray:
    """The raw ``ohlcv`` signal, from daily volumes."""
    log_TN = np.log(volume_TN)
    return trailing_mean(log_TN, 3) - trailing_mean(log_TN, 30)


def flow_imbalance(volume_THN: FloatArray, rises_THN: NDArray[np.bool_]) -> FloatArray:
    """The raw ``order_flow`` signal, from hourly volumes and whether the hour's price rose."""
    rising_TN, num_rising_TN = (volume_THN * rises_THN).sum(axis=1), rises_THN.sum(axis=1)
    falling_TN, num_falling_TN = volume_THN.sum(axis=1) - rising_TN, rises_THN.shape[1] - num_rising_TN
    both_TN = (num_rising_TN > 0) & (num_falling_TN > 0)
    per_hour_TN = (rising_TN / np.maximum(num_rising_TN, 1), falling_TN / np.maximum(num_falling_TN, 1))
    rising_TN, falling_TN = (np.where(both_TN, volume_TN, 1.0) for volume_TN in per_hour_TN)
    return trailing_mean(np.log(rising_TN / falling_TN), 5)


def activity_growth(log_users_TN: FloatArray) -> FloatArray:
    """The raw ``onchain`` signal, from log active addresses: of the day before."""
    growth_TN = np.full_like(log_users_TN, np.nan)
    growth_TN[1:] = (trailing_mean(log_users_TN, 3) - trailing_mean(log_users_TN, 28))[:-1]
    return growth_TN


def news_tone(tone_TN: FloatArray) -> FloatArray:
    """The raw ``sentiment`` signal, between -1 and 1."""
    return np.tanh(0.5 * tone_TN)


def plant(
    spec: SimSpec, outside: Mapping[str, FloatArray], conditions: Conditions, *, num_burn: int
) -> tuple[Planting, DailyPath]:
    """Simulate the days with the alphas of the spec in them.

    Signals resemble each other (a leader's returns and an asset's own), and what is planted moves the returns that
    some are made of. So each run's covariances give the weights of the next, until they settle.
    """
    raw_outside_STN = np.nan_to_num(np.stack([outside[name] for name in OUTSIDE_SIGNALS]))
    zeros_S = np.zeros(len(SIGNALS))
    weights = _Weights(beta_S=zeros_S, centre_S=zeros_S, scale_S=zeros_S + 1.0, shock_scale=1.0)
    for _ in range(_NUM_ROUNDS):
        weights = _settle(spec, weights, _run(conditions, raw_outside_STN, weights), num_burn)
    path = _run(conditions, raw_outside_STN, weights)
    return _describe(weights, path, num_burn), path


def _run(conditions: Conditions, raw_outside_STN: FloatArray, weights: _Weights) -> DailyPath:
    price, outside = slice(None, _NUM_PRICE), slice(_NUM_PRICE, None)
    centre_S11, scale_S11 = weights.centre_S[:, None, None], weights.scale_S[:, None, None]
    outside_STN = (raw_outside_STN - centre_S11[outside]) / scale_S11[outside]
    push_TN = _weighted(weights.beta_S[outside], outside_STN)
    returns_TN, sigma_TN, shrink_TN, raw_price_STN = simulate_days(
        conditions.shock_TN,
        conditions.reach_TN,
        conditions.vol_TN,
        conditions.drift_T,
        push_TN,
        weights.beta_S[price],
        weights.centre_S[price],
        weights.scale_S[price],
        weights.shock_scale,
        conditions.leader_N,
    )
    scale_TN = sigma_TN * shrink_TN * weights.shock_scale
    return DailyPath(
        returns_TN=returns_TN,
        sigma_TN=sigma_TN,
        drift_TN=returns_TN - scale_TN * conditions.shock_TN,
        regime_TN=conditions.drift_T[:, None] / sigma_TN,
        scale_TN=scale_TN,
        signal_STN=np.concatenate([(raw_price_STN - centre_S11[price]) / scale_S11[price], outside_STN]),
    )


def _weighted(beta_S: FloatArray, signal_STN: FloatArray) -> FloatArray:
    """Sum of weighted signals, one after the other so that no linear algebra library decides the last bit."""
    total_TN = np.zeros(signal_STN.shape[1:])
    for beta, signal_TN in zip(beta_S, signal_STN, strict=True):
        total_TN += beta * signal_TN
    return total_TN


def _settle(spec: SimSpec, weights: _Weights, path: DailyPath, num_burn: int) -> _Weights:
    """Weights by which, on this path, covariances and the drift's part add up to the ICs of the spec."""
    observed_STN = path.signal_STN[:, num_burn - 1 : -1]
    mean_S, std_S = observed_STN.mean(axis=(1, 2)), observed_STN.std(axis=(1, 2))
    target_S = np.array([spec.alpha.get(name, 0.0) for name in SIGNALS])
    planted = np.flatnonzero(target_S)
    known_STN = ((observed_STN - mean_S[:, None, None]) / std_S[:, None, None])[planted]
    regime_TN = path.regime_TN[num_burn:]
    by_regime_S = np.array([(signal_TN * regime_TN).mean() for signal_TN in known_STN])
    covariance_SS = np.array([[(one_TN * other_TN).mean() for other_TN in known_STN] for one_TN in known_STN])
    beta_S, explained = np.zeros(len(SIGNALS)), 0.0
    if len(planted):
        beta_S[planted] = np.linalg.solve(covariance_SS, target_S[planted] - by_regime_S)
        explained = float(_weighted(beta_S[planted], known_STN).var())
    if explained > MAX_EXPLAINED:
        raise MarketError(
            f"the alphas {dict(spec.alpha)} would explain {explained:.0%} of the returns' variance, more than "
            f"{MAX_EXPLAINED:.0%}: plant weaker or fewer ones"
        )
    return _Weights(
        beta_S=beta_S,
        centre_S=weights.centre_S + weights.scale_S * mean_S,
        scale_S=weights.scale_S * std_S,
        shock_scale=float(np.sqrt(1.0 - explained)),
    )


def _describe(weights: _Weights, path: DailyPath, num_burn: int) -> Planting:
    score_TN = (path.drift_TN / path.sigma_TN)[num_burn:]
    next_S = [(signal_TN * score_TN).mean() for signal_TN in path.signal_STN[:, num_burn - 1 : -1]]
    later_S = [(signal_TN * score_TN[1:]).mean() for signal_TN in path.signal_STN[:, num_burn - 1 : -2]]
    return Planting(weight=_named(weights.beta_S), expected_ic=_named(next_S), tradable_ic=_named(later_S))


def _named(values_S: FloatArray | list[np.float64]) -> dict[str, float]:
    """By name, to six decimals."""
    return {name: round(float(value), 6) + 0.0 for name, value in zip(SIGNALS, values_S, strict=True)}
