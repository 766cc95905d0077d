"""The verdict of the leak checks, kept beside the manifest of what they checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from feature_repo.leakage.findings import Checked, LeakageError, LeakFinding

VERDICT: Final = "leak_verdict.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakVerdict:
    """What the checks of one subject (a pipeline, a panel, a dataset) came to.

    ``fingerprint`` is that of the data that was checked, ``checks`` names what was done, ``checked_at`` the moments
    (aware UTC) at which, ``scope`` how far back it looked. ``code`` is the fingerprint of the source that made the data
    and checked them: by another one they would have to be checked again.
    """

    subject: str
    fingerprint: str
    checks: tuple[str, ...]
    findings: tuple[LeakFinding, ...]
    num_compared: int
    checked_at: tuple[datetime, ...]
    scope: str = ""
    code: str = ""

    @property
    def clean(self) -> bool:
        """Whether something was compared and no leak was found."""
        return self.num_compared > 0 and not self.findings

    def to_json(self) -> str:
        """As text that is the same for equal verdicts, with a checksum that shows where it was edited."""
        facts = {"clean": self.clean, **asdict(self)}
        return json.dumps({**facts, "sha256": _sha256(facts)}, indent=2, sort_keys=True, default=_iso) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LeakVerdict:
        """Read back ``to_json``; whatever isn't a verdict, or contradicts itself, is a ``LeakageError``."""
        try:
            facts = json.loads(text)
            if facts.pop("sha256") != _sha256(facts):
                raise ValueError("it was edited: its checksum is that of another text")
            claimed = facts.pop("clean")
            verdict = cls(
                findings=tuple(_finding(each) for each in facts.pop("findings")),
                checks=tuple(facts.pop("checks")),
                checked_at=tuple(datetime.fromisoformat(time) for time in facts.pop("checked_at")),
                **facts,
            )
            if claimed is not verdict.clean:
                raise ValueError(
                    f"it says clean={claimed} of {verdict.num_compared} values and {len(verdict.findings)} findings"
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LeakageError(f"not a leak verdict of this version: {error!r}; run the checks again") from error
        return verdict


def make_verdict(
    subject: str,
    checked: Checked,
    *,
    fingerprint: str,
    checks: Sequence[str],
    moments: Sequence[pd.Timestamp],
    scope: str = "",
    code: str = "",
) -> LeakVerdict:
    """The verdict of what was checked at these moments."""
    return LeakVerdict(
        subject=subject,
        fingerprint=fingerprint,
        checks=tuple(checks),
        findings=checked.findings,
        num_compared=checked.num_compared,
        checked_at=tuple(moment.tz_convert("UTC").to_pydatetime() for moment in moments),
        scope=scope,
        code=code,
    )


def write_verdict(folder: Path, verdict: LeakVerdict) -> Path:
    """Write the verdict beside a dataset's manifest, whole or not at all; an older one is replaced."""
    partial = folder / f".{VERDICT}.{os.getpid()}"
    partial.write_text(verdict.to_json(), encoding="utf-8")
    return partial.replace(folder / VERDICT)


def read_verdict(folder: Path) -> LeakVerdict:
    """The verdict of the dataset in ``folder``."""
    path = folder / VERDICT
    if not path.is_file():
        raise LeakageError(f"{folder} has no {VERDICT}: nobody checked this dataset for leaks; check it and record it")
    return LeakVerdict.from_json(path.read_text(encoding="utf-8"))


def clean_verdict(folder: Path, *, fingerprint: str | None = None) -> bool:
    """Whether the dataset in ``folder`` has a clean verdict, and (where given) of the data with this fingerprint.

    No verdict, or one that can't be read, is not a clean one.
    """
    try:
        verdict = read_verdict(folder)
    except (LeakageError, OSError, UnicodeDecodeError):
        return False
    return verdict.clean and fingerprint in (None, verdict.fingerprint)


def _sha256(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, default=_iso)
    return hashlib.sha256(text.encode()).hexdigest()


def _iso(time: object) -> str:
    if not isinstance(time, datetime):
        raise TypeError(f"a {type(time).__name__} has no place in a verdict")
    return time.isoformat()


def _finding(facts: dict[str, Any]) -> LeakFinding:
    if set(facts) != {field.name for field in fields(LeakFinding)}:
        raise ValueError(f"a finding with the fields {sorted(facts)}")
    event_time = facts["event_time"] and datetime.fromisoformat(facts["event_time"])
    return LeakFinding(**{**facts, "event_time": event_time, "moment": datetime.fromisoformat(facts["moment"])})
