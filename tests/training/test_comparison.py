"""Paired comparison: luck is no difference, a planted one is found, and what isn't known is said."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.training.comparison_makers import make_arm, make_setting
from training.comparison import (
    ACCURACY,
    BRIER,
    IC,
    SHARPE_NET,
    TESTED,
    ComparisonError,
    block_length,
    by_fold,
    compare,
    figures,
    hac_error,
    holm,
    paired_test,
    seed_range,
)
from training.metrics.forecast import ic_by_time, mean_ic
from training.metrics.performance import sharpe

SETTING = make_setting()
REPS = 200


def autocorrelated(seed, num=252, rho=0.5):
    """Heavy-tailed differences of mean 0 and first-order autocorrelation ``rho``."""
    shocks = np.random.default_rng(seed).standard_t(4, num + 50)
    values = np.zeros(num + 50)
    for i in range(1, num + 50):
        values[i] = rho * values[i - 1] + shocks[i]
    return values[50:]


# The paired test.


def test_no_difference_is_rejected_in_about_5_percent_of_autocorrelated_worlds():
    """At a true 5% more than 17 of 200 has a chance of 1%, fewer than 4 one of 1%."""
    worlds = 200
    values = [autocorrelated(seed) for seed in range(worlds)]
    rejected = sum(paired_test(IC, each, horizon=1, seed=7, reps=120).p_value < 0.05 for each in values)
    low, high = stats.binom.ppf([0.01, 0.99], worlds, 0.05)
    assert low <= rejected <= high
    # The broken test, which takes the dates as independent, finds differences in many of them.
    independent = sum(stats.ttest_1samp(each, 0.0).pvalue < 0.05 for each in values)
    assert independent > 3 * high / 2


def test_family_wise_a_pair_without_difference_is_told_apart_rarely():
    worlds = 60
    told = 0
    for world in range(worlds):
        setting = make_setting(num_bars=126, seed=world)
        arms = [make_arm(setting, skill=0.1, seed=1000 + 2 * world + i, name=f"model-{i}") for i in range(2)]
        told += compare(*arms, setting, seed=world, reps=REPS).answer != "no difference shown"
    assert told <= stats.binom.ppf(0.99, worlds, 0.05)


def test_a_detectable_difference_is_found_with_about_the_power_promised():
    worlds = 100
    noise = [np.random.default_rng(seed).standard_normal(252) for seed in range(worlds)]
    detectable = np.median([paired_test(IC, each, horizon=1, seed=7, reps=REPS).detectable for each in noise])
    assert detectable == pytest.approx((1.96 + 0.84) / np.sqrt(252), rel=0.06)
    found = sum(paired_test(IC, each + detectable, horizon=1, seed=7, reps=REPS).p_value < 0.05 for each in noise)
    low, high = stats.binom.ppf([0.01, 0.99], worlds, 0.80)
    assert low <= found <= high


def test_more_tests_make_the_detectable_difference_larger_and_the_interval_no_wider():
    values = autocorrelated(3)
    one, four = (paired_test(IC, values, horizon=1, seed=7, num_tests=num) for num in (1, 4))
    assert four.detectable > one.detectable
    assert (four.low, four.high, four.p_value) == (one.low, one.high, one.p_value)


def test_the_interval_and_the_p_value_agree():
    for shift in np.linspace(0.0, 0.6, 13):
        test = paired_test(IC, autocorrelated(5) + shift, horizon=1, seed=7, reps=REPS)
        if abs(test.p_value - 0.05) > 0.01:
            assert (test.low <= 0.0 <= test.high) == (test.p_value > 0.05)


def test_the_error_is_newey_wests():
    from statsmodels.regression.linear_model import OLS

    values = autocorrelated(1)
    for lags in (1, 5, 20):
        fitted = OLS(values, np.ones(len(values))).fit(cov_type="HAC", cov_kwds={"maxlags": lags})
        assert hac_error(values, lags=lags) == pytest.approx(fitted.bse[0], rel=1e-12)


def test_blocks_grow_with_autocorrelation_and_are_no_shorter_than_the_horizon():
    assert block_length(autocorrelated(1, rho=0.0), horizon=1) < block_length(autocorrelated(1, rho=0.9), horizon=1)
    assert block_length(autocorrelated(1, rho=0.0), horizon=21) == 21


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_is_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(1).random(9) ** 3
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


# What is compared: contributions average to the figures.


def test_contributions_average_to_the_figures_everyone_knows():
    arm = make_arm(SETTING, skill=0.3, num_seeds=2, confidence=0.6)
    outcome = SETTING.outcome_TN
    means = {metric.name: metric.contributions(arm, SETTING).mean(axis=1) for metric in TESTED}
    np.testing.assert_allclose(means["sharpe_net"], sharpe(arm.net_ST, periods_per_year=252.0))
    np.testing.assert_allclose(means["ic"], mean_ic(ic_by_time(arm.score_STN, outcome)))
    right = np.sign(arm.score_STN) == np.sign(outcome)
    shares = [[right[s][side].mean() for side in (outcome > 0, outcome < 0)] for s in range(2)]
    np.testing.assert_allclose(means["accuracy"], np.mean(shares, axis=1))
    np.testing.assert_allclose(means["brier"], ((0.6 - right) ** 2).mean(axis=(1, 2)))


def test_the_sharpe_ratios_error_is_mertens():
    """The influences' standard deviation gives sqrt((1 - g3 SR + (g4 - 1) / 4 SR^2) / n) per bar."""
    arm = make_arm(make_setting(num_bars=2000), skill=0.4)
    net = arm.net_ST[0] + 0.3 * arm.net_ST[0] ** 2 / arm.net_ST[0].std()  # skewed
    arm, setting = replace(arm, net_ST=net[None]), replace(make_setting(num_bars=2000), bars_per_year=1.0)
    ratio = float(sharpe(net, periods_per_year=1.0))
    g3, g4 = stats.skew(net), stats.kurtosis(net, fisher=False)
    expected = np.sqrt((1 - g3 * ratio + (g4 - 1) / 4 * ratio**2) / len(net))
    influences = SHARPE_NET.contributions(arm, setting)[0]
    assert hac_error(influences, lags=0) == pytest.approx(expected, rel=2e-3)
    assert abs(g3 * ratio) > 0.1, "a test that the moments matter to"


