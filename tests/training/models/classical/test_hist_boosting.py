import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from tests.training.models.classical.tables import NOTHING, exclusive_or, learned, line, table, task, with_holes
from training.models.classical.hist_boosting import learn
from training.models.classical.tabular import one_thread
from training.models.spec import ModelError


@pytest.fixture(autouse=True)
def _as_in_a_fit():
    """The learner and the library's own fits beside it on one thread, as a model's fit has them."""
    with one_thread():
        yield


def test_scores_are_the_librarys_bit_for_bit():
    """Unknown features too, also one that was never unknown in training (feature 0); grown in parts, as at once."""
    train, test = with_holes(table(line)), with_holes(table(line, seed=1))
    test.x_SK[::3, 0] = np.nan
    asked = task("hist_boosting", num_trees=25)
    want = HistGradientBoostingRegressor(**asked.params, max_iter=25, early_stopping=False, random_state=1)
    want.fit(train.x_SK, train.y_S)
    np.testing.assert_array_equal(learn(train, NOTHING, asked).score(test.x_SK), want.predict(test.x_SK))


def test_it_keeps_the_trees_best_on_validation():
    train, check = (table(line, num_samples=400, seed=seed, noise=4.0) for seed in (0, 1))
    asked = task("hist_boosting", num_trees=100, min_samples_leaf=20)
    got = learn(train, check, asked)
    whole = HistGradientBoostingRegressor(**asked.params, max_iter=60, early_stopping=False, random_state=1)
    stages = whole.fit(train.x_SK, train.y_S).staged_predict(check.x_SK)
    errors = [np.square(score - check.y_S).mean() for score in stages]
    assert 1 < len(got.root_G) == 1 + np.argmin(errors) < 45


def test_it_learns_what_no_linear_score_tells():
    assert learned("hist_boosting", exclusive_or)[1] > 0.6
    assert abs(learned("elastic_net", exclusive_or)[1]) < 0.15


def test_noise_keeps_few_trees():
    train, check = (table(lambda x: 0 * x[:, 0], seed=seed) for seed in (0, 1))
    assert 1 <= len(learn(train, check, task("hist_boosting", num_trees=100)).root_G) < 10


def test_the_deadline_is_seen_while_growing():
    with pytest.raises(ModelError, match="at tree 10"):
        learn(table(line), NOTHING, task("hist_boosting", num_trees=500, deadline_s=0.0))
