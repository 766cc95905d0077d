import itertools
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

import numpy as np
import pandas as pd
import pytest

from tests.training.dying_client import DyingClient, Killed
from training.artifacts import folder_artifact, verify_manifest, write_manifest
from training.tracking import (
    METRICS_PER_BATCH,
    CycleSummary,
    Tracker,
    TrackingError,
    VariantRecord,
    markets,
    model_name,
)

START = datetime(2024, 5, 6, 21, tzinfo=UTC)
VARIANT = "lstm-l30-technical-h128"


@pytest.fixture
def tracker(databases, tmp_path: Path) -> Tracker:
    return Tracker(databases.url("mlflow"), (tmp_path / "artifacts").as_uri(), f"the market {uuid.uuid4().hex}")


@pytest.fixture
def record(tmp_path: Path) -> VariantRecord:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    manifest = write_manifest(
        folder,
        variant=VARIANT,
        checksum="c0ffee",
        params={"hidden_size": 128, "dropout": 0.1},
        feature_names=("rsi_14",),
        dataset_fingerprint="f" * 64,
        training_span=(datetime(2019, 1, 2, tzinfo=UTC), datetime(2020, 1, 3, tzinfo=UTC)),
        seed=7,
        code_version="abc",
        packages={"numpy": "2.4.0"},
    )
    return VariantRecord(
        cycle_id="c1",
        architecture="lstm",
        family="deep",
        pipeline="technical",
        lookback=30,
        training_key="k1",
        folder=folder,
        manifest=manifest,
        metrics={"test_sharpe_net": 1.5, "test_ic": 0.03, "recovery_time": float("nan"), "worst": float("-inf")},
        fold_table=pd.DataFrame({"fold": [0, 1, 2], "ic": [0.1, np.nan, 0.3], "hit_rate": [0.5, 0.6, 0.7]}),
        series=("ic",),
        started_at=START,
        ended_at=START + timedelta(seconds=90),
    )


@pytest.fixture
def summary(tmp_path: Path) -> CycleSummary:
    report = tmp_path / "drift.html"
    report.write_text("<p>drift")
    names = [f"v{number}" for number in range(4)]
    return CycleSummary(
        cycle_id="c1",
        dataset_fingerprint="f" * 64,
        code_version="abc",
        seed=7,
        ranking=pd.DataFrame(
            {
                "variant": names,
                "architecture": ["lstm", "lstm", "arima", "lgbm"],
                "pipeline": ["technical", "momentum", "technical", "momentum"],
                "score": [0.9, 0.5, np.nan, -0.1],
                "stage": ["Production", "Staging", "None", "None"],
                "why": ["<gate>", "", "", ""],
            }
        ),
        fold_ic=pd.DataFrame([[0.1, np.nan], [0.0, -0.1]], index=names[:2], columns=[0, 1]),
        equity=pd.DataFrame({"v0": [1.0, 1.1]}, index=pd.to_datetime(["2024-01-02", "2024-01-03"], utc=True)),
        reports=[report],
        num_variants=4,
        num_trials=20,
        num_staging=1,
        num_production=1,
        started_at=START,
        ended_at=START + timedelta(minutes=5),
    )


def runs(tracker: Tracker, filter_string: str = "") -> list:
    return list(tracker.client.search_runs([tracker.experiment_id], filter_string))


def files(run) -> Path:
    """Where the artifacts of a run lie."""
    return local(run.info.artifact_uri)


def local(uri: str) -> Path:
    return Path(unquote(urlparse(uri).path))


def crashes(tracker: Tracker) -> Iterator[int]:
    """Let the tracker die after 0, 1, 2 ... writes, until the test's own try doesn't die any more."""
    alive = tracker.client
    for num_writes in itertools.count():
        tracker.client = DyingClient(alive, num_writes)
        yield num_writes
        survived = tracker.client.left > 0
        tracker.client = alive
        if survived:
            return


