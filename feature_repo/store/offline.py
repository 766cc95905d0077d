"""The bitemporal offline store: Feast's own interface, with the knowledge-time rule of ``join`` forced.

Named in ``feature_store.yaml`` as ``offline_store: {type: feature_repo.store.offline.BitemporalOfflineStore}``.
Whatever ``filter_by_created_timestamp`` says, a row counts from the moment it was both true and known, and a view whose
source has no ``created_timestamp_column`` (our ``ingest_time``) is refused: nothing would say when its rows were known.

It stands on ``OfflineStore`` itself rather than on Feast's duckdb store, whose writer puts new rows before the old ones
and so would turn exact ties around.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import EntityTimestampInferenceException, SavedDatasetLocationAlreadyExists
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL as EVENT_TIMESTAMP
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import _parse_feature_ref, compute_non_entity_date_range
from pydantic import PositiveInt, StrictStr, model_validator

from feature_repo.store.engine import Engine, Reader
from feature_repo.store.join import NEVER, IntArray
from feature_repo.store.parquet import History, OfflineStoreError, micros

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULLABLE: dict[pa.DataType, Any] = {
    pa.bool_(): pd.BooleanDtype(),
    **{getattr(pa, kind.lower())(): getattr(pd, f"{kind}Dtype")() for kind in ("Int8", "Int16", "Int32", "Int64")},
    **{getattr(pa, kind.lower())(): getattr(pd, f"{kind}Dtype")() for kind in ("UInt8", "UInt16", "UInt32", "UInt64")},
}


class BitemporalOfflineStoreConfig(FeastConfigBaseModel):
    """``offline_store`` in ``feature_store.yaml``.

    ``written_before`` leaves out rows that were written later, whatever ``ingest_time`` a backfill gave them: what a
    snapshot or a certificate rebuilds is what the tables held then. Naive is UTC.

    The answers are the same for every ``engine`` and ``partitions``; those are about memory and machines. With one
    partition everything is read at once, which is fastest. With more, entities are dealt out to them, keys and times
    are read once a partition, and memory is for one partition's keys and times, a row group of three columns and the
    result. ``local`` does them one after the other; ``ray`` does them as tasks, which need this package and the same
    files wherever they run. Ray is the one this process is connected to already, else the one at ``ray_address``
    (``auto``, ``ray://host:10001``), else one of this machine that lives for the retrieval.
    """

    type: StrictStr = "feature_repo.store.offline.BitemporalOfflineStore"
    written_before: datetime | None = None
    engine: Literal["local", "ray"] = "local"
    partitions: PositiveInt = 1
    ray_address: StrictStr | None = None

    @model_validator(mode="after")
    def _an_address_is_used(self) -> BitemporalOfflineStoreConfig:
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError(f"ray_address is for engine: ray, got engine: {self.engine}; set that or leave it out")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class _View:
    """What one feature view contributes to a retrieval.

    ``keys`` are the join keys as entity_df calls them, in the order of ``history.keys``; ``features`` maps output
    columns to columns of the files; ``ttl`` is in microseconds.
    """

    history: History
    keys: tuple[str, ...]
    features: dict[str, str]
    ttl: int | None


class BitemporalOfflineStore(OfflineStore):
    """Point-in-time retrieval and materialisation over Parquet, by one rule."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,  # noqa: FBT001, FBT002 (Feast's signature)
        filter_by_created_timestamp: bool = True,  # noqa: ARG004, FBT001, FBT002 (forced)
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Features of each row of ``entity_df`` as they were known at its ``event_timestamp``, in its row order.

        Without ``entity_df`` the rows are each entity at each moment in [start_date, end_date] at which what is known
        of it changed. ``entity_df`` may be SQL for DuckDB, whose relative paths start at the repository.
        """
        repo_path = Path(config.repo_path or ".")
        engine = _engine(config)
        views = [_plan(view, feature_refs, config, full=full_feature_names) for view in feature_views]
        if entity_df is None:
            entities = _moments(engine, views, *compute_non_entity_date_range(feature_views, start_date, end_date))
        elif isinstance(entity_df, str):
            entities = _query(entity_df, repo_path)
        else:
            entities = _from_pandas(entity_df)
        _check_columns(entities, views)
        as_of = _time_column(entities)
        time_Q = micros(entities[as_of], name=f"entity_df.{as_of}", up=False)
        return BitemporalRetrievalJob(
            compute=partial(_join, engine, entities, time_Q, views),
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=_metadata([name for name in entities.column_names if name != as_of], time_Q, feature_refs),
            repo_path=repo_path,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Each entity's answer at ``end_date`` where it became so after ``start_date``.

        Older answers were written by an earlier materialisation; rows known after ``end_date`` are held back.
        """
        history = _history(data_source, join_key_columns, timestamp_field, created_timestamp_column, config)
        compute = partial(_pull, _engine(config), history, feature_name_columns, start_date, end_date, latest=True)
        return BitemporalRetrievalJob(compute=compute, repo_path=Path(config.repo_path or "."))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row that became its entity's answer in (start_date, end_date].

        Rows that were superseded before they were known are left out: written later, they would replace a newer
        value. A table that is not a feature view's (a saved dataset, a log: Feast names no created column) is read
        plainly, by event time in [start_date, end_date].
        """
        if created_timestamp_column is None:
            path = _path(data_source, config)
            columns = [*join_key_columns, *feature_name_columns, timestamp_field]
            compute = partial(_read_range, path, columns, timestamp_field, start_date, end_date)
        else:
            history = _history(data_source, join_key_columns, timestamp_field, created_timestamp_column, config)
            compute = partial(_pull, _engine(config), history, feature_name_columns, start_date, end_date, latest=False)
        return BitemporalRetrievalJob(compute=compute, repo_path=Path(config.repo_path or "."))

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,  # noqa: ARG004
        feature_view: FeatureView,
        table: pa.Table,  # noqa: ARG004
        progress: Callable[[int], Any] | None,  # noqa: ARG004
    ) -> None:
        """Refused: a push would append rows without completing or versioning them."""
        raise OfflineStoreError(
            f"{feature_view.name}: this store does not write feature rows pushed through Feast; "
            f"write them with feature_repo.store.api, which keeps the history"
        )


class BitemporalRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for."""

    def __init__(
        self,
        *,
        compute: Callable[[], pa.Table],
        repo_path: Path,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._compute = compute
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """The result for pandas; integers and booleans with nulls keep their exact values in nullable columns."""
        return _to_pandas(self.to_arrow(validation_reference=validation_reference, timeout=timeout))

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002
        return _to_pandas(self._compute())

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        return self._compute()

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,  # noqa: FBT001, FBT002 (Feast's signature)
        timeout: int | None = None,
    ) -> None:
        """Write the result, on-demand features included, as one Parquet file; readers see all of it or nothing."""
        path = self._repo_path / _uri(storage.to_data_source())
        if path.is_dir():
            raise OfflineStoreError(f"{path} is a directory; name a file to persist to")
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_name(f".{path.name}.{os.getpid()}")
        pq.write_table(self.to_arrow(timeout=timeout), partial_path)
        partial_path.replace(path)


# What is asked for.


def _plan(view: FeatureView, feature_refs: Sequence[str], config: RepoConfig, *, full: bool) -> _View:
    """Read a view's definition: names in the files are those before its field mapping."""
    source = view.batch_source
    if source is None:
        raise OfflineStoreError(f"{view.name} has no batch source, so it has no history; give it a Parquet FileSource")
    in_files = {new: old for old, new in source.field_mapping.items()}
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    wanted = [feature for name, feature in map(_split_ref, feature_refs) if name == view.projection.name_to_use()]
    prefix = f"{view.projection.name_alias or view.name}__" if full else ""
    return _View(
        history=History(
            name=view.name,
            path=_path(source, config),
            keys=tuple(in_files.get(key, key) for key in keys),
            event_time=in_files.get(source.timestamp_field, source.timestamp_field),
            ingest_time=_knowledge_column(
                view.name, in_files.get(source.created_timestamp_column, source.created_timestamp_column)
            ),
            written_before=_written_before(config),
        ),
        keys=tuple(view.projection.join_key_map.get(key, key) for key in keys),
        features={f"{prefix}{feature}": in_files.get(feature, feature) for feature in wanted},
        ttl=view.ttl // timedelta(microseconds=1) if view.ttl else None,
    )


def _split_ref(ref: str) -> tuple[str, str]:
    """``view[@vN]:feature`` as (the view's name in a projection, feature)."""
    view, version, feature = _parse_feature_ref(ref)
    return (view if version is None else f"{view}@v{version}"), feature


def _knowledge_column(name: str, column: str | None) -> str:
    if not column:
        raise OfflineStoreError(
            f"{name}: its source has no created_timestamp_column, so nothing says when its rows became known and "
            f"restatements would leak; set FileSource(created_timestamp_column='ingest_time')"
        )
    return column


def _uri(source: DataSource) -> str:
    """Where a source's Parquet is; only local Parquet is read."""
    if not isinstance(source, FileSource) or not isinstance(source.file_format, ParquetFormat | None):
        raise OfflineStoreError(
            f"{source.name} is a {type(source).__name__}; this store reads Parquet through a FileSource"
        )
    if "://" in source.path:
        raise OfflineStoreError(f"{source.path} is remote; this store reads local paths: copy or mount it")
    return source.path


def _path(source: DataSource, config: RepoConfig) -> Path:
    return Path(config.repo_path or ".").absolute() / _uri(source)


def _history(
    source: DataSource, keys: Sequence[str], event_time: str, ingest_time: str | None, config: RepoConfig
) -> History:
    """The history behind a materialisation; Feast has already undone the field mapping."""
    column = _knowledge_column(source.name, ingest_time)
    return History(
        name=source.name,
        path=_path(source, config),
        keys=tuple(keys),
        event_time=event_time,
        ingest_time=column,
        written_before=_written_before(config),
    )


def _written_before(config: RepoConfig) -> int | None:
    limit: datetime | None = config.offline_store.written_before
    return None if limit is None else _micro(limit)


def _engine(config: RepoConfig) -> Engine:
    settings: BitemporalOfflineStoreConfig = config.offline_store
    return Engine(kind=settings.engine, partitions=settings.partitions, ray_address=settings.ray_address)


# The rows that are asked about.


def _from_pandas(entity_df: pd.DataFrame) -> pa.Table:
    """``entity_df`` as a table; times given as text or objects are parsed, naive ones as UTC."""
    if EVENT_TIMESTAMP in entity_df and not pd.api.types.is_datetime64_any_dtype(entity_df[EVENT_TIMESTAMP]):
        entity_df = entity_df.assign(**{EVENT_TIMESTAMP: pd.to_datetime(entity_df[EVENT_TIMESTAMP], utc=True)})
    return pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None)


