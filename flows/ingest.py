"""`perennial ingest`: what outside sources say, landed in a market directory."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.console import make_console

if TYPE_CHECKING:
    from feature_repo.connectors.base import Connector, Outcome, Runtime

_GAPS_SHOWN = 5


class IngestError(ValueError):
    """An option that does not read; the message says what, got, allowed."""


app = typer.Typer(no_args_is_help=True, help="Land bars, trades, metrics and indices in a market directory.")

Into = Annotated[Path, typer.Option("--into", help="The market directory to land in; made if it is not there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Lag = Annotated[
    str | None,
    typer.Option("--published-after", help="Date a history by this lag, such as 13h, instead of by its arrival."),
]
Symbols = Annotated[list[str], typer.Argument(help="Symbols, such as BTC/USD, or BTC/USD=BTC to name the entity BTC.")]
Since = Annotated[datetime | None, typer.Option(help="Where a history begins (UTC).")]
Files = Annotated[list[str], typer.Argument(help="Files, or addresses with http(s)://.")]


@app.command("bars")
def bars(
    exchange: Annotated[str, typer.Argument(help="An exchange of ccxt, such as kraken.")],
    symbols: Symbols,
    into: Into,
    interval: Annotated[str, typer.Option(help="The bars' interval, such as 1d or 1h.")] = "1d",
    since: Since = None,
    repair: Annotated[bool, typer.Option("--repair", help="Ask again for every bar that is missing.")] = False,  # noqa: FBT002
    published_after: Lag = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Bars of an exchange: from the newest landed one on."""
    from feature_repo.connectors.exchange import ExchangeBars

    connector = ExchangeBars(
        exchange=exchange,
        symbols=entities(symbols),
        interval=interval,
        since=since and since.replace(tzinfo=UTC),
        repair=repair,
        lag=read_lag(published_after),
    )
    show(connector, into, as_json=as_json)


