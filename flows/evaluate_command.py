"""The command ``perennial evaluate``."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Annotated

import typer

from flows.command import Json, command_settings, echo
from flows.console import make_console
from flows.cycle import CycleConfig

_DEFAULTS = CycleConfig()

LiveMarket = Annotated[
    str | None,
    typer.Option(
        "--market",
        help="A built-in market, or a folder of your own data.",
        show_default="the only one with live fits",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)


def evaluate(
    market: LiveMarket = None,
    interval: Annotated[str, typer.Option(help="The bars to use, such as 1d or 1h.")] = _DEFAULTS.interval,
    horizon: Annotated[int, typer.Option(min=1, help="Bars ahead that are forecast.")] = _DEFAULTS.horizon,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Let every fitted variant, whatever its stage, forecast the bars that are new; missed ones are caught up.

    The exit status is 1 where a variant failed.
    """
    settings = command_settings()
    from flows.evaluate import evaluate_market, render
    from flows.steps.live import the_market

    market = market or the_market(settings, interval=interval, horizon=horizon)
    config = CycleConfig(market=market, interval=interval, horizon=horizon)
    done = evaluate_market(settings, config, clock=lambda: datetime.now(UTC))
    if as_json:
        echo(dataclasses.asdict(done))
    else:
        render(make_console(), done)
    if done.failed:
        raise typer.Exit(1)
