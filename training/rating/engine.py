"""Rating: what every variant's track says, side by side, and one score to rank them by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.metrics import performance as perf
from training.metrics.forecast import ic_t_stat, mean_ic
from training.rating.tracks import DECAY_HORIZONS, Tracks

FloatArray = NDArray[np.float64]

# What the composite score weighs: column -> weight; a negative weight is a cost, wanted low. Magnitudes sum to 1.
WEIGHTS: Final = {
    "sharpe_residual": 0.30,  # skill: what is left when the market is taken out
    "ic_t": 0.20,  # skill again, from every forecast and not only from what was traded
    "sharpe_net": 0.15,  # what the book earned for its risk
    "sharpe_90": 0.10,  # whether it still does
    "max_drawdown": 0.10,  # what it takes to hold on to it
    "profit_factor": 0.05,  # gains that are not a few lucky bars beside many small losses
    "turnover_ann": -0.04,  # net figures have paid for it, but only what the cost model knows
    "active_correlation": -0.04,  # whether it adds to what trades already
    "num_parameters": -0.02,  # what a prediction costs; of two alike the simpler one
}
HALF_TRUST_DAYS: Final = 126  # a track of this many bars moves the score halfway from the middle to its rank
MIN_OVERLAP: Final = 20

# Tensor suffixes: V variants, F market factors, T bars.


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratings:
    """Every variant's figures.

    ``table`` has a row a variant, index ``variant``, best rank first; ``residual_VT`` (returns less past betas
    times the market's) are in the order of ``variants``, which is the tracks'; ``correlation`` is that of the residual
    returns, a frame by variant names.
    """

    variants: tuple[str, ...]
    table: pd.DataFrame
    residual_VT: FloatArray
    correlation: pd.DataFrame


def rate(
    tracks: Tracks,
    market_FT: FloatArray,
    *,
    periods_per_year: float,
    active: Collection[str] = (),
    num_parameters: Mapping[str, int] = MappingProxyType({}),
) -> Ratings:
    """Rate variants by their tracks.

    ``market_FT`` holds what is no skill to hold, the returns over the same bars of the benchmark and of the assets
    together (F factors; ``beta_residual``), ``active`` names the variants that are staged now,
    ``num_parameters`` the size of each variant's newest fit. Tracks may differ in length: NaN before a variant's first
    bar, and every figure is over its own bars.

    Columns of the table; net of costs, of the whole track and NaN where not defined unless said:

    - ``sharpe_net``, ``sharpe_residual``: annualised; residual to the market. ``sharpe_30``, ``sharpe_60``,
      ``sharpe_90``: of the last so many bars, NaN on a shorter track. Sharpe (1994).
    - ``ann_return_net``, ``ann_return_gross`` (before costs), ``ann_vol``: compounded, annualised.
    - ``max_drawdown`` (negative), ``recovery_bars``: from its trough back to the peak, NaN if not yet back.
    - ``win_rate``: gains among the bars that gained or lost. ``profit_factor``: gains over losses, infinite without
      losses.
    - ``ic``, ``ic_t``: mean rank IC with the label and its t-statistic. ``ic_1`` .. ``ic_10``: mean rank IC with the
      return over the next 1, 2, 3, 5, 10 bars: its decay.
    - ``turnover_ann``: capital traded a year, in multiples of capital. ``capacity``: the capital, in the currency of
      the prices, at which market impact takes half of what the other costs leave; NaN where volume is unknown.
    - ``mean_correlation`` with the others' residual returns, ``active_correlation`` with those of the active variants,
      itself left out; NaN where there are none.
    - ``num_parameters``: what a prediction costs, as fitted parameters and not as time, which a busy machine would
      change. NaN where it isn't given.
    - ``psr``: probability that the residual Sharpe ratio is above 0, this variant being the only one tried.
    - ``num_days``: bars of the track, flat ones included. ``score``: see ``composite_score``. ``rank``: 1 is best.
    """
    residual_VT = perf.beta_residual(tracks.net_VT, market_FT)
    correlation_VV = correlation(residual_VT)
    index = pd.Index(tracks.variants, name="variant", dtype=object)
    figures = _figures(tracks, residual_VT, periods_per_year)
    figures["mean_correlation"] = _mean_of_others(correlation_VV, np.ones(len(index), dtype=bool))
    figures["active_correlation"] = _mean_of_others(correlation_VV, index.isin(list(active)))
    figures["num_parameters"] = np.array([num_parameters.get(variant, np.nan) for variant in index], dtype=np.float64)
    figures["psr"] = perf.psr(residual_VT)
    figures["num_days"] = np.isfinite(tracks.net_VT).sum(axis=1)
    table = pd.DataFrame(figures, index=index)
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

    Robust to outliers: ranks rather than values, so one freak figure can't buy a place; ties share their average. An
    unknown merit ranks last, an unknown cost counts as the middle (nothing is said of it). Robust to short histories:
    0.5 + (score - 0.5) n / (n + 126) for a track of n bars, since a short lucky one is mostly luck; and of a track
    that hasn't 90 bars all are recent. Robust to missing days: a day without forecasts is a flat day of the track (see
    ``build_tracks``), so a few good days don't pass for a year of them.
    """
    known = table.assign(sharpe_90=table["sharpe_90"].fillna(table["sharpe_net"]))
    total = pd.Series(0.0, index=table.index)
    for column, weight in WEIGHTS.items():
        total += abs(weight) * (_merit(known[column]) if weight > 0 else _thrift(known[column]))
    return 0.5 + (total - 0.5) * table["num_days"] / (table["num_days"] + HALF_TRUST_DAYS)


def correlation(returns_VT: FloatArray, *, min_overlap: int = MIN_OVERLAP) -> FloatArray:
    """Correlation of every pair over the bars both have (V, V); NaN below ``min_overlap`` or without variance."""
    have = np.isfinite(returns_VT)
    values = np.where(have, returns_VT, 0.0)
    # Most tracks have the same bars: sums over them are made once a pattern (P) and not once a variant.
    _, first, pattern_V = np.unique(np.packbits(have, axis=1), axis=0, return_index=True, return_inverse=True)
    mask_PT = have[first].astype(np.float64)
    count = (mask_PT @ mask_PT.T)[pattern_V][:, pattern_V]
    total, square = (values @ mask_PT.T)[:, pattern_V], (values**2 @ mask_PT.T)[:, pattern_V]
    share = 1.0 / np.maximum(count, 1.0)
    variance = square - total**2 * share  # of the row's variant, over the bars shared with the column's
    covariance = values @ values.T - total * total.T * share
    varies = (variance > 1e-12 * square) & (count >= min_overlap)
    defined = varies & varies.T
    spread = np.sqrt(np.where(defined, variance * variance.T, 1.0))
    return np.clip(np.where(defined, covariance, np.nan) / spread, -1.0, 1.0)


def _merit(values: pd.Series) -> pd.Series:
    """Percentile, the highest near 1; unknown ones tie for the last places."""
    return (values.rank(na_option="top") - 0.5) / max(len(values), 1)


def _thrift(values: pd.Series) -> pd.Series:
    """Percentile, the lowest near 1; unknown ones in the middle."""
    known = max(int(values.notna().sum()), 1)
    return ((known + 0.5 - values.rank()) / known).fillna(0.5)


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
        **{f"ic_{bars}": tracks.decay_VH[:, h] for h, bars in enumerate(DECAY_HORIZONS)},
        "turnover_ann": perf.turnover_ann(tracks.turnover_VT, periods_per_year=periods_per_year),
        "capacity": perf.capacity(net_VT, tracks.unit_impact_VT, capital=tracks.capital),
    }


def _recent_sharpe(net_VT: FloatArray, bars: int, periods_per_year: float) -> FloatArray:
    last = net_VT[:, -bars:]
    whole = np.isfinite(last).all(axis=1) & (last.shape[1] == bars)
    return np.where(whole, perf.sharpe(last, periods_per_year=periods_per_year), np.nan)


def _mean_of_others(correlation_VV: FloatArray, counted_V: NDArray[np.bool_]) -> FloatArray:
    """Each variant's mean correlation with the counted ones, itself left out; NaN where it is known with none."""
    others = np.where(counted_V, correlation_VV, np.nan)
    np.fill_diagonal(others, np.nan)
    return mean_ic(others)
