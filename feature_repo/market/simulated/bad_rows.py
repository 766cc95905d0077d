"""Rows that no market directory should hold: one kind for every reason that validation has.

They are added to the sound rows and take nothing away: validation must find them all and keep just the sound ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.layout import interval_length, interval_of, table_kind
from feature_repo.market.simulated.spec import SimSpec, random_stream

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

FAR: Final = pd.Timestamp("2100-01-01", tz="UTC").as_unit("us")
REPEATS: Final = "duplicate: repeats an earlier row"
CONTRADICTS: Final = "duplicate: contradicts an earlier row of the same times (a correction is known later)"
OUT_OF_ORDER: Final = "out of order in the file, and not known later: sort it, or date late data by its ingest_time"
OVERLAPS: Final = "overlaps the bar before"
AS_TEXT: Final = frozenset({"fundamentals"})
"""Tables that are published as text, as a careless hand would, so that text can be wrong in them."""
_TICKS_BEHIND: Final = 200  # some hours of trades
_ROWS_BEHIND: Final = 12
_SOON: Final = pd.Timedelta(seconds=1)

Change = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadKind:
    """One kind of bad row: a changed copy of an ordinary row, put ``num_behind`` rows and a half after it.

    ``needs_before`` asks for a row one interval before in the same series.
    """

    reason: str
    change: Change
    num_behind: int = 0
    needs_before: bool = False


def plant_bad_rows(
    table: str, sound: pd.DataFrame, ordinary_R: BoolArray, spec: SimSpec
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table with bad rows in it, and their number by reason."""
    typed = _as_text(sound) if table in AS_TEXT else sound
    if not spec.num_bad_rows or sound.empty:
        return typed, {}
    rng = random_stream(spec, f"bad rows {table}")
    planted, places, num_planted = [typed], [np.arange(len(typed), dtype=np.float64)], {}
    for bad in bad_kinds(table):
        eligible = np.flatnonzero(ordinary_R & _has_room(table, sound, bad))
        scarce = len(eligible) < spec.num_bad_rows
        if scarce and (bad.num_behind or bad.needs_before or not len(eligible)):
            continue  # here a copy of a copy would be another kind of fault
        sources = np.sort(rng.choice(eligible, spec.num_bad_rows, replace=scarce))
        planted.append(bad.change(typed.iloc[sources]))
        places.append(sources + bad.num_behind + (-0.5 if bad.needs_before else 0.5))
        num_planted[bad.reason] = len(sources)
    order = np.argsort(np.concatenate(places), kind="stable")
    return pd.concat(planted, ignore_index=True).iloc[order].reset_index(drop=True), num_planted


def bad_kinds(table: str) -> Sequence[BadKind]:
    """The kinds of bad rows that a table can have."""
    if table in AS_TEXT:
        return _TEXT_KINDS
    kind, interval = table_kind(table), interval_of(table)
    kinds = [*_unnamed("entity_key"), *_wrong_cells(table)]
    if not kind.announced:
        kinds += _TIME_KINDS
    if not kind.ticks or table == "trades":
        kinds += [
            BadKind(reason=REPEATS, change=pd.DataFrame.copy),
            BadKind(reason=CONTRADICTS, change=_contradict(table)),
        ]
    if not kind.announced:
        num_behind = _TICKS_BEHIND if kind.ticks else _ROWS_BEHIND
        kinds.append(BadKind(reason=OUT_OF_ORDER, change=_soon_after, num_behind=num_behind))
    if table.startswith("bars_") and interval is not None:
        kinds += [
            _cells(f"interval is not {interval}", interval="1w"),
            BadKind(reason=OVERLAPS, change=_overlapping(interval), needs_before=True),
        ]
    return kinds


def _wrong_cells(table: str) -> Sequence[BadKind]:
    if table.startswith("bars_"):
        return _BAR_KINDS
    if table.startswith("onchain_"):
        return [_cells("AdrActCnt is not finite", AdrActCnt=np.inf)]
    return _CELL_KINDS[table]


def _has_room(table: str, sound: pd.DataFrame, bad: BadKind) -> BoolArray:
    """Whether a row has the neighbours that the kind needs."""
    series_R = sound.groupby(list(table_kind(table).key), sort=False).ngroup().to_numpy()
    room_R = np.ones(len(sound), dtype=bool)
    if bad.num_behind:
        room_R[:] = False
        room_R[: -bad.num_behind] = series_R[bad.num_behind :] == series_R[: -bad.num_behind]
    if bad.needs_before:
        event_R = sound["event_time"].to_numpy("datetime64[us]")
        room_R[0] = False
        room_R[1:] &= (series_R[1:] == series_R[:-1]) & (np.diff(event_R) == np.timedelta64(_length(table)))
    return room_R


