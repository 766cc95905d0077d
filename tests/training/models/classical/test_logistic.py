import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from tests.training.models.classical.tables import NOTHING, correlation, learned, line, table, task
from training.models.classical import logistic
from training.models.classical.elastic_net import learn as learn_values
from training.models.classical.linear import MEMORY_ROWS, Rehearsal
from training.models.classical.logistic import learn, relearn
from training.models.classical.tabular import Table
from training.models.spec import ModelError


def slopes(rows, **params):
    return learn(rows, NOTHING, task("logistic", **params)).log_odds.slope_K


def test_scores_are_the_librarys_probabilities_times_the_usual_size():
    """The L2 of strength 0.3 is 0.3 / 4; another solver of the library finds the same optimum."""
    train, test = table(line), table(line, seed=1)
    odds = LogisticRegression(C=4 / (0.3 * len(train.y_S)), tol=1e-10).fit(train.x_SK.astype(float), train.y_S > 0)
    p = odds.predict_proba(test.x_SK.astype(float))[:, 1]
    got = learn(train, NOTHING, task("logistic", l1_share=0.0)).score(test.x_SK)
    np.testing.assert_allclose(got, (2 * p - 1) * np.abs(train.y_S).mean(), atol=1e-3)


@pytest.mark.parametrize("l1_share", [0.5, 1.0])
def test_the_slopes_are_optimal(l1_share):
    """The conditions of Karush, Kuhn and Tucker, the gradient that of the mean logistic loss."""
    rows = table(line, num_features=20)
    x, up = rows.x_SK.astype(np.float64), rows.y_S > 0
    got = learn(rows, NOTHING, task("logistic", l1_share=l1_share)).log_odds
    l1, l2 = 0.3 * l1_share * np.abs(x.T @ (up - up.mean())).max() / len(up), 0.3 * (1 - l1_share) / 4
    gradient = x.T @ (expit(got.score(rows.x_SK)) - up) / len(up) + l2 * got.slope_K
    used = got.slope_K != 0
    np.testing.assert_allclose(gradient[used], -l1 * np.sign(got.slope_K[used]), atol=1e-3)
    assert (np.abs(gradient[~used]) <= l1 + 1e-6).all()