def test_assets_that_come_and_go_are_weighed_by_their_number():
    arm = make_arm(SETTING, skill=0.3, confidence=0.7)
    score = arm.score_STN.copy()
    score[:, 50:, 2:] = np.nan
    arm = replace(arm, score_STN=score)
    right = np.sign(score) == np.sign(SETTING.outcome_TN)
    known = np.isfinite(score)
    assert BRIER.contributions(arm, SETTING).mean() == pytest.approx(((0.7 - right) ** 2)[known].mean())


def test_a_date_of_equal_scores_counts_as_an_ic_of_zero():
    """Else a model that mostly says nothing would be judged by the dates on which it dared."""
    arm = make_arm(SETTING, skill=0.3)
    score = arm.score_STN.copy()
    score[:, 100:] = 0.7
    score[:, 0] = np.nan
    ic = IC.contributions(replace(arm, score_STN=score), SETTING)[0]
    assert np.isnan(ic[0])
    assert (ic[100:] == 0.0).all()
    np.testing.assert_array_equal(ic[1:100], ic_by_time(arm.score_STN[0], SETTING.outcome_TN)[1:100])


def test_figures_of_a_forecast_that_is_known():
    known = figures(make_arm(SETTING, skill=1.0, confidence=0.9), SETTING)
    assert known["ic"] == pytest.approx(1.0)
    assert known["accuracy"] == 1.0
    assert known["brier"] == pytest.approx(0.01)
    assert known["overconfidence"] == pytest.approx(-0.1)
    assert known["max_drawdown"] == 0.0
    assert known["sharpe_net"] == pytest.approx(known["sharpe_gross"])
    assert known["sharpe_net"] > 10
    assert known["num_dates"] == 252
    nothing = figures(make_arm(SETTING), SETTING)
    assert abs(nothing["ic_t"]) < 3
    assert nothing["icir"] == pytest.approx(nothing["ic_t"] / np.sqrt(252))


