"""The online values of views: the fast way in and out of the online store, without Feast.

It holds the rule's answer for each (view, entity): of all rows written so far the one with the latest (event time,
ingest time), exact ties going to the last written, whatever order they came in. A row is accepted once it is known,
and served at times at which it is known and not older than the view's ttl; for the answer at an earlier time ask the
offline store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import numpy as np

from feature_repo.store.packed import FloatArray, OnlineStoreError, TimeArray, Unpacked, packing_of

# Array suffixes: N entities, F features.

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_PREFIX: Final = "perennial/1"  # goes up with the packed format, so that two formats never meet under one key


class Backend(Protocol):
    """Where packed values are kept."""

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value under each key, in one round trip."""
        ...

    def write_newer(self, items: Sequence[tuple[bytes, bytes]]) -> int:
        """Store values unless a later (event, ingest) is there, each atomically; how many were stored."""
        ...

    def drop(self, prefix: bytes) -> None:
        """Forget every key that starts with ``prefix``."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineView:
    """What the online store needs to know of a view.

    ``features`` are its float64 features in order, ``others`` those of other types, which only Feast reads; ``ttl`` is
    how old a value may be, inclusive.
    """

    name: str
    features: tuple[str, ...]
    others: tuple[str, ...] = ()
    ttl: timedelta | None = None


class OnlineValues:
    """One project's values in a backend.

    An entity is its key as text, as in a view with one text key; other keys are given as bytes that start with ``k:``.
    """

    def __init__(self, backend: Backend, *, project: str) -> None:
        self.backend = backend
        self._project = project

    def read_features(self, view: OnlineView, entities: Sequence[str | bytes], *, now: datetime) -> Unpacked:
        """The view's features of each entity as of ``now`` (aware), NaN and NaT where there is none."""
        return self.read_views([view], entities, now=now)[0]

    def read_views(
        self, views: Sequence[OnlineView], entities: Sequence[str | bytes], *, now: datetime
    ) -> tuple[Unpacked, ...]:
        """Several views' features of the same entities, in one round trip."""
        keys = [key for view in views for key in self._keys(view, entities)]
        packed = self.backend.read_many(keys)
        moment, size = _micros(now), len(entities)
        return tuple(
            _served(view, packed[at * size : (at + 1) * size], entities, moment) for at, view in enumerate(views)
        )

    def write_features(
        self,
        view: OnlineView,
        entities: Sequence[str | bytes],
        *,
        event_N: TimeArray,
        ingest_N: TimeArray,
        values_NF: FloatArray,
        tails: Sequence[bytes] = (),
        now: datetime,
    ) -> int:
        """Store the rows that no later row supersedes; returns how many those were. May be repeated.

        Raises
        ------
        OnlineStoreError
            When a row lacks a time or is known only after ``now``: then nothing is written.
        """
        event_N, ingest_N = event_N.astype("datetime64[us]"), ingest_N.astype("datetime64[us]")
        _check_known(view, np.maximum(event_N, ingest_N), _micros(now))
        packing = packing_of(view.features, view.others)
        packed = packing.pack(event_N.astype(np.int64), ingest_N.astype(np.int64), values_NF, tails)
        return self.backend.write_newer(list(zip(self._keys(view, entities), packed, strict=True)))

    def drop_view(self, view: OnlineView) -> None:
        """Forget the view's values."""
        self.backend.drop(self._prefix(view))

    def _keys(self, view: OnlineView, entities: Sequence[str | bytes]) -> list[bytes]:
        prefix = self._prefix(view)
        of_text = prefix + b"s:"
        return [of_text + entity.encode() if isinstance(entity, str) else prefix + entity for entity in entities]

    def _prefix(self, view: OnlineView) -> bytes:
        if "/" in self._project or "/" in view.name:
            raise OnlineStoreError(f"project {self._project!r} and view {view.name!r} must be named without '/'")
        return f"{_PREFIX}/{self._project}/{view.name}/".encode()


def _micros(time: datetime) -> np.datetime64:
    if time.tzinfo is None:
        raise OnlineStoreError(f"the time {time} has no time zone; give an aware time, such as one in UTC")
    return np.datetime64((time - _EPOCH) // _MICROSECOND, "us")


def _served(
    view: OnlineView, packed: Sequence[bytes | None], entities: Sequence[object], now: np.datetime64
) -> Unpacked:
    """What may be served at ``now``; comparisons with NaT are false, so a missing value stays one."""
    found = packing_of(view.features, view.others).unpack(packed, entities)
    withheld_N = (found.event_N > now) | (found.ingest_N > now)
    if view.ttl is not None:
        withheld_N |= found.event_N < now - np.timedelta64(view.ttl)
    if withheld_N.any():
        found.values_NF[withheld_N] = np.nan
        found.event_N[withheld_N] = found.ingest_N[withheld_N] = np.datetime64("NaT")
    return found


def _check_known(view: OnlineView, known_N: TimeArray, now: np.datetime64) -> None:
    num_never, num_later = int(np.isnat(known_N).sum()), int((known_N > now).sum())
    if num_never:
        raise OnlineStoreError(
            f"{num_never} of {len(known_N)} rows for {view.name} lack an event or ingest time, so nothing says when "
            "they became known; a view's source needs created_timestamp_column='ingest_time'"
        )
    if num_later:
        raise OnlineStoreError(
            f"{num_later} of {len(known_N)} rows for {view.name} become known only after {now} UTC, the last at "
            f"{known_N.max()}; written now they would replace the current values: write them when they are known"
        )
