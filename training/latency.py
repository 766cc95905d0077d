"""The table ``evaluated_bars``: how long each live model took for each bar it forecast, and what that comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

NEWEST: Final = 252
"""Measurements that count, of each variant: a year of daily bars."""
FEWEST: Final = 5
"""With fewer of them nothing is said."""
_WRITE: Final = """
    INSERT INTO evaluated_bars (market, variant, model_version, event_time, measured_at, latency_ms, num_signals)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
_SILENT: Final = """
    SELECT variant, model_version, event_time FROM evaluated_bars
    WHERE market = %s AND event_time >= %s AND num_signals = 0
"""
_P99: Final = """
    SELECT variant, percentile_cont(0.99) WITHIN GROUP (ORDER BY latency_ms)
    FROM (
        SELECT variant, latency_ms,
            row_number() OVER (PARTITION BY variant ORDER BY measured_at DESC, event_time DESC) AS nth
        FROM evaluated_bars WHERE market = %s AND measured_at < %s
    ) AS measured
    WHERE nth <= %s GROUP BY variant HAVING count(*) >= %s
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BarLatency:
    """How long a loaded model took to forecast one bar, of all entities at once, whose window was ready.

    ``num_signals`` counts the entities it had a forecast for. Times are aware.
    """

    variant: str
    model_version: str
    event_time: datetime
    measured_at: datetime
    latency_ms: float
    num_signals: int


def write_latencies(connection: psycopg.Connection, market: str, rows: Sequence[BarLatency]) -> None:
    """Keep measurements, in one transaction; a bar's first one by a model stays."""
    values = [
        (market, row.variant, row.model_version, row.event_time, row.measured_at, row.latency_ms, row.num_signals)
        for row in rows
    ]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_WRITE, values)


def silent_bars(connection: psycopg.Connection, market: str, *, since: datetime) -> set[tuple[str, str, datetime]]:
    """Variant, model version and end of the bars, from ``since`` on, that a model had no forecast for."""
    return set(connection.execute(_SILENT, [market, since]).fetchall())


def latency_p99(connection: psycopg.Connection, market: str, *, before: datetime | None = None) -> dict[str, float]:
    """The 99th percentile of each variant's newest 252 measurements, in milliseconds, between its neighbours linear.

    Only what was measured ``before`` counts, so that a cycle that is run again finds what it found the first time;
    None takes all. A variant with fewer than 5 of them is absent.
    """
    until = "infinity" if before is None else before
    return dict(connection.execute(_P99, [market, until, NEWEST, FEWEST]).fetchall())
