"""Snapshots: the same request gives the same rows, whatever was written since."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.definitions.repo import open_feature_store
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import PIPELINES
from feature_repo.store.snapshots import SnapshotError, read_snapshot, take_snapshot
from feature_repo.store.tables import append_rows

START = datetime(2021, 1, 1, tzinfo=UTC)
RUN_AT = datetime(2024, 1, 1, tzinfo=UTC)
ASKED = pd.DataFrame(
    {
        "entity_key": ["A", "B", "A", "unknown"],
        "event_timestamp": [START + timedelta(days=days) for days in (150, 150, 80.5, 100)],
    }
)


def write(root: Path, *, num_days: int, written_at: datetime, seed: int = 0, lag: timedelta = timedelta(0)) -> None:
    rng = np.random.default_rng(seed)
    time = pd.date_range(START, periods=num_days, freq="D").as_unit("us")
    close = 100.0 * np.exp(rng.normal(0.0, 0.01, (2, num_days)).cumsum(axis=1))
    bars = [
        pd.DataFrame({"entity_key": name, "event_time": time, "ingest_time": time + lag, "close": of})
        for name, of in zip("AB", close, strict=True)
    ]
    for name in ("bar", "momentum"):
        how = {"producer": "test", "producer_version": "abc", "run_id": "r", "written_at": written_at}
        rows = build_features(PIPELINES[name], pd.concat(bars, ignore_index=True), **how)
        append_rows(root / PIPELINES[name].view_name, rows)


def snapshot(folder: Path, *, written_before: datetime | None = RUN_AT, git_sha: str = "abc"):
    store = open_feature_store(
        project="toy_1d",
        registry=f"sqlite:///{folder / 'registry.db'}",
        features_root=folder / "features",
        interval="1d",
        written_before=written_before,
    )
    return take_snapshot(store, ASKED, store.get_feature_service("momentum_v1"), folder / "snapshots", git_sha=git_sha)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "features", num_days=200, written_at=RUN_AT - timedelta(hours=1))
    return tmp_path


def test_a_snapshot_says_what_was_asked_and_holds_the_answer(folder: Path) -> None:
    manifest = snapshot(folder)
    stored, rows = read_snapshot(folder / "snapshots" / manifest.request[:16])
    assert stored == manifest
    assert manifest.num_rows == len(rows) == len(ASKED)
    assert rows["entity_key"].tolist() == ASKED["entity_key"].tolist()
    assert rows["momentum_v1__return_10"].notna().tolist() == [True, True, False, False]
    assert "momentum_v1:return_10" in manifest.features
    assert manifest.versions == {"bar_v1": "1", "momentum_v1": "1"}
    assert manifest.git_sha == "abc"
    assert {"feast", "perennial"} <= set(manifest.packages)


def test_the_same_request_gives_the_same_fingerprint_after_a_later_backfill(folder: Path) -> None:
    before = snapshot(folder)
    # dated into the past, as a backfill may be: by the two times alone it was known all along
    write(folder / "features", num_days=200, written_at=RUN_AT + timedelta(days=1), seed=1, lag=timedelta(seconds=1))
    assert snapshot(folder).fingerprint == before.fingerprint
    later = snapshot(folder, written_before=RUN_AT + timedelta(days=2))
    assert later.request != before.request
    assert later.fingerprint != before.fingerprint, "without the limit the backfill changes what was known then"


def test_a_store_without_a_limit_is_refused(folder: Path) -> None:
    with pytest.raises(SnapshotError, match="written_before"):
        snapshot(folder, written_before=None)


def test_an_answer_that_changed_is_reported_and_the_stored_one_kept(folder: Path) -> None:
    before = snapshot(folder)
    part = next((folder / "features" / "momentum_v1").glob("*.parquet"))
    pd.read_parquet(part).assign(return_10=0.0).to_parquet(part)
    with pytest.raises(SnapshotError, match=r"code abc.*code def"):
        snapshot(folder, git_sha="def")
    assert read_snapshot(folder / "snapshots" / before.request[:16])[0] == before


def test_changed_rows_are_detected(folder: Path) -> None:
    where = folder / "snapshots" / snapshot(folder).request[:16]
    _, rows = read_snapshot(where)
    rows.assign(bar_v1__ret_1=0.0).to_parquet(where / "rows.parquet", index=False)
    with pytest.raises(SnapshotError, match="changed after it was taken"):
        read_snapshot(where)
    (where / "manifest.json").write_text("{")
    with pytest.raises(SnapshotError, match="is no snapshot"):
        read_snapshot(where)
