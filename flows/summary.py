"""The end of a run as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cycle import CycleSummary, RankedVariant

_STYLE = {"Production": "bold green", "Staging": "cyan", "None": "dim"}
_COLUMNS = (
    ("Sharpe net", "sharpe_net", "{:+.2f}"),
    ("residual", "sharpe_residual", "{:+.2f}"),
    ("return/y", "ann_return_net", "{:+.1%}"),
    ("max DD", "max_drawdown", "{:.1%}"),
    ("IC", "ic", "{:+.3f}"),
    ("turnover/y", "turnover_ann", "{:.0f}x"),
    ("days", "num_days", "{:.0f}"),
    ("score", "score", "{:+.2f}"),
)


def render(console: Console, summary: CycleSummary) -> None:
    """Print the summary: data, tuning, ranking, stages and why, drift, reports, what to type next."""
    console.rule(f"[bold]{summary.market}[/] · cycle {summary.cycle_id}")
    console.print(_facts(summary.facts))
    for pipeline, reason in summary.not_applicable.items():
        console.print(f"[yellow]not applicable[/] {pipeline}: {reason}")
    console.print(_tuning(summary.tuned))
    console.print(_ranking(summary.ranking))
    for variant, reason in summary.failed.items():
        console.print(f"[red]failed[/] {variant}: {reason}")
    _stages(console, summary)
    if summary.drift:
        console.print(_drift(summary.drift))
    console.print(_next_steps(summary.reports))
    console.print(f"Done in {summary.seconds:.0f} s.")


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def _tuning(tuned: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title="Hyperparameters, picked by Optuna on validation before any test window", title_justify="left")
    for column in ("architecture", "trials", "pruned", "failed", "validation IC", "parameters"):
        table.add_column(column)
    for row in tuned:
        table.add_row(
            *(row[column] for column in ("architecture", "trials", "pruned", "failed", "validation IC", "parameters"))
        )
    return table


def _ranking(ranking: Sequence[RankedVariant]) -> Table:
    table = Table(title="Ranking: out of sample, net of costs, annualised", title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("variant", no_wrap=True)
    table.add_column("stage")
    for title, _, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for row in ranking:
        style = _STYLE.get(row.stage, "")
        cells = [form.format(row.metrics[name]) for _, name, form in _COLUMNS]
        table.add_row(str(row.rank), row.variant, f"[{style}]{row.stage}[/]" if style else row.stage, *cells)
    return table


def _stages(console: Console, summary: CycleSummary) -> None:
    for name, text in summary.gate.items():
        console.print(f"[bold]{name}[/]: {escape(text)}")
    production = [row for row in summary.ranking if row.stage == "Production"]
    staging = [row for row in summary.ranking if row.stage == "Staging"]
    if not production:
        console.print("[bold yellow]No variant deserves Production.[/] Nothing trades live; the reasons are below.")
    table = Table(title=f"Stages: {len(production)} in Production, {len(staging)} in Staging", title_justify="left")
    for column in ("variant", "stage", "allocation", "why"):
        table.add_column(column, no_wrap=column == "variant")
    for row in summary.ranking:
        table.add_row(row.variant, row.stage, f"{row.allocation:.0%}" if row.allocation else "-", row.why)
    console.print(table)


def _drift(drift: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title="Drift: the newest sessions against the training window", title_justify="left")
    columns = ("what", "signal", "value", "classic", "calibrated", "action")
    for column in columns:
        table.add_column(column)
    for row in drift:
        table.add_row(*(row[column] for column in columns))
    return table


def _next_steps(reports: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, place in reports.items():
        table.add_row(f"[bold]{name}[/]", place)
    table.add_row("[bold]next[/]", "perennial up      start the MLflow, Prefect and Evidently pages and the signal API")
    table.add_row("", "perennial status  what is trading now")
    table.add_row("", "perennial run --market DIR  the same on a market of your own (docs/markets.md)")
    return table
