import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from tests.training.models.classical.tables import NOTHING, exclusive_or, learned, line, table, task, with_holes
from training.models.classical.extra_trees import learn


def test_scores_are_the_librarys_bit_for_bit():
    """Unknown features too, also one that was never unknown in training (feature 0)."""
    train, test = with_holes(table(line)), with_holes(table(line, seed=1))
    test.x_SK[::3, 0] = np.nan
    asked = task("extra_trees", num_trees=25, max_depth=8)
    want = ExtraTreesRegressor(**asked.params, n_estimators=25, random_state=1).fit(train.x_SK, train.y_S)
    np.testing.assert_array_equal(learn(train, NOTHING, asked).score(test.x_SK), want.predict(test.x_SK))


def test_it_learns_what_no_linear_score_tells():
    assert learned("extra_trees", exclusive_or, max_features=0.5)[1] > 0.6
    assert abs(learned("elastic_net", exclusive_or)[1]) < 0.15


def test_depth_and_leaves_bound_the_trees():
    deep, shallow = (learned("extra_trees", exclusive_or, max_depth=depth, num_trees=10)[0] for depth in (8, 4))
    assert len(deep.left_M) > len(shallow.left_M)
    assert len(shallow.left_M) <= 10 * (2**5 - 1)
    stumps = learned("extra_trees", exclusive_or, min_samples_leaf=600, num_trees=10)[0]
    assert len(stumps.left_M) <= 30


def test_the_seed_decides_the_trees():
    first, again, other = (learned("extra_trees", line, seed=seed, num_trees=5)[0].state() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["threshold_M"], other["threshold_M"])
