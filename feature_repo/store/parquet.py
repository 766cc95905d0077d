"""Feature rows in Parquet, as the rule wants them: times in microseconds, keys as dense codes, columns by row.

A source is one file or a directory of parts (flat or hive). Its rows were written in the order of the parts' paths and,
within a part, of its rows: that order decides exact ties, so name parts such that a later one sorts later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feature_repo.store.join import NEVER, NO_ROW, Answers, IntArray, find_answers

WRITTEN_AT = "written_at"
"""When a row was really written, which an ``ingest_time`` dated into the past does not say."""

_STREAMED = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)  # a column is read just once
_WHOLE = 1 << 30  # rows in a batch: as many as a row group has
_COLUMNS_AT_ONCE = 3
_THREADS = min(4, pa.cpu_count()) + 1  # the others read ahead while one looks for the rows


class OfflineStoreError(ValueError):
    """A request that the offline store refuses; the message says what, got, allowed and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The rows of one feature view: where they are, whose they are (``keys``) and their two times.

    ``name`` is what messages call it; ``keys``, ``event_time`` and ``ingest_time`` are column names in the files.
    Rows whose ``WRITTEN_AT`` is after ``written_before`` (microseconds; ``None``: no limit) count as not there.
    """

    name: str
    path: Path
    keys: tuple[str, ...]
    event_time: str
    ingest_time: str
    written_before: int | None = None

    def open(self) -> ds.Dataset:
        """The files as one dataset with every part's columns, key strings read as dictionaries."""
        if not self.path.exists():
            raise OfflineStoreError(
                f"{self.name}: no rows at {self.path}; write them there (a Parquet file or a directory of parts) "
                f"or correct the path of its source"
            )
        partitioning = "hive" if self.path.is_dir() else None
        layout = ds.ParquetFileFormat(dictionary_columns=set(self.keys), default_fragment_scan_options=_STREAMED)
        dataset = ds.dataset(self.path, format=layout, partitioning=partitioning)
        try:
            schemas = [dataset.schema, *(part.physical_schema for part in dataset.get_fragments())]
            return dataset.replace_schema(pa.unify_schemas(schemas, promote_options="permissive"))
        except pa.ArrowException as error:
            raise OfflineStoreError(
                f"{self.name}: the parts below {self.path} disagree about a column ({error}); "
                f"write them with one schema"
            ) from error

    def require(self, dataset: ds.Dataset, columns: Sequence[str]) -> None:
        """Refuse columns that the files don't have."""
        missing = sorted({*self._head, *columns} - set(dataset.schema.names))
        if missing:
            raise OfflineStoreError(
                f"{self.name}: {self.path} has no column {', '.join(missing)}; it has "
                f"{', '.join(dataset.schema.names) or 'none at all'}: correct the view's schema or its source"
            )

    @property
    def _head(self) -> list[str]:
        """The columns that decide which row is the answer."""
        written = [] if self.written_before is None else [WRITTEN_AT]
        return [*self.keys, self.event_time, self.ingest_time, *written]

    def answers(self, dataset: ds.Dataset, queries: pa.Table) -> tuple[Answers, IntArray]:
        """The rows that were ever the answer, and the code in it of each query's key (negative: not there).

        ``queries`` has the key columns in the order of ``keys``, under any names.
        """
        head = dataset.to_table(columns=self._head)
        entity_N, entity_Q, num_entities = code_keys(head.select(list(self.keys)), queries)
        event_N = micros(head[self.event_time], name=f"{self.name}.{self.event_time}", up=True)
        ingest_N = micros(head[self.ingest_time], name=f"{self.name}.{self.ingest_time}", up=True)
        if self.written_before is not None:
            written_N = micros(head[WRITTEN_AT], name=f"{self.name}.{WRITTEN_AT}", up=True)
            ingest_N = np.where((written_N != NEVER) & (written_N <= self.written_before), ingest_N, NEVER)
        return find_answers(entity_N, event_N, ingest_N, num_entities), entity_Q


