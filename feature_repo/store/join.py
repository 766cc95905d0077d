"""The knowledge-time rule, in its fast form: which row is the answer for an entity at an as-of time.

The rule. At as-of time T, among an entity's rows with ``event_time <= T`` and ``ingest_time <= T`` (and
``event_time >= T - ttl``), the answer is the row with the latest ``event_time``, among those the latest
``ingest_time``, among those the one written last.

The fast form. A row becomes known at ``max(event_time, ingest_time)``. In order of knowledge the answer only changes
when a row's (event_time, ingest_time) reaches a new maximum; every other row is superseded before it is known and never
answers. So: sort by knowledge, keep the rows that set the maximum, and look T up among them. The ttl is checked on the
row found: it has the latest event time, so where it is too old every other row is too.

Times are int64 microseconds since 1970 UTC, ``NEVER`` stands for null. Entities are dense codes 0 .. num_entities-1, a
negative code matches nothing. Array suffixes: N feature rows, K rows that were ever the answer, E entities, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

NEVER = int(np.iinfo(np.int64).min)
NO_ROW = -1


@njit(cache=True, nogil=True)
def _sort_block(known: IntArray, row: IntArray) -> None:
    """Sort both by ``known``, in place: a stable merge sort from the bottom up that passes over what is in order.

    Written out because rows come nearly sorted, and because numba takes ten seconds to compile its own argsort.
    """
    spare_known, spare_row = known[:0], row[:0]
    width = 1
    while width < known.size:
        for left in range(0, known.size - width, 2 * width):
            middle, right = left + width, min(left + 2 * width, known.size)
            if known[middle - 1] <= known[middle]:
                continue
            if spare_known.size < width:
                spare_known, spare_row = np.empty_like(known), np.empty_like(row)
            for at in range(width):
                spare_known[at], spare_row[at] = known[left + at], row[left + at]
            taken = 0
            for out in range(left, right):
                if taken == width:
                    break
                if middle < right and known[middle] < spare_known[taken]:
                    known[out], row[out] = known[middle], row[middle]
                    middle += 1
                else:
                    known[out], row[out] = spare_known[taken], spare_row[taken]
                    taken += 1
        width *= 2


@njit(cache=True, nogil=True)
def _by_entity(
    entity_N: IntArray, event_N: IntArray, ingest_N: IntArray, num_entities: int
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Rows that can ever be known and their times, each entity's in a block of its own, in written order."""
    start_E = np.zeros(num_entities + 1, np.int64)
    for n in range(entity_N.size):
        if entity_N[n] >= 0 and event_N[n] != NEVER and ingest_N[n] != NEVER:
            start_E[entity_N[n] + 1] += 1
    for e in range(num_entities):
        start_E[e + 1] += start_E[e]
    fill_E = start_E.copy()
    row, event, ingest = (
        np.empty(start_E[-1], np.int64),
        np.empty(start_E[-1], np.int64),
        np.empty(start_E[-1], np.int64),
    )
    for n in range(entity_N.size):
        if entity_N[n] >= 0 and event_N[n] != NEVER and ingest_N[n] != NEVER:
            at = fill_E[entity_N[n]]
            row[at], event[at], ingest[at] = n, event_N[n], ingest_N[n]
            fill_E[entity_N[n]] = at + 1
    return start_E, row, event, ingest


@njit(cache=True, nogil=True)
def _keep_answers(start_E: IntArray, row: IntArray, event: IntArray, ingest: IntArray) -> tuple[IntArray, IntArray]:
    """Order each block by knowledge and drop the rows that never answer; ties stay in written order.

    Such a row is below the running maximum of (event, ingest), or replaced at the same moment. The answers are left,
    one block after the other, in the front of ``row`` and ``event``; the moments replace the front of ``ingest``.
    Everything goes on within one entity's block, which fits into the processor's cache where the table does not.
    """
    longest = 0
    for e in range(start_E.size - 1):
        longest = max(longest, start_E[e + 1] - start_E[e])
    known_B, at_B = np.empty(longest, np.int64), np.empty(longest, np.int64)
    row_B, event_B, ingest_B = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    kept_E = np.zeros_like(start_E)
    kept = 0
    for e in range(start_E.size - 1):
        size = start_E[e + 1] - start_E[e]
        for b in range(size):
            n = start_E[e] + b
            row_B[b], event_B[b], ingest_B[b] = row[n], event[n], ingest[n]
            known_B[b], at_B[b] = max(event[n], ingest[n]), b
        _sort_block(known_B[:size], at_B[:size])
        first, top = kept, NO_ROW
        for k in range(size):
            b = at_B[k]
            if top != NO_ROW and (
                event_B[b] < event_B[top] or (event_B[b] == event_B[top] and ingest_B[b] < ingest_B[top])
            ):
                continue
            if kept > first and ingest[kept - 1] == known_B[k]:
                kept -= 1
            row[kept], event[kept], ingest[kept] = row_B[b], event_B[b], known_B[k]
            top = b
            kept += 1
        kept_E[e + 1] = kept
    return kept_E, ingest[:kept]


