"""How Perennial looks in a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_LOG_WIDTH = 140  # of a file or a pipe, which has none


def make_console(*, stderr: bool = False) -> Console:
    """The console of one command."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _LOG_WIDTH)


def progress(console: Console) -> Progress:
    """One bar a long step: what it does, how far, how long so far."""
    return Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}", markup=True),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
