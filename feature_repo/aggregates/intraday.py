"""What the finer bars inside a bar say: its realised variance.

Of the market's bars that are shorter than the interval and divide it, those with the longest history are taken, of
equals the finest: quarter hours of the last month beside hours of ten years would leave ten years null. To a bar that
ends at b belong the fine bars with ``b - interval < event_time <= b``, each in its version known at the moment; one
that is missing is passed over, so the return across a gap is one return and keeps the gap's variance. Nothing is scaled
up: with fewer than ``MIN_SHARE`` of the fine bars of a full trading day the variances are null, and above that what is
missing at the edges is missing. The night of a session market is not in them.

A value's moments are the bar's end and, after it, every moment at which one of its fine bars arrives or is restated.

Array suffixes: R rows of the fine table, F fine bars (an entity and a time) in that order, K bars, M versions (a bar
and a moment), P (version, fine bar) pairs.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

import numpy as np
import pandas as pd

from feature_repo.aggregates.base import Aggregate
from feature_repo.aggregates.levels import micros, utc
from feature_repo.kernels.realised import realised_moments
from feature_repo.market.layout import interval_length
from feature_repo.market.schema import Market
from feature_repo.store.join import NO_ROW, IntArray, find_answers

MIN_SHARE: Final = 0.8

_DAY: Final = timedelta(days=1)
_SESSION: Final = {"XNYS": timedelta(hours=6.5)}


def intraday_versions(market: Market, interval: str) -> pd.DataFrame | None:
    """The columns of every traded bar that has fine bars; None where the market has no finer bars that divide it."""
    length = interval_length(interval)
    fine = _finer(market, length)
    if fine is None:
        return None
    min_bars = math.ceil(MIN_SHARE * (trading_time(market.info.calendar, length) / interval_length(fine)))
    return realised_versions(market.traded_bars(interval), market.tables[f"bars_{fine}"], length, min_bars=min_bars)


def _finer(market: Market, length: timedelta) -> str | None:
    names = [name.removeprefix("bars_") for name in market.tables if name.startswith("bars_")]
    lengths = {name: interval_length(name) for name in names}
    finer = [name for name in names if lengths[name] < length and not length % lengths[name]]
    begins = {name: market.tables[f"bars_{name}"]["event_time"].min().floor(length) for name in finer}
    return min(finer, key=lambda name: (begins[name], lengths[name]), default=None)


def trading_time(calendar: str, length: timedelta) -> timedelta:
    """How long a market of this calendar trades in an interval of that length, where nothing interrupts it."""
    num_days = max(length / _DAY, 1.0)
    num_sessions = num_days if calendar == "24/7" or num_days <= 1.0 else num_days * 5.0 / 7.0
    return min(length, num_sessions * _SESSION.get(calendar, _DAY))


def realised_versions(bars: pd.DataFrame, fine: pd.DataFrame, length: timedelta, *, min_bars: int) -> pd.DataFrame:
    """``realised_variance, bipower_variation, upside_semivariance, num_intraday_bars`` of bars, in two times.

    The first three are null with fewer than ``min_bars`` fine bars.
    """
    fine = fine[fine["entity_key"].notna() & fine["event_time"].notna() & fine["ingest_time"].notna()]
    entities = pd.Index(bars["entity_key"].dropna().unique()).sort_values()
    fine = fine[fine["entity_key"].isin(entities)]
    entity_R, event_R, ingest_R = _keys(fine, entities)
    (entity_F, event_F), fine_R = _distinct(entity_R, event_R)
    keys = bars[["entity_key", "event_time"]].dropna().drop_duplicates()
    entity_K = entities.get_indexer(keys["entity_key"]).astype(np.int64)
    event_K = micros(keys["event_time"])
    first_K, stop_K = _inside(entity_K, event_K, entity_F, event_F, length)

    bar_M, moment_M = _moments(event_K, first_K, stop_K, fine_R, np.maximum(event_R, ingest_R))
    version_P, fine_P = _ranges(first_K[bar_M], stop_K[bar_M])
    answers = find_answers(fine_R, event_R, ingest_R, len(entity_F))
    row_P = answers.as_of(fine_P, moment_M[version_P])
    start_M = np.searchsorted(version_P, np.arange(len(bar_M) + 1))
    variance_M, bipower_M, upside_M, num_bars_M = realised_moments(
        _column(fine, "open", row_P), _column(fine, "close", row_P), start_M
    )
    is_full_M = num_bars_M >= min_bars
    return pd.DataFrame(
        {
            "entity_key": entities.to_numpy(dtype=object)[entity_K[bar_M]],
            "event_time": utc(event_K[bar_M]),
            "ingest_time": utc(moment_M),
            "realised_variance": np.where(is_full_M, variance_M, np.nan),
            "bipower_variation": np.where(is_full_M, bipower_M, np.nan),
            "upside_semivariance": np.where(is_full_M, upside_M, np.nan),
            "num_intraday_bars": num_bars_M,
        }
    )


def _keys(table: pd.DataFrame, entities: pd.Index) -> tuple[IntArray, IntArray, IntArray]:
    entity = entities.get_indexer(table["entity_key"]).astype(np.int64)
    return entity, micros(table["event_time"]), micros(table["ingest_time"])


def _distinct(entity_R: IntArray, event_R: IntArray) -> tuple[tuple[IntArray, IntArray], IntArray]:
    """The fine bars in order, and each row's place among them."""
    order = np.lexsort((event_R, entity_R))
    entity, event = entity_R[order], event_R[order]
    is_new = np.append(True, (entity[1:] != entity[:-1]) | (event[1:] != event[:-1]))[: len(order)]
    fine_R = np.empty(len(order), np.int64)
    fine_R[order] = np.cumsum(is_new) - 1
    return (entity[is_new], event[is_new]), fine_R


