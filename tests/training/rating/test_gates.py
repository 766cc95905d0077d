"""Gates: luck passes rarely, planted skill does, the market isn't skill, and nothing passes that knew the future."""

import re
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy import stats

from feature_repo.leakage.findings import LeakFinding
from training.leakage.verdict import LeakVerdict
from training.metrics.performance import beta_residual, psr
from training.rating.gates import deflated_sharpe, leaks, skilled, track_record

YEAR = 252
BAR = YEAR**-0.5  # an annual Sharpe ratio of one, per bar


def noise(seed, num_variants=20, num_bars=250):
    """Skill-less variants that resemble one another, with volatilities a hundredfold apart."""
    rng = np.random.default_rng(seed)
    own, shared = rng.standard_normal((num_variants, num_bars)), rng.standard_normal(num_bars)
    return (0.8 * own + 0.6 * shared) * np.geomspace(0.0005, 0.05, num_variants)[:, None]


def test_luck_is_promoted_no_more_often_than_the_level_allows():
    """40 worlds at a level of 10%: more than 9 with any promotion has a chance of 2% if the level holds."""
    worlds = 40
    promoted = sum(skilled(noise(seed), seed=seed, level=0.10, reps=200).superior.any() for seed in range(worlds))
    assert promoted <= stats.binom.ppf(0.98, worlds, 0.10)
    # The broken gate, each variant on its own, promotes someone in most worlds.
    alone = sum((psr(noise(seed)) > 0.90).any() for seed in range(worlds))
    assert alone > worlds / 2


def test_planted_skill_is_found_at_any_volatility_and_only_it():
    returns = noise(1, num_variants=30, num_bars=1000)
    for v in (0, 15, 29):
        returns[v] += returns[v].std() * 4 * BAR - returns[v].mean()
    result = skilled(returns, seed=0, reps=300)
    assert set(np.flatnonzero(result.superior)) == {0, 15, 29}
    assert result.p_value < 0.05
    assert (result.sharpe_V[result.superior] > result.critical).all()
    assert (result.sharpe_V[~result.superior] <= result.critical).all()
    assert (result.num_trials, result.num_days) == (30, 1000)


def test_the_most_volatile_variant_does_not_set_the_bar():
    """Why returns are brought to unit variance first: as they are, arch's StepM misses the quiet skilled variant."""
    from arch.bootstrap import StepM

    returns = noise(2, num_bars=750)
    returns[0] += returns[0].std() * 5 * BAR - returns[0].mean()
    plain = StepM(np.zeros(750), -returns.T, block_size=3, reps=200, seed=0, studentize=True)
    plain.compute()
    assert 0 not in plain.superior_models
    assert skilled(returns, seed=0, reps=200).superior[0]


def test_skill_found_for_all_in_more_than_one_step():
    """Without cash among the trials arch reduces an empty array here."""
    rng = np.random.default_rng(3)
    strong = rng.standard_normal((1, 1000)) * 0.01 + 0.01
    weak = rng.standard_normal((2, 1000)) * 0.01
    weak += 0.01 * 2.15 / np.sqrt(1000) - weak.mean(axis=1, keepdims=True)
    verdicts = [skilled(np.vstack([strong, weak]), seed=seed, reps=200) for seed in range(6)]
    assert all(result.superior[0] for result in verdicts)
    assert all(result.critical >= 0 for result in verdicts)


def test_holding_the_market_is_skill_on_raw_returns_only():
    rng = np.random.default_rng(5)
    market = rng.normal(2.0 * BAR * 0.01, 0.01, 1500)
    market += 2.0 * BAR * 0.01 - market.mean()
    net = rng.uniform(0.6, 1.2, (15, 1)) * market + rng.normal(0, 0.003, (15, 1500))
    assert skilled(net, seed=0, reps=200).superior.sum() == 15
    residual = beta_residual(net, market)[:, 63:]
    assert skilled(residual, seed=0, reps=200).superior.sum() == 0


def test_the_same_seed_gives_the_same_answer():
    first, again = (skilled(noise(4), seed=9, reps=100) for _ in range(2))
    assert (first.critical, first.p_value, first.block_size) == (again.critical, again.p_value, again.block_size)
    assert skilled(noise(4), seed=10, reps=100).critical != first.critical


