"""What a cycle is asked to do and what it answers, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

Policy: TypeAlias = Literal["strict", "advisory", "manual"]
LabelKind: TypeAlias = Literal["vol_scaled", "return", "sign", "triple_barrier"]


Splitter: TypeAlias = Literal["walk_forward", "yearly"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CycleConfig:
    """What to run: ``as_of`` hides everything known later; ``variants`` is the budget of variants to train.

    The variants are of the default catalogue, or of that in the file ``catalogue``. ``folds`` and ``agent_folds`` count
    test windows, of 21 sessions (``walk_forward``) or of a calendar year (``yearly``), ``trials`` and ``agent_trials``
    what Optuna may try for each architecture.
    """

    market: str = "us_stocks"
    interval: str = "1d"
    horizon: int = 1
    label: LabelKind = "vol_scaled"
    as_of: datetime | None = None
    catalogue: str = ""
    variants: int = 14
    splitter: Splitter = "walk_forward"
    folds: int = 12
    agent_folds: int = 4
    trials: int = 4
    agent_trials: int = 2
    seed: int = 7
    policy: Policy = "strict"

    def cycle_id(self, *, last_bar: str, market_fingerprint: str, code: str) -> str:
        """Names the cycle by its newest bar and a hash of all that decides its outcome."""
        listed = Path(self.catalogue).read_text(encoding="utf-8") if self.catalogue else ""
        content = [asdict(self), listed, market_fingerprint, code]
        digest = hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()[:8]
        return f"{last_bar.replace('-', '')}-{digest}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedVariant:
    """One line of the ranking; ``why`` says in plain words why it stands where it does."""

    rank: int
    variant: str
    family: str
    stage: str
    allocation: float
    metrics: Mapping[str, float]
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CycleSummary:
    """Everything a person is told at the end of a cycle."""

    cycle_id: str
    market: str
    facts: Mapping[str, str]
    not_applicable: Mapping[str, str]
    tuned: Sequence[Mapping[str, str]]
    ranking: Sequence[RankedVariant]
    failed: Mapping[str, str]
    gate: Mapping[str, str]
    drift: Sequence[Mapping[str, str]]
    reports: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
