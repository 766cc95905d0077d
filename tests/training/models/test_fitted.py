import dataclasses
import json

import numpy as np
import pytest

from tests.training.models.toys import learning_windows, toy_panel
from training.dataset import window
from training.models.fitted import FittedModel, complete_params, fit_model
from training.models.registry import UnknownArchitectureError, architecture
from training.models.spec import Architecture, Budget, ModelError

PANEL = toy_panel(memory=0.75)
TREES = Budget(max_trees=20)


def fit(params=None, *, lookback=10, cut=10, seed=1):
    train, valid = learning_windows(PANEL, lookback=cut)
    return fit_model(architecture("lightgbm"), params or {}, train, valid, lookback=lookback, seed=seed, budget=TREES)


def test_parameters_not_given_take_their_first_choice():
    lightgbm = architecture("lightgbm")
    params = complete_params(lightgbm, {"num_leaves": 15})
    assert params == {"num_leaves": 15} | lightgbm.defaults()
    assert complete_params(lightgbm, {})["num_leaves"] == lightgbm.grid["num_leaves"][1][0]


def test_unknown_parameters_are_refused():
    with pytest.raises(ModelError, match=r"no parameters \['leaves'\]; it has .*num_leaves"):
        fit({"leaves": 3})


def test_windows_of_another_lookback_are_refused():
    with pytest.raises(ModelError, match="train window was cut for lookback 7, the model has 10"):
        fit(cut=7)


def test_prediction_refuses_another_lookback_or_pipeline():
    model = fit()
    with pytest.raises(ModelError, match=r"\(5, 4\) for a model fitted on \(10, 4\)"):
        model.predict(window(PANEL, 300, 310, lookback=5))
    narrow = dataclasses.replace(PANEL, x_TNF=PANEL.x_TNF[..., :3])
    with pytest.raises(ModelError, match=r"\(10, 3\) for a model fitted on \(10, 4\)"):
        model.predict(window(narrow, 300, 310, lookback=10))


def test_model_json_says_what_it_is(tmp_path):
    model = fit()
    model.save(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text()) == {
        "architecture": "lightgbm",
        "params": dict(model.params),
        "lookback": 10,
        "num_features": 4,
        "checksum": model.checksum(),
    }


def test_checksum_tells_fits_apart():
    model = fit()
    others = [fit(seed=2), fit({"learning_rate": 0.1}), dataclasses.replace(model, lookback=9)]
    others.append(dataclasses.replace(model, calibrator=dataclasses.replace(model.calibrator, slope=9.0)))
    assert len({m.checksum() for m in [model, *others]}) == 5


@pytest.mark.parametrize("file", ["model.json", "calibrator/arrays.safetensors", "model/trees.txt"])
def test_a_missing_file_is_a_model_error(file, tmp_path):
    fit().save(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ModelError, match="restore the artifact"):
        FittedModel.load(tmp_path)


def test_an_altered_artifact_is_refused(tmp_path):
    fit().save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text()) | {"lookback": 7}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match="is not the one saved there"):
        FittedModel.load(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda text: text.replace("leaf_value=", "leaf_value=9", 1), lambda text: text[:900]]
)
def test_damaged_trees_are_refused_before_lightgbm_aborts_on_them(damage, tmp_path):
    fit().save(tmp_path)
    trees = tmp_path / "model" / "trees.txt"
    trees.write_text(damage(trees.read_text()))
    with pytest.raises(ModelError, match="not the ones saved there"):
        FittedModel.load(tmp_path)


def test_an_artifact_of_an_unknown_architecture_is_refused(tmp_path):
    fit().save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text()) | {"architecture": "oracle"}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match="oracle"):
        FittedModel.load(tmp_path)
    with pytest.raises(UnknownArchitectureError, match="lightgbm"):
        architecture("oracle")


def test_a_fit_that_diverged_is_refused():
    class Diverged:
        def __init__(self, params, *, lookback): ...

        def fit(self, train, valid, *, seed, budget): ...

        def predict(self, window):
            return np.full((window.num_targets, 6), np.inf)

    train, valid = learning_windows(PANEL, lookback=10)
    diverged = Architecture(name="diverged", family="deep", source="here", model=Diverged)
    with pytest.raises(ModelError, match="no finite score"):
        fit_model(diverged, {}, train, valid, lookback=10, seed=1, budget=TREES)
