"""What is said of an asset, or of the whole market, beside its bars, from the sentiment table.

A market's series (a fear-and-greed index, the tone of its news …) have scales and paces of their own, so each is
standardised by its own past. A bar that ends at b has what was said up to its cut-off, b less an hour or less the bars'
interval where that is shorter: an index of a day comes out within the hour after it, and would otherwise restate every
bar. Back from the cut-off, time is cut into intervals of the bars' length, and what a series said in one of them is
averaged. Of the newest ``NUM_PAST`` intervals in which it said anything, as known at the moment,

    level = (newest - mean) / standard deviation (ddof 1),

null with fewer than ``NUM_NEEDED`` of them, where they are all equal, and where the newest observation is more than
``MAX_AGE`` before the cut-off. So a slow series keeps its level until it speaks again. A null value withdraws an
observation, as if it had never been made.

``*_sentiment`` is the mean level over the series, each in the sense that it has: turn those round that rise with fear.
``*_sentiment_disagreement`` is the standard deviation (ddof 0) of the series' levels, null below two, and
``*_sentiment_count`` the number of observations in the bar's own interval. ``asset_*`` (this module) has the table's
rows of the asset alone, ``market_*`` (``market_sentiment``) those of everyone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from feature_repo.aggregates.base import EVERYONE, Aggregate
from feature_repo.aggregates.levels import late_rows, micros, utc
from feature_repo.market.layout import interval_length
from feature_repo.market.schema import Market
from feature_repo.store.join import NEVER, IntArray

# Array suffixes: N rows by event and ingest time, K bars, P (bar, moment) pairs, B intervals (newest first).

FloatArray: TypeAlias = NDArray[np.float64]

NUM_PAST: Final = 63
NUM_NEEDED: Final = 21
MAX_AGE: Final = timedelta(days=14)
LONGEST_CUT_OFF: Final = timedelta(hours=1)
TABLE: Final = "sentiment"
MEASURES: Final = ("sentiment", "sentiment_disagreement", "sentiment_count")
_TICK: Final = timedelta(microseconds=1)


@njit(cache=True, nogil=True)
def _gather(
    event_N: IntArray,
    ingest_N: IntArray,
    value_N: FloatArray,
    cut: int,
    moment: int,
    interval: int,
    mean_B: FloatArray,
    size_B: FloatArray,
) -> tuple[int, int]:
    """Fill in mean and number of the observations in the newest intervals that have any, as known at ``moment``.

    Returns how many intervals that are, and the newest event time.
    """
    found, place, newest = 0, -1, NEVER
    n = np.searchsorted(event_N, cut, side="right") - 1
    while n >= 0:
        event, value, is_known = event_N[n], np.nan, False
        while n >= 0 and event_N[n] == event:
            if not is_known and ingest_N[n] <= moment:
                value, is_known = value_N[n], True
            n -= 1
        if np.isnan(value):
            continue
        if (cut - event) // interval != place:
            if found == mean_B.size:
                break
            place = (cut - event) // interval
            if found == 0:
                newest = event
            mean_B[found] = size_B[found] = 0.0
            found += 1
        size_B[found - 1] += 1.0
        mean_B[found - 1] += (value - mean_B[found - 1]) / size_B[found - 1]  # exact where all values are equal
    return found, newest


@njit(cache=True, nogil=True)
def _standardise_first(x_B: FloatArray) -> float:
    """The first value's distance from the mean of all, in standard deviations (ddof 1); NaN where they are equal."""
    total = 0.0
    for b in range(x_B.size):
        total += x_B[b] - x_B[0]
    mean = total / x_B.size
    squares = 0.0
    for b in range(x_B.size):
        squares += (x_B[b] - x_B[0] - mean) ** 2
    return -mean / np.sqrt(squares / (x_B.size - 1)) if squares > 0.0 else np.nan


@njit(cache=True, nogil=True)
def _series_levels(
    event_N: IntArray,
    ingest_N: IntArray,
    value_N: FloatArray,
    cut_P: IntArray,
    moment_P: IntArray,
    interval: int,
    max_age: int,
) -> tuple[FloatArray, FloatArray]:
    """One series' level and the number of its observations in the bar's own interval: (P,) each.

    Uses rows with ``event_N <= cut_P`` and ``ingest_N <= moment_P``, of each event time the last. The number is NaN
    while nothing is known of the series.
    """
    level_P, count_P = np.full(cut_P.size, np.nan), np.full(cut_P.size, np.nan)
    mean_B, size_B = np.empty(NUM_PAST), np.empty(NUM_PAST)
    for p in range(cut_P.size):
        found, newest = _gather(event_N, ingest_N, value_N, cut_P[p], moment_P[p], interval, mean_B, size_B)
        if found > 0:
            count_P[p] = size_B[0] if cut_P[p] - newest < interval else 0.0
        if found >= NUM_NEEDED and cut_P[p] - newest <= max_age:
            level_P[p] = _standardise_first(mean_B[:found])
    return level_P, count_P


def asset_versions(market: Market, interval: str) -> pd.DataFrame | None:
    """The measures of each asset's own series, as an aggregate gives them."""
    of_asset = _said(market, everyone=False)
    if of_asset is None:
        return None
    bars = market.traded_bars(interval)
    ends = {str(entity): micros(of_entity) for entity, of_entity in bars.groupby("entity_key")["event_time"]}
    parts = [
        measures(rows, np.unique(ends[str(entity)]), interval_length(interval)).assign(entity_key=entity)
        for entity, rows in of_asset.groupby("entity_key")
        if str(entity) in ends
    ]
    return _named(pd.concat(parts, ignore_index=True), "asset") if parts else None


