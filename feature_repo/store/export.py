"""A feature table as one Parquet part, in the layout of ``tables``, replaced as a whole."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from feature_repo.store.tables import KEY, PROVENANCE, TableError, sole_writer, table_schema, write_file

_PART: Final = "part-000000.parquet"
_MARK: Final = {b"perennial.export": b"feature_rows"}
_HEAD: Final = len(KEY)


def to_arrow(
    rows: Sequence[Sequence[Any]],
    names: Sequence[str],
    others: Sequence[str] = PROVENANCE,
    *,
    unknown: Literal["error", "ignore"] = "error",
) -> pa.Table:
    """Rows ``(entity_key, event_time, ingest_time, features as JSON, <others>)`` as a table's; numbers only."""
    schema = table_schema([*KEY, *names, *others])
    columns = list(zip(*rows, strict=True))
    features = _parse("\n".join(columns[_HEAD]), names, unknown)
    plain = dict(zip([*KEY, *others], [*columns[:_HEAD], *columns[_HEAD + 1 :]], strict=True))
    arrays = [
        features[field.name].combine_chunks() if field.name in names else pa.array(plain[field.name], field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _parse(lines: str, names: Sequence[str], unknown: str) -> pa.Table:
    text = lines.encode()
    try:
        return pa_json.read_json(
            io.BytesIO(text),
            read_options=pa_json.ReadOptions(block_size=len(text) + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema([(name, pa.float64()) for name in names]), unexpected_field_behavior=unknown
            ),
        )
    except pa.ArrowInvalid as error:
        raise TableError(
            f"a feature is no number ({error}); Parquet export is for numbers: read JSON features with the API"
        ) from error


def replace_export(folder: Path, names: Sequence[str], batches: Iterable[pa.Table]) -> int:
    """Write the rows as the folder's one part, which readers see whole or not at all; returns how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        _check_own(folder)
        return write_file(folder, _PART, table_schema([*KEY, *names, *PROVENANCE]).with_metadata(_MARK), batches)


def _check_own(folder: Path) -> None:
    foreign = [
        part.name
        for part in sorted(folder.glob("*.parquet"))
        if part.name != _PART or not (pq.read_schema(part).metadata or {}).items() >= _MARK.items()
    ]
    if foreign:
        raise TableError(f"{folder} has parts that no export wrote: {foreign}; export into a folder of its own")
