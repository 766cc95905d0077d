"""The table ``drift_metrics``: every verdict of every day."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date

import psycopg

from monitoring.drift.monitor import DriftVerdict

_WRITE = """
    INSERT INTO drift_metrics
        (day, market, strategy, feature, signal, value, calibrated, severity, action, why, cycle_id)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (day, market, strategy, feature, signal) DO UPDATE SET
        value = excluded.value, calibrated = excluded.calibrated, severity = excluded.severity,
        action = excluded.action, why = excluded.why, cycle_id = excluded.cycle_id, written_at = now()
"""
_READ = """
    SELECT day, strategy, feature, signal, value, calibrated, severity, action, why
    FROM drift_metrics WHERE market = %s AND day >= %s ORDER BY day, strategy, signal, feature
"""


def write_verdicts(
    connection: psycopg.Connection, verdicts: Sequence[DriftVerdict], *, market: str, cycle_id: str
) -> None:
    """Write a day's verdicts in one transaction; the same day again replaces them. A NaN value is stored as null."""
    rows = [
        (
            verdict.day,
            market,
            verdict.strategy,
            verdict.feature,
            verdict.signal,
            None if math.isnan(verdict.value) else verdict.value,
            verdict.calibrated,
            verdict.severity,
            verdict.action,
            verdict.why,
            cycle_id,
        )
        for verdict in verdicts
    ]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_WRITE, rows)


def read_verdicts(connection: psycopg.Connection, *, market: str, since: date) -> list[DriftVerdict]:
    """A market's verdicts from a day on, oldest first."""
    names = ("day", "strategy", "feature", "signal", "value", "calibrated", "severity", "action", "why")
    found = [dict(zip(names, row, strict=True)) for row in connection.execute(_READ, [market, since])]
    return [DriftVerdict(**{**row, "value": math.nan if row["value"] is None else row["value"]}) for row in found]
