"""The commands about stages: promote, demote, rollback, history, audit, shadow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.command import Json, command_settings, echo, table
from flows.console import make_console
from flows.cycle import CycleConfig, Policy
from flows.evaluate_command import LiveMarket

if TYPE_CHECKING:
    from flows.stages import Decision, Desk
    from training.rating.promotion import Stage, StageChange

Variant = Annotated[str, typer.Argument(metavar="VARIANT", help="Such as lstm-l30-technical-h64.")]
By = Annotated[str, typer.Option("--by", help="Who decides; it is on record.")]
Reason = Annotated[str, typer.Option(help="Why; it is on record.")]
OfMarket = Annotated[str | None, typer.Option("--market", help="Where several markets have the variant, which.")]
ByPolicy = Annotated[
    Policy, typer.Option(envvar="PERENNIAL_POLICY", help="Against a gate a person may act under manual or advisory.")
]

audit = typer.Typer(no_args_is_help=True, help="The log of every change of stage, and whether it is whole.")
_DEFAULTS = CycleConfig()
_POLICY = _DEFAULTS.policy
_STAGES: dict[str, Stage] = {
    "none": "None",
    "staging": "Staging",
    "production": "Production",
    "archived": "Archived",
}


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (promote, demote, rollback, history, shadow):
        app.command()(command)
    app.add_typer(audit, name="audit")


def promote(
    variant: Variant,
    by: By,
    reason: Reason,
    to: Annotated[Literal["staging", "production"] | None, typer.Option(help="Where to; one stage up.")] = None,
    allocation: Annotated[float | None, typer.Option(min=0, max=1, help="Its share of the stage's capital.")] = None,
    market: OfMarket = None,
    policy: ByPolicy = _POLICY,
) -> None:
    """Put a variant one stage up, with the version that it holds or its newest; what the gates said is on record."""

    def move(desk: Desk, decision: Decision) -> StageChange:
        from flows.stages import promote

        return promote(desk, variant, decision, to=_stage(to), allocation=allocation)

    _decide(move, variant, by=by, reason=reason, market=market, policy=policy)


def demote(
    variant: Variant,
    by: By,
    reason: Reason,
    to: Annotated[Literal["staging", "none", "archived"] | None, typer.Option(help="Where to; out of trading.")] = None,
    market: OfMarket = None,
    policy: ByPolicy = _POLICY,
) -> None:
    """Take a variant out of trading: to the archive from Production, to evaluation only from Staging."""

    def move(desk: Desk, decision: Decision) -> StageChange:
        from flows.stages import demote

        return demote(desk, variant, decision, to=_stage(to))

    _decide(move, variant, by=by, reason=reason, market=market, policy=policy)


def rollback(variant: Variant, by: By, reason: Reason, market: OfMarket = None, policy: ByPolicy = _POLICY) -> None:
    """Bring back the stage and version that a variant had before; once more goes further back."""

    def move(desk: Desk, decision: Decision) -> StageChange:
        from flows.stages import rollback

        return rollback(desk, variant, decision)

    _decide(move, variant, by=by, reason=reason, market=market, policy=policy)


def history(
    variant: Annotated[str | None, typer.Argument(metavar="[VARIANT]", help="All, unless one is named.")] = None,
    market: OfMarket = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Every change of stage: when, which version, from where to where, by whom and why."""
    settings = command_settings()
    from flows.stages import history

    rows = history(settings, variant=variant, market=market)
    if as_json:
        echo(rows)
    elif rows:
        shown = ("market", "variant", "version", "from", "to", "allocation", "actor", "reason")
        changes = [{"time": _minute(row["time"])} | {name: row[name] for name in shown} for row in rows]
        make_console().print(table(f"{len(rows)} changes, times in UTC", changes))
    else:
        make_console().print("No stage was ever changed.")


def shadow(
    market: LiveMarket = None,
    interval: Annotated[str, typer.Option(help="The bars to use, such as 1d or 1h.")] = _DEFAULTS.interval,
    horizon: Annotated[int, typer.Option(min=1, help="Bars ahead that are forecast.")] = _DEFAULTS.horizon,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Show whether a challenger on paper has shown itself better than Production; look as often as you like."""
    settings = command_settings()
    from flows.shadow import plain, render, shadow_now
    from flows.steps.live import the_market

    market = market or the_market(settings, interval=interval, horizon=horizon)
    config = CycleConfig(market=market, interval=interval, horizon=horizon)
    found = shadow_now(settings, config, now=datetime.now(UTC))
    if as_json:
        echo(plain(found))
    else:
        render(make_console(), found)


@audit.command("verify")
def verify_audit(as_json: Json = False) -> None:  # noqa: FBT002
    """Check every row of the audit log, and its end; the exit status is 1 where one was edited or is gone."""
    settings = command_settings()
    from flows.stages import verify_log

    report = verify_log(settings)
    if as_json:
        echo({**dataclasses.asdict(report), "ok": report.ok})
    elif report.ok:
        make_console().print(f"All {report.num_rows} rows are as they were written.")
    else:
        make_console().print(f"Row {report.first_bad} of {report.num_rows}: {report.why}", style="red", markup=False)
    raise typer.Exit(0 if report.ok else 1)


@audit.command("accept")
def accept_audit(by: By, reason: Reason) -> None:
    """Go on from the end of the log as it is, after a backup was restored; who decided that is on record."""
    settings = command_settings()
    from flows.stages import Decision, accept_log

    row = accept_log(settings, Decision(by=by, reason=reason, now=datetime.now(UTC)))
    make_console().print(f"The log goes on with row {row.seq}.")


def _decide(
    move: Callable[[Desk, Decision], StageChange],
    variant: str,
    *,
    by: str,
    reason: str,
    market: str | None,
    policy: Policy,
) -> None:
    settings = command_settings()
    from flows.stages import Decision, open_desk

    with open_desk(settings, variant, market=market, policy=policy) as desk:
        change = move(desk, Decision(by=by, reason=reason, now=datetime.now(UTC)))
    make_console().print(
        f"{change.variant}, version {change.version}: {change.from_} -> {change.to}, {change.allocation:.1%} of the "
        "stage's capital",
        markup=False,
    )


def _minute(time: str) -> str:
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M}"


def _stage(name: str | None) -> Stage | None:
    return _STAGES[name] if name else None
