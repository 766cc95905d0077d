"""Rows kept aside: which, why, and what they said, as JSON."""

from __future__ import annotations

import json
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COLUMNS: Final = ("table", "row", "reason", "record")


def aside(table: str, frame: pd.DataFrame, rows: NDArray[np.int64], reasons: NDArray[np.object_]) -> pd.DataFrame:
    """The rows at these positions with a reason each; columns ``table, row, reason, record``."""
    records = json_records(frame.iloc[rows])
    columns = (np.full(len(rows), table, dtype=object), rows.astype(np.int64), reasons.astype(object), records)
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def json_records(frame: pd.DataFrame) -> NDArray[np.object_]:
    """One JSON object a row (R,). Infinities are text, for JSON has none; column by column, as rows may be many."""
    parts: list[pa.Array | str] = []
    for i, name in enumerate(frame.columns):
        parts += [f"{', ' if i else '{'}{json.dumps(str(name))}: ", _literals(frame.iloc[:, i])]
    lines = pc.binary_join_element_wise(*parts, "}", "")
    return np.asarray(lines.to_pylist() if len(frame) else [], dtype=object)


def _literals(column: pd.Series) -> pa.Array:
    """A column as JSON literals."""
    null_R = column.isna().to_numpy(dtype=bool)
    if column.dtype.kind == "M":
        text = pc.cast(pa.array(column), pa.string())
        literals = pc.binary_join_element_wise('"', text, '"', "")
    elif isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb":
        text = pc.cast(pa.array(column), pa.string())
        literals = pc.replace_substring_regex(text, "^-?inf$", '"\\0"')
    else:
        codes, values = pd.factorize(column.astype(str))
        literals = pa.array([json.dumps(value) for value in values], pa.string()).take(pa.array(codes))
    return pc.if_else(pa.array(null_R), "null", literals)
