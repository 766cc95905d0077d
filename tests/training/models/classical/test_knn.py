import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

from tests.training.models.classical.tables import NOTHING, exclusive_or, learned, line, table, task
from training.models.classical import knn
from training.models.classical.knn import Neighbours, learn, relearn
from training.models.classical.tabular import Table


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_scores_are_the_librarys(weights):
    train, test = table(line), table(line, seed=1)
    test.x_SK[:20] = train.x_SK[:20]  # the very place of a training sample
    want = KNeighborsRegressor(50, weights=weights).fit(train.x_SK.astype(float), train.y_S)
    got = learn(train, NOTHING, task("knn", weights=weights)).score(test.x_SK)
    np.testing.assert_allclose(got, want.predict(test.x_SK.astype(float)), rtol=1e-12, atol=1e-12)


def test_it_learns_what_no_linear_score_tells():
    assert learned("knn", exclusive_or)[1] > 0.5
    assert abs(learned("elastic_net", exclusive_or)[1]) < 0.15


def test_more_neighbours_average_noise_away_and_fewer_follow_detail():
    few, many = ({"num_neighbours": count} for count in (2, 200))
    assert learned("knn", line, **many)[1] > learned("knn", line, **few)[1]

    def wave(x):
        return np.sin(6 * x[:, 0])

    train, test = (table(wave, num_features=1, noise=0.1, seed=seed) for seed in (0, 1))
    errors = [
        np.square(learn(train, NOTHING, task("knn", **count)).score(test.x_SK) - test.y_S).mean()
        for count in (few, many)
    ]
    assert errors[0] < 0.2 * errors[1]


def test_fewer_samples_than_neighbours_are_all_taken():
    rows = table(line, num_samples=40)
    np.testing.assert_allclose(learn(rows, NOTHING, task("knn")).score(rows.x_SK), rows.y_S.mean())


def test_of_equally_near_samples_the_older_counts():
    rows = Table(x_SK=np.zeros((3, 1), dtype=np.float32), y_S=np.array([1.0, 2.0, 4.0]))
    assert learn(rows, NOTHING, task("knn", num_neighbours=2)).score(rows.x_SK[:1]) == 1.5


def test_at_most_so_many_samples_are_kept(monkeypatch):
    monkeypatch.setattr(knn, "MAX_ROWS", 100)
    assert learn(table(line), NOTHING, task("knn")).point_KV.shape == (6, 100)


def test_the_state_restores_the_samples():
    got, _ = learned("knn", line)
    x = table(line).x_SK
    np.testing.assert_array_equal(Neighbours.restore(task("knn").params, got.state()).score(x), got.score(x))


def test_an_update_is_a_fit_to_both():
    old, new = table(line), table(exclusive_or, seed=1)
    both = Table(x_SK=np.concatenate([old.x_SK, new.x_SK]), y_S=np.concatenate([old.y_S, new.y_S]))
    got = relearn(learn(old, NOTHING, task("knn")), new, task("knn"))
    np.testing.assert_array_equal(got.score(new.x_SK), learn(both, NOTHING, task("knn")).score(new.x_SK))


def test_of_too_many_samples_the_oldest_go(monkeypatch):
    monkeypatch.setattr(knn, "MAX_ROWS", 1500)
    old, new = table(line), table(line, seed=1)
    got = relearn(learn(old, NOTHING, task("knn")), new, task("knn"))
    np.testing.assert_array_equal(got.y_V, [*old.y_S[-300:], *new.y_S])
    np.testing.assert_array_equal(got.point_KV[:, 300:], new.x_SK.T)
