"""Gates: luck passes rarely, however often one looks, planted skill does, and the market isn't skill."""

from datetime import UTC, datetime

import numpy as np
import pytest
from scipy import stats

from feature_repo.market.sources import load_market
from training.metrics.performance import beta_residual, psr
from training.rating.gates import (
    AFTER_BETA,
    deflated_sharpe,
    judgeable,
    mean_block,
    nightly_level,
    skilled,
    track_record,
)

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
    promoted = sum(
        skilled(noise(seed), seed=seed, level=0.10, year_bars=0, reps=200).superior.any() for seed in range(worlds)
    )
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
    residual = beta_residual(net, market[None])[:, 63:]
    assert skilled(residual, seed=0, reps=200).superior.sum() == 0


def test_holding_a_desks_own_stocks_is_no_skill_though_they_beat_their_index():
    """40 random long/flat variants over the 20 stocks of ``us_stocks``, chosen by someone in hindsight."""
    bars = load_market("us_stocks", now=datetime(2023, 1, 1, tzinfo=UTC)).bars("1d")
    close = bars.pivot(index="event_time", columns="entity_key", values="close").iloc[-1064:]
    returns = close.pct_change().iloc[1:]
    index_T, stock_TN = returns.pop("SP500").to_numpy(), returns.to_numpy()
    rng = np.random.default_rng(0)
    held_VTN = (rng.random((40, 54, 20)) < 0.7).repeat(20, axis=1)[:, : len(index_T)]  # decided anew each 20 days
    net_VT = (held_VTN * stock_TN).mean(axis=2)
    alone_VT = beta_residual(net_VT, index_T[None])[:, 63:]
    both_VT = beta_residual(net_VT, np.stack([index_T, stock_TN.mean(axis=1)]))[:, 63:]
    assert skilled(alone_VT, seed=0, reps=200).superior.any()
    assert not skilled(both_VT, seed=0, reps=200).superior.any()


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
    long_enough = "a return on each of the last 126 bars after the first 63, which its beta takes"
    assert all(f"not judged: that takes {long_enough}" in verdict.why for verdict in verdicts[:5])
    assert not any(verdict.ok for verdict in verdicts[:5])
    assert "over 300 bars after the first 63, which its beta takes" in verdicts[5].why
    assert "best of 20 trials" in verdicts[5].why


@pytest.mark.parametrize(
    "returns", [np.zeros((3, 200)), np.full((3, 200), np.nan), np.ones((2, 10)), np.empty((0, 200))]
)
def test_nothing_to_judge_is_not_a_crash(returns):
    result = skilled(returns, seed=0, reps=50)
    assert not result.superior.any()
    assert result.num_days == 0
    assert all(not verdict.ok for verdict in result.verdicts(periods_per_year=YEAR))
    spa = result.spa()
    assert not spa.ok
    assert spa.why.startswith("not asked: nobody has a long enough track, a return on each of the last 126 bars")


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
    assert (
        "over its 400 bars after the first 63, which its beta takes, its residual Sharpe ratio is not above" in none.why
    )
    assert not track_record(np.zeros(100)).ok


@pytest.mark.parametrize("row", [np.zeros(0), np.full(50, np.nan)])
def test_a_track_that_the_beta_takes_whole_has_no_record(row):
    verdict = track_record(row)
    assert not verdict.ok
    assert verdict.why == "it has no bar after the first 63, which its beta takes"


def test_the_bars_that_the_gates_leave_out_are_those_the_beta_takes():
    rng = np.random.default_rng(15)
    net, market = rng.normal(0, 0.01, (1, 200)), rng.normal(0, 0.01, 200)
    raw = np.flatnonzero(beta_residual(net + market, market[None])[0] == net[0] + market)
    assert f"after the first {len(raw)}, " in AFTER_BETA


def test_where_nobody_is_judged_the_luckiest_is_not_known_and_nobody_beats_it():
    skilled_row = np.random.default_rng(16).normal(0.01, 0.01, (2, 100))
    for verdict in deflated_sharpe(skilled_row, num_trials=0, sharpe_std=0.0):
        assert np.isnan(verdict.value)
        assert not verdict.ok
        assert verdict.why.endswith("is not known, since nobody has a long enough track")
    (unknown,) = deflated_sharpe(np.full((1, 100), np.nan), num_trials=5, sharpe_std=0.1)
    assert "nan" not in unknown.why
    assert "without its returns" in unknown.why


