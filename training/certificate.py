"""The reproducibility certificate of a saved model: made again from what is recorded, and held against what was saved.

Six items, each ok, not ok, or not checkable: code version, feature version, training data, parameters, weights and
metrics. Each fact belongs to one item, so that what was changed is what is named: a parameter edited in the manifest is
no fault of the weights. What could not be checked is not certified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from training.artifacts import MANIFEST, ArtifactError, Manifest, file_sha256, package_versions, read_manifest
from training.dataset import Panel, window
from training.models.fitted import MODEL_FILE, FittedModel
from training.models.spec import ModelError
from training.panels import build_panel, load_panel
from training.rating.evidence import Finding
from training.recipe import RECIPE, Recipe, feature_views, read_recipe
from training.stacking import train_folds
from training.trainer import FoldTask, fit_metrics, model_folder

# Tensor suffixes: T times, N entities, F features.

CERTIFICATE: Final = "certificate.json"
ITEMS: Final = ("code version", "feature version", "training data", "parameters", "weights", "metrics")
TOLERANCE: Final = 1e-6
"""Where a refit differs in bits: the largest difference of a forecast, in standard deviations of the forecasts."""
Status: TypeAlias = Literal["ok", "not ok", "not checkable"]
_SHOWN: Final = 12  # characters of a hash


class CertificateError(ValueError):
    """What is no certificate, or was edited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item: what was recorded, and what there is."""

    name: str
    status: Status
    expected: str
    got: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What the check of a model's version came to; ``artifact_sha256`` is of the manifest that was checked.

    ``checked_at`` is aware, ``code`` the fingerprint of the source that checked. ``version`` is 0 for a fit that is not
    registered yet.
    """

    model: str
    version: int
    artifact_sha256: str
    checked_at: datetime
    code: str
    items: tuple[Item, ...]

    @property
    def ok(self) -> bool:
        """Whether every item is."""
        return [item.name for item in self.items if item.status == "ok"] == list(ITEMS)

    def describe(self) -> str:
        """The items that are not ok, in a line."""
        wrong = [f"{item.name} {item.status} ({item.got})" for item in self.items if item.status != "ok"]
        return "; ".join(wrong) or f"all {len(ITEMS)} items are as recorded"

    def finding(self) -> Finding:
        """As the gates take it: how many items are ok, of how many."""
        num_ok = sum(item.status == "ok" for item in self.items)
        return Finding(ok=self.ok, why=f"rebuilt: {self.describe()}", value=num_ok, threshold=len(ITEMS))

    def to_json(self) -> str:
        """As text that is the same for equal certificates, with a checksum that shows where it was edited."""
        facts = {**asdict(self), "ok": self.ok, "checked_at": self.checked_at.isoformat()}
        return json.dumps({**facts, "sha256": _sha256(facts)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read back ``to_json``; whatever isn't a certificate, or contradicts itself, is a ``CertificateError``."""
        try:
            facts = json.loads(text)
            if facts.pop("sha256") != _sha256(facts):
                raise ValueError("it was edited: its checksum is that of another text")
            claimed = facts.pop("ok")
            items = tuple(Item(**each) for each in facts.pop("items"))
            made = cls(items=items, checked_at=datetime.fromisoformat(facts.pop("checked_at")), **facts)
            if claimed is not made.ok:
                raise ValueError(f"it says ok={claimed} of these items: {made.describe()}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CertificateError(f"not a certificate of this version: {error!r}; verify the model again") from error
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """The training set as made again: ``panel`` is its folder, None where ``why`` says why there is none.

    ``is_damaged`` tells what it should be made of being there and unreadable from its not being there. ``differs`` says
    what it is by the market's own data, where these are not what its feature tables were made of.
    """

    panel: Path | None = None
    why: str = ""
    is_damaged: bool = False
    differs: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refit:
    """The fit made again, on which panel; without a ``model``, ``why`` says why, and whether a fit ``failed``."""

    model: FittedModel | None = None
    panel: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    failed: bool = False
    why: str = ""


def certify(
    folder: Path,
    *,
    registered: Mapping[str, str],
    version: int,
    saved: Path | None,
    rebuilt: Rebuilt,
    code: str,
    git_sha: str,
    scratch: Path,
    at: datetime,
) -> Certificate:
    """Check a saved model and fit it again.

    Parameters
    ----------
    folder
        The saved model, with its manifest and recipe.
    registered
        The tags of its version in the registry; those that are absent are held against nothing.
    saved, rebuilt
        The panel kept from the time of the fit (None: there is none), and the one made again from what was known then.
    code, git_sha
        Fingerprint of the deciding source and the commit, as they are now.
    scratch
        An empty folder, for the refit.
    """
    sha256 = file_sha256(folder / MANIFEST) if (folder / MANIFEST).is_file() else ""
    manifest = read_manifest(folder)
    try:
        recipe = read_recipe(folder)
        why = "" if recipe else f"it was saved without {RECIPE}, before recipes were recorded: fit it again"
    except ArtifactError as error:
        recipe, why = None, str(error)
    if recipe is None:
        items = _without_recipe(folder, manifest, why)
    else:
        items = _items(folder, manifest, recipe, registered, saved, rebuilt, code, git_sha, scratch)
    return Certificate(
        model=manifest.variant, version=version, artifact_sha256=sha256, checked_at=at, code=code, items=items
    )


def panel_fingerprint(panel: Panel) -> str:
    """The fingerprint that a panel's arrays have now, whatever the one says that was saved with them."""
    facts = ("ret_1", "vol_60")
    known_TNF = np.concatenate([panel.x_TNF, panel.returns_TN[..., None], panel.vol_TN[..., None]], axis=-1)
    return build_panel(
        pipeline=panel.pipeline,
        entities=panel.entities,
        event_times_T=panel.event_times_T,
        sample_times_T=panel.sample_times_T,
        names=(*(f"own__{name}" for name in panel.feature_names), *(f"bar__{name}" for name in facts)),
        known_TNF=known_TNF,
        labels=panel.labels,
        hold_TN=panel.hold_TN,
        bar_view="bar",
    ).fingerprint


# ---- the items -------------------------------------------------------------------------------------------------------


def _items(
    folder: Path,
    manifest: Manifest,
    recipe: Recipe,
    tags: Mapping[str, str],
    saved: Path | None,
    rebuilt: Rebuilt,
    code: str,
    git_sha: str,
    scratch: Path,
) -> tuple[Item, ...]:
    task = recipe.task
    found = {name: panel for name, panel in (("saved", saved), ("rebuilt", rebuilt.panel)) if panel is not None}
    fingerprints = {name: _fingerprint(panel) for name, panel in found.items()}
    good = [found[name] for name, got in fingerprints.items() if got == task.panel_fingerprint]
    if not _is_listed(folder, manifest):
        refit = _Refit(why=f"{RECIPE} is not the one that was saved")
    elif not good:
        refit = _Refit(why="there is no panel with the recorded fingerprint to fit it on")
    else:
        refit = _fit_again(task, good[-1], scratch)
    return (
        _code(manifest, recipe, tags, code, git_sha),
        _features(manifest, recipe),
        _data(manifest, recipe, tags, fingerprints, rebuilt),
        _parameters(folder, manifest, recipe, tags),
        _weights(folder, manifest, recipe, tags, refit),
        _metrics(recipe, refit),
    )


def _code(manifest: Manifest, recipe: Recipe, tags: Mapping[str, str], code: str, git_sha: str) -> Item:
    """The source decides; the commit, which also counts what decides nothing, tells where to find it."""
    commit = recipe.task.git_sha
    return _compared(
        "code version",
        {
            "source": (recipe.task.code, code),
            "commit in the manifest": (commit, manifest.code_version),
            "commit in the registry": (commit, tags.get("git_sha", commit)),
            **_packages(manifest),
        },
        said=(f"commit {commit}", f"commit {git_sha}"),
    )


def _packages(manifest: Manifest) -> dict[str, tuple[object, object]]:
    installed = package_versions(manifest.packages)
    return {name: (version, installed.get(name, "not installed")) for name, version in manifest.packages.items()}


def _features(manifest: Manifest, recipe: Recipe) -> Item:
    return _compared(
        "feature version",
        {
            "views": (recipe.feature_views, feature_views(recipe.task.variant.pipeline)),
            "features in the manifest": (recipe.feature_names, manifest.feature_names),
        },
    )


def _data(
    manifest: Manifest, recipe: Recipe, tags: Mapping[str, str], fingerprints: Mapping[str, str], rebuilt: Rebuilt
) -> Item:
    recorded = recipe.task.panel_fingerprint
    claimed = {
        "in the manifest": manifest.dataset_fingerprint,
        "in the registry": tags.get("dataset_fingerprint", recorded),
    }
    facts: dict[str, tuple[object, object]] = {
        name: (recorded, got) for name, got in {**claimed, **fingerprints}.items()
    }
    if rebuilt.is_damaged:
        facts["rebuilt"] = (recorded, rebuilt.why)
    if rebuilt.differs:
        facts["built anew"] = (recorded, rebuilt.differs)
    item = _compared("training data", facts)
    if item.status == "ok" and rebuilt.panel is None:
        return replace(item, status="not checkable", got=f"it could not be rebuilt: {rebuilt.why}")
    return item


def _parameters(folder: Path, manifest: Manifest, recipe: Recipe, tags: Mapping[str, str]) -> Item:
    task = recipe.task
    params = dict(task.params)
    return _compared(
        "parameters",
        {
            RECIPE: (_listed(manifest).get(RECIPE, "listed"), file_sha256(folder / RECIPE)),
            "variant": (task.variant.id, manifest.variant),
            "parameters in the manifest": (params, dict(manifest.params)),
            "parameters of the model": (params, _of_model(folder, params)),
            "seed in the manifest": (task.fit_seed, manifest.seed),
            "seed in the registry": (str(task.fit_seed), tags.get("seed", str(task.fit_seed))),
            "training key": (tags.get("training_key", task.key), task.key),
        },
    )


def _of_model(folder: Path, params: Mapping[str, object]) -> object:
    """The same parameters as the model says it has them; a file that can't be read is a fault of the weights."""
    try:
        has = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))["params"]
        return {name: has.get(name) for name in params}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return params


def _weights(folder: Path, manifest: Manifest, recipe: Recipe, tags: Mapping[str, str], refit: _Refit) -> Item:
    facts = _files(folder, manifest)
    if facts:
        return _compared("weights", facts)
    try:
        saved = FittedModel.load(folder)
    except ModelError as error:
        return Item(name="weights", status="not ok", expected=manifest.checksum, got=str(error))
    checksum = saved.checksum()
    facts = {
        "checksum in the manifest": (manifest.checksum, checksum),
        "checksum in the registry": (tags.get("checksum", checksum), checksum),
    }
    registered = tags.get("artifact_sha256")
    if registered is not None:
        is_it = file_sha256(folder / MANIFEST) == registered
        facts[MANIFEST] = (registered, registered if is_it else _as_saved(manifest, recipe, checksum))
    item = _compared("weights", facts)
    if item.status != "ok":
        return item
    if refit.model is None or refit.panel is None:
        return replace(item, status=_unfitted(refit), got=f"not fitted again: {refit.why}")
    if refit.model.checksum() == checksum:
        return replace(item, got=f"{item.got}; fitted again: the same bits")
    return _within_tolerance(item, recipe.task, (saved, refit.model), load_panel(refit.panel))


def _files(folder: Path, manifest: Manifest) -> dict[str, tuple[object, object]]:
    """The files that are not what the manifest lists; the recipe is looked at with the parameters."""
    listed = _listed(manifest)
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    got = {name: file_sha256(path) for name, path in there.items() if name != MANIFEST}
    names = sorted((listed.keys() | got.keys()) - {RECIPE})
    return {
        name: (listed.get(name, "no such file"), got.get(name, "missing"))
        for name in names
        if listed.get(name) != got.get(name)
    }


def _as_saved(manifest: Manifest, recipe: Recipe, checksum: str) -> str:
    """SHA-256 of the manifest with what other items look at as recorded: what is left to differ is the files."""
    restored = replace(
        manifest,
        variant=recipe.task.variant.id,
        checksum=checksum,
        params=dict(sorted(recipe.task.params.items())),
        feature_names=recipe.feature_names,
        dataset_fingerprint=recipe.task.panel_fingerprint,
        seed=recipe.task.fit_seed,
        code_version=recipe.task.git_sha,
    )
    return hashlib.sha256(restored.to_json().encode()).hexdigest()


def _unfitted(refit: _Refit) -> Status:
    return "not ok" if refit.failed else "not checkable"


def _within_tolerance(item: Item, task: FoldTask, models: tuple[FittedModel, FittedModel], panel: Panel) -> Item:
    """Libraries need not give the same bits on another machine: then the forecasts are compared."""
    apart = forecasts_apart(*models, panel, first=task.fold.validate.start, lookback=task.variant.lookback)
    status: Status = "ok" if apart <= TOLERANCE else "not ok"
    said = f"forecasts up to {apart:.2g} standard deviations apart, allowed {TOLERANCE:g}"
    return replace(item, status=status, got=f"fitted again: other bits, {models[1].checksum()[:_SHOWN]}; {said}")


def _metrics(recipe: Recipe, refit: _Refit) -> Item:
    expected = ", ".join(f"{name} {value!r}" for name, value in recipe.metrics.items())
    if refit.model is None:
        return Item(name="metrics", status=_unfitted(refit), expected=expected, got=f"not fitted again: {refit.why}")
    got = ", ".join(f"{name} {refit.metrics.get(name)!r}" for name in recipe.metrics)
    same = all(
        np.isclose(refit.metrics.get(name, np.inf), value, rtol=TOLERANCE, atol=0.0, equal_nan=True)
        for name, value in recipe.metrics.items()
    )
    return Item(name="metrics", status="ok" if same and recipe.metrics else "not ok", expected=expected, got=got)


def _without_recipe(folder: Path, manifest: Manifest, why: str) -> tuple[Item, ...]:
    """Of a model without its recipe only the files can be found to be wrong."""
    wrong = _files(folder, manifest)
    if RECIPE in _listed(manifest):
        wrong[RECIPE] = (_listed(manifest)[RECIPE], why)
    missing = [Item(name=name, status="not checkable", expected="a recipe", got=why) for name in ITEMS]
    return tuple(_compared(each.name, wrong) if each.name == "weights" and wrong else each for each in missing)


# ---- fitting again ---------------------------------------------------------------------------------------------------


def _fit_again(task: FoldTask, panel: Path, scratch: Path) -> _Refit:
    placed = replace(task, panel=panel, folder=scratch / "fits", signals=scratch / "signals")
    (result,) = train_folds([placed])
    if not result.ok:
        return _Refit(failed=True, why=result.reason)
    model = FittedModel.load(model_folder(placed))
    return _Refit(model=model, panel=panel, metrics=fit_metrics(placed, model, result.threshold))


def forecasts_apart(one: FittedModel, other: FittedModel, panel: Panel, *, first: int, lookback: int) -> float:
    """The largest difference between two models' forecasts from a sample on, in standard deviations of the first's.

    Infinite where one has a forecast and the other none.
    """
    asked = window(panel, first, len(panel.sample_times_T), lookback=lookback)
    one_TN, other_TN = one.predict(asked).score_TN, other.predict(asked).score_TN
    is_told = np.isfinite(one_TN)
    if not is_told.any() or (is_told != np.isfinite(other_TN)).any():
        return np.inf
    largest = np.abs(one_TN - other_TN)[is_told].max()
    return float(largest / one_TN[is_told].std()) if largest else 0.0


# ---- comparing -------------------------------------------------------------------------------------------------------


def _compared(name: str, facts: Mapping[str, tuple[object, object]], said: tuple[str, str] = ("", "")) -> Item:
    """Ok where all facts are as expected; else those are named that aren't. ``said`` is told beside them."""
    wrong = {what: pair for what, pair in facts.items() if pair[0] != pair[1]}
    shown = wrong or facts
    texts = [
        "; ".join([*filter(None, [said[side]]), *(f"{what} {_short(pair[side])}" for what, pair in shown.items())])
        for side in (0, 1)
    ]
    return Item(name=name, status="not ok" if wrong else "ok", expected=texts[0], got=texts[1])


def _short(value: object) -> str:
    text = str(value)
    is_hash = len(text) == hashlib.sha256().digest_size * 2 and text.isalnum()
    return text[:_SHOWN] if is_hash else text


def _fingerprint(folder: Path) -> str:
    """What a saved panel's arrays come to; where they can't be read, why."""
    try:
        return panel_fingerprint(load_panel(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:  # a changed byte can spoil anything
        return f"it can't be read: {error!r}"


def _listed(manifest: Manifest) -> dict[str, str]:
    return {each.path: each.sha256 for each in manifest.artifacts}


def _is_listed(folder: Path, manifest: Manifest) -> bool:
    return _listed(manifest).get(RECIPE) == file_sha256(folder / RECIPE)


def _sha256(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
