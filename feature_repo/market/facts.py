"""The facts of a market: what ``market.yaml`` says, and what its bars say where it is silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import yaml

from feature_repo.market.calendar import NEW_YORK, SESSIONS_PER_YEAR
from feature_repo.market.costs import CostModel
from feature_repo.market.layout import interval_length, table_kind
from feature_repo.market.schema import MarketError, MarketInfo

DAY_SHARE: Final = 0.05  # of the bars, on every day of the week; a market that never closes has 0.14
CLOSE_SHARE: Final = 0.95  # of the days; the rest are early closes
_MOMENT: Final = pd.Timedelta(1, "us")


def read_facts(path: Path) -> dict[str, Any]:
    """The checked contents of a ``market.yaml``; empty where there is none."""
    if not path.exists():
        return {}
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MarketError(f"{path} is no YAML: {error}") from None
    said = {} if said is None else said
    if not isinstance(said, dict):
        raise MarketError(f"{path} must map keys to values; got {said!r}. Its keys are {sorted(_FACTS)}")
    unknown = sorted(str(key) for key in said if key not in _FACTS)
    if unknown:
        raise MarketError(f"{path} has the unknown keys {unknown}; allowed are {sorted(_FACTS)}: remove or rename them")
    return {key: _read_fact(path, key, value) for key, value in said.items()}


def market_info(facts: Mapping[str, Any], *, folder: str, bars: Mapping[str, pd.DataFrame]) -> MarketInfo:
    """Complete the facts: the name from the folder's, calendar and sessions from the accepted bars (by table's name).

    ``inferred`` names everything that was not said, the cost model's defaults among it.
    """
    calendar = facts.get("calendar") or infer_calendar(bars)
    sessions = facts.get("sessions_per_year") or SESSIONS_PER_YEAR[calendar]
    costs = {key: facts[key] for key in (*_COSTS, *_IMPACT) if key in facts}
    inferable = ("name", "calendar", "sessions_per_year", *_COSTS)
    return MarketInfo(
        name=facts.get("name", folder),
        asset_class=facts.get("asset_class", "unknown"),
        calendar=calendar,
        sessions_per_year=sessions,
        benchmark=facts.get("benchmark"),
        costs=CostModel(**costs, sessions_per_year=sessions),
        lags=facts.get("lags", {}),
        inferred=tuple(key for key in inferable if key not in facts),
    )


def infer_calendar(bars: Mapping[str, pd.DataFrame]) -> str:
    """The calendar of a market's bars, read from the longest interval below a week.

    ``24/7`` with bars on all seven days, ``XNYS`` where nearly every day's last bar ends at 16:00 New York, else
    ``weekdays``; ``unknown`` without bars.
    """
    lengths = {name: interval_length(name.removeprefix("bars_")) for name, table in bars.items() if len(table)}
    lengths = {name: length for name, length in lengths.items() if length < timedelta(weeks=1)}
    if not lengths:
        return "unknown"
    ends = pd.DatetimeIndex(bars[max(lengths, key=lambda name: lengths[name])]["event_time"].unique())
    shares = np.bincount(ends.dayofweek, minlength=7) / len(ends)
    if shares.min() > DAY_SHARE:  # where days end at midnight the five trading days are others, but still five
        return "24/7"
    local = pd.Series((ends - _MOMENT).tz_convert(NEW_YORK).tz_localize(None))
    last = local.groupby(local.dt.normalize()).max() + _MOMENT
    at_close = (last - last.dt.normalize()) == pd.Timedelta(hours=16)
    return "XNYS" if at_close.mean() >= CLOSE_SHARE else "weekdays"


def _read_fact(path: Path, key: str, value: object) -> object:
    read, wanted = _FACTS[key]
    try:
        return read(value)
    except MarketError:
        raise
    except (TypeError, ValueError):
        raise MarketError(f"{path}: {key} must be {wanted}; got {value!r}") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def _calendar(value: object) -> str:
    if value not in SESSIONS_PER_YEAR:
        raise ValueError
    return str(value)


def _sessions(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError
    return value


def _bps(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < np.inf:
        raise ValueError
    return float(value)


def _lags(value: object) -> dict[str, timedelta]:
    if not isinstance(value, dict):
        raise TypeError
    return {table: _lag(table, lag) for table, lag in value.items()}


def _lag(table: object, value: object) -> timedelta:
    table_kind(_text(table))
    lag = pd.Timedelta(_text(value))
    if pd.isna(lag) or lag < pd.Timedelta(0):
        raise ValueError
    return lag.to_pytimedelta()


_RATE: Final = (_bps, "a number of basis points, zero or more")
_COSTS: Final = ("fee_bps", "half_spread_bps", "borrow_bps_ann")
_IMPACT: Final = ("capital", "impact_coefficient")  # off unless said, so there is nothing to infer
_FACTS: Final[Mapping[str, tuple[Callable[[object], object], str]]] = {
    "name": (_text, "a text"),
    "asset_class": (_text, "a text"),
    "calendar": (_calendar, f"one of {sorted(SESSIONS_PER_YEAR)}"),
    "sessions_per_year": (_sessions, "a whole number above zero"),
    "benchmark": (_text, "the entity_key of a bar (quote one that is not a text)"),
    **dict.fromkeys(_COSTS, _RATE),
    "capital": (_bps, "an amount in the currency of the prices, zero or more"),
    "impact_coefficient": (_bps, "a number, zero or more"),
    "lags": (_lags, "a mapping of tables to durations with a unit, such as {bars_1d: 15min}"),
}
