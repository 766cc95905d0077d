"""Online reads that compute what is missing from recent bars, by the code that computed the history.

A feature is a function of exactly its last ``warmup_bars`` bars, so the value computed here has the bits of the one
that the offline store has. Its ingest time is the moment at which the last of those bars became known; the offline row
can be a little older where a restatement changed no feature. Fail closed: without enough bars there is no value but a
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import numpy as np
import pandas as pd

from feature_repo.pipelines.base import Pipeline
from feature_repo.pipelines.build import NotApplicableError, build_features
from feature_repo.store.online_values import OnlineValues, OnlineView
from feature_repo.store.packed import Unpacked

BarsOf: TypeAlias = Callable[[Sequence[str], datetime], pd.DataFrame]
"""Bars of entities, at least their last ``warmup_bars`` known at a time; versions and more bars may be among them."""

_TIMES: Final = ("event_time", "ingest_time")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadResult:
    """``found`` as the online store gives it, and for each entity that is still without a value the reason."""

    found: Unpacked
    reasons: Mapping[str, str]


def view_of(pipeline: Pipeline, *, ttl: timedelta | None) -> OnlineView:
    """The pipeline's view in the online store; ``ttl`` is that of its Feast view."""
    return OnlineView(name=pipeline.view_name, features=tuple(feature.name for feature in pipeline.features), ttl=ttl)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadThrough:
    """Reads of one pipeline's view that fall back to ``bars_of`` and write back what they computed.

    ``ttl`` is how old a value may be, as in the pipeline's Feast view.
    """

    values: OnlineValues
    pipeline: Pipeline
    bars_of: BarsOf
    ttl: timedelta | None

    @property
    def view(self) -> OnlineView:
        """The pipeline's view in the online store."""
        return view_of(self.pipeline, ttl=self.ttl)

    def read_features(self, entities: Sequence[str], *, now: datetime) -> ReadResult:
        """The view's features of each entity as of ``now``, computed where they are missing or too old."""
        found = self.values.read_features(self.view, entities, now=now)
        missing_M = np.flatnonzero(np.isnat(found.event_N))
        if not missing_M.size:
            return ReadResult(found=found, reasons={})
        absent = list(dict.fromkeys(entities[int(at)] for at in missing_M))
        bars = _recent(self.bars_of(absent, now), now, self.pipeline.warmup_bars)
        try:
            rows = self._compute(bars, now)
        except NotApplicableError as error:
            return ReadResult(found=found, reasons=dict.fromkeys(absent, str(error)))
        fresh = rows if self.ttl is None else rows[rows["event_time"] >= pd.Timestamp(now) - self.ttl]
        if len(fresh):
            self._write_back(fresh, now)
        reasons = {entity: self._reason(entity, bars, rows) for entity in absent if entity not in fresh.index}
        return ReadResult(found=_filled(found, entities, missing_M, fresh, self.view.features), reasons=reasons)

    def _compute(self, bars: pd.DataFrame, now: datetime) -> pd.DataFrame:
        """The newest row of each entity that has enough bars, indexed by entity."""
        rows = build_features(
            self.pipeline, bars, producer="read-through", producer_version="", run_id="", written_at=now
        )
        return rows.drop_duplicates("entity_key", keep="last").set_index("entity_key")

    def _write_back(self, rows: pd.DataFrame, now: datetime) -> None:
        event_N, ingest_N = (_utc(rows[name]) for name in _TIMES)
        values_NF = rows[list(self.view.features)].to_numpy(np.float64)
        self.values.write_features(
            self.view, rows.index.tolist(), event_N=event_N, ingest_N=ingest_N, values_NF=values_NF, now=now
        )

    def _reason(self, entity: str, bars: pd.DataFrame, rows: pd.DataFrame) -> str:
        if entity in rows.index:
            return f"its last bar ended {rows.loc[entity, 'event_time']}, more than {self.ttl} ago"
        num_bars = int((bars["entity_key"] == entity).sum())
        return f"{self.view.name} needs {self.pipeline.warmup_bars} bars and {num_bars} are known"


def _recent(bars: pd.DataFrame, now: datetime, num_bars: int) -> pd.DataFrame:
    """Of each entity the last ``num_bars`` bars known at ``now``, each in its latest version."""
    known = bars[(bars["event_time"] <= now) & (bars["ingest_time"] <= now)]
    known = known.sort_values(["entity_key", *_TIMES], kind="stable")
    return known.drop_duplicates(["entity_key", "event_time"], keep="last").groupby("entity_key").tail(num_bars)


def _filled(
    found: Unpacked, entities: Sequence[str], missing_M: np.ndarray, rows: pd.DataFrame, features: tuple[str, ...]
) -> Unpacked:
    """``found`` with the rows of the entities that were missing."""
    place = rows.index.get_indexer([entities[int(at)] for at in missing_M])
    into, place = missing_M[place >= 0], place[place >= 0]
    values_NF, event_N, ingest_N = found.values_NF.copy(), found.event_N.copy(), found.ingest_N.copy()
    values_NF[into] = rows[list(features)].to_numpy(np.float64)[place]
    event_N[into], ingest_N[into] = (_utc(rows[name])[place] for name in _TIMES)
    return replace(found, values_NF=values_NF, event_N=event_N, ingest_N=ingest_N)


def _utc(times: pd.Series) -> np.ndarray:
    return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]")
