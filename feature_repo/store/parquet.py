"""Feature rows in Parquet, as the rule wants them: times in microseconds, keys as dense codes, columns by row.

A source is one file or a directory of parts (flat or hive). Its rows were written in the order of the parts' paths and,
within a part, of its rows: that order decides exact ties, so name parts such that a later one sorts later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feature_repo.store.join import NEVER, NO_ROW, Answers, IntArray, find_answers

WRITTEN_AT = "written_at"
"""When a row was really written, which an ``ingest_time`` dated into the past does not say."""

_STREAMED = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)  # a column is read just once
_WHOLE = 1 << 30  # rows in a batch: as many as a row group has
_BATCH = 1 << 16
COLUMNS_AT_ONCE: Final = 3
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
        keys, entity_N = Keys.of(head.select(list(self.keys)))
        entity_Q = keys.find(queries)
        return find_answers(entity_N, *self._times(head), keys.size), entity_Q

    def answers_of(self, dataset: ds.Dataset, entities: pa.Table) -> tuple[Answers, IntArray, IntArray]:
        """The same for some entities only, with memory for their rows alone: the others' pass by in batches.

        ``entities`` are distinct keys of the types that ``typed_keys`` gives, none null: then each code is one of
        theirs. Also returned are the code of each, and which of the dataset's rows each row of the answers is.
        """
        keys, code_E = Keys.of(entities)
        none = (np.empty(0, np.int64),) * 4
        parts = [self._rows_of(keys, first, table) for first, table in stream(dataset, self._head)]
        row_N, entity_N, event_N, ingest_N = (np.concatenate(arrays) for arrays in zip(none, *parts, strict=True))
        if not self.keys:
            code_E = np.zeros(1, np.int64)  # a table without columns can't say how many rows it has
        return find_answers(entity_N, event_N, ingest_N, keys.size), code_E, row_N

    def _rows_of(self, keys: Keys, first: int, table: pa.Table) -> tuple[IntArray, ...]:
        """Number, entity and times of the rows that belong to ``keys``; those of ``table`` count from ``first``."""
        entity = keys.find(table.select(list(self.keys)))
        own = np.flatnonzero(entity >= 0)
        return first + own, entity[own], *(times[own] for times in self._times(table))

    def _times(self, head: pa.Table) -> tuple[IntArray, IntArray]:
        """Event and ingest times of rows with the columns ``_head``."""
        event_N = micros(head[self.event_time], name=f"{self.name}.{self.event_time}", up=True)
        ingest_N = micros(head[self.ingest_time], name=f"{self.name}.{self.ingest_time}", up=True)
        if self.written_before is not None:
            written_N = micros(head[WRITTEN_AT], name=f"{self.name}.{WRITTEN_AT}", up=True)
            ingest_N = np.where((written_N != NEVER) & (written_N <= self.written_before), ingest_N, NEVER)
        return event_N, ingest_N

    def entities(self, dataset: ds.Dataset) -> pa.Table:
        """The distinct keys without nulls, in the order of their first rows; memory is for as many as there are."""
        names = list(self.keys)
        seen = pa.table([pa.array([], _key_type(dataset.schema.field(name).type)) for name in names], names=names)
        for _, table in stream(dataset, names) if names else ():
            batch = pa.table([plain(_as_key(table[name], name)) for name in names], names=names)
            seen = pa.concat_tables([seen, batch.drop_null()]).group_by(names, use_threads=False).aggregate([])
        return seen

    def typed_keys(self, dataset: ds.Dataset, queries: pa.Table) -> pa.Table:
        """The queries' keys in the types in which the source's are compared; ``queries`` as in ``answers``."""
        types = [_key_type(dataset.schema.field(name).type) for name in self.keys]
        columns = [_typed(*column) for column in zip(queries.columns, types, self.keys, strict=True)]
        return pa.table(columns, names=list(self.keys))


def stream(dataset: ds.Dataset, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """The rows in batches, in written order, and the number of each batch's first row."""
    first = 0
    for batch in scan(dataset, columns).to_batches():
        yield first, pa.Table.from_batches([batch])
        first += batch.num_rows


