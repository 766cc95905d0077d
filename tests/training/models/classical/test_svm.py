import numpy as np
import pytest
from sklearn.svm import SVR

from tests.training.models.classical.tables import NOTHING, exclusive_or, learned, line, table, task
from training.models.classical import svm
from training.models.classical.svm import KERNELS, SupportVectors, learn
from training.models.classical.tabular import subsample
from training.models.spec import ModelError


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_are_the_librarys(kernel):
    """SVR with gamma / K on unscaled features: the linear kernel has none, so its C takes it up."""
    train, test = table(line, num_samples=400), table(line, seed=1)
    asked = task("svm", kernel=kernel)
    gamma, penalty = asked.params["gamma"] / 6, asked.params["C"]
    want = SVR(
        kernel=kernel,
        gamma=gamma,
        coef0=1.0,
        degree=2,
        C=penalty * gamma if kernel == "linear" else penalty,
        epsilon=asked.params["epsilon"],
        tol=1e-3,
    ).fit(train.x_SK.astype(float), train.y_S)
    got = learn(train, NOTHING, asked)
    np.testing.assert_allclose(got.score(test.x_SK), want.predict(test.x_SK.astype(float)), atol=5e-3)
    # And to the last digits where the vectors are the very same.
    same = SVR(kernel=kernel, gamma=1.0, coef0=1.0, degree=2, C=penalty, epsilon=asked.params["epsilon"])
    same.fit(train.x_SK.astype(float) * got.scale_1, train.y_S)
    wanted = same.predict(test.x_SK.astype(float) * got.scale_1)
    np.testing.assert_allclose(got.score(test.x_SK), wanted, rtol=1e-12, atol=1e-12)


def test_kernels_learn_what_the_linear_one_cannot():
    assert learned("svm", exclusive_or, kernel="rbf")[1] > 0.5
    assert learned("svm", exclusive_or, kernel="poly")[1] > 0.5
    assert abs(learned("svm", exclusive_or, kernel="linear")[1]) < 0.15


def test_all_kernels_learn_a_line():
    assert all(learned("svm", line, kernel=kernel)[1] > 0.75 for kernel in KERNELS)


def test_errors_within_epsilon_cost_nothing():
    """With an epsilon wider than the labels there are no support vectors and the score is one number."""
    got = learned("svm", line, epsilon=100.0)[0]
    assert got.point_KV.shape == (6, 0)
    assert np.ptp(got.score(table(line).x_SK)) == 0


def test_at_most_so_many_rows_are_learned_from(monkeypatch):
    monkeypatch.setattr(svm, "MAX_ROWS", 100)
    rows = table(line)
    got, want = (learn(part, NOTHING, task("svm")) for part in (rows, subsample(rows, 100, seed=1)))
    assert got.point_KV.shape[1] <= 100
    np.testing.assert_array_equal(got.point_KV, want.point_KV)


def test_a_machine_that_does_not_settle_fails_the_fit(monkeypatch):
    monkeypatch.setattr(svm, "MAX_STEPS", 5)
    with pytest.raises(ModelError, match="lower C"):
        learn(table(line), NOTHING, task("svm"))


def test_the_state_restores_the_machine():
    got, _ = learned("svm", line)
    x = table(line).x_SK
    loaded = SupportVectors.restore(task("svm").params, got.state())
    np.testing.assert_array_equal(loaded.score(x), got.score(x))
