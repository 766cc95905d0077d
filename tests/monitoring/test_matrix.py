"""Every row of the alert-response matrix."""

import math

import pytest

from monitoring.alerts.matrix import RESPONSES, RULES, SEVERITIES, SIGNALS, History, classic, respond

ROWS = [
    # signal, daily values, classic severity, action with the calibrated test behind it
    ("ic", [0.019] * 5, "warning", "diagnose"),
    ("ic", [0.019] * 4, "none", "none"),
    ("ic", [0.03, 0.009], "severe", "halve"),
    ("ic", [-0.001] * 3, "critical", "pause"),
    ("ic", [0.03, -0.001, -0.001], "severe", "halve"),
    ("psi", [0.11], "warning", "watch"),
    ("psi", [0.26], "severe", "retrain"),
    ("psi", [0.10], "none", "none"),
    ("sharpe", [0.4] * 10, "warning", "diagnose"),
    ("sharpe", [0.4] * 9, "none", "none"),
    ("sharpe", [-0.1] * 5, "severe", "halve"),
    ("sharpe", [0.6] * 6 + [-0.1] * 4, "none", "none"),
]


def _history(signal, values, *, drifted):
    beyond = -math.inf if signal == "psi" else math.inf
    return History(signal=signal, values=tuple(values), calibrated_threshold=beyond if drifted else -beyond)


@pytest.mark.parametrize(("signal", "values", "severity", "action"), ROWS)
def test_the_classic_row_gives_the_severity_and_the_action(signal, values, severity, action):
    alert = respond(_history(signal, values, drifted=True))
    assert (alert.severity, alert.action) == (severity, action)


@pytest.mark.parametrize(("signal", "values", "severity", "action"), ROWS)
def test_without_the_calibrated_test_it_is_only_watched(signal, values, severity, action):
    alert = respond(_history(signal, values, drifted=False))
    assert alert.severity == severity
    assert alert.action == ("none" if severity == "none" else "watch")
    uncalibrated = respond(History(signal=signal, values=tuple(values), calibrated_threshold=None))
    assert uncalibrated.action == alert.action


def test_the_matrix_is_total_and_every_rule_leads_into_it():
    assert set(RESPONSES) == {(signal, severity) for signal in SIGNALS for severity in SEVERITIES}
    assert all((rule.signal, rule.severity) in RESPONSES for rule in RULES)


def test_a_day_without_a_value_breaks_a_run_of_days():
    assert classic("ic", (-0.1, math.nan, -0.1)) != "critical"


def test_a_feature_that_stopped_coming_is_critical_an_outcome_is_waited_for():
    assert respond(History(signal="psi", values=(math.nan,), calibrated_threshold=1.0)).severity == "critical"
    assert respond(History(signal="ic", values=(math.nan,), calibrated_threshold=0.0)).severity == "none"
    assert respond(History(signal="ic", values=(), calibrated_threshold=None)).action == "none"
