"""The alert-response matrix: what each signal's bad days mean, and what is done about them.

Two tests decide. The classic row (raw thresholds, consecutive days) gives the severity that is shown. Raw thresholds
cry wolf, so the action needs the signal's calibrated threshold too: without it the action is only to watch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Signal: TypeAlias = Literal["psi", "ic", "sharpe"]
Severity: TypeAlias = Literal["none", "warning", "severe", "critical"]
Action: TypeAlias = Literal["none", "watch", "diagnose", "halve", "pause", "retrain"]

SIGNALS: Final[tuple[Signal, ...]] = ("psi", "ic", "sharpe")
SEVERITIES: Final[tuple[Severity, ...]] = ("none", "warning", "severe", "critical")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One classic row: the last ``num_days`` values all beyond ``threshold`` (above it for PSI, below it otherwise)."""

    signal: Signal
    severity: Severity
    threshold: float
    num_days: int

    def broken_by(self, values: tuple[float, ...]) -> bool:
        """Whether the newest ``num_days`` values, all of them there, break the rule."""
        newest = values[-self.num_days :]
        return len(newest) == self.num_days and all(beyond(self.signal, value, self.threshold) for value in newest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What is done, and what a person does next."""

    action: Action
    next_step: str


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The daily values of one signal, oldest first, and the value that only drift goes beyond (None: not calibrated).

    NaN is a day on which the signal can't be computed.
    """

    signal: Signal
    values: tuple[float, ...]
    calibrated_threshold: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """The classic severity, the action that both tests support, and why, in words."""

    severity: Severity
    action: Action
    why: str


RULES: Final = (
    Rule(signal="psi", severity="warning", threshold=0.10, num_days=1),
    Rule(signal="psi", severity="severe", threshold=0.25, num_days=1),
    Rule(signal="ic", severity="warning", threshold=0.02, num_days=5),
    Rule(signal="ic", severity="severe", threshold=0.01, num_days=1),
    Rule(signal="ic", severity="critical", threshold=0.0, num_days=3),
    Rule(signal="sharpe", severity="warning", threshold=0.5, num_days=10),
    Rule(signal="sharpe", severity="severe", threshold=0.0, num_days=5),
)

HEALTHY: Final = Response(action="none", next_step="nothing to do")
RESPONSES: Final[Mapping[tuple[Signal, Severity], Response]] = {
    ("psi", "none"): HEALTHY,
    ("psi", "warning"): Response(action="watch", next_step="monitor the feature"),
    ("psi", "severe"): Response(action="retrain", next_step="retrain on data that has the shift"),
    # No threshold leads here: the feature that a model was trained on has stopped coming.
    ("psi", "critical"): Response(action="diagnose", next_step="check the feature's source, it has stopped coming"),
    ("ic", "none"): HEALTHY,
    ("ic", "warning"): Response(action="diagnose", next_step="check the feature calculation"),
    ("ic", "severe"): Response(action="halve", next_step="reduce the position by 50% and start diagnostics"),
    ("ic", "critical"): Response(action="pause", next_step="pause the strategy for a manual review"),
    ("sharpe", "none"): HEALTHY,
    ("sharpe", "warning"): Response(action="diagnose", next_step="check the market's conditions"),
    ("sharpe", "severe"): Response(action="halve", next_step="reduce the position and prepare retraining"),
    # No rule leads here; the table is total, and a worse Sharpe is answered no more mildly than a bad one.
    ("sharpe", "critical"): Response(action="halve", next_step="reduce the position and prepare retraining"),
}


def beyond(signal: Signal, value: float, threshold: float) -> bool:
    """Whether a value is on the bad side of a threshold; NaN never is."""
    return value > threshold if signal == "psi" else value < threshold


def classic(signal: Signal, values: tuple[float, ...]) -> Severity:
    """The worst classic row that the daily values break."""
    broken = [rule.severity for rule in RULES if rule.signal == signal and rule.broken_by(values)]
    return max(broken, key=SEVERITIES.index, default="none")


def respond(history: History) -> Alert:
    """The alert of the newest day, from the values up to it inclusive."""
    newest = history.values[-1] if history.values else math.nan
    if math.isnan(newest):
        return _unknown(history.signal)
    severity = classic(history.signal, history.values)
    response = RESPONSES[history.signal, severity]
    name = {"psi": "PSI", "ic": "IC", "sharpe": "Sharpe"}[history.signal]
    if severity == "none":
        return Alert(severity="none", action="none", why=f"{name} {newest:.3f} breaks no rule")
    said = f"{name} {newest:.3f} is {severity} by the classic rule ({_rule_in_words(history.signal, severity)})"
    if history.calibrated_threshold is None:
        return Alert(severity=severity, action="watch", why=f"{said}; too little history to calibrate, so only watch")
    normal = f"{history.calibrated_threshold:.3f}"
    if not beyond(history.signal, newest, history.calibrated_threshold):
        why = f"{said}, but it reaches {normal} without any drift: watch"
        return Alert(severity=severity, action="watch", why=why)
    why = f"{said} and beyond {normal}, what it reaches without drift: {response.next_step}"
    return Alert(severity=severity, action=response.action, why=why)


def _unknown(signal: Signal) -> Alert:
    """A day without a value: for a feature that is an alarm, for an outcome it is a matter of waiting."""
    if signal == "psi":
        response = RESPONSES["psi", "critical"]
        why = f"PSI can't be computed, most or all of the feature's values are missing: {response.next_step}"
        return Alert(severity="critical", action=response.action, why=why)
    return Alert(severity="none", action="none", why="too few outcomes for a value yet")


def _rule_in_words(signal: Signal, severity: Severity) -> str:
    rule = next(rule for rule in RULES if (rule.signal, rule.severity) == (signal, severity))
    days = f" for {rule.num_days} consecutive days" if rule.num_days > 1 else ""
    return f"{'>' if signal == 'psi' else '<'} {rule.threshold:.2f}{days}"
