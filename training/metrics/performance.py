"""Performance of return series: what was earned, at what risk, and how sure of it one may be.

Every function reduces the last axis and keeps the others, so (T,) gives one value and (V, T) one a variant. Returns
are simple returns per bar. NaN is a bar without a track record (a variant that began later) and is left out; where
a figure isn't defined it is NaN. ``periods_per_year`` is bars a year. All of them look back only; what they say of
bar t is known once bar t has ended.

Where others define a figure differently: empyrical gives infinity and quantstats 0 or a number of rounding for a figure
over no spread, here it is NaN; ``quantstats.probabilistic_ratio`` takes unbiased moments, here they are the paper's;
``quantstats.drawdown_details`` counts calendar days to the last one under water, here it is bars to the first back.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from training.metrics.kernels import moments, past_hedge, wealth

FloatArray = NDArray[np.float64]

EULER_GAMMA: Final = 0.5772156649015329
MIN_BETA_BARS: Final = 63  # a beta from fewer bars is noise

# Tensor suffixes: V variants, F market factors, T bars.


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
    found = _wealth(returns)
    return found[..., 1] ** (periods_per_year / np.maximum(found[..., 0], 1.0)) - 1.0


def annual_volatility(returns: FloatArray, *, periods_per_year: float) -> FloatArray:
    """Standard deviation (n - 1) times the root of the bars a year."""
    return _moments(returns)[2] * np.sqrt(periods_per_year)


def max_drawdown(returns: FloatArray) -> FloatArray:
    """Deepest fall of compounded wealth below its earlier peak, the starting capital included: -0.2 is 20% down."""
    return _wealth(returns)[..., 2]


def recovery_bars(returns: FloatArray) -> FloatArray:
    """Bars from the trough of the maximum drawdown back to the peak before it; 0 without one, NaN if not yet back."""
    bars = _wealth(returns)[..., 3]
    return np.where(bars < 0, np.nan, bars)


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


def capacity(net: FloatArray, unit_impact: FloatArray, *, capital: float) -> FloatArray:
    """The capital at which market impact takes half of what a book earns after its other costs.

    Impact grows with the root of the capital, so with e the mean net return before impact and k the mean
    ``unit_impact`` (its cost at a capital of 1; ``net`` was earned, net of impact, with ``capital``) it is
    (e / (2 k))^2. The mean net return is halved there and, as impact hardly adds to the risk, so is the net Sharpe
    ratio. 0 for a book that earns nothing; NaN where what it trades has no known volume, and for one that never trades.
    Source: the square-root law, see ``CostModel.unit_impact_TN``.
    """
    known = np.isfinite(unit_impact) & np.isfinite(net)
    mean_impact = _moments(np.where(known, unit_impact, np.nan))[1]
    edge = _moments(np.where(known, net, np.nan))[1] + np.sqrt(capital) * mean_impact
    return _ratio(np.maximum(edge, 0.0), 2.0 * mean_impact) ** 2


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
    return ndtr(_ratio((ratio - benchmark_sharpe) * np.sqrt(np.maximum(count - 1, 0)), error))


def min_track_record(returns: FloatArray, *, level: float = 0.05, benchmark_sharpe: float = 0.0) -> FloatArray:
    """Bars needed to say at confidence 1 - level that the Sharpe ratio is above ``benchmark_sharpe`` (per bar).

    1 + (1 - g3 SR + (g4 - 1) / 4 SR^2) (z / (SR - SR*))^2; infinite where the observed ratio is not above it.
    Source: Bailey & Lopez de Prado (2012), eq. 13.
    """
    excess = sharpe(returns, periods_per_year=1.0) - benchmark_sharpe
    bars = 1.0 + (_sharpe_error(returns) * ndtri(1.0 - level) / np.where(excess > 0, excess, np.nan)) ** 2
    return np.where(excess <= 0, np.inf, bars)


def expected_max_sharpe(sharpe_std: float, num_trials: float) -> float:
    """Sharpe ratio that the best of ``num_trials`` skill-less trials is expected to show, in units of ``sharpe_std``.

    ``sharpe_std`` is the spread of the ratios over the trials. Source: Bailey & Lopez de Prado (2014), The deflated
    Sharpe ratio, eq. 1. It is 0 for a single trial.
    """
    if num_trials <= 1:
        return 0.0
    high, higher = ndtri(1.0 - 1.0 / num_trials), ndtri(1.0 - 1.0 / (num_trials * math.e))
    return float(sharpe_std * ((1.0 - EULER_GAMMA) * high + EULER_GAMMA * higher))


def beta_residual(
    net_VT: FloatArray, market_FT: FloatArray, *, window: int = 252, min_obs: int = MIN_BETA_BARS
) -> FloatArray:
    """Returns less betas times the market factors' returns, with the betas of bar t from bars t - window .. t - 1 only.

    Betas are the least-squares slopes on all factors at once, over the bars that the variant and every factor have; a
    factor that those before it explain altogether is left out. They are 0 until there are ``min_obs`` such bars, so a
    variant's first bars are its raw returns; a factor whose return is NaN at a bar hedges nothing there. NaN where
    ``net_VT`` is NaN. Bar t's residual uses returns up to t inclusive, its betas up to t - 1.
    """
    factors_FT = np.ascontiguousarray(market_FT, dtype=np.float64)
    if factors_FT.shape[1:] != net_VT.shape[1:]:
        got = f"got returns {net_VT.shape} and factors {factors_FT.shape}"
        raise ValueError(f"market factors are rows (F, T) over the bars of the returns (V, T), {got}")
    return net_VT - past_hedge(_rows(net_VT), factors_FT, window, min_obs).reshape(net_VT.shape)


def hedged(residual_VT: FloatArray, *, min_obs: int = MIN_BETA_BARS) -> FloatArray:
    """Residual returns without each track's own first ``min_obs`` bars, which are raw: NaN there (V, T).

    Until so many bars are there ``beta_residual`` has no beta, and on raw returns holding the market passes for skill.
    """
    num_before_VT = np.cumsum(np.isfinite(residual_VT), axis=1)
    return np.where(num_before_VT > min_obs, residual_VT, np.nan)


def _moments(values: FloatArray) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Count, mean and standard deviation (n - 1) of the finite values; NaN where there are too few."""
    found = _powers(values)
    count = found[..., 0].astype(np.int64)
    std = np.sqrt(found[..., 2] * count / np.maximum(count - 1, 1))
    return count, np.where(count >= 1, found[..., 1], np.nan), np.where(count >= 2, std, np.nan)


