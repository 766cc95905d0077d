"""MLflow as the record of what was trained: one flat run a variant and cycle, one summary a cycle, the registry.

A parent with hundreds of child runs is unreadable in MLflow, so the runs are flat and carry tags to group by. The name
of a metric begins with the data it was measured on: ``metrics.test_sharpe_net > 1`` finds what did well out of sample.
Nothing here touches MLflow's global tracking URI or active run. Whatever a killed process left half done is found by
its key and written again, so a rerun leaves no duplicate run and no duplicate version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import quote

import numpy as np
import pandas as pd

from training.artifacts import Artifact, Manifest, folder_artifact
from training.summary_pages import conclusion, write_summary

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

DatasetType: TypeAlias = Literal["train", "validation", "test"]

RUN_KEY: Final = "perennial.run_key"
FAILURE: Final = "failure"
MODEL_FOLDER: Final = "model"
MODEL_STAGE: Final = "stage"  # tag of the registered model: its variant's stage, to filter models by
NOTE: Final = "mlflow.note.content"  # tag of a run that its page shows as description
EXPERIMENT_TAGS: Final = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow guesses the kind and asks
# MLflow 3 opens every experiment on GenAI traces, whatever its kind, until the browser was told otherwise: by this
RUNS_PAGE: Final = (
    "#/experiments/{}/runs?workflowType=machine_learning&orderByKey=metrics.%60test_rank%60&orderByAsc=true"
)
MODELS_PER_PAGE: Final = 1000  # MLflow gives no more at once
RUNS_PER_PAGE: Final = 1000
MAX_LOCATION_CHARS: Final = 157  # MLflow's column for a run's artifacts takes 200: this, the run's id and /artifacts
DIGEST_CHARS: Final = 36  # MLflow refuses a longer dataset digest


class TrackingError(RuntimeError):
    """Something that can't be tracked as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantRecord:
    """What a variant's run in a cycle tells MLflow.

    ``folder`` is the saved model and ``manifest`` its manifest; ``training_key`` identifies the fit. ``metrics`` are
    the final values by the data they were measured on (non-finite ones are left out). ``fold_table`` has a row a fold
    with its number in ``fold``; ``series`` names the few columns of it that become charts, as ``fold/NAME`` with the
    fold as step. ``strategy_type`` is the pipeline's name where none is given; ``facts`` are further tags, of the run
    and of the version.
    """

    cycle_id: str
    architecture: str
    family: str
    pipeline: str
    lookback: int | None
    training_key: str
    folder: Path
    manifest: Manifest
    metrics: Mapping[DatasetType, Mapping[str, float]]
    fold_table: pd.DataFrame
    series: Sequence[str]
    started_at: datetime
    ended_at: datetime
    strategy_type: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """The variant's id."""
        return self.manifest.variant


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedVariant:
    """A variant that could not be trained in a cycle, and why: a run of status FAILED, without a version."""

    cycle_id: str
    variant: str
    architecture: str
    family: str
    pipeline: str
    lookback: int | None
    params: Mapping[str, str | int | float | bool]
    dataset_fingerprint: str
    seed: int
    code_version: str
    reason: str
    started_at: datetime
    ended_at: datetime
    strategy_type: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CycleSummary:
    """What a cycle's summary run shows.

    ``ranking``: a row a variant, best first, with at least ``variant, architecture, pipeline, score, stage``.
    ``fold_ic``: variants (best first) by folds. ``equity``: times by the top variants, growth of 1 net of costs.
    ``reports``: finished files, such as Evidently's HTML, kept under ``reports/``.
    """

    cycle_id: str
    dataset_fingerprint: str
    code_version: str
    seed: int
    ranking: pd.DataFrame
    fold_ic: pd.DataFrame
    equity: pd.DataFrame
    reports: Sequence[Path]
    num_variants: int
    num_trials: int
    num_staging: int
    num_production: int
    started_at: datetime
    ended_at: datetime


