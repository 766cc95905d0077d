"""Feature tables that are correct in two times, from bars that are.

``known = max(event_time, ingest_time)`` is when a bar becomes known. Bars are taken in that order; whatever they
change in the features is written as new rows with that moment as ``ingest_time``. So for every as-of time T the rows
known at T hold exactly the features of the bars known at T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.pipelines.base import FloatArray, Pipeline, PipelineError

TimeArray: TypeAlias = NDArray[np.datetime64]

# Array suffixes: B bars, C columns, F features, R rows.

_TIMES = ("event_time", "ingest_time")
_NEVER = np.iinfo(np.int64).min


class NotApplicableError(PipelineError):
    """These bars can feed no feature of the pipeline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bars:
    """Versions of one entity's bars in the order in which they became known; at most one a (known, event) pair."""

    event_B: TimeArray
    known_B: TimeArray
    values_CB: FloatArray

    def part(self, rows: slice) -> _Bars:
        return _Bars(event_B=self.event_B[rows], known_B=self.known_B[rows], values_CB=self.values_CB[:, rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    event_R: TimeArray
    ingest_R: TimeArray
    values_FR: FloatArray


class _History:
    """What is known of one entity so far: its bars, and the features last written for each."""

    def __init__(self, pipeline: Pipeline, columns: tuple[str, ...], event_times: TimeArray) -> None:
        self._pipeline = pipeline
        self._columns = columns
        self._event_B = np.unique(event_times)
        self._is_known_B = np.zeros(len(self._event_B), dtype=bool)
        self._is_written_B = np.zeros(len(self._event_B), dtype=bool)
        self._bars_CB = np.full((len(columns), len(self._event_B)), np.nan)
        self._features_FB = np.full((len(pipeline.features), len(self._event_B)), np.nan)

    def learn(self, bars: _Bars) -> _Rows:
        """Take in bars (appended in order of event time, or all known at once) and give the rows they change."""
        places = np.searchsorted(self._event_B, bars.event_B)
        self._bars_CB[:, places] = bars.values_CB
        self._is_known_B[places] = True
        window, num_history = self._affected(places)
        features_FR = self._compute(window)
        ingest = np.full(len(self._event_B), bars.known_B[-1])
        ingest[places] = bars.known_B

        before_FR = self._features_FB[:, window]
        same_FR = (features_FR == before_FR) | (np.isnan(features_FR) & np.isnan(before_FR))
        changed = ~(self._is_written_B[window] & same_FR.all(axis=0))
        changed[:num_history] = False
        rows = window[changed]
        self._features_FB[:, rows] = features_FR[:, changed]
        self._is_written_B[rows] = True
        return _Rows(event_R=self._event_B[rows], ingest_R=ingest[rows], values_FR=features_FR[:, changed])

    def _affected(self, places: NDArray[np.intp]) -> tuple[NDArray[np.intp], int]:
        """Known bars around the new ones, and how many of them serve as history only."""
        reach = self._pipeline.warmup_bars - 1
        known = np.flatnonzero(self._is_known_B)
        first, last = np.searchsorted(known, [places.min(), places.max()])
        start = max(0, first - reach)
        return known[start : last + reach + 1], max(first - start, reach)

    def _compute(self, window: NDArray[np.intp]) -> FloatArray:
        bars_CR = np.take(self._bars_CB, window, axis=1)  # C order: kernels are compiled for contiguous series
        computed = self._pipeline.compute(dict(zip(self._columns, bars_CR, strict=True)))
        absent = np.full(len(window), np.nan)
        return np.stack([computed.get(feature.name, absent) for feature in self._pipeline.features])


def build_features(
    pipeline: Pipeline,
    bars: pd.DataFrame,
    *,
    producer: str,
    producer_version: str,
    run_id: str,
    written_at: datetime,
) -> pd.DataFrame:
    """The pipeline's feature table of these bars, restatements and late bars included.

    Parameters
    ----------
    bars
        ``entity_key, event_time, ingest_time`` (aware) and any bar columns, in any order; several rows of one
        (entity, event time) are restatements. A null event or ingest time is never known. Of exact ties the last
        row counts. Missing values spread through every window that holds them.
    written_at
        The real clock, aware.

    Returns
    -------
    ``entity_key, event_time, ingest_time, <features>, written_at, producer, producer_version, run_id``, times in
    UTC microseconds, sorted by entity, event time and ingest time; null where a feature can't be computed. A bar has
    a row once ``warmup_bars`` bars up to it are known; its ``ingest_time`` is the moment that the features became
    computable with these values, and a restated or late bar adds rows for the bars whose values it changes.

    Raises
    ------
    NotApplicableError
        When the bars have the inputs of no feature.
    """
    applicable = pipeline.applicable(frozenset(bars.columns))
    if not applicable:
        raise NotApplicableError(_reason(pipeline, bars))
    needed = {name for feature in applicable for name in (*feature.inputs, *feature.optional)}
    columns = tuple(name for name in bars.columns if name in needed)
    parts = [
        _frame(entity, pipeline, rows)
        for entity, versions in _by_entity(bars, columns)
        for rows in [_entity_rows(pipeline, columns, versions)]
    ]
    table = pd.concat(parts, ignore_index=True) if parts else _frame("", pipeline, _no_rows(pipeline))
    table["written_at"] = pd.Timestamp(written_at).tz_convert("UTC").as_unit("us")
    return table.assign(producer=producer, producer_version=producer_version, run_id=run_id)


def _reason(pipeline: Pipeline, bars: pd.DataFrame) -> str:
    needed = sorted({name for feature in pipeline.features for name in feature.inputs})
    return (
        f"pipeline {pipeline.name!r} is not applicable: its features need columns among {needed} and the bars have "
        f"{sorted(map(str, bars.columns))}; add the missing columns or leave this pipeline out"
    )


def _by_entity(bars: pd.DataFrame, columns: tuple[str, ...]) -> Iterator[tuple[str, _Bars]]:
    codes, entities = pd.factorize(bars["entity_key"], sort=True)
    event, ingest = (bars[name].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]") for name in _TIMES)
    values_CB = np.stack([bars[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in columns])
    known = np.maximum(event, ingest)  # NaT, never known, spreads
    order = np.lexsort((ingest, event, known, codes))
    order = order[~np.isnat(known[order]) & (codes[order] >= 0)]
    codes, event, known = codes[order], event[order], known[order]
    followed = (codes[1:] == codes[:-1]) & (event[1:] == event[:-1]) & (known[1:] == known[:-1])
    last = np.append(~followed, True)[: len(order)]
    codes, event, known, values_CB = codes[last], event[last], known[last], values_CB[:, order[last]]
    told = _says_something_new(codes, event, values_CB)
    codes, event, known, values_CB = codes[told], event[told], known[told], values_CB[:, told]
    starts = np.searchsorted(codes, np.arange(len(entities) + 1))
    for entity, start, stop in zip(entities, starts, starts[1:], strict=False):
        rows = slice(start, stop)
        yield str(entity), _Bars(event_B=event[rows], known_B=known[rows], values_CB=values_CB[:, rows])


def _says_something_new(codes: NDArray[np.intp], event_B: TimeArray, values_CB: FloatArray) -> NDArray[np.bool_]:
    """False where a version repeats what the one before it said of the same bar; (B,), B in order of knowledge."""
    by_bar = np.lexsort((event_B, codes))  # stable: a bar's versions stay in order of knowledge
    before, after = by_bar[:-1], by_bar[1:]
    same_bar = (codes[after] == codes[before]) & (event_B[after] == event_B[before])
    one, other = values_CB[:, after], values_CB[:, before]
    same = ((one == other) | (np.isnan(one) & np.isnan(other))).all(axis=0)
    told = np.ones(len(codes), dtype=bool)
    told[after] = ~(same_bar & same)
    return told


def _entity_rows(pipeline: Pipeline, columns: tuple[str, ...], versions: _Bars) -> _Rows:
    history = _History(pipeline, columns, versions.event_B)
    learned = [history.learn(versions.part(rows)) for rows in _revisions(versions)] or [_no_rows(pipeline)]
    event = np.concatenate([rows.event_R for rows in learned])
    ingest = np.concatenate([rows.ingest_R for rows in learned])
    order = np.lexsort((ingest, event))
    values_FR = np.concatenate([rows.values_FR for rows in learned], axis=1)
    return _Rows(event_R=event[order], ingest_R=ingest[order], values_FR=values_FR[:, order])


def _revisions(versions: _Bars) -> Iterator[slice]:
    """Runs of bars to learn together: bars that only append, however many, or all bars of one knowledge time."""
    num_bars = len(versions.event_B)
    if not num_bars:
        return
    times = versions.event_B.astype(np.int64)
    highest_before = np.concatenate([[_NEVER], np.maximum.accumulate(times)[:-1]])
    batch = np.concatenate([[0], np.cumsum(versions.known_B[1:] != versions.known_B[:-1])])
    revises = np.bincount(batch, weights=times <= highest_before) > 0
    is_new_batch = np.concatenate([[True], batch[1:] != batch[:-1]])
    follows_revision = np.concatenate([[True], revises[batch[:-1]]])
    starts = np.flatnonzero(is_new_batch & (revises[batch] | follows_revision))
    for start, stop in zip(starts, np.append(starts[1:], num_bars), strict=True):
        yield slice(int(start), int(stop))


def _no_rows(pipeline: Pipeline) -> _Rows:
    never = np.empty(0, dtype="datetime64[us]")
    return _Rows(event_R=never, ingest_R=never, values_FR=np.empty((len(pipeline.features), 0)))


def _frame(entity: str, pipeline: Pipeline, rows: _Rows) -> pd.DataFrame:
    keys = {
        "entity_key": np.full(len(rows.event_R), entity, dtype=object),
        "event_time": pd.DatetimeIndex(rows.event_R).tz_localize("UTC"),
        "ingest_time": pd.DatetimeIndex(rows.ingest_R).tz_localize("UTC"),
    }
    features = {feature.name: values for feature, values in zip(pipeline.features, rows.values_FR, strict=True)}
    return pd.DataFrame(keys | features)