def _powers(values: FloatArray) -> FloatArray:
    """Count, mean and mean powers 2 to 4 of the deviations, along a new last axis."""
    return moments(_rows(values)).reshape(*np.shape(values)[:-1], 5)


def _wealth(returns: FloatArray) -> FloatArray:
    """Count, final wealth, deepest drawdown, bars to its recovery (-1 if not yet back), last axis; NaN if never any."""
    found = wealth(_rows(returns)).reshape(*np.shape(returns)[:-1], 4)
    return np.where(found[..., :1] > 0, found, np.nan)


def _rows(values: FloatArray) -> FloatArray:
    """All but the last axis as one, as the kernels take it."""
    shape = np.shape(values)
    return np.ascontiguousarray(values, dtype=np.float64).reshape(math.prod(shape[:-1]), shape[-1])


def _ratio(numerator: FloatArray | NDArray[np.int64], spread: FloatArray | NDArray[np.int64]) -> FloatArray:
    """The ratio; NaN over a spread of zero, up to the rounding of equal numbers."""
    real = spread > 1e-12 * np.abs(numerator)
    return np.where(real, numerator, np.nan) / np.where(real, spread, 1.0)


def _sharpe_error(returns: FloatArray) -> FloatArray:
    """Standard error of the per-bar Sharpe ratio times sqrt(n - 1), for returns that needn't be normal."""
    m2, m3, m4 = np.moveaxis(_powers(returns)[..., 2:], -1, 0)
    skewness, kurtosis = _ratio(m3, m2**1.5), _ratio(m4, m2**2)
    ratio = sharpe(returns, periods_per_year=1.0)
    # With moment estimators kurtosis >= skewness^2 + 1, so this is negative by rounding only.
    return np.sqrt(np.maximum(1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio**2, 0.0))