def connect(tracking_uri: str) -> MlflowClient:
    """A client of this tracking store and registry; MLflow's global settings stay as they are."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def metric_name(dataset_type: DatasetType, metric: str) -> str:
    """Name of a figure in MLflow: which data, which figure."""
    return f"{dataset_type}_{metric}"


def model_name(market: str, variant: str) -> str:
    """Name of a variant's registered model."""
    return f"{market}.{variant}"


def markets(client: MlflowClient) -> list[str]:
    """Names of the markets that have a registered model, sorted."""
    found: set[str] = set()
    token = None
    while True:
        page = client.search_registered_models("tags.market LIKE '%'", MODELS_PER_PAGE, page_token=token)
        found.update(model.tags["market"] for model in page)
        token = page.token
        if not token:
            return sorted(found)


class Tracker:
    """Runs and registered models of one market; its experiment has the market's name.

    ``artifact_root`` is a URI (``file:///...``) below which the experiment keeps its artifacts.
    """

    def __init__(self, tracking_uri: str, artifact_root: str, market: str) -> None:
        location = f"{artifact_root.rstrip('/')}/{quote(market)}"
        _check_names(market, location)  # before anything is trained
        self.client = connect(tracking_uri)
        self.market = market
        self.experiment_id = _experiment(self.client, market, location)

    @property
    def runs_page(self) -> str:
        """Where in MLflow's pages the runs are, best rank first."""
        return RUNS_PAGE.format(self.experiment_id)

    def log_variants(self, records: Iterable[VariantRecord]) -> dict[str, int]:
        """Log a run for each and register its model; what is finished is left as it is. Returns versions by variant.

        A variant's run of a cycle is there once, and the same training key gives the version there is. A version's
        tags and description are written together with it; its stage is None.
        """
        records = list(records)
        before = self._runs_before(records)
        return {
            record.variant: self._register(record, self._log_variant(record, before.get(_key(record), [])))
            for record in records
        }

    def log_failures(self, failures: Iterable[FailedVariant]) -> None:
        """Log a FAILED run for each, its reason as the tag ``failure``; a run that finished is left as it is."""
        failures = list(failures)
        before = self._runs_before(failures)
        for failed in failures:
            self._log_failure(failed, before.get(_key(failed), []))

    def log_metrics(self, run_id: str, values: Mapping[str, float], *, dataset_type: DatasetType, at: datetime) -> None:
        """Log figures of a run that were measured on that data."""
        self.client.log_batch(run_id, metrics=_figures(dataset_type, values, at))

    def log_cycle_summary(self, summary: CycleSummary) -> str:
        """Log the summary run of a cycle; a finished one is left as it is. Returns the run's id."""
        tags = {
            "kind": "summary",
            "cycle_id": summary.cycle_id,
            "dataset_fingerprint": summary.dataset_fingerprint,
            "seed": str(summary.seed),
            "git_sha": summary.code_version,
            NOTE: conclusion(summary),
            **_source(summary.code_version),
        }
        counts = ("num_variants", "num_trials", "num_staging", "num_production")

        def write(run: Run) -> None:
            values = {name: float(getattr(summary, name)) for name in counts}
            self.client.log_batch(run.info.run_id, metrics=_metrics(values, summary.ended_at))
            self._log_dataset(run.info.run_id, summary.dataset_fingerprint)
            with TemporaryDirectory() as folder:
                write_summary(Path(folder), summary)
                self.client.log_artifacts(run.info.run_id, folder)

        before = self.search(f"tags.`{RUN_KEY}` = '{_key(summary)}'")
        return str(self._once(summary, "summary", tags, before, write).info.run_id)

    def _log_variant(self, record: VariantRecord, before: Sequence[Run]) -> Run:
        artifact = folder_artifact(record.folder)
        tags = {"kind": "variant", **_version_tags(record, artifact), **_source(record.manifest.code_version)}

        def write(run: Run) -> None:
            self.client.log_batch(
                run.info.run_id, metrics=_final_and_series(record), params=_params(record.manifest.params)
            )
            self._log_dataset(run.info.run_id, record.manifest.dataset_fingerprint)
            self.client.log_artifacts(run.info.run_id, str(record.folder), MODEL_FOLDER)
            if len(record.fold_table):
                self._log_fold_table(run.info.run_id, record.fold_table)

        return self._once(record, record.variant, tags, before, write)

    def _log_failure(self, failed: FailedVariant, before: Sequence[Run]) -> None:
        from mlflow.entities import RunTag

        facts = {"dataset_fingerprint": failed.dataset_fingerprint, "seed": str(failed.seed)}
        tags = {
            "kind": "variant",
            "cycle_id": failed.cycle_id,
            **_identity(failed),
            **facts,
            "git_sha": failed.code_version,
            **_source(failed.code_version),
        }

        def write(run: Run) -> None:
            reason = [RunTag(FAILURE, failed.reason)]  # written last: a run whose logging failed has none
            self.client.log_batch(run.info.run_id, params=_params(failed.params), tags=reason)

        wanted = ("FAILED", failed.reason)
        if wanted not in [(run.info.status, run.data.tags.get(FAILURE)) for run in before]:
            self._once(failed, failed.variant, tags, before, write, status="FAILED")

    def _register(self, record: VariantRecord, run: Run) -> int:
        name = model_name(self.market, record.variant)
        shared = {"market": self.market, **_identity(record)}
        if not self._make_model(name, {**shared, MODEL_STAGE: "None"}):
            found = self.client.search_model_versions(
                f"name = '{name}' and tags.training_key = '{record.training_key}'"
            )
            if found:
                return min(int(version.version) for version in found)
        made = self.client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{MODEL_FOLDER}",
            run.info.run_id,
            tags={"market": self.market, **_version_tags(record, folder_artifact(record.folder))},
            description=_description(record),
            await_creation_for=0,
        )
        return int(made.version)

    def _runs_before(self, records: Sequence[VariantRecord | FailedVariant]) -> dict[str, list[Run]]:
        """The runs that there are of these cycles, by their key; one search a cycle, not one a record."""
        found: dict[str, list[Run]] = {}
        for cycle_id in dict.fromkeys(record.cycle_id for record in records):
            for run in self.search(f"tags.cycle_id = '{cycle_id}' and tags.kind = 'variant'"):
                found.setdefault(run.data.tags[RUN_KEY], []).append(run)
        return found

    def search(self, filter_string: str) -> list[Run]:
        """All runs of the market that the filter finds (MLflow's syntax, as in its UI)."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], filter_string, max_results=RUNS_PER_PAGE, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _once(
        self,
        record: VariantRecord | FailedVariant | CycleSummary,
        name: str,
        tags: Mapping[str, str],
        before: Sequence[Run],
        write: Callable[[Run], None],
        *,
        status: str = "FINISHED",
    ) -> Run:
        """Create a run and fill it unless one finished before; what is left of a killed one is deleted."""
        for run in before:
            if run.info.status == "FINISHED":
                return run
        for run in before:
            self.client.delete_run(run.info.run_id)
        run = self.client.create_run(
            self.experiment_id,
            start_time=_start_ms(record),
            tags={**tags, RUN_KEY: _key(record)},
            run_name=name,
        )
        try:
            write(run)
        except BaseException:
            self.client.set_terminated(run.info.run_id, "FAILED")
            raise
        self.client.set_terminated(run.info.run_id, status, end_time=_ms(record.ended_at))
        return run

    def _log_fold_table(self, run_id: str, table: pd.DataFrame) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "folds.parquet"
            table.to_parquet(path, index=False)
            self.client.log_artifact(run_id, str(path))

    def _log_dataset(self, run_id: str, fingerprint: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = fingerprint[:DIGEST_CHARS]
        dataset = Dataset(name=self.market, digest=digest, source_type="perennial", source=fingerprint)
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _make_model(self, name: str, tags: Mapping[str, str]) -> bool:
        """Make a registered model; False where it was there."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name, tags=dict(tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return False
        return True


