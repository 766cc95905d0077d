"""Rating: what every variant's track says, side by side, and one score to rank them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.metrics import performance as perf
from training.metrics.forecast import ic_t_stat, mean_ic
from training.rating.tracks import Tracks

FloatArray = NDArray[np.float64]

# What the composite score weighs: column -> weight; a negative weight wants the column low. Magnitudes sum to 1.
WEIGHTS: Final = {
    "sharpe_residual": 0.30,
    "sharpe_net": 0.15,
    "ic_t": 0.20,
    "sharpe_90": 0.10,
    "max_drawdown": 0.10,
    "profit_factor": 0.05,
    "turnover_ann": -0.05,
    "mean_correlation": -0.05,
}
HALF_TRUST_DAYS: Final = 126  # a track of this many bars moves the score halfway from the middle to its rank
MIN_OVERLAP: Final = 20

# Tensor suffixes: V variants, T bars.


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratings:
    """Every variant's figures.

    ``table`` has a row a variant, index ``variant``, best rank first; ``residual_VT`` (returns less past beta times
    the benchmark) are in the order of ``variants``, which is the tracks'; ``correlation`` is that of the residual
    returns, a frame by variant names.
    """

    variants: tuple[str, ...]
    table: pd.DataFrame
    residual_VT: FloatArray
    correlation: pd.DataFrame


def rate(tracks: Tracks, benchmark_T: FloatArray, *, periods_per_year: float) -> Ratings:
    """Rate variants by their out-of-sample tracks.

    ``benchmark_T`` holds the benchmark's return over the same bars. Columns of the table, net of costs unless said:
    sharpe_net, sharpe_residual (annualised; residual to the benchmark), sharpe_30, sharpe_60, sharpe_90 (of the last
    so many bars, NaN on a shorter track), ann_return_net, ann_return_gross (before costs), ann_vol, max_drawdown,
    recovery_bars, win_rate, profit_factor, ic, ic_t, turnover_ann, mean_correlation (with the others), psr (of the
    residual returns), num_days (bars of the track), score, rank. Tracks may differ in length: NaN before a variant's
    first bar, and every figure is over its own bars.
    """
    residual_VT = perf.beta_residual(tracks.net_VT, benchmark_T)
    correlation_VV = correlation(residual_VT)
    figures = _figures(tracks, residual_VT, periods_per_year)
    figures["mean_correlation"] = _mean_of_others(correlation_VV)
    table = pd.DataFrame(figures, index=pd.Index(tracks.variants, name="variant", dtype=object))
    table["score"] = composite_score(table)
    # A stable sort over the names first: equal scores rank by name, whatever order the tracks came in.
    table = table.sort_index().sort_values("score", ascending=False, kind="stable")
    table["rank"] = np.arange(1, len(table) + 1)
    return Ratings(
        variants=tracks.variants,
        table=table,
        residual_VT=residual_VT,
        correlation=pd.DataFrame(correlation_VV, index=tracks.variants, columns=tracks.variants),
    )


def composite_score(table: pd.DataFrame) -> pd.Series:
    """Score between 0 and 1: the weighted mean of the columns' percentile ranks, shrunk to 0.5 for short tracks.

    Ranks rather than values, so that one freak figure can't buy a place; ties share their average, NaN ranks last.
    Shrinkage: 0.5 + (score - 0.5) n / (n + 126) for a track of n bars, since a short lucky one is mostly luck.
    """
    total = pd.Series(0.0, index=table.index)
    for column, weight in WEIGHTS.items():
        values = table[column] if weight > 0 else -table[column]
        total += abs(weight) * (values.rank(na_option="top") - 0.5) / len(table)
    return 0.5 + (total - 0.5) * table["num_days"] / (table["num_days"] + HALF_TRUST_DAYS)


def correlation(returns_VT: FloatArray, *, min_overlap: int = MIN_OVERLAP) -> FloatArray:
    """Correlation of every pair over the bars both have (V, V); NaN below ``min_overlap`` or without variance."""
    have = np.isfinite(returns_VT)
    mask, values = have.astype(np.float64), np.where(have, returns_VT, 0.0)
    count = mask @ mask.T
    total, square = values @ mask.T, values**2 @ mask.T
    share = 1.0 / np.maximum(count, 1.0)
    variance = square - total**2 * share  # of the row's variant, over the bars shared with the column's
    covariance = values @ values.T - total * total.T * share
    varies = (variance > 1e-12 * square) & (count >= min_overlap)
    defined = varies & varies.T
    spread = np.sqrt(np.where(defined, variance * variance.T, 1.0))
    return np.clip(np.where(defined, covariance, np.nan) / spread, -1.0, 1.0)


def _figures(tracks: Tracks, residual_VT: FloatArray, periods_per_year: float) -> dict[str, FloatArray]:
    net_VT = tracks.net_VT
    recent = {f"sharpe_{bars}": _recent_sharpe(net_VT, bars, periods_per_year) for bars in (30, 60, 90)}
    return {
        "sharpe_net": perf.sharpe(net_VT, periods_per_year=periods_per_year),
        "sharpe_residual": perf.sharpe(residual_VT, periods_per_year=periods_per_year),
        **recent,
        "ann_return_net": perf.annual_return(net_VT, periods_per_year=periods_per_year),
        "ann_return_gross": perf.annual_return(tracks.gross_VT, periods_per_year=periods_per_year),
        "ann_vol": perf.annual_volatility(net_VT, periods_per_year=periods_per_year),
        "max_drawdown": perf.max_drawdown(net_VT),
        "recovery_bars": perf.recovery_bars(net_VT),
        "win_rate": perf.win_rate(net_VT),
        "profit_factor": perf.profit_factor(net_VT),
        "ic": mean_ic(tracks.ic_VT),
        "ic_t": ic_t_stat(tracks.ic_VT),
        "turnover_ann": perf.turnover_ann(tracks.turnover_VT, periods_per_year=periods_per_year),
        "psr": perf.psr(residual_VT),
        "num_days": np.isfinite(net_VT).sum(axis=1),
    }


def _recent_sharpe(net_VT: FloatArray, bars: int, periods_per_year: float) -> FloatArray:
    last = net_VT[:, -bars:]
    whole = np.isfinite(last).all(axis=1) & (last.shape[1] == bars)
    return np.where(whole, perf.sharpe(last, periods_per_year=periods_per_year), np.nan)


def _mean_of_others(correlation_VV: FloatArray) -> FloatArray:
    """Each variant's mean correlation with the others; NaN where it is known with none."""
    others = correlation_VV.copy()
    np.fill_diagonal(others, np.nan)
    return mean_ic(others)
