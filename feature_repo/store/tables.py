"""The feature table as a folder of Parquet parts that are written once and never touched again.

A table's rows have the columns ``entity_key, event_time, ingest_time, <features>, written_at, producer,
producer_version, run_id``, in the order written. ``append_rows`` keeps them unique on the first three; in an export of
Postgres (``record``) a key may come again, completed, and then the last counts. Readers take ``*.parquet``; what a
killed writer leaves behind is called otherwise.

Parts also have ``restates``, the date whose value a row contradicts where it is a restatement that became known by
being written, and ``stated``, the features that a row says itself (null: all). ``read_rows`` leaves them out.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

KEY: Final = ("entity_key", "event_time", "ingest_time")
PROVENANCE: Final = ("written_at", "producer", "producer_version", "run_id")
RESTATES: Final = "restates"
STATED: Final = "stated"
_TEXTS: Final = ("entity_key", "producer", "producer_version", "run_id")
_TIMES: Final = ("event_time", "ingest_time", "written_at", RESTATES)
_TICK: Final = np.timedelta64(1, "us")
_KINDS: Final = (
    dict.fromkeys(_TEXTS, pa.string())
    | dict.fromkeys(_TIMES, pa.timestamp("us", tz="UTC"))
    | {STATED: pa.list_(pa.string())}
)


class TableError(ValueError):
    """Rows that don't fit the table; the message says what, got, allowed and the next step."""


def append_rows(folder: Path, frame: pd.DataFrame, *, may_grow: bool = False) -> int:
    """Append the rows that say something new, as one part; returns how many there were.

    A row whose key and values are there already is no new row, so an append may be repeated. A different value under
    an existing key overwrites nothing: it is a restatement, known now, with its ``written_at`` as ``ingest_time``.
    More exactly: once the new keys are in, an (entity, event time) whose current row differs from the newest one given
    gets a restatement, unless the current row is about a later date than that. Nulls are equal.

    Other features than the table has are refused. Where ``may_grow`` they become columns of it, and what a row has no
    column for is null.

    The part appears whole or not at all, also when the process is killed; one writer at a time, others wait.
    """
    check_rows(frame)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        stored = read_history(folder)
        have = features_of(stored) if len(stored) else []
        features = merged_features(folder, have, features_of(frame), may_grow=may_grow)
        new = new_rows(fitted(stored, features), fitted(frame, features))
        if len(new):
            table = to_table(new)
            write_part(folder, table.schema, [table])
    return len(new)


def read_rows(folder: Path) -> pd.DataFrame:
    """All rows, in the order written; keys and provenance without a row where there is no table yet."""
    return _without_lineage(_read_parts(folder)).to_pandas()


def read_history(folder: Path) -> pd.DataFrame:
    """The rows with ``restates`` and ``stated``."""
    table = _read_parts(folder)
    rows = _without_lineage(table).to_pandas()
    stated = table[STATED].to_pandas() if table[STATED].null_count < len(table) else None
    return rows.assign(**{RESTATES: table[RESTATES].to_pandas(), STATED: stated})


def require_unchanged(folder: Path) -> None:
    """Refuse a table of which a byte changed on the disk, by its pages' checksums; readers don't take the time."""
    for part in parts(folder):
        try:
            pq.ParquetFile(part, page_checksum_verification=True).read()
        except (OSError, pa.ArrowException) as error:
            raise TableError(f"{part} is not what was written ({error}); restore it, or rebuild the folder") from error


def feature_names(folder: Path) -> list[str]:
    """The table's features, in its order; none where there is no table yet."""
    columns = [name for part in parts(folder) for name in pq.read_schema(part).names]
    return features_of(dict.fromkeys(columns))


def parts(folder: Path) -> list[Path]:
    """The table's parts, in the order written."""
    return sorted(folder.glob("*.parquet"))


def features_of(rows: Iterable[str]) -> list[str]:
    """Which of a frame's columns, or of these names, are features."""
    return [str(name) for name in rows if name not in (*KEY, *PROVENANCE, RESTATES, STATED)]


def _read_parts(folder: Path) -> pa.Table:
    tables = [pq.ParquetFile(part).read() for part in parts(folder)]
    early = [table for table in tables if RESTATES not in table.column_names]
    later = [table for table in tables if RESTATES in table.column_names]
    told = [_with_lineage(pa.concat_tables(early, promote_options="default"))] if early else []
    none = table_schema([*KEY, *PROVENANCE, RESTATES, STATED]).empty_table()
    return pa.concat_tables([*told, *later, none], promote_options="default").replace_schema_metadata(None)


def _without_lineage(table: pa.Table) -> pa.Table:
    return table.select([*KEY, *features_of(table.column_names), *PROVENANCE])


def _with_lineage(early: pa.Table) -> pa.Table:
    """Rows of a time when parts did not say what a restatement is about: the newest of its event that was no such."""
    rows = early.select([*KEY, "written_at"]).to_pandas()
    is_known_now = rows["ingest_time"] >= rows["written_at"]
    dates = rows["ingest_time"].mask(is_known_now).groupby([rows["entity_key"], rows["event_time"]]).transform("max")
    restates = pa.array(dates.where(is_known_now), _KINDS[RESTATES], from_pandas=True)
    stated = pa.nulls(len(early), _KINDS[STATED])
    return early.append_column(RESTATES, restates).append_column(STATED, stated)


