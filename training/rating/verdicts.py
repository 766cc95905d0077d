"""The table ``gate_verdicts``: what the gates said of every variant, for whoever wants to promote one later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg

from training.rating.gates import Verdict

_WRITE: Final = """
    INSERT INTO gate_verdicts (market, variant, cycle_id, gate, judged_at, ok, veto, value, threshold, why)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_LAST: Final = """
    SELECT cycle_id, judged_at, gate, ok, veto, value, threshold, why
    FROM gate_verdicts
    WHERE (market, variant) = (%(market)s, %(variant)s) AND cycle_id = (
        SELECT cycle_id FROM gate_verdicts WHERE (market, variant) = (%(market)s, %(variant)s)
        ORDER BY judged_at DESC, cycle_id DESC LIMIT 1
    )
    ORDER BY gate
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LastVerdicts:
    """What the gates of one cycle said of a variant."""

    cycle_id: str
    judged_at: datetime
    verdicts: Sequence[Verdict]

    @property
    def vetoes(self) -> list[str]:
        """What stands against Production."""
        return [f"{each.gate}: {each.why}" for each in self.verdicts if each.veto and not each.ok]


def write_verdicts(
    connection: psycopg.Connection,
    verdicts: Mapping[str, Sequence[Verdict]],
    *,
    market: str,
    cycle_id: str,
    now: datetime,
) -> None:
    """Write what a cycle's gates said of each variant, in one transaction; the same cycle again replaces it.

    A value that isn't finite is stored as null.
    """
    rows = [
        (
            market,
            variant,
            cycle_id,
            each.gate,
            now,
            bool(each.ok),
            each.veto,
            _finite(each.value),
            _finite(each.threshold),
            each.why,
        )
        for variant, said in verdicts.items()
        for each in said
    ]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM gate_verdicts WHERE (market, cycle_id) = (%s, %s)", [market, cycle_id])
        cursor.executemany(_WRITE, rows)


def last_verdicts(connection: psycopg.Connection, market: str, variant: str) -> LastVerdicts | None:
    """What the newest cycle that judged a variant said of it; None where none ever did."""
    found = connection.execute(_LAST, {"market": market, "variant": variant}).fetchall()
    if not found:
        return None
    verdicts = [
        Verdict(gate=gate, ok=ok, veto=veto, value=_number(value), threshold=_number(threshold), why=why)
        for _, _, gate, ok, veto, value, threshold, why in found
    ]
    return LastVerdicts(cycle_id=found[0][0], judged_at=found[0][1].astimezone(UTC), verdicts=verdicts)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
