"""Small markets of given tables, and what is known of a table at a moment: what tests of aggregates share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from feature_repo.aggregates.attach import attach
from feature_repo.aggregates.base import Aggregate
from feature_repo.market.schema import Market, MarketInfo

ORIGIN = pd.Timestamp("2024-01-01", tz="UTC")
TIMES = {"event_time": "datetime64[us, UTC]", "ingest_time": "datetime64[us, UTC]"}


def toy_market(**tables: pd.DataFrame) -> Market:
    nothing = pd.DataFrame(columns=["table", "row", "reason", "record"])
    return Market(info=MarketInfo(name="toy"), tables=tables, quarantine=nothing, flags=nothing, fingerprint="")


def at(days: Sequence[float]) -> pd.Series:
    """Days since ``ORIGIN`` as aware times."""
    return pd.Series(ORIGIN + pd.to_timedelta(np.asarray(days, float), unit="D")).dt.round("us").dt.as_unit("us")


def rows(
    entity: str | Sequence[str], event: Sequence[float], ingest: Sequence[float], **columns: object
) -> pd.DataFrame:
    """A table by days of event and ingest."""
    keys = {"entity_key": entity, "event_time": at(event), "ingest_time": at(ingest)}
    return pd.DataFrame(keys | columns).astype(TIMES)


def daily_bars(entities: Sequence[str], num_bars: int, *, lag: float = 0.003) -> pd.DataFrame:
    day = np.arange(num_bars, dtype=float)
    return pd.concat([rows(entity, day, day + lag, close=100.0 + day) for entity in entities], ignore_index=True)


def known(table: pd.DataFrame, moment: pd.Timestamp, *more_keys: str) -> pd.DataFrame:
    """Of each entity (and more) and event time the last row known."""
    visible = table[(table["event_time"] <= moment) & (table["ingest_time"] <= moment)]
    ordered = visible.sort_values("ingest_time", kind="stable")
    return ordered.drop_duplicates(["entity_key", "event_time", *more_keys], keep="last")


def bars_with(market: Market, interval: str, *aggregates: Aggregate) -> pd.DataFrame:
    """The market's bars with these aggregates' columns."""
    additions = [aggregate.versions(market, interval) for aggregate in aggregates]
    return attach(market.traded_bars(interval), [addition for addition in additions if addition is not None])
