"""From a file's columns to typed ones, with a fault for every cell that does not read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.layout import NUMBERS, TEXTS, TIMES, TableKind

# Tensor suffix: R rows of the file.

Mask: TypeAlias = NDArray[np.bool_]
Fault: TypeAlias = tuple[str, Mask]  # a reason and the rows (R,) it applies to

NULL_WORDS: Final = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")  # of a number in text
_ZONED: Final = r"[Tt ]\S*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """A table with typed columns, and the faults of the cells that name a row and of its other cells."""

    rows: pd.DataFrame
    name_faults: list[Fault]
    cell_faults: list[Fault]


def parse_table(kind: TableKind, raw: pd.DataFrame, *, lag: timedelta | None) -> Parsed:
    """Type every column, key and times first; without an ``ingest_time`` it is the event time plus ``lag``."""
    columns: dict[str, pd.Series] = {}
    name_faults: list[Fault] = []
    cell_faults: list[Fault] = []
    for name in dict.fromkeys((*kind.key, kind.event, "ingest_time")):
        if name in raw:
            columns[name], found = parse_times(raw[name]) if name in TIMES else parse_texts(raw[name])
            name_faults += found
        else:
            columns[name] = columns[kind.event] + lag
    for name in raw.columns.difference(list(columns), sort=False):
        columns[name], found = _parse_cells(kind, raw[name])
        cell_faults += found
    return Parsed(rows=pd.DataFrame(columns), name_faults=name_faults, cell_faults=cell_faults)


def _parse_cells(kind: TableKind, column: pd.Series) -> tuple[pd.Series, list[Fault]]:
    """A column that does not name the row; one the layout does not know keeps its kind of value."""
    if column.name in TIMES:
        times, (_, *faults) = parse_times(column)  # null is an answer here: still a member
        return times, faults
    if column.name in NUMBERS or column.dtype.kind == "f" or (kind.metrics and column.name not in TEXTS):
        return parse_numbers(column)
    if column.dtype.kind in "iubM":
        return column, []
    return parse_texts(column)[0], []


def parse_texts(column: pd.Series) -> tuple[pd.Series, list[Fault]]:
    """Text cells; an empty one is null, and null is a fault."""
    text = column.astype("string").astype(object)
    null_R = (text.isna() | (text == "")).to_numpy(dtype=bool)
    return text.mask(null_R, None), [(f"{column.name} is null", null_R)]


def parse_times(column: pd.Series) -> tuple[pd.Series, list[Fault]]:
    """Aware UTC microseconds (finer digits are cut); a time without a zone is a fault, never guessed.

    Text must be ISO 8601 with an offset or ``Z``. The faults are, in order: null, unreadable,
    without a zone.
    """
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        times, null_R, zoned_R = column, column.isna().to_numpy(), np.ones(len(column), dtype=bool)
    elif column.dtype.kind == "M":
        times, null_R, zoned_R = column.dt.tz_localize("UTC"), column.isna().to_numpy(), column.isna().to_numpy()
    else:
        times, null_R, zoned_R = _read_times(column)
    unread_R = times.isna().to_numpy() & ~null_R
    return times.dt.tz_convert("UTC").dt.as_unit("us"), [
        (f"{column.name} is null", null_R),
        (f"{column.name} is not an ISO 8601 time", unread_R),
        (f"{column.name} has no time zone", ~null_R & ~unread_R & ~zoned_R),
    ]


def _read_times(column: pd.Series) -> tuple[pd.Series, Mask, Mask]:
    text = column.astype("string")
    null_R = (text.isna() | (text == "")).to_numpy(dtype=bool)
    zoned_R = text.str.contains(_ZONED, regex=True).fillna(value=False).to_numpy(dtype=bool)
    times = pd.to_datetime(text.astype(object), format="ISO8601", utc=True, errors="coerce")
    return times, null_R, zoned_R


def parse_numbers(column: pd.Series) -> tuple[pd.Series, list[Fault]]:
    """Numbers as float64, NaN where null; text that is no number and infinities are faults."""
    null_R = column.isna().to_numpy(dtype=bool)
    if column.dtype.kind == "O":
        null_R |= column.isin(NULL_WORDS).to_numpy(dtype=bool)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return pd.Series(numbers, index=column.index, name=column.name), [
        (f"{column.name} is not a number", np.isnan(numbers) & ~null_R),
        (f"{column.name} is not finite", np.isinf(numbers)),
    ]
