"""Monthly partitions of ``feature_rows``, made when the first row of a month comes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeAlias

import psycopg
from psycopg import sql

Month: TypeAlias = tuple[int, int]

_LOCK = 7_305_081_944  # any constant: all that make partitions take the same advisory lock
_IS_PARTITIONED = "SELECT relkind = 'p' FROM pg_class WHERE oid = 'feature_rows'::regclass"
_MISSING = "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL"
# Attached rather than made in place: that would keep readers and writers of all other months out.
_MAKE = sql.SQL("CREATE TABLE {name} (LIKE feature_rows INCLUDING ALL)")
_ATTACH = sql.SQL("ALTER TABLE feature_rows ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})")


def month_of(time: datetime) -> Month:
    """Year and month in UTC."""
    utc = time.astimezone(UTC)
    return utc.year, utc.month


def ensure_months(connection: psycopg.Connection, months: Iterable[Month]) -> None:
    """Make the partitions that these months lack; safe when others do the same. Nothing to do in a hypertable."""
    names = {f"feature_rows_{year:04d}_{month:02d}": (year, month) for year, month in sorted(set(months))}
    if not _missing(connection, list(names)):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        partitioned = connection.execute(_IS_PARTITIONED).fetchone()
        if partitioned != (True,):
            return
        for name in _missing(connection, list(names)):
            start, end = _bounds(*names[name])
            parts = {"name": sql.Identifier(name), "start": sql.Literal(start), "end": sql.Literal(end)}
            connection.execute(_MAKE.format(**parts))
            connection.execute(_ATTACH.format(**parts))


def _missing(connection: psycopg.Connection, names: list[str]) -> list[str]:
    return [name for (name,) in connection.execute(_MISSING, [names])]


def _bounds(year: int, month: int) -> tuple[str, str]:
    """First moment of the month and of the next."""
    last = month == 12
    return f"{year:04d}-{month:02d}-01 00:00:00+00", f"{year + last:04d}-{1 if last else month + 1:02d}-01 00:00:00+00"
