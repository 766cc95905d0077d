"""A desk's own trained model, as it comes: files, facts, and the forecasts by which it wants to be rated.

Perennial stores such a model and proves that it is unchanged; it never loads or runs it. What counts for its rating are
its out-of-sample forecasts, so these are checked before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import pandas as pd

from training.artifacts import MANIFEST, Manifest, file_sha256, verify_manifest, write_manifest
from training.models.spec import Value
from training.signals import SCHEMA
from training.tracking import DatasetType, TrackingError

OWN: Final = "own"
FORECAST_COLUMNS: Final = ("entity_key", "event_time", "made_at", "score", "confidence")
_TIMES: Final = ("event_time", "made_at", "trained_to")


class OwnModelError(TrackingError):
    """An own model or its forecasts that can't be taken as they are; the message says what and how many."""


class Saves(Protocol):
    """A fitted object that can write itself into an empty folder."""

    def save(self, folder: Path) -> object: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnModel:
    """A model of your own. ``source`` is the folder of its files, or a fitted object with ``save(folder)``.

    ``training_span`` holds the first and last sample time that the model learned from (aware). ``forecasts`` has the
    columns ``entity_key, event_time`` (of the bar forecast from), ``made_at`` (when the forecast was known), ``score``
    (the expected return over the horizon divided by its volatility) and ``confidence`` (0 to 1), a row a bar and
    entity. Where they came from earlier fits, as in a walk-forward, ``trained_to`` in each row is the last sample time
    behind it; else ``training_span`` ends before they begin. ``threshold`` is on |demeaned score|, tuned on validation.
    ``metrics`` are by the data they were measured on.
    """

    name: str
    source: Path | Saves
    strategy_type: str
    params: Mapping[str, Value]
    training_span: tuple[datetime, datetime]
    dataset_fingerprint: str
    code_version: str
    metrics: Mapping[DatasetType, Mapping[str, float]] = field(default_factory=dict)
    forecasts: pd.DataFrame | None = None
    threshold: float = 0.0
    interval: str = "1d"
    horizon: int = 1
    architecture: str = OWN
    lookback: int | None = None
    feature_names: tuple[str, ...] = ()
    seed: int = 0
    packages: Mapping[str, str] = field(default_factory=dict)


def save(model: OwnModel, folder: Path) -> Manifest:
    """Write the model's files and a manifest over them; one that came with them is verified first.

    The canonical checksum is that manifest's, else the one of the files.
    """
    if isinstance(model.source, Path):
        if not model.source.is_dir():
            raise OwnModelError(f"{model.name}: {model.source} is not a folder; give the folder of the model's files")
        shutil.copytree(model.source, folder)
    else:
        folder.mkdir(parents=True)
        model.source.save(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    if not files:
        raise OwnModelError(f"{model.name}: {model.source} has no files; save the fitted model there first")
    had_manifest = (folder / MANIFEST).is_file()
    return write_manifest(
        folder,
        variant=model.name,
        checksum=verify_manifest(folder).checksum if had_manifest else _files_sha256(folder, files),
        params=dict(sorted(model.params.items())),
        feature_names=model.feature_names,
        dataset_fingerprint=model.dataset_fingerprint,
        training_span=model.training_span,
        seed=model.seed,
        code_version=model.code_version,
        packages=model.packages,
    )


def checked_forecasts(model: OwnModel, *, now: datetime) -> pd.DataFrame:
    """The forecasts in time and entity order; refused with counts unless every one is whole and out of sample."""
    forecasts = pd.DataFrame(columns=FORECAST_COLUMNS) if model.forecasts is None else model.forecasts
    missing = [name for name in FORECAST_COLUMNS if name not in forecasts]
    if missing:
        raise OwnModelError(f"{model.name}: the forecasts lack {', '.join(missing)}; they need {FORECAST_COLUMNS}")
    if forecasts.empty:
        return forecasts[list(FORECAST_COLUMNS)]
    naive = [name for name in _TIMES if name in forecasts and not isinstance(forecasts[name].dtype, pd.DatetimeTZDtype)]
    if naive:
        raise OwnModelError(f"{model.name}: {', '.join(naive)} must hold times with a time zone; convert them to UTC")
    faults = {name: int(wrong.sum()) for name, wrong in _faults(model, forecasts, now).items() if wrong.any()}
    if faults:
        said = "; ".join(f"{count:,} {name}" for name, count in faults.items())
        raise OwnModelError(
            f"{model.name}: of {len(forecasts):,} forecasts are {said}; correct or leave out these rows"
        )
    utc = {name: forecasts[name].dt.tz_convert("UTC").dt.as_unit("us") for name in ("event_time", "made_at")}
    ordered = forecasts.assign(**utc).sort_values(["event_time", "entity_key"], ignore_index=True)
    return ordered[list(FORECAST_COLUMNS)]


def key_of(model: OwnModel, manifest: Manifest, forecasts: pd.DataFrame) -> str:
    """The training key: equal keys are the same model, traded in the same way, with the same forecasts."""
    rows = pd.util.hash_pandas_object(forecasts, index=False).to_numpy()
    hashed = hashlib.sha256(rows.tobytes()).hexdigest()
    content = [manifest.to_json(), model.strategy_type, model.threshold, model.interval, model.horizon, hashed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def as_signals(model: OwnModel, forecasts: pd.DataFrame, key: str) -> pd.DataFrame:
    """Checked forecasts as out-of-sample rows of the signal store."""
    facts = {"variant": model.name, "interval": model.interval, "horizon": model.horizon}
    return forecasts.assign(**facts, model_version=key, kind="oos")[SCHEMA.names]


def _faults(model: OwnModel, forecasts: pd.DataFrame, now: datetime) -> dict[str, pd.Series]:
    """Rows that can't be taken, by what is wrong with them; a missing value is never right."""
    event_time, made_at = forecasts["event_time"], forecasts["made_at"]
    learned_to = pd.Series(pd.Timestamp(model.training_span[1]), index=forecasts.index)
    trained_to = forecasts.get("trained_to", learned_to)
    score, confidence = (pd.to_numeric(forecasts[name], errors="coerce") for name in ("score", "confidence"))
    return {
        "without a finite score": ~np.isfinite(score),
        "with a confidence outside 0 to 1": ~confidence.between(0.0, 1.0),
        "without an entity": forecasts["entity_key"].isna(),
        "not later than what their model learned from (in sample)": ~(event_time > trained_to),
        "made before their bar ended": ~(made_at >= event_time),
        "made after now": ~(made_at <= pd.Timestamp(now)),
        "of a bar and entity that has another": forecasts.duplicated(["entity_key", "event_time"]),
    }


def _files_sha256(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
