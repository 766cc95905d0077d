"""What all traded assets' bars say together: the market's return, its spread, its components, each asset's place.

Two times. Bars of one time become known one after another, and a version for each would be as many versions as there
are assets. So what becomes known is taken in at the next *tick*, of which an interval has 288 (every 5 minutes for
daily bars), or at the next *completion*, whichever comes first: the moment at which the last bar arrives that a bar
time was waiting for, so that nobody waits for a tick in an ordinary day. A bar time waits for the assets that had a
bar at the time before. Both are later than what they take in or at the same moment, never earlier, and both depend on
nothing that is known after them. What comes after a completion, late and restated bars, is taken in at the next tick.

The panel. A bar time belongs to it once ``MIN_ASSETS`` assets have a known bar there, so a stray bar doesn't cut
everybody's returns in two. Returns are ln(C / C at the panel's time before), null where the asset lacks one of the
two. Assets are those with a known bar, whatever becomes of them later. Every value is a function of exactly the last
``WINDOW + 1`` times of the panel as known at the version's moment.

Array suffixes: T bar times, N assets, L times of the panel, R rows asked for among them, B versions of bars in the
order in which they are taken in, C columns, P (bar, moment) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.aggregates.base import Aggregate
from feature_repo.aggregates.levels import micros, utc
from feature_repo.kernels.cross_section import bar_moments, find_components, window_means
from feature_repo.kernels.elementwise import log_ratio
from feature_repo.market.layout import interval_length
from feature_repo.market.schema import Market
from feature_repo.store.join import NEVER, IntArray

FloatArray = NDArray[np.float64]

MIN_ASSETS: Final = 3
WINDOW: Final = 63
MIN_RETURNS: Final = 51
"""An asset counts in a window with at least 80% of its returns."""
LEADERS: Final = 5
"""The leaders are the most traded of every so many assets, rounded down."""
RANKED_RETURNS: Final = (1, 21, 63)
TICKS_PER_INTERVAL: Final = 288

_MARKET: Final = ("market_return", "market_dispersion", "market_breadth")
_WINDOWED: Final = ("market_correlation", "market_pc1_share", "market_absorption")
_RETURNS: Final = ("pc1_return", "pc2_return", "pc3_return")
_LOADINGS: Final = ("pc1_loading", "pc2_loading", "pc3_loading")
_RANKS: Final = tuple(f"return_rank_{lag}" for lag in RANKED_RETURNS)
COLUMNS: Final = (*_MARKET, *_WINDOWED, *_RETURNS, "leader_return", "others_return", *_LOADINGS, "pc_residual", *_RANKS)
_FOREVER: Final = int(np.iinfo(np.int64).max)
_CHUNK: Final = 256


def cross_section_versions(market: Market, interval: str) -> pd.DataFrame | None:
    """The columns of every bar of three or more traded assets; ``leader_return`` only where bars have a volume."""
    from threadpoolctl import threadpool_limits  # importing it changes the environment

    bars = market.traded_bars(interval)
    if bars["entity_key"].nunique() < MIN_ASSETS:
        return None
    arrivals = _arrivals(bars, interval_length(interval))
    panel = _Panel(arrivals)
    with threadpool_limits(limits=1, user_api="blas"):  # small matrices, and the same bits whatever the cores
        parts = [rows for versions in _stretches(arrivals) for rows in panel.take_in(versions)]
    return _frame(arrivals, parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arrivals:
    """Versions of bars in the order in which they are taken in: their place in the panel, the moment, the values."""

    entities: NDArray[np.object_]
    event_T: IntArray
    place_B: IntArray
    asset_B: IntArray
    moment_B: IntArray
    close_B: FloatArray
    turnover_B: FloatArray | None


def _arrivals(bars: pd.DataFrame, length: timedelta) -> _Arrivals:
    event, ingest = (micros(bars[name]) for name in ("event_time", "ingest_time"))
    row_B = np.flatnonzero((event != NEVER) & (ingest != NEVER) & bars["entity_key"].notna().to_numpy())
    event, ingest, bars = event[row_B], ingest[row_B], bars.iloc[row_B]
    event_T, place = np.unique(event, return_inverse=True)
    asset, entities = pd.factorize(bars["entity_key"].to_numpy(dtype=object), sort=True)
    known = np.maximum(event, ingest)
    first_TN = np.full((len(event_T), len(entities)), _FOREVER)
    np.minimum.at(first_TN, (place, asset), known)
    moment = _taken_in(known, _completions(first_TN, event_T), length)
    order = np.lexsort((ingest, known, moment))
    close = bars["close"].to_numpy(np.float64, na_value=np.nan)[order]
    turnover = None
    if "volume" in bars:
        turnover = close * bars["volume"].to_numpy(np.float64, na_value=np.nan)[order]
    return _Arrivals(
        entities=np.asarray(entities, dtype=object),
        event_T=event_T,
        place_B=place[order],
        asset_B=asset[order].astype(np.int64),
        moment_B=moment[order],
        close_B=close,
        turnover_B=turnover,
    )


def _taken_in(known: IntArray, completions: IntArray, length: timedelta) -> IntArray:
    """The first tick or completion that is not before ``known``."""
    tick = max(length // timedelta(microseconds=1) // TICKS_PER_INTERVAL, 1)
    next_tick = -(-known // tick) * tick
    next_completion = np.append(completions, _FOREVER)[np.searchsorted(completions, known)]
    return np.minimum(next_tick, next_completion)


def _completions(first_TN: IntArray, event_T: IntArray) -> IntArray:
    """When bar times became complete, in order; ``first_TN`` is when each bar was first known.

    A time's bars are expected of the assets that had, by its end, a known bar at the time before: the latest at which
    three assets then had one.
    """
    if first_TN.shape[1] < MIN_ASSETS:
        return np.empty(0, np.int64)
    there_T = np.partition(first_TN, MIN_ASSETS - 1, axis=1)[:, MIN_ASSETS - 1]
    place_T = np.arange(len(event_T))
    before_T = np.full(len(event_T) + 1, -1)
    np.maximum.at(before_T, np.maximum(np.searchsorted(event_T, there_T), place_T + 1), place_T)
    before_T = np.maximum.accumulate(before_T)[:-1]
    is_expected_TN = (first_TN[before_T] <= event_T[:, None]) & (before_T >= 0)[:, None]
    complete_T = np.where(is_expected_TN, first_TN, NEVER).max(axis=1)
    return np.unique(complete_T[(complete_T != NEVER) & (complete_T != _FOREVER)])


def _stretches(arrivals: _Arrivals) -> Iterator[slice]:
    """Runs to take in together: moments that only append bar times, however many, or one moment that revises some."""
    num_versions = len(arrivals.place_B)
    if not num_versions:
        return
    moment_starts = np.flatnonzero(np.append(True, arrivals.moment_B[1:] != arrivals.moment_B[:-1]))
    newest = np.maximum.accumulate(np.maximum.reduceat(arrivals.place_B, moment_starts))
    revises = np.minimum.reduceat(arrivals.place_B, moment_starts) <= np.append(-1, newest[:-1])
    starts = moment_starts[revises | np.append(True, revises[:-1])]
    for start, stop in zip(starts, np.append(starts[1:], num_versions), strict=True):
        yield slice(int(start), int(stop))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """What is said from a moment on of bars, by their place and asset; ``values_CP`` has the columns' order."""

    place_P: IntArray
    asset_P: IntArray
    moment_P: IntArray
    values_CP: FloatArray


