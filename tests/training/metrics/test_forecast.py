"""Forecast quality against scipy, one bar at a time."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from training.metrics.forecast import hit_rate, ic_by_horizon, ic_by_time, ic_t_stat, mean_ic


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


def test_every_variant_meets_every_horizon():
    rng = np.random.default_rng(3)
    score, outcome = np.round(rng.normal(size=(3, 40, 6)), 1), np.round(rng.normal(size=(4, 40, 6)), 1)
    score[rng.random(score.shape) < 0.2] = np.nan
    outcome[:, rng.random((40, 6)) < 0.3] = np.nan  # some horizons lack the same outcomes, one lacks more
    outcome[2, 30:] = np.nan
    together = ic_by_horizon(score, outcome)
    assert together.shape == (3, 4, 40)
    for v, h in np.ndindex(3, 4):
        np.testing.assert_array_equal(together[v, h], ic_by_time(score[v], outcome[h]))
        np.testing.assert_allclose(together[v, h], slow_ic(score[v], outcome[h]), atol=1e-12)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_ic_and_its_decay_equal_alphalens():
    """Its forward returns run from the price at the factor's own time; ours from the execution price: the same here."""
    from alphalens.performance import factor_information_coefficient
    from alphalens.utils import get_clean_factor_and_forward_returns

    rng = np.random.default_rng(5)
    days, names, horizons = pd.date_range("2020-01-01", periods=60, tz="UTC"), list("abcdefgh"), (1, 2, 3, 5, 10)
    prices = pd.DataFrame(100 * np.exp(np.cumsum(0.01 * rng.normal(size=(60, 8)), axis=0)), index=days, columns=names)
    score = pd.DataFrame(rng.normal(size=(60, 8)), index=days, columns=names)
    factor = score.stack()
    factor.index.names = ["date", "asset"]
    data = get_clean_factor_and_forward_returns(factor, prices, periods=horizons, quantiles=2, max_loss=1.0)
    expected = factor_information_coefficient(data)
    outcome_HTN = np.stack([(prices.shift(-h) / prices - 1.0).to_numpy() for h in horizons])
    ours = ic_by_horizon(score.to_numpy()[None], outcome_HTN)[0, :, : len(expected)]
    np.testing.assert_allclose(ours, expected.to_numpy().T, atol=1e-12)
    assert len(expected) == 50  # it leaves out days whose longest horizon is not there yet
    np.testing.assert_allclose(mean_ic(ours), expected.mean().to_numpy(), atol=1e-12)


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
