"""The feature store of one market and interval, opened and brought up to date."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from string import Template
from typing import Final

import feature_repo.definitions.quick_feast  # noqa: F401

# isort: split
import yaml
from feast import Entity, FeatureStore, FeatureView, RepoConfig
from feast.errors import FeastObjectNotFoundException
from feast.feast_object import FeastObject

from feature_repo.definitions.objects import build_repo_objects

REPO: Final = Path(__file__).resolve().parents[1]


def open_feature_store(
    *,
    project: str,
    registry: str,
    features_root: Path,
    interval: str,
    written_before: datetime | None = None,
    redis_url: str | None = None,
) -> FeatureStore:
    """The feature store configured by ``feature_store.yaml``, its objects registered.

    Objects that the registry holds already, unchanged, are left alone, so a second call only reads.

    Parameters
    ----------
    project
        Feast project, letters, digits and underscores: one a market and interval.
    registry
        SQLAlchemy URL of the registry, ``postgresql+psycopg://...`` or ``sqlite:///...``.
    features_root
        Folder that holds one folder a feature table.
    written_before
        Leave out rows written later (aware), so that what was built then can be built again; ``None`` takes all.
    redis_url
        Serve online from this Redis; ``None``: from the embedded store beside the feature tables.
    """
    template = Template((REPO / "feature_store.yaml").read_text())
    settings = template.substitute(
        PERENNIAL_FEAST_PROJECT=project, PERENNIAL_FEAST_REGISTRY=registry, PERENNIAL_FEATURES_ROOT=features_root
    )
    config = yaml.safe_load(settings)
    config["offline_store"]["written_before"] = written_before
    if redis_url is not None:
        config["online_store"] = {"type": config["online_store"]["type"], "backend": "redis", "url": redis_url}
    store = FeatureStore(config=RepoConfig(repo_path=REPO, **config))
    wanted = build_repo_objects(features_root=features_root, interval=interval)
    if any(_registered(store, wish) != wish for wish in wanted):
        store.apply(wanted)
    return store


def _registered(store: FeatureStore, wish: FeastObject) -> FeastObject | None:
    try:
        if isinstance(wish, Entity):
            return store.get_entity(wish.name)
        if isinstance(wish, FeatureView):
            return store.get_feature_view(wish.name)
        return store.get_feature_service(wish.name)
    except FeastObjectNotFoundException:
        return None
