"""The certificate: a fit made again is as it was saved, and whatever was changed is named by its own item alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from feature_repo.market.costs import CostModel
from tests.training.panel_makers import make_panel
from training.artifacts import MANIFEST, folder_artifact, read_manifest
from training.certificate import (
    ITEMS,
    TOLERANCE,
    Certificate,
    CertificateError,
    Rebuilt,
    certify,
    forecasts_apart,
    panel_fingerprint,
)
from training.dataset import Panel
from training.models.fitted import FittedModel
from training.models.registry import architecture
from training.models.spec import Budget
from training.panels import load_panel, save_panel
from training.recipe import RECIPE, read_recipe
from training.splits.walk_forward import final_fold
from training.trainer import FoldTask, model_folder, train_fold
from training.variants import full_grid

NOW = datetime(2023, 1, 1, tzinfo=UTC)
PIPELINE = "momentum"


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """A saved model, the panel it was fitted on, that panel as rebuilt, and what the registry says."""

    folder: Path
    saved: Path
    rebuilt: Path
    tags: dict[str, str]
    scratch: Path

    def certify(self, **changed: object) -> Certificate:
        given = {
            "registered": self.tags,
            "version": 1,
            "saved": self.saved,
            "rebuilt": Rebuilt(panel=self.rebuilt),
            "code": "code",
            "git_sha": "sha",
            "scratch": self.scratch,
            "at": NOW,
        }
        return certify(self.folder, **(given | changed))


def _panel() -> Panel:
    toy = make_panel(num_times=260, signal=0.5)
    named = replace(toy, pipeline=PIPELINE)
    return replace(named, fingerprint=panel_fingerprint(named))


def _task(panel: Panel, home: Path) -> FoldTask:
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    variant = next(v for v in full_grid([PIPELINE]) if v.architecture == "lightgbm" and v.lookback == 7)
    return FoldTask(
        variant=variant,
        params={**architecture("lightgbm").defaults(), **dict(variant.params)},
        panel=save_panel(panel, home / "panels"),
        panel_fingerprint=panel.fingerprint,
        fold=final_fold(*times, train=120, validate=40),
        kind="live",
        interval="1d",
        seed=3,
        budget=Budget(max_trees=10),
        costs=CostModel(),
        code="code",
        git_sha="sha",
        folder=home / "fits",
        signals=home / "signals",
        made_at=NOW.isoformat(),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one fit left everything; tests look at copies."""
    home = tmp_path_factory.mktemp("home")
    task = _task(_panel(), home)
    result = train_fold(task)
    assert result.ok, result.reason
    manifest, folder = read_manifest(model_folder(task)), model_folder(task)
    tags = {
        "checksum": manifest.checksum,
        "artifact_sha256": folder_artifact(folder).sha256,
        "dataset_fingerprint": manifest.dataset_fingerprint,
        "training_key": task.key,
        "seed": str(manifest.seed),
        "git_sha": manifest.code_version,
    }
    shutil.copytree(folder, home / "model")
    (home / "tags.json").write_text(json.dumps(tags))
    return home


@pytest.fixture
def desk(home: Path, tmp_path: Path) -> Desk:
    shutil.copytree(home / "model", tmp_path / "model")
    (panel,) = (home / "panels").iterdir()
    for name in ("saved", "rebuilt"):
        shutil.copytree(panel, tmp_path / name)
    tags = json.loads((home / "tags.json").read_text())
    return Desk(
        folder=tmp_path / "model",
        saved=tmp_path / "saved",
        rebuilt=tmp_path / "rebuilt",
        tags=tags,
        scratch=tmp_path / "scratch",
    )


def _wrong(certificate: Certificate) -> dict[str, str]:
    return {item.name: item.status for item in certificate.items if item.status != "ok"}


def _flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(bytes(content))


def _edit(file: Path, change: Callable[[dict], None]) -> None:
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def test_what_was_saved_is_certified_and_the_certificate_can_be_read_back(desk: Desk) -> None:
    made = desk.certify()
    assert made.ok, made.describe()
    assert [item.name for item in made.items] == list(ITEMS)
    assert "the same bits" in made.items[4].got
    assert Certificate.from_json(made.to_json()) == made
    found = made.finding()
    assert (found.ok, found.value, found.threshold) == (True, 6, 6)


def test_a_model_that_is_not_registered_yet_is_certified_too(desk: Desk) -> None:
    assert desk.certify(registered={}, version=0).ok