def _query(sql: str, repo_path: Path) -> pa.Table:
    """The table that DuckDB makes of ``sql``: naive times are UTC there too, not local."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET file_search_path = ?", [str(repo_path)])
        return connection.sql(sql).to_arrow_table()


def _moments(engine: Engine, views: Sequence[_View], start: datetime, end: datetime) -> pa.Table:
    """Each entity at each moment in [start, end] at which one of the views' answer for it changed."""
    keys = {tuple(sorted(view.keys)) for view in views}
    if len(keys) != 1:
        raise OfflineStoreError(
            f"without entity_df all views must have the same join keys, got {sorted(keys)}; "
            f"pass an entity_df or ask for the views one by one"
        )
    names = list(views[0].keys)
    with engine.open() as reader:
        changes = [_changes(reader, view, _micro(start) - 1, _micro(end)) for view in views]
    tables = [table.select([*names, EVENT_TIMESTAMP]) for table in changes]
    moments = pa.concat_tables(tables, promote_options="permissive").group_by([*names, EVENT_TIMESTAMP]).aggregate([])
    return moments.sort_by([(name, "ascending") for name in [EVENT_TIMESTAMP, *names]])


def _changes(reader: Reader, view: _View, after: int, until: int) -> pa.Table:
    """Keys and moments, in ``(after, until]``, of a view's answers."""
    dataset = view.history.open()
    view.history.require(dataset, [])
    changes = reader.changes(view.history, dataset, after, until, latest=False)
    keys = reader.gather(dataset, view.history.keys, lambda: changes.row)
    moments = pa.array(changes.known).cast(pa.timestamp("us", "UTC"))
    return pa.table([*keys.columns, moments], names=[*view.keys, EVENT_TIMESTAMP])


