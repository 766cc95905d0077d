"""Ratings of all variants at once, beside loops of quantstats, empyrical and alphalens over the variants.

Everything is in memory. Times are a core's own (CPU time of one thread), so that a busy machine tells the same.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bench.report import Bar, Report, Row, at_least, at_most, options, progress, publish
from training.metrics import performance as perf
from training.metrics.forecast import ic_by_horizon
from training.rating.engine import rate
from training.rating.tracks import DECAY_HORIZONS, Tracks
from training.tearsheet import compounded

FloatArray = NDArray[np.float64]
Figures = Mapping[str, FloatArray]

YEAR = 252
RECENT = (30, 60, 90)
RETURNS_S = 0.100
DECAY_S = 1.0
TIMES_FASTER = 100
RUNS = 5

# Tensor suffixes: V variants, T bars, N entities, H horizons.


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much there is to rate; ``num_sheets`` is for how many variants alphalens is asked."""

    num_variants: int
    num_bars: int
    num_entities: int
    num_sheets: int


FULL = Size(num_variants=486, num_bars=1000, num_entities=20, num_sheets=2)
SMALL = Size(num_variants=120, num_bars=1000, num_entities=20, num_sheets=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one part of the bench found."""

    rows: list[Row]
    bars: list[Bar]
    facts: list[str]


def noise_tracks(size: Size) -> tuple[Tracks, FloatArray]:
    """Fat-tailed tracks of no skill with a common part; a tenth of them began late, as agents do. And the market."""
    rng = np.random.default_rng(0)
    shape = (size.num_variants, size.num_bars)
    market_FT = rng.normal(0.0003, 0.01, (2, size.num_bars))
    gross_VT = (
        0.006 * rng.standard_t(4, shape) + 0.2 * market_FT.sum(axis=0) + 0.003 * rng.standard_normal(size.num_bars)
    )
    gross_VT[: size.num_variants // 10, : -size.num_bars // 3] = np.nan
    turnover_VT = np.where(np.isfinite(gross_VT), rng.uniform(0.2, 1.0, shape), np.nan)
    tracks = Tracks(
        variants=tuple(f"v{v}" for v in range(size.num_variants)),
        event_times_T=_days(size.num_bars).tz_localize(None).to_numpy(),
        net_VT=gross_VT - 3e-4 * turnover_VT,
        gross_VT=gross_VT,
        turnover_VT=turnover_VT,
        unit_impact_VT=1e-7 * turnover_VT,
        ic_VT=np.where(np.isfinite(gross_VT), rng.normal(0, 0.2, shape), np.nan),
        decay_VH=rng.normal(0, 0.01, (size.num_variants, len(DECAY_HORIZONS))),
        capital=0.0,
    )
    return tracks, market_FT


def returns_part(size: Size) -> Part:
    """The whole table of ratings, and its figures that the libraries have too."""
    tracks, market_FT = noise_tracks(size)
    progress("rating all variants")
    active = tracks.variants[:12]
    table_s, ratings = _cpu_seconds(lambda: rate(tracks, market_FT, periods_per_year=YEAR, active=active))
    rows = [Row(name=f"ours: all {ratings.table.shape[1]} columns of the ratings", seconds=table_s)]
    bars = [at_most("seconds for all return-based ratings", table_s, RETURNS_S)]
    loops = {"quantstats": quantstats_loop, "empyrical": empyrical_loop, "the quicker of the two": quicker_loop}
    for library, loop in loops.items():
        progress(f"looping {library} over the variants")
        theirs_s, theirs = _cpu_seconds(partial(loop, tracks), runs=1)
        ours_s, found = _cpu_seconds(partial(_ours, tracks, list(theirs)))
        _agree(library, found, theirs)
        _agree("the table", {name: ratings.table.loc[[*tracks.variants], name].to_numpy() for name in found}, found)
        share = theirs_s / ours_s
        rows.append(Row(name=f"{library} loop, {len(theirs)} figures", seconds=theirs_s, more={"times ours": share}))
        rows.append(Row(name="ours, the same figures", seconds=ours_s))
        if library != "empyrical":  # which has the quick figures only; its share is in the table
            bars.append(at_least(f"times faster than a loop of {library}, same figures", share, TIMES_FASTER))
    return Part(rows=rows, bars=bars, facts=["figures of the libraries' loops and ours agree to 1e-9"])


def _ours(tracks: Tracks, names: list[str]) -> Figures:
    """The named figures as the engine makes them."""
    net_VT, year = tracks.net_VT, YEAR
    made: dict[str, Callable[[], FloatArray]] = {
        "sharpe_net": lambda: perf.sharpe(net_VT, periods_per_year=year),
        "sharpe_30": lambda: perf.sharpe(net_VT[:, -30:], periods_per_year=year),
        "sharpe_60": lambda: perf.sharpe(net_VT[:, -60:], periods_per_year=year),
        "sharpe_90": lambda: perf.sharpe(net_VT[:, -90:], periods_per_year=year),
        "ann_return_net": lambda: perf.annual_return(net_VT, periods_per_year=year),
        "ann_return_gross": lambda: perf.annual_return(tracks.gross_VT, periods_per_year=year),
        "ann_vol": lambda: perf.annual_volatility(net_VT, periods_per_year=year),
        "max_drawdown": lambda: perf.max_drawdown(net_VT),
        "win_rate": lambda: perf.win_rate(net_VT),
        "profit_factor": lambda: perf.profit_factor(net_VT),
        "recovery_bars": lambda: perf.recovery_bars(net_VT),
    }
    return {name: made[name]() for name in names}


def quantstats_loop(tracks: Tracks) -> Figures:
    """One variant after the other."""
    import quantstats.stats as qs

    found = []
    for net, gross in _series(tracks):
        recent = {f"sharpe_{bars}": qs.sharpe(net.iloc[-bars:], periods=YEAR) for bars in RECENT}
        found.append(
            {
                "sharpe_net": qs.sharpe(net, periods=YEAR),
                **recent,
                "ann_return_net": qs.cagr(net, periods=YEAR),
                "ann_return_gross": qs.cagr(gross, periods=YEAR),
                "ann_vol": qs.volatility(net, periods=YEAR),
                "max_drawdown": qs.max_drawdown(net),
                "win_rate": qs.win_rate(net),
                "profit_factor": qs.profit_factor(net),
            }
        )
    return _columns(found)


def empyrical_loop(tracks: Tracks) -> Figures:
    """One variant after the other."""
    import empyrical

    found = []
    for net, gross in _series(tracks):
        recent = {f"sharpe_{bars}": empyrical.sharpe_ratio(net.iloc[-bars:], annualization=YEAR) for bars in RECENT}
        found.append(
            {
                "sharpe_net": empyrical.sharpe_ratio(net, annualization=YEAR),
                **recent,
                "ann_return_net": empyrical.annual_return(net, annualization=YEAR),
                "ann_return_gross": empyrical.annual_return(gross, annualization=YEAR),
                "ann_vol": empyrical.annual_volatility(net, annualization=YEAR),
                "max_drawdown": empyrical.max_drawdown(net),
            }
        )
    return _columns(found)


def quicker_loop(tracks: Tracks) -> Figures:
    """Every figure that one of them has, from the quicker one."""
    import quantstats.stats as qs

    found = []
    for net, _ in _series(tracks):
        falls = qs.drawdown_details(qs.to_drawdown_series(net))  # without rows where all of it is one
        bars = np.nan
        if len(falls):
            worst = falls.loc[falls["max drawdown"].idxmin()]
            if pd.Timestamp(worst["end"]) < net.index[-1]:
                bars = (pd.Timestamp(worst["end"]) - pd.Timestamp(worst["valley"])).days + 1  # to the first bar back
        found.append(
            {
                "win_rate": qs.win_rate(net),
                "profit_factor": qs.profit_factor(net),
                "recovery_bars": bars,
            }
        )
    return {**empyrical_loop(tracks), **_columns(found)}


def decay_part(size: Size) -> Part:
    """IC of every bar at every horizon, and for a few variants the same by alphalens."""
    rng = np.random.default_rng(1)
    hold_TN = 0.02 * rng.standard_normal((size.num_bars, size.num_entities))
    score_VTN = rng.standard_normal((size.num_variants, *hold_TN.shape)) + 5.0 * hold_TN
    outcome_HTN = np.stack([compounded(hold_TN, bars) for bars in DECAY_HORIZONS])
    progress("taking ICs at every horizon")
    ours_s, ic_VHT = _cpu_seconds(lambda: ic_by_horizon(score_VTN, outcome_HTN), runs=3)
    progress("asking alphalens")
    theirs_s, theirs = _cpu_seconds(lambda: alphalens_loop(score_VTN[: size.num_sheets], hold_TN), runs=1)
    for v, expected_HT in enumerate(theirs):
        _agree("alphalens", {"ic": ic_VHT[v, :, : expected_HT.shape[1]]}, {"ic": expected_HT})
    share = (theirs_s / size.num_sheets) / (ours_s / size.num_variants)
    return Part(
        rows=[
            Row(name=f"ours: IC at horizons {', '.join(map(str, DECAY_HORIZONS))}", seconds=ours_s),
            Row(name=f"alphalens, {size.num_sheets} variants", seconds=theirs_s, more={"times ours": share}),
        ],
        bars=[
            at_most("seconds for the IC and its decay", ours_s, DECAY_S),
            at_least("times faster than alphalens, a variant", share, TIMES_FASTER),
        ],
        facts=["the ICs of every bar and alphalens' agree to 1e-9"],
    )


def alphalens_loop(score_VTN: FloatArray, hold_TN: FloatArray) -> list[FloatArray]:
    """Each variant's ICs (H, T), by its documented two calls."""
    from alphalens.performance import factor_information_coefficient
    from alphalens.utils import get_clean_factor_and_forward_returns

    days, names = _days(len(hold_TN) + 1), [f"e{n}" for n in range(hold_TN.shape[1])]
    growth_TN = np.vstack([np.ones(hold_TN.shape[1]), np.cumprod(1.0 + hold_TN, axis=0)])
    prices, found = pd.DataFrame(growth_TN, index=days, columns=names), []
    for score_TN in score_VTN:
        factor = pd.DataFrame(score_TN, index=days[:-1], columns=names).stack()
        factor.index.names = ["date", "asset"]
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # pandas' about what alphalens still does
            data = get_clean_factor_and_forward_returns(factor, prices, periods=DECAY_HORIZONS, quantiles=5, max_loss=1)
            found.append(factor_information_coefficient(data).to_numpy().T)
    return found


def _series(tracks: Tracks) -> list[tuple[pd.Series, pd.Series]]:
    days = pd.DatetimeIndex(tracks.event_times_T)
    pairs = zip(tracks.net_VT, tracks.gross_VT, strict=True)
    return [(pd.Series(net, index=days).dropna(), pd.Series(gross, index=days).dropna()) for net, gross in pairs]


def _columns(found: list[dict[str, float]]) -> Figures:
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def _agree(library: str, ours: Figures, theirs: Figures) -> None:
    for name, expected in theirs.items():
        if not np.allclose(ours[name], expected, rtol=1e-9, atol=1e-9, equal_nan=True):
            worst = np.nanmax(np.abs(ours[name] - expected))
            raise SystemExit(f"{name} is not {library}'s, by up to {worst}: speeds mean nothing")


def _days(num_bars: int) -> pd.DatetimeIndex:
    return pd.date_range("2015-01-01", periods=num_bars, tz="UTC")


def _cpu_seconds(action: Callable[[], Any], runs: int = RUNS) -> tuple[float, Any]:
    """Median CPU time of one thread, after a first call that compiles or imports; and what the last call gave."""
    if runs > 1:
        action()
    times, result = [], None
    for _ in range(runs):
        start = time.process_time()
        result = action()
        times.append(time.process_time() - start)
    return median(times), result


def bench(size: Size) -> Report:
    """Every part, at one size."""
    with threadpool_limits(1):
        parts = [returns_part(size), decay_part(size)]
    return Report(
        bench="rating",
        rows=[row for part in parts for row in part.rows],
        bars=[bar for part in parts for bar in part.bars],
        facts=[
            f"{size.num_variants} variants, {size.num_bars:,} bars, {size.num_entities} entities, arrays in memory",
            *(fact for part in parts for fact in part.facts),
            f"CPU time of one thread; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        ],
    )


def main() -> int:
    """Run the bench."""
    chosen = options(__doc__).parse_args()
    return publish(bench(SMALL if chosen.quick else FULL), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
