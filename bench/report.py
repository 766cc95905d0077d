"""What every bench shares: a peer runs alone in its own process, and the result is a table or one JSON object."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contender's figures; ``seconds`` and ``peak_mb`` are None where it could not run, ``more`` adds columns."""

    name: str
    seconds: float | None
    peak_mb: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A figure and what it should be; nothing measured is a bar missed."""

    name: str
    got: float | None
    want: str
    ok: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A finished bench; ``facts`` are lines on data and checks."""

    bench: str
    rows: Sequence[Row]
    bars: Sequence[Bar]
    facts: Sequence[str] = ()

    def as_json(self) -> str:
        """One object: each row flat."""
        rows = [{"name": row.name, "seconds": row.seconds, "peak_mb": row.peak_mb, **row.more} for row in self.rows]
        bars = [asdict(bar) for bar in self.bars]
        return json.dumps({"bench": self.bench, "rows": rows, "bars": bars, "facts": list(self.facts)})


def at_least(name: str, got: float | None, limit: float) -> Bar:
    """A bar that ``got`` should reach."""
    return Bar(name=name, got=_rounded(got), want=f">= {limit:g}", ok=got is not None and got >= limit)


def at_most(name: str, got: float | None, limit: float) -> Bar:
    """A bar that ``got`` should stay below."""
    return Bar(name=name, got=_rounded(got), want=f"<= {limit:g}", ok=got is not None and got <= limit)


def ratio(above: float | None, below: float | None) -> float | None:
    """``above / below`` where both were measured."""
    return None if above is None or below is None else above / below


def median_seconds(action: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """Median time of ``runs`` calls, and what the last one returned."""
    times, result = [], None
    for _ in range(runs):
        result = None  # the previous result's memory is not this run's
        start = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - start)
    return median(times), result


def peak_mb() -> float:
    """Most memory that this process has held, in MB; ``getrusage`` would count its parent's, from before the exec."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)


def alone(module: str, *arguments: str) -> Any:
    """Run ``python -m module arguments`` and return the JSON of its last line."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def options(description: str | None) -> argparse.ArgumentParser:
    """The switches that every bench has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help="a smaller size, within 50 seconds")
    return parser


def progress(message: str) -> None:
    """Say what is running, apart from the result."""
    print(message, file=sys.stderr, flush=True)


def publish(report: Report, *, as_json: bool) -> int:
    """Print the report; the exit status is 1 where a bar was missed."""
    if as_json:
        print(report.as_json())
    else:
        _print_tables(report)
    return 0 if all(bar.ok for bar in report.bars) else 1


def _print_tables(report: Report) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    extra = list(dict.fromkeys(name for row in report.rows for name in row.more))
    rows = Table("contender", "seconds", "peak MB", *extra, title=f"bench {report.bench}", title_justify="left")
    for row in report.rows:
        rows.add_row(row.name, *(_shown(value) for value in (row.seconds, row.peak_mb, *map(row.more.get, extra))))
    bars = Table("bar", "got", "want", "")
    for bar in report.bars:
        bars.add_row(bar.name, _shown(bar.got), bar.want, "ok" if bar.ok else "MISSED")
    console.print(rows, bars, *report.facts, sep="\n")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
