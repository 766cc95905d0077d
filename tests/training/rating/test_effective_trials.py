"""Effective trials: planted groups are found, the unlike stand alone, and the silhouette is the known one."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from training.rating.effective_trials import EffectiveTrials, _clusters, _cuts, effective_trials


def groups(num_groups, *, num=60, bars=500, common=0.6, seed=0):
    """Variants in equal groups, correlated by ``common`` within."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((num_groups, bars))[np.arange(num) % num_groups]
    return np.sqrt(common) * shared + np.sqrt(1 - common) * rng.standard_normal((num, bars))


@pytest.mark.parametrize("num_groups", [2, 5, 12])
def test_planted_groups_are_found(num_groups):
    found = effective_trials(groups(num_groups))
    assert found.num_trials == num_groups
    same = found.cluster_V[:, None] == found.cluster_V
    planted = np.arange(60) % num_groups
    assert (same == (planted[:, None] == planted)).all()


@pytest.mark.parametrize("common", [0.0, 0.5])
def test_without_groups_every_trial_stands_for_itself(common):
    """Also where all share a factor: what is left beside it is each one's own."""
    found = effective_trials(groups(1, common=common))
    assert (found.num_trials, found.silhouette) == (60, 0.0)


def test_the_order_of_the_trials_does_not_matter():
    returns, order = groups(5), np.random.default_rng(1).permutation(60)
    one, other = effective_trials(returns), effective_trials(returns[order])
    assert (one.num_trials, one.sharpe_std) == pytest.approx((other.num_trials, other.sharpe_std))
    same = one.cluster_V[order][:, None] == one.cluster_V[order]
    assert (same == (other.cluster_V[:, None] == other.cluster_V)).all()


def test_every_cut_has_sklearns_silhouette_and_the_best_is_taken():
    returns = groups(3, num=15, bars=100)
    distance = np.sqrt(np.clip(1 - np.corrcoef(returns), 0, 2) / 2)
    np.fill_diagonal(distance, 0.0)
    cuts = list(_cuts(distance))
    assert [len(np.unique(own)) for own, _ in cuts] == list(range(14, 1, -1))
    for own, silhouette in cuts:
        assert silhouette == pytest.approx(silhouette_score(distance, own, metric="precomputed"), abs=1e-12)
    assert _clusters(returns)[1] == max(silhouette for _, silhouette in cuts)


def test_copies_count_once_and_few_trials_are_what_they_are():
    one, two = groups(2, num=2)
    copies = effective_trials(np.vstack([one, one, one, two, two, two]))
    assert copies.num_trials == 2
    assert [effective_trials(groups(1, num=num)).num_trials for num in (0, 1, 2)] == [0, 1, 2]
    assert effective_trials(groups(1, num=1)).sharpe_std == 0


def test_the_spread_is_of_groups_weighted_by_inverse_variance():
    calm, wild, other = np.random.default_rng(2).standard_normal((3, 400))
    returns = np.vstack([calm, calm, 0.5 * other, 0.5 * other])
    returns[1] = 2 * calm + 0.1 * wild
    weight = 1 / returns[:2].var(axis=1)
    first = weight @ returns[:2]
    ratios = [row.mean() / row.std(ddof=1) for row in (first, other)]
    assert effective_trials(returns).sharpe_std == pytest.approx(np.std(ratios, ddof=1))


def test_trials_without_returns_count_by_the_same_share():
    found = EffectiveTrials(cluster_V=np.array([0, 0, 0, 1]), silhouette=0.5, sharpe_std=0.1)
    assert found.with_unseen(0) == 2
    assert found.with_unseen(10) == 7
    nobody = EffectiveTrials(cluster_V=np.array([], dtype=int), silhouette=0.0, sharpe_std=0.0)
    assert nobody.with_unseen(10) == 0
