import numpy as np
import pytest
from sklearn.linear_model import ElasticNet

from tests.training.models.classical.tables import NOTHING, learned, line, table, task
from training.models.classical.elastic_net import learn, relearn
from training.models.classical.linear import MEMORY_ROWS
from training.models.classical.tabular import Table


def slopes(rows, **params):
    return learn(rows, NOTHING, task("elastic_net", **params)).slope_K


def test_scores_are_the_librarys():
    train, test = table(line), table(line, seed=1)
    x = train.x_SK.astype(np.float64)
    l1 = 0.1 * 0.5 * np.abs((x - x.mean(axis=0)).T @ (train.y_S - train.y_S.mean())).max() / len(x)
    l2 = 0.1 * 0.5
    net = ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-8).fit(x, train.y_S)
    got = learn(train, NOTHING, task("elastic_net", strength=0.1))
    np.testing.assert_allclose(got.score(test.x_SK), net.predict(test.x_SK.astype(np.float64)), atol=1e-5)


def test_the_slopes_are_optimal():
    """Karush, Kuhn and Tucker: the gradient is -l1 sign(slope) where a slope is not 0, within l1 where it is."""
    rows = table(line)
    x, y = rows.x_SK.astype(np.float64), rows.y_S
    got = learn(rows, NOTHING, task("elastic_net", strength=0.3))
    steepest = np.abs((x - x.mean(axis=0)).T @ (y - y.mean())).max() / len(y)
    l1, l2 = 0.3 * 0.5 * steepest, 0.3 * 0.5
    gradient = -x.T @ (y - got.score(rows.x_SK)) / len(y) + l2 * got.slope_K
    used = got.slope_K != 0
    np.testing.assert_allclose(gradient[used], -l1 * np.sign(got.slope_K[used]), atol=1e-4)
    assert (np.abs(gradient[~used]) <= l1 + 1e-6).all()


def test_l1_zeroes_the_features_of_noise_and_keeps_the_two_that_tell():
    rows = table(line, num_features=30)
    np.testing.assert_array_equal(np.flatnonzero(slopes(rows, l1_share=1.0)), [0, 1])
    assert np.count_nonzero(slopes(rows, l1_share=0.1, strength=0.03)) > 20


@pytest.mark.parametrize("l1_share", [0.1, 0.5, 0.9])
def test_more_strength_keeps_fewer_and_smaller_slopes(l1_share):
    rows = table(line, num_features=30, noise=2.0)
    path = [slopes(rows, l1_share=l1_share, strength=strength) for strength in (0.03, 0.1, 0.3, 0.6)]
    assert (np.diff([np.count_nonzero(slope) for slope in path]) <= 0).all()
    assert (np.diff([np.abs(slope).sum() for slope in path]) < 0).all()


def test_an_l1_of_strength_one_leaves_just_nothing():
    rows = table(line)
    assert not slopes(rows, l1_share=1.0, strength=1.0001).any()
    assert slopes(rows, l1_share=1.0, strength=0.98).any()


def test_both_penalties_share_a_slope_among_twins_where_l1_alone_picks():
    """The label is one twin's; the other's part in it is another's noise."""
    one = table(lambda x: x[:, 0], num_features=1)
    other = one.x_SK + 0.1 * np.random.default_rng(5).standard_normal(one.x_SK.shape).astype(np.float32)
    rows = Table(x_SK=np.hstack([one.x_SK, other]), y_S=one.y_S)
    shared, picked = slopes(rows, l1_share=0.1), slopes(rows, l1_share=1.0)
    assert shared.min() > 0.9 * shared.max()
    assert picked[1] == 0 < picked[0]


def test_it_learns_a_line_better_than_trees_do():
    assert learned("elastic_net", line)[1] > learned("random_forest", line)[1]


def test_nothing_known_of_any_feature_gives_the_mean():
    rows = Table(x_SK=np.zeros((100, 3), dtype=np.float32), y_S=np.linspace(0, 1, 100))
    got = learn(rows, NOTHING, task("elastic_net", l1_share=1.0))
    np.testing.assert_allclose(got.score(rows.x_SK), 0.5)


def flipped(x):
    return 1.0 - line(x)


def test_without_l1_an_update_is_a_ridge_around_the_present_slopes():
    """The normal equations of the new rows, MEMORY_ROWS of the present slopes and offset, and the new rows' L2."""
    asked = task("elastic_net", strength=0.2, l1_share=0.0)
    known, new = learn(table(line), NOTHING, asked), table(flipped, num_samples=300, seed=1)
    x = np.column_stack([new.x_SK.astype(float), np.ones(300)])
    penalty = np.diag([300 * 0.2] * 6 + [0.0])
    before = np.append(known.slope_K, known.offset_1)
    want = np.linalg.solve(x.T @ x + MEMORY_ROWS * np.eye(7) + penalty, x.T @ new.y_S + MEMORY_ROWS * before)
    got = relearn(known, new, asked)
    np.testing.assert_allclose(np.append(got.slope_K, got.offset_1), want, atol=1e-3)


def test_updates_without_end_are_the_fit_to_what_is_new():
    asked = task("elastic_net")
    known, new = learn(table(line, num_features=20), NOTHING, asked), table(flipped, num_features=20, seed=1)
    want = learn(new, NOTHING, asked)
    for _ in range(40):
        known = relearn(known, new, asked)
    np.testing.assert_allclose(known.slope_K, want.slope_K, atol=5e-3)
    assert known.offset_1[0] == pytest.approx(want.offset_1[0], abs=5e-3)
    assert (want.slope_K[2:] == 0).any()


def test_one_new_row_changes_next_to_nothing_and_what_was_known_stays_as_it_is():
    asked = task("elastic_net")
    known = learn(table(line), NOTHING, asked)
    before = known.slope_K.copy()
    got = relearn(known, table(flipped, num_samples=1, seed=1), asked)
    np.testing.assert_allclose(got.slope_K, before, atol=3e-3)
    assert (got.slope_K != before).any()
    np.testing.assert_array_equal(known.slope_K, before)
