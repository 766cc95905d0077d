"""Assembling panels through Feast, point in time, and keeping them as memory-mapped arrays."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.artifacts import publish
from training.dataset import FloatArray, Labels, Panel, TimeArray

if TYPE_CHECKING:
    from feast import FeatureStore

_LABEL_ARRAYS = ("start_T", "end_T", "forward_TN", "y_TN")
_PANEL_ARRAYS = ("event_times_T", "sample_times_T", "x_TNF", "returns_TN", "vol_TN", "hold_TN")


class PanelError(ValueError):
    """A panel that can't be assembled; the message says why."""


def known_features(
    store: FeatureStore, service: str, *, entities: tuple[str, ...], sample_times_T: TimeArray
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Every feature of a service for every (time, entity): names ``view__feature`` and values (T, N, F).

    One Feast call; the offline store's knowledge-time rule decides what was known at each sample time.
    """
    shape = (len(sample_times_T), len(entities))
    asked = pd.DataFrame(
        {
            "entity_key": np.tile(np.array(entities, dtype=object), shape[0]),
            "event_timestamp": pd.DatetimeIndex(np.repeat(sample_times_T, shape[1])).tz_localize("UTC"),
        }
    )
    answer = store.get_historical_features(
        entity_df=asked, features=store.get_feature_service(service), full_feature_names=True
    ).to_df()
    names = tuple(name for name in answer.columns if name not in asked.columns)
    values = answer[list(names)].to_numpy(dtype=np.float64)
    return names, values.reshape(*shape, len(names))


def build_panel(
    *,
    pipeline: str,
    entities: tuple[str, ...],
    event_times_T: TimeArray,
    sample_times_T: TimeArray,
    names: tuple[str, ...],
    known_TNF: NDArray[np.float64],
    labels: Labels,
    hold_TN: FloatArray,
    bar_view: str,
    returns_name: str = "ret_1",
    vol_name: str = "vol_60",
) -> Panel:
    """Split what was known into the pipeline's features (all-null ones left out) and the bar's own facts."""
    own = [i for i, name in enumerate(names) if not name.startswith(f"{bar_view}__") and _any_known(known_TNF[..., i])]
    if not own:
        raise PanelError(f"pipeline {pipeline!r} has no feature with a value in this market: it is not applicable")
    arrays = {
        "event_times_T": event_times_T,
        "sample_times_T": sample_times_T,
        "x_TNF": np.ascontiguousarray(known_TNF[..., own], dtype=np.float32),
        "returns_TN": np.ascontiguousarray(known_TNF[..., names.index(f"{bar_view}__{returns_name}")]),
        "vol_TN": np.ascontiguousarray(known_TNF[..., names.index(f"{bar_view}__{vol_name}")]),
        "hold_TN": np.asarray(hold_TN, dtype=np.float64),
    }
    feature_names = tuple(names[i].split("__", 1)[1] for i in own)
    facts = [pipeline, entities, feature_names, labels.horizon, labels.kind]
    fingerprint = _fingerprint({**arrays, **_label_arrays(labels)}, facts)
    return Panel(
        pipeline=pipeline,
        entities=entities,
        feature_names=feature_names,
        labels=labels,
        fingerprint=fingerprint,
        **arrays,  # type: ignore[arg-type]
    )


def save_panel(panel: Panel, root: Path) -> Path:
    """Write a panel under ``root/<fingerprint>``, whole or not at all; a panel already there is left alone."""
    folder = root / panel.fingerprint[:16]
    if folder.exists():
        return folder
    partial = root / f".{folder.name}.{os.getpid()}"
    partial.mkdir(parents=True)
    for name in _PANEL_ARRAYS:
        np.save(partial / f"{name}.npy", getattr(panel, name), allow_pickle=False)
    for name, array in _label_arrays(panel.labels).items():
        np.save(partial / f"label_{name}.npy", array, allow_pickle=False)
    facts = {
        "pipeline": panel.pipeline,
        "entities": panel.entities,
        "feature_names": panel.feature_names,
        "fingerprint": panel.fingerprint,
        "horizon": panel.labels.horizon,
        "label": panel.labels.kind,
    }
    (partial / "panel.json").write_text(json.dumps(facts))
    publish(partial, folder)
    return folder


def load_panel(folder: Path) -> Panel:
    """Open a saved panel; its arrays are memory-mapped and read-only."""
    facts = json.loads((folder / "panel.json").read_text())
    arrays = {name: _open(folder / f"label_{name}.npy") for name in _LABEL_ARRAYS}
    labels = Labels(horizon=facts["horizon"], kind=facts["label"], **arrays)
    return Panel(
        pipeline=facts["pipeline"],
        entities=tuple(facts["entities"]),
        feature_names=tuple(facts["feature_names"]),
        fingerprint=facts["fingerprint"],
        labels=labels,
        **{name: _open(folder / f"{name}.npy") for name in _PANEL_ARRAYS},
    )


def _open(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _any_known(values: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(values).any())


def _label_arrays(labels: Labels) -> dict[str, np.ndarray]:
    return {field.name: getattr(labels, field.name) for field in fields(labels) if field.name in _LABEL_ARRAYS}


def _fingerprint(arrays: dict[str, np.ndarray], facts: list[object]) -> str:
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
