"""What the commands share: the settings with the environment in order, tables, JSON."""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from flows.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

# `mlflow run` tells its child where to log; our runs are logged where our settings say
_MLFLOW_RUN = ("EXPERIMENT_ID", "EXPERIMENT_NAME", "REGISTRY_URI", "RUN_ID", "TRACKING_URI")
_LOOK_FOR_GARBAGE_AFTER: Final = 50_000  # new objects; Python's 700 cost 0.7 s of looking through imports
_COLOURS = {"up": "green", "down": "dim", "Production": "bold green", "Staging": "cyan"}


def run_alone(app: Callable[[], Any]) -> None:
    """Run the command line in a process that has nothing else to do, and end the process.

    Libraries leave millions of objects that live to the end; neither looking through them for garbage all the time nor
    taking them apart one by one at the end is worth the seconds it takes.
    """
    gc.set_threshold(_LOOK_FOR_GARBAGE_AFTER)
    status = 1

    def leave() -> None:
        with suppress(OSError):  # whoever read it has gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)  # the first to be registered is the last to be called: what libraries do at the end is done
    try:
        app()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def command_settings(**given: Any) -> Settings:
    """The settings, after putting the environment in order for the libraries that are imported later."""
    from flows.settings import quiet_environment, read_settings

    settings = read_settings(**given)
    for name in _MLFLOW_RUN:
        os.environ.pop(f"MLFLOW_{name}", None)
    os.environ.update(quiet_environment(settings))
    return settings


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of the same columns as a table to print."""
    made = Table(title=title, title_justify="left")
    for name in rows[0]:
        made.add_column(name.replace("_", " "), overflow="fold", no_wrap=name in ("variant", "id"))
    for row in rows:
        cells = [_cell(name, value) for name, value in row.items()]
        made.add_row(*(f"[{_COLOURS[cell]}]{cell}[/]" if cell in _COLOURS else cell for cell in cells))
    return made


def echo(content: Any) -> None:
    """Print as JSON."""
    typer.echo(json.dumps(content, indent=2))


def _cell(name: str, value: Any) -> str:
    if name == "allocation":
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