def _time_column(entities: pa.Table) -> str:
    """``event_timestamp``, or else the only column of times."""
    if EVENT_TIMESTAMP in entities.column_names:
        return EVENT_TIMESTAMP
    times = [field.name for field in entities.schema if pa.types.is_timestamp(field.type)]
    if len(times) != 1:
        raise EntityTimestampInferenceException(EVENT_TIMESTAMP)
    return times[0]


def _check_columns(entities: pa.Table, views: Sequence[_View]) -> None:
    """Refuse missing join keys, and features that would share a name with a column already there."""
    taken = list(entities.column_names)
    for view in views:
        missing = sorted(set(view.keys) - set(taken))
        if missing:
            raise OfflineStoreError(
                f"{view.history.name}: entity_df has no join key {', '.join(missing)}; it has {', '.join(taken)}"
            )
        clash = sorted(set(view.features) & set(taken))
        if clash:
            raise OfflineStoreError(
                f"{view.history.name}: {', '.join(clash)} would appear twice in the result; rename the column of "
                f"entity_df or pass full_feature_names=True"
            )
        taken += view.features


def _metadata(keys: list[str], time_Q: IntArray, feature_refs: list[str]) -> RetrievalMetadata:
    times = time_Q[time_Q != NEVER]
    span = [_EPOCH + timedelta(microseconds=int(time)) for time in (times.min(), times.max())] if len(times) else []
    return RetrievalMetadata(feature_refs, keys, *span)


