"""What a check finds: values that knew what they could not, each with its place and its moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
TimeArray: TypeAlias = NDArray[np.datetime64]

# Array suffixes: R compared rows, F features.

WHOLE_ROW: Final = "*"
"""Stands for the feature where a whole row is too many or missing, for the entity where all are concerned."""


class LeakageError(ValueError):
    """A check that can't be made, so that silence would prove nothing; the message says what, got and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakFinding:
    """A leak of one feature (or label), at the earliest place where it shows.

    ``event_time`` is the row's (``None`` where there is no row), ``moment`` the time at which it was looked at (aware
    UTC); ``expected`` is the value as it must be, ``got`` as it is, ``None`` for null or absent.
    """

    check: str
    entity: str
    event_time: datetime | None
    feature: str
    moment: datetime
    expected: float | str | None
    got: float | str | None
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What a check found, and how many values it compared: without any, silence says nothing."""

    findings: tuple[LeakFinding, ...] = ()
    num_compared: int = 0


def together(parts: Iterable[Checked]) -> Checked:
    """Several checks as one; of a feature that one check found leaking at several moments, the first finding stays."""
    all_parts = list(parts)
    first: dict[tuple[str, str], LeakFinding] = {}
    for part in all_parts:
        for finding in part.findings:
            first.setdefault((finding.check, finding.feature), finding)
    return Checked(findings=tuple(first.values()), num_compared=sum(part.num_compared for part in all_parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where compared rows lie: entity (R,), event time and moment (R,), both datetime64[us] UTC (event may be NaT)."""

    entity_R: NDArray[np.object_]
    event_R: TimeArray
    moment_R: TimeArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A feature in one of the rows."""

    places: Places
    row: int
    feature: str


def compare(
    check: str, why: str, *, places: Places, names: Sequence[str], expected_RF: FloatArray, got_RF: FloatArray
) -> Checked:
    """Values bit for bit, nulls equal (and a negative zero a zero); one finding a feature, at its earliest event time.

    ``why`` ends the message: what it means that they differ.
    """
    expected_RF, got_RF = np.asarray(expected_RF, dtype=np.float64), np.asarray(got_RF, dtype=np.float64)
    null_RF = np.isnan(expected_RF) & np.isnan(got_RF)
    differs_RF = (expected_RF != got_RF) & ~null_RF
    findings = []
    for f in np.flatnonzero(differs_RF.any(axis=0)):
        rows = np.flatnonzero(differs_RF[:, f])
        r = rows[np.lexsort((places.event_R[rows], places.moment_R[rows]))[0]]
        expected, got = _value(expected_RF[r, f]), _value(got_RF[r, f])
        place = Place(places=places, row=int(r), feature=names[int(f)])
        findings.append(found(check, why, place, expected=expected, got=got, num=len(rows)))
    return Checked(findings=tuple(findings), num_compared=int((~null_RF).sum()))


def found(
    check: str, why: str, place: Place, *, expected: float | str | None, got: float | str | None, num: int
) -> LeakFinding:
    """The finding at a place; ``num`` counts the values like it."""
    entity = str(place.places.entity_R[place.row])
    event, moment = _aware(place.places.event_R[place.row]), _aware(place.places.moment_R[place.row])
    assert moment is not None
    of = f"{place.feature} of {entity}" + (f" for {event.isoformat()}" if event else "")
    message = (
        f"{check}: {of}, as of {moment.isoformat()}, is {_said(got)} and must be {_said(expected)}: {why} "
        f"({num} such {'value' if num == 1 else 'values'})"
    )
    return LeakFinding(
        check=check,
        entity=entity,
        event_time=event,
        feature=place.feature,
        moment=moment,
        expected=expected,
        got=got,
        message=message,
    )


def micros(times: pd.Series | pd.DatetimeIndex) -> TimeArray:
    """Aware times as naive UTC microseconds (R,); null is NaT."""
    naive: TimeArray = pd.DatetimeIndex(times).tz_convert("UTC").tz_localize(None).to_numpy(dtype="datetime64[us]")
    return naive


def _aware(time: np.datetime64) -> datetime | None:
    return None if np.isnat(time) else pd.Timestamp(time).tz_localize("UTC").to_pydatetime()


def _value(number: np.float64) -> float | None:
    return None if np.isnan(number) else float(number)


def _said(value: float | str | None) -> str:
    return "null or absent" if value is None else str(value)
