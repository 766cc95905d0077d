"""The out-of-sample signal store: what every variant said, and when. Ratings are computed from it alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA: Final = pa.schema(
    [
        ("variant", pa.string()),
        ("interval", pa.string()),
        ("horizon", pa.int32()),
        ("entity_key", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("made_at", pa.timestamp("us", tz="UTC")),
        ("model_version", pa.string()),
        ("kind", pa.string()),  # "oos": a walk-forward test forecast; "live": by the newest model on a new bar
        ("score", pa.float64()),
        ("confidence", pa.float64()),
    ]
)
KEY: Final = ("variant", "interval", "horizon", "entity_key", "event_time", "made_at", "model_version", "kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalStore:
    """Parquet files ``<root>/<variant>/<model_version>-<kind>.parquet``; a file appears whole or not at all."""

    root: Path

    def write(self, frame: pd.DataFrame) -> int:
        """Write signals, one file a (variant, model_version, kind), replacing that file; returns the rows written."""
        missing = [name for name in SCHEMA.names if name not in frame.columns]
        if missing:
            raise ValueError(f"signals lack the columns {missing}; a signal has {SCHEMA.names}")
        duplicated = frame.duplicated(list(KEY))
        if duplicated.any():
            raise ValueError(
                f"{int(duplicated.sum())} signals share a key {KEY}; first: {frame[duplicated].iloc[0].to_dict()}"
            )
        for (variant, version, kind), part in frame.groupby(["variant", "model_version", "kind"], sort=True):
            path = self._path(str(variant), str(version), str(kind))
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pandas(part, schema=SCHEMA, preserve_index=False)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            pq.write_table(table, partial)
            partial.replace(path)
        return len(frame)

    def read(self, variant: str, *, model_versions: list[str], kind: str) -> pd.DataFrame:
        """Signals of one variant by these model versions, in event-time and entity order."""
        tables = [pq.read_table(self._path(variant, version, kind), schema=SCHEMA) for version in model_versions]
        frame = pa.concat_tables(tables).to_pandas() if tables else SCHEMA.empty_table().to_pandas()
        return frame.sort_values(["event_time", "entity_key"], ignore_index=True)

    def _path(self, variant: str, model_version: str, kind: str) -> Path:
        return self.root / variant / f"{model_version}-{kind}.parquet"