def scan(dataset: ds.Dataset, columns: Sequence[str]) -> ds.Scanner:
    """A scanner that holds the columns of about two row groups at a time."""
    return dataset.scanner(columns=list(columns), batch_size=_BATCH, batch_readahead=1, fragment_readahead=1)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """Dense codes ``0 .. size-1`` of composite keys. Without key columns all is one entity.

    A code has a digit a column, a value's position in ``values``. Where codes would outgrow the rows they are
    renumbered after that column's digit: those in ``present`` remain (``None``: all).
    """

    names: tuple[str, ...]
    values: tuple[pa.Array, ...]
    present: tuple[IntArray | None, ...]
    size: int

    @classmethod
    def of(cls, source: pa.Table) -> tuple[Keys, IntArray]:
        """Codes of the keys of N source rows, negative where a key is null."""
        code_N, size = np.zeros(source.num_rows, np.int64), 1
        digits: list[pa.Array] = []
        renumbered: list[IntArray | None] = []
        for name, column in zip(source.column_names, source.columns, strict=True):
            digit_N, values = _encode(_as_key(column, name))
            code_N = _extend(code_N, digit_N, len(values)) if digits else digit_N
            size *= len(values)
            present = np.unique(code_N[code_N >= 0]) if size > source.num_rows else None
            if present is not None:
                code_N, size = _renumber(code_N, present), len(present)
            digits.append(values)
            renumbered.append(present)
        keys = cls(names=tuple(source.column_names), values=tuple(digits), present=tuple(renumbered), size=size)
        return keys, code_N

    def find(self, queries: pa.Table) -> IntArray:
        """Codes of Q keys, whose columns may have any names; negative where a value is null or not in the source.

        A key of which only the parts are there may get a code that no row of the source has.
        """
        code_Q = np.zeros(queries.num_rows, np.int64)
        columns = zip(self.names, self.values, self.present, queries.columns, strict=True)
        for at, (name, values, present, wanted) in enumerate(columns):
            digit_Q = _find(_as_key(wanted, name), values, name)
            code_Q = _extend(code_Q, digit_Q, len(values)) if at else digit_Q
            if present is not None:
                code_Q = _renumber(code_Q, present)
        return code_Q


def _extend(codes: IntArray, digits: IntArray, base: int) -> IntArray:
    """Append a digit to each code; a negative in either makes the whole negative."""
    return np.where((codes < 0) | (digits < 0), -1, codes * base + digits)


def _renumber(codes: IntArray, present: IntArray) -> IntArray:
    """Positions of codes in ``present``, negative where they are not there."""
    at = np.minimum(np.searchsorted(present, codes), max(len(present) - 1, 0))
    return np.where(present[at] == codes, at, -1) if len(present) else np.full_like(codes, -1)


def _key_type(kind: pa.DataType) -> pa.DataType:
    """The one type in which keys of a kind are compared: integers as int64, text as string."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return pa.int64()
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _as_key(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A key column in the type in which it is compared, dictionaries of text kept."""
    target = _key_type(column.type)
    if pa.types.is_dictionary(column.type):
        value_type = column.type.value_type
        return column if value_type == pa.string() else column.cast(value_type).cast(target)
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
    at = pc.index_in(_of_type(distinct, values.type, name), value_set=values, skip_nulls=True).fill_null(-1)
    positions = np.append(at.cast(pa.int64()).to_numpy(), -1)
    return positions[codes]


def _typed(wanted: pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.Array:
    """A wanted key column in the source's key type, null where it can't be found."""
    column = _as_key(wanted, name)
    if pa.types.is_null(column.type) or pa.types.is_null(kind):
        return pa.nulls(len(column), kind)
    codes, distinct = _encode(column)
    return _of_type(distinct, kind, name).take(pa.array(codes, mask=codes < 0))


def _of_type(values: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """Values of entity_df's key in the source's type, where that can be done."""
    if pa.types.is_floating(values.type) and pa.types.is_integer(kind):
        values = _whole(values, name)  # pandas turns integers with gaps into floats
    if values.type != kind:
        raise OfflineStoreError(
            f"key {name!r} is {values.type} in entity_df and {kind} in the source; "
            f"cast it in entity_df to the source's type"
        )
    return values


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
    groups = [names[at : at + COLUMNS_AT_ONCE] for at in range(0, len(names), COLUMNS_AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        taker = pool.submit(lambda: Taker(find()))  # first in the queue, so the others never wait in vain

        def some(group: list[str]) -> list[pa.Array]:
            table = dataset.to_table(columns=group, batch_size=_WHOLE, use_threads=False)
            arrays = [plain(column) for column in table.columns]
            take = taker.result()
            return [take(array) for array in arrays]

        arrays = [array for some_arrays in pool.map(some, groups) for array in some_arrays]
    return pa.table(arrays, names=names).select(list(columns))


class Taker:
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


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One array of plain values."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks()
