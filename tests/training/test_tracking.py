import itertools
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlparse

import pandas as pd
import pytest

from tests.training.dying_client import DyingClient, Killed
from tests.training.tracking_makers import VARIANT, make_record, make_summary, of_variant
from training.artifacts import folder_artifact, verify_manifest
from training.summary_pages import conclusion
from training.tracking import (
    RUN_KEY,
    RUNS_PAGE,
    CycleSummary,
    FailedVariant,
    Tracker,
    TrackingError,
    VariantRecord,
    markets,
    model_name,
)

MLFLOWS_METRICS_AT_ONCE = 1000


@pytest.fixture
def tracker(databases, tmp_path: Path) -> Tracker:
    return Tracker(databases.url("mlflow"), (tmp_path / "artifacts").as_uri(), f"the market {uuid.uuid4().hex}")


@pytest.fixture
def record(tmp_path: Path) -> VariantRecord:
    return make_record(tmp_path / "saved")


@pytest.fixture
def failed(record) -> FailedVariant:
    return FailedVariant(
        cycle_id="c1",
        variant="var-l60-ohlcv-p2",
        architecture="var",
        family="econometric",
        pipeline="ohlcv",
        lookback=60,
        params={"order": 2},
        dataset_fingerprint="f" * 64,
        seed=7,
        code_version="abc",
        reason="LinAlgError: singular matrix",
        started_at=record.started_at,
        ended_at=record.ended_at,
    )


@pytest.fixture
def summary(tmp_path: Path) -> CycleSummary:
    report = tmp_path / "drift.html"
    report.write_text("<p>drift")
    return replace(make_summary(), reports=[report])


def runs(tracker: Tracker, filter_string: str = "") -> list:
    return list(tracker.client.search_runs([tracker.experiment_id], filter_string))


def logged(tracker: Tracker, record: VariantRecord | FailedVariant):
    """Log a record and give its run."""
    if isinstance(record, VariantRecord):
        tracker.log_variants([record])
    else:
        tracker.log_failures([record])
    (run,) = runs(tracker, f"tags.`{RUN_KEY}` = '{record.cycle_id}/{record.variant}'")
    return run


def files(run) -> Path:
    """Where the artifacts of a run lie."""
    return local(run.info.artifact_uri)


def local(uri: str) -> Path:
    return Path(unquote(urlparse(uri).path))


class Watched:
    """A client some of whose methods are replaced by watched ones."""

    def __init__(self, client, **methods) -> None:
        self.client, self.methods = client, methods

    def __getattr__(self, name: str):
        return self.methods.get(name) or getattr(self.client, name)


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
    run_id = logged(tracker, record).info.run_id
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
        "strategy_type": "technical",
        "lookback": "30",
        "variant": VARIANT,
        "training_key": "k1",
        "dataset_fingerprint": "f" * 64,
        "git_sha": "abc",
        "seed": "7",
        "checksum": "c0ffee",
        "artifact_type": "model",
        "artifact_sha256": artifact.sha256,
        "artifact_size": str(artifact.size),
        "mlflow.source.git.commit": "abc",
    }
    assert expected.items() <= run.data.tags.items()
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.info.run_name == VARIANT
    assert (run.info.status, run.info.end_time - run.info.start_time) == ("FINISHED", 90_000)
    assert run.data.params == {"hidden_size": "128", "dropout": "0.1"}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("metrics.test_sharpe_net > 1", True),
        ("metrics.test_sharpe_net > 2", False),
        ("tags.family = 'deep' and tags.pipeline = 'technical' and tags.lookback = '30'", True),
        ("tags.strategy_type ILIKE 'TECH%'", True),
        ("tags.family = 'classical'", False),
        ("metrics.train_fit_s <= 12 and attributes.status = 'FINISHED'", True),
        ("metrics.`fold/ic` > 0.2", True),
        ("params.hidden_size = '128' and tags.failure IS NULL", True),
    ],
)
def test_searches_as_typed_into_the_ui(tracker, record, asked, found):
    tracker.log_variants([record])
    assert len(runs(tracker, asked)) == found


def test_metrics_are_final_values_and_a_few_series_and_never_nan(tracker, record):
    run = logged(tracker, record)
    assert run.data.metrics == {"test_sharpe_net": 1.5, "test_ic": 0.03, "train_fit_s": 12.0, "fold/ic": 0.3}
    history = tracker.client.get_metric_history(run.info.run_id, "fold/ic")
    assert [(point.step, point.value) for point in history] == [(0, 0.1), (2, 0.3)]


def test_the_saved_model_the_fold_table_and_the_dataset_come_with_the_run(tracker, record):
    run = logged(tracker, record)
    assert verify_manifest(files(run) / "model", sha256=run.data.tags["artifact_sha256"]) == record.manifest
    pd.testing.assert_frame_equal(pd.read_parquet(files(run) / "folds.parquet"), record.fold_table)
    (data_input,) = run.inputs.dataset_inputs
    assert (data_input.dataset.name, data_input.dataset.source) == (tracker.market, "f" * 64)


