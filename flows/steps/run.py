"""What every step of one cycle shares."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flows.cycle import CycleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One cycle: its question, its names, its clock and its places.

    ``code`` is the fingerprint of the source that decides results, ``git_sha`` its commit. The folders: ``features``
    of the market's feature tables, ``panels``, ``fits`` of finished fits, ``signals`` of the market's signal store,
    ``reports`` of this cycle.
    """

    config: CycleConfig
    cycle_id: str
    market: str
    now: datetime
    code: str
    git_sha: str
    features: Path
    panels: Path
    fits: Path
    signals: Path
    reports: Path
