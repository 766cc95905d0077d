"""The registry of a market's models, as a person asks for it: the best one, one at a glance, one of your own.

MLflow holds it all; here is how it is asked. A model is a variant of the catalogue or a desk's own. What is measured on
it stands on the run of its version, under the name of the data it was measured on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, get_args

import pandas as pd

from training.artifacts import Artifact, file_sha256, verify_manifest
from training.own_model import OWN, OwnModel, as_signals, checked_forecasts, key_of, save
from training.signals import SignalStore
from training.tracking import (
    MODEL_FOLDER,
    MODELS_PER_PAGE,
    DatasetType,
    Tracker,
    TrackingError,
    VariantRecord,
    metric_name,
    model_name,
)
from training.variants import UnknownVariantError, find

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

DATASET_TYPES: Final[tuple[DatasetType, ...]] = get_args(DatasetType)
SUPERSEDED: Final = "superseded"
"""Tag of an own model's run once it has a newer version: which one."""
_FILES: Final = "files"
_ARTIFACT: Final = "artifact/"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE_NAME: Final = re.compile(r"[\w .-]{1,200}", re.ASCII)
_MAX_TIED: Final = 10


class RegistryError(TrackingError):
    """No such model, version or figure, more than one best, or a model that can't be registered as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """A registered version at a glance; ``print`` it.

    ``metrics`` are by the data they were measured on. ``training_span`` holds the first and last sample time learned
    from, ``training_key`` names the version in the signal store. ``source`` is the URI of the saved model, whose
    manifest has the checksum ``artifact_sha256``; ``artifacts`` are files logged beside it.
    """

    market: str
    name: str
    version: int
    stage: str
    strategy_type: str
    architecture: str
    family: str
    lookback: int | None
    params: Mapping[str, str]
    metrics: Mapping[DatasetType, Mapping[str, float]]
    training_span: tuple[datetime, datetime]
    training_key: str
    cycle_id: str
    dataset_fingerprint: str
    code_version: str
    checksum: str
    artifact_sha256: str
    artifact_size: int
    artifacts: tuple[Artifact, ...]
    run_id: str
    source: str
    created_at: datetime

    def __str__(self) -> str:
        start, end = self.training_span
        lookback = "" if self.lookback is None else f", lookback {self.lookback}"
        lines = [
            f"{self.name}, version {self.version} in {self.market} (stage {self.stage})",
            f"  what        {self.architecture} ({self.family}) on {self.strategy_type}{lookback}",
            f"  trained on  {start:%Y-%m-%d} to {end:%Y-%m-%d}, data {self.dataset_fingerprint[:12]}",
            f"  made        {self.created_at:%Y-%m-%d %H:%M} UTC by code {self.code_version[:12]}, {self.cycle_id}",
            f"  saved       {self.artifact_size:,} bytes, manifest {self.artifact_sha256[:12]}",
            f"  parameters  {', '.join(f'{name} {value}' for name, value in sorted(self.params.items())) or 'none'}",
            *self._figures(),
            *(f"  file        {each.path}: {each.kind}, {each.size:,} bytes" for each in self.artifacts),
        ]
        return "\n".join(lines)

    def _figures(self) -> list[str]:
        names = sorted({name for values in self.metrics.values() for name in values})
        shown = [kind for kind in DATASET_TYPES if self.metrics.get(kind)]
        if not names:
            return ["  metrics     none"]
        head = f"  {'metrics':24}" + "".join(f"{kind:>14}" for kind in shown)
        rows = [f"    {name:22}" + "".join(_cell(self.metrics[kind].get(name)) for kind in shown) for name in names]
        return [head, *rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRegistry:
    """One market's models: ``tracker`` is where they are recorded, ``signals`` the market's signal store."""

    tracker: Tracker
    signals: SignalStore

    def get_best_model(
        self, strategy_type: str, metric: str, dataset_type: DatasetType = "test", *, higher_is_better: bool = True
    ) -> ModelCard:
        """The model of a strategy type with the best figure, among the newest cycle's and the newest of each own one.

        Figures of older cycles are of other data, so they don't compete. Models that lack the metric can't win; an
        equal best figure is refused, and no model at all. MLflow's database ranks.
        """
        figure = metric_name(_known(dataset_type), metric)
        scopes = [f"{scope} and attributes.status = 'FINISHED'" for scope in self._competing()]
        order = f"metrics.`{_plain(figure)}` {'DESC' if higher_is_better else 'ASC'}"
        asked = [f"{scope} and tags.strategy_type = '{_plain(strategy_type)}'" for scope in scopes]
        top = [run for each in asked for run in self._ranked(each, order) if figure in run.data.metrics]
        if not top:
            raise self._nothing(strategy_type, figure, scopes)
        best = (max if higher_is_better else min)(run.data.metrics[figure] for run in top)
        tied = {run.data.tags["variant"]: run for run in top if run.data.metrics[figure] == best}
        if len(tied) > 1:
            raise RegistryError(
                f"{len(tied)} models of strategy_type {strategy_type!r} share the best {figure}, {best:g}: "
                f"{', '.join(sorted(tied))}; rank them by another metric, or take one by name: get_model(name)"
            )
        (run,) = tied.values()
        return self._card(self._version_of(run))

    def get_model(self, name: str, version: int | None = None) -> ModelCard:
        """A model by its name in the market (a variant's id, or an own model's), the newest version by default."""
        return self._card(self._version(name, version))

    def register_model(self, model: OwnModel, *, now: datetime) -> ModelCard:
        """Register a desk's own model as a version, and its forecasts in the signal store, where ratings find them.

        It has the tags of any variant, with the family ``own``. The same model with the same forecasts is the version
        there is, with the figures given now; a change in either is a new version, and nothing is overwritten. The
        stored copy is checked against its manifest.
        """
        self._check_name(model.name)
        forecasts = checked_forecasts(model, now=now)
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / MODEL_FOLDER
            manifest = save(model, folder)
            key = key_of(model, manifest, forecasts)
            self.signals.write(as_signals(model, forecasts, key))
            record = VariantRecord(
                cycle_id=f"{OWN}-{key}",
                architecture=model.architecture,
                family=OWN,
                pipeline=OWN,
                lookback=model.lookback,
                training_key=key,
                folder=folder,
                manifest=manifest,
                metrics={},
                fold_table=pd.DataFrame(),
                series=(),
                started_at=now,
                ended_at=now,
                strategy_type=model.strategy_type,
                facts={"threshold": repr(float(model.threshold)), "num_forecasts": str(len(forecasts))},
            )
            version = self.tracker.log_variants([record])[model.name]
        for dataset_type, values in model.metrics.items():
            self.log_metrics(model.name, values, dataset_type=dataset_type, version=version, at=now)
        self._supersede(model.name)
        card = self.get_model(model.name, version)
        stored = self.tracker.client.download_artifacts(card.run_id, MODEL_FOLDER)
        verify_manifest(Path(stored), sha256=card.artifact_sha256)
        return card

    def thresholds(self) -> dict[str, dict[str, float]]:
        """Every own model that has forecasts, with its newest version's threshold, as ``build_tracks`` takes them."""
        found = {}
        token = None
        while True:
            page = self.tracker.client.search_registered_models(
                f"tags.market = '{self.tracker.market}' and tags.family = '{OWN}'", MODELS_PER_PAGE, page_token=token
            )
            for model in page:
                newest = max(model.latest_versions, key=lambda each: int(each.version), default=None)
                if newest and int(newest.tags["num_forecasts"]):
                    tags = newest.tags
                    found[tags["variant"]] = {tags["training_key"]: float(tags["threshold"])}
            token = page.token
            if not token:
                return dict(sorted(found.items()))

    def log_metrics(
        self,
        name: str,
        metrics: Mapping[str, float],
        *,
        dataset_type: DatasetType,
        at: datetime,
        version: int | None = None,
    ) -> None:
        """Log figures of a version, measured ``at`` that time on that data; of one figure the newest counts."""
        run_id = str(self._version(name, version).run_id)
        self.tracker.log_metrics(run_id, metrics, dataset_type=_known(dataset_type), at=at)

    def log_artifact(self, name: str, path: Path, *, artifact_type: str, version: int | None = None) -> Artifact:
        """Keep a file with a version's run, below ``files/``, and record its SHA-256, size and type as a tag."""
        if not path.is_file() or not _FILE_NAME.fullmatch(path.name):
            raise RegistryError(
                f"can't log {path}: an artifact is one file whose name has letters, digits, spaces, dots, dashes and "
                "underscores; pack a folder into one file, or rename it"
            )
        run_id = str(self._version(name, version).run_id)
        artifact = Artifact(
            path=f"{_FILES}/{path.name}", sha256=file_sha256(path), size=path.stat().st_size, kind=artifact_type
        )
        self.tracker.client.log_artifact(run_id, str(path), _FILES)
        self.tracker.client.set_tag(run_id, f"{_ARTIFACT}{path.name}", json.dumps(asdict(artifact), sort_keys=True))
        return artifact

    def _competing(self) -> list[str]:
        """Filters of the runs that are of today: own models' newest, and the newest finished cycle's."""
        own = f"tags.kind = 'variant' and tags.family = '{OWN}' and tags.{SUPERSEDED} IS NULL"
        finished = "tags.kind = 'summary' and attributes.status = 'FINISHED'"
        newest = self._ranked(finished, "attributes.start_time DESC", num=1)
        return [own, *(f"tags.kind = 'variant' and tags.cycle_id = '{run.data.tags['cycle_id']}'" for run in newest)]

    def _ranked(self, filter_string: str, order: str, *, num: int = _MAX_TIED) -> Sequence[Run]:
        found: Sequence[Run] = self.tracker.client.search_runs(
            [self.tracker.experiment_id], filter_string, max_results=num, order_by=[order]
        )
        return found

    def _nothing(self, strategy_type: str, figure: str, scopes: Sequence[str]) -> RegistryError:
        """Why there is no best model, and what there is instead."""
        runs = [run for scope in scopes for run in self.tracker.search(scope)]
        of_type = [run for run in runs if run.data.tags["strategy_type"] == strategy_type]
        if of_type:
            there = sorted({name for run in of_type for name in run.data.metrics if "/" not in name})
            return RegistryError(
                f"none of the {len(of_type)} models of strategy_type {strategy_type!r} has the metric {figure}; "
                f"they have: {', '.join(there) or 'none'}"
            )
        types = sorted({run.data.tags["strategy_type"] for run in runs})
        return RegistryError(
            f"no model of strategy_type {strategy_type!r} in the newest finished cycle of {self.tracker.market}, and "
            f"no own one; there are: {', '.join(types) or 'none yet, run a cycle first'}"
        )

    def _version_of(self, run: Run) -> ModelVersion:
        tags = run.data.tags
        name = model_name(self.tracker.market, tags["variant"])
        found = self.tracker.client.search_model_versions(
            f"name = '{name}' and tags.training_key = '{tags['training_key']}'"
        )
        if not found:
            raise RegistryError(
                f"{tags['variant']} has a run in {tags['cycle_id']} and no version: its registration was cut short "
                "or the version deleted; run that cycle again"
            )
        return min(found, key=lambda version: int(version.version))

    def _version(self, name: str, version: int | None) -> ModelVersion:
        from mlflow.exceptions import MlflowException

        client, full = self.tracker.client, model_name(self.tracker.market, name)
        if version is None:
            found = client.search_model_versions(f"name = '{_plain(full)}'", 1, order_by=["version_number DESC"])
            if not found:
                raise self._unknown(name)
            return found[0]
        try:
            return client.get_model_version(full, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            newest = self._version(name, None)
            raise RegistryError(f"{name} has no version {version}; the newest is {newest.version}") from error

    def _unknown(self, name: str) -> RegistryError:
        found = self.tracker.client.search_registered_models(f"tags.market = '{self.tracker.market}'", MODELS_PER_PAGE)
        names = [model.name.removeprefix(model_name(self.tracker.market, "")) for model in found]
        close = get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"close to it are {', '.join(close)}" if close else "see `perennial factory list`"
        return RegistryError(f"no model {name!r} is registered in {self.tracker.market} ({len(names)} are); {hint}")

    def _card(self, version: ModelVersion) -> ModelCard:
        tags = version.tags
        if "training_key" not in tags or not version.run_id:
            raise RegistryError(
                f"version {version.version} of {version.name} was not registered by Perennial: it lacks the tags that "
                "say what it is; register it with register_model"
            )
        run = self.tracker.client.get_run(version.run_id)
        return ModelCard(
            market=self.tracker.market,
            name=tags["variant"],
            version=int(version.version),
            stage=version.current_stage or "None",
            strategy_type=tags["strategy_type"],
            architecture=tags["architecture"],
            family=tags["family"],
            lookback=int(tags["lookback"]) if "lookback" in tags else None,
            params=run.data.params,
            metrics=_by_dataset_type(run.data.metrics),
            training_span=(datetime.fromisoformat(tags["train_from"]), datetime.fromisoformat(tags["train_to"])),
            training_key=tags["training_key"],
            cycle_id=tags["cycle_id"],
            dataset_fingerprint=tags["dataset_fingerprint"],
            code_version=tags["git_sha"],
            checksum=tags["checksum"],
            artifact_sha256=tags["artifact_sha256"],
            artifact_size=int(tags["artifact_size"]),
            artifacts=_artifacts(run.data.tags),
            run_id=version.run_id,
            source=version.source or "",
            created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        )

    def _check_name(self, name: str) -> None:
        """Own models have names of their own: the catalogue's belong to the catalogue."""
        if not _NAME.fullmatch(name):
            raise RegistryError(
                f"can't register {name!r}: a name has up to 100 letters, digits, dots, dashes and underscores and "
                "begins with a letter or digit"
            )
        try:
            find(name)
        except UnknownVariantError:
            pass
        else:
            raise RegistryError(f"{name!r} is a variant of the factory; give your model another name")
        full = model_name(self.tracker.market, name)
        there = self.tracker.client.search_registered_models(f"name = '{full}'")
        if any(model.tags.get("family") != OWN for model in there):
            raise RegistryError(f"{name!r} is registered, and not as an own model; give yours another name")

    def _supersede(self, name: str) -> None:
        """Mark the runs of all versions but the newest."""
        newest = self._version(name, None)
        runs = self.tracker.search(f"tags.family = '{OWN}' and tags.variant = '{name}' and tags.{SUPERSEDED} IS NULL")
        for run in runs:
            if run.info.run_id != newest.run_id:
                self.tracker.client.set_tag(run.info.run_id, SUPERSEDED, newest.version)


def _known(dataset_type: DatasetType) -> DatasetType:
    if dataset_type not in DATASET_TYPES:
        raise RegistryError(f"no dataset_type {dataset_type!r}; there are: {', '.join(DATASET_TYPES)}")
    return dataset_type


def _plain(text: str) -> str:
    """Text that means itself inside the quotes of MLflow's search."""
    if set(text) & set("'`\"\\"):
        raise RegistryError(f"{text!r} has quotes or backslashes, which no name here has")
    return text


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4g'):>14}"


def _by_dataset_type(metrics: Mapping[str, float]) -> dict[DatasetType, dict[str, float]]:
    found: dict[DatasetType, dict[str, float]] = {}
    for dataset_type in DATASET_TYPES:
        prefix = metric_name(dataset_type, "")
        values = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        if values:
            found[dataset_type] = dict(sorted(values.items()))
    return found


def _artifacts(tags: Mapping[str, str]) -> tuple[Artifact, ...]:
    return tuple(Artifact(**json.loads(text)) for name, text in sorted(tags.items()) if name.startswith(_ARTIFACT))
