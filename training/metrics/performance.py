"""Performance of return series: what was earned, at what risk, and how sure of it one may be.

Every function reduces the last axis and keeps the others, so (T,) gives one value and (V, T) one a variant. Returns
are simple returns per bar. NaN is a bar without a track record (a variant that began later) and is left out; where
a figure isn't defined it is NaN. ``periods_per_year`` is bars a year. All of them look back only; what they say of
bar t is known once bar t has ended.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

FloatArray = NDArray[np.float64]

EULER_GAMMA: Final = 0.5772156649015329
MIN_BETA_BARS: Final = 63  # a beta from fewer bars is noise

# Tensor suffixes: V variants, T bars.


def sharpe(returns: FloatArray, *, periods_per_year: float) -> FloatArray:
    """Mean over standard deviation (n - 1), annualised; NaN for constant returns or fewer than two. Sharpe (1994)."""
    _, mean, std = _moments(returns)
    return _ratio(mean, std) * np.sqrt(periods_per_year)


def sortino(returns: FloatArray, *, periods_per_year: float) -> FloatArray:
    """Mean over the root mean square of the losses (target 0), annualised. Sortino & van der Meer (1991)."""
    count, mean, _ = _moments(returns)
    losses = np.where(returns < 0, returns, 0.0)
    downside = np.sqrt((losses**2).sum(axis=-1) / np.maximum(count, 1))
    return _ratio(mean, downside) * np.sqrt(periods_per_year)


def annual_return(returns: FloatArray, *, periods_per_year: float) -> FloatArray:
    """Compound growth a year: final wealth to the power of one over the years, minus 1; -1 once all is lost."""
    count, _, _ = _moments(returns)
    growth = _wealth(returns)[..., -1] ** (periods_per_year / np.maximum(count, 1)) - 1.0
    return np.where(count > 0, growth, np.nan)


def annual_volatility(returns: FloatArray, *, periods_per_year: float) -> FloatArray:
    """Standard deviation (n - 1) times the root of the bars a year."""
    return _moments(returns)[2] * np.sqrt(periods_per_year)


def max_drawdown(returns: FloatArray) -> FloatArray:
    """Deepest fall of compounded wealth below its earlier peak, the starting capital included: -0.2 is 20% down."""
    count, _, _ = _moments(returns)
    return np.where(count > 0, _drawdown(returns).min(axis=-1), np.nan)


def recovery_bars(returns: FloatArray) -> FloatArray:
    """Bars from the trough of the maximum drawdown back to the peak before it; 0 without one, NaN if not yet back."""
    wealth, drawdown = _wealth(returns), _drawdown(returns)
    trough = drawdown.argmin(axis=-1)[..., None]
    peak = np.take_along_axis(np.maximum.accumulate(wealth, axis=-1), trough, axis=-1)
    # The tolerance: -10% then +11.11..% is a full recovery, whatever the rounding.
    back = (np.arange(wealth.shape[-1]) >= trough) & (wealth >= peak * (1.0 - 1e-12))
    return np.where(back.any(axis=-1), back.argmax(axis=-1) - trough[..., 0], np.nan)


def win_rate(returns: FloatArray) -> FloatArray:
    """Share of gains among the bars that gained or lost."""
    wins = (returns > 0).sum(axis=-1)
    return _ratio(wins, wins + (returns < 0).sum(axis=-1))


def profit_factor(returns: FloatArray) -> FloatArray:
    """Sum of the gains over the sum of the losses; infinite where nothing was lost, NaN where nothing happened."""
    gains = np.where(returns > 0, returns, 0.0).sum(axis=-1)
    losses = -np.where(returns < 0, returns, 0.0).sum(axis=-1)
    return np.where((losses == 0) & (gains > 0), np.inf, _ratio(gains, losses))


def turnover_ann(turnover: FloatArray, *, periods_per_year: float) -> FloatArray:
    """Capital traded a year, in multiples of capital: the mean turnover of a bar (buys plus sells) times the bars."""
    return _moments(turnover)[1] * periods_per_year


def rolling_sharpe(returns: FloatArray, *, window: int, periods_per_year: float) -> FloatArray:
    """Sharpe ratio of the last ``window`` bars at every bar; NaN until a whole window without gaps is there."""
    out = np.full_like(returns, np.nan)
    for row in np.ndindex(returns.shape[:-1]):  # row by row: all windows of all variants at once take gigabytes
        if returns.shape[-1] >= window:
            windows = np.lib.stride_tricks.sliding_window_view(returns[row], window)
            whole = np.isfinite(windows).all(axis=-1)
            out[row][window - 1 :] = np.where(whole, sharpe(windows, periods_per_year=periods_per_year), np.nan)
    return out


def psr(returns: FloatArray, *, benchmark_sharpe: float | FloatArray = 0.0) -> FloatArray:
    """Probability that the true Sharpe ratio is above ``benchmark_sharpe``, which is per bar, not annualised.

    Phi((SR - SR*) sqrt(n - 1) / sqrt(1 - g3 SR + (g4 - 1) / 4 SR^2)), with g3 and g4 the moment estimators of skewness
    and kurtosis. Source: Bailey & Lopez de Prado (2012), The Sharpe ratio efficient frontier, eq. 10.
    """
    count = _moments(returns)[0]
    ratio, error = sharpe(returns, periods_per_year=1.0), _sharpe_error(returns)
    return norm.cdf(_ratio((ratio - benchmark_sharpe) * np.sqrt(np.maximum(count - 1, 0)), error))


def min_track_record(returns: FloatArray, *, level: float = 0.05, benchmark_sharpe: float = 0.0) -> FloatArray:
    """Bars needed to say at confidence 1 - level that the Sharpe ratio is above ``benchmark_sharpe`` (per bar).

    1 + (1 - g3 SR + (g4 - 1) / 4 SR^2) (z / (SR - SR*))^2; infinite where the observed ratio is not above it.
    Source: Bailey & Lopez de Prado (2012), eq. 13.
    """
    excess = sharpe(returns, periods_per_year=1.0) - benchmark_sharpe
    bars = 1.0 + (_sharpe_error(returns) * norm.ppf(1.0 - level) / np.where(excess > 0, excess, np.nan)) ** 2
    return np.where(excess <= 0, np.inf, bars)


def expected_max_sharpe(sharpe_std: float, num_trials: float) -> float:
    """Sharpe ratio that the best of ``num_trials`` skill-less trials is expected to show, in units of ``sharpe_std``.

    ``sharpe_std`` is the spread of the ratios over the trials. Source: Bailey & Lopez de Prado (2014), The deflated
    Sharpe ratio, eq. 1. It is 0 for a single trial.
    """
    if num_trials <= 1:
        return 0.0
    high, higher = norm.ppf(1.0 - 1.0 / num_trials), norm.ppf(1.0 - 1.0 / (num_trials * np.e))
    return float(sharpe_std * ((1.0 - EULER_GAMMA) * high + EULER_GAMMA * higher))


def beta_residual(
    net_VT: FloatArray, benchmark_T: FloatArray, *, window: int = 252, min_obs: int = MIN_BETA_BARS
) -> FloatArray:
    """Returns less beta times the benchmark's, with the beta of bar t from the bars t - window .. t - 1 only.

    Beta is the least-squares slope over the bars that both have. It is 0 until there are ``min_obs`` of them, so a
    variant's first bars are its raw returns; a bar whose benchmark return is NaN is hedged by nothing. NaN where
    ``net_VT`` is NaN. Bar t's residual uses returns up to t inclusive, its beta up to t - 1.
    """
    both = np.isfinite(net_VT) & np.isfinite(benchmark_T)
    market, own = np.where(both, benchmark_T, 0.0), np.where(both, net_VT, 0.0)
    count = _past_sum(both.astype(np.float64), window)
    share = 1.0 / np.maximum(count, 1.0)
    sum_market, sum_square = _past_sum(market, window), _past_sum(market**2, window)
    variance = sum_square - sum_market**2 * share
    covariance = _past_sum(market * own, window) - sum_market * _past_sum(own, window) * share
    usable = (count >= min_obs) & (variance > 1e-12 * sum_square)  # a constant benchmark explains nothing
    beta = np.divide(covariance, variance, out=np.zeros_like(covariance), where=usable)
    return net_VT - beta * np.where(np.isfinite(benchmark_T), benchmark_T, 0.0)


def _moments(values: FloatArray) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Count, mean and standard deviation (n - 1) of the finite values; NaN where there are too few."""
    finite = np.isfinite(values)
    count = finite.sum(axis=-1)
    mean = np.where(finite, values, 0.0).sum(axis=-1) / np.maximum(count, 1)
    square = np.where(finite, values - mean[..., None], 0.0) ** 2
    std = np.sqrt(square.sum(axis=-1) / np.maximum(count - 1, 1))
    return count, np.where(count >= 1, mean, np.nan), np.where(count >= 2, std, np.nan)


