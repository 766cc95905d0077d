"""Drift statistics, their calibration and the verdicts."""

from datetime import date

import numpy as np
import pytest

from monitoring.drift.calibration import lower_threshold, psi_thresholds
from monitoring.drift.monitor import FEATURE_WINDOW, WINDOW, feature_verdicts, outcome_verdicts
from monitoring.drift.statistics import rolling_mean, session_counts, window_psi
from training.metrics.distribution import psi

DAY = date(2024, 1, 2)
NUM_REFERENCE, NUM_ASSETS = 252, 8


def _autoregressive(rng, num_sessions, num_assets, *, phi=0.95):
    """Stationary AR(1) of unit variance, (T, N)."""
    shocks = rng.standard_normal((num_sessions, num_assets)) * np.sqrt(1 - phi**2)
    values = np.empty_like(shocks)
    values[0] = rng.standard_normal(num_assets)
    for t in range(1, num_sessions):
        values[t] = phi * values[t - 1] + shocks[t]
    return values


def _verdict(values_TN, rng):
    x_TNF = values_TN[..., None]
    return feature_verdicts("s", ["x"], x_TNF[:NUM_REFERENCE], x_TNF[-FEATURE_WINDOW:], day=DAY, rng=rng)[0]


def test_window_psi_is_the_one_psi():
    rng = np.random.default_rng(1)
    reference, current = rng.standard_normal((50, 6, 3)), 0.5 + rng.standard_normal((21, 6, 3))
    reference[3, 2, 1] = np.nan
    reference[..., 2] = np.round(reference[..., 2])
    found = window_psi(*session_counts(reference, current))
    np.testing.assert_allclose(found, [psi(reference[..., f], current[..., f]) for f in range(3)])


def test_a_feature_without_values_is_nan_and_critical():
    reference, current = np.ones((252, 4, 1)), np.full((21, 4, 1), np.nan)
    assert np.isnan(window_psi(*session_counts(reference, current)))[0]
    [verdict] = feature_verdicts("s", ["x"], reference, current, day=DAY, rng=np.random.default_rng(0))
    assert verdict.severity == "critical"


@pytest.mark.parametrize(("num_known", "severity"), [(5, "critical"), (83, "critical"), (160, "none")])
def test_a_feature_that_mostly_stopped_coming_is_missing_not_drifted(num_known, severity):
    """The broken variant is the PSI of what is left: five values of 168 look like a shift, and would retrain."""
    rng = np.random.default_rng(7)
    reference, current = rng.standard_normal((252, 8, 1)), rng.standard_normal(168)
    current[num_known:] = np.nan
    current_TNF = rng.permutation(current).reshape(21, 8, 1)
    [verdict] = feature_verdicts("s", ["x"], reference, current_TNF, day=DAY, rng=rng)
    assert verdict.severity == severity
    assert psi(reference, current[:5]) > 0.25


def test_undrifted_persistent_features_cry_wolf_by_the_raw_rule_and_not_by_the_calibrated_one():
    """The broken variant is the classic row alone: on AR(0.95) without any drift it is broken in most worlds."""
    rng = np.random.default_rng(11)
    worlds = [_verdict(_autoregressive(rng, NUM_REFERENCE + FEATURE_WINDOW, NUM_ASSETS), rng) for _ in range(40)]
    raw = sum(verdict.severity in ("warning", "severe") for verdict in worlds)
    acted = sum(verdict.action not in ("none", "watch") for verdict in worlds)
    assert raw >= 28
    assert acted <= 3  # nominally 1% a world; about 3% measured, for a year holds few independent AR(0.95) windows


def test_a_real_shift_is_acted_on():
    rng = np.random.default_rng(12)
    values = rng.standard_normal((NUM_REFERENCE + FEATURE_WINDOW, NUM_ASSETS))
    values[-FEATURE_WINDOW:] += 2.0
    verdict = _verdict(values, rng)
    assert (verdict.severity, verdict.action) == ("severe", "retrain")


def test_a_short_reference_is_not_calibrated():
    counts = np.ones((40, 2, 5))
    assert psi_thresholds(counts, num_current=21, rng=np.random.default_rng(0)) is None
    assert lower_threshold(np.ones(100), np.mean, num_current=63, rng=np.random.default_rng(0)) is None


def test_the_lower_threshold_is_about_the_quantile_of_a_window_of_independent_days():
    rng = np.random.default_rng(3)
    daily = rng.standard_normal(2000)
    limit = lower_threshold(daily, lambda values: float(values.mean()), num_current=63, rng=rng, draws=2000)
    assert limit == pytest.approx(daily.mean() - 2.33 / np.sqrt(63), abs=0.08)


def test_rolling_mean_against_brute_force():
    values = np.random.default_rng(4).standard_normal(40)
    values[[3, 17, 18]] = np.nan
    found = rolling_mean(values, 7)
    assert np.isnan(found[:6]).all()
    np.testing.assert_allclose(found[6:], [np.nanmean(values[t - 6 : t + 1]) for t in range(6, 40)])


def test_a_strategy_that_stops_working_is_acted_on_and_one_that_works_is_not():
    rng = np.random.default_rng(5)
    ic_T, net_T = 0.1 + 0.1 * rng.standard_normal(400), 0.002 + 0.008 * rng.standard_normal(400)
    healthy = outcome_verdicts("s", ic_T, net_T, periods_per_year=252, day=DAY, rng=rng)
    assert [verdict.action for verdict in healthy] == ["none", "none"]
    ic_T[-WINDOW:] -= 0.2
    net_T[-WINDOW:] -= 0.006
    broken = {v.signal: v for v in outcome_verdicts("s", ic_T, net_T, periods_per_year=252, day=DAY, rng=rng)}
    assert broken["ic"].action in ("halve", "pause")
    assert broken["sharpe"].action == "halve"


def test_a_few_known_days_are_too_few_for_an_action():
    """The broken variant is their mean: five bad days of 63 known would halve the position."""
    rng = np.random.default_rng(8)
    ic_T, net_T = 0.1 + 0.1 * rng.standard_normal(400), 0.002 + 0.008 * rng.standard_normal(400)
    ic_T[-WINDOW:-5], ic_T[-5:] = np.nan, -0.2
    [verdict, _] = outcome_verdicts("s", ic_T, net_T, periods_per_year=252, day=DAY, rng=rng)
    assert np.isnan(verdict.value)
    assert verdict.action == "none"


def test_verdicts_repeat_under_a_seed():
    values = _autoregressive(np.random.default_rng(6), NUM_REFERENCE + FEATURE_WINDOW, 3)
    assert _verdict(values, np.random.default_rng(1)) == _verdict(values, np.random.default_rng(1))
