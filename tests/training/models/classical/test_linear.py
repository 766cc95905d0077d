import numpy as np
import pytest

from tests.training.models.classical.tables import line, table
from training.models.classical import linear
from training.models.classical.linear import MEMORY_ROWS, LeastSquares, Linear, Penalty, Rehearsal
from training.models.spec import ModelError


def penalty_of(rows, *, strength, l1_share, curvature=1.0) -> Penalty:
    return Penalty.of({"strength": strength, "l1_share": l1_share}, rows.x_SK, rows.y_S, curvature=curvature)


def test_the_score_is_the_dot_product():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 9)).astype(np.float32)
    scored = Linear(slope_K=rng.standard_normal(9), offset_1=np.array([0.5]))
    np.testing.assert_allclose(scored.score(x), x.astype(np.float64) @ scored.slope_K + 0.5, rtol=1e-12)
    np.testing.assert_array_equal(Linear.restore({}, scored.state()).score(x), scored.score(x))


def test_a_penalty_is_in_units_of_the_loss():
    rows = table(line)
    steepest = np.abs(np.cov(rows.x_SK.T.astype(float), rows.y_S, bias=True)[-1, :-1]).max()
    penalty = penalty_of(rows, strength=0.5, l1_share=0.25, curvature=2.0)
    assert (penalty.l1, penalty.l2) == (pytest.approx(0.125 * steepest), pytest.approx(0.75))
    assert penalty.total * penalty.l1_ratio == pytest.approx(penalty.l1)
    assert (penalty * 4).l1 == 4 * penalty.l1
    assert (penalty * 4).l2 == 4 * penalty.l2


def test_a_flat_loss_still_has_a_penalty():
    rows = table(lambda x: 0 * x[:, 0], noise=0.0)
    assert penalty_of(rows, strength=0.1, l1_share=1.0).l1_ratio == 1.0


def test_no_penalty_is_refused():
    with pytest.raises(ModelError, match="above 0"):
        penalty_of(table(line), strength=0.0, l1_share=1.0)


def test_l2_alone_is_the_closed_form_of_ridge():
    rows = table(lambda x: 3 + line(x))
    x = rows.x_SK.astype(np.float64) - rows.x_SK.mean(axis=0, dtype=np.float64)
    gram = x.T @ x + 0.3 * len(x) * np.eye(6)
    want = np.linalg.solve(gram, x.T @ rows.y_S)
    got = LeastSquares(rows.x_SK, Penalty(l1=0.0, l2=0.3)).solve(rows.y_S)
    np.testing.assert_allclose(got.slope_K, want, atol=1e-3)
    assert got.score(rows.x_SK).mean() == pytest.approx(rows.y_S.mean())


def test_one_feature_of_unit_variance_is_halved_by_l2_and_moved_by_l1():
    x = np.tile([[-1.0], [1.0]], (50, 1)).astype(np.float32)
    for penalty, want in ((Penalty(l1=0.0, l2=1.0), 0.4), (Penalty(l1=0.3, l2=0.0), 0.5)):
        assert LeastSquares(x, penalty).solve(0.8 * x[:, 0]).slope_K[0] == pytest.approx(want, abs=1e-3)


def test_other_labels_before_change_little():
    rows, others = table(line, num_features=20), table(line, num_features=20, seed=1)
    penalty = penalty_of(rows, strength=0.3, l1_share=0.5)
    fresh = LeastSquares(rows.x_SK, penalty).solve(rows.y_S)
    again = LeastSquares(rows.x_SK, penalty)
    again.solve(others.y_S)
    np.testing.assert_allclose(again.solve(rows.y_S).slope_K, fresh.slope_K, atol=2e-3)


def test_a_solver_cut_short_fails_the_fit(monkeypatch):
    monkeypatch.setattr(linear, "MAX_PASSES", 1)
    rows = table(lambda x: x.sum(axis=1), num_features=30, num_samples=60)
    with pytest.raises(ModelError, match="raise strength"):
        LeastSquares(rows.x_SK, Penalty(l1=1e-4, l2=0.0)).solve(rows.y_S)


def test_weights_count_rows_as_if_they_were_there_as_often():
    rows = table(lambda x: 3 + line(x), num_samples=60)
    times = np.arange(60) % 3 + 1
    often = LeastSquares(np.repeat(rows.x_SK, times, axis=0), Penalty(l1=0.05, l2=0.1))
    weighted = LeastSquares(rows.x_SK, Penalty(l1=0.05, l2=0.1), weight_S=times.astype(float))
    want, got = often.solve(np.repeat(rows.y_S, times)), weighted.solve(rows.y_S)
    np.testing.assert_allclose(got.slope_K, want.slope_K, atol=1e-3)
    assert got.offset_1[0] == pytest.approx(want.offset_1[0], abs=1e-3)


def test_probes_are_rows_of_independent_features_of_unit_variance():
    rows = Rehearsal.of(table(line).x_SK[:40])
    probes, weights = rows.probe_SK.astype(float), rows.weight_S[rows.num_new :]
    assert (weights.sum(), rows.share) == (pytest.approx(MEMORY_ROWS), 40 / (40 + MEMORY_ROWS))
    np.testing.assert_allclose((probes * weights[:, None]).sum(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(probes.T @ (probes * weights[:, None]) / MEMORY_ROWS, np.eye(6), atol=1e-6)