def _weights_file(folder: Path) -> Path:
    return max((folder / "model").iterdir(), key=lambda path: path.stat().st_size)


def _param(facts: dict) -> None:
    facts["params"]["num_leaves"] = facts["params"].get("num_leaves", 0) + 1


CHANGES: dict[str, tuple[str, Callable[[Desk], object]]] = {
    "a byte of the weights": ("weights", lambda desk: _flip(_weights_file(desk.folder))),
    "a file that is missing": ("weights", lambda desk: _weights_file(desk.folder).unlink()),
    "a file that nobody listed": ("weights", lambda desk: (desk.folder / "more.txt").write_text("more")),
    "a listed size": (
        "weights",
        lambda desk: _edit(desk.folder / MANIFEST, lambda facts: facts["artifacts"][0].update(size=1)),
    ),
    "the manifest's checksum": (
        "weights",
        lambda desk: _edit(desk.folder / MANIFEST, lambda facts: facts.update(checksum="0" * 64)),
    ),
    "the registered checksum": ("weights", lambda desk: desk.tags.update(checksum="0" * 64)),
    "a byte of the panel": ("training data", lambda desk: _flip(desk.saved / "x_TNF.npy")),
    "a byte of a panel's head": ("training data", lambda desk: _flip(desk.saved / "x_TNF.npy", place=0.0)),
    "a byte of the labels": ("training data", lambda desk: _flip(desk.saved / "label_y_TN.npy")),
    "a byte of the rebuilt panel": ("training data", lambda desk: _flip(desk.rebuilt / "hold_TN.npy")),
    "the manifest's fingerprint": (
        "training data",
        lambda desk: _edit(desk.folder / MANIFEST, lambda facts: facts.update(dataset_fingerprint="0" * 64)),
    ),
    "a parameter": ("parameters", lambda desk: _edit(desk.folder / MANIFEST, _param)),
    "the seed": ("parameters", lambda desk: _edit(desk.folder / MANIFEST, lambda facts: facts.update(seed=1))),
    "the registered seed": ("parameters", lambda desk: desk.tags.update(seed="1")),
    "the registered training key": ("parameters", lambda desk: desk.tags.update(training_key="0")),
    "the features": (
        "feature version",
        lambda desk: _edit(desk.folder / MANIFEST, lambda facts: facts["feature_names"].reverse()),
    ),
    "the commit": (
        "code version",
        lambda desk: _edit(desk.folder / MANIFEST, lambda facts: facts.update(code_version="other")),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_caught_by_its_own_item_alone(desk: Desk, change: str) -> None:
    item, make = CHANGES[change]
    make(desk)
    assert _wrong(desk.certify()) == {item: "not ok"}


def test_other_source_is_caught_whatever_the_commit_is_called(desk: Desk) -> None:
    assert _wrong(desk.certify(code="other")) == {"code version": "not ok"}
    assert desk.certify(git_sha="a commit of the README").ok


def test_an_edited_recipe_is_not_followed(desk: Desk) -> None:
    _edit(desk.folder / RECIPE, lambda facts: facts["task"].update(seed=4))
    assert _wrong(desk.certify()) == {"parameters": "not ok", "weights": "not checkable", "metrics": "not checkable"}


def test_a_recorded_metric_that_the_fit_does_not_give_is_caught(desk: Desk) -> None:
    """Everything else agrees, as by one who registers a better score than there was."""
    _edit(desk.folder / RECIPE, lambda facts: facts["metrics"].update(validation_ic=0.9))
    listed = folder_artifact(desk.folder)
    content = (desk.folder / RECIPE).read_bytes()

    def relist(facts: dict) -> None:
        (entry,) = [each for each in facts["artifacts"] if each["path"] == RECIPE]
        entry.update(sha256=sha256(content).hexdigest(), size=len(content))

    _edit(desk.folder / MANIFEST, relist)
    again = folder_artifact(desk.folder)
    assert again.sha256 != listed.sha256
    assert _wrong(desk.certify(registered={**desk.tags, "artifact_sha256": again.sha256})) == {"metrics": "not ok"}


def test_weights_that_were_saved_well_but_are_of_another_fit_are_caught(desk: Desk, home: Path, tmp_path: Path) -> None:
    task = replace(_task(_panel(), tmp_path / "other"), seed=4)
    assert train_fold(task).ok
    shutil.rmtree(desk.folder)
    shutil.copytree(model_folder(task), desk.folder)
    recipe = (home / "model" / RECIPE).read_bytes()
    (desk.folder / RECIPE).write_bytes(recipe)

    def relist(facts: dict) -> None:
        (entry,) = [each for each in facts["artifacts"] if each["path"] == RECIPE]
        entry.update(sha256=sha256(recipe).hexdigest(), size=len(recipe))
        facts.update(seed=read_recipe(desk.folder).task.fit_seed)

    _edit(desk.folder / MANIFEST, relist)
    assert _wrong(desk.certify(registered={})).get("weights") == "not ok"


def test_a_panel_that_can_not_be_rebuilt_is_no_proof(desk: Desk) -> None:
    missing = desk.certify(rebuilt=Rebuilt(why="no such market"))
    assert _wrong(missing) == {"training data": "not checkable"}
    assert not missing.ok
    damaged = desk.certify(
        rebuilt=Rebuilt(why="its Parquet can't be read", is_damaged=True), scratch=desk.scratch / "2"
    )
    assert _wrong(damaged) == {"training data": "not ok"}


def test_without_any_good_panel_nothing_is_fitted_again(desk: Desk) -> None:
    _flip(desk.saved / "x_TNF.npy")
    made = desk.certify(rebuilt=Rebuilt(why="no such market"))
    assert _wrong(made) == {"training data": "not ok", "weights": "not checkable", "metrics": "not checkable"}


def test_a_model_from_before_recipes_is_not_certified(desk: Desk) -> None:
    def forget(facts: dict) -> None:
        facts["artifacts"] = [each for each in facts["artifacts"] if each["path"] != RECIPE]

    (desk.folder / RECIPE).unlink()
    _edit(desk.folder / MANIFEST, forget)
    assert _wrong(desk.certify()) == dict.fromkeys(ITEMS, "not checkable")
    _flip(_weights_file(desk.folder))
    assert _wrong(desk.certify())["weights"] == "not ok"


def test_a_recipe_gives_the_task_back(desk: Desk, tmp_path: Path) -> None:
    recipe, task = read_recipe(desk.folder), _task(_panel(), tmp_path)
    assert recipe is not None
    assert recipe.task.key == task.key == desk.tags["training_key"]
    np.testing.assert_array_equal(recipe.task.fold.learn_T, task.fold.learn_T)
    np.testing.assert_array_equal(recipe.task.fold.validate_T, task.fold.validate_T)
    assert recipe.first_event == "2018-01-01T21:00:00.000000+00:00"
    assert not task.fold.learn_T.all()


def test_a_panels_fingerprint_is_that_of_its_arrays(desk: Desk) -> None:
    panel = load_panel(desk.saved)
    assert panel_fingerprint(panel) == panel.fingerprint
    assert panel_fingerprint(make_panel(num_times=120, seed=1)) == make_panel(num_times=120, seed=1).fingerprint


def test_forecasts_are_compared_in_their_own_standard_deviations(desk: Desk) -> None:
    model, panel = FittedModel.load(desk.folder), load_panel(desk.saved)
    asked = {"first": 150, "lookback": model.lookback}
    assert forecasts_apart(model, model, panel, **asked) == 0.0
    nearly = replace(model, model=_Nudged(model.model, by=TOLERANCE / 10))
    far = replace(model, model=_Nudged(model.model, by=0.1))
    assert 0 < forecasts_apart(model, nearly, panel, **asked) < TOLERANCE
    np.testing.assert_allclose(forecasts_apart(model, far, panel, **asked), 0.1)
    silent = replace(model, model=_Nudged(model.model, by=np.nan))
    assert forecasts_apart(model, silent, panel, **asked) == np.inf


class _Nudged:
    """A model whose forecasts are moved by so many of their standard deviations."""

    def __init__(self, model: object, by: float) -> None:
        self.model, self.by = model, by

    def predict(self, window: object) -> np.ndarray:
        score_TN = self.model.predict(window)
        return score_TN + self.by * score_TN[np.isfinite(score_TN)].std()


def test_an_edited_certificate_is_refused(desk: Desk) -> None:
    _flip(_weights_file(desk.folder))
    text = desk.certify().to_json()
    for edited in (text.replace('"not ok"', '"ok"'), text.replace('"version": 1', '"version": 2'), "{}", "[]", ""):
        with pytest.raises(CertificateError, match="verify the model again"):
            Certificate.from_json(edited)
