"""What goes wrong on the way to you: late rows, wrong first versions, gaps, and rows that validation must refuse.

Each is planted and counted here, never found by running the validation, so that the counts can test it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.market.layout import table_kind
from feature_repo.market.simulated.bad_rows import plant_bad_rows
from feature_repo.market.simulated.bars import INDEX
from feature_repo.market.simulated.rounding import LOT, significant
from feature_repo.market.simulated.spec import SimSpec, random_stream

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Array suffix: R rows of the table.

_HOURS_LATE: Final[Mapping[str, tuple[float, float]]] = {
    "bars_1d": (6.0, 72.0),
    "bars_1h": (2.0, 24.0),
    "bars_15m": (0.5, 12.0),
    "onchain_1d": (12.0, 72.0),
    "sentiment": (6.0, 72.0),
    "trades": (0.1, 6.0),
}
# The same tables have gaps: where there is a row for every time, one can be missed.
_HOURS_RESTATED: Final[Mapping[str, tuple[float, float]]] = {
    "bars_1d": (24.0, 120.0),
    "bars_1h": (2.0, 48.0),
    "bars_15m": (1.0, 24.0),
    "onchain_1d": (24.0, 120.0),
    "sentiment": (24.0, 120.0),
}
_ACTIVITY: Final = ("AdrActCnt", "TxCnt", "TxTfrCnt")
SLOW_CLOCK: Final = "slow receive clock: ingest_time before event_time"
CROSSED: Final = "bid is above ask"
REPEATED: Final = "repeats an earlier tick to the last column"


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """What was planted in a table.

    ``num_good`` rows are sound; of them ``num_late`` came late and ``num_restated`` replace a wrong first version.
    ``num_gaps`` rows are missing. ``bad`` and ``odd`` count rows by the reason that quarantine and flags give.
    """

    num_good: int
    num_late: int = 0
    num_restated: int = 0
    num_gaps: int = 0
    bad: Mapping[str, int]
    odd: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    """Rows to disturb; they are apart."""

    late: IntArray
    restated: IntArray
    gaps: IntArray


def disturb(table: str, clean: pd.DataFrame, spec: SimSpec) -> tuple[pd.DataFrame, Faults]:
    """The table as published; in ``clean`` a series' rows stand together, in order of time."""
    chosen = _choose(table, clean, spec)
    rows, ordinary_R = _disturb_rows(table, clean, chosen, random_stream(spec, f"sizes of faults {table}"))
    rows, ordinary_R, odd = _plant_oddities(table, rows, ordinary_R, spec)
    published, bad = plant_bad_rows(table, rows, ordinary_R, spec)
    return published, Faults(
        num_good=len(rows),
        num_late=len(chosen.late),
        num_restated=len(chosen.restated),
        num_gaps=len(chosen.gaps),
        bad=bad,
        odd=odd,
    )


def _choose(table: str, clean: pd.DataFrame, spec: SimSpec) -> _Chosen:
    """A series' first and last row, and the index, are left alone."""
    num = len(clean)
    series_R = clean.groupby(list(table_kind(table).key), sort=False).ngroup().to_numpy()
    inner_R = np.zeros(num, dtype=bool)
    inner_R[1:-1] = (series_R[1:-1] == series_R[:-2]) & (series_R[1:-1] == series_R[2:])
    inner_R &= (clean["entity_key"] != INDEX).to_numpy()
    shuffled = random_stream(spec, f"faults {table}").permutation(np.flatnonzero(inner_R))
    num_late = round(spec.late_share * num) if table in _HOURS_LATE else 0
    num_restated = round(spec.restated_share * num) if table in _HOURS_RESTATED else 0
    num_gaps = round(spec.gap_share * num) if table in _HOURS_RESTATED else 0
    late, restated, gaps, _ = np.split(shuffled, np.cumsum([num_late, num_restated, num_gaps]))
    return _Chosen(late=late, restated=restated, gaps=gaps)