def test_the_score_is_the_expected_label():
    """Labels of sizes that do not depend on their signs: the mean label of those scored alike is their score."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 2)).astype(np.float32)
    up = rng.random(20_000) < expit(1.5 * x[:, 0].astype(float))
    rows = Table(x_SK=x, y_S=np.where(up, 1, -1) * rng.exponential(0.7, 20_000))
    score = learn(rows, NOTHING, task("logistic", strength=0.001)).score(x)
    for part in np.array_split(np.argsort(score), 10):
        assert score[part].mean() == pytest.approx(rows.y_S[part].mean(), abs=0.08)


def test_l1_zeroes_the_features_of_noise_and_l2_keeps_them():
    rows = table(line, num_features=30)
    np.testing.assert_array_equal(np.flatnonzero(slopes(rows, l1_share=1.0)), [0, 1])
    assert np.count_nonzero(slopes(rows, l1_share=0.0)) == 30


@pytest.mark.parametrize("l1_share", [0.0, 0.5, 1.0])
def test_more_strength_keeps_fewer_and_smaller_slopes(l1_share):
    rows = table(line, num_features=30, noise=2.0)
    path = [slopes(rows, l1_share=l1_share, strength=strength) for strength in (0.03, 0.1, 0.3, 0.6)]
    assert (np.diff([np.count_nonzero(slope) for slope in path]) <= 0).all()
    assert (np.diff([np.abs(slope).sum() for slope in path]) < 0).all()


def test_it_learns_signs_where_outliers_hide_them_from_least_squares():
    def heavy(seed):
        clean = table(line, seed=seed)
        size = np.random.default_rng(100 + seed).standard_t(1.1, len(clean.y_S))
        return Table(x_SK=clean.x_SK, y_S=np.sign(clean.y_S) * np.abs(size) ** 1.5)

    train, test = heavy(0), table(line, seed=1)
    values = correlation(learn_values(train, NOTHING, task("elastic_net", strength=0.03)), test)
    assert correlation(learn(train, NOTHING, task("logistic", strength=0.03)), test) > max(values + 0.05, 0.8)


def test_features_that_say_the_same_are_no_trouble():
    one = table(lambda x: x[:, 0], num_features=1, noise=0.1)
    twin = one.x_SK + 1e-3 * np.random.default_rng(5).standard_normal(one.x_SK.shape).astype(np.float32)
    rows = Table(x_SK=np.hstack([one.x_SK, twin]), y_S=one.y_S)
    assert slopes(rows, l1_share=1.0, strength=0.03).sum() == pytest.approx(
        slopes(one, l1_share=1.0, strength=0.03)[0], rel=0.01
    )


def test_the_deadline_is_seen_between_steps():
    with pytest.raises(ModelError, match="at step 1"):
        learn(table(line), NOTHING, task("logistic", deadline_s=0.0))


def test_log_odds_that_do_not_settle_fail_the_fit(monkeypatch):
    monkeypatch.setattr(logistic, "MAX_STEPS", 3)
    with pytest.raises(ModelError, match="3 steps"):
        learn(table(line), NOTHING, task("logistic", strength=0.03))


def test_labels_of_zero_have_no_sign():
    rows = table(line)
    zeros = Table(x_SK=-100 * np.ones_like(rows.x_SK), y_S=np.zeros(len(rows.y_S)))
    both = Table(x_SK=np.vstack([rows.x_SK, zeros.x_SK]), y_S=np.concatenate([rows.y_S, zeros.y_S]))
    np.testing.assert_array_equal(slopes(both), slopes(rows))


def test_one_sign_alone_is_refused():
    with pytest.raises(ModelError, match="one sign"):
        learn(table(lambda x: 100 + 0 * x[:, 0]), NOTHING, task("logistic"))


def test_it_learns_a_line():
    assert learned("logistic", line)[1] > 0.8


def test_an_update_is_the_likelihood_of_new_signs_and_remembered_odds():
    """Without L1 the gradient vanishes: of the new rows, the L2 asked of them, and the probes at their old odds."""
    asked = task("logistic", l1_share=0.0)
    known, new = learn(table(line), NOTHING, asked), table(lambda x: -line(x), num_samples=300, seed=1)
    got, rows = relearn(known, new, asked), Rehearsal.of(new.x_SK)
    x, probes = new.x_SK.astype(float), rows.probe_SK.astype(float)
    surprise = expit(got.log_odds.score(rows.probe_SK)) - expit(known.log_odds.score(rows.probe_SK))
    gradient = x.T @ (expit(got.log_odds.score(new.x_SK)) - (new.y_S > 0)) + 300 * 0.3 / 4 * got.log_odds.slope_K
    gradient += probes.T @ (rows.weight_S[300:] * surprise)
    np.testing.assert_allclose(gradient / (300 + MEMORY_ROWS), 0, atol=1e-3)
    assert np.abs(got.log_odds.slope_K - known.log_odds.slope_K).max() > 0.01
    size = (MEMORY_ROWS * known.size_1 + np.abs(new.y_S).sum()) / (300 + MEMORY_ROWS)
    np.testing.assert_allclose(got.size_1, size)


def test_updates_without_end_are_the_fit_to_what_is_new():
    asked = task("logistic")
    known, new = learn(table(line), NOTHING, asked), table(lambda x: -line(x), seed=1)
    want = learn(new, NOTHING, asked).log_odds
    for _ in range(40):
        known = relearn(known, new, asked)
    np.testing.assert_allclose(known.log_odds.slope_K, want.slope_K, atol=0.02)


def test_new_labels_of_one_sign_or_of_none_are_no_trouble():
    asked = task("logistic")
    known, new = learn(table(line), NOTHING, asked), table(line, num_samples=40, seed=1)
    up = relearn(known, Table(x_SK=new.x_SK, y_S=np.ones(40)), asked)
    assert up.log_odds.offset_1 > known.log_odds.offset_1
    assert relearn(known, Table(x_SK=new.x_SK, y_S=np.zeros(40)), asked) is known
