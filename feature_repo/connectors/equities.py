"""Daily bars of equities from a CSV or Parquet file in one of the common shapes.

A header is known by its letters alone (``Adj Close``, ``adj_close`` and ``ADJ CLOSE`` are one). Prices are kept as they
were traded: an adjusted close changes all its past at every dividend, so it is left out, and adjustments belong in
``corporate_actions``. A bar ends when its session closes; early closes are not known here, so a half day's bar is dated
later than it ended, never earlier.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import time, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.connectors.base import ConnectorError, MalformedError, Outcome, Runtime
from feature_repo.connectors.documents import land_document, numbers_or_text, read_csv, read_document, times_or_text
from feature_repo.connectors.web import Web
from feature_repo.market.calendar import NEW_YORK

TABLE: Final = "bars_1d"
NUMBERS: Final = ("open", "high", "low", "close", "volume")
HEADERS: Final[Mapping[str, tuple[str, ...]]] = {
    "day": ("date", "day", "time", "timestamp", "datetime"),
    "entity_key": ("entitykey", "symbol", "ticker", "name"),
    **{name: (name,) for name in NUMBERS},
}
LEFT_OUT: Final = ("adjclose", "adjustedclose", "adjclosingprice")
_DAY_TEXT: Final = r"^(\d{4}-\d{2}-\d{2})(?:$|[T ])"


@dataclass(frozen=True, kw_only=True, slots=True)
class Equities:
    """Lands files of daily bars in ``bars_1d``.

    Parameters
    ----------
    where
        CSV or Parquet files, or addresses of CSV files.
    entity_key
        Whose bars they are, where no column says so.
    columns
        Headers by what they are (:data:`HEADERS`), for those that are not known by their name.
    ignore
        Headers to leave out.
    day_format
        The ``strptime`` format of days that are not ISO 8601, such as ``%m/%d/%Y``; none is guessed.
    close, zone
        When and where the session ends.
    lag
        Dates a history (see :func:`feature_repo.connectors.landing.land`).
    """

    where: tuple[str, ...]
    entity_key: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    day_format: str | None = None
    close: time = time(16)
    zone: str = NEW_YORK
    lag: timedelta | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(HEADERS))
        if unknown:
            raise ConnectorError(f"no column of a bar is called {unknown}; a header can be given for {list(HEADERS)}")
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ConnectorError(f"there is no time zone {self.zone!r}; give one such as {NEW_YORK}") from None

    def ingest(self, into: Path, *, runtime: Runtime) -> Iterator[Outcome]:
        """Land the files one after another; a session that is not over when the file is read is left for later."""
        web = Web(runtime)
        for where in self.where:
            read = _read_parquet if where.endswith(".parquet") else read_csv
            said, arrived = read_document(where, read, web=web, runtime=runtime)
            rows = self._rows(where, said)
            landed, num_unclosed = land_document(into, TABLE, rows, arrived=arrived, lag=self.lag)
            yield Outcome(source=f"equities {where}", table=TABLE, landed=landed, num_unclosed=num_unclosed)

    def _rows(self, where: str, said: pd.DataFrame) -> pd.DataFrame:
        header = self._headers(where, list(said.columns))
        entity = said[header["entity_key"]].astype(str) if "entity_key" in header else self.entity_key
        numbers = {name: numbers_or_text(said[header[name]]) for name in NUMBERS if name in header}
        ends = self._ends(said[header["day"]])
        return pd.DataFrame({"entity_key": entity, "interval": "1d", "event_time": ends}).assign(**numbers)

    def _headers(self, where: str, there: list[str]) -> dict[str, str]:
        """The file's header of each column of a bar."""
        absent = sorted({*self.columns.values(), *self.ignore} - set(there))
        if absent:
            raise ConnectorError(f"{where} has no column {absent}; it has {there}")
        found: dict[str, str] = dict(self.columns)
        unknown: list[str] = []
        for header in there:
            if header in self.columns.values() or header in self.ignore or _letters(header) in LEFT_OUT:
                continue
            name = next((name for name, known in HEADERS.items() if _letters(header) in known), None)
            if name is None:
                unknown.append(header)
            elif name in found:
                raise ConnectorError(f"{where} has two columns for {name}, {found[name]!r} and {header!r}: ignore one")
            else:
                found[name] = header
        if unknown:
            raise ConnectorError(
                f"{where} has columns that are not known: {unknown}; known are {list(HEADERS)}: say which of them "
                "each is, or ignore it"
            )
        self._require(where, there, found)
        return found

    def _require(self, where: str, there: list[str], found: Mapping[str, str]) -> None:
        missing = [name for name in ("day", "close") if name not in found]
        if missing:
            raise ConnectorError(f"{where} has no column for {missing}; it has {there}: say which one it is")
        if "entity_key" in found and self.entity_key is not None:
            raise ConnectorError(
                f"{where} has symbols in {found['entity_key']!r}: give no symbol, or ignore that column"
            )
        if "entity_key" not in found and self.entity_key is None:
            raise ConnectorError(
                f"{where} has no column of symbols; it has {there}: give the symbol, or say which it is"
            )

    def _ends(self, said: pd.Series) -> pd.Series:
        """When each day's session ended; a time of day in the file is not looked at, its date is."""
        if said.dtype.kind == "M":
            days = said.dt.tz_localize(None).dt.normalize()
        elif self.day_format is not None:
            days = pd.to_datetime(said, format=self.day_format, errors="coerce")
        else:
            written = said.astype(str).str.extract(_DAY_TEXT, expand=False)
            days = pd.to_datetime(written, format="%Y-%m-%d", errors="coerce")
        into_day = timedelta(hours=self.close.hour, minutes=self.close.minute)
        ends = (days.dt.as_unit("us") + into_day).dt.tz_localize(self.zone)
        return times_or_text(ends, said)


def _letters(header: str) -> str:
    return "".join(letter for letter in str(header).lower() if letter.isalnum())


def _read_parquet(content: bytes) -> pd.DataFrame:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise MalformedError(f"it does not open as Parquet: {error}") from error
    return table.to_pandas(ignore_metadata=True)
