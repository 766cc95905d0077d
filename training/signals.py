"""The out-of-sample signal store: what every variant said, and when. Ratings are computed from it alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
FILE: Final = ("variant", "model_version", "kind")
"""What the signals of one file have in common."""
SAID_OF: Final = ("entity_key", "event_time")
"""What a model speaks of once: ``append`` never adds a second word on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalStore:
    """Parquet files ``<root>/<variant>/<model_version>-<kind>.parquet``; a file appears whole or not at all."""

    root: Path

    def write(self, frame: pd.DataFrame) -> int:
        """Write signals, one file a (variant, model_version, kind), replacing that file; returns the rows written."""
        _check(frame, KEY)
        for (variant, version, kind), part in frame.groupby(list(FILE), sort=True):
            _replace(self._path(str(variant), str(version), str(kind)), _table(part))
        return len(frame)

    def append(self, frame: pd.DataFrame) -> int:
        """Add the signals of which their file (variant, model_version, kind) says nothing yet; returns how many.

        What was first said of an entity's bar stays, so adding rows again changes nothing. Each file is replaced as a
        whole: a reader, or who comes after a kill, sees all of its new rows or none. One writer at a time.
        """
        _check(frame, (*FILE, *SAID_OF))
        num_added = 0
        for (variant, version, kind), part in frame.groupby(list(FILE), sort=True):
            path = self._path(str(variant), str(version), str(kind))
            given = _table(part)
            if path.exists():
                there = pq.read_table(path, schema=SCHEMA)
                given = _unsaid(given, there)
                if not len(given):
                    continue
                _replace(path, pa.concat_tables([there, given]))
            else:
                _replace(path, given)
            num_added += len(given)
            for left in path.parent.glob(f"{path.stem}.*.partial"):  # by a writer that was killed
                left.unlink(missing_ok=True)
        return num_added

    def has(self, variant: str, model_version: str, kind: str) -> bool:
        """Whether there is a file of these signals."""
        return self._path(variant, model_version, kind).exists()

    def versions(self, kind: str) -> Iterator[tuple[str, str]]:
        """Each variant and model version that has signals of this kind, in order."""
        for path in sorted(self.root.glob(f"*/*-{kind}.parquet")):
            yield path.parent.name, path.stem.removesuffix(f"-{kind}")

    def event_times(self, variant: str, *, model_version: str, kind: str) -> NDArray[np.datetime64]:
        """The bars that a model version has signals for, rising (datetime64[us], UTC); none where it has no file."""
        path = self._path(variant, model_version, kind)
        if not path.exists():
            return np.array([], dtype="datetime64[us]")
        times = pc.unique(pq.read_table(path, columns=["event_time"])["event_time"])
        return np.sort(times.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False))

    def read(self, variant: str, *, model_versions: list[str], kind: str) -> pd.DataFrame:
        """Signals of one variant by these model versions, in event-time and entity order."""
        tables = [pq.read_table(self._path(variant, version, kind), schema=SCHEMA) for version in model_versions]
        frame = pa.concat_tables(tables).to_pandas() if tables else SCHEMA.empty_table().to_pandas()
        return frame.sort_values(["event_time", "entity_key"], ignore_index=True)

    def _path(self, variant: str, model_version: str, kind: str) -> Path:
        return self.root / variant / f"{model_version}-{kind}.parquet"


def _check(frame: pd.DataFrame, key: tuple[str, ...]) -> None:
    missing = [name for name in SCHEMA.names if name not in frame.columns]
    if missing:
        raise ValueError(f"signals lack the columns {missing}; a signal has {SCHEMA.names}")
    duplicated = frame.duplicated(list(key))
    if duplicated.any():
        raise ValueError(
            f"{int(duplicated.sum())} signals share a key {key}; first: {frame[duplicated].iloc[0].to_dict()}"
        )


def _table(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows, schema=SCHEMA, preserve_index=False)


def _unsaid(given: pa.Table, there: pa.Table) -> pa.Table:
    """The rows of entities and bars of which those that are there say nothing."""
    said, asked = (pd.MultiIndex.from_frame(rows.select(SAID_OF).to_pandas()) for rows in (there, given))
    return given.filter(pa.array(~asked.isin(said)))


def _replace(path: Path, rows: pa.Table) -> None:
    """A file with these rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(rows, partial)
    partial.replace(path)