def _disturb_rows(
    table: str, clean: pd.DataFrame, chosen: _Chosen, rng: np.random.Generator
) -> tuple[pd.DataFrame, BoolArray]:
    """The sound rows, and which of them are ordinary."""
    first, second = clean.copy(), clean.iloc[chosen.restated].copy()
    if len(chosen.late):
        first["ingest_time"] = _delayed(first["ingest_time"], chosen.late, _HOURS_LATE[table], rng)
    if len(second):
        every = np.arange(len(second))
        second["ingest_time"] = _delayed(second["ingest_time"], every, _HOURS_RESTATED[table], rng)
        wrong = _wrong_values(second, rng)
        for name in wrong:
            values = first[name].to_numpy(copy=True)
            values[chosen.restated] = wrong[name]
            first[name] = values
    ordinary_R = np.append((clean["entity_key"] != INDEX).to_numpy(), np.zeros(len(second), dtype=bool))
    ordinary_R[chosen.late] = ordinary_R[chosen.restated] = False
    place_R = np.concatenate([np.arange(len(first)), chosen.restated + 0.5])
    order = np.argsort(place_R, kind="stable")
    order = order[~np.isin(order, chosen.gaps)]
    return pd.concat([first, second], ignore_index=True).iloc[order].reset_index(drop=True), ordinary_R[order]


def _delayed(
    ingest: pd.Series, rows: IntArray, hours: tuple[float, float], rng: np.random.Generator
) -> pd.DatetimeIndex:
    micros = ingest.to_numpy("datetime64[us]").copy()
    micros[rows] += (rng.uniform(*hours, len(rows)) * 3_600_000_000).astype("timedelta64[us]")
    return pd.DatetimeIndex(micros).tz_localize("UTC")


def _wrong_values(right: pd.DataFrame, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """What was first published in place of these rows' values; nothing that validation would refuse."""
    more = 1.0 + rng.uniform(0.05, 0.5, len(right))
    if "close" in right:
        high, low = (right[name].to_numpy() for name in ("high", "low"))
        volume = np.rint(right["volume"].to_numpy() * more / LOT) * LOT
        return {"close": significant(low + (high - low) * rng.random(len(right))), "volume": volume}
    if "value" in right:
        value = right["value"].to_numpy()
        return {"value": np.round(value + 0.01 * (1.0 + np.abs(value)), 4)}
    return {name: np.rint(right[name].to_numpy() * more) for name in _ACTIVITY}


def _plant_oddities(
    table: str, rows: pd.DataFrame, ordinary_R: BoolArray, spec: SimSpec
) -> tuple[pd.DataFrame, BoolArray, dict[str, int]]:
    """Ticks that validation flags and accepts."""
    num = spec.num_odd_rows
    reasons = {"trades": (SLOW_CLOCK,), "quotes": (SLOW_CLOCK, CROSSED, REPEATED)}.get(table, ())
    if not reasons or not num:
        return rows, ordinary_R, {}
    rng = random_stream(spec, f"oddities {table}")
    chosen = rng.choice(np.flatnonzero(ordinary_R), (len(reasons), num), replace=False)
    rows, ordinary_R = rows.copy(), ordinary_R.copy()
    ordinary_R[chosen.ravel()] = False
    early = rows["event_time"].to_numpy("datetime64[us]")[chosen[0]]
    ingest = rows["ingest_time"].to_numpy("datetime64[us]").copy()
    ingest[chosen[0]] = early - rng.integers(100_000, 1_000_000, num).astype("timedelta64[us]")
    rows["ingest_time"] = pd.DatetimeIndex(ingest).tz_localize("UTC")
    if table == "quotes":
        bid, ask = rows["bid"].to_numpy(copy=True), rows["ask"].to_numpy(copy=True)
        bid[chosen[1]], ask[chosen[1]] = ask[chosen[1]], bid[chosen[1]]
        rows = rows.assign(bid=bid, ask=ask)
        order = np.sort(np.concatenate([np.arange(len(rows)), chosen[2]]))
        rows, ordinary_R = rows.iloc[order].reset_index(drop=True), ordinary_R[order]
    return rows, ordinary_R, dict.fromkeys(reasons, num)
