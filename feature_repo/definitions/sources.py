"""Where the views' rows lie."""

from __future__ import annotations

from pathlib import Path

from feast import FileSource

from feature_repo.market import fundamentals
from feature_repo.pipelines.base import Pipeline


def feature_table(pipeline: Pipeline, *, features_root: Path) -> FileSource:
    """The pipeline's feature table: Parquet parts under ``<features_root>/<view_name>``.

    ``ingest_time`` is Feast's created timestamp: the offline store's rule needs it.
    """
    description = f"Feature table of pipeline {pipeline.name}, version {pipeline.version}"
    return _table(pipeline.view_name, features_root, description)


def fundamentals_table(*, features_root: Path) -> FileSource:
    """The fundamentals' table, beside the pipelines'."""
    return _table(fundamentals.VIEW, features_root, "Fundamentals, a row for each moment a period's figures changed")


def _table(view: str, features_root: Path, description: str) -> FileSource:
    return FileSource(
        name=f"{view}_table",
        path=str(features_root / view),
        timestamp_field="event_time",
        created_timestamp_column="ingest_time",
        description=description,
    )
