"""Where the views' rows lie."""

from __future__ import annotations

from pathlib import Path

from feast import FileSource

from feature_repo.pipelines.base import Pipeline


def feature_table(pipeline: Pipeline, *, features_root: Path) -> FileSource:
    """The pipeline's feature table: Parquet parts under ``<features_root>/<view_name>``.

    ``ingest_time`` is Feast's created timestamp: the offline store's rule needs it.
    """
    return FileSource(
        name=f"{pipeline.view_name}_table",
        path=str(features_root / pipeline.view_name),
        timestamp_field="event_time",
        created_timestamp_column="ingest_time",
        description=f"Feature table of pipeline {pipeline.name}, version {pipeline.version}",
    )
