"""The embedded feature table: a folder of Parquet parts that are written once and never touched again.

A table's rows have the columns ``entity_key, event_time, ingest_time, <features>, written_at, producer,
producer_version, run_id`` and are unique on the first three. Readers take ``*.parquet``; what a killed writer leaves
behind is called otherwise.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
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
_TEXTS: Final = ("entity_key", "producer", "producer_version", "run_id")
_TIMES: Final = ("event_time", "ingest_time", "written_at")
_TICK: Final = np.timedelta64(1, "us")


class TableError(ValueError):
    """Rows that don't fit the table; the message says what, got, allowed and the next step."""


def append_rows(folder: Path, frame: pd.DataFrame) -> int:
    """Append the rows that say something new, as one part; returns how many there were.

    A row whose key and values are there already is no new row, so an append may be repeated. A different value under
    an existing key overwrites nothing: it is a restatement, known now, with its ``written_at`` as ``ingest_time``.
    More exactly: once the new keys are in, an (entity, event time) whose current row differs from the newest one given
    gets a restatement, unless the current row is a later one that came from the data itself. Nulls are equal.

    The part appears whole or not at all, also when the process is killed; one writer at a time, others wait.
    """
    _check(frame)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        stored = read_rows(folder)
        if len(stored) and set(stored.columns) != set(frame.columns):
            raise TableError(_schema_message(folder, stored, frame))
        new = _new_rows(stored, _typed(frame))
        if len(new):
            _write_part(folder, new)
    return len(new)


def read_rows(folder: Path) -> pd.DataFrame:
    """All rows, in the order written; keys and provenance without a row where there is no table yet."""
    parts = sorted(folder.glob("*.parquet"))
    if not parts:
        return table_schema([*KEY, *PROVENANCE]).empty_table().to_pandas()
    return pa.concat_tables([pq.ParquetFile(part).read() for part in parts]).to_pandas()


def feature_names(folder: Path) -> list[str]:
    """The table's features, in its order; none where there is no table yet."""
    first = next(iter(sorted(folder.glob("*.parquet"))), None)
    columns = [] if first is None else pq.read_schema(first).names
    return [name for name in columns if name not in (*KEY, *PROVENANCE)]


def _check(frame: pd.DataFrame) -> None:
    missing = [name for name in (*KEY, *PROVENANCE) if name not in frame.columns]
    if missing:
        raise TableError(f"feature rows lack the columns {missing}; a table has {(*KEY, '<features>', *PROVENANCE)}")
    incomplete = [name for name in (*KEY, "written_at") if frame[name].isna().any()]
    if incomplete:
        raise TableError(f"feature rows have nulls in {incomplete}: a row that is never known can't be stored; drop it")


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    features = frame.columns.difference([*KEY, *PROVENANCE])
    types = dict.fromkeys(features, "float64") | dict.fromkeys(_TIMES, "datetime64[us, UTC]")
    return frame.astype(types, copy=False)


def _schema_message(folder: Path, stored: pd.DataFrame, frame: pd.DataFrame) -> str:
    return (
        f"the table {folder} has other columns than these rows: only stored {sorted(set(stored) - set(frame))}, only "
        f"given {sorted(set(frame) - set(stored))}; raise the pipeline's version, which makes a new table"
    )


def table_schema(columns: list[str]) -> pa.Schema:
    """The Arrow schema of a table with these columns: times, texts, and float64 for every feature."""
    kinds = dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_TIMES, pa.timestamp("us", tz="UTC"))
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in columns])


def _new_rows(stored: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``given`` with new keys, in key order, and the restatements."""
    given = given.drop_duplicates(list(KEY), keep="last").sort_values(list(KEY))
    if stored.empty:
        return given
    table = pd.concat([stored, given[stored.columns]], ignore_index=True)
    entity = pd.factorize(table["entity_key"])[0]
    event, ingest, written = (_microseconds(table[name]) for name in _TIMES)
    is_given = np.arange(len(table)) >= len(stored)

    order = np.lexsort((is_given, ingest, event, entity))  # of equal keys the stored row comes first
    starts = _changes(entity[order], event[order])
    is_new = is_given.copy()
    is_new[order] &= _changes(entity[order], event[order], ingest[order])
    said = _last_of_each(order, starts, is_given)
    current = _last_of_each(order, starts, ~is_given | is_new)
    said, current = said[said >= 0], current[said >= 0]

    from_data = (ingest[current] > ingest[said]) & (ingest[current] < written[current])
    stale = _differ(table, said, current) & ~from_data
    moment = np.maximum(written[said], ingest[current] + _TICK)[stale]
    restated = table.loc[said[stale]].assign(ingest_time=pd.DatetimeIndex(moment).tz_localize("UTC"))
    return pd.concat([table[is_new], restated])


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
    for name in table.columns.difference([*KEY, *PROVENANCE]):
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


def _write_part(folder: Path, rows: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(rows, schema=table_schema(list(rows.columns)), preserve_index=False)
    name = f"part-{len(list(folder.glob('*.parquet'))):06d}"
    partial = folder / f"_{name}.partial"
    with partial.open("wb") as file:
        pq.write_table(table, file, use_dictionary=list(_TEXTS))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / f"{name}.parquet")
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
