"""The sequential test of a challenger: however often one looks, it errs no more often than it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from training.rating.challenger import BLOCK_BARS, GAIN_CLIP, LOSS_CLIP, ChallengeError, challenge

YEAR, NUM_WORLDS, LEVEL = 252, 400, 0.05
CASH = np.zeros(YEAR)


def differences(num_worlds, num_bars=YEAR, *, sharpe=0.0, echo=0.0, seed=0):
    """Daily differences of net returns (W, T): fat tails (t, 4 degrees), this yearly Sharpe, this autocorrelation."""
    rng = np.random.default_rng(seed)
    shock = rng.standard_t(4, (num_worlds, num_bars)) / np.sqrt(2)
    for t in range(1, num_bars):
        shock[:, t] = echo * shock[:, t - 1] + np.sqrt(1 - echo**2) * shock[:, t]
    return 0.01 * (shock + sharpe / np.sqrt(YEAR))


def share(worlds, better, **options):
    num_bars = worlds.shape[1]
    return np.mean([challenge(each, np.zeros(num_bars), **options).better == better for each in worlds])


def exceeds_level(rate, num=NUM_WORLDS):
    return binomtest(round(rate * num), num, LEVEL, alternative="greater").pvalue < 0.01


@pytest.mark.parametrize("echo", [0.0, 0.1, 0.3])
def test_with_a_look_every_day_of_a_year_it_errs_in_at_most_the_level_of_worlds(echo):
    worlds = differences(NUM_WORLDS, echo=echo)
    for better in ("challenger", "incumbent"):
        assert not exceeds_level(share(worlds, better))


def test_a_t_test_with_a_look_every_day_errs_far_more_often():
    worlds = differences(NUM_WORLDS)
    count = np.arange(1, YEAR + 1)
    mean = np.cumsum(worlds, axis=1) / count
    spread = np.sqrt(np.maximum(np.cumsum(worlds**2, axis=1) / count - mean**2, 1e-12))
    t_stat = (mean / spread * np.sqrt(count))[:, 20:]
    assert not exceeds_level(np.mean(t_stat[:, -1] > 1.645))  # one look is fine ...
    assert exceeds_level(np.mean((t_stat > 1.645).any(axis=1)))  # ... many are not


def test_without_blocks_returns_that_echo_would_fool_it():
    worlds = differences(NUM_WORLDS, 2 * YEAR, echo=0.5)
    assert exceeds_level(share(worlds, "challenger", block_bars=1))
    assert not exceeds_level(share(worlds, "challenger", block_bars=21))


def test_a_seller_of_tails_that_pays_in_the_end_is_not_called_better():
    rng = np.random.default_rng(1)
    crash = rng.random((NUM_WORLDS, YEAR)) < 0.02
    worlds = np.where(crash, -0.049, 0.001) + 0.003 * rng.standard_normal((NUM_WORLDS, YEAR))
    assert worlds.mean() == pytest.approx(0.0, abs=1e-4)
    assert not exceeds_level(share(worlds, "challenger"))


@pytest.mark.parametrize(
    ("sharpe", "years", "at_least"), [(4.0, 1, 0.5), (3.0, 2, 0.75), (2.0, 4, 0.8), (8.0, 1, 0.99)]
)
def test_a_challenger_that_is_better_is_found(sharpe, years, at_least):
    worlds = differences(200, years * YEAR, sharpe=sharpe, seed=2)
    assert share(worlds, "challenger") >= at_least
    assert share(worlds, "incumbent") == 0.0


def test_the_first_bet_in_closed_form():
    earned = np.repeat([0.01, -0.01, 0.01, -0.01, 0.01], BLOCK_BARS)
    result = challenge(earned, np.zeros(25))
    scale = np.std([0.01, -0.01, 0.01, -0.01], ddof=1)
    stakes = np.linspace(0.1, 0.9, 9) / LOSS_CLIP
    assert result.e_value_T[:24] == pytest.approx(np.ones(24))
    assert result.e_value_T[24] == pytest.approx(np.mean(1 + stakes * 0.01 / scale))
    assert result.incumbent_e_value_T[24] == pytest.approx(np.mean(1 - stakes * 0.01 / scale))
    freak = challenge(np.append(earned[:20], np.full(5, 9.0)), np.zeros(25))
    assert freak.e_value_T[24] == pytest.approx(np.mean(1 + stakes * GAIN_CLIP))
    assert freak.incumbent_e_value_T[24] == pytest.approx(np.mean(1 - stakes * LOSS_CLIP))


@given(seed=st.integers(0, 2**32 - 1), lift=st.floats(0.0, 0.01))
def test_more_earned_is_never_less_evidence(seed, lift):
    (base,) = differences(1, seed=seed)
    lower, higher = challenge(base, CASH), challenge(base + lift, CASH)
    assert (higher.e_value_T >= lower.e_value_T * (1 - 1e-9)).all()
    assert (higher.incumbent_e_value_T <= lower.incumbent_e_value_T * (1 + 1e-9)).all()


@given(seed=st.integers(0, 2**32 - 1), sharpe=st.floats(-8, 8), scale=st.floats(1e-3, 1e3))
def test_swapping_the_two_swaps_the_outcome_and_leverage_changes_nothing(seed, sharpe, scale):
    first, second = differences(2, sharpe=sharpe, seed=seed)
    second -= second.mean()
    result, swapped = challenge(first, second), challenge(second, first)
    other = {"challenger": "incumbent", "incumbent": "challenger", "neither": "neither"}
    assert swapped.better == other[result.better]
    assert swapped.first_bar == result.first_bar
    np.testing.assert_array_equal(swapped.e_value_T, result.incumbent_e_value_T)
    np.testing.assert_allclose(challenge(scale * first, scale * second).e_value_T, result.e_value_T, rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), seen=st.integers(0, YEAR))
def test_what_was_said_by_a_bar_does_not_depend_on_later_ones(seed, seen):
    (base,) = differences(1, sharpe=6.0, seed=seed)
    whole, part = challenge(base, CASH), challenge(base[:seen], CASH[:seen])
    np.testing.assert_allclose(part.e_value_T, whole.e_value_T[:seen], rtol=1e-12)
    if part.better != "neither":
        assert (part.better, part.first_bar) == (whole.better, whole.first_bar)


def test_bars_that_one_lacks_are_left_out():
    (base,) = differences(1, sharpe=6.0)
    gaps = np.insert(base, [0, 0, 100], np.nan)
    plain, gappy = challenge(base, CASH), challenge(gaps, np.zeros(YEAR + 3))
    assert gappy.num_bars == YEAR
    np.testing.assert_array_equal(np.delete(gappy.e_value_T, [0, 1, 102]), plain.e_value_T)


def test_equal_tracks_and_no_tracks_show_nothing_and_words_say_what_was_found():
    same = challenge(CASH, CASH)
    assert same.better == "neither"
    assert (same.e_value_T == 1.0).all()
    assert challenge(np.empty(0), np.empty(0)).better == "neither"
    assert same.why == (
        "after 252 bars side by side neither has shown itself better: the evidence reached 1.0, and 20 is asked for"
    )
    found = challenge(*np.stack([differences(1, sharpe=8.0)[0], CASH]))
    assert found.first_bar is not None
    assert found.e_value_T[found.first_bar] >= 20 > found.e_value_T[found.first_bar - 1]
    assert f"the challenger has shown itself better at bar {found.first_bar + 1} of their 252" in found.why
    assert "at most 5% of cases" in found.why


@pytest.mark.parametrize(
    ("other", "options", "said"),
    [(np.zeros(3), {}, "shapes"), (CASH, {"level": 1.0}, "between 0 and 1"), (CASH, {"block_bars": 0}, "at least 1")],
)
def test_what_cannot_be_compared_is_refused(other, options, said):
    with pytest.raises(ChallengeError, match=said):
        challenge(CASH, other, **options)
