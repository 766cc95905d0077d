"""The health of a feature table: is it fresh, full, in range, and alive?

Each check compares the newest ``RECENT`` event times with the ``REFERENCE`` ones before them, as known at ``now``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.store.tables import KEY, PROVENANCE

Check = Literal["freshness", "nulls", "range", "jumps", "stuck", "duplicates"]

RECENT: Final = 21
REFERENCE: Final = 252
LATE_GAPS: Final = 2.0  # newest row older than so many of the longest usual gaps
NULL_RISE: Final = 0.10  # null share above the reference's
RANGES: Final = 3.0  # beyond the reference's extremes by so many of its spans
RANGE_SHARE: Final = 0.01
JUMPS: Final = 20.0  # median absolute changes
JUMP_SHARE: Final = 0.05
STUCK: Final = 0.5  # share of entities that never changed though they did before

# Tensor suffixes: T event times, N entities.


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is not well: ``got`` against ``limit``; ``feature`` is ``*`` for the whole view."""

    view: str
    feature: str
    check: Check
    got: float
    limit: float
    message: str


def check_health(rows: pd.DataFrame, *, view: str, now: datetime) -> list[Finding]:
    """Everything that is not well with a view's rows (a feature table's columns) as known at ``now`` (aware)."""
    known = rows[(rows["event_time"] <= now) & (rows["ingest_time"] <= now)]
    findings = [*_duplicates(known, view)]
    newest = known.sort_values("ingest_time", kind="stable").drop_duplicates(list(KEY[:2]), keep="last")
    if newest.empty:
        return [*findings, _finding(view, "*", "freshness", np.inf, 0.0, "has no row that is known yet")]
    findings += _freshness(newest, view, now)
    for feature in rows.columns.difference([*KEY, *PROVENANCE], sort=False):
        wide = newest.pivot(index="event_time", columns="entity_key", values=feature).sort_index()
        values_TN = wide.to_numpy(np.float64)[-RECENT - REFERENCE :]
        findings += _of_feature(view, str(feature), values_TN[:-RECENT], values_TN[-RECENT:])
    return findings


def _of_feature(
    view: str, feature: str, reference_TN: NDArray[np.float64], recent_TN: NDArray[np.float64]
) -> Iterator[Finding]:
    if len(reference_TN) < RECENT:
        return  # too young to say what is usual
    before, now = np.isnan(reference_TN).mean(), np.isnan(recent_TN).mean()
    if now > before + NULL_RISE:
        message = f"{now:.0%} of the newest {RECENT} event times are null, {before:.0%} before"
        yield _finding(view, feature, "nulls", now, before + NULL_RISE, message)
    usual = reference_TN[np.isfinite(reference_TN)]
    values = recent_TN[np.isfinite(recent_TN)]
    if not (len(usual) and len(values)):
        return
    yield from _range(view, feature, usual, values)
    yield from _jumps(view, feature, reference_TN, recent_TN)
    yield from _stuck(view, feature, reference_TN, recent_TN)


def _range(view: str, feature: str, usual: NDArray[np.float64], values: NDArray[np.float64]) -> Iterator[Finding]:
    low, high = usual.min(), usual.max()
    span = high - low
    outside = float(((values < low - RANGES * span) | (values > high + RANGES * span)).mean())
    if outside > RANGE_SHARE:
        message = f"{outside:.0%} of the newest values lie far outside [{low:.4g}, {high:.4g}], the year before's range"
        yield _finding(view, feature, "range", outside, RANGE_SHARE, message)


def _jumps(
    view: str, feature: str, reference_TN: NDArray[np.float64], recent_TN: NDArray[np.float64]
) -> Iterator[Finding]:
    usual = np.abs(np.diff(reference_TN, axis=0))
    scale = np.nanmedian(usual) if np.isfinite(usual).any() else 0.0
    changes = np.abs(np.diff(recent_TN, axis=0))
    if scale == 0.0 or not np.isfinite(changes).any():
        return
    before, now = (float((part[np.isfinite(part)] > JUMPS * scale).mean()) for part in (usual, changes))
    if now > before + JUMP_SHARE:
        message = f"{now:.0%} of the newest changes exceed {JUMPS:.0f} usual ones, {before:.0%} before"
        yield _finding(view, feature, "jumps", now, before + JUMP_SHARE, message)


def _stuck(
    view: str, feature: str, reference_TN: NDArray[np.float64], recent_TN: NDArray[np.float64]
) -> Iterator[Finding]:
    lively = _spread(reference_TN) > 0
    dead = (_spread(recent_TN) == 0) & (np.isfinite(recent_TN).sum(axis=0) > RECENT // 2)
    share = float(dead[lively].mean()) if lively.any() else 0.0
    if share > STUCK:
        message = f"{share:.0%} of the entities had one value throughout the newest {RECENT} event times"
        yield _finding(view, feature, "stuck", share, STUCK, message)


def _spread(values_TN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Range of each entity's values (N,); 0 where there are none."""
    known = np.isfinite(values_TN)
    high, low = np.where(known, values_TN, -np.inf).max(axis=0), np.where(known, values_TN, np.inf).min(axis=0)
    return np.where(known.any(axis=0), high - low, 0.0)


def _duplicates(known: pd.DataFrame, view: str) -> Iterator[Finding]:
    count = int(known.duplicated(list(KEY)).sum())
    if count:
        yield _finding(view, "*", "duplicates", count, 0, f"{count} rows repeat an (entity, event time, ingest time)")


def _freshness(newest: pd.DataFrame, view: str, now: datetime) -> Iterator[Finding]:
    """The newest event time against the longest gap that was usual: weekends and holidays are gaps too."""
    times = newest["event_time"].drop_duplicates().sort_values().tail(REFERENCE)
    usual = times.diff().max()
    if pd.isna(usual):
        return
    age = pd.Timestamp(now) - times.iloc[-1]
    if age > LATE_GAPS * usual:
        message = f"the newest row is {age} old; no gap of the last {len(times)} event times was longer than {usual}"
        yield _finding(view, "*", "freshness", age / usual, LATE_GAPS, message)


def _finding(view: str, feature: str, check: Check, got: float, limit: float, message: str) -> Finding:
    return Finding(view=view, feature=feature, check=check, got=float(got), limit=float(limit), message=message)
