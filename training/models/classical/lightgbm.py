"""Gradient-boosted trees on the lookback's summary statistics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.classical.trees import TREES_OF_AN_UPDATE
from training.models.deadline import Deadline
from training.models.spec import Architecture, Budget, ModelError, Params, State
from training.models.windows import require_labels, require_new_labels, scatter_TN, summary_samples

# Tensor suffixes: T targets, N entities, S samples, K summary features.

TREES_FILE: Final = "trees.txt"
DIGEST_FILE: Final = "trees.json"
PATIENCE: Final = 15


class LightGBMModel:
    """Least-squares trees on the summaries of ``summary_samples``, pooled over entities; unknown stays unknown.

    The number of trees is the best one on the validation window, where that has labels. Source: Ke, G. et al.
    (2017), LightGBM: a highly efficient gradient boosting decision tree, NeurIPS.
    """

    def __init__(self, params: Params, *, lookback: int) -> None:  # noqa: ARG002 (the windows bring it)
        self._params = dict(params)

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:
        import lightgbm

        deadline = Deadline(budget)
        learn, check = summary_samples(train, labelled=True), summary_samples(valid, labelled=True)
        require_labels(learn.y_S)
        learn_set = lightgbm.Dataset(learn.x_SK, learn.y_S, params=_settings(self._params, seed))
        callbacks: list[Callable[[Any], None]] = [lambda round_: deadline.check(f"tree {round_.iteration + 1}")]
        if len(check.y_S):
            callbacks.append(lightgbm.early_stopping(PATIENCE, verbose=False))
        booster = lightgbm.train(
            _settings(self._params, seed),
            learn_set,
            num_boost_round=budget.max_trees,
            valid_sets=[learn_set.create_valid(check.x_SK, check.y_S)] if len(check.y_S) else None,
            callbacks=callbacks,
        )
        self._keep(booster.model_to_string(num_iteration=booster.best_iteration))

    def update(self, new: Window, *, seed: int, budget: Budget) -> None:
        """Go on boosting on the labelled targets of ``new``; where that fails the model stays as it was."""
        import lightgbm

        deadline = Deadline(budget)
        samples = summary_samples(new, labelled=True)
        require_new_labels(samples.y_S)
        settings = _settings(self._params, seed)
        booster = lightgbm.train(
            settings,
            lightgbm.Dataset(samples.x_SK, samples.y_S, params=settings),
            num_boost_round=min(TREES_OF_AN_UPDATE, budget.max_trees),
            init_model=self._booster,
            callbacks=[lambda round_: deadline.check(f"tree {round_.iteration + 1}")],
        )
        self._keep(booster.model_to_string())

    def predict(self, window: Window) -> NDArray[np.float64]:
        samples = summary_samples(window)
        if not len(samples.x_SK):
            return scatter_TN(window, samples.y_S, samples.index_S2)
        score_S = np.asarray(self._booster.predict(samples.x_SK, num_threads=1))
        return scatter_TN(window, score_S, samples.index_S2)

    def state(self) -> State:
        return {"trees": np.frombuffer(self._trees.encode(), dtype=np.uint8)}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TREES_FILE).write_bytes(self._trees.encode())
        digest = {"sha256": _sha256(self._trees), "params": self._params}
        (folder / DIGEST_FILE).write_text(json.dumps(digest, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Self:
        try:
            trees = (folder / TREES_FILE).read_bytes().decode()
            digest = json.loads((folder / DIGEST_FILE).read_text())
            expected, params = digest["sha256"], dict(digest["params"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"no readable trees in {folder}: {error!r}; restore the artifact or refit it") from error
        if _sha256(trees) != expected:
            # Never parsed: LightGBM aborts the whole process on some damaged texts instead of raising.
            raise ModelError(f"the trees in {folder} are not the ones saved there; restore the artifact or refit it")
        model = cls(params, lookback=0)
        model._keep(trees)
        return model

    def _keep(self, trees: str) -> None:
        """Serve from the text that is saved, so that a model before and after loading is one and the same."""
        import lightgbm

        self._trees = trees
        self._booster = lightgbm.Booster(model_str=trees)


def _sha256(trees: str) -> str:
    return hashlib.sha256(trees.encode()).hexdigest()


def _settings(params: Params, seed: int) -> dict[str, Any]:
    return dict(params) | {
        "objective": "regression",
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }


ARCHITECTURE = Architecture(
    name="lightgbm",
    family="classical",
    cost_s=0.2,
    source="Ke et al. (2017), LightGBM: A Highly Efficient Gradient Boosting Decision Tree, NeurIPS",
    model=LightGBMModel,
    grid={"num_leaves": ("n", (7, 15))},
    space={
        "learning_rate": (0.05, 0.02, 0.1),
        "min_child_samples": (40, 20, 100),
        "feature_fraction": (0.5, 0.8, 1.0),
        "lambda_l2": (1.0, 10.0, 0.0),
    },
)
