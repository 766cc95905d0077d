"""Landing: arrivals become rows of a market directory, and nothing that was landed is ever changed.

A table is one Parquet file, ``<table>.parquet``. It is written whole to another name, then renamed, so a process killed
at any moment leaves the old file or the new one; ``.<table>.lock`` lets one writer in at a time.

What is landed:

- a key (entity and event time) not known before: a new row;
- other values for a known key: a new row, a restatement, which completes itself from the row before where the source
  says nothing of a column. It is known when it arrived, or a microsecond after what it restates if the clock ran back;
- the values already in force: nothing, so the same fetch twice lands nothing;
- a key that vanished from a source which says all there is (:data:`Extent`): a row of nulls, a withdrawal;
- a tick whose ``trade_id`` is known, or without one whose equals are all landed: nothing. A known id with other values
  is counted as contradicted and not landed, for a second row would be a second trade.

A cell that does not read is landed as the text it came as, and its column is text from then on. Validation reads such
a column all the same and keeps the one row aside, so nothing a source said is lost on the way.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.connectors.base import ConnectorError, Landed
from feature_repo.market.layout import TableKind, table_kind
from feature_repo.market.parsing import parse_table

# Tensor suffixes: O rows landed before, N rows of an arrival.

Extent: TypeAlias = Literal["rows", "span", "whole"]
IntArray: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]

ISO: Final = "%Y-%m-%dT%H:%M:%S.%f+00:00"
NUM_ROWS_HELD: Final = 20_000  # a rewrite costs what the table holds, so pages are landed together
_NEVER: Final = np.iinfo(np.int64).min


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """Rows of one table as they came, and when (aware).

    ``extent`` says what it means that a row is not among them: ``rows`` nothing; ``span`` that the source has no other
    rows between the first and last event time of each series here; ``whole`` that it has no other rows of these series
    at all, and no other columns.
    """

    rows: pd.DataFrame
    ingest_time: datetime
    extent: Extent = "rows"


class Lander:
    """Holds arrivals of one table back until they are worth a rewrite; ``landed`` counts what was landed so far."""

    def __init__(
        self, folder: Path, table: str, *, lag: timedelta | None = None, num_rows_held: int = NUM_ROWS_HELD
    ) -> None:
        self._folder, self._table, self._lag, self._num_rows_held = folder, table, lag, num_rows_held
        self._held: list[Arrival] = []
        self.landed = Landed()

    def add(self, arrival: Arrival) -> None:
        """Take an arrival in."""
        self._held.append(arrival)
        if sum(len(held.rows) for held in self._held) >= self._num_rows_held:
            self.flush()

    def flush(self) -> None:
        """Land what is held."""
        self.landed += land(self._folder, self._table, self._held, lag=self._lag)
        self._held = []


def land(folder: Path, table: str, arrivals: Sequence[Arrival], *, lag: timedelta | None = None) -> Landed:
    """Land arrivals, in the order they came.

    ``lag`` dates the first row of a key at its event time plus ``lag`` (never after its arrival), for a history of
    which it is known when it was published; without it a row is known from its arrival on.
    """
    full = [arrival for arrival in arrivals if len(arrival.rows)]
    if not full:
        return Landed()
    with _writing(folder, table) as path:
        merged, landed = merge(table, read_landed(path, table), full, lag=lag)
        if landed.num_written:
            _write(path, merged)
    return landed


def merge(
    table: str, stored: pd.DataFrame, arrivals: Sequence[Arrival], *, lag: timedelta | None = None
) -> tuple[pd.DataFrame, Landed]:
    """The table with the arrivals landed in it, by key, event time and ingest time, and the counts."""
    kind = table_kind(table)
    near_O = _may_meet(kind, stored, arrivals)
    near, landed = stored[near_O].reset_index(drop=True), Landed()
    for arrival in arrivals:
        rows, counts = (_merge_ticks if kind.ticks else _merge_values)(kind, near, arrival, lag)
        near, landed = stack(near, rows), landed + counts
    names = list(dict.fromkeys([*kind.key, kind.event, "ingest_time"]))
    return stack(stored[~near_O], near).sort_values(names, kind="stable", ignore_index=True), landed


def read_landed(path: Path, table: str) -> pd.DataFrame:
    """A table as it was landed, its columns typed or text; without rows where there is no such file."""
    kind = table_kind(table)
    if not path.exists():
        times = dict.fromkeys((kind.event, "ingest_time"), pd.Series(dtype="datetime64[us, UTC]"))
        return pd.DataFrame({**dict.fromkeys(kind.key, pd.Series(dtype=object)), **times})
    frame = pq.ParquetFile(path).read().to_pandas(ignore_metadata=True)
    missing = [name for name in (*kind.key, kind.event, "ingest_time") if name not in frame]
    if missing:
        raise ConnectorError(
            f"{path} has no column {missing}; it has {list(frame.columns)}, and rows can be landed only beside rows "
            "with both times: add the columns, or land into another folder"
        )
    return frame.assign(**{name: _utc(path, frame[name]) for name in frame if frame[name].dtype.kind == "M"})


def _utc(path: Path, times: pd.Series) -> pd.Series:
    if times.dt.tz is None:
        raise ConnectorError(f"the times {times.name!r} of {path} have no zone: write them as UTC, or land elsewhere")
    return times.dt.tz_convert("UTC").dt.as_unit("us")


def landed_rows(folder: Path, table: str, entity_key: str) -> pd.DataFrame:
    """What is landed of one entity: typed, by event time; its index is of no meaning."""
    kind = table_kind(table)
    frame = read_landed(folder / f"{table}.parquet", table)
    typed = parse_table(kind, frame[frame["entity_key"] == entity_key], lag=None).rows
    return typed.sort_values(kind.event, kind="stable")


@contextmanager
def _writing(folder: Path, table: str) -> Iterator[Path]:
    """The table's file, for one writer at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / f"{table}.csv").exists():
        raise ConnectorError(
            f"{folder} has its {table} as CSV, to which nothing is appended: convert {table}.csv to {table}.parquet, "
            "or land into another folder"
        )
    with (folder / f".{table}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / f"{table}.parquet"


def _write(path: Path, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _may_meet(kind: TableKind, stored: pd.DataFrame, arrivals: Sequence[Arrival]) -> Mask:
    """Landed rows (O,) that an arrival may have something to say of; the rest need not be looked at."""
    entities = pd.concat([arrival.rows["entity_key"] for arrival in arrivals]).unique()
    near_O = stored["entity_key"].isin(entities).to_numpy()
    times = [stored[kind.event], *(arrival.rows[kind.event] for arrival in arrivals)]
    if all(time.dtype.kind == "M" for time in times) and all(arrival.extent != "whole" for arrival in arrivals):
        first = min(time.min() for time in times[1:])
        near_O &= ~(stored[kind.event] < first).to_numpy()  # a null time stays near
    return near_O


def _merge_values(
    kind: TableKind, stored: pd.DataFrame, arrival: Arrival, lag: timedelta | None
) -> tuple[pd.DataFrame, Landed]:
    """The rows to add for an arrival of values (bars, metrics, indices)."""
    said = arrival.rows.assign(ingest_time=pd.Timestamp(arrival.ingest_time).as_unit("us")).reset_index(drop=True)
    num_said = len(said)
    old, new = (parse_table(kind, frame, lag=None).rows for frame in (stored, said))
    if arrival.extent != "rows":
        said = stack(said, _vanished(kind, old, new, arrival))
        if arrival.extent == "whole":
            said = _with_columns(said, stored)
        new = parse_table(kind, said, lag=None).rows
    key = [*kind.key, kind.event]
    values = [name for name in said.columns if name not in (*key, "ingest_time")]
    both = stack(_with_columns(old, new)[[*key, *values]], new[[*key, *values]])
    unread = pd.concat([_unread(kind, stored, old), _unread(kind, said, new)], ignore_index=True)
    code = both[key].assign(unread=unread).groupby([*key, "unread"], dropna=False, sort=False).ngroup()
    content = both[values].assign(code=code).groupby(["code", *values], dropna=False, sort=False).ngroup().to_numpy()
    code_O, code_N = np.split(code.to_numpy(), [len(old)])
    content_O, content_N = np.split(content, [len(old)])
    known_us_O = _micros(old["ingest_time"])
    latest_us = np.full(len(both), _NEVER)  # by code
    np.maximum.at(latest_us, code_O, known_us_O)
    in_force_O = known_us_O == latest_us[code_O]
    other_N = ~np.isin(content_N, content_O[in_force_O])
    # A source may contradict itself: all it says of a key lands together, so that saying it again lands nothing.
    lands_N = np.isin(code_N, code_N[other_N]) & ~pd.Series(content_N).duplicated().to_numpy()
    restated_N, said_N = latest_us[code_N] != _NEVER, np.arange(len(said)) < num_said
    rows = _completed(said[lands_N], stored, code_O, code_N[lands_N])
    rows["ingest_time"] = _known_times(new[kind.event], arrival.ingest_time, latest_us[code_N], lag)[lands_N]
    return rows, Landed(
        num_new=int((lands_N & ~restated_N).sum()),
        num_restated=int((lands_N & restated_N & said_N).sum()),
        num_withdrawn=int((lands_N & ~said_N).sum()),
        num_known=int((~lands_N & said_N).sum()),
    )


def _vanished(kind: TableKind, old: pd.DataFrame, new: pd.DataFrame, arrival: Arrival) -> pd.DataFrame:
    """Null rows for the landed keys that the arrival should have and has not."""
    if kind.needed:
        raise ConnectorError(f"{list(kind.needed)} may not be null, so no row of such a table can be withdrawn")
    series, key = list(kind.key), [*kind.key, kind.event]
    spans = new.groupby(series)[kind.event].agg(first_said="min", last_said="max").reset_index()
    expected = old[key].dropna().drop_duplicates().merge(spans, on=series)
    if arrival.extent == "span":
        event = expected[kind.event]
        expected = expected[(event >= expected["first_said"]) & (event <= expected["last_said"])]
    said = pd.MultiIndex.from_frame(new[key])
    gone = expected[key][~pd.MultiIndex.from_frame(expected[key]).isin(said)]
    if new[key].isna().any(axis=None):
        gone = gone[:0]  # a row whose name does not read may be any of them
    return gone.assign(ingest_time=pd.Timestamp(arrival.ingest_time).as_unit("us"))


def _completed(rows: pd.DataFrame, stored: pd.DataFrame, code_O: IntArray, code: IntArray) -> pd.DataFrame:
    """Rows with the columns their source does not have, from the latest landed row of the same key."""
    rows = rows.reset_index(drop=True)
    absent = [name for name in stored.columns if name not in rows]
    if not absent or not len(rows):
        return rows
    order = np.argsort(_micros(pd.to_datetime(stored["ingest_time"], utc=True)), kind="stable")
    last = pd.Series(order, index=code_O[order])
    last = last[~last.index.duplicated(keep="last")].reindex(code)
    before = stored[absent].reset_index(drop=True).reindex(last.to_numpy()).reset_index(drop=True)
    return pd.concat([rows, before], axis=1)


def _merge_ticks(
    kind: TableKind, stored: pd.DataFrame, arrival: Arrival, lag: timedelta | None
) -> tuple[pd.DataFrame, Landed]:
    """The rows to add for an arrival of ticks."""
    said = arrival.rows.assign(ingest_time=pd.Timestamp(arrival.ingest_time).as_unit("us")).reset_index(drop=True)
    old, new = (parse_table(kind, frame, lag=None).rows for frame in (stored, said))
    values = [name for name in said.columns if name not in (*kind.key, "ingest_time", "trade_id")]
    both = stack(_tick_names(kind, _with_columns(old, new), values), _tick_names(kind, new, values))
    code = both.groupby([*kind.key, "tick_id", *_named(values), "nth"], dropna=False, sort=False).ngroup().to_numpy()
    content = both[values].assign(code=code).groupby(["code", *values], dropna=False, sort=False).ngroup().to_numpy()
    code_O, code_N = np.split(code, [len(old)])
    content_O, content_N = np.split(content, [len(old)])
    again_N = np.isin(code_N, code_O) | pd.Series(code_N).duplicated().to_numpy()
    first_content_N = content_N[~again_N]
    contradicted_N = again_N & ~np.isin(content_N, np.concatenate([content_O, first_content_N]))
    rows = said[~again_N].reset_index(drop=True)
    never = np.full(len(said), _NEVER)
    rows["ingest_time"] = _known_times(new[kind.event], arrival.ingest_time, never, lag)[~again_N]
    return rows, Landed(
        num_new=len(rows),
        num_known=int((again_N & ~contradicted_N).sum()),
        num_contradicted=int(contradicted_N.sum()),
    )


def _named(values: Sequence[str]) -> list[str]:
    return [f"{name}_named" for name in values]


def _tick_names(kind: TableKind, ticks: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """What tells ticks apart: their id, or without one all their values and how many equal ones stand before them."""
    tick_id = ticks["trade_id"] if "trade_id" in ticks else pd.Series(None, index=ticks.index, dtype=object)
    with_id = tick_id.notna()
    nth = ticks.groupby([*kind.key, *values], dropna=False, sort=False).cumcount()
    named = {f"{name}_named": ticks[name].mask(with_id) for name in values}
    return ticks[[*kind.key, *values]].assign(tick_id=tick_id, nth=nth.mask(with_id, 0), **named)


def _known_times(event: pd.Series, arrived: datetime, latest_us: IntArray, lag: timedelta | None) -> pd.DatetimeIndex:
    """When each row is known: on arrival; a first one by its lag if earlier; a restatement after what it restates."""
    arrived_us = pd.Timestamp(arrived).value // 1000
    known_us = np.full(len(event), arrived_us)
    if lag is not None:
        dated_us = _micros(event) + lag // timedelta(microseconds=1)
        known_us = np.where(event.isna(), arrived_us, np.minimum(arrived_us, dated_us))
    known_us = np.where(latest_us == _NEVER, known_us, np.maximum(arrived_us, latest_us + 1))
    return pd.DatetimeIndex(known_us.astype("datetime64[us]")).tz_localize("UTC")


def _unread(kind: TableKind, raw: pd.DataFrame, typed: pd.DataFrame) -> pd.Series:
    """The text of event times that do not read, which then name their rows."""
    text = raw[kind.event].reset_index(drop=True)
    return text.astype(object).where(typed[kind.event].isna().to_numpy() & text.notna(), "").astype(str)


def _micros(times: pd.Series) -> IntArray:
    micros: IntArray = times.to_numpy(dtype="datetime64[us]").astype(np.int64)
    return micros


def _with_columns(frame: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The frame with null columns for those that only ``other`` has."""
    absent = {name: _nulls(other[name], frame.index) for name in other.columns if name not in frame}
    return frame.assign(**absent)


def _nulls(like: pd.Series, index: pd.Index) -> pd.Series:
    return pd.Series(None, index=index, dtype="float64" if like.dtype.kind in "iufb" else like.dtype)


def stack(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Rows below rows; a column is text where one of the two has it as text, and float64 where it has gaps."""
    first, second = _with_columns(first, second), _with_columns(second, first)
    columns = {name: _joined(first[name], second[name]) for name in first.columns}
    return pd.DataFrame(columns)


def _joined(first: pd.Series, second: pd.Series) -> pd.Series:
    if not len(first) or not len(second):
        return (first if len(first) else second).reset_index(drop=True)
    kinds = {first.dtype.kind, second.dtype.kind}
    if len(kinds) > 1 and "O" in kinds:
        first, second = as_text(first), as_text(second)
    elif len(kinds) > 1:
        first, second = first.astype("float64"), second.astype("float64")
    return pd.concat([first, second], ignore_index=True)


def as_text(column: pd.Series) -> pd.Series:
    """A column as text that reads back to the same values; null stays null."""
    if column.dtype.kind == "M":
        text = column.dt.strftime(ISO).astype(object)
    elif column.dtype.kind == "O":
        return column
    else:
        text = column.map(lambda value: repr(value.item() if hasattr(value, "item") else value)).astype(object)
    return text.where(column.notna().to_numpy(), None)
