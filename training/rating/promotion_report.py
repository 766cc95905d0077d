"""The promotion report: every variant, promoted, on paper or not placed, in plain words, each gate with its number."""

from __future__ import annotations

import html as escaping
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from training.rating.gates import AFTER_BETA, Verdict
from training.rating.judging import Judged

# Stage -> its heading; a stage that nobody is in is left out.
_HEADINGS: Final = {
    "Production": "Promoted: live",
    "Staging": "On paper",
    "None": "Not placed",
}
_GATES: Final = {
    "skill": "Skill: better than luck explains, of so many tried (StepM)",
    "track_record": "Track record: long enough for its Sharpe ratio",
    "leaks": "Leaks: nothing it learned from knew the future",
    "certificate": "Certificate: it can be rebuilt from what is recorded",
    "latency": "Latency: live answers within the budget",
    "drift": "Drift: its features and outcomes are what they were",
    "deflated_sharpe": "Deflated Sharpe ratio: better than the luckiest of so many",
    "spa": "Superior predictive ability: is there anything at all?",
    "overfitting": "Probability of backtest overfitting: does the best stay good?",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionReport:
    """What was decided: ``stages`` and ``reasons`` by variant, best rank first; ``facts`` say of what and when."""

    title: str
    facts: Mapping[str, str]
    judged: Judged
    stages: Mapping[str, str]
    reasons: Mapping[str, str]
    failed: Mapping[str, str]


def html(report: PromotionReport) -> str:
    """The report as one page that needs nothing from outside."""
    text = escaping.escape
    ranked = {stage: [name for name in report.reasons if report.stages[name] == stage] for stage in _HEADINGS}
    parts = [
        f"<h1>{text(report.title)}</h1>",
        _table(["", ""], report.facts.items()),
        *(f"<p>{text(line)}</p>" for line in summary(report)),
        "<h2>The search as a whole</h2>",
        _gate_table(report.judged.warnings),
        "<h2>What each gate said</h2>",
        _table(["gate", "passed", "refuses", "warns"], _tally(report.judged)),
        *(_variants(report, _HEADINGS[stage], names) for stage, names in ranked.items() if names),
    ]
    if report.failed:
        parts += [f"<h2>Failed ({len(report.failed)})</h2>", _table(["variant", "reason"], report.failed.items())]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{text(report.title)}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def summary(report: PromotionReport) -> list[str]:
    """How many were tried, what it took, and how many made it."""
    judged, gate = report.judged, report.judged.gate
    num_judged, num_live = int(gate.judged.sum()), sum(stage == "Production" for stage in report.stages.values())
    tried = (
        f"{gate.num_trials} variants were tried ({len(report.failed)} failed) after {judged.num_tuning_trials} tuning "
        f"trials; {num_judged or 'none'} have a track long enough to be judged"
    )
    if not num_judged:
        return [f"{tried}, which takes {gate.min_days} bars {AFTER_BETA}.", _promoted(num_live)]
    alone = judged.trials.num_trials == num_judged
    likeness = "no two of them alike enough to count as one" if alone else f"in {judged.trials.num_trials} groups alike"
    needed = gate.critical * np.sqrt(judged.periods_per_year)
    return [
        f"{tried}. By their returns they are {likeness}, with the tuning worth {judged.num_effective:.0f} trials.",
        f"On the {gate.num_days} bars they share, luck alone gives the best of them a residual Sharpe ratio of "
        f"{needed:.2f} in {gate.level:.1%} of cases: the level of one night, so that a year of nightly gates "
        f"promotes anyone by luck in at most {gate.year_level:.0%} of years. "
        f"{int(gate.superior.sum())} did better.",
        _promoted(num_live),
    ]


def _promoted(num_live: int) -> str:
    return f"{num_live or 'No'} variant{'' if num_live == 1 else 's'} promoted."


def _tally(judged: Judged) -> list[list[str]]:
    """How many variants each gate passed, refused and warned of."""
    said: dict[str, list[Verdict]] = {}
    for verdicts in judged.verdicts.values():
        for verdict in verdicts:
            said.setdefault(verdict.gate, []).append(verdict)
    return [
        [_GATES[gate], *(str(sum(_outcome(each) == how for each in all_)) for how in ("passed", "refuses", "warns"))]
        for gate, all_ in said.items()
    ]


def _variants(report: PromotionReport, heading: str, names: Sequence[str]) -> str:
    """A line each, which opens on the gates."""
    text = escaping.escape
    lines = [
        f"<details><summary><b>{text(name)}</b>: {text(report.reasons[name])}</summary>"
        f"{_gate_table(report.judged.verdicts.get(name, ()))}</details>"
        for name in names
    ]
    return f"<h2>{heading} ({len(names)})</h2>{''.join(lines)}"


def _gate_table(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [_GATES[each.gate], _outcome(each), _number(each.value), _number(each.threshold), each.why] for each in verdicts
    ]
    return _table(["gate", "", "number", "threshold", "evidence"], rows)


def _outcome(verdict: Verdict) -> str:
    if verdict.ok:
        return "passed"
    return "refuses" if verdict.veto else "warns"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = escaping.escape
    lines = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr>{lines}</table>"


def _number(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:,.4g}" if np.isfinite(value) else "none would do"


_STYLE: Final = (
    "body{font:14px system-ui;margin:2em;max-width:80em}table{border-collapse:collapse;margin:.5em 0 1em}"
    "td,th{padding:2px 10px;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}"
    "details{margin:.2em 0}summary{cursor:pointer}"
)
