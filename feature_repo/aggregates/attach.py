"""Bars with all that was known beside them: what pipelines compute from.

At every moment T the rows known at T hold the bars known at T, each with the aggregates' columns as known at T.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import feature_repo.aggregates as package
from feature_repo.aggregates.base import EVERYONE, Aggregate
from feature_repo.market.schema import Market
from feature_repo.store.join import NEVER, NO_ROW, IntArray, find_answers

# Array suffixes: R rows of a table, K bars (an entity and an event time), P rows of the result: (bar, moment) pairs.

_KEYS = ("entity_key", "event_time", "ingest_time")


@cache
def aggregates() -> Mapping[str, Aggregate]:
    """One file each, found by importing the package's modules."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    found = [declared for module in modules if isinstance(declared := getattr(module, "AGGREGATE", None), Aggregate)]
    return {declared.name: declared for declared in sorted(found, key=lambda declared: declared.name)}


def pipeline_bars(market: Market, interval: str) -> pd.DataFrame:
    """The market's traded bars with every aggregate's columns, as ``build_features`` takes them."""
    additions = [aggregate.versions(market, interval) for aggregate in aggregates().values()]
    return attach(market.traded_bars(interval), [addition for addition in additions if addition is not None])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Versions:
    """A table's rows that belong to a bar and are ever known: their bar, both times and their position."""

    bar_R: IntArray
    event_R: IntArray
    ingest_R: IntArray
    row_R: IntArray

    @property
    def known_R(self) -> IntArray:
        return np.maximum(self.event_R, self.ingest_R)


def attach(bars: pd.DataFrame, additions: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the additions' columns to the bars, in two times.

    Returns ``entity_key, event_time, ingest_time``, the bars' columns and the additions', one row for each moment at
    which a bar or a column beside it changed, from the bar's own first moment on; sorted by entity, event and ingest
    time (UTC microseconds). Columns that nothing is known of are null.
    """
    keys = bars[["entity_key", "event_time"]].drop_duplicates().sort_values(["entity_key", "event_time"])
    bar_of = pd.MultiIndex.from_frame(keys)
    tables = [bars, *(_for_each_entity(addition, keys) for addition in additions)]
    versions = [_versions(table, bar_of) for table in tables]
    bar_P, moment_P = _moments(versions, len(bar_of))
    columns = {
        "entity_key": keys["entity_key"].to_numpy()[bar_P],
        "event_time": keys["event_time"].dt.as_unit("us").array[bar_P],
        "ingest_time": pd.DatetimeIndex(moment_P.astype("datetime64[us]")).tz_localize("UTC"),
    }
    for table, of_table in zip(tables, versions, strict=True):
        columns |= _as_known(table, of_table, bar_P, moment_P, len(bar_of))
    return pd.DataFrame(columns)


def _for_each_entity(addition: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    """Market-wide rows given to every entity that has a bar of their event time."""
    everyone = addition["entity_key"] == EVERYONE
    if not everyone.any():
        return addition
    shared = keys.merge(addition[everyone].drop(columns="entity_key"), on="event_time")
    return pd.concat([addition[~everyone], shared], ignore_index=True) if not everyone.all() else shared


def _versions(table: pd.DataFrame, bar_of: pd.MultiIndex) -> _Versions:
    bar_R = bar_of.get_indexer(pd.MultiIndex.from_frame(table[["entity_key", "event_time"]]))
    event_R, ingest_R = (_micros(table[name]) for name in _KEYS[1:])
    row_R = np.flatnonzero((bar_R >= 0) & (event_R != NEVER) & (ingest_R != NEVER))
    return _Versions(bar_R=bar_R[row_R].astype(np.int64), event_R=event_R[row_R], ingest_R=ingest_R[row_R], row_R=row_R)


def _moments(versions: Sequence[_Versions], num_bars: int) -> tuple[IntArray, IntArray]:
    """Every (bar, moment) at which anything about the bar became known, once the bar itself was."""
    first_K = np.full(num_bars, np.iinfo(np.int64).max)
    np.minimum.at(first_K, versions[0].bar_R, versions[0].known_R)
    bar_P = np.concatenate([table.bar_R for table in versions])
    moment_P = np.maximum(np.concatenate([table.known_R for table in versions]), first_K[bar_P])
    is_ever = first_K[bar_P] != np.iinfo(np.int64).max
    bar_P, moment_P = bar_P[is_ever], moment_P[is_ever]
    order = np.lexsort((moment_P, bar_P))
    bar_P, moment_P = bar_P[order], moment_P[order]
    is_new = np.append(True, (bar_P[1:] != bar_P[:-1]) | (moment_P[1:] != moment_P[:-1]))[: len(bar_P)]
    return bar_P[is_new], moment_P[is_new]


def _as_known(
    table: pd.DataFrame, versions: _Versions, bar_P: IntArray, moment_P: IntArray, num_bars: int
) -> dict[str, NDArray[np.float64]]:
    """The table's columns at every (bar, moment), by the one rule: each bar is an entity of its own."""
    answers = find_answers(versions.bar_R, versions.event_R, versions.ingest_R, num_bars)
    found_P = answers.as_of(bar_P, moment_P)
    is_known = found_P != NO_ROW
    rows = versions.row_R[found_P[is_known]]
    columns = {}
    for name in table.columns.difference(_KEYS, sort=False):
        if not pd.api.types.is_numeric_dtype(table[name]):
            continue
        values = np.full(len(bar_P), np.nan)
        values[is_known] = table[name].to_numpy(np.float64, na_value=np.nan)[rows]
        columns[name] = values
    return columns


def _micros(times: pd.Series) -> IntArray:
    """Microseconds since 1970 UTC; a null is ``NEVER``, as int64 has it."""
    return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
