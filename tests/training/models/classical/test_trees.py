import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from tests.training.models.classical.tables import exclusive_or, table, task, with_holes
from training.models.classical.trees import Tree, Trees, grow_forest, walk, walk_python
from training.models.spec import ModelError


def stump(threshold, *, missing_left, low, high, dtype=np.float64) -> Tree:
    return Tree(
        feature_M=np.array([1, 0, 0]),
        threshold_M=np.array([threshold, 0.0, 0.0]),
        left_M=np.array([1, -1, -1]),
        right_M=np.array([2, -1, -1]),
        missing_left_M=np.array([missing_left, 0, 0]),
        value_M=np.array([0.0, low, high], dtype=dtype),
    )


def test_two_stumps_by_hand():
    """At the threshold is left; the unknown goes each tree's own way; feature 0 is never looked at."""
    trees = Trees.join(
        [stump(0.0, missing_left=True, low=-1.0, high=1.0), stump(2.0, missing_left=False, low=10.0, high=20.0)],
        start=100.0,
        divisor=2,
    )
    x = np.array([[9, -1], [9, 0], [9, 1], [9, 2], [9, 3], [9, np.nan]], dtype=np.float32)
    np.testing.assert_array_equal(trees.score(x) * 2 - 100, [9, 9, 11, 11, 21, 19])


def test_sums_are_taken_in_the_type_of_the_values():
    small = 2.0**-30
    for dtype, want in ((np.float64, 1 + 2 * small), (np.float32, 1.0)):
        twice = [stump(0.0, missing_left=True, low=small, high=0.0, dtype=dtype)] * 2
        assert Trees.join(twice, start=1.0, divisor=1).score(np.zeros((1, 2), dtype=np.float32)) == want


@pytest.fixture(scope="module")
def grown() -> Trees:
    forest = RandomForestRegressor(random_state=3, max_depth=5, warm_start=True)
    return grow_forest(forest, with_holes(table(exclusive_or, num_samples=300)), task("random_forest", num_trees=15))


def test_the_compiled_walk_is_the_plain_one(grown):
    x = with_holes(table(exclusive_or, num_samples=50, seed=5)).x_SK
    arrays = [array for name, array in grown.state().items() if name not in ("start_1", "divisor_1")]
    totals = np.zeros((2, len(x)))
    walk(x, *arrays, totals[0])
    walk_python(x, *arrays, totals[1])
    np.testing.assert_array_equal(totals[0], totals[1])
    np.testing.assert_array_equal(grown.score(x), totals[0] / 15)


def test_growing_in_parts_is_growing_at_once(grown):
    rows = with_holes(table(exclusive_or, num_samples=300))
    at_once = RandomForestRegressor(random_state=3, max_depth=5, n_estimators=15).fit(rows.x_SK, rows.y_S)
    np.testing.assert_array_equal(grown.score(rows.x_SK), at_once.predict(rows.x_SK))


def test_the_state_restores_the_trees(grown):
    x = table(exclusive_or, num_samples=50, seed=5).x_SK
    np.testing.assert_array_equal(Trees.restore({}, grown.state()).score(x), grown.score(x))


def test_the_deadline_is_seen_while_growing():
    forest = RandomForestRegressor(random_state=0, warm_start=True)
    with pytest.raises(ModelError, match="at tree 10"):
        grow_forest(forest, table(exclusive_or), task("random_forest", num_trees=500, deadline_s=0.0))


def test_an_ensemble_followed_by_another_is_their_sum(grown):
    x = with_holes(table(exclusive_or, num_samples=50, seed=5)).x_SK
    first = Trees.restore({}, grown.state() | {"start_1": np.array([0.5]), "divisor_1": np.ones(1)})
    second = Trees.join(
        [stump(0.0, missing_left=True, low=-1.0, high=1.0), stump(2.0, missing_left=False, low=3.0, high=4.0)],
        start=0.0,
        divisor=1,
    )
    both = first.followed_by(second)
    np.testing.assert_allclose(both.score(x), first.score(x) + second.score(x), rtol=1e-12)
    assert len(both.root_G) == 17
    assert {name: array.dtype for name, array in both.state().items()} == {
        name: array.dtype for name, array in first.state().items()
    }