def test_a_variant_is_one_flat_run_that_mlflow_can_search_and_group(tracker, record):
    run_id = tracker.log_variant(record)
    found = runs(tracker, "tags.family = 'deep' and metrics.test_sharpe_net > 1 and params.dropout = '0.1'")
    assert [run.info.run_id for run in found] == [run_id]
    run = found[0]
    artifact = folder_artifact(record.folder)
    expected = {
        "kind": "variant",
        "cycle_id": "c1",
        "family": "deep",
        "architecture": "lstm",
        "pipeline": "technical",
        "lookback": "30",
        "variant": VARIANT,
        "dataset_fingerprint": "f" * 64,
        "git_sha": "abc",
        "seed": "7",
        "checksum": "c0ffee",
        "artifact_sha256": artifact.sha256,
        "artifact_size": str(artifact.size),
        "mlflow.source.git.commit": "abc",
    }
    assert expected.items() <= run.data.tags.items()
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.info.run_name == VARIANT
    assert (run.info.status, run.info.end_time - run.info.start_time) == ("FINISHED", 90_000)
    assert run.data.params == {"hidden_size": "128", "dropout": "0.1"}


def test_metrics_are_final_values_and_a_few_series_and_never_nan(tracker, record):
    run_id = tracker.log_variant(record)
    data = tracker.client.get_run(run_id).data
    assert data.metrics == {"test_sharpe_net": 1.5, "test_ic": 0.03, "fold/ic": 0.3}
    history = tracker.client.get_metric_history(run_id, "fold/ic")
    assert [(point.step, point.value) for point in history] == [(0, 0.1), (2, 0.3)]


def test_the_saved_model_the_fold_table_and_the_dataset_come_with_the_run(tracker, record):
    run = tracker.client.get_run(tracker.log_variant(record))
    assert verify_manifest(files(run) / "model", sha256=run.data.tags["artifact_sha256"]) == record.manifest
    pd.testing.assert_frame_equal(pd.read_parquet(files(run) / "folds.parquet"), record.fold_table)
    (data_input,) = run.inputs.dataset_inputs
    assert (data_input.dataset.name, data_input.dataset.source) == (tracker.market, "f" * 64)


def test_more_metrics_than_mlflow_takes_at_once_all_arrive(tracker, record):
    many = {f"m{number}": float(number) for number in range(METRICS_PER_BATCH + 5)}
    run_id = tracker.log_variant(replace(record, metrics=many, series=()))
    assert tracker.client.get_run(run_id).data.metrics == many


def test_tracking_leaves_mlflows_global_state_alone(tracker, record):
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    tracker.log_variant(record)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before
    assert mlflow.active_run() is None


def test_a_finished_run_is_left_as_it_is_and_another_cycle_has_its_own(tracker, record):
    first = tracker.log_variant(record)
    assert tracker.log_variant(replace(record, metrics={"test_ic": 0.5})) == first
    assert tracker.client.get_run(first).data.metrics["test_ic"] == 0.03
    assert tracker.log_variant(replace(record, cycle_id="c2")) != first


def test_whichever_write_a_kill_hits_a_rerun_leaves_one_finished_run_and_one_version(tracker, record):
    unfinished = 0
    for num_writes in crashes(tracker):
        attempt = replace(record, cycle_id=f"c{num_writes}", training_key=f"k{num_writes}")
        dying = tracker.client
        try:
            tracker.register(attempt, run_id=tracker.log_variant(attempt))
        except Killed:
            tracker.client = dying.client
            unfinished += any(run.info.status != "FINISHED" for run in runs(tracker))
            run_id = tracker.log_variant(attempt)
            tracker.register(attempt, run_id=run_id)
            tracker.client = dying
        found = tracker.client.search_model_versions(
            f"tags.training_key = 'k{num_writes}' and tags.market = '{tracker.market}'"
        )
        (run,) = runs(tracker, f"tags.cycle_id = 'c{num_writes}'")
        assert run.info.status == "FINISHED"
        assert run.data.metrics.keys() == {"test_sharpe_net", "test_ic", "fold/ic"}
        assert (files(run) / "folds.parquet").exists()
        assert [version.run_id for version in found] == [run.info.run_id]
    assert num_writes > 6 > 4 < unfinished


def test_an_error_while_logging_is_seen_on_the_run(tracker, record):
    with pytest.raises(KeyError):
        tracker.log_variant(replace(record, series=("nonesuch",)))
    assert [run.info.status for run in runs(tracker)] == ["FAILED"]
    tracker.log_variant(record)
    assert [run.info.status for run in runs(tracker)] == ["FINISHED"]


