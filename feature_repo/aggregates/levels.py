"""For every bar of an entity, the newest row of another table, in two times.

The rule. At as-of time T the answer of a bar that ends at b <= T is, among the rows known at T (event and ingest time
up to T) with ``b - offset - max_age <= event_time <= b - offset``, the one with the latest event time, among those the
latest ingest time, among those the one written last. A row of nulls is an answer too: it withdraws what was said.

The fast form asks ``store.join`` twice. What is known when the bar ends is one ordinary as-of question, of rows dated
``offset`` later. After that only rows can matter that become known later still: a bar with those rows and its first
answer is an entity of its own, whose answers over time are the bar's versions.

Times are int64 microseconds since 1970 UTC, ``NEVER`` stands for null, and so are lengths of time. Array suffixes:
N rows of one entity in the order written, K its bars, V versions (what a bar says from a moment on), P (bar, row).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import pandas as pd

from feature_repo.store.join import NEVER, NO_ROW, IntArray, find_answers

_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Versions:
    """What bars say over time: (V,) each, by bar and then by moment.

    ``bar_V`` is the bar's place, ``row_V`` the row that answers for it from ``known_V`` on, until the bar's next
    version. A bar has none before anything is known for it.
    """

    bar_V: IntArray
    row_V: IntArray
    known_V: IntArray


def micros(times: pd.Series) -> IntArray:
    """Aware times as microseconds since 1970 UTC, null as ``NEVER``: (rows,)."""
    return times.to_numpy(dtype="datetime64[us]").astype(np.int64)


def utc(times: IntArray) -> pd.DatetimeIndex:
    """Microseconds since 1970 UTC as aware times."""
    return pd.DatetimeIndex(times.astype("datetime64[us]")).tz_localize("UTC")


def newest_rows(
    event_N: IntArray, ingest_N: IntArray, end_K: IntArray, *, offset: timedelta, max_age: timedelta
) -> Versions:
    """Apply the rule of this module to one entity's rows and its bars' ends (rising)."""
    row_N = np.flatnonzero((event_N != NEVER) & (ingest_N != NEVER))
    event_N, ingest_N = event_N[row_N], ingest_N[row_N]
    due_N = event_N + offset // _TICK
    answers = find_answers(np.zeros_like(due_N), due_N, ingest_N, 1)
    first_K = answers.as_of(np.zeros_like(end_K), end_K, ttl=max_age // _TICK)
    late_P, row_P = late_rows(due_N, ingest_N, end_K, max_age=max_age)
    answered = np.flatnonzero(first_K != NO_ROW)
    bar_P = np.concatenate([answered, late_P])
    row_P = np.concatenate([first_K[answered], row_P])
    of_bar = find_answers(bar_P, event_N[row_P], ingest_N[row_P], len(end_K))
    return Versions(
        bar_V=np.repeat(np.arange(len(end_K)), np.diff(of_bar.start_E)),
        row_V=row_N[row_P[of_bar.row_K]],
        known_V=of_bar.known_K,
    )


def late_rows(
    due_N: IntArray, known_N: IntArray, end_K: IntArray, *, max_age: timedelta | None
) -> tuple[IntArray, IntArray]:
    """Every (bar, row) where the row was due by the bar's end, at most ``max_age`` before, and known only after it."""
    until_N = known_N if max_age is None else np.minimum(known_N, due_N + max_age // _TICK + 1)
    first_N, stop_N = np.searchsorted(end_K, due_N), np.searchsorted(end_K, until_N)
    num_N = np.maximum(stop_N - first_N, 0)
    row_P = np.repeat(np.arange(len(due_N)), num_N)
    place_P = np.arange(len(row_P)) - np.repeat(np.cumsum(num_N) - num_N, num_N)
    return first_N[row_P] + place_P, row_P