def test_overlapping_labels_do_not_swell_the_t_of_the_ic():
    arm = make_arm(SETTING, skill=0.2)
    t = {horizon: figures(arm, replace(SETTING, horizon=horizon))["ic_t"] for horizon in (1, 5)}
    assert t[5] < 0.7 * t[1]


def test_by_fold_and_by_seed():
    arm = make_arm(SETTING, skill=0.2, num_seeds=3)
    per_fold = by_fold(IC, arm, SETTING)
    assert list(per_fold) == list(range(12))
    ic_ST = ic_by_time(arm.score_STN, SETTING.outcome_TN)
    assert per_fold[3] == pytest.approx(ic_ST[:, 63:84].mean())
    means = ic_ST.mean(axis=1)
    assert seed_range(IC, arm, SETTING) == pytest.approx((means.min(), means.max()))


# The verdict.


def test_identical_forecasts_differ_by_exactly_zero():
    arm = make_arm(SETTING, skill=0.2)
    found = compare(arm, replace(arm, variant="model-b"), SETTING, seed=1, reps=REPS)
    assert found.answer == "no difference shown"
    for test in found.tests:
        assert (test.difference, test.low, test.high, test.p_holm, test.detectable) == (0.0, 0.0, 0.0, 1.0, 0.0)
    assert "made the same forecasts" in found.why


def test_a_planted_difference_is_found_and_told():
    good, bad = make_arm(SETTING, skill=0.35), make_arm(SETTING, seed=2, name="model-b")
    found = compare(good, bad, SETTING, seed=1, reps=REPS)
    assert found.answer == "first better"
    by_name = {test.metric.name: test for test in found.tests}
    assert all(by_name[name].favours == "first" for name in ("accuracy", "ic", "sharpe_net"))
    assert by_name["ic"].low > 0
    assert by_name["ic"].difference == pytest.approx(
        figures(good, SETTING)["ic"] - figures(bad, SETTING)["ic"], abs=1e-12
    )
    assert by_name["brier"].favours == "neither"
    assert "model-a on IC: +0." in found.why


def test_swapping_the_two_changes_the_signs_and_nothing_else():
    for skill in (0.0, 0.35):
        arms = make_arm(SETTING, skill=skill), make_arm(SETTING, seed=2, name="model-b", confidence=0.55)
        there, back = compare(*arms, SETTING, seed=1, reps=REPS), compare(*arms[::-1], SETTING, seed=1, reps=REPS)
        opposite = {"first better": "second better", "no difference shown": "no difference shown"}
        assert opposite.get(there.answer, there.answer) == back.answer
        for a, b in zip(there.tests, back.tests, strict=True):
            assert (a.difference, a.low, a.high, a.t) == (-b.difference, -b.high, -b.low, -b.t)
            assert (a.p_value, a.p_holm, a.detectable) == (b.p_value, b.p_holm, b.detectable)


def test_no_difference_shown_says_what_would_have_been_seen():
    found = compare(make_arm(SETTING), make_arm(SETTING, seed=2, name="model-b"), SETTING, seed=1, reps=REPS)
    assert found.answer == "no difference shown"
    assert "spans 0" in found.why
    ic = next(test for test in found.tests if test.metric is IC)
    assert (
        f"80% power: balanced accuracy {ACCURACY.show(found.tests[0].detectable)}, IC {ic.detectable:.3f}" in found.why
    )


def test_better_forecasts_of_worse_confidence_are_a_trade_off():
    vain = make_arm(SETTING, skill=0.35, confidence=0.99)
    humble = make_arm(SETTING, seed=2, name="model-b", confidence=0.5)
    found = compare(vain, humble, SETTING, seed=1, reps=REPS)
    assert found.answer == "each better at something"
    assert "model-b on Brier score: +" in found.why


def test_an_interval_beside_zero_that_holm_does_not_let_pass_is_told_as_such():
    """Only the signs' confidence differs, just enough for a single test."""
    for edge in np.linspace(0.01, 0.3, 30):
        first, second = make_arm(SETTING, confidence=0.5 + edge), make_arm(SETTING, name="model-b", seed=1)
        found = compare(first, replace(second, score_STN=-second.score_STN), SETTING, seed=1, reps=REPS)
        brier = found.tests[3]
        if brier.p_value < 0.05 <= brier.p_holm:
            assert "leaves out 0 taken alone, but not after Holm's correction" in found.why or found.answer != (
                "no difference shown"
            )
            return
    pytest.fail("no such edge")