class _Panel:
    """What is known so far."""

    def __init__(self, arrivals: _Arrivals) -> None:
        self._arrivals = arrivals
        shape = (len(arrivals.event_T), len(arrivals.entities))
        self._close_TN = np.full(shape, np.nan)
        self._turnover_TN = None if arrivals.turnover_B is None else np.full(shape, np.nan)
        self._is_known_TN = np.zeros(shape, dtype=bool)
        self._num_known_T = np.zeros(shape[0], np.int64)

    def take_in(self, versions: slice) -> Iterator[_Rows]:
        """Learn these versions and say anew what they may change."""
        arrivals = self._arrivals
        place, asset = arrivals.place_B[versions], arrivals.asset_B[versions]
        self._close_TN[place, asset] = arrivals.close_B[versions]  # of several versions the last stays
        if self._turnover_TN is not None and arrivals.turnover_B is not None:
            self._turnover_TN[place, asset] = arrivals.turnover_B[versions]
        self._is_known_TN[place, asset] = True
        touched = np.unique(place)
        self._num_known_T[touched] = self._is_known_TN[touched].sum(axis=1)

        moment_T = np.full(len(arrivals.event_T), arrivals.moment_B[versions][-1])
        moment_T[place] = arrivals.moment_B[versions]
        live = np.flatnonzero(self._num_known_T >= MIN_ASSETS)
        first = int(np.searchsorted(live, place.min()))
        stop = min(int(np.searchsorted(live, place.max(), side="right")) + WINDOW, len(live))
        for start in range(first, stop, _CHUNK):
            yield self._rows(live[: min(start + _CHUNK, stop)], start, moment_T)

    def _rows(self, live: IntArray, first: int, moment_T: IntArray) -> _Rows:
        """The rows of the panel's times from ``first`` on, one for each asset with a known bar."""
        seen, rows = live[max(0, first - WINDOW) :], live[first:]
        turnover_LN = None if self._turnover_TN is None else self._turnover_TN[seen]
        columns = cross_section(self._close_TN[seen], turnover_LN, num_rows=len(rows))
        row, asset = np.nonzero(self._is_known_TN[rows])
        return _Rows(
            place_P=rows[row],
            asset_P=asset,
            moment_P=moment_T[rows][row],
            values_CP=np.stack([columns[name][row, asset] for name in COLUMNS if name in columns]),
        )


