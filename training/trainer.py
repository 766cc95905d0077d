"""Training one fold of one variant: fit, tune the threshold, score, publish. Finished folds are never refitted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import pandas as pd

from feature_repo.market.costs import CostModel
from training.artifacts import package_versions, publish, write_manifest
from training.dataset import Panel, Window, window
from training.models.fitted import FittedModel, Forecast, fit_model
from training.models.registry import architecture
from training.models.spec import EPOCHS, Budget, Value
from training.panels import load_panel
from training.recipe import write_recipe
from training.signals import SignalStore
from training.simulate import tune_threshold
from training.splits.walk_forward import Fold
from training.variants import Variant

Kind = Literal["oos", "live"]
# The distributions whose versions decide what a fit gives.
_DECIDING: Final = (
    "numpy",
    "scipy",
    "numba",
    "torch",
    "lightgbm",
    "xgboost-cpu",
    "arch",
    "statsmodels",
    "stable-baselines3",
    "scikit-learn",
    "threadpoolctl",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldTask:
    """One fit. ``kind`` is ``oos`` (score the fold's test window) or ``live`` (score the newest bars).

    A live fit saves its model, a tested one only where ``keeps_model`` asks for it. ``made_at`` dates live signals;
    those of a test window are dated by their own sample times. ``code`` is the fingerprint of the source that decides
    results, ``git_sha`` the commit it is told by. ``stacked`` says that it is fitted in a stack
    (``training.stacking``), where sums run in another order. ``market`` is where its market's data came from, of which
    what was known at ``as_of`` (ISO 8601; empty: ``made_at``) went into the panel: its fingerprint is in the key. So is
    ``market_name``: markets with the same data have fits of their own, since a fit leaves its signals with one.
    """

    variant: Variant
    params: Mapping[str, Value]
    panel: Path
    panel_fingerprint: str
    fold: Fold
    kind: Kind
    interval: str
    seed: int
    budget: Budget
    costs: CostModel
    code: str
    git_sha: str
    folder: Path
    signals: Path
    made_at: str = ""
    keeps_model: bool = False
    stacked: bool = False
    market: str = ""
    market_name: str = ""
    as_of: str = ""

    @property
    def key(self) -> str:
        """The training key: equal keys are the same fit, so a finished one is not repeated."""
        fold = [[part.start, part.stop] for part in (self.fold.train, self.fold.validate, self.fold.test)]
        content = {
            "variant": self.variant.digest,
            "params": dict(sorted(self.params.items())),
            "panel": self.panel_fingerprint,
            "fold": fold,
            "kind": self.kind,
            "keeps_model": self.keeps_model,
            "stacked": self.stacked,
            "seed": self.seed,
            "budget": asdict(self.budget),
            "costs": asdict(self.costs),
            "code": self.code,
            "market_name": self.market_name,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def fit_seed(self) -> int:
        """A seed of its own for every (variant, fold)."""
        return fit_seed(self.seed, self.variant, self.fold)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldResult:
    """What a fit left behind; ``reason`` is empty where it succeeded.

    ``threshold`` is on |demeaned score|; ``epochs`` how many a network ran before it stopped, 0 for other models.
    """

    variant: str
    fold: int
    kind: Kind
    key: str
    reason: str = ""
    threshold: float = float("nan")
    checksum: str = ""
    num_signals: int = 0
    num_parameters: int = 0
    epochs: int = 0
    fit_s: float = 0.0
    trained_from: str = ""
    trained_to: str = ""

    @property
    def ok(self) -> bool:
        """Whether the fit succeeded."""
        return not self.reason


def fit_seed(seed: int, variant: Variant, fold: Fold) -> int:
    """A run's seed for one variant and fold."""
    content = f"{seed}/{variant.id}/{fold.index}"
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big")


Fit: TypeAlias = Callable[[FoldTask, Panel], tuple[FittedModel, float]]
"""Of a task and its panel: the fitted model, and the seconds it took. What it raises is the reason of a failure."""


def fit_alone(task: FoldTask, panel: Panel) -> tuple[FittedModel, float]:
    """The fit of one task by itself."""
    started = time.monotonic()
    model = fit_model(
        architecture(task.variant.architecture),
        task.params,
        *learning_windows(task, panel),
        lookback=task.variant.lookback,
        seed=task.fit_seed,
        budget=task.budget,
    )
    return model, time.monotonic() - started


def learning_windows(task: FoldTask, panel: Panel) -> tuple[Window, Window]:
    """What a task learns from, and what it stops early and calibrates on."""
    fold, lookback = task.fold, task.variant.lookback
    return (
        window(panel, fold.train.start, fold.train.stop, lookback=lookback, learn_T=fold.learn_T),
        window(panel, fold.validate.start, fold.validate.stop, lookback=lookback, learn_T=fold.validate_T),
    )


def train_fold(task: FoldTask, *, fit: Fit = fit_alone) -> FoldResult:
    """Fit (alone, unless told how), score and publish one fold; a finished one is read back.

    A failure is a result with its reason.
    """
    finished, folder = finished_result(task), task.folder / task.variant.id / task.key
    if finished is not None:
        return finished
    for left in folder.parent.glob(f".{task.key}.*"):  # by a worker that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f".{task.key}.{os.getpid()}")
    partial.mkdir(parents=True)
    result = _try_fit(task, partial, fit)
    if result.ok:
        (partial / "result.json").write_text(json.dumps(asdict(result)))
        publish(partial, folder)
    else:
        shutil.rmtree(partial)  # the next run tries again: the machine may have been busy, or out of memory
    return result


def finished_result(task: FoldTask) -> FoldResult | None:
    """What a finished fit published; None too where somebody removed its signals."""
    file = task.folder / task.variant.id / task.key / "result.json"
    result = FoldResult(**json.loads(file.read_text())) if file.exists() else None
    if result and result.num_signals and not SignalStore(root=task.signals).has(result.variant, result.key, task.kind):
        return None
    return result


def model_folder(task: FoldTask) -> Path:
    """Where the fitted model of a task that saves it lies."""
    return task.folder / task.variant.id / task.key / "model"


def _try_fit(task: FoldTask, partial: Path, fit: Fit) -> FoldResult:
    try:
        return _fit(task, partial, fit)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return FoldResult(variant=task.variant.id, fold=task.fold.index, kind=task.kind, key=task.key, reason=reason)


def _fit(task: FoldTask, partial: Path, fit: Fit) -> FoldResult:
    panel, fold = load_panel(task.panel), task.fold
    model, fit_s = fit(task, panel)
    scores, rows = validation_scores(task, panel, model)
    threshold = tune_threshold(scores, panel.hold_TN[rows], costs=task.costs)
    scored = fold.test if task.kind == "oos" else slice(fold.test.start, len(panel.sample_times_T))
    forecast = model.predict(window(panel, scored.start, scored.stop, lookback=task.variant.lookback))
    signals = _signals(task, panel, scored, forecast)
    SignalStore(root=task.signals).write(signals)
    span, state = _training_span(panel, fold), model.model.state()
    if task.kind == "live" or task.keeps_model:
        metrics = _metrics(panel, scores, rows, threshold)
        _save_model(task, panel, model, span, metrics, partial / "model")
    return FoldResult(
        variant=task.variant.id,
        fold=fold.index,
        kind=task.kind,
        key=task.key,
        threshold=threshold,
        checksum=model.checksum(),
        num_signals=len(signals),
        num_parameters=sum(array.size for name, array in state.items() if name != EPOCHS),
        epochs=int(state[EPOCHS][0]) if EPOCHS in state else 0,
        fit_s=fit_s,
        trained_from=span[0].isoformat(),
        trained_to=span[1].isoformat(),
    )


def _training_span(panel: Panel, fold: Fold) -> tuple[datetime, datetime]:
    """First and last sample time learned from, validation included."""
    times = pd.DatetimeIndex(panel.sample_times_T[[fold.train.start, fold.validate.stop - 1]]).tz_localize("UTC")
    return times[0].to_pydatetime(), times[1].to_pydatetime()


def _save_model(
    task: FoldTask,
    panel: Panel,
    model: FittedModel,
    span: tuple[datetime, datetime],
    metrics: Mapping[str, float],
    folder: Path,
) -> None:
    model.save(folder)
    write_recipe(folder, task, panel, metrics=metrics)
    write_manifest(
        folder,
        variant=task.variant.id,
        checksum=model.checksum(),
        params=dict(sorted(task.params.items())),
        feature_names=panel.feature_names,
        dataset_fingerprint=panel.fingerprint,
        training_span=span,
        seed=task.fit_seed,
        code_version=task.git_sha,
        packages=package_versions(_DECIDING),
    )


def validation_scores(task: FoldTask, panel: Panel, model: FittedModel) -> tuple[np.ndarray, np.ndarray]:
    """Scores and the indices of the validation samples whose labels end before the test begins."""
    part = task.fold.validate
    scores = model.predict(window(panel, part.start, part.stop, lookback=task.variant.lookback)).score_TN
    visible = np.flatnonzero(task.fold.validate_T[part])
    return scores[visible], part.start + visible


def fit_metrics(task: FoldTask, model: FittedModel, threshold: float) -> dict[str, float]:
    """What a fit measures on its validation window: the tuned threshold, and the mean rank IC."""
    panel = load_panel(task.panel)
    return _metrics(panel, *validation_scores(task, panel, model), threshold)


def _metrics(panel: Panel, scores: np.ndarray, rows: np.ndarray, threshold: float) -> dict[str, float]:
    return {"threshold": threshold, "validation_ic": _mean_ic(panel, scores, rows)}


def _mean_ic(panel: Panel, scores: np.ndarray, rows: np.ndarray) -> float:
    from training.metrics.forecast import ic_by_time

    ic_T = ic_by_time(scores, panel.labels.forward_TN[rows])
    return float(np.nanmean(ic_T)) if np.isfinite(ic_T).any() else float("nan")


def _signals(task: FoldTask, panel: Panel, scored: slice, forecast: Forecast) -> pd.DataFrame:
    at_T, of_N = np.nonzero(np.isfinite(forecast.score_TN))
    sample_times = pd.DatetimeIndex(panel.sample_times_T[scored][at_T]).tz_localize("UTC")
    made_at = pd.Timestamp(task.made_at) if task.kind == "live" else sample_times
    return pd.DataFrame(
        {
            "variant": task.variant.id,
            "interval": task.interval,
            "horizon": panel.labels.horizon,
            "entity_key": np.array(panel.entities, dtype=object)[of_N],
            "event_time": pd.DatetimeIndex(panel.event_times_T[scored][at_T]).tz_localize("UTC"),
            "made_at": made_at,
            "model_version": task.key,
            "kind": task.kind,
            "score": forecast.score_TN[at_T, of_N],
            "confidence": forecast.confidence_TN[at_T, of_N],
        }
    )


def validation_ic(task: FoldTask, *, fit: Fit = fit_alone) -> float:
    """Mean rank IC on the fold's validation window: what tuning looks at. NaN where the fit failed."""
    panel = load_panel(task.panel)
    try:
        model, _ = fit(task, panel)
    except Exception:
        return float("nan")
    return _mean_ic(panel, *validation_scores(task, panel, model))
