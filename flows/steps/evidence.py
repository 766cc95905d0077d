"""What monitoring knows of the variants, as the gates take it: findings from the table of drift verdicts.

Which day counts: each variant's newest monitored one strictly before the day of the cycle's newest bar, and at most a
week before it. The cycle's own verdicts bear that day, and it rates before it watches: were they counted, a cycle that
is run again (it was killed after it had watched) would find verdicts that it did not have the first time, and end
otherwise. What monitoring says in the daytime of that day counts the next night.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import groupby
from typing import Final

import numpy as np
import pandas as pd
import psycopg

from flows.steps.data import Panels
from flows.steps.run import Run
from monitoring.alerts.matrix import SEVERITIES, Action
from monitoring.drift.monitor import DriftVerdict
from monitoring.store import read_verdicts
from training.panels import load_panel
from training.rating.evidence import Finding

MAX_AGE: Final = timedelta(days=7)
"""Five sessions and the holidays among them. Only who is staged is monitored, so older words are of an earlier stay."""
VETOING: Final[Mapping[Action, str]] = {
    "retrain": "retrain it",
    "halve": "halve its position",
    "pause": "pause it",
}
"""The actions that stand against Production, the worst last: the others ask a person to look, not to trade less."""


def read_drift(connection: psycopg.Connection, run: Run, panels: Panels) -> dict[str, Finding]:
    """The finding on each variant that was monitored lately, before this cycle's newest bar."""
    panel = load_panel(next(iter(panels.folders.values())))
    newest_bar = pd.Timestamp(panel.event_times_T[-1]).date()
    verdicts = read_verdicts(connection, market=run.market, since=newest_bar - MAX_AGE)
    return drift_findings(verdicts, newest_bar=newest_bar)


def drift_findings(verdicts: Iterable[DriftVerdict], *, newest_bar: date) -> dict[str, Finding]:
    """One finding a variant, of its newest day that counts (see the module); a variant without one has none.

    It is not ok where a verdict of that day asks to retrain, halve or pause; ``why`` names the worst, ``value`` and
    ``threshold`` (the calibrated one) are that verdict's.
    """
    counted = [each for each in verdicts if newest_bar - MAX_AGE <= each.day < newest_bar]
    ordered = sorted(counted, key=lambda each: (each.strategy, each.day))
    return {variant: _of_newest_day(list(said)) for variant, said in groupby(ordered, lambda each: each.strategy)}


def _of_newest_day(verdicts: Sequence[DriftVerdict]) -> Finding:
    day = verdicts[-1].day
    said = [each for each in verdicts if each.day == day]
    against = sorted((each for each in said if each.action in VETOING), key=_gravity)
    if not against:
        return Finding(ok=True, why=f"on {day} none of {len(said)} drift verdicts asked to trade it less or retrain it")
    worst = against[-1]
    about = "" if worst.feature == "*" else f"{worst.feature}: "
    others = f" (and {len(against) - 1} more of {len(said)} verdicts ask to act)" if len(against) > 1 else ""
    return Finding(
        ok=False,
        why=f"on {day} monitoring asked to {VETOING[worst.action]}: {about}{worst.why}{others}",
        value=worst.value,
        threshold=np.nan if worst.calibrated is None else worst.calibrated,
    )


def _gravity(verdict: DriftVerdict) -> tuple[int, int, str, str]:
    """What to sort by, the worst last; names decide between equals, so that the same day gives the same words."""
    return (
        list(VETOING).index(verdict.action),
        SEVERITIES.index(verdict.severity),
        verdict.signal,
        verdict.feature,
    )