def micros(column: pa.ChunkedArray, *, name: str, up: bool) -> IntArray:
    """Times as int64 microseconds since 1970 UTC: (n,); null becomes ``NEVER``, naive times are UTC.

    Finer times are rounded: feature rows ``up``, as-of times down, so that rounding can't make a row known early.
    """
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(column.type):
        raise OfflineStoreError(f"{name} is {column.type}, not a time; write it as timestamp[us, tz=UTC]")
    fine = column.type.unit == "ns"
    if not fine:
        column = column.cast(pa.timestamp("us", column.type.tz))
    array = column.cast(pa.int64()).combine_chunks()
    if not fine:
        return array.fill_null(NEVER).to_numpy()
    nanos = array.fill_null(0).to_numpy()
    times = -(-nanos // 1000) if up else nanos // 1000
    return np.where(array.is_null().to_numpy(zero_copy_only=False), NEVER, times)


def code_keys(source: pa.Table, queries: pa.Table) -> tuple[IntArray, IntArray, int]:
    """Dense codes of the composite keys of N source rows and Q queries, and how many codes there are.

    Negative where a key is null or, for a query, not among the source's. Without key columns all is one entity.
    """
    code_N, code_Q = np.zeros(source.num_rows, np.int64), np.zeros(queries.num_rows, np.int64)
    size = 1
    for name, column, wanted in zip(source.column_names, source.columns, queries.columns, strict=True):
        values_N, values = _encode(_as_key(column, name))
        values_Q = _find(_as_key(wanted, name), values, name)
        first = name == source.column_names[0]
        code_N = values_N if first else _extend(code_N, values_N, len(values))
        code_Q = values_Q if first else _extend(code_Q, values_Q, len(values))
        size *= len(values)
        if size > source.num_rows:
            code_N, code_Q, size = _compress(code_N, code_Q)
    return code_N, code_Q, size


def _extend(codes: IntArray, digits: IntArray, base: int) -> IntArray:
    """Append a digit to each code; a negative in either makes the whole negative."""
    return np.where((codes < 0) | (digits < 0), -1, codes * base + digits)


def _compress(code_N: IntArray, code_Q: IntArray) -> tuple[IntArray, IntArray, int]:
    """Renumber codes so that only those of source rows remain."""
    present = np.unique(code_N[code_N >= 0])

    def renumber(codes: IntArray) -> IntArray:
        at = np.minimum(np.searchsorted(present, codes), max(len(present) - 1, 0))
        return np.where(present[at] == codes, at, -1) if len(present) else np.full_like(codes, -1)

    return renumber(code_N), renumber(code_Q), len(present)


def _as_key(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A key column in the one type its kind is compared in (integers as int64, text as string), dictionaries kept."""
    plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    target = plain
    if pa.types.is_integer(plain):
        target = pa.int64()
    elif pa.types.is_large_string(plain) or pa.types.is_string_view(plain):
        target = pa.string()
    if pa.types.is_dictionary(column.type):
        return column if plain == pa.string() else column.cast(plain).cast(target)
    try:
        return column.cast(target)
    except pa.ArrowInvalid as error:
        raise OfflineStoreError(f"key {name!r} does not fit into {target} ({error}); use smaller integers") from error


def _encode(column: pa.ChunkedArray) -> tuple[IntArray, pa.Array]:
    """Codes of a column's values, -1 for null, and the distinct values."""
    if pa.types.is_null(column.type):
        return np.full(len(column), -1), pa.array([], pa.null())
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    coded = column.unify_dictionaries().combine_chunks()
    return coded.indices.cast(pa.int64()).fill_null(-1).to_numpy(), coded.dictionary


def _find(wanted: pa.ChunkedArray, values: pa.Array, name: str) -> IntArray:
    """Position in ``values`` of each wanted key, -1 where it is null or not there."""
    if pa.types.is_null(wanted.type) or pa.types.is_null(values.type):
        return np.full(len(wanted), -1)
    codes, distinct = _encode(wanted)
    if pa.types.is_floating(distinct.type) and pa.types.is_integer(values.type):
        distinct = _whole(distinct, name)  # pandas turns integers with gaps into floats
    if distinct.type != values.type:
        raise OfflineStoreError(
            f"key {name!r} is {distinct.type} in entity_df and {values.type} in the source; "
            f"cast it in entity_df to the source's type"
        )
    at = pc.index_in(distinct, value_set=values, skip_nulls=True).fill_null(-1)
    positions = np.append(at.cast(pa.int64()).to_numpy(), -1)
    return positions[codes]


def _whole(values: pa.Array, name: str) -> pa.Array:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise OfflineStoreError(
            f"key {name!r} is an integer in the source but entity_df has fractions ({error}); use whole numbers"
        ) from error


def gather(dataset: ds.Dataset, columns: Sequence[str], find: Callable[[], IntArray]) -> pa.Table:
    """The named columns at the rows that ``find`` returns, null at ``NO_ROW``.

    The rows are looked for while the first columns are read; a dozen columns are in memory at a time.
    """
    names = list(dict.fromkeys(columns))
    groups = [names[at : at + _COLUMNS_AT_ONCE] for at in range(0, len(names), _COLUMNS_AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        taker = pool.submit(lambda: _Taker(find()))  # first in the queue, so the others never wait in vain

        def some(group: list[str]) -> list[pa.Array]:
            table = dataset.to_table(columns=group, batch_size=_WHOLE, use_threads=False)
            arrays = [_plain(column) for column in table.columns]
            take = taker.result()
            return [take(array) for array in arrays]

        arrays = [array for some_arrays in pool.map(some, groups) for array in some_arrays]
    return pa.table(arrays, names=names).select(list(columns))


class _Taker:
    """Takes the values at given rows, null at ``NO_ROW``; Arrow's own take is 4 times slower with null indices."""

    def __init__(self, rows: IntArray) -> None:
        there = rows != NO_ROW
        self._size, self._any, self._all = len(rows), there.any(), there.all()
        self._rows, self._there = pa.array(np.maximum(rows, 0)), pa.array(there)
        self._validity = pa.py_buffer(np.packbits(there, bitorder="little"))

    def __call__(self, values: pa.Array) -> pa.Array:
        if not self._any:
            return pa.nulls(self._size, values.type)
        taken = pc.take(values, self._rows, boundscheck=False)
        if self._all:
            return taken
        if values.type.num_fields == 0 and not taken.null_count:  # no pass over the values: all share one bitmap
            return pa.Array.from_buffers(taken.type, self._size, [self._validity, *taken.buffers()[1:]])
        return pc.if_else(self._there, taken, pa.scalar(None, values.type))


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array of plain values."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks()
