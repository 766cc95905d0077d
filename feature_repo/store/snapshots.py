"""Training sets kept as they were: Parquet with a manifest that says what was asked, by which rule, of which code.

A snapshot is a folder ``<request, 16 digits>/{rows.parquet, manifest.json}``. The same request gives the same
fingerprint, whatever was written to the feature tables since: the store must be opened with ``written_before``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.market.assembly import fingerprint

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

RULE: Final = "event_time <= T and ingest_time <= T, latest event_time, then latest ingest_time, then last written"
PACKAGES: Final = ("perennial", "feast", "numpy", "numba", "pandas", "pyarrow")
_ROWS, _MANIFEST = "rows.parquet", "manifest.json"


class SnapshotError(ValueError):
    """A snapshot that can't be taken or is not what its manifest says; the message says what, got and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a snapshot is.

    ``features`` are references ``view:feature`` and ``versions`` the views' pipeline versions; ``written_before`` (ISO,
    UTC) bounds the rows that were looked at; ``request`` and ``fingerprint`` are SHA-256 of what was asked and of what
    was answered; ``packages`` maps a package to the version that answered.
    """

    project: str
    features: tuple[str, ...]
    versions: Mapping[str, str]
    rule: str
    written_before: str
    num_rows: int
    columns: tuple[str, ...]
    request: str
    fingerprint: str
    git_sha: str
    packages: Mapping[str, str]


def take_snapshot(
    store: FeatureStore, entity_df: pd.DataFrame, features: FeatureService | list[str], root: Path, *, git_sha: str
) -> Manifest:
    """Ask ``store`` for the features of every row of ``entity_df`` and keep the answer below ``root``.

    ``store`` comes from ``open_feature_store(..., written_before=...)``, normally the time of the run. A snapshot that
    is there already is asked again and must come out the same; it is never overwritten. It appears whole or not at all.
    """
    limit = store.config.offline_store.written_before
    if limit is None:
        raise SnapshotError(
            "a snapshot of a store without written_before could not be taken again: a later backfill would change it; "
            "open the store with written_before=<the time of the run>"
        )
    refs = _references(features)
    job = store.get_historical_features(entity_df=entity_df, features=features, full_feature_names=True)
    rows = job.to_df()
    views = sorted({ref.split(":")[0] for ref in refs})
    written_before = pd.Timestamp(limit).tz_convert("UTC").isoformat()
    manifest = Manifest(
        project=store.project,
        features=refs,
        versions={name: store.get_feature_view(name).tags.get("version", "") for name in views},
        rule=RULE,
        written_before=written_before,
        num_rows=len(rows),
        columns=tuple(map(str, rows.columns)),
        request=_digest([store.project, refs, written_before, fingerprint({"asked": entity_df})]),
        fingerprint=fingerprint({"rows": rows}),
        git_sha=git_sha,
        packages={name: version(name) for name in PACKAGES},
    )
    folder = root / manifest.request[:16]
    if folder.exists():
        _check_same(folder, read_snapshot(folder)[0], manifest)
    else:
        _write(folder, manifest, rows)
    return manifest


def read_snapshot(folder: Path) -> tuple[Manifest, pd.DataFrame]:
    """The manifest and the rows; an error where the rows are no longer those that the manifest names."""
    try:
        said = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        rows = pq.ParquetFile(folder / _ROWS).read().to_pandas()
    except (OSError, json.JSONDecodeError, pa.ArrowException) as error:
        raise SnapshotError(f"{folder} is no snapshot: {error}; take it again") from error
    lists = {name: tuple(said[name]) for name in ("features", "columns")}
    manifest = Manifest(**said | lists)
    got = fingerprint({"rows": rows})
    if got != manifest.fingerprint:
        raise SnapshotError(
            f"{folder}: its rows have the fingerprint {got[:16]}, its manifest says {manifest.fingerprint[:16]}: the "
            "file was changed after it was taken; take the snapshot again elsewhere and compare"
        )
    return manifest, rows


def _references(features: FeatureService | list[str]) -> tuple[str, ...]:
    if isinstance(features, list):
        return tuple(features)
    views = features.feature_view_projections
    return tuple(f"{view.name_to_use()}:{field.name}" for view in views for field in view.features)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check_same(folder: Path, stored: Manifest, manifest: Manifest) -> None:
    if stored.fingerprint != manifest.fingerprint:
        raise SnapshotError(
            f"{folder} answered the same request with {stored.fingerprint[:16]} (code {stored.git_sha[:12]}), now it "
            f"is {manifest.fingerprint[:16]} (code {manifest.git_sha[:12]}): the feature tables or the code changed; "
            "the stored one is kept, compare the two"
        )


def _write(folder: Path, manifest: Manifest, rows: pd.DataFrame) -> None:
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), partial / _ROWS)
        (partial / _MANIFEST).write_text(json.dumps(asdict(manifest), indent=2), encoding="utf-8")
        for name in (_ROWS, _MANIFEST):
            with (partial / name).open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
