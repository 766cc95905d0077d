"""MLflow as the record of what was trained: one flat run a variant and cycle, one summary a cycle, the registry.

A parent with hundreds of child runs is unreadable in MLflow, so the runs are flat and carry tags to group by. Nothing
here touches MLflow's global tracking URI or active run. Whatever a killed process left half done is found by its key
and written again, so a rerun leaves no duplicate run and no duplicate version.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import numpy as np
import pandas as pd

from training import plots
from training.artifacts import Artifact, Manifest, folder_artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

RUN_KEY: Final = "perennial.run_key"
MODEL_FOLDER: Final = "model"
EXPERIMENT_TAGS: Final = {"mlflow.experimentKind": "custom_model_development"}  # else its page opens on GenAI traces
METRICS_PER_BATCH: Final = 1000  # MLflow refuses more
MODELS_PER_PAGE: Final = 1000  # MLflow gives no more at once
MAX_LOCATION_CHARS: Final = 157  # MLflow's column for a run's artifacts takes 200: this, the run's id and /artifacts
DIGEST_CHARS: Final = 36  # MLflow refuses a longer dataset digest


class TrackingError(RuntimeError):
    """Something that can't be tracked as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantRecord:
    """What a variant's run in a cycle tells MLflow.

    ``folder`` is the saved model and ``manifest`` its manifest; ``training_key`` identifies the fit. ``metrics`` are
    the final values (non-finite ones are left out). ``fold_table`` has a row a fold with its number in ``fold``;
    ``series`` names the few columns of it that become charts, as ``fold/NAME`` with the fold as step.
    """

    cycle_id: str
    architecture: str
    family: str
    pipeline: str
    lookback: int
    training_key: str
    folder: Path
    manifest: Manifest
    metrics: Mapping[str, float]
    fold_table: pd.DataFrame
    series: Sequence[str]
    started_at: datetime
    ended_at: datetime


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

    def log_variant(self, record: VariantRecord) -> str:
        """Log a variant's run of a cycle; a finished one is left as it is. Returns the run's id."""
        artifact = folder_artifact(record.folder)
        facts = {**_identity(record), **_provenance(record, artifact), **_source(record.manifest.code_version)}
        tags = {"kind": "variant", "cycle_id": record.cycle_id, **facts}

        def write(run_id: str) -> None:
            self._log_values(run_id, record)
            self._log_dataset(run_id, record.manifest.dataset_fingerprint)
            self.client.log_artifacts(run_id, str(record.folder), MODEL_FOLDER)
            with TemporaryDirectory() as folder:
                record.fold_table.to_parquet(Path(folder) / "folds.parquet", index=False)
                self.client.log_artifacts(run_id, folder)

        return self._once(record.manifest.variant, record, tags, write)

    def log_cycle_summary(self, summary: CycleSummary) -> str:
        """Log the summary run of a cycle; a finished one is left as it is. Returns the run's id."""
        tags = {
            "kind": "summary",
            "cycle_id": summary.cycle_id,
            "dataset_fingerprint": summary.dataset_fingerprint,
            "seed": str(summary.seed),
            "git_sha": summary.code_version,
            **_source(summary.code_version),
        }
        counts = ("num_variants", "num_trials", "num_staging", "num_production")

        def write(run_id: str) -> None:
            values = {name: float(getattr(summary, name)) for name in counts}
            self.client.log_batch(run_id, metrics=_metrics(values, summary.ended_at))
            self._log_dataset(run_id, summary.dataset_fingerprint)
            with TemporaryDirectory() as folder:
                _write_summary(Path(folder), summary)
                self.client.log_artifacts(run_id, folder)

        return self._once("summary", summary, tags, write)

    def register(self, record: VariantRecord, *, run_id: str) -> int:
        """Register the fitted model that a run logged; the same training key gives the version there is.

        A version's tags and description are written together with it; its stage is None. Returns its number.
        """
        name = model_name(self.market, record.manifest.variant)
        found = self.client.search_model_versions(f"name = '{name}' and tags.training_key = '{record.training_key}'")
        if found:
            return min(int(version.version) for version in found)
        shared = {"market": self.market, **_identity(record)}
        self._ensure_model(name, shared)
        artifact = folder_artifact(record.folder)
        facts = {"cycle_id": record.cycle_id, "training_key": record.training_key, **_provenance(record, artifact)}
        made = self.client.create_model_version(
            name,
            f"{self.client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}",
            run_id,
            tags={**shared, **facts},
            description=_description(record),
            await_creation_for=0,
        )
        return int(made.version)

    def _once(
        self, name: str, record: VariantRecord | CycleSummary, tags: Mapping[str, str], write: Callable[[str], None]
    ) -> str:
        """Create a run and fill it unless it was finished before; what is left of a killed one is deleted."""
        key = f"{record.cycle_id}/{name}"
        before = self.client.search_runs([self.experiment_id], f"tags.`{RUN_KEY}` = '{key}'")
        for run in before:
            if run.info.status == "FINISHED":
                return str(run.info.run_id)
        for run in before:
            self.client.delete_run(run.info.run_id)
        run = self._create(name, record.started_at, {**tags, RUN_KEY: key})
        try:
            write(run.info.run_id)
        except BaseException:
            self.client.set_terminated(run.info.run_id, "FAILED")
            raise
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=_ms(record.ended_at))
        return str(run.info.run_id)

    def _create(self, name: str, started_at: datetime, tags: Mapping[str, str]) -> Run:
        return self.client.create_run(self.experiment_id, start_time=_ms(started_at), tags=dict(tags), run_name=name)

    def _log_values(self, run_id: str, record: VariantRecord) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in record.manifest.params.items()]
        self.client.log_batch(run_id, params=params)
        metrics = _metrics(record.metrics, record.ended_at)
        for row in record.fold_table.to_dict("records"):
            values = {f"fold/{name}": row[name] for name in record.series}
            metrics += _metrics(values, record.ended_at, step=int(row["fold"]))
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])

    def _log_dataset(self, run_id: str, fingerprint: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = fingerprint[:DIGEST_CHARS]
        dataset = Dataset(name=self.market, digest=digest, source_type="perennial", source=fingerprint)
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _ensure_model(self, name: str, tags: Mapping[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name, tags=dict(tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


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


def _identity(record: VariantRecord) -> dict[str, str]:
    """What a variant is, whenever it is trained."""
    return {
        "variant": record.manifest.variant,
        "architecture": record.architecture,
        "family": record.family,
        "pipeline": record.pipeline,
        "lookback": str(record.lookback),
    }


def _provenance(record: VariantRecord, artifact: Artifact) -> dict[str, str]:
    """What this fit came from, and what proves its artifact."""
    manifest = record.manifest
    start, end = manifest.training_span
    return {
        "dataset_fingerprint": manifest.dataset_fingerprint,
        "train_from": start.isoformat(),
        "train_to": end.isoformat(),
        "seed": str(manifest.seed),
        "checksum": manifest.checksum,
        "artifact_sha256": artifact.sha256,
        "artifact_size": str(artifact.size),
        "git_sha": manifest.code_version,
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
    return (
        f"{record.architecture} ({record.family}) on {record.pipeline}, lookback {record.lookback}; trained on "
        f"{start:%Y-%m-%d} to {end:%Y-%m-%d} in cycle {record.cycle_id}; checksum {record.manifest.checksum[:12]}"
    )


def _metrics(values: Mapping[str, float], at: datetime, *, step: int = 0) -> list[Metric]:
    """Finite values as metrics; MLflow would store NaN as 0, which its search then finds."""
    from mlflow.entities import Metric

    return [Metric(name, float(value), _ms(at), step) for name, value in values.items() if np.isfinite(value)]


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def _write_summary(folder: Path, summary: CycleSummary) -> None:
    summary.ranking.to_csv(folder / "ranking.csv", index=False)
    summary.ranking.to_parquet(folder / "ranking.parquet", index=False)
    (folder / "ranking.html").write_text(_page(summary), encoding="utf-8")
    figures = {
        "ranking": plots.ranking_bars(summary.ranking),
        "ic_by_fold": plots.fold_heat_map(summary.fold_ic),
        "equity": plots.equity_curves(summary.equity),
        "score_by_architecture_and_pipeline": plots.score_heat_map(summary.ranking),
    }
    (folder / "plots").mkdir()
    for name, figure in figures.items():
        figure.savefig(folder / "plots" / f"{name}.png")
    (folder / "reports").mkdir()
    for report in summary.reports:
        shutil.copy2(report, folder / "reports" / report.name)


def _page(summary: CycleSummary) -> str:
    table = summary.ranking.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep="")
    return (
        '<!doctype html><meta charset="utf-8"><title>Ranking</title><style>body{font:14px system-ui;margin:2em}'
        "td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd}</style>"
        f"<h1>Ranking of cycle {escape(summary.cycle_id)}</h1>{table}\n"
    )