def test_too_few_dates_are_not_tested():
    setting = make_setting(num_bars=42)
    found = compare(make_arm(setting, skill=0.9), make_arm(setting, seed=2), setting, seed=1, reps=REPS)
    assert found.answer == "no difference shown"
    assert "42 paired dates are too few to test: 63 or more" in found.why
    assert all(np.isnan(test.p_value) for test in found.tests)


def test_a_book_that_never_trades_leaves_its_sharpe_ratio_untested():
    flat = make_arm(SETTING, seed=2, name="model-b")
    flat = replace(flat, net_ST=np.zeros_like(flat.net_ST))
    found = compare(make_arm(SETTING, skill=0.35), flat, SETTING, seed=1, reps=REPS)
    by_name = {test.metric.name: test for test in found.tests}
    assert "never traded" in by_name["sharpe_net"].reason
    assert found.answer == "first better"


def failed(arm, folds):
    """The arm without what these folds' fits said."""
    gone = np.isin(SETTING.fold_T, folds)
    blank = {
        name: np.where(gone.reshape(1, -1, *[1] * (getattr(arm, name).ndim - 2)), np.nan, getattr(arm, name))
        for name in ("score_STN", "confidence_STN", "net_ST", "gross_ST", "turnover_ST")
    }
    return replace(arm, **blank, failures=["ModelError: diverged"] * len(folds))


def test_failed_folds_are_left_out_on_both_sides():
    good = make_arm(SETTING, skill=0.35)
    bad = failed(make_arm(SETTING, seed=2, name="model-b"), [0, 5])
    found = compare(good, bad, SETTING, seed=1, reps=REPS)
    assert {test.num_dates for test in found.tests} == {252 - 42}
    again = compare(failed(good, [0, 5]), bad, SETTING, seed=1, reps=REPS)
    assert [test.difference for test in found.tests] == [test.difference for test in again.tests]
    assert np.isnan(by_fold(IC, bad, SETTING)[5])
    assert figures(bad, SETTING)["num_dates"] == 210
    assert np.isfinite(figures(bad, SETTING)["sharpe_net"])


def test_an_arm_whose_every_fit_failed_has_no_figures_and_is_not_tested():
    gone = failed(make_arm(SETTING, seed=2, name="model-b"), range(12))
    found = figures(gone, SETTING)
    assert found.pop("num_dates") == 0
    assert all(np.isnan(value) for value in found.values())
    assert compare(make_arm(SETTING), gone, SETTING, seed=1, reps=REPS).answer == "no difference shown"


def test_a_seed_that_failed_leaves_the_others():
    arm = make_arm(SETTING, skill=0.3, num_seeds=2)
    one = replace(arm, **{name: getattr(failed(arm, range(12)), name).copy() for name in ("score_STN", "net_ST")})
    one.score_STN[0], one.net_ST[0] = arm.score_STN[0], arm.net_ST[0]
    assert figures(one, SETTING)["ic"] == pytest.approx(ic_by_time(arm.score_STN[0], SETTING.outcome_TN).mean())


def test_seeds_lower_the_noise_of_the_difference():
    errors = {}
    for num_seeds in (1, 8):
        arms = [make_arm(SETTING, skill=0.2, seed=5 + i, name=f"m{i}", num_seeds=num_seeds) for i in range(2)]
        ic = compare(*arms, SETTING, seed=1, reps=REPS).tests[1]
        errors[num_seeds] = ic.high - ic.low
        assert ic.num_dates == 252
    assert errors[8] < errors[1] / 2


def test_arms_of_other_seeds_or_bars_are_refused():
    with pytest.raises(ComparisonError, match="same seeds on the same bars"):
        compare(make_arm(SETTING), make_arm(SETTING, num_seeds=2), SETTING, seed=1)
    with pytest.raises(ComparisonError, match="same seeds on the same bars"):
        compare(make_arm(SETTING), make_arm(SETTING), make_setting(num_bars=63), seed=1)