# The answers.


def _join(engine: Engine, entities: pa.Table, time_Q: IntArray, views: Sequence[_View]) -> pa.Table:
    """``entities`` with each view's features as known at ``time_Q``."""
    with engine.open() as reader:
        for view in views:
            dataset = view.history.open()
            columns, queries = list(view.features.values()), entities.select(list(view.keys))
            view.history.require(dataset, columns)
            find = partial(reader.find, view.history, dataset, queries, time_Q, view.ttl)
            found = reader.gather(dataset, columns, find)
            for name, column in zip(view.features, found.columns, strict=True):
                entities = entities.append_column(name, column)
    return entities


def _pull(
    engine: Engine,
    history: History,
    features: Sequence[str],
    start: datetime | None,
    end: datetime | None,
    *,
    latest: bool,
) -> pa.Table:
    """Rows that became the answer in (start, end], in written order; ``latest`` keeps each entity's last."""
    dataset = history.open()
    columns = list(features) or [name for name in dataset.schema.names if name not in history.keys]
    columns = list(dict.fromkeys([*history.keys, *columns, history.event_time, history.ingest_time]))
    history.require(dataset, columns)
    after, until = _micro(start, np.iinfo(np.int64).min), _micro(end, np.iinfo(np.int64).max)
    with engine.open() as reader:
        changes = reader.changes(history, dataset, after, until, latest=latest)
        table = reader.gather(dataset, columns, lambda: np.sort(changes.row))
    if history.keys:
        return table
    return table.append_column(DUMMY_ENTITY_ID, pa.array([""] * len(table)))  # Feast's key of a view without entities


def _read_range(
    path: Path, columns: Sequence[str], time: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    """Rows of a plain table with ``time`` in [start, end]."""
    dataset = ds.dataset(path, format="parquet", partitioning="hive" if path.is_dir() else None)
    table = dataset.to_table(columns=list(dict.fromkeys(columns)))
    times = micros(table[time], name=time, up=False)
    low, high = _micro(start, np.iinfo(np.int64).min + 1), _micro(end, np.iinfo(np.int64).max)
    return table.filter(pa.array((times >= low) & (times <= high)))


def _micro(time: datetime | None, otherwise: int = 0) -> int:
    """Microseconds since 1970 UTC; naive is UTC."""
    if time is None:
        return otherwise
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and column.type in _NULLABLE:
            frame[name] = column.to_pandas(types_mapper=_NULLABLE.get)
    return frame