@app.command("trades")
def trades(
    exchange: Annotated[str, typer.Argument(help="An exchange of ccxt, such as binance.")],
    symbols: Symbols,
    into: Into,
    since: Since = None,
    published_after: Lag = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Trades of an exchange: from the newest landed one on."""
    from feature_repo.connectors.exchange import ExchangeTrades

    connector = ExchangeTrades(
        exchange=exchange,
        symbols=entities(symbols),
        since=since and since.replace(tzinfo=UTC),
        lag=read_lag(published_after),
    )
    show(connector, into, as_json=as_json)


@app.command("equities")
def equities(
    files: Files,
    into: Into,
    symbol: Annotated[str | None, typer.Option(help="Whose bars they are, where no column says so.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="A header by what it is, such as close=Last.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="A header to leave out.")] = None,
    day_format: Annotated[str | None, typer.Option(help="Format of days that are not ISO 8601.")] = None,
    close: Annotated[str, typer.Option(help="When the session ends.")] = "16:00",
    zone: Annotated[str, typer.Option(help="The session's time zone.")] = "America/New_York",
    published_after: Lag = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Daily bars from CSV or Parquet files with Date, Open, High, Low, Close, Volume, Symbol."""
    from feature_repo.connectors.equities import Equities

    connector = Equities(
        where=tuple(files),
        entity_key=symbol,
        columns=pairs(column or []),
        ignore=tuple(ignore or ()),
        day_format=day_format,
        close=read_close(close),
        zone=zone,
        lag=read_lag(published_after),
    )
    show(connector, into, as_json=as_json)


@app.command("coin-metrics")
def coin_metrics(
    files: Files,
    into: Into,
    metric: Annotated[list[str] | None, typer.Option(help="A column to land; all by default.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="What the files lack was withdrawn.")] = False,  # noqa: FBT002
    published_after: Lag = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Daily on-chain metrics from CSV files in the column layout of Coin Metrics."""
    from feature_repo.connectors.coin_metrics import CoinMetrics

    lag = read_lag(published_after)
    show(CoinMetrics(where=tuple(files), metrics=tuple(metric or ()), whole=whole, lag=lag), into, as_json=as_json)


@app.command("fear-greed")
def fear_greed(
    into: Into,
    source: Annotated[str | None, typer.Option(help="A file or an address of the same layout.")] = None,
    published_after: Lag = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """The crypto fear-and-greed index of alternative.me."""
    from feature_repo.connectors.fear_greed import URL, FearGreed

    show(FearGreed(where=source or URL, lag=read_lag(published_after)), into, as_json=as_json)


def show(connector: Connector, into: Path, *, as_json: bool) -> None:
    """Run a connector, and print what each series brought and what validation keeps aside."""
    outcomes = []
    for outcome in connector.ingest(into, runtime=real_runtime()):
        outcomes.append(outcome)
        if not as_json:
            make_console(stderr=True).print(f"{outcome.source}: {outcome.landed.num_written} rows landed", style="dim")
    refused = quarantined(into, sorted({outcome.table for outcome in outcomes}), now=datetime.now(UTC))
    if as_json:
        said = {"outcomes": [dataclasses.asdict(outcome) for outcome in outcomes], "quarantined": refused}
        typer.echo(json.dumps(said, indent=2, default=str))
        return
    console = make_console()
    console.print(_table(outcomes))
    for line in notes(outcomes, refused):
        console.print(line, style="yellow", markup=False)


def real_runtime() -> Runtime:
    """The machine's clock and sleep, and jitter that no other machine has."""
    import numpy as np

    from feature_repo.connectors.base import Runtime

    return Runtime(clock=lambda: datetime.now(UTC), sleep=time.sleep, rng=np.random.default_rng())


def entities(symbols: Sequence[str]) -> dict[str, str]:
    """``BTC/USD=BTC`` is the entity BTC, ``BTC/USD`` is its own."""
    return {symbol: entity or symbol for symbol, _, entity in (text.partition("=") for text in symbols)}


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """``close=Last`` as a mapping."""
    if wrong := [text for text in texts if "=" not in text]:
        raise IngestError(f"{wrong} are no pairs; write NAME=HEADER, such as close=Last")
    return {name: header for name, _, header in (text.partition("=") for text in texts)}


def read_close(text: str) -> dt.time:
    """A time of day such as ``16:00``."""
    try:
        return dt.time.fromisoformat(text)
    except ValueError:
        raise IngestError(f"{text!r} is no time of day; write it as 16:00") from None


def read_lag(text: str | None) -> timedelta | None:
    """A duration such as ``13h`` or ``15min``."""
    if text is None:
        return None
    import pandas as pd

    try:
        lag: timedelta = pd.Timedelta("no unit" if text.strip().isdigit() else text).to_pytimedelta()
    except ValueError:
        raise IngestError(f"{text!r} is no duration; give a number and a unit, such as 13h or 15min") from None
    if lag < timedelta(0):
        raise IngestError(f"a lag of {text} would date rows before what they describe; give one that is not negative")
    return lag


def quarantined(into: Path, tables: Sequence[str], *, now: datetime) -> list[dict[str, Any]]:
    """How many rows of these tables validation keeps aside, by reason."""
    from feature_repo.connectors.landing import read_landed
    from feature_repo.market.validation import validate

    counts = []
    for table in tables:
        path = into / f"{table}.parquet"
        if path.exists():
            reasons = validate(table, read_landed(path, table), now=now, lag=None).quarantine["reason"].value_counts()
            counts += [{"table": table, "reason": str(text), "num_rows": int(num)} for text, num in reasons.items()]
    return counts


def notes(outcomes: Sequence[Outcome], refused: Sequence[dict[str, Any]]) -> list[str]:
    """What a person should know besides the counts."""
    lines = [f"{outcome.source}: {note}" for outcome in outcomes for note in outcome.notes]
    for outcome in outcomes:
        shown = outcome.gaps[:_GAPS_SHOWN]
        lines += [f"{outcome.source}: {gap.num_bars} bars missing, ends {gap.first} to {gap.last}" for gap in shown]
        if outcome.gaps:
            lines.append(f"{outcome.source}: {len(outcome.gaps)} gaps in all; --repair asks for them again")
    lines += [f"{row['table']}: {row['num_rows']} rows in quarantine: {row['reason']}" for row in refused]
    return lines


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Landed", title_justify="left")
    for name in ("source", "table", "new", "restated", "withdrawn", "known", "contradicted", "unclosed", "missing"):
        table.add_column(name, overflow="fold", justify="left" if name in ("source", "table") else "right")
    for outcome in outcomes:
        num_missing = sum(gap.num_bars for gap in outcome.gaps)
        counts = (*dataclasses.astuple(outcome.landed), outcome.num_unclosed, num_missing)
        table.add_row(outcome.source, outcome.table, *(str(count) for count in counts))
    return table
