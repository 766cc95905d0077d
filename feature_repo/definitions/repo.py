"""The feature store of one market and interval, opened and brought up to date."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Final

import yaml
from feast import Entity, FeatureStore, FeatureView, RepoConfig
from feast.errors import FeastObjectNotFoundException
from feast.feast_object import FeastObject

from feature_repo.definitions.objects import build_repo_objects

REPO: Final = Path(__file__).resolve().parents[1]


def open_feature_store(*, project: str, registry: str, features_root: Path, interval: str) -> FeatureStore:
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
    """
    template = Template((REPO / "feature_store.yaml").read_text())
    settings = template.substitute(PERENNIAL_FEAST_PROJECT=project, PERENNIAL_FEAST_REGISTRY=registry)
    store = FeatureStore(config=RepoConfig(repo_path=REPO, **yaml.safe_load(settings)))
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
