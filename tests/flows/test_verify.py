"""Verifying a registered model: from the home it was made in, from a fresh clone, and after something was changed."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from feature_repo.definitions.repo import open_feature_store
from feature_repo.store.tables import append_rows, feature_names, read_rows
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps import data, fit
from flows.steps.run import Run, name_run
from flows.verify import VerifyError, certificates, find, render, verify_model
from tests.flows.small_market import write_small_market
from training.artifacts import read_manifest
from training.certificate import CERTIFICATE, Certificate
from training.models.spec import Budget
from training.panels import load_panel
from training.tracking import Tracker, VariantRecord
from training.trainer import model_folder, train_fold
from training.variants import Variant, full_grid

NOW = datetime(2022, 6, 1, 8, tzinfo=UTC)
LATER = NOW + timedelta(days=30)
PIPELINE = "momentum"


@pytest.fixture(scope="module")
def variant() -> Variant:
    return next(v for v in full_grid([PIPELINE]) if v.architecture == "lightgbm" and v.lookback == 7)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_market(tmp_path_factory.mktemp("markets") / "small", num_assets=4, num_days=700)


@pytest.fixture(scope="module")
def run(settings: Settings, market: Path) -> Run:
    config = CycleConfig(market=str(market), folds=2)
    return name_run(settings, config, data.load(config, NOW), NOW)


@pytest.fixture(scope="module")
def trained(run: Run, variant: Variant) -> fit.Trained:
    """The live fit of one variant, as a cycle makes it."""
    market = data.load(run.config, NOW)
    data.build_tables(run, market, None)
    registry = f"sqlite:///{run.features}/registry.db"
    store = open_feature_store(project="small", registry=registry, features_root=run.features, interval="1d")
    panels = data.assemble_panels(run, market, [PIPELINE], store)
    task = fit.fold_task(run, panels, variant, panels.live, kind="live", costs=market.info.costs, tuned={})
    task = replace(task, budget=Budget(max_trees=5))
    result = train_fold(task)
    assert result.ok, result.reason
    return fit.Trained(variant=variant, tasks=[task], results=[result])


@pytest.fixture(scope="module")
def tracker(settings: Settings, run: Run, trained: fit.Trained, variant: Variant) -> Iterator[Tracker]:
    tracker = Tracker(f"sqlite:///{settings.home}/mlflow.db", settings.artifacts_url, run.market)
    folder = model_folder(trained.tasks[-1])
    record = VariantRecord(
        cycle_id=run.cycle_id,
        architecture=variant.architecture,
        family=variant.family,
        pipeline=variant.pipeline,
        lookback=variant.lookback,
        training_key=trained.tasks[-1].key,
        folder=folder,
        manifest=read_manifest(folder),
        metrics={},
        fold_table=pd.DataFrame(),
        series=(),
        started_at=NOW,
        ended_at=NOW,
    )
    tracker.log_variants([record])
    return tracker


@pytest.fixture
def copy(settings: Settings, tracker: Tracker, trained: fit.Trained, tmp_path: Path) -> Settings:
    """A home with the same tables and panels, to be damaged."""
    for name in ("features", "panels"):
        shutil.copytree(settings.home / name, tmp_path / "home" / name)
    return Settings(home=tmp_path / "home")


def _verify(settings: Settings, tracker: Tracker, variant: Variant, market: str = "") -> Certificate:
    return verify_model(settings, tracker.client, variant.id, market=market, now=LATER)


def _wrong(made: Certificate) -> dict[str, str]:
    return {item.name: item.status for item in made.items if item.status != "ok"}


def test_a_registered_model_is_reproduced_and_its_certificate_kept(
    settings: Settings, tracker: Tracker, variant: Variant
) -> None:
    made = _verify(settings, tracker, variant)
    assert made.ok, made.describe()
    assert "rebuilt" in made.items[2].got
    assert "saved" in made.items[2].got
    named = find(tracker.client, variant.id)
    kept = Path(tracker.client.download_artifacts(str(named.version.run_id), CERTIFICATE))
    assert Certificate.from_json(kept.read_text()) == made
    assert named.version.tags["certificate"] == "ok"
    assert named.version.tags["certificate_artifact_sha256"] == named.version.tags["artifact_sha256"]


def test_a_fresh_clone_needs_the_market_data_alone(
    tracker: Tracker, trained: fit.Trained, variant: Variant, market: Path, tmp_path: Path
) -> None:
    """No tables and no panels are there, and the data lie elsewhere."""
    there = shutil.copytree(market, tmp_path / "elsewhere" / "small")
    made = _verify(Settings(home=tmp_path / "empty"), tracker, variant, str(there))
    assert made.ok, made.describe()
    assert "saved" not in made.items[2].got


def test_what_became_known_later_changes_nothing(
    copy: Settings, tracker: Tracker, trained: fit.Trained, variant: Variant, market: Path, tmp_path: Path
) -> None:
    """The market has new bars and a restated one, and the tables have been brought up to date with them."""
    there = shutil.copytree(market, tmp_path / "small")
    bars = pd.read_parquet(there / "bars_1d.parquet")
    known = (LATER - timedelta(days=1)).replace(hour=22)
    new = (
        bars.groupby("entity_key")
        .tail(1)
        .assign(event_time=pd.Timestamp(known), ingest_time=pd.Timestamp(known) + pd.Timedelta("15min"))
    )
    old = bars.groupby("entity_key").nth(-20)
    restated = old.assign(close=1.1 * old["close"], ingest_time=pd.Timestamp(known))
    times = dict.fromkeys(("event_time", "ingest_time"), "datetime64[us, UTC]")
    pd.concat([bars, restated, new]).astype(times).to_parquet(there / "bars_1d.parquet", index=False)
    config = CycleConfig(market=str(there), folds=2)
    later = data.load(config, LATER)
    before = set(copy.features.rglob("*.parquet"))
    data.build_tables(name_run(copy, config, later, LATER), later, None)
    assert set(copy.features.rglob("*.parquet")) - before
    made = _verify(copy, tracker, variant, str(there))
    assert made.ok, made.describe()


def test_rows_that_were_backfilled_later_change_nothing(copy: Settings, tracker: Tracker, variant: Variant) -> None:
    """They say that they were known long ago, but nobody had written them when the model was fitted."""
    table = copy.features / "small" / "1d" / f"{PIPELINE}_v1"
    rows = read_rows(table)
    values = {name: 2 * rows[name] for name in feature_names(table)}
    minutes = rows["event_time"] + pd.Timedelta("5min")  # so the bar's sample would see them
    assert (minutes < rows["ingest_time"]).all()
    assert append_rows(table, rows.assign(**values, event_time=minutes, ingest_time=minutes, written_at=LATER))
    made = _verify(copy, tracker, variant)
    assert made.ok, made.describe()


def _last_before_the_panel(bars: pd.DataFrame, trained: fit.Trained) -> pd.Series:
    """The bar of an asset whose close no label saw, only features."""
    first = pd.Timestamp(load_panel(trained.tasks[-1].panel).event_times_T[0], tz="UTC")
    own = bars[(bars["entity_key"] == "A0") & (bars["event_time"] < first)]
    return pd.Series(bars.index == own.index[-1], index=bars.index)


def test_data_that_only_features_saw_are_compared_with_what_the_tables_were_made_of(
    copy: Settings, tracker: Tracker, trained: fit.Trained, variant: Variant, market: Path, tmp_path: Path
) -> None:
    there = shutil.copytree(market, tmp_path / "small")
    bars = pd.read_parquet(there / "bars_1d.parquet")
    bars.loc[_last_before_the_panel(bars, trained), "close"] *= 1.001
    bars.to_parquet(there / "bars_1d.parquet", index=False)
    made = _verify(copy, tracker, variant, str(there))
    assert _wrong(made) == {"training data": "not ok"}
    assert f"from the data in {there}" in made.items[2].got


def test_a_version_dated_back_changes_nothing_once_a_run_has_recorded_it(
    copy: Settings, tracker: Tracker, trained: fit.Trained, variant: Variant, market: Path, tmp_path: Path
) -> None:
    there = shutil.copytree(market, tmp_path / "small")
    bars = pd.read_parquet(there / "bars_1d.parquet")
    old = bars[_last_before_the_panel(bars, trained)]
    back = old.assign(close=1.1 * old["close"], ingest_time=old["ingest_time"] + pd.Timedelta("5min"))
    at = old.index[0] + 1
    pd.concat([bars[:at], back, bars[at:]]).to_parquet(there / "bars_1d.parquet", index=False)
    assert _wrong(_verify(copy, tracker, variant, str(there))) == {"training data": "not ok"}
    config = CycleConfig(market=str(there), folds=2)
    later = data.load(config, LATER)
    data.build_tables(name_run(copy, config, later, LATER), later, None)
    made = _verify(copy, tracker, variant, str(there))
    assert made.ok, made.describe()


def test_a_changed_byte_of_a_feature_table_is_caught_by_the_training_data_alone(
    copy: Settings, tracker: Tracker, variant: Variant
) -> None:
    (part,) = (copy.features / "small" / "1d" / f"{PIPELINE}_v1").glob("*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(bytes(content))
    assert _wrong(_verify(copy, tracker, variant)) == {"training data": "not ok"}
    assert find(tracker.client, variant.id).version.tags["certificate"] == "training data not ok"


def test_a_changed_byte_of_the_saved_panel_is_caught_by_the_training_data_alone(
    copy: Settings, tracker: Tracker, trained: fit.Trained, variant: Variant
) -> None:
    file = copy.panels / trained.tasks[-1].panel.name / "x_TNF.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert _wrong(_verify(copy, tracker, variant)) == {"training data": "not ok"}


def test_a_changed_price_is_caught_by_the_training_data_alone(
    copy: Settings, tracker: Tracker, variant: Variant, market: Path, tmp_path: Path
) -> None:
    there = shutil.copytree(market, tmp_path / "small")
    bars = pd.read_parquet(there / "bars_1d.parquet")
    bars.loc[500, "close"] *= 1.001
    bars.to_parquet(there / "bars_1d.parquet", index=False)
    assert _wrong(_verify(copy, tracker, variant, str(there))) == {"training data": "not ok"}


def test_without_the_market_the_data_are_not_certified(
    copy: Settings, tracker: Tracker, variant: Variant, tmp_path: Path
) -> None:
    made = _verify(copy, tracker, variant, str(tmp_path / "nowhere"))
    assert _wrong(made) == {"training data": "not checkable"}
    assert "--market" in made.items[2].got


def test_the_gates_are_handed_the_certificate_of_a_fit(run: Run, trained: fit.Trained, variant: Variant) -> None:
    found = certificates(run, {variant.id: trained}, [variant.id])
    assert found[variant.id].ok, found[variant.id].why
    kept = Certificate.from_json((model_folder(trained.tasks[-1]).parent / CERTIFICATE).read_text())
    assert kept.finding() == found[variant.id]
    other = certificates(replace(run, code="other"), {variant.id: trained}, [variant.id])
    assert not other[variant.id].ok
    assert "code version" in other[variant.id].why


def test_a_model_is_found_by_its_id_its_market_and_its_stage(tracker: Tracker, variant: Variant) -> None:
    assert find(tracker.client, f"small.{variant.id}").held == find(tracker.client, variant.id).held
    with pytest.raises(VerifyError, match=re.escape(f"in stage production: small.{variant.id} is in None")):
        find(tracker.client, f"{variant.id}@production")
    with pytest.raises(VerifyError, match="no stage 'live' to verify; allowed are Staging, Production"):
        find(tracker.client, f"{variant.id}@live")
    with pytest.raises(VerifyError, match="no model 'nothing' among 1"):
        find(tracker.client, "nothing")


def test_the_rebuilt_panel_is_the_one_fitted_on(trained: fit.Trained) -> None:
    task = trained.tasks[-1]
    assert (
        load_panel(task.panel).fingerprint
        == task.panel_fingerprint
        == read_manifest(model_folder(task)).dataset_fingerprint
    )


def _printed(made: Certificate) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(console, made)
    return console.file.getvalue()


def test_what_is_printed_of_an_ok_item_is_that_it_is_as_recorded(
    settings: Settings, tracker: Tracker, variant: Variant
) -> None:
    made = _verify(settings, tracker, variant)
    printed = _printed(made)
    assert printed.count("as recorded") == len(made.items)
    assert not any(item.expected in printed for item in made.items)
    assert "check out" not in printed


def test_where_the_source_is_another_the_commit_to_check_out_is_told(
    settings: Settings, tracker: Tracker, variant: Variant
) -> None:
    made = _verify(settings, tracker, variant)
    told = {
        "commit abc123; source 0a1b": "check out abc123 and verify again",
        "commit abc123-dirty; source 0a1b": "check out abc123 (it also had changes that were never committed) and",
        "commit unknown; source 0a1b": "nobody knows its commit",
    }
    for expected, said in told.items():
        code = replace(made.items[0], status="not ok", expected=expected, got="commit def; source [2c3d]")
        printed = _printed(replace(made, items=(code, *made.items[1:])))
        assert said in printed
        assert "source [2c3d]" in printed
    package = replace(
        made.items[0], status="not ok", expected="commit abc123; numpy 2.0", got="commit abc123; numpy 2.4"
    )
    assert "check out" not in _printed(replace(made, items=(package, *made.items[1:])))


def test_an_unknown_model_is_refused_with_those_that_are_alike(tracker: Tracker, variant: Variant) -> None:
    with pytest.raises(VerifyError, match=rf"did you mean small\.{variant.id}\?; on paper or live: none"):
        find(tracker.client, variant.id[:-1])
    with pytest.raises(VerifyError, match="no model 'nosuch' among 1 registered ones; on paper or live: none"):
        find(tracker.client, "nosuch")
