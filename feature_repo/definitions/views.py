"""One feature view a pipeline."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from feast import Entity, FeatureView, Field
from feast.types import Float64, String

from feature_repo.definitions.sources import feature_table
from feature_repo.pipelines.base import Pipeline

TTL: Final = timedelta(days=10)
"""An older value is no longer served: longer than an exchange closes for, short enough to notice a delisting."""


def feature_view(pipeline: Pipeline, *, entity: Entity, features_root: Path, interval: str) -> FeatureView:
    """The pipeline's features, all Float64, with the pipeline's version and window as tags."""
    fields = [Field(name=f.name, dtype=Float64, description=f.description) for f in pipeline.features]
    return FeatureView(
        name=pipeline.view_name,
        entities=[entity],
        # the join key is declared, so that Feast needn't read the table, which may not exist yet, to infer it
        schema=[Field(name="entity_key", dtype=String), *fields],
        source=feature_table(pipeline, features_root=features_root),
        ttl=TTL,
        description=f"Pipeline {pipeline.name} of {interval} bars: {len(fields)} features",
        tags={
            "pipeline": pipeline.name,
            "version": str(pipeline.version),
            "warmup_bars": str(pipeline.warmup_bars),
            "interval": interval,
        },
    )
