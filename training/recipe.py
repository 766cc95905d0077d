"""The recipe of a saved model: all that a fit was told, kept among its files, so that it can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_repo.market.costs import CostModel
from feature_repo.pipelines.catalog import PIPELINES, pipeline
from training.artifacts import ArtifactError
from training.dataset import Panel
from training.labels import LabelKind
from training.models.spec import Budget
from training.splits.walk_forward import Fold
from training.variants import Variant

if TYPE_CHECKING:
    from training.trainer import FoldTask

RECIPE: Final = "recipe.json"
_BAR: Final = "bar"
_PLACES: Final = ("panel", "folder", "signals")  # where a fit found things and left them, which decides nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a fit was told.

    ``task`` has no places: give it some before it is fitted again. ``feature_views`` are the tables the panel was made
    of, with their versions; ``first_event`` is its first bar (ISO 8601, UTC). ``metrics`` are what the fit measured on
    its validation window.
    """

    task: FoldTask
    feature_names: tuple[str, ...]
    feature_views: tuple[str, ...]
    horizon: int
    label: LabelKind
    first_event: str
    metrics: Mapping[str, float]


def write_recipe(folder: Path, task: FoldTask, panel: Panel, *, metrics: Mapping[str, float]) -> None:
    """Write ``recipe.json`` into a saved model's folder; before the manifest, which lists it."""
    fold = {
        "index": task.fold.index,
        **{name: _ends(getattr(task.fold, name)) for name in ("train", "validate", "test")},
        **{name: _marks(getattr(task.fold, name)) for name in ("learn_T", "validate_T")},
    }
    facts = {name: getattr(task, name) for name in task.__dataclass_fields__ if name not in _PLACES}
    parts = {"variant": asdict(task.variant), "budget": asdict(task.budget), "costs": asdict(task.costs)}
    content = {
        "task": {**facts, **parts, "params": dict(task.params), "fold": fold},
        "feature_names": panel.feature_names,
        "feature_views": feature_views(panel.pipeline),
        "horizon": panel.labels.horizon,
        "label": panel.labels.kind,
        "first_event": f"{np.datetime_as_string(panel.event_times_T[0], 'us')}+00:00",
        "metrics": dict(metrics),
    }
    (folder / RECIPE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of a saved model, None where it was saved without one; what isn't a recipe is an ``ArtifactError``."""
    if not (folder / RECIPE).is_file():
        return None
    try:
        facts = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        names: dict[str, Any] = {name: tuple(facts.pop(name)) for name in ("feature_names", "feature_views")}
        return Recipe(task=_task(facts.pop("task")), **names, **facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / RECIPE} is not a recipe of this version: {error!r}; fit it again") from error


def feature_views(name: str) -> tuple[str, ...]:
    """The feature tables that a panel of this pipeline is made of, by their names with versions, as they are now."""
    return tuple(pipeline(each).view_name for each in (name, _BAR) if each in PIPELINES)


def _task(facts: dict[str, Any]) -> FoldTask:
    from training.trainer import FoldTask  # it writes recipes itself

    variant, fold = facts.pop("variant"), facts.pop("fold")
    params = tuple((name, value) for name, value in variant.pop("params"))
    parts: dict[str, Any] = {
        "variant": Variant(**variant, params=params),
        "budget": Budget(**facts.pop("budget")),
        "costs": CostModel(**facts.pop("costs")),
        "fold": Fold(
            index=fold["index"],
            train=slice(*fold["train"]),
            validate=slice(*fold["validate"]),
            test=slice(*fold["test"]),
            learn_T=_unmarked(*fold["learn_T"]),
            validate_T=_unmarked(*fold["validate_T"]),
        ),
    }
    places: dict[str, Any] = dict.fromkeys(_PLACES, Path())
    return FoldTask(**facts, **parts, **places)


def _ends(part: slice) -> list[int]:
    return [int(part.start), int(part.stop)]


def _marks(marks_T: NDArray[np.bool_]) -> tuple[int, str]:
    """How many marks, and those as hex."""
    return len(marks_T), np.packbits(marks_T).tobytes().hex()


def _unmarked(num: int, text: str) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=num).astype(bool)