def check_rows(frame: pd.DataFrame) -> None:
    """Refuse a frame that is no feature rows."""
    missing = [name for name in (*KEY, *PROVENANCE) if name not in frame.columns]
    if missing:
        raise TableError(f"feature rows lack the columns {missing}; a table has {(*KEY, '<features>', *PROVENANCE)}")
    reserved = [name for name in (RESTATES, STATED) if name in frame.columns]
    if reserved:
        raise TableError(f"feature rows have the columns {reserved}, which the table fills in itself; rename them")
    incomplete = [name for name in (*KEY, "written_at") if frame[name].isna().any()]
    if incomplete:
        raise TableError(f"feature rows have nulls in {incomplete}: a row that is never known can't be stored; drop it")


def merged_features(folder: Path, have: Sequence[str], given: Sequence[str], *, may_grow: bool) -> list[str]:
    """The features of the table once rows with those given are in it, or a refusal; it has none where it is empty."""
    only_stored, only_given = (sorted(set(one) - set(other)) for one, other in ((have, given), (given, have)))
    if have and (only_stored or only_given) and not may_grow:
        raise TableError(
            f"the table {folder} has other columns than these rows: only stored {only_stored}, only given "
            f"{only_given}; raise the pipeline's version, which makes a new table"
        )
    return list(dict.fromkeys([*have, *given]))


def fitted(rows: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame:
    """The rows with these features, null where they have no such column, and ``restates``: what the rule looks at."""
    types = dict.fromkeys(features, "float64") | dict.fromkeys(_TIMES, "datetime64[us, UTC]")
    return rows.reindex(columns=[*KEY, *features, *PROVENANCE, RESTATES]).astype(types, copy=False)


def table_schema(columns: list[str]) -> pa.Schema:
    """The Arrow schema of a table with these columns: times, texts, and float64 for every feature."""
    return pa.schema([(name, _KINDS.get(name, pa.float64())) for name in columns])


def to_table(rows: pd.DataFrame) -> pa.Table:
    """Rows as a part has them; where they don't say what they state, they state everything."""
    table = pa.Table.from_pandas(rows, schema=table_schema(list(rows.columns)), preserve_index=False)
    return table if STATED in rows else table.append_column(STATED, pa.nulls(len(rows), _KINDS[STATED]))


def new_rows(stored: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``given`` with new keys, in key order, and the restatements: the rule of ``append_rows``.

    Both have the same columns. Of a key that is stored more than once the last counts.
    """
    given = given.drop_duplicates(list(KEY), keep="last").sort_values(list(KEY))
    if stored.empty:
        return given
    table = pd.concat([stored, given], ignore_index=True)
    entity = pd.factorize(table["entity_key"])[0]
    event, ingest, written, restates = (_microseconds(table[name]) for name in _TIMES)
    origin = np.where(np.isnat(restates), ingest, restates)
    is_given = np.arange(len(table)) >= len(stored)

    order = np.lexsort((is_given, ingest, event, entity))  # of equal keys the stored row comes first
    starts = _changes(entity[order], event[order])
    is_new = is_given.copy()
    is_new[order] &= _changes(entity[order], event[order], ingest[order])
    said = _last_of_each(order, starts, is_given)
    current = _last_of_each(order, starts, ~is_given | is_new)
    said, current = said[said >= 0], current[said >= 0]

    stale = _differ(table, said, current) & (origin[current] <= ingest[said])
    moment = np.maximum(written[said], ingest[current] + _TICK)[stale]
    times = {"ingest_time": moment, RESTATES: ingest[said[stale]]}
    utc = {name: pd.DatetimeIndex(each).tz_localize("UTC") for name, each in times.items()}
    return pd.concat([table[is_new], table.loc[said[stale]].assign(**utc)])


def _microseconds(times: pd.Series) -> NDArray[np.datetime64]:
    return times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]")


def _changes(*sorted_keys: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True where a key differs from the one before; (rows,)."""
    differs = [np.concatenate([[True], key[1:] != key[:-1]]) for key in sorted_keys]
    return np.logical_or.reduce(differs)


def _last_of_each(order: NDArray[np.intp], starts: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Of each run in ``order`` the last row that is wanted, -1 where none is."""
    place = np.where(wanted[order], np.arange(len(order)), -1)
    last = np.maximum.reduceat(place, np.flatnonzero(starts))
    return np.where(last >= 0, order[last], -1)


def _differ(table: pd.DataFrame, rows: NDArray[np.intp], others: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether any feature differs between two lists of rows; nulls are equal."""
    differs = np.zeros(len(rows), dtype=bool)
    for name in features_of(table):
        values = table[name].to_numpy(np.float64)
        one, other = values[rows], values[others]
        differs |= (one != other) & ~(np.isnan(one) & np.isnan(other))
    return differs


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which a killed process lets go of, and clear what a killed writer left."""
    with (folder / "_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.glob("_*.partial"):
            leftover.unlink()
        yield


def write_part(folder: Path, schema: pa.Schema, batches: Iterable[pa.Table]) -> int:
    """Write rows as the next part and return how many there were; the caller is the ``sole_writer``."""
    return write_file(folder, f"part-{len(parts(folder)):06d}.parquet", schema, batches)


def write_file(folder: Path, name: str, schema: pa.Schema, batches: Iterable[pa.Table]) -> int:
    """Write rows as a Parquet file that appears whole and lies on disk when it does; an earlier one is replaced."""
    partial = folder / f"_{Path(name).stem}.partial"
    num_rows = 0
    with partial.open("wb") as file:
        with pq.ParquetWriter(file, schema, use_dictionary=list(_TEXTS), write_page_checksum=True) as writer:
            for batch in batches:
                writer.write_table(batch)
                num_rows += len(batch)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / name)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return num_rows
