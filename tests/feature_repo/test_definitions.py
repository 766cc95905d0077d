"""The Feast definitions: what is registered, how, and that reading through them gives the rule's values."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView
from feast.repo_operations import get_repo_files
from feast.types import Float64

from feature_repo.definitions.objects import build_repo_objects
from feature_repo.definitions.repo import REPO, open_feature_store
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import CATALOGUE, PIPELINES
from feature_repo.store.tables import append_rows

START = pd.Timestamp("2023-01-01", tz="UTC")


@pytest.fixture
def features_root(tmp_path: Path) -> Path:
    return tmp_path / "features" / "toy" / "1d"


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


def open_toy(registry: str, features_root: Path) -> FeatureStore:
    return open_feature_store(project="toy_1d", registry=registry, features_root=features_root, interval="1d")


def test_feast_brings_torch_along_only_when_asked_for_tensors():
    code = "; ".join(
        [
            "import sys, typeguard",
            "checked = typeguard.typechecked",
            "import feature_repo.definitions.repo, feast.online_response",
            "assert typeguard.typechecked is checked",
            "assert 'torch' not in sys.modules",
            "print(feast.online_response.get_torch().__name__)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("torch\n", 0), done.stderr


def updated_at(store: FeatureStore) -> dict[str, object]:
    return {
        **{view.name: view.last_updated_timestamp for view in store.list_feature_views()},
        **{f"service {service.name}": service.last_updated_timestamp for service in store.list_feature_services()},
    }


def bars(num_days: int = 160) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    time = pd.date_range(START, periods=num_days, freq="D").as_unit("us")
    close = 100.0 * np.exp(rng.normal(0.0, 0.01, num_days).cumsum())
    return pd.DataFrame({"entity_key": "A", "event_time": time, "ingest_time": time, "close": close})


def write_features(pipeline_name: str, features_root: Path, market: pd.DataFrame) -> pd.DataFrame:
    pipeline = PIPELINES[pipeline_name]
    rows = build_features(
        pipeline,
        market,
        producer="test",
        producer_version="abc",
        run_id="r",
        written_at=datetime(2024, 1, 1, tzinfo=UTC),
    )
    append_rows(features_root / pipeline.view_name, rows)
    return rows


def test_objects_are_one_entity_a_view_a_pipeline_and_a_service_a_variant_input(features_root: Path) -> None:
    objects = build_repo_objects(features_root=features_root, interval="1d")
    views = {declared.name: declared for declared in objects if isinstance(declared, FeatureView)}
    services = {declared.name: declared for declared in objects if isinstance(declared, FeatureService)}
    assert [declared.join_key for declared in objects if isinstance(declared, Entity)] == ["entity_key"]
    assert set(views) == {pipeline.view_name for pipeline in PIPELINES.values()}
    assert set(services) == {pipeline.view_name for pipeline in CATALOGUE.values()}
    for service in services.values():
        assert [projection.name for projection in service.feature_view_projections] == ["bar_v1", service.name]


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=lambda declared: declared.name)
def test_a_view_says_what_its_pipeline_is(pipeline, features_root: Path) -> None:
    objects = build_repo_objects(features_root=features_root, interval="1h")
    view = next(o for o in objects if isinstance(o, FeatureView) and o.name == pipeline.view_name)
    assert [field.name for field in view.features] == [feature.name for feature in pipeline.features]
    assert {field.dtype for field in view.features} == {Float64}
    assert view.ttl == timedelta(days=10)
    assert view.tags == {
        "pipeline": pipeline.name,
        "version": str(pipeline.version),
        "warmup_bars": str(pipeline.warmup_bars),
        "interval": "1h",
    }
    assert view.batch_source.timestamp_field == "event_time"
    assert view.batch_source.created_timestamp_column == "ingest_time"
    assert view.batch_source.path == str(features_root / pipeline.view_name)


def test_opening_registers_once_and_then_only_reads(registry: str, features_root: Path) -> None:
    first = updated_at(open_toy(registry, features_root))
    assert set(first) == {
        *(pipeline.view_name for pipeline in PIPELINES.values()),
        *(f"service {pipeline.view_name}" for pipeline in CATALOGUE.values()),
    }
    assert updated_at(open_toy(registry, features_root)) == first


def test_a_changed_definition_is_registered_anew(registry: str, features_root: Path, tmp_path: Path) -> None:
    before = updated_at(open_toy(registry, features_root))
    store = open_toy(registry, tmp_path / "moved" / "1d")
    assert store.get_feature_view("bar_v1").batch_source.path == str(tmp_path / "moved" / "1d" / "bar_v1")
    assert updated_at(store)["bar_v1"] != before["bar_v1"]


def test_markets_share_a_registry_without_mixing(registry: str, tmp_path: Path) -> None:
    roots = {name: tmp_path / "features" / name / "1d" for name in ("stocks", "crypto")}
    stores = {
        name: open_feature_store(project=f"{name}_1d", registry=registry, features_root=root, interval="1d")
        for name, root in roots.items()
    }
    for name, store in stores.items():
        assert store.get_feature_view("bar_v1").batch_source.path == str(roots[name] / "bar_v1")


def test_a_service_reads_features_and_bar_as_they_were_known(registry: str, features_root: Path) -> None:
    market = bars()
    restated = market.iloc[[150]].assign(ingest_time=START + timedelta(days=156), close=1.0)
    market = pd.concat([market, restated], ignore_index=True)
    rows = {name: write_features(name, features_root, market) for name in ("bar", "momentum")}
    store = open_toy(registry, features_root)
    moments = [START + timedelta(days=days) for days in (100, 150, 155.5, 156.5, 159)]
    asked = pd.DataFrame({"entity_key": "A", "event_timestamp": moments})
    got = store.get_historical_features(entity_df=asked, features=store.get_feature_service("momentum_v1")).to_df()
    for moment, answer in zip(moments, got.to_dict("records"), strict=True):
        for name, table in rows.items():
            known = table[table["ingest_time"] <= moment].sort_values(["event_time", "ingest_time"])
            for feature in PIPELINES[name].features:
                want = known[feature.name].iloc[-1] if len(known) else np.nan
                np.testing.assert_array_equal(answer[feature.name], want, err_msg=f"{feature.name} at {moment}")
    assert got["return_10"].iloc[2] != got["return_10"].iloc[3]


def test_feast_sees_one_module_only() -> None:
    assert [path.name for path in get_repo_files(REPO)] == ["feast_objects.py"]


def test_feast_apply_registers_the_same_objects(
    registry: str, features_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_FEAST_PROJECT", "toy_1d")
    monkeypatch.setenv("PERENNIAL_FEAST_REGISTRY", registry)
    monkeypatch.setenv("PERENNIAL_FEATURES_ROOT", str(features_root))
    command = [str(Path(sys.executable).with_name("feast")), "apply"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    applied = updated_at(FeatureStore(repo_path=str(REPO)))
    assert len(applied) == len(PIPELINES) + len(CATALOGUE)
    assert updated_at(open_toy(registry, features_root)) == applied, "nothing was left to register"
