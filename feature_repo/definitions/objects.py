"""Everything the feature registry holds for one market and interval."""

from __future__ import annotations

from pathlib import Path

from feast import Entity, FeatureService
from feast.feast_object import FeastObject

from feature_repo.definitions.entities import asset
from feature_repo.definitions.views import feature_view, fundamentals_view
from feature_repo.market import fundamentals
from feature_repo.pipelines.catalog import CATALOGUE, PIPELINES
from feature_repo.store.tables import feature_names


def build_repo_objects(*, features_root: Path, interval: str) -> list[FeastObject]:
    """The entity, one view a pipeline, and one service a variant input.

    A service is named as its pipeline's view and serves that view with the ``bar`` view beside it: features, and the
    prices and volatility that labels and books are made of. A market whose table of fundamentals is there has their
    view and service too.
    """
    entity = asset()
    views = {
        name: feature_view(pipeline, entity=entity, features_root=features_root, interval=interval)
        for name, pipeline in PIPELINES.items()
    }
    services = [
        FeatureService(
            name=pipeline.view_name,
            features=[views["bar"], views[name]],
            description=f"What a variant on pipeline {name} sees: its features and the bar",
            tags={"pipeline": name, "interval": interval},
        )
        for name, pipeline in CATALOGUE.items()
    ]
    return [entity, *views.values(), *services, *_fundamentals(entity, features_root)]


def _fundamentals(entity: Entity, features_root: Path) -> list[FeastObject]:
    names = feature_names(features_root / fundamentals.VIEW)
    if not names:
        return []
    view = fundamentals_view(names, entity=entity, features_root=features_root)
    return [view, FeatureService(name=view.name, features=[view], description=view.description)]
