import dataclasses

import numpy as np
import pytest
import xgboost

from tests.training.models.classical.tables import (
    NOTHING,
    correlation,
    exclusive_or,
    learned,
    line,
    table,
    task,
    with_holes,
)
from training.models.classical.trees import TREES_OF_AN_UPDATE
from training.models.classical.xgboost import learn, relearn, taken
from training.models.spec import ModelError


def booster_on(rows, *, num_trees, **settings) -> xgboost.Booster:
    settings = {"base_score": 0.25, "nthread": 1, "max_depth": 4} | settings
    return xgboost.train(settings, xgboost.DMatrix(rows.x_SK, rows.y_S), num_boost_round=num_trees)


def test_scores_are_the_librarys_bit_for_bit():
    """Unknown features too, values at a split itself too (rounded features), and for the first trees of a booster."""
    train, test = (with_holes(table(line, seed=seed)) for seed in (0, 1))
    for rows in (train, test):
        rows.x_SK[:] = np.round(rows.x_SK, 1)
    test.x_SK[::3, 0] = np.nan
    booster = booster_on(train, num_trees=40)
    for num_trees in (40, 7):
        want = booster.predict(xgboost.DMatrix(test.x_SK), iteration_range=(0, num_trees))
        got = taken(booster, num_trees=num_trees, start=0.25).score(test.x_SK)
        np.testing.assert_array_equal(got, want.astype(np.float64))


def test_it_starts_from_the_mean_label():
    rows = table(lambda x: 3.0 + 0 * x[:, 0], noise=0.1)
    got = learn(rows, NOTHING, task("xgboost", num_trees=1))
    assert got.start_1[0] == np.float32(rows.y_S.mean())


def test_it_keeps_the_trees_best_on_validation():
    train, check = (table(line, num_samples=400, seed=seed, noise=4.0) for seed in (0, 1))
    got, whole = (
        learn(train, beside, task("xgboost", num_trees=60, min_child_weight=20.0)) for beside in (check, NOTHING)
    )
    errors = []
    for num_trees in range(1, 61):
        part = dataclasses.replace(whole, root_G=whole.root_G[:num_trees])
        errors.append(np.square(part.score(check.x_SK) - check.y_S).mean())
    assert len(whole.root_G) == 60
    assert 1 < len(got.root_G) == 1 + np.argmin(errors) < 45


def test_it_learns_what_no_linear_score_tells():
    assert learned("xgboost", exclusive_or)[1] > 0.6
    assert abs(learned("elastic_net", exclusive_or)[1]) < 0.15


def test_penalties_shrink_the_leaves():
    """One tree: a ridge of lambda shrinks a leaf of n samples by n / (n + lambda); a large alpha zeroes all."""
    free, ridged, zeroed = (
        learned("xgboost", line, num_trees=1, learning_rate=0.1, max_depth=3, **penalty)[0]
        for penalty in ({"lambda": 0.0}, {"lambda": 1000.0}, {"alpha": 1e6})
    )

    def largest(trees):
        return np.abs(trees.value_M[trees.left_M < 0]).max()

    assert 0 < largest(ridged) < 0.5 * largest(free)
    assert largest(zeroed) == 0


def test_the_deadline_is_seen_while_growing():
    with pytest.raises(ModelError, match="at tree 1"):
        learn(table(line), NOTHING, task("xgboost", num_trees=500, deadline_s=0.0))


def test_an_update_goes_on_as_the_library_does(monkeypatch):
    """Its own way is a booster handed over; ours starts from the present score. Rows drawn would differ by seed."""
    settings = {"max_depth": 3, "learning_rate": 0.1, "base_score": 0.25, "nthread": 1, "tree_method": "hist"}
    old, new, test = (with_holes(table(rule, seed=seed)) for seed, rule in enumerate((line, exclusive_or, line)))
    booster = booster_on(old, num_trees=20, **settings)
    monkeypatch.setattr("training.models.classical.xgboost._settings", lambda asked, *, start: settings)
    got = relearn(taken(booster, num_trees=20, start=0.25), new, task("xgboost", num_trees=6))
    theirs = xgboost.train(settings, xgboost.DMatrix(new.x_SK, new.y_S), num_boost_round=6, xgb_model=booster)
    np.testing.assert_allclose(got.score(test.x_SK), theirs.predict(xgboost.DMatrix(test.x_SK)), atol=1e-5)
    assert len(got.root_G) == 26


def test_an_update_adds_a_few_trees_and_keeps_the_others():
    known = learn(table(line), NOTHING, task("xgboost", num_trees=30))
    got = relearn(known, table(exclusive_or, seed=1), task("xgboost", num_trees=30))
    assert len(got.root_G) == 30 + TREES_OF_AN_UPDATE
    np.testing.assert_array_equal(got.value_M[: len(known.value_M)], known.value_M)
    assert correlation(got, table(exclusive_or, seed=2)) > correlation(known, table(exclusive_or, seed=2)) + 0.2
    with pytest.raises(ModelError, match="at tree 1"):
        relearn(known, table(line), task("xgboost", deadline_s=0.0))
