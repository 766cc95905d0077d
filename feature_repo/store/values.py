"""Feature values as JSON: what may be stored, how it is written and read, and the statements of a whole frame.

A value is a number, or JSON of them (a list, a dict), a text, a truth or null. Every number is a float64: NaN is null
and infinity is refused, and so are whole numbers that float64 can't hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, Union

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.store.parquet import micros
from feature_repo.store.tables import KEY, PROVENANCE, RESTATES, STATED, TableError

Value: TypeAlias = Union[bool, float, str, list["Value"], dict[str, "Value"], None]  # noqa: UP007 (it refers to itself)

_RESERVED: Final = frozenset((*KEY, *PROVENANCE, RESTATES, STATED))


def clean_features(features: Mapping[str, Any]) -> dict[str, Value]:
    """The features with clean values, or a ``TableError`` that names what can't be stored."""
    if not features:
        raise TableError("a write needs at least one feature; give {name: value}, null to withdraw one")
    _check_names(list(features))
    return {name: clean(name, value) for name, value in features.items()}


def clean(name: str, value: Any) -> Value:
    """``value`` as plain JSON in Python, numbers as floats; numpy's scalars and arrays are taken."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or value is pd.NA or isinstance(value, bool):
        return value if isinstance(value, bool) else None
    if isinstance(value, (int, float)):
        return _number(name, value)
    if isinstance(value, str) and "\x00" not in value:
        return value
    if isinstance(value, (list, tuple)):
        return [clean(name, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) and "\x00" not in key for key in value):
        return {key: clean(name, item) for key, item in value.items()}
    raise TableError(
        f"feature {name!r} has the value {value!r} ({type(value).__name__}); a value is a number, a text, a truth, "
        "null, or a list or dict (with texts as keys) of these: convert it"
    )


def _number(name: str, value: float) -> float | None:
    if value != value:
        return None
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) or number != value:
        raise TableError(f"feature {name!r} is {value}, which no finite float64 is; write null or scale it")
    return number + 0.0  # the only zero that JSON in Postgres knows is positive


def same(one: Value, other: Value) -> bool:
    """Whether two clean values are equal; 1 is not true."""
    if isinstance(one, (list, dict)):
        return dumps(one) == dumps(other)
    return type(one) is type(other) and one == other


def dumps(value: Value | Mapping[str, Value]) -> str:
    """JSON text, the keys in order; every float comes back as it was."""
    return json.dumps(value, allow_nan=False, sort_keys=True)


def loads(text: str) -> Any:
    """Clean values from JSON text."""
    return json.loads(text, parse_int=float)


@dataclass(frozen=True, kw_only=True, slots=True)
class Statements:
    """One statement a row of a frame.

    ``keys`` has ``entity_key, event_time, ingest_time``, the times in microseconds UTC. ``features`` are finite numbers
    (null or NaN where there is none) or JSON texts. ``counts`` is false where a later row has the same key.
    """

    keys: pa.Table
    features: Mapping[str, pa.Array]
    counts: pa.Array

    def batches(self, num_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows that count as ``entity_key, event_time, ingest_time, features`` (JSON), so many at a time."""
        for start in range(0, len(self.keys), num_rows):
            features = _objects({name: column.slice(start, num_rows) for name, column in self.features.items()})
            rows = self.keys.slice(start, num_rows).append_column("features", features)
            yield from rows.filter(self.counts.slice(start, num_rows)).combine_chunks().to_batches()