def test_degenerate_and_short_tracks_are_never_superior_and_shorten_no_other():
    returns = noise(6, num_bars=400)
    returns[0] = 0.0
    returns[1] = 0.01
    returns[2] = np.nan
    returns[3, :-50] = np.nan
    returns[3, -50:] = 0.05 + 0.001 * np.arange(50)
    returns[4, -1] = np.nan
    returns[5, :100] = np.nan
    result = skilled(returns, seed=0, reps=100, min_days=126)
    assert not result.judged[:5].any()
    assert result.judged[5:].all()
    assert not result.superior[:5].any()
    assert result.num_trials == 20
    assert result.num_days == 300
    verdicts = result.verdicts(periods_per_year=YEAR)
    assert all("not judged" in verdict.why and not verdict.ok for verdict in verdicts[:5])
    assert "best of 20 trials" in verdicts[5].why


@pytest.mark.parametrize(
    "returns", [np.zeros((3, 200)), np.full((3, 200), np.nan), np.ones((2, 10)), np.empty((0, 200))]
)
def test_nothing_to_judge_is_not_a_crash(returns):
    result = skilled(returns, seed=0, reps=50)
    assert not result.superior.any()
    assert result.num_days == 0
    assert all(not verdict.ok for verdict in result.verdicts(periods_per_year=YEAR))


def test_a_single_variant_is_tested_against_zero():
    row = noise(7, num_variants=1, num_bars=500)
    row = row - row.mean()
    assert not skilled(row, seed=0, reps=200).superior[0]
    assert skilled(row + row.std() * 4 * BAR, seed=0, reps=200).superior[0]


def test_verdicts_are_in_annual_sharpe_ratios():
    result = skilled(noise(8), seed=0, reps=100)
    verdict = result.verdicts(periods_per_year=YEAR)[0]
    assert verdict.value == pytest.approx(result.sharpe_V[0] / BAR)
    assert verdict.threshold == pytest.approx(result.critical / BAR)
    assert f"{verdict.value:.2f}" in verdict.why


def test_track_record_needs_more_bars_for_a_weaker_ratio():
    row = np.random.default_rng(9).standard_normal(400) * 0.01
    row -= row.mean()
    strong, weak, none = (track_record(row + 0.01 * ratio * BAR) for ratio in (3.0, 0.8, -1.0))
    assert strong.ok
    assert strong.value == 400
    assert not weak.ok
    assert weak.threshold > strong.threshold
    assert "fewer than" in weak.why
    assert not none.ok
    assert none.threshold == np.inf
    assert not track_record(np.zeros(100)).ok


def test_deflated_sharpe_warns_of_the_luckiest_but_not_of_the_skilled():
    returns = noise(10, num_variants=200, num_bars=750)
    lucky = int(np.argmax(psr(returns)))
    verdicts = deflated_sharpe(returns)
    assert psr(returns)[lucky] > 0.95
    assert not verdicts[lucky].ok
    returns[3] += returns[3].std() * 6 * BAR
    assert deflated_sharpe(returns)[3].ok
    assert not any(verdict.veto for verdict in verdicts)


MOMENT = datetime(2020, 1, 2, tzinfo=UTC)
LEAK = LeakFinding(
    check="truncation",
    entity="A",
    event_time=MOMENT,
    feature="return_1",
    moment=MOMENT,
    expected=None,
    got=0.5,
    message="return_1 of A rests on the future",
)
CLEAN = LeakVerdict(
    subject="momentum: panel",
    fingerprint="abc",
    checks=("truncation",),
    findings=(),
    num_compared=12_345,
    checked_at=(MOMENT, MOMENT),
)


def test_a_clean_panel_passes_with_the_number_compared():
    verdict = leaks(CLEAN, fingerprint="abc")
    assert verdict.ok
    assert verdict.why == "nothing in its panel knows the future: 12,345 values compared at 2 moments"
    assert (verdict.gate, verdict.value, verdict.threshold, verdict.veto) == ("leaks", 0, 0, True)


@pytest.mark.parametrize(
    ("found", "value", "said"),
    [
        (replace(CLEAN, findings=(LEAK, LEAK)), 2, "2 leaks in 12,345 values .* the first: return_1 of A rests on"),
        (replace(CLEAN, fingerprint="other"), np.nan, r"about other data \(other\) than its panel \(abc\)"),
        (replace(CLEAN, num_compared=0), np.nan, "compared nothing"),
        (None, np.nan, "was not checked"),
    ],
)
def test_a_leak_or_no_verdict_on_these_data_vetoes(found, value, said):
    verdict = leaks(found, fingerprint="abc")
    assert verdict.veto
    assert not verdict.ok
    assert verdict.value == pytest.approx(value, nan_ok=True)
    assert re.search(said, verdict.why)
