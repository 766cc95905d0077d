"""How Perennial looks in a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from math import ceil
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

_LOG_WIDTH = 140  # of a file or a pipe, which has none
_RATE_OVER_S = 120.0  # fits take from milliseconds to minutes, and those found finished come all at once


class Ended(Protocol):
    """Takes note of a variant's fit that ended."""

    def __call__(self, variant: str, *, ok: bool) -> None: ...


def make_console(*, stderr: bool = False) -> Console:
    """The console of one command."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _LOG_WIDTH)


def progress(console: Console, *, clock: Callable[[], float] = time.monotonic) -> Progress:
    """One line a long step: what it does, how far, how fast, how long still. Only its end shows off a terminal."""
    return Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}", markup=True),
        BarColumn(bar_width=30),
        _State(),
        console=console,
        get_time=clock,
        speed_estimate_period=_RATE_OVER_S,
    )


@contextmanager
def phase(bars: Progress, title: str, total: int = 1) -> Iterator[Callable[[object], None]]:
    """A line for a phase; gives what advances it by one."""
    bar = bars.add_task(title, total=total)
    yield lambda _: bars.advance(bar)
    bars.update(bar, completed=total)


@contextmanager
def variants_phase(bars: Progress, title: str, num_fits: Mapping[str, int]) -> Iterator[Ended]:
    """A line for the training of variants, of so many fits each; gives what tells it of each fit that ended.

    A variant is done with its last fit, and failed if one of them did.
    """
    bar = bars.add_task(title, total=len(num_fits), done=0, failed=0)
    left, failed, guard = dict(num_fits), set[str](), threading.Lock()

    def ended(variant: str, *, ok: bool) -> None:
        with guard:
            left[variant] -= 1
            failed.update([] if ok else [variant])
            done = sum(not fits for fits in left.values())
            bars.update(bar, advance=1 / num_fits[variant], done=done, failed=len(failed))

    yield ended
    bars.update(bar, completed=len(num_fits))


class _State(ProgressColumn):
    """Counts, rate and the time left; in the end the time it took."""

    def render(self, task: Task) -> Text:
        return Text("  ").join([*_counts(task), *_pace(task)])


def _counts(task: Task) -> Iterator[Text]:
    if "failed" in task.fields:
        failed = task.fields["failed"]
        yield Text.assemble(f"done {task.fields['done']} ", (f"failed {failed}", "red" if failed else ""))
    elif task.total != 1:
        yield Text(f"{task.completed:.0f}/{task.total:.0f}")


def _pace(task: Task) -> Iterator[Text]:
    took_s = (task.finished_time if task.finished else task.elapsed) or 0.0
    over_all = task.completed / took_s if took_s else 0.0
    speed = over_all if task.finished else task.speed or over_all
    if task.total == 1 or not speed:
        yield Text(f"{timedelta(seconds=round(took_s))}")
        return
    yield Text(f"{speed:.1f}/s" if speed >= 1 else f"{speed * 60:.1f}/min")
    left_s = (task.remaining or 0.0) / speed
    yield Text(f"{timedelta(seconds=round(took_s))}" if task.finished else f"{timedelta(seconds=ceil(left_s))} left")
