"""Documents of outside sources: from a file or an address to columns of text, and from text to typed columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pandas as pd

from feature_repo.connectors.base import ConnectorError, Landed, MalformedError, Runtime
from feature_repo.connectors.landing import Arrival, Extent, as_text, land
from feature_repo.connectors.web import Web
from feature_repo.market.parsing import parse_numbers

T = TypeVar("T")


def read_document(where: str, read: Callable[[bytes], T], *, web: Web, runtime: Runtime) -> tuple[T, datetime]:
    """The document at a path or an ``http(s)`` address as ``read`` understands it, and when it arrived."""
    if where.startswith(("http://", "https://")):
        return web.get(where, read), runtime.clock()
    try:
        content = Path(where).expanduser().read_bytes()
    except OSError as error:
        raise ConnectorError(f"{where} does not open: {error}; give a file, or an address with http(s)://") from error
    try:
        return read(content), runtime.clock()
    except MalformedError as error:
        raise ConnectorError(f"{where}: {error}; get the file again, or mend it") from error


def land_document(
    into: Path, table: str, rows: pd.DataFrame, *, arrived: datetime, extent: Extent = "rows", lag: timedelta | None
) -> tuple[Landed, int]:
    """Land a document's rows but those of what is not over yet, which are counted."""
    unclosed = pd.to_datetime(rows["event_time"], utc=True, errors="coerce", format="ISO8601") > arrived
    landed = land(into, table, [Arrival(rows=rows[~unclosed], ingest_time=arrived, extent=extent)], lag=lag)
    return landed, int(unclosed.sum())


def read_csv(content: bytes) -> pd.DataFrame:
    """A CSV with a header as columns of text, nothing interpreted; a line of another length is malformed."""
    try:
        lines = [line for line in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MalformedError(f"it is no CSV in UTF-8, or cut off: {error}") from error
    if not lines:
        raise MalformedError("it is empty, without even a header")
    header, *rows = lines
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise MalformedError(f"its header has {twice} more than once")
    broken = [number for number, row in enumerate(rows, start=2) if len(row) != len(header)]
    if broken:
        raise MalformedError(
            f"{len(broken)} lines, such as line {broken[0]}, have not the {len(header)} fields of the header: "
            "it is cut off or broken"
        )
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in zip(header, columns, strict=True)})


def numbers_or_text(column: pd.Series) -> pd.Series:
    """A column as float64, or as text where a cell is neither a number nor empty."""
    numbers, (unread, _infinite) = parse_numbers(column)
    return column.astype(str).where(column.notna(), None) if unread[1].any() else numbers


def times_or_text(times: pd.Series, said: pd.Series) -> pd.Series:
    """Aware UTC microseconds, or ISO text with ``said`` in the place of what did not read."""
    times = times.dt.tz_convert("UTC").dt.as_unit("us")
    unread = times.isna() & said.notna()
    return as_text(times).where(~unread, said.astype(str)) if unread.any() else times