def _check_names(market: str, location: str) -> None:
    if wrong := sorted(set(market) & set("/:'\"`")):
        raise TrackingError(f"the market's name {market!r} contains {' '.join(wrong)}; rename it in its market.yaml")
    if len(location) > MAX_LOCATION_CHARS:
        raise TrackingError(
            f"MLflow can't hold the artifact location {location}: it has {len(location)} characters, allowed are "
            f"{MAX_LOCATION_CHARS}; choose a shorter home folder or market name"
        )


def _experiment(client: MlflowClient, name: str, artifact_location: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location, tags=EXPERIMENT_TAGS))
        except MlflowException as error:  # somebody else made it meanwhile
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return _experiment(client, name, artifact_location)
    if experiment.lifecycle_stage == "deleted":
        number = experiment.experiment_id
        raise TrackingError(
            f"the MLflow experiment {name!r} was deleted: bring it back with "
            f"'mlflow experiments restore --experiment-id {number}', or remove it for good with "
            f"'mlflow gc --experiment-ids {number}'"
        )
    return str(experiment.experiment_id)


def _key(record: VariantRecord | FailedVariant | CycleSummary) -> str:
    """What names a run: its cycle and its variant."""
    name = "summary" if isinstance(record, CycleSummary) else record.variant
    return f"{record.cycle_id}/{name}"