def test_more_metrics_than_mlflow_takes_at_once_all_arrive(tracker, record):
    many = {f"m{number}": float(number) for number in range(MLFLOWS_METRICS_AT_ONCE + 5)}
    run = logged(tracker, replace(record, metrics={"test": many}, series=()))
    assert run.data.metrics == {f"test_{name}": value for name, value in many.items()}


def test_tracking_leaves_mlflows_global_state_alone(tracker, record, failed):
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    tracker.log_variants([record])
    tracker.log_failures([failed])
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before
    assert mlflow.active_run() is None


def test_a_finished_run_is_left_as_it_is_and_another_cycle_has_its_own(tracker, record):
    first = logged(tracker, record)
    again = logged(tracker, replace(record, metrics={"test": {"ic": 0.5}}))
    assert again.info.run_id == first.info.run_id
    assert again.data.metrics["test_ic"] == 0.03
    assert logged(tracker, replace(record, cycle_id="c2")).info.run_id != first.info.run_id


def test_a_cycles_runs_are_looked_up_once_however_many_there_are(tracker, record):
    records = [of_variant(record, f"v{number}") for number in range(5)]
    tracker.log_variants(records[:2])
    searches = []
    search_runs = tracker.client.search_runs
    tracker.client = Watched(tracker.client, search_runs=lambda *a, **k: searches.append(a) or search_runs(*a, **k))
    tracker.log_variants([*records, replace(records[0], cycle_id="c2")])
    assert len(searches) == 2  # a cycle each
    keys = sorted(run.data.tags[RUN_KEY] for run in tracker.search("tags.kind = 'variant'"))
    assert keys == [*(f"c1/v{number}" for number in range(5)), "c2/v0"]


def test_whichever_write_a_kill_hits_a_rerun_leaves_one_finished_run_and_one_version(tracker, record):
    unfinished = 0
    for num_writes in crashes(tracker):
        attempt = replace(record, cycle_id=f"c{num_writes}", training_key=f"k{num_writes}")
        dying = tracker.client
        try:
            tracker.log_variants([attempt])
        except Killed:
            tracker.client = dying.client
            unfinished += any(run.info.status != "FINISHED" for run in runs(tracker))
            tracker.log_variants([attempt])
            tracker.client = dying
        found = tracker.client.search_model_versions(
            f"tags.training_key = 'k{num_writes}' and tags.market = '{tracker.market}'"
        )
        (run,) = runs(tracker, f"tags.cycle_id = 'c{num_writes}'")
        assert run.info.status == "FINISHED"
        assert run.data.metrics.keys() == {"test_sharpe_net", "test_ic", "train_fit_s", "fold/ic"}
        assert (files(run) / "folds.parquet").exists()
        assert [version.run_id for version in found] == [run.info.run_id]
    assert num_writes > 6 > 3 < unfinished


def test_an_error_while_logging_is_seen_on_the_run(tracker, record):
    with pytest.raises(KeyError):
        tracker.log_variants([replace(record, series=("nonesuch",))])
    assert [run.info.status for run in runs(tracker)] == ["FAILED"]
    tracker.log_variants([record])
    assert [run.info.status for run in runs(tracker)] == ["FINISHED"]


def test_a_failed_variant_is_a_failed_run_with_its_reason_and_no_version(tracker, record, failed):
    tracker.log_variants([record])
    run = logged(tracker, failed)
    (found,) = runs(tracker, "attributes.status = 'FAILED' and tags.failure LIKE '%singular%'")
    assert found.info.run_id == run.info.run_id
    assert run.data.tags["failure"] == "LinAlgError: singular matrix"
    identity = {"family": "econometric", "strategy_type": "ohlcv", "cycle_id": "c1", "lookback": "60", "git_sha": "abc"}
    assert identity.items() <= run.data.tags.items()
    assert run.data.params == {"order": "2"}
    assert run.info.end_time - run.info.start_time == 90_000
    assert not tracker.client.search_model_versions(f"name = '{model_name(tracker.market, failed.variant)}'")


def test_whichever_write_a_kill_hits_a_failure_is_there_once(tracker, failed):
    for num_writes in crashes(tracker):
        attempt = replace(failed, cycle_id=f"c{num_writes}")
        dying = tracker.client
        try:
            tracker.log_failures([attempt])
        except Killed:
            tracker.client = dying.client
            tracker.log_failures([attempt])
            tracker.client = dying
        (run,) = runs(tracker, f"tags.cycle_id = 'c{num_writes}'")
        assert (run.info.status, run.data.tags["failure"]) == ("FAILED", failed.reason)
        assert run.data.params == {"order": "2"}
    assert num_writes > 2