def test_deflated_sharpe_warns_of_the_luckiest_but_not_of_the_skilled():
    returns = noise(10, num_variants=200, num_bars=750)
    lucky = int(np.argmax(psr(returns)))
    verdicts = deflated_sharpe(returns)
    assert psr(returns)[lucky] > 0.95
    assert not verdicts[lucky].ok
    assert "luckiest of 200 " in verdicts[lucky].why
    assert not any(verdict.veto for verdict in verdicts)
    spread = (returns.mean(axis=1) / returns.std(axis=1, ddof=1)).std(ddof=1)
    given = deflated_sharpe(returns, num_trials=200, sharpe_std=spread)
    assert [verdict.value for verdict in given] == pytest.approx([verdict.value for verdict in verdicts])
    # Fewer trials are less luck, and so are ratios that spread less.
    for less in (deflated_sharpe(returns, num_trials=10), deflated_sharpe(returns, sharpe_std=spread / 2)):
        assert all(one.value >= other.value for one, other in zip(less, verdicts, strict=True))
    returns[3] += returns[3].std() * 6 * BAR
    assert deflated_sharpe(returns)[3].ok


def test_the_level_of_a_night_is_that_of_the_year_for_a_single_look_and_grows_with_the_track():
    levels = [nightly_level(0.1, num_bars=bars, num_trials=486, year_bars=YEAR) for bars in (126, 500, 1000, 5000)]
    assert levels == sorted(levels)
    assert levels[-1] < 0.1
    assert nightly_level(0.1, num_bars=500, num_trials=486, year_bars=0) == pytest.approx(0.1)
    assert nightly_level(0.1, num_bars=500, num_trials=1, year_bars=YEAR) > levels[1]


@pytest.mark.parametrize(("num", "first"), [(1, 500), (10, 126), (10, 500)])
def test_the_levels_of_a_years_nights_hold_the_years_and_one_nights_level_every_night_does_not(num, first):
    """Unlike Gaussian variants, 1,500 worlds: the critical values are exact, so it is the looking that is tested."""
    steps = np.random.default_rng(0).standard_normal((1500, num, first + YEAR - 1), dtype=np.float32)
    bars = np.arange(first, first + YEAR)
    best = (steps.cumsum(axis=2)[:, :, first - 1 :] / np.sqrt(bars)).max(axis=1)

    def ever(level_N):
        return (best > stats.norm.isf(1 - (1 - np.asarray(level_N)) ** (1 / num))).any(axis=1).mean()

    nightly = [nightly_level(0.1, num_bars=n, num_trials=num, year_bars=YEAR) for n in bars]
    assert 0.05 < ever(nightly) <= 0.1
    assert ever(np.full(YEAR, 0.1)) > 0.2


def test_a_gate_spends_a_nights_level_and_never_more_than_one_gates():
    year = skilled(noise(11), seed=0, reps=100)
    assert year.level == nightly_level(0.1, num_bars=250, num_trials=20, year_bars=YEAR)
    assert skilled(noise(11), seed=0, reps=100, year_bars=0).level == 0.05
    assert f"in {year.level:.1%} of cases" in year.verdicts(periods_per_year=YEAR)[0].why


def test_blocks_are_as_long_as_autocorrelation_asks_and_never_short():
    white = np.random.default_rng(12).standard_normal((1000, 5))
    assert mean_block(white) == 10
    slow = np.zeros_like(white)
    for t in range(1, 1000):
        slow[t] = 0.8 * slow[t - 1] + white[t]
    assert 10 < mean_block(slow) <= 32


def test_luck_with_autocorrelation_is_found_out_by_long_blocks_only():
    """Returns that drift slowly look skilled to a bootstrap of single bars."""
    from training.rating.step_m import step_m

    short = long = 0
    for seed in range(30):
        returns = np.random.default_rng(seed).standard_normal((550, 10))
        for t in range(1, 550):
            returns[t] += 0.4 * returns[t - 1]
        unit = returns[50:] / returns[50:].std(axis=0)
        asked = {"level": 0.05, "reps": 200, "seed": 0}
        short += step_m(unit, block_size=1, **asked).superior_V.any()
        long += step_m(unit, block_size=mean_block(unit), **asked).superior_V.any()
    assert short > stats.binom.ppf(0.999, 30, 0.05)
    assert long <= stats.binom.ppf(0.99, 30, 0.05)


def test_spa_warns_where_there_is_nothing_and_never_vetoes():
    nothing = skilled(noise(13), seed=0, reps=200).spa()
    returns = noise(13)
    returns[2] += returns[2].std() * 6 * BAR
    something = skilled(returns, seed=0, reps=200)
    assert not nothing.ok
    assert something.spa().ok
    assert not nothing.veto
    assert something.p_lower <= something.p_value <= something.p_upper


def test_what_is_judged_and_on_which_bars():
    returns = noise(14)
    returns[0, :50], returns[1, -1] = np.nan, np.nan
    judged, shared = judgeable(returns)
    assert judged.tolist() == [True, False] + [True] * 18
    assert shared.tolist() == [False] * 50 + [True] * 200
    nobody, nothing = judgeable(returns, min_days=300)
    assert not nobody.any()
    assert not nothing.any()