def _inside(
    entity_K: IntArray, event_K: IntArray, entity_F: IntArray, event_F: IntArray, length: timedelta
) -> tuple[IntArray, IntArray]:
    """Places of the fine bars in the interval that ends with each bar, from the first to before the second."""
    first_K, stop_K = np.zeros(len(event_K), np.int64), np.zeros(len(event_K), np.int64)
    num_micros = length // timedelta(microseconds=1)
    for entity in np.unique(entity_K):
        block = np.searchsorted(entity_F, [entity, entity + 1])
        of_entity = np.flatnonzero(entity_K == entity)
        events = event_F[block[0] : block[1]]
        first_K[of_entity] = block[0] + np.searchsorted(events, event_K[of_entity] - num_micros, side="right")
        stop_K[of_entity] = block[0] + np.searchsorted(events, event_K[of_entity], side="right")
    return first_K, stop_K


def _moments(
    event_K: IntArray, first_K: IntArray, stop_K: IntArray, fine_R: IntArray, known_R: IntArray
) -> tuple[IntArray, IntArray]:
    """Every (bar, moment) at which the bar has ended and something of its fine bars becomes known, in that order."""
    order = np.argsort(fine_R, kind="stable")
    first, stop = (np.searchsorted(fine_R[order], place) for place in (first_K, stop_K))
    bar, row = _ranges(first, stop)
    moment = np.maximum(known_R[order][row], event_K[bar])
    pairs = np.unique(np.stack([bar, moment]), axis=1)
    return pairs[0], pairs[1]


def _ranges(first: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """All of ``first[i] .. stop[i] - 1`` in a row, and beside each its i."""
    size = stop - first
    owner = np.repeat(np.arange(len(size)), size)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size) + first[owner]


def _column(fine: pd.DataFrame, name: str, row_P: IntArray) -> np.ndarray:
    values_P = np.full(len(row_P), np.nan)
    if name in fine:
        is_known = row_P != NO_ROW
        values_P[is_known] = fine[name].to_numpy(np.float64, na_value=np.nan)[row_P[is_known]]
    return values_P


AGGREGATE = Aggregate(
    name="intraday",
    columns=("realised_variance", "bipower_variation", "upside_semivariance", "num_intraday_bars"),
    versions=intraday_versions,
)