def _identity(record: VariantRecord | FailedVariant) -> dict[str, str]:
    """What a variant is, whenever it is trained."""
    facts: dict[str, Any] = {
        "variant": record.variant,
        "strategy_type": record.strategy_type or record.pipeline,
        "architecture": record.architecture,
        "family": record.family,
        "pipeline": record.pipeline,
        "lookback": record.lookback,
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _version_tags(record: VariantRecord, artifact: Artifact) -> dict[str, str]:
    """What a variant is, what this fit of it came from, and what proves its artifact."""
    manifest = record.manifest
    start, end = manifest.training_span
    return {
        **_identity(record),
        "cycle_id": record.cycle_id,
        "training_key": record.training_key,
        "dataset_fingerprint": manifest.dataset_fingerprint,
        "train_from": start.isoformat(),
        "train_to": end.isoformat(),
        "seed": str(manifest.seed),
        "checksum": manifest.checksum,
        "artifact_type": artifact.kind,
        "artifact_sha256": artifact.sha256,
        "artifact_size": str(artifact.size),
        "git_sha": manifest.code_version,
        **record.facts,
    }


def _source(code_version: str) -> dict[str, str]:
    """The code version where MLflow's own columns read it."""
    return {
        "mlflow.source.name": "perennial",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": code_version,
    }


def _description(record: VariantRecord) -> str:
    start, end = record.manifest.training_span
    lookback = "" if record.lookback is None else f", lookback {record.lookback}"
    return (
        f"{record.architecture} ({record.family}) on {record.pipeline}{lookback}; trained on "
        f"{start:%Y-%m-%d} to {end:%Y-%m-%d} in cycle {record.cycle_id}; checksum {record.manifest.checksum[:12]}"
    )


def _params(values: Mapping[str, object]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in values.items()]


def _final_and_series(record: VariantRecord) -> list[Metric]:
    """Every metric of a variant's run: the final values, and the few series over the folds."""
    found: list[Metric] = []
    for dataset_type, figures in record.metrics.items():
        found += _figures(dataset_type, figures, record.ended_at)
    for row in record.fold_table.to_dict("records"):
        values = {f"fold/{name}": row[name] for name in record.series}
        found += _metrics(values, record.ended_at, step=int(row["fold"]))
    return found


def _figures(dataset_type: DatasetType, values: Mapping[str, float], at: datetime) -> list[Metric]:
    return _metrics({metric_name(dataset_type, name): value for name, value in values.items()}, at)


def _metrics(values: Mapping[str, float], at: datetime, *, step: int = 0) -> list[Metric]:
    """Finite values as metrics; MLflow would store NaN as 0, which its search then finds."""
    from mlflow.entities import Metric

    return [Metric(name, float(value), _ms(at), step) for name, value in values.items() if np.isfinite(value)]


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def _start_ms(record: VariantRecord | FailedVariant | CycleSummary) -> int:
    """When a run started; a summary just after its cycle's others, so that MLflow, newest first, begins with it."""
    return _ms(record.started_at) + (1 if isinstance(record, CycleSummary) else 0)
