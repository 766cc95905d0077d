"""One feature view a pipeline, and one for the fundamentals."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from feast import Entity, FeatureView, Field
from feast.types import Float64, String

from feature_repo.definitions.sources import feature_table, fundamentals_table
from feature_repo.market import fundamentals
from feature_repo.pipelines.base import Pipeline

TTL: Final = timedelta(days=10)
"""An older value is no longer served: longer than an exchange closes for, short enough to notice a delisting."""


FUNDAMENTALS_TTL: Final = timedelta(days=400)
"""A yearly figure counts until the next one is out, and no longer."""


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


def fundamentals_view(names: Sequence[str], *, entity: Entity, features_root: Path) -> FeatureView:
    """The market's fundamentals, one Float64 feature a name."""
    return FeatureView(
        name=fundamentals.VIEW,
        entities=[entity],
        schema=[Field(name="entity_key", dtype=String), *(Field(name=name, dtype=Float64) for name in names)],
        source=fundamentals_table(features_root=features_root),
        ttl=FUNDAMENTALS_TTL,
        description=f"{len(names)} fundamental figures, each period's as last restated",
    )