def test_every_fit_is_a_version_of_its_variants_model_without_a_stage(tracker, record):
    run_id = tracker.log_variant(record)
    assert tracker.register(record, run_id=run_id) == 1
    version = tracker.client.get_model_version(model_name(tracker.market, VARIANT), "1")
    assert (version.current_stage, version.run_id, version.status) == ("None", run_id, "READY")
    assert {
        "market": tracker.market,
        "variant": VARIANT,
        "cycle_id": "c1",
        "training_key": "k1",
        "train_from": "2019-01-02T00:00:00+00:00",
        "train_to": "2020-01-03T00:00:00+00:00",
        "dataset_fingerprint": "f" * 64,
        "checksum": "c0ffee",
        "family": "deep",
        "lookback": "30",
        "git_sha": "abc",
    }.items() <= version.tags.items()
    assert "lookback 30; trained on 2019-01-02 to 2020-01-03" in version.description
    assert verify_manifest(local(version.source), sha256=version.tags["artifact_sha256"]) == record.manifest


def test_only_a_new_fit_is_a_new_version(tracker, record):
    run_id = tracker.log_variant(record)
    assert tracker.register(record, run_id=run_id) == 1
    tomorrow = replace(record, cycle_id="c2")
    assert tracker.register(tomorrow, run_id=tracker.log_variant(tomorrow)) == 1
    assert tracker.register(replace(tomorrow, training_key="k2"), run_id=run_id) == 2
    models = tracker.client.search_registered_models(
        f"tags.market = '{tracker.market}' and tags.pipeline = 'technical'"
    )
    assert [model.name for model in models] == [f"{tracker.market}.{VARIANT}"]


def test_markets_are_those_with_a_registered_model(tracker, record):
    assert tracker.market not in markets(tracker.client)  # an experiment alone is no market
    tracker.register(record, run_id=tracker.log_variant(record))
    tracker.client.create_registered_model(f"stranger {uuid.uuid4().hex}")
    found = markets(tracker.client)
    assert found.count(tracker.market) == 1
    assert found == sorted(found)


def test_a_cycle_has_one_summary_with_its_table_plots_and_reports(tracker, summary):
    run_id = tracker.log_cycle_summary(summary)
    (run,) = runs(tracker, "tags.kind = 'summary'")
    assert run.info.run_id == run_id == tracker.log_cycle_summary(summary)
    counts = {"num_variants": 4.0, "num_trials": 20.0, "num_staging": 1.0, "num_production": 1.0}
    assert run.data.metrics == counts
    found = {path.relative_to(files(run)).as_posix() for path in files(run).rglob("*.*")}
    plots = {"ranking", "ic_by_fold", "equity", "score_by_architecture_and_pipeline"}
    tables = {"ranking.csv", "ranking.html", "ranking.parquet", "reports/drift.html"}
    assert found == tables | {f"plots/{name}.png" for name in plots}
    pd.testing.assert_frame_equal(pd.read_parquet(files(run) / "ranking.parquet"), summary.ranking)
    assert "&lt;gate&gt;" in (files(run) / "ranking.html").read_text()
    assert all((files(run) / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in plots)


def test_a_market_keeps_its_experiment(tracker, databases, tmp_path):
    again = Tracker(databases.url("mlflow"), (tmp_path / "elsewhere").as_uri(), tracker.market)
    assert again.experiment_id == tracker.experiment_id
    location = tracker.client.get_experiment(tracker.experiment_id).artifact_location
    assert location == f"{(tmp_path / 'artifacts').as_uri()}/{quote(tracker.market)}"


def test_a_deleted_experiment_is_an_error_that_says_how_to_bring_it_back(tracker, databases):
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match=f"mlflow experiments restore --experiment-id {tracker.experiment_id}"):
        Tracker(databases.url("mlflow"), "file:///anywhere", tracker.market)


def test_an_artifact_root_longer_than_mlflows_column_is_refused_at_once(databases):
    market = uuid.uuid4().hex
    with pytest.raises(TrackingError, match="shorter"):
        Tracker(databases.url("mlflow"), "file:///" + "x" * 117, market)
    longest = Tracker(databases.url("mlflow"), "file:///" + "x" * 116, market)
    run = longest.client.create_run(longest.experiment_id)
    assert len(run.info.artifact_uri) == 200


@pytest.mark.parametrize("market", ["us/equities", "s&p 'core'"])
def test_a_market_name_that_mlflow_cannot_hold_is_refused_at_once(market):
    with pytest.raises(TrackingError, match="rename it in its market"):
        Tracker("postgresql+psycopg://nowhere", "file:///anywhere", market)