def _ratio(numerator: FloatArray | NDArray[np.int64], spread: FloatArray | NDArray[np.int64]) -> FloatArray:
    """The ratio; NaN over a spread of zero, up to the rounding of equal numbers."""
    real = spread > 1e-12 * np.abs(numerator)
    return np.where(real, numerator, np.nan) / np.where(real, spread, 1.0)


def _sharpe_error(returns: FloatArray) -> FloatArray:
    """Standard error of the per-bar Sharpe ratio times sqrt(n - 1), for returns that needn't be normal."""
    _, mean, _ = _moments(returns)
    deviation = returns - mean[..., None]
    m2, m3, m4 = (_moments(deviation**power)[1] for power in (2, 3, 4))
    skewness, kurtosis = _ratio(m3, m2**1.5), _ratio(m4, m2**2)
    ratio = sharpe(returns, periods_per_year=1.0)
    # With moment estimators kurtosis >= skewness^2 + 1, so this is negative by rounding only.
    return np.sqrt(np.maximum(1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio**2, 0.0))


def _wealth(returns: FloatArray) -> FloatArray:
    """Compounded wealth from 1, shape (..., T + 1); what is lost entirely stays lost."""
    growth = np.maximum(1.0 + np.where(np.isfinite(returns), returns, 0.0), 0.0)
    return np.cumprod(np.concatenate([np.ones_like(growth[..., :1]), growth], axis=-1), axis=-1)


def _drawdown(returns: FloatArray) -> FloatArray:
    wealth = _wealth(returns)
    return wealth / np.maximum.accumulate(wealth, axis=-1) - 1.0


def _past_sum(values: FloatArray, window: int) -> FloatArray:
    """Sum over the ``window`` bars before each bar, the bar itself left out."""
    total = np.concatenate([np.zeros_like(values[..., :1]), np.cumsum(values, axis=-1)], axis=-1)
    stop = np.arange(values.shape[-1])
    return total[..., stop] - total[..., np.maximum(stop - window, 0)]
