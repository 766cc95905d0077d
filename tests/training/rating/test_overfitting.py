"""PBO: equal to the definition written out, to ffn's, and what it should be where the answer is known."""

from itertools import combinations

import ffn
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from training.rating.gates import GateError
from training.rating.overfitting import overfitting


def noise(seed, num_variants=10, num_bars=96):
    return np.random.default_rng(seed).standard_normal((num_variants, num_bars)) * 0.01


def written_out(returns_VT, num_blocks):
    """Section 2 of the paper, combination by combination."""
    blocks = np.split(returns_VT, num_blocks, axis=1)
    ranks, lost = [], []
    for chosen in combinations(range(num_blocks), num_blocks // 2):
        seen = np.hstack([blocks[b] for b in chosen])
        unseen = np.hstack([blocks[b] for b in range(num_blocks) if b not in chosen])
        ratios = unseen.mean(axis=1) / unseen.std(axis=1, ddof=1)
        winner = np.argmax(seen.mean(axis=1) / seen.std(axis=1, ddof=1))
        ranks.append(rankdata(ratios)[winner] / (len(returns_VT) + 1))
        lost.append(ratios[winner] < 0)
    logits = np.log(np.array(ranks) / (1 - np.array(ranks)))
    return (logits <= 0).mean(), np.mean(ranks), np.mean(lost)


@given(
    seed=st.integers(0, 10_000),
    num_variants=st.integers(2, 9),
    num_blocks=st.sampled_from([2, 4, 6, 8]),
    bars=st.integers(2, 9),
)
def test_it_is_the_definition(seed, num_variants, num_blocks, bars):
    returns = noise(seed, num_variants, num_blocks * bars)
    found = overfitting(returns, num_blocks=num_blocks)
    expected = pytest.approx(written_out(returns, num_blocks), abs=1e-12)
    assert (found.pbo, found.mean_rank, found.loss_share) == expected


def test_it_is_ffns():
    returns = noise(1, num_variants=12)
    returns[7] = returns[3]  # ties
    theirs = ffn.core.calc_prob_backtest_overfitting(pd.DataFrame(returns.T), n_blocks=8, full_output=True)
    ours = overfitting(returns, num_blocks=8)
    assert (ours.pbo, ours.mean_rank) == pytest.approx((theirs["pbo"], theirs["mean_oos_rank"]), abs=1e-12)


def test_sixteen_blocks_have_all_their_combinations():
    found = overfitting(noise(2, num_bars=330))
    assert (found.num_combinations, found.num_bars, found.num_trials) == (12_870, 320, 10)


def test_one_that_is_truly_better_is_no_overfitting_and_one_good_only_by_turns_is_nothing_but():
    skilled = noise(3)
    skilled[4] += 0.01
    assert overfitting(skilled, num_blocks=8).pbo == 0
    by_turns = 0.001 * noise(4)
    for v in range(8):  # variant v earns in block v what it loses in the others
        by_turns[v] += np.where(np.arange(96) // 12 == v, 0.07, -0.01)
    assert overfitting(by_turns, num_blocks=8).pbo == 1
    assert overfitting(by_turns, num_blocks=8).loss_share == 1


def test_noise_is_a_coins_toss_on_average():
    assert np.mean([overfitting(noise(seed), num_blocks=8).pbo for seed in range(60)]) == pytest.approx(0.5, abs=0.06)


def test_the_oldest_bars_go_and_volatility_does_not_matter():
    returns = noise(5, num_bars=99)
    assert overfitting(returns, num_blocks=8) == overfitting(returns[:, 3:], num_blocks=8)
    assert overfitting(returns, num_blocks=8) != overfitting(returns[:, :96], num_blocks=8)
    scaled = overfitting(returns * np.geomspace(1e-4, 1e4, 10)[:, None], num_blocks=8)
    assert scaled.pbo == overfitting(returns, num_blocks=8).pbo


def test_a_half_without_a_trade_has_a_ratio_of_zero():
    """Idle in three of four blocks and at a loss in the fourth: it never beats one that always earns."""
    rest = np.abs(noise(6, num_variants=2, num_bars=40))
    idle = np.where(np.arange(40) < 10, -0.01 + 0.001 * noise(7, 1, 40)[0], 0.0)
    found = overfitting(np.vstack([idle, rest]), num_blocks=4)
    assert found.pbo < 1
    assert found.loss_share == 0


@pytest.mark.parametrize("returns", [np.empty((0, 100)), noise(8, num_variants=1), noise(8, num_bars=10)])
def test_nothing_to_choose_is_nan_and_warns(returns):
    found = overfitting(returns)
    verdict = found.verdict()
    assert np.isnan(found.pbo)
    assert (verdict.ok, verdict.veto) == (False, False)
    assert "not defined" in verdict.why


def test_the_verdict_warns_and_never_vetoes():
    bad, good = noise(9), noise(9)
    good[2] += 0.01
    assert not overfitting(bad, num_blocks=8).verdict().ok
    assert overfitting(good, num_blocks=8).verdict().ok
    assert not overfitting(bad, num_blocks=8).verdict().veto


@pytest.mark.parametrize("num_blocks", [0, 1, 7])
def test_blocks_must_halve(num_blocks):
    with pytest.raises(GateError, match=f"even number of blocks.*got {num_blocks}"):
        overfitting(noise(0), num_blocks=num_blocks)