def test_of_a_failure_tried_again_the_newest_outcome_counts_and_a_success_is_never_taken_back(tracker, record, failed):
    failed = replace(failed, variant=VARIANT)
    first = logged(tracker, failed)
    assert logged(tracker, failed).info.run_id == first.info.run_id
    assert logged(tracker, replace(failed, reason="timeout")).data.tags["failure"] == "timeout"
    assert logged(tracker, record).info.status == "FINISHED"
    assert logged(tracker, failed).info.status == "FINISHED"


def test_every_fit_is_a_version_of_its_variants_model_without_a_stage(tracker, record):
    assert tracker.log_variants([record]) == {VARIANT: 1}
    version = tracker.client.get_model_version(model_name(tracker.market, VARIANT), "1")
    (run,) = runs(tracker)
    assert (version.current_stage, version.run_id, version.status) == ("None", run.info.run_id, "READY")
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
        "strategy_type": "technical",
        "lookback": "30",
        "git_sha": "abc",
    }.items() <= version.tags.items()
    assert "lookback 30; trained on 2019-01-02 to 2020-01-03" in version.description
    assert verify_manifest(local(version.source), sha256=version.tags["artifact_sha256"]) == record.manifest


def test_a_strategy_type_and_facts_of_ones_own_are_tags_of_run_and_version(tracker, record):
    run = logged(tracker, replace(record, strategy_type="carry", facts={"threshold": "0.5"}))
    version = tracker.client.get_model_version(model_name(tracker.market, VARIANT), "1")
    for tags in (run.data.tags, version.tags):
        assert {"strategy_type": "carry", "pipeline": "technical", "threshold": "0.5"}.items() <= tags.items()


def test_only_a_new_fit_is_a_new_version(tracker, record):
    assert tracker.log_variants([record]) == {VARIANT: 1}
    tomorrow = replace(record, cycle_id="c2")
    assert tracker.log_variants([tomorrow]) == {VARIANT: 1}
    assert tracker.log_variants([replace(tomorrow, cycle_id="c3", training_key="k2")]) == {VARIANT: 2}
    models = tracker.client.search_registered_models(
        f"tags.market = '{tracker.market}' and tags.pipeline = 'technical' and tags.stage = 'None'"
    )
    assert [model.name for model in models] == [f"{tracker.market}.{VARIANT}"]


def test_markets_are_those_with_a_registered_model(tracker, record):
    assert tracker.market not in markets(tracker.client)  # an experiment alone is no market
    tracker.log_variants([record])
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


def test_a_cycles_summary_is_the_first_of_its_runs_in_mlflows_own_order(tracker, record, failed, summary):
    """Newest first; of runs that started at the same time any may come first."""
    tracker.log_variants([of_variant(record, f"v{number}") for number in range(6)])
    tracker.log_failures([failed])
    tracker.log_cycle_summary(summary)
    first, *others = runs(tracker)
    assert first.info.run_name == "summary"
    assert {first.info.start_time - run.info.start_time for run in others} == {1}


def test_a_summary_says_what_came_of_the_cycle(tracker, summary):
    figures = {"sharpe_net": [1.25, 1, 0, 0], "max_drawdown": [-0.1234, 0, 0, 0], "num_days": [252, 1, 1, 1]}
    told = replace(summary, ranking=summary.ranking.assign(**figures))
    assert tracker.client.get_run(tracker.log_cycle_summary(told)).data.tags["mlflow.note.content"] == (
        "**1 variant in Production, 1 in Staging.** Of 4 variants, tuned in 20 trials, 4 are rated.\n\n"
        "The best is **v0** (Production) with a score of 0.90, a Sharpe ratio of +1.25 net of costs, "
        "a maximum drawdown of -12.3%, 252 bars out of sample.\n\n"
        "Under *Artifacts*: `ranking.html` with every variant and why it is where it is, `plots/` and the reports "
        "`reports/drift.html`."
    )


def test_a_summary_without_a_best_or_reports_says_so_too(summary):
    nothing = replace(summary, ranking=summary.ranking[:0], num_production=0, num_staging=0, reports=[])
    said = conclusion(nothing)
    assert said.startswith(
        "**No variants in Production, 0 in Staging.** Of 4 variants, tuned in 20 trials, 0 are rated"
    )
    assert "The best" not in said
    assert said.endswith("`plots/`.")


def test_the_runs_page_is_that_of_the_experiment_as_the_readme_has_it(tracker):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert f"http://127.0.0.1:5000/{RUNS_PAGE.format(1)}`" in readme
    page, _, options = tracker.runs_page.partition("?")
    assert page == f"#/experiments/{tracker.experiment_id}/runs"
    assert parse_qs(options) == {
        "workflowType": ["machine_learning"],
        "orderByKey": ["metrics.`test_rank`"],
        "orderByAsc": ["true"],
    }


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
