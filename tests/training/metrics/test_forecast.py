"""Forecast quality against scipy, one bar at a time."""

import numpy as np
import pytest
from scipy import stats

from training.metrics.forecast import hit_rate, ic_by_time, ic_t_stat, mean_ic


def slow_ic(score, outcome):
    out = np.full(len(score), np.nan)
    for t, (s, o) in enumerate(zip(score, outcome, strict=True)):
        both = np.isfinite(s) & np.isfinite(o)
        if both.sum() >= 3 and np.ptp(s[both]) > 0 and np.ptp(o[both]) > 0:
            out[t] = stats.spearmanr(s[both], o[both]).statistic
    return out


@pytest.mark.parametrize("decimals", [0, 1, 8])  # few decimals: many ties
def test_ic_equals_scipys_spearman(decimals):
    rng = np.random.default_rng(decimals)
    score = np.round(rng.normal(size=(120, 7)), decimals)
    outcome = np.round(0.3 * score + rng.normal(size=score.shape), decimals)
    score[rng.random(score.shape) < 0.3] = np.nan
    outcome[rng.random(score.shape) < 0.2] = np.nan
    score[0] = 1.0
    outcome[1] = np.nan
    expected = slow_ic(score, outcome)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(ic_by_time(score, outcome), expected, atol=1e-12)


def test_ic_of_a_perfect_and_an_inverted_ranking():
    outcome = np.random.default_rng(0).normal(size=(5, 6))
    np.testing.assert_allclose(ic_by_time(np.exp(outcome), outcome), 1.0)
    np.testing.assert_allclose(ic_by_time(-outcome, outcome), -1.0)


def test_a_stack_of_variants_goes_through_at_once():
    rng = np.random.default_rng(1)
    score, outcome = rng.normal(size=(3, 20, 5)), rng.normal(size=(20, 5))
    stacked = ic_by_time(score, np.broadcast_to(outcome, score.shape))
    np.testing.assert_array_equal(stacked, [ic_by_time(one, outcome) for one in score])


def test_mean_and_t_stat_are_those_of_a_one_sample_t_test():
    ic = np.random.default_rng(2).normal(0.03, 0.2, 250)
    gaps = np.concatenate([[np.nan] * 10, ic])
    assert mean_ic(gaps) == pytest.approx(ic.mean())
    assert ic_t_stat(gaps) == pytest.approx(stats.ttest_1samp(ic, 0.0).statistic)


def test_no_ic_no_statistics():
    assert np.isnan(mean_ic(np.full(4, np.nan)))
    assert np.isnan(ic_t_stat(np.array([0.1])))
    assert np.isnan(ic_t_stat(np.full(5, 0.1)))
    assert np.isnan(hit_rate(np.zeros((2, 2)), np.ones((2, 2))))


def test_hit_rate_counts_signs_and_leaves_zeros_and_gaps_out():
    score = np.array([[1.0, -1.0, 2.0, np.nan, 0.0]])
    outcome = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    assert hit_rate(score, outcome) == pytest.approx(2 / 3)
