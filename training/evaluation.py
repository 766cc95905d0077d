"""Evaluation mode: new bars forecast by models that were fitted before them, on time or caught up later, all the same.

Which model speaks of a bar: of a variant's live fits the newest one that knew nothing of the bar's sample time or after
it. A fit knew what was known when it was made (``made_at`` of its recipe; with ``as_of``, up to that). The end of its
training, ``trained_to``, would not do: a label that was learned from ends bars after its own sample time, and a model
that was fitted days after a bar may yet have been trained up to one before it. By when the fits were made a late
evaluation takes the model that one on time took, and a later model is never asked.

Once a version holds its variant's stage it is the one that speaks, even where a newer one was fitted: after a rollback,
or where the newer one was not let in, what trades must have a forecast of each new bar.

A bar is forecast by itself, from its lookback of what was known at its sample time: of how many bars are caught up at
once not a bit of a forecast depends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.artifacts import ArtifactError, verify_manifest
from training.dataset import FloatArray, Panel, TimeArray, window
from training.latency import BarLatency
from training.models.fitted import FittedModel
from training.panels import load_panel
from training.recipe import feature_views, read_recipe
from training.signals import SignalStore
from training.trainer import FoldResult

# Tensor suffixes: T sample times, N entities, F features, M models of one variant from the oldest to the newest.

KIND: Final = "live"
NONE: Final = -1


class EvaluationError(RuntimeError):
    """Bars that can't be forecast as asked; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveModel:
    """A saved live fit, as its recipe tells of it: ``folder`` is the model's, not verified yet.

    ``knew_until`` (datetime64[us], UTC) is when the newest of what it may have learned was known, ``checksum`` that of
    the model that was saved. One with ``per_entity`` parameters has them in the order of the entities of the panel
    with this ``panel_fingerprint``.
    """

    variant: str
    key: str
    folder: Path
    architecture: str
    pipeline: str
    lookback: int
    per_entity: bool
    knew_until: np.datetime64
    checksum: str
    panel_fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringTask:
    """Bars of a saved panel, by their rows, that a model is to forecast.

    ``entities`` are those that the model's parameters belong to, None for a model that knows none by name.
    """

    model: LiveModel
    panel: Path
    rows: tuple[int, ...]
    entities: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BarForecast:
    """A model's word on one bar: scores and confidences of the entities (N,), NaN where there is none."""

    event_time: np.datetime64
    score_N: FloatArray
    confidence_N: FloatArray
    latency_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The forecasts of a task, one a bar; where it failed ``reason`` says why, and there are none."""

    variant: str
    key: str
    entities: tuple[str, ...] = ()
    bars: tuple[BarForecast, ...] = ()
    reason: str = ""


# ---- whose turn it is ------------------------------------------------------------------------------------------------


def live_models(
    signals: SignalStore, fits: Path, *, interval: str, horizon: int
) -> tuple[dict[str, list[LiveModel]], dict[str, str]]:
    """The live fits whose signals are in a market's store, by variant, the oldest first; and who can't be told of.

    A variant of which any fit has no readable recipe is left out with the reason: its newest model is not known. Fits
    for another interval or horizon are not meant.
    """
    found: dict[str, list[LiveModel]] = {}
    unreadable: dict[str, str] = {}
    for variant, key in signals.versions(KIND):
        if not (fits / variant / key / "result.json").exists():
            continue  # it came from elsewhere
        try:
            model = _live_model(fits / variant / key, interval=interval, horizon=horizon)
        except (ArtifactError, OSError, ValueError, TypeError, KeyError) as error:
            unreadable[variant] = f"{type(error).__name__}: {error}"
            continue
        if model is not None:
            found.setdefault(variant, []).append(model)
    ordered = {
        variant: sorted(models, key=lambda model: (model.knew_until, model.key))
        for variant, models in found.items()
        if variant not in unreadable
    }
    return ordered, unreadable


def _live_model(fit: Path, *, interval: str, horizon: int) -> LiveModel | None:
    result = FoldResult(**json.loads((fit / "result.json").read_text()))
    recipe = read_recipe(fit / "model")
    if recipe is None:
        raise ArtifactError(f"{fit} has no recipe, so nobody knows when it was made; `perennial run` fits it again")
    task = recipe.task
    if (task.variant.id, result.key) != (fit.parent.name, fit.name):
        raise ArtifactError(f"{fit} holds a fit of {task.variant.id}, {result.key}; `perennial run` fits it again")
    if (task.interval, recipe.horizon) != (interval, horizon):
        return None
    views = feature_views(task.variant.pipeline)
    if recipe.feature_views != views:
        raise ArtifactError(
            f"it learned from the feature tables {', '.join(recipe.feature_views)}, now they are {', '.join(views)}; "
            "`perennial run` fits it again"
        )
    knew_until = datetime.fromisoformat(task.as_of or task.made_at).astimezone(UTC)
    return LiveModel(
        variant=task.variant.id,
        key=result.key,
        folder=fit / "model",
        architecture=task.variant.architecture,
        pipeline=task.variant.pipeline,
        lookback=task.variant.lookback,
        per_entity=task.variant.family == "econometric",
        knew_until=np.datetime64(knew_until.replace(tzinfo=None), "us"),
        checksum=result.checksum,
        panel_fingerprint=task.panel_fingerprint,
    )


def newest_before(models: Sequence[LiveModel], sample_times_T: TimeArray) -> NDArray[np.intp]:
    """Which of a variant's models, oldest first, was the newest before each sample time (T,); ``NONE`` where none was.

    Strictly before: a model made at the sample time itself is for the next bar.
    """
    knew_until_M = np.array([model.knew_until for model in models], dtype="datetime64[us]")
    return np.searchsorted(knew_until_M, sample_times_T, side="left") - 1


def speakers(
    models: Sequence[LiveModel], sample_times_T: TimeArray, *, held: str = "", since: np.datetime64 | None = None
) -> NDArray[np.intp]:
    """Which of a variant's models, oldest first, speaks of each sample time (T,); ``NONE`` where none does.

    The newest before it, but from ``since`` (datetime64[us], UTC) on the one with the key ``held``, which holds the
    variant's stage since then, where it is among the models.
    """
    speaking_T = newest_before(models, sample_times_T)
    place = next((i for i, model in enumerate(models) if model.key == held), None)
    if place is None or since is None:
        return speaking_T
    return np.where(sample_times_T > max(since, models[place].knew_until), place, speaking_T)


# ---- the forecasts ---------------------------------------------------------------------------------------------------


def score_models(tasks: Sequence[ScoringTask]) -> list[Scored]:
    """Forecast each task's bars; one that fails is told of and holds up no other. A panel is opened once."""
    panels = {folder: load_panel(folder) for folder in {task.panel for task in tasks}}
    return [score_model(task, panels[task.panel]) for task in tasks]