def cross_section(close_LN: FloatArray, turnover_LN: FloatArray | None, *, num_rows: int) -> Mapping[str, FloatArray]:
    """The columns at the panel's last ``num_rows`` times, (R, N) each.

    Closes and turnovers are NaN where unknown. Uses data up to each row's time, at most ``WINDOW + 1`` times of it.
    """
    shape = (num_rows, close_LN.shape[1])
    row_R = np.arange(len(close_LN) - num_rows, len(close_LN))
    returns_LN = _log_returns(close_LN, 1)
    mean_R, std_R, rising_R, others_RN = bar_moments(returns_LN[row_R], MIN_ASSETS)
    found = find_components(
        returns_LN,
        row_R,
        window=WINDOW,
        min_count=MIN_RETURNS,
        min_assets=MIN_ASSETS,
        num_components=len(_LOADINGS),
    )
    market = (mean_R, std_R, rising_R, found.correlation_R, found.share_R, found.absorption_R, *found.return_RK.T)
    columns = dict(zip((*_MARKET, *_WINDOWED, *_RETURNS), market, strict=True))
    if turnover_LN is not None:
        columns["leader_return"] = _leader_return(returns_LN, turnover_LN, row_R)
    columns = {name: np.broadcast_to(values_R[:, None], shape) for name, values_R in columns.items()}
    loadings = dict(zip(_LOADINGS, found.loading_RKN.transpose(1, 0, 2), strict=True))
    ranks = {name: _ranks(_log_returns(close_LN, lag)[row_R]) for name, lag in zip(_RANKS, RANKED_RETURNS, strict=True)}
    return columns | {"others_return": others_RN, **loadings, "pc_residual": found.residual_RN, **ranks}


def _log_returns(close_LN: FloatArray, lag: int) -> FloatArray:
    returns_LN = np.full(close_LN.shape, np.nan)
    later = close_LN[lag:]
    returns_LN[lag:] = log_ratio(later.ravel(), close_LN[: len(later)].ravel()).reshape(later.shape)
    return returns_LN


def _leader_return(returns_LN: FloatArray, turnover_LN: FloatArray, row_R: IntArray) -> FloatArray:
    """Mean return of the most traded fifth of the assets, by mean turnover over the window: (R,)."""
    turnover_RN = window_means(turnover_LN, row_R, WINDOW, MIN_RETURNS)
    order_RN = np.argsort(-turnover_RN, axis=1, kind="stable")  # NaN comes last
    count_R = np.isfinite(turnover_RN).sum(axis=1)
    num_leaders_R = np.where(count_R >= MIN_ASSETS, np.maximum(count_R // LEADERS, 1), 0)
    is_leader_RN = np.zeros(order_RN.shape, dtype=bool)
    np.put_along_axis(is_leader_RN, order_RN, np.arange(order_RN.shape[1]) < num_leaders_R[:, None], axis=1)
    mean_R: FloatArray = bar_moments(np.where(is_leader_RN, returns_LN[row_R], np.nan), 1)[0]
    return mean_R


def _ranks(x_RN: FloatArray) -> FloatArray:
    """Place of each asset among those with a value, evenly from above 0 to below 1, ties in the middle: (R, N)."""
    rank_RN = pd.DataFrame(x_RN).rank(axis=1).to_numpy()
    count_R1 = np.isfinite(x_RN).sum(axis=1, keepdims=True)
    return np.where(count_R1 >= MIN_ASSETS, (rank_RN - 0.5) / np.maximum(count_R1, 1), np.nan)


def _frame(arrivals: _Arrivals, parts: Sequence[_Rows]) -> pd.DataFrame:
    """By entity, event and ingest time, without rows that say what the one before said of the same bar.

    Of a bar that nothing was said of yet, nulls say nothing.
    """
    names = [name for name in COLUMNS if arrivals.turnover_B is not None or name != "leader_return"]
    nothing = _Rows(
        place_P=np.empty(0, np.int64),
        asset_P=np.empty(0, np.int64),
        moment_P=np.empty(0, np.int64),
        values_CP=np.empty((len(names), 0)),
    )
    place, asset, moment = (
        np.concatenate([getattr(rows, name) for rows in (nothing, *parts)])
        for name in ("place_P", "asset_P", "moment_P")
    )
    values_CP = np.concatenate([rows.values_CP for rows in (nothing, *parts)], axis=1)
    order = np.lexsort((moment, place, asset))
    place, asset, moment, values_CP = place[order], asset[order], moment[order], values_CP[:, order]
    before_CP = np.full_like(values_CP, np.nan)
    is_again = (place[1:] == place[:-1]) & (asset[1:] == asset[:-1])
    before_CP[:, 1:] = np.where(is_again, values_CP[:, :-1], np.nan)
    same_CP = (values_CP == before_CP) | (np.isnan(values_CP) & np.isnan(before_CP))
    new = np.flatnonzero(~same_CP.all(axis=0))
    keys = {
        "entity_key": arrivals.entities[asset[new]],
        "event_time": utc(arrivals.event_T[place[new]]),
        "ingest_time": utc(moment[new]),
    }
    return pd.DataFrame(keys | dict(zip(names, values_CP[:, new], strict=True)))


AGGREGATE = Aggregate(name="cross_section", columns=COLUMNS, versions=cross_section_versions)