def statements(frame: pd.DataFrame | pa.Table) -> Statements:
    """The statements of a frame, or a ``TableError`` that says what can't be stored.

    ``frame`` has ``entity_key``, ``event_time``, perhaps ``ingest_time`` (null in ``keys`` where it has none), and the
    features, null or NaN where there is none. Of several rows with one key the last counts.
    """
    columns = list(frame.columns if isinstance(frame, pd.DataFrame) else frame.column_names)
    _check_columns(columns)
    keys = {"entity_key": _texts(frame["entity_key"])}
    keys |= {name: _times(frame[name], name) for name in KEY[1:] if name in columns}
    repeated = pd.DataFrame({name: array.to_numpy(zero_copy_only=False) for name, array in keys.items()})
    keys.setdefault("ingest_time", pa.nulls(len(repeated), pa.timestamp("us", "UTC")))
    return Statements(
        keys=pa.table(keys),
        features={name: _checked(name, frame[name]) for name in columns if name not in KEY},
        counts=pa.array(~repeated.duplicated(keep="last")),
    )


def _check_names(names: list[str]) -> None:
    bad = [name for name in names if not isinstance(name, str) or not name or "\x00" in name or name in _RESERVED]
    if bad:
        raise TableError(
            f"{bad} can't be names of features: they are texts other than {sorted(_RESERVED)}; rename them"
        )


def _check_columns(columns: list[str]) -> None:
    missing = [name for name in ("entity_key", "event_time") if name not in columns]
    if missing:
        raise TableError(f"the rows lack the columns {missing}; got {columns}, add them")
    given = [name for name in columns if name in PROVENANCE]
    if given:
        raise TableError(
            f"the rows have the columns {given}; drop them: producer and run_id are arguments, producer_version is the "
            "table's and written_at is the clock's"
        )
    features = [name for name in columns if name not in KEY]
    if not features or len(set(columns)) < len(columns):
        raise TableError(f"the rows need at least one feature and each column once; got {columns}")
    _check_names(features)


def _texts(column: pd.Series | pa.ChunkedArray) -> pa.Array:
    array = _arrow(column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or not len(array)
    if not is_text or array.null_count:
        raise TableError(f"entity_key is {array.type} with {array.null_count} nulls; it is a text in every row")
    return array.cast(pa.string())


def _times(column: pd.Series | pa.ChunkedArray, name: str) -> pa.Array:
    array = _arrow(column)
    if not pa.types.is_timestamp(array.type) or array.type.tz is None or array.null_count:
        raise TableError(
            f"{name} is {array.type} with {array.null_count} nulls; it is an aware time in every row: say its "
            "timezone, and drop rows that are never known"
        )
    return pa.array(micros(pa.chunked_array([array]), name=name, up=True)).cast(pa.timestamp("us", "UTC"))


def _arrow(column: pd.Series | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pd.Series):
        return pa.array(column, from_pandas=True)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _checked(name: str, column: pd.Series | pa.ChunkedArray) -> pa.Array:
    """Finite float64 numbers where all are numbers, else JSON texts."""
    if isinstance(column, pd.Series) and column.dtype == object:
        return _each(name, column.tolist())
    array = _arrow(column)
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        return _each(name, array.to_pylist())
    try:
        numbers = array.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise TableError(f"feature {name!r} has a number that float64 can't hold ({error}); scale it") from error
    num_infinite = pc.sum(pc.is_inf(numbers)).as_py()
    if num_infinite:
        raise TableError(f"feature {name!r} is infinite in {num_infinite} of {len(numbers)} rows; write null there")
    return numbers


def _each(name: str, values: list[Any]) -> pa.Array:
    return pa.array([dumps(clean(name, value)) for value in values], pa.string())


def _objects(features: Mapping[str, pa.Array]) -> pa.Array:
    return pc.binary_join_element_wise(*object_pieces(features), "")


def object_pieces(features: Mapping[str, pa.Array]) -> list[str | pa.Array]:
    """What, joined, is one JSON object a row, put together by column: some millions of numbers a second."""
    pieces: list[str | pa.Array] = []
    for name, column in features.items():
        opening = ("," if pieces else "{") + json.dumps(name) + ":"
        pieces += [opening, column if pa.types.is_string(column.type) else _number_texts(column)]
    return [*pieces, "}"]


def _number_texts(numbers: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(numbers), None, numbers.cast(pa.string())).fill_null("null")
