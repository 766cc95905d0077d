"""The bitemporal online store: Feast's own interface to the packed values.

Named in ``feature_store.yaml`` as ``online_store: {type: feature_repo.store.online.BitemporalOnlineStore, backend:
embedded, path: ...}``. After ``materialize(start, T)`` a view serves what the offline store's rule says was known at T:
neither a late row nor a restatement of an older one replaces a newer row, in whatever order they come, and no row is
accepted before it is known. Nearly all the time of ``get_online_features`` is Feast's own, spent value by value; a hot
path reads with ``OnlineValues``, which needs no Feast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from feast import Entity, FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.types import Float64
from pydantic import AwareDatetime, PositiveInt, StrictStr, model_validator

from feature_repo.store.online_embedded import EmbeddedBackend
from feature_repo.store.online_redis import connect_redis
from feature_repo.store.online_values import Backend, OnlineValues, OnlineView
from feature_repo.store.packed import OnlineStoreError, TimeArray

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]

_LOCATION: Final = {"embedded": "path", "redis": "url"}


class BitemporalOnlineStoreConfig(FeastConfigBaseModel):
    """``online_store`` in ``feature_store.yaml``.

    ``path`` is the embedded backend's folder (relative to the repository), ``url`` the Redis. ``entry_ttl_seconds``
    makes entries of a cache that its reader fills again: such an entry is forgotten with its times, so a store with it
    must be read through (``store.read_through``). ``as_of`` serves and accepts rows as of that time in place of the
    clock, for replays.
    """

    type: Literal["feature_repo.store.online.BitemporalOnlineStore"] = "feature_repo.store.online.BitemporalOnlineStore"
    backend: Literal["embedded", "redis"] = "embedded"
    path: StrictStr | None = None
    url: StrictStr | None = None
    entry_ttl_seconds: PositiveInt | None = None
    as_of: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_location(self) -> BitemporalOnlineStoreConfig:
        wanted = _LOCATION[self.backend]
        given = [name for name in _LOCATION.values() if getattr(self, name) is not None]
        if given != [wanted]:
            raise ValueError(f"the {self.backend} backend needs {wanted!r} and nothing else, got {given}")
        return self


class BitemporalOnlineStore(OnlineStore):
    """Feast's reads and writes over packed values."""

    _values: OnlineValues | None = None
    _versioned_read_supported = True  # Feast keeps a list of its own stores otherwise

    def values(self, config: RepoConfig) -> OnlineValues:
        """The project's packed values, of which ``read_features`` is the fast read; opened once."""
        if self._values is None:
            self._values = OnlineValues(_open_backend(config), project=config.project)
        return self._values

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Store the rows that no later row supersedes; all are refused where one is not known yet, or never."""
        if not data:
            return
        view = online_view(table, config)
        keys, features, events, ingests = zip(*data, strict=True)
        self.values(config).write_features(
            view,
            [_entity(key, config) for key in keys],
            event_N=_times(events),
            ingest_N=_times(ingests),
            values_NF=np.array([[_number(view, name, row) for name in view.features] for row in features]),
            tails=[_tail(view, row) for row in features] if view.others else (),
            now=_now(config),
        )
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Event time and features of each entity, two Nones where it has none within the view's ttl."""
        view = online_view(table, config)
        entities = [_entity(key, config) for key in entity_keys]
        found = self.values(config).read_features(view, entities, now=_now(config))
        wanted = requested_features if requested_features is not None else [field.name for field in table.features]
        doubles = [(name, view.features.index(name)) for name in wanted if name not in view.others]
        rows: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for at, (event, numbers) in enumerate(zip(found.event_N.tolist(), found.values_NF.tolist(), strict=True)):
            if event is None:
                rows.append((None, None))
                continue
            row = {name: _value(numbers[column]) for name, column in doubles}
            if view.others:
                tail = dict(zip(view.others, RepeatedValue.FromString(found.tails[at]).val, strict=True))
                row |= {name: tail[name] for name in wanted if name in tail}
            rows.append((event.replace(tzinfo=UTC), row))
        return rows

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],  # noqa: ARG002
        entities_to_delete: Sequence[Entity],  # noqa: ARG002
        entities_to_keep: Sequence[Entity],  # noqa: ARG002
        partial: bool,  # noqa: ARG002, FBT001 (Feast's signature)
    ) -> None:
        """Forget the views that are gone; a new view needs nothing but the store itself."""
        values = self.values(config)
        for table in tables_to_delete:
            values.drop_view(online_view(table, config))

    def teardown(
        self,
        config: RepoConfig,
        tables: Sequence[FeatureView],
        entities: Sequence[Entity],  # noqa: ARG002
    ) -> None:
        """Forget the project's views and let go of the backend."""
        values = self.values(config)
        for table in tables:
            values.drop_view(online_view(table, config))
        values.backend.close()
        self._values = None

    async def close(self) -> None:
        """Let go of the backend."""
        if self._values is not None:
            self._values.backend.close()


def online_view(table: FeatureView, config: RepoConfig) -> OnlineView:
    """What the online store needs to know of a Feast view; Feast's version of it is part of its name."""
    return OnlineView(
        name=compute_versioned_name(table, config.registry.enable_online_feature_view_versioning),
        features=tuple(field.name for field in table.features if field.dtype == Float64),
        others=tuple(field.name for field in table.features if field.dtype != Float64),
        ttl=table.ttl or None,
    )


def _open_backend(config: RepoConfig) -> Backend:
    chosen = config.online_store
    entry_ttl = timedelta(seconds=chosen.entry_ttl_seconds) if chosen.entry_ttl_seconds else None
    if chosen.backend == "redis":
        return connect_redis(chosen.url, entry_ttl=entry_ttl)
    return EmbeddedBackend(Path(config.repo_path or ".") / chosen.path, entry_ttl=entry_ttl)


def _now(config: RepoConfig) -> datetime:
    return config.online_store.as_of or datetime.now(UTC)


def _entity(key: EntityKey, config: RepoConfig) -> str | bytes:
    if len(key.join_keys) == 1 and key.entity_values[0].HasField("string_val"):
        return key.entity_values[0].string_val
    return b"k:" + serialize_entity_key(key, config.entity_key_serialization_version)


def _times(times: Sequence[datetime | None]) -> TimeArray:
    """Times in UTC, naive ones being UTC already, as Feast has it."""
    naive = [None if time is None or time != time else _in_utc(time) for time in times]  # NaT is unlike itself
    return np.array(naive, dtype="datetime64[us]")


def _in_utc(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _number(view: OnlineView, name: str, row: dict[str, Value]) -> float:
    value = _given(view, name, row)
    kind = value.WhichOneof("val")
    if kind not in (None, "null_val", "double_val"):
        raise OnlineStoreError(f"{view.name}: feature {name} is a Float64 and was given as {kind}; cast it")
    return value.double_val if kind == "double_val" else math.nan


def _tail(view: OnlineView, row: dict[str, Value]) -> bytes:
    return RepeatedValue(val=[_given(view, name, row) for name in view.others]).SerializeToString()


def _given(view: OnlineView, name: str, row: dict[str, Value]) -> Value:
    if name not in row:
        raise OnlineStoreError(
            f"{view.name}: a row was given without feature {name}; rows are complete, so give null for no value"
        )
    return row[name]


def _value(number: float) -> Value:
    return Value() if math.isnan(number) else Value(double_val=number)