def market_versions(market: Market, interval: str) -> pd.DataFrame | None:
    """The measures of the market-wide series, as an aggregate gives them."""
    of_everyone = _said(market, everyone=True)
    if of_everyone is None:
        return None
    end_K = np.unique(micros(market.traded_bars(interval)["event_time"]))
    return _named(measures(of_everyone, end_K, interval_length(interval)).assign(entity_key=EVERYONE), "market")


def _said(market: Market, *, everyone: bool) -> pd.DataFrame | None:
    if TABLE not in market.tables:
        return None
    table = market.tables[TABLE]
    rows = table[(table["entity_key"] == EVERYONE) == everyone]
    return rows if len(rows) else None


def _named(versions: pd.DataFrame, whose: str) -> pd.DataFrame:
    return versions.rename(columns={measure: f"{whose}_{measure}" for measure in MEASURES})


def measures(rows: pd.DataFrame, end_K: IntArray, interval: timedelta) -> pd.DataFrame:
    """``event_time, ingest_time`` and the measures of bars that end at ``end_K`` (rising), at every change of them."""
    length, cut_off = interval // _TICK, min(interval, LONGEST_CUT_OFF) // _TICK
    event_N, ingest_N = micros(rows["event_time"]), micros(rows["ingest_time"])
    bar_P, moment_P = _moments(event_N + cut_off, ingest_N, end_K)
    levels, counts = [], []
    for series in _series(rows, event_N, ingest_N):
        level_P, count_P = _series_levels(*series, end_K[bar_P] - cut_off, moment_P, length, MAX_AGE // _TICK)
        levels.append(level_P)
        counts.append(count_P)
    columns = _over_series(levels, counts)
    kept = _changes(bar_P, list(columns.values()))
    times = {"event_time": utc(end_K[bar_P[kept]]), "ingest_time": utc(moment_P[kept])}
    return pd.DataFrame(times | {name: values[kept] for name, values in columns.items()})


def _series(
    rows: pd.DataFrame, event_N: IntArray, ingest_N: IntArray
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Event times, ingest times and values of each name in turn, sorted by both times, ties as written."""
    value_N = rows["value"].to_numpy(np.float64, na_value=np.nan)
    codes, names = pd.factorize(rows["name"], sort=True)
    order = np.lexsort((ingest_N, event_N, codes))
    order = order[(codes[order] >= 0) & (event_N[order] != NEVER) & (ingest_N[order] != NEVER)]
    for code in range(len(names)):
        own = order[codes[order] == code]
        yield event_N[own], ingest_N[own], value_N[own]


def _moments(due_N: IntArray, ingest_N: IntArray, end_K: IntArray) -> tuple[IntArray, IntArray]:
    """Every bar at its end, and at each moment after it at which a row was learnt that was due by then; sorted."""
    known_M, moment_N = np.unique(ingest_N, return_inverse=True)
    earliest_M = np.full(len(known_M), np.iinfo(np.int64).max)
    np.minimum.at(earliest_M, moment_N, due_N)
    late_P, at_P = late_rows(earliest_M, known_M, end_K, max_age=None)
    bar_P = np.concatenate([np.arange(len(end_K)), late_P])
    moment_P = np.concatenate([end_K, known_M[at_P]])
    order = np.lexsort((moment_P, bar_P))
    return bar_P[order], moment_P[order]


def _over_series(levels: list[FloatArray], counts: list[FloatArray]) -> Mapping[str, FloatArray]:
    num_P = _total([~np.isnan(level_P) for level_P in levels])
    divisor_P = np.where(num_P > 0, num_P, np.nan)
    mean_P = _total([np.nan_to_num(level_P) for level_P in levels]) / divisor_P
    variance_P = _total([np.nan_to_num((level_P - mean_P) ** 2) for level_P in levels]) / divisor_P
    is_known_P = _total([~np.isnan(count_P) for count_P in counts]) > 0
    return {
        "sentiment": mean_P,
        "sentiment_disagreement": np.where(num_P >= 2, np.sqrt(variance_P), np.nan),
        "sentiment_count": np.where(is_known_P, _total([np.nan_to_num(count_P) for count_P in counts]), np.nan),
    }


def _total(parts: list[NDArray[np.bool_]] | list[FloatArray]) -> FloatArray:
    """Their sum, one after the other, so that a series of which nothing is known yet changes no digit."""
    total = np.zeros(len(parts[0]))
    for part in parts:
        total = total + part
    return total


def _changes(bar_P: IntArray, columns: list[FloatArray]) -> NDArray[np.bool_]:
    """True where a bar's columns differ from those it had before, all null to begin with."""
    is_first = np.append(True, bar_P[1:] != bar_P[:-1])[: len(bar_P)]
    differs = np.zeros(len(bar_P), dtype=bool)
    for values in columns:
        before = np.where(is_first, np.nan, np.append(np.nan, values[:-1])[: len(values)])
        differs |= ~((values == before) | (np.isnan(values) & np.isnan(before)))
    return differs


AGGREGATE = Aggregate(
    name="asset_sentiment", columns=tuple(f"asset_{measure}" for measure in MEASURES), versions=asset_versions
)
