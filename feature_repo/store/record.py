"""Postgres as the record of the rows that pipelines compute, and the Parquet folder that is its export.

``record`` decides which rows are new by the rule of ``tables.new_rows`` against the folder, adds those to Postgres by
COPY, and then to the folder. Before it decides it catches up, under the lock that writers take turns by: the folder
gets, as further parts, whatever others wrote through the API, or a killed process had no time to export. So what is
committed stands, however often and wherever the process is killed, and the folder is always a beginning of the record,
which the next ``record`` or ``catch_up`` completes. An empty folder is the shortest beginning: it is written anew.

Each exported part says in its metadata up to which write of the view (``feature_writes``) the folder is complete, so
nothing that was exported is read again. A folder that does not say so, because it is older than the record, or says it
of another database, is compared with Postgres row by row, and Postgres takes in the rows that it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from psycopg.pq import TransactionStatus

from feature_repo.store import postgres
from feature_repo.store.copy_text import REVISION
from feature_repo.store.export import to_arrow
from feature_repo.store.partitions import ensure_months
from feature_repo.store.postgres import Producer, View, Write
from feature_repo.store.tables import (
    KEY,
    PROVENANCE,
    RESTATES,
    STATED,
    TableError,
    check_rows,
    feature_names,
    features_of,
    fitted,
    merged_features,
    new_rows,
    parts,
    read_history,
    sole_writer,
    table_schema,
    to_table,
    write_part,
)
from feature_repo.store.values import statements

_MARK: Final = b"perennial.record"
_OTHERS: Final = (*PROVENANCE, RESTATES, STATED)
_ROWS_AT_ONCE: Final = 50_000


def record(
    connection: psycopg.Connection, view: View, folder: Path, frame: pd.DataFrame, *, may_grow: bool = False
) -> int:
    """Write what is new among a producer's feature rows to Postgres and the folder; returns the number of rows added.

    Parameters
    ----------
    connection
        In autocommit mode and in no transaction, so that what is in the folder is committed.
    view
        Whose rows they are. Views of different markets and intervals need different names.
    folder
        The view's export; no other view's. Rows that Postgres lacks are taken into it.
    frame
        The columns of a feature table, of one producer and run. Numbers only; null or NaN where one is not computable.
    may_grow
        Whether features that the table has not are new columns of it, else they are refused.

    Notes
    -----
    The rule is ``append_rows``'. An event about which others wrote, through the API, is left to the API's own rule,
    which completes partial rows: what they said about a later date stands.
    """
    check_rows(frame)
    if frame.empty:
        return catch_up(connection, view, folder, features_of(frame), may_grow=may_grow)
    producer, written_at = _one_producer(frame)
    _require_finite(frame)
    _require_idle(connection)
    ensure_months(connection, _months(frame))
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        names = _columns(connection, view, folder, features_of(frame), producer.producer, may_grow=may_grow)
        _recognise(connection, view, folder, names)
        with connection.transaction():
            postgres.lock(connection, view)
            _export_news(connection, view, folder, names)
            stored, given = read_history(folder), fitted(frame, names)
            is_shared = _is_shared(stored, given, producer)
            own = _as_recorded(new_rows(fitted(stored, names), given[~is_shared]), names)
            write = _add(connection, view, own, np.zeros(len(own))) if len(own) else None
            shared = statements(given.loc[is_shared, [*KEY, *features_of(frame)]])
            num_shared = postgres.write_bulk(connection, view, producer, lambda: written_at, shared)
        if write:
            _export(folder, view, write, names, [own])
        if num_shared:
            _export_committed(connection, view, folder, names)
    return len(own) + num_shared


def catch_up(
    connection: psycopg.Connection,
    view: View,
    folder: Path,
    features: Sequence[str] | None = None,
    *,
    may_grow: bool = False,
) -> int:
    """Bring the folder up to date with Postgres; returns the number of rows added to it.

    An empty folder gets all rows, with these features or all that the view ever had. Features that a folder has no
    column for are left out, unless it ``may_grow``.
    """
    _require_idle(connection)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        recorded = postgres.read_names(connection, view)
        names = feature_names(folder) or list(recorded if features is None else features)
        names = merged_features(folder, names, recorded, may_grow=True) if may_grow else names
        _recognise(connection, view, folder, names)
        return _export_committed(connection, view, folder, names)


# ---- what may be recorded --------------------------------------------------------------------------------------------


def _one_producer(frame: pd.DataFrame) -> tuple[Producer, datetime]:
    first = frame[list(PROVENANCE)].iloc[0]
    mixed = [name for name in PROVENANCE if not (frame[name] == first[name]).all()]
    if mixed:
        raise TableError(
            f"rows of one write have one {', '.join(PROVENANCE)}; {mixed} differ among these or are null: write each "
            "producer's and run's rows by themselves"
        )
    written_at, *names = first
    return Producer(**dict(zip(PROVENANCE[1:], names, strict=True))), written_at.to_pydatetime()


def _require_finite(frame: pd.DataFrame, remedy: str = "write null there") -> None:
    num_infinite = {name: int(np.isinf(frame[name].to_numpy(np.float64)).sum()) for name in features_of(frame)}
    found = {name: number for name, number in num_infinite.items() if number}
    if found:
        raise TableError(f"features are infinite in so many of {len(frame)} rows: {found}; {remedy}")


def _require_idle(connection: psycopg.Connection) -> None:
    if not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE:
        raise TableError(
            "the record needs a connection in autocommit mode and outside any transaction, or the folder would have "
            "rows that are never committed; use database.connect(dsn, autocommit=True)"
        )


def _columns(
    connection: psycopg.Connection, view: View, folder: Path, given: Sequence[str], producer: str, *, may_grow: bool
) -> list[str]:
    """The features of the folder once the producer's are in it, or a refusal of them."""
    have = feature_names(folder)
    if may_grow:
        return merged_features(folder, [*have, *given], postgres.read_names(connection, view), may_grow=True)
    merged_features(folder, have or postgres.read_names_of(connection, view, producer), given, may_grow=False)
    return have or list(given)


