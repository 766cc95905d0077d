"""All gates together: each vetoes what is its own, warnings never do, and certificates may come later."""

import numpy as np
import pytest

from tests.training.rating.judged_makers import CERTIFIED, NUM_BARS, VARIANTS, YEAR, evidence, good, judged, returns
from training.rating.evidence import Finding
from training.rating.gates import GateError, nightly_level
from training.rating.judging import judge

GATES = ["skill", "track_record", "leaks", "certificate", "latency", "drift", "deflated_sharpe"]


@pytest.fixture(scope="module")
def result():
    return judged()


def vetoes(result, variant):
    return [verdict.gate for verdict in result.verdicts[variant] if verdict.veto and not verdict.ok]


def test_every_variant_hears_of_every_gate(result):
    assert tuple(result.verdicts) == VARIANTS
    assert all([verdict.gate for verdict in said] == GATES for said in result.verdicts.values())
    assert all(isinstance(verdict.ok, bool) for said in result.verdicts.values() for verdict in said)


def test_each_gate_vetoes_what_is_its_own(result):
    assert result.promotable == ["skilled"]
    assert vetoes(result, "leaky") == ["leaks"]
    assert vetoes(result, "uncertified") == vetoes(result, "forged") == ["certificate"]
    assert vetoes(result, "slow") == ["latency"]
    assert vetoes(result, "drifted") == ["drift"]
    assert vetoes(result, "lucky-0") == ["skill", "track_record"]


def test_every_trial_counts_failed_ones_too(result):
    assert result.gate.num_trials == len(VARIANTS) + 2
    assert result.gate.level == nightly_level(0.1, num_bars=NUM_BARS, num_trials=10, year_bars=YEAR)
    assert result.trials.num_trials == len(VARIANTS)
    assert result.num_effective == len(VARIANTS) + 2 + 30
    assert result.overfitting.num_trials == len(VARIANTS)


def test_deflated_sharpe_is_said_by_the_effective_trials_and_by_all():
    """Two groups alike count as two; taken as so many unlike ones they would be worth less."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.standard_normal((2, NUM_BARS)), 4, axis=0) + 0.3 * rng.standard_normal((8, NUM_BARS))
    result = judge(VARIANTS, rows, evidence(), seed=0, periods_per_year=YEAR, num_tuning_trials=12)
    assert (result.trials.num_trials, result.num_effective) == (2, 5)
    why = result.verdicts["skilled"][-1].why
    assert "luckiest of 5 skill-less trials" in why
    assert "were no two of 20 trials alike it would be" in why


def test_warnings_are_of_the_whole_search_and_never_veto(result):
    assert [verdict.gate for verdict in result.warnings] == ["spa", "overfitting"]
    assert not any(verdict.veto for verdict in result.warnings)


def test_a_certificate_may_come_later_for_those_that_only_it_stands_against(result):
    assert result.to_certify == ["uncertified", "forged"]
    later = result.certified({"uncertified": CERTIFIED, "forged": Finding(ok=False, why="again")})
    assert later.promotable == ["skilled", "uncertified"]
    assert result.promotable == ["skilled"]
    with pytest.raises(GateError, match="1 variants that were not judged: nobody"):
        result.certified({"nobody": CERTIFIED})


def test_where_it_is_not_required_a_missing_certificate_warns_and_a_failed_one_still_vetoes():
    lenient = judged(require_certificate=False)
    assert lenient.promotable == ["skilled", "uncertified"]
    assert vetoes(lenient, "forged") == ["certificate"]


def test_a_missing_latency_or_drift_verdict_does_not_veto():
    new = dict.fromkeys(VARIANTS, good(latency_p99_ms=None, drift=None))
    result = judge(VARIANTS, returns(), new, seed=0, periods_per_year=YEAR)
    assert result.promotable == list(VARIANTS[:6])


def test_the_latency_budget_is_the_callers():
    assert "slow" in judged(latency_budget_ms=100.0).promotable


def test_short_tracks_are_not_judged_and_count():
    rows = returns()
    rows[7, :-20] = np.nan
    result = judge(VARIANTS, rows, evidence(), seed=0, periods_per_year=YEAR)
    assert "skill" in vetoes(result, "lucky-1")
    assert result.trials.num_trials == len(VARIANTS) - 1
    assert result.num_effective == len(VARIANTS)
    assert result.overfitting.num_bars == NUM_BARS // 16 * 16


@pytest.mark.parametrize("rows", [np.zeros((8, 20)), np.full((8, 300), np.nan)])
def test_nothing_to_judge_promotes_nobody(rows):
    result = judge(VARIANTS, rows, evidence(), seed=0, periods_per_year=YEAR)
    assert result.promotable == []
    assert not any(verdict.ok for verdict in result.warnings)


def test_input_that_does_not_fit_is_refused_with_counts():
    with pytest.raises(GateError, match="8 different variants of 8 named, and 7 rows"):
        judge(VARIANTS, returns()[:7], evidence(), seed=0, periods_per_year=YEAR)
    with pytest.raises(GateError, match="1 different variants of 2 named"):
        judge(("a", "a"), returns()[:2], evidence(), seed=0, periods_per_year=YEAR)
    some = {variant: each for variant, each in evidence().items() if variant != "slow"}
    with pytest.raises(GateError, match=r"no evidence on 1 of 8 variants \(slow\)"):
        judge(VARIANTS, returns(), some, seed=0, periods_per_year=YEAR)
