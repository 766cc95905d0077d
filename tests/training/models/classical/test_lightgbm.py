import json

import lightgbm
import numpy as np
import pytest

from tests.training.models.toys import learning_windows, toy_panel
from training.dataset import window
from training.models.classical.lightgbm import LightGBMModel
from training.models.classical.trees import TREES_OF_AN_UPDATE
from training.models.fitted import complete_params
from training.models.registry import architecture
from training.models.spec import Budget, ModelError

PANEL = toy_panel(memory=0.75)
NEW = window(PANEL, 220, 320, lookback=10, learn_T=np.ones(420, dtype=bool))
BUDGET = Budget(max_trees=20)


def fitted() -> LightGBMModel:
    train, valid = learning_windows(PANEL, lookback=10)
    model = LightGBMModel(complete_params(architecture("lightgbm"), {"num_leaves": 15}), lookback=10)
    model.fit(train, valid, seed=1, budget=BUDGET)
    return model


def booster_of(model) -> lightgbm.Booster:
    return lightgbm.Booster(model_str=model.state()["trees"].tobytes().decode())


def test_an_update_adds_a_few_trees_and_keeps_the_others():
    model = fitted()
    before, num_trees = booster_of(model), booster_of(model).num_trees()
    test = window(PANEL, 330, 400, lookback=10)
    score = model.predict(test)
    model.update(NEW, seed=2, budget=BUDGET)
    after = booster_of(model)
    assert after.num_trees() == num_trees + TREES_OF_AN_UPDATE
    leaves = [[tree.get_leaf_output(n, 0) for n in range(num_trees)] for tree in (before, after)]
    assert leaves[0] == leaves[1]
    assert (model.predict(test) != score).any()
    model.update(NEW, seed=3, budget=Budget(max_trees=2))
    assert booster_of(model).num_trees() == num_trees + TREES_OF_AN_UPDATE + 2


def test_a_loaded_model_updates_with_its_hyperparameters(tmp_path):
    model = fitted()
    model.save(tmp_path)
    loaded = LightGBMModel.load(tmp_path)
    loaded.update(NEW, seed=2, budget=BUDGET)
    added = booster_of(loaded).dump_model()["tree_info"][-1]["num_leaves"]
    assert 7 < added <= 15  # 31 where the library's own were taken


def test_an_artifact_without_hyperparameters_is_refused(tmp_path):
    fitted().save(tmp_path)
    digest = json.loads((tmp_path / "trees.json").read_text())
    (tmp_path / "trees.json").write_text(json.dumps({"sha256": digest["sha256"]}))
    with pytest.raises(ModelError, match="restore the artifact or refit it"):
        LightGBMModel.load(tmp_path)