@njit(cache=True, nogil=True)
def _queries_by_entity(entity_Q: IntArray, time_Q: IntArray, num_entities: int) -> tuple[IntArray, IntArray, IntArray]:
    """Where each entity's queries stop, and positions and times of those that can have an answer."""
    stop_E = np.zeros(num_entities + 1, np.int64)
    for q in range(entity_Q.size):
        if 0 <= entity_Q[q] < num_entities and time_Q[q] != NEVER:
            stop_E[entity_Q[q] + 1] += 1
    for e in range(num_entities):
        stop_E[e + 1] += stop_E[e]
    query, time = np.empty(stop_E[-1], np.int64), np.empty(stop_E[-1], np.int64)
    for q in range(entity_Q.size):
        if 0 <= entity_Q[q] < num_entities and time_Q[q] != NEVER:
            at = stop_E[entity_Q[q]]  # where the entity's block starts, until it is filled
            query[at], time[at] = q, time_Q[q]
            stop_E[entity_Q[q]] = at + 1
    return stop_E, query, time


@njit(cache=True, nogil=True)
def _look_up(
    start_E: IntArray,
    row_K: IntArray,
    known_K: IntArray,
    event_K: IntArray,
    entity_Q: IntArray,
    time_Q: IntArray,
    ttl: int,
) -> IntArray:
    """The answer's row of each query, by binary search in its entity's block, entity by entity."""
    num_entities = start_E.size - 1
    stop_E, query, time = _queries_by_entity(entity_Q, time_Q, num_entities)
    found_Q = np.full(entity_Q.size, NO_ROW, np.int64)
    at = 0
    for e in range(num_entities):
        first, last = start_E[e], start_E[e + 1]
        while at < stop_E[e]:
            low, high = first, last
            while low < high:
                middle = (low + high) >> 1
                if known_K[middle] <= time[at]:
                    low = middle + 1
                else:
                    high = middle
            if low > first and (ttl < 0 or time[at] - event_K[low - 1] <= ttl):
                found_Q[query[at]] = row_K[low - 1]
            at += 1
    return found_Q


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Every row that was the answer at some time: by entity, and within it by the moment it became the answer.

    ``start_E`` (num_entities + 1,) delimits the entities in ``row_K`` (index of the row), ``known_K`` (the moment) and
    ``event_K`` (its event time).
    """

    start_E: IntArray
    row_K: IntArray
    known_K: IntArray
    event_K: IntArray

    def as_of(self, entity_Q: IntArray, time_Q: IntArray, *, ttl: int | None = None) -> IntArray:
        """Row of the answer for each (entity, as-of time), ``NO_ROW`` where there is none: (Q,).

        ``ttl`` is in microseconds and inclusive; ``None`` means rows never grow too old. Uses what was known up to
        ``time_Q`` inclusive.
        """
        limit = -1 if ttl is None else ttl
        index = (self.start_E, self.row_K, self.known_K, self.event_K)
        return _look_up(*index, _frozen(entity_Q), _frozen(time_Q), limit)

    def at(self, time: int) -> IntArray:
        """Row of each entity's answer at ``time``, ``NO_ROW`` where there is none: (E,)."""
        num_entities = self.start_E.size - 1
        return self.as_of(np.arange(num_entities), np.full(num_entities, time, np.int64))

    def between(self, after: int, until: int) -> IntArray:
        """Positions in ``row_K`` of the rows that became the answer in ``(after, until]``."""
        return np.flatnonzero((self.known_K > after) & (self.known_K <= until))


def find_answers(entity_N: IntArray, event_N: IntArray, ingest_N: IntArray, num_entities: int) -> Answers:
    """Apply the rule once to all rows, given in the order they were written; a null time is never known.

    Cost is one sort and one pass, whatever the history.
    """
    start_E, row, event, ingest = _by_entity(_frozen(entity_N), _frozen(event_N), _frozen(ingest_N), num_entities)
    start_E, known_K = _keep_answers(start_E, row, event, ingest)
    return Answers(start_E=start_E, row_K=row[: known_K.size], known_K=known_K, event_K=event[: known_K.size])


def _frozen(array: IntArray) -> IntArray:
    """A read-only view: numba compiles a kernel anew for each mix of writable and read-only (Arrow's) arrays."""
    view = np.ascontiguousarray(array, np.int64).view()
    view.setflags(write=False)
    return view