def score_model(task: ScoringTask, panel: Panel) -> Scored:
    """The bars of one task, each by itself and timed, by a model whose files are as its manifest says."""
    try:
        fitted, feature_names = open_model(task.model)
        seen = as_trained(panel, feature_names, task.entities)
        windows = [window(seen, row, row + 1, lookback=fitted.lookback) for row in task.rows]
        fitted.predict(windows[0])  # what only a process' first forecast pays (imports, compiling) is not latency
        bars = []
        for row, part in zip(task.rows, windows, strict=True):
            started = time.perf_counter()
            forecast = fitted.predict(part)
            latency_ms = 1000 * (time.perf_counter() - started)
            bars.append(
                BarForecast(
                    event_time=np.datetime64(panel.event_times_T[row], "us"),
                    score_N=forecast.score_TN[0],
                    confidence_N=forecast.confidence_TN[0],
                    latency_ms=latency_ms,
                )
            )
    except Exception as error:
        return failure(task, f"{type(error).__name__}: {error}")
    return Scored(variant=task.model.variant, key=task.model.key, entities=seen.entities, bars=tuple(bars))


def failure(task: ScoringTask, reason: str) -> Scored:
    """A task that gave nothing, and why."""
    return Scored(variant=task.model.variant, key=task.model.key, reason=reason)


