"""Evidence: what vetoes, what only warns, and that what is absent is never taken for good."""

import re
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from feature_repo.leakage.findings import LeakFinding
from training.leakage.verdict import LeakVerdict
from training.rating.evidence import Finding, certificate, drift, latency
from training.rating.gates import leaks

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


@pytest.mark.parametrize("gate", [lambda finding: certificate(finding, required=False), drift])
def test_a_check_that_failed_vetoes_in_its_own_words(gate):
    bad = gate(Finding(ok=False, why="the weights differ", value=3, threshold=0))
    assert (bad.ok, bad.veto, bad.value, bad.threshold, bad.why) == (False, True, 3, 0, "the weights differ")
    assert gate(Finding(ok=True, why="six of six items")).ok


@pytest.mark.parametrize(
    ("verdict", "vetoes", "said"),
    [
        (certificate(None, required=True), True, "has no reproducibility certificate"),
        (certificate(None, required=False), False, "has no reproducibility certificate"),
        (latency(None), False, "no live latency was measured yet"),
        (drift(None), False, "no drift verdict on it yet"),
    ],
)
def test_what_is_absent_is_said_and_vetoes_where_it_could_have_been_had(verdict, vetoes, said):
    assert not verdict.ok
    assert verdict.veto is vetoes
    assert said in verdict.why
    assert np.isnan(verdict.value)


def test_latency_is_held_against_the_budget():
    late, in_time = latency(50.1), latency(50.0)
    assert (late.ok, late.veto, late.value, late.threshold) == (False, True, 50.1, 50.0)
    assert in_time.ok
    assert latency(50.1, budget_ms=60).ok
    assert not latency(float("nan")).ok
    assert "within 50.1 ms, over the budget of 50 ms" in late.why