def _is_shared(stored: pd.DataFrame, given: pd.DataFrame, producer: Producer) -> NDArray[np.bool_]:
    """Which of the rows given are about events of which another producer or a partial write said anything."""
    others = stored[(stored["producer"] != producer.producer) | stored[STATED].notna()]
    if others.empty:
        return np.zeros(len(given), dtype=bool)
    events = list(KEY[:2])
    return pd.MultiIndex.from_frame(given[events]).isin(pd.MultiIndex.from_frame(others[events]))


def _months(frame: pd.DataFrame) -> set[tuple[int, int]]:
    months = frame["event_time"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[M]")
    return {(month // 12 + 1970, month % 12 + 1) for month in np.unique(months).astype(int).tolist()}


# ---- into Postgres ---------------------------------------------------------------------------------------------------


def _as_recorded(rows: pd.DataFrame, names: Sequence[str]) -> pa.Table:
    """Rows as they will come back from Postgres: in key order, and the only zero that its JSON knows is positive."""
    ordered = rows.sort_values(list(KEY))
    return to_table(ordered.assign(**{name: ordered[name] + 0.0 for name in names}))


def _add(connection: psycopg.Connection, view: View, rows: pa.Table, revisions: NDArray[Any]) -> Write:
    write = postgres.next_write(connection, view)
    postgres.copy_rows(connection, view, write, rows.append_column(REVISION, pa.array(revisions, pa.int16())))
    postgres.add_names(connection, view, features_of(rows.column_names))
    return write


def _recognise(connection: psycopg.Connection, view: View, folder: Path, names: Sequence[str]) -> None:
    """See to it that the folder's rows are a beginning of the record, and that it says so."""
    mark = _read_mark(folder, view)
    if not parts(folder) or (mark and postgres.has_write(connection, view, mark)):
        return
    ours = read_history(folder)
    ensure_months(connection, _months(ours))
    with connection.transaction():
        postgres.lock(connection, view)
        last = postgres.last_write(connection, view)
        theirs = _recorded(connection, view, last, names)
        ours, theirs = (_numbered(rows, names) for rows in (ours, theirs))
        _require_agreement(folder, view, ours, theirs)
        lacking, missing = (_only(rows, others) for rows, others in ((ours, theirs), (theirs, ours)))
        if len(lacking):
            _require_finite(lacking.drop(columns=[REVISION, *_OTHERS]), f"move {folder} away, and write it anew")
            last = _add(connection, view, to_table(lacking.drop(columns=REVISION)), lacking[REVISION].to_numpy())
    if last:
        _export(folder, view, last, names, [to_table(missing.drop(columns=REVISION))])


def _recorded(connection: psycopg.Connection, view: View, last: Write | None, names: Sequence[str]) -> pd.DataFrame:
    none = table_schema([*KEY, *names, *_OTHERS]).empty_table()
    return pa.concat_tables([none, *_stream(connection, view, -1, last, names)]).to_pandas()


def _numbered(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows by key and revision."""
    said = {REVISION: rows.groupby(list(KEY)).cumcount(), STATED: rows[STATED]}
    return fitted(rows, names).assign(**said).set_index([*KEY, REVISION])


def _only(rows: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The rows that are not among the others, with the columns in a part's order."""
    found = rows[~rows.index.isin(others.index)]
    return found.reset_index()[[*KEY, REVISION, *found.columns]]


def _require_agreement(folder: Path, view: View, ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    both = ours.index.intersection(theirs.index)
    features = [name for name in ours.columns if name not in _OTHERS]
    one, other = (rows.loc[both, features].to_numpy(np.float64) for rows in (ours, theirs))
    num_different = int(((one != other) & ~(np.isnan(one) & np.isnan(other))).any(axis=1).sum())
    if num_different:
        raise TableError(
            f"{num_different} of {len(both)} rows have other values in the folder {folder} than in Postgres' view "
            f"{view.name!r} under the same key; move the folder away, and it is written anew from Postgres"
        )


# ---- out of Postgres -------------------------------------------------------------------------------------------------


def _export_committed(connection: psycopg.Connection, view: View, folder: Path, names: Sequence[str]) -> int:
    with connection.transaction():
        return _export_news(connection, view, folder, names)


def _export_news(connection: psycopg.Connection, view: View, folder: Path, names: Sequence[str]) -> int:
    """Export what was written since the folder's last part; within a transaction, returns the number of rows."""
    mark, last = _read_mark(folder, view), postgres.last_write(connection, view)
    after = mark.number if mark else -1
    if last is None or last.number == after:
        return 0
    return _export(folder, view, last, names, _stream(connection, view, after, last, names))


def _stream(
    connection: psycopg.Connection, view: View, after: int, last: Write | None, names: Sequence[str]
) -> Iterator[pa.Table]:
    until = last.number if last else after
    for rows in postgres.stream_written(connection, view, after=after, until=until, num_at_once=_ROWS_AT_ONCE):
        yield to_arrow(rows, names, _OTHERS, unknown="ignore")


def _export(folder: Path, view: View, last: Write, names: Sequence[str], batches: Iterable[pa.Table]) -> int:
    mark = {"view": view.name, "version": view.version, "number": last.number, "id": last.id}
    schema = table_schema([*KEY, *names, *_OTHERS]).with_metadata({_MARK: json.dumps(mark)})
    return write_part(folder, schema, batches)


def _read_mark(folder: Path, view: View) -> Write | None:
    """The write up to which the folder says it has the view's rows; None where it doesn't say."""
    last = parts(folder)[-1:]
    text = (pq.read_schema(last[0]).metadata or {}).get(_MARK) if last else None
    mark = json.loads(text) if text else {}
    if (mark.get("view"), mark.get("version")) != (view.name, view.version):
        return None
    return Write(number=mark["number"], id=mark["id"])