def open_model(model: LiveModel) -> tuple[FittedModel, tuple[str, ...]]:
    """The fitted model and the names of its features in its order; ``ArtifactError`` where a file was changed."""
    manifest = verify_manifest(model.folder)
    if (manifest.variant, manifest.checksum) != (model.variant, model.checksum):
        raise ArtifactError(
            f"{model.folder} holds {manifest.variant} with the checksum {manifest.checksum[:12]}, fitted was "
            f"{model.variant} with {model.checksum[:12]}; don't use it, fit the model again"
        )
    return FittedModel.load(model.folder), manifest.feature_names


def as_trained(panel: Panel, feature_names: Sequence[str], entities: Sequence[str] | None) -> Panel:
    """The panel with a model's features, and entities where it has parameters of each, in the model's order.

    What the panel lacks is unknown (NaN): a panel of few bars leaves out features without any value in them. What the
    model never saw is left out. Labels are hidden: nothing is learned here.
    """
    kept = panel.entities if entities is None else tuple(entities)
    of_N, of_F = _places(kept, panel.entities), _places(feature_names, panel.feature_names)
    unknown_TN = np.full((len(panel.sample_times_T), len(kept)), np.nan)
    return replace(
        panel,
        entities=kept,
        feature_names=tuple(feature_names),
        x_TNF=_taken(_taken(panel.x_TNF, of_N, axis=1), of_F, axis=2),
        returns_TN=_taken(panel.returns_TN, of_N, axis=1),
        vol_TN=_taken(panel.vol_TN, of_N, axis=1),
        hold_TN=unknown_TN,
        labels=replace(panel.labels, y_TN=unknown_TN, forward_TN=unknown_TN),
    )


def _places(wanted: Sequence[str], there: Sequence[str]) -> NDArray[np.intp]:
    return np.array([there.index(name) if name in there else NONE for name in wanted], dtype=np.intp)


def _taken(values: NDArray[Any], places: NDArray[np.intp], *, axis: int) -> NDArray[Any]:
    """The slices at these places of an axis, NaN for ``NONE``."""
    extended = np.concatenate([values, np.full_like(np.take(values, [0], axis=axis), np.nan)], axis=axis)
    return np.ascontiguousarray(np.take(extended, places, axis=axis))


# ---- what is kept of them --------------------------------------------------------------------------------------------


def signal_rows(scored: Scored, *, interval: str, horizon: int, made_at: datetime) -> pd.DataFrame:
    """The forecasts as rows of the signal store; ``made_at`` is when they were there."""
    scores, confidences = (_stacked(scored, name) for name in ("score_N", "confidence_N"))
    of_T, of_N = np.nonzero(np.isfinite(scores))
    times_T = pd.DatetimeIndex([bar.event_time for bar in scored.bars], dtype="datetime64[us]").tz_localize("UTC")
    return pd.DataFrame(
        {
            "variant": scored.variant,
            "interval": interval,
            "horizon": horizon,
            "entity_key": np.array(scored.entities, dtype=object)[of_N],
            "event_time": times_T[of_T],
            "made_at": pd.Timestamp(made_at).as_unit("us"),
            "model_version": scored.key,
            "kind": KIND,
            "score": scores[of_T, of_N],
            "confidence": confidences[of_T, of_N],
        }
    )


def latencies(scored: Scored, *, measured_at: datetime) -> list[BarLatency]:
    """How long each bar took, and for how many entities there was a forecast."""
    return [
        BarLatency(
            variant=scored.variant,
            model_version=scored.key,
            event_time=pd.Timestamp(bar.event_time, tz="UTC").to_pydatetime(),
            measured_at=measured_at,
            latency_ms=bar.latency_ms,
            num_signals=int(np.isfinite(bar.score_N).sum()),
        )
        for bar in scored.bars
    ]


def _stacked(scored: Scored, name: str) -> FloatArray:
    return np.array([getattr(bar, name) for bar in scored.bars], dtype=np.float64).reshape(-1, len(scored.entities))
