"""What others know of a variant, and what the gates make of it: leaks, certificate, latency, drift.

It is handed in as plain data by whoever ran the checks. What is absent is never taken for good: a missing leak verdict
vetoes, and so does, where one is asked for, a missing certificate (both can be had before a promotion). Latency and
drift are measured on what runs, which a new variant does not yet: their absence is said, and does not veto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from training.leakage.verdict import LeakVerdict
from training.rating.gates import Verdict

LATENCY_BUDGET_MS: Final = 50.0  # over it serving lets a model abstain


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check came to, in words; ``value`` was held against ``threshold``."""

    ok: bool
    why: str
    value: float = float("nan")
    threshold: float = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is known of one variant beside its returns; None is not known.

    ``leaks`` must be about the data with ``fingerprint``, the panel it was trained on. ``certificate`` is of the
    reproducibility check of its newest version, ``latency_p99_ms`` the live one, ``drift`` the newest monitoring day's.
    """

    fingerprint: str
    leaks: LeakVerdict | None = None
    certificate: Finding | None = None
    latency_p99_ms: float | None = None
    drift: Finding | None = None


def certificate(finding: Finding | None, *, required: bool) -> Verdict:
    """Whether its newest version was rebuilt from what is recorded; without one it vetoes where ``required``."""
    if finding is None:
        why = "its newest version has no reproducibility certificate"
        return Verdict(gate="certificate", ok=False, value=np.nan, threshold=np.nan, why=why, veto=required)
    return _handed_in("certificate", finding)


def latency(p99_ms: float | None, *, budget_ms: float = LATENCY_BUDGET_MS) -> Verdict:
    """Whether its live answers come in time: the 99th percentile, in milliseconds."""
    if p99_ms is None:
        why = "no live latency was measured yet"
        return Verdict(gate="latency", ok=False, value=np.nan, threshold=budget_ms, why=why, veto=False)
    ok = bool(p99_ms <= budget_ms)  # a NaN is in no budget
    why = (
        f"99% of its live answers came within {p99_ms:.1f} ms, {'in' if ok else 'over'} the budget of {budget_ms:g} ms"
    )
    return Verdict(gate="latency", ok=ok, value=p99_ms, threshold=budget_ms, why=why)


def drift(finding: Finding | None) -> Verdict:
    """Whether monitoring asks to act on its features or outcomes."""
    if finding is None:
        why = "no drift verdict on it yet"
        return Verdict(gate="drift", ok=False, value=np.nan, threshold=np.nan, why=why, veto=False)
    return _handed_in("drift", finding)


def _handed_in(gate: str, finding: Finding) -> Verdict:
    return Verdict(gate=gate, ok=finding.ok, value=finding.value, threshold=finding.threshold, why=finding.why)