def _length(table: str) -> pd.Timedelta:
    interval = interval_of(table)
    assert interval is not None  # only bars need a row before
    return pd.Timedelta(interval_length(interval)).as_unit("us")


def _as_text(rows: pd.DataFrame) -> pd.DataFrame:
    times = {name: rows[name].dt.strftime("%Y-%m-%dT%H:%M:%SZ") for name in ("event_time", "ingest_time")}
    return rows.assign(**times, value=[repr(value) for value in rows["value"].tolist()])


def _cells(reason: str, **cells: object) -> BadKind:
    return BadKind(reason=reason, change=lambda rows: rows.assign(**cells))


def _unnamed(*names: str) -> list[BadKind]:
    return [_cells(f"{name} is null", **{name: None}) for name in names]


def _scaled(reason: str, name: str, of: str, factor: float) -> BadKind:
    return BadKind(reason=reason, change=lambda rows: rows.assign(**{name: rows[of] * factor}))


def _timeless(name: str) -> BadKind:
    return BadKind(
        reason=f"{name} is null", change=lambda rows: rows.assign(**{name: rows[name].mask(rows[name].notna())})
    )


def _contradict(table: str) -> Change:
    """Another number under the same key and times, or another end of a membership."""
    if table == "universe":
        return lambda rows: rows.assign(to=FAR)
    name = next(column for prefix, column in _CONTRADICTED.items() if table.startswith(prefix))
    return lambda rows: rows.assign(**{name: rows[name] * 2.0 + 1.0})


def _soon_after(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(ingest_time=rows["ingest_time"] + _SOON)


def _overlapping(interval: str) -> Change:
    back = pd.Timedelta(interval_length(interval)).as_unit("us") * 3 // 4
    return lambda rows: rows.assign(event_time=rows["event_time"] - back, ingest_time=rows["ingest_time"] - back)


_CONTRADICTED: Final = {
    "bars_": "volume",
    "trades": "price",
    "sentiment": "value",
    "onchain_": "AdrActCnt",
    "corporate_actions": "delisting_return",
}
_TIME_KINDS: Final = (
    _timeless("event_time"),
    _timeless("ingest_time"),
    _cells("event_time is in the future", event_time=FAR, ingest_time=FAR),
    _cells("ingest_time is in the future", ingest_time=FAR),
    BadKind(
        reason="ingest_time is more than 5 s before event_time",
        change=lambda rows: rows.assign(ingest_time=rows["event_time"] - pd.Timedelta(minutes=1)),
    ),
)
_BAR_KINDS: Final = (
    _cells("close is null", close=np.nan),
    _cells("close is not finite", close=np.inf),
    _cells("close is not positive", close=0.0),
    _cells("open is not positive", open=-1.0),
    _cells("volume is negative", volume=-1.0),
    _cells("volume is not finite", volume=np.inf),
    BadKind(reason="high is below low", change=lambda rows: rows.assign(high=rows["low"], low=rows["high"] * 1.01)),
    _scaled("open is above high", "open", "high", 1.1),
    _scaled("open is below low", "open", "low", 0.9),
    _scaled("close is above high", "close", "high", 1.1),
    _scaled("close is below low", "close", "low", 0.9),
)
_CELL_KINDS: Final = {
    "trades": (
        _cells("price is null", price=np.nan),
        _cells("price is not finite", price=np.inf),
        _cells("price is not positive", price=0.0),
        _cells("size is negative", size=-1.0),
    ),
    "quotes": (
        _cells("bid is not positive", bid=0.0),
        _cells("ask is not finite", ask=np.inf),
        _cells("bid_size is negative", bid_size=-1.0),
        _cells("neither bid nor ask is there", bid=np.nan, ask=np.nan),
    ),
    "sentiment": (*_unnamed("name"), _cells("value is not finite", value=np.inf)),
    "universe": (BadKind(reason="to is not after from", change=lambda rows: rows.assign(to=rows["from"])),),
    "corporate_actions": (*_unnamed("kind"), _cells("ratio is not positive", ratio=0.0)),
}
_TEXT_KINDS: Final = (
    *_unnamed("entity_key", "name", "event_time", "ingest_time"),
    _cells("event_time is not an ISO 8601 time", event_time="last quarter"),
    _cells("ingest_time is not an ISO 8601 time", ingest_time="soon"),
    _cells("event_time has no time zone", event_time="2021-01-02T00:00:00"),
    _cells("ingest_time has no time zone", ingest_time="2021-01-12 00:00:00"),
    _cells("value is not a number", value="ten"),
)
