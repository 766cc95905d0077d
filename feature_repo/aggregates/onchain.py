"""What a blockchain says beside its asset's bars, from on-chain tables in the Coin Metrics column layout.

A day's metrics come out about half a day after its end, so a bar reads, by definition, one on-chain interval back: the
daily bar of day d has the metrics of day d-1, whose row it was already known then. Without that every bar would be
restated half a day after its end. A row is answer for ``MAX_AGE`` of its intervals at most.

The table is the one with the longest interval that is not longer than the bars', else the shortest there is: daily
metrics for daily and, with no hourly ones, for hourly bars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.aggregates.base import Aggregate
from feature_repo.aggregates.levels import micros, newest_rows, utc
from feature_repo.kernels.elementwise import ratio
from feature_repo.market.layout import interval_length
from feature_repo.market.schema import Market

FloatArray: TypeAlias = NDArray[np.float64]

MAX_AGE: Final = 3
"""On-chain intervals after which a row is too old to be a bar's, beyond the one that it is behind anyway."""
_TABLE: Final = "onchain_"


def _product(one: FloatArray, other: FloatArray) -> FloatArray:
    return one * other


def _itself(column: FloatArray) -> FloatArray:
    return column


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """One way to a metric: a formula of columns of the table, or of metrics that stand above it."""

    inputs: tuple[str, ...]
    formula: Callable[..., FloatArray]


def _column(name: str) -> _Way:
    return _Way(inputs=(name,), formula=_itself)


_METRICS: Final[Mapping[str, tuple[_Way, ...]]] = {
    "onchain_active_addresses": (_column("AdrActCnt"),),
    "onchain_transactions": (_column("TxCnt"),),
    "onchain_transfer_value_usd": (_column("TxTfrValAdjUSD"),),
    "onchain_hash_rate": (_column("HashRate"),),
    "onchain_market_cap_usd": (
        _column("CapMrktCurUSD"),
        _Way(inputs=("PriceUSD", "SplyCur"), formula=_product),
    ),
    "onchain_fees_usd": (
        _column("FeeTotUSD"),
        _Way(inputs=("FeeMeanUSD", "TxCnt"), formula=_product),
        _Way(inputs=("FeeTotNtv", "PriceUSD"), formula=_product),
    ),
    "onchain_issuance_usd": (
        _column("IssTotUSD"),
        _Way(inputs=("IssTotNtv", "PriceUSD"), formula=_product),
    ),
    "onchain_nvt": (
        _column("NVTAdj"),
        _Way(inputs=("onchain_market_cap_usd", "onchain_transfer_value_usd"), formula=ratio),
    ),
    "onchain_mvrv": (
        _column("CapMVRVCur"),
        _Way(inputs=("onchain_market_cap_usd", "CapRealUSD"), formula=ratio),
    ),
}
"""Each metric and the ways to it, the first that has a value counts; as Coin Metrics defines the columns."""


def onchain_table(market: Market, interval: str) -> str | None:
    """Name of the on-chain table that goes with bars of this interval, ``None`` where the market has none."""
    lengths = {name: interval_length(name.removeprefix(_TABLE)) for name in market.tables if name.startswith(_TABLE)}
    fitting = [name for name, length in lengths.items() if length <= interval_length(interval)]
    if fitting:
        return max(fitting, key=lambda name: lengths[name])
    return min(lengths, key=lambda name: lengths[name], default=None)


def metrics(table: pd.DataFrame) -> dict[str, FloatArray]:
    """The metrics of an on-chain table's rows, (rows,) each; NaN where no way gives a value, absent where none can."""
    columns = {name: table[name].to_numpy(np.float64, na_value=np.nan) for name in table.select_dtypes("number")}
    found: dict[str, FloatArray] = {}
    for name, ways in _METRICS.items():
        values = [
            way.formula(*(columns[column] for column in way.inputs)) for way in ways if set(way.inputs) <= set(columns)
        ]
        if values:
            found[name] = columns[name] = _first_known(values)
    return found


def _first_known(values: list[FloatArray]) -> FloatArray:
    known = values[0]
    for other in values[1:]:
        known = np.where(np.isnan(known), other, known)
    return known


def _versions(market: Market, interval: str) -> pd.DataFrame | None:
    name = onchain_table(market, interval)
    if name is None:
        return None
    table, length = market.tables[name], interval_length(name.removeprefix(_TABLE))
    values = pd.DataFrame(metrics(table))
    bars = market.traded_bars(interval)[["entity_key", "event_time"]].drop_duplicates()
    ends = {entity: np.sort(micros(of_entity)) for entity, of_entity in bars.groupby("entity_key")["event_time"]}
    parts = [
        _of_entity(str(entity), rows, values.iloc[places], ends[entity], length)
        for entity, places in table.groupby("entity_key").indices.items()
        if entity in ends
        for rows in [table.iloc[places]]
    ]
    return pd.concat(parts, ignore_index=True) if parts else None


def _of_entity(
    entity: str, rows: pd.DataFrame, values: pd.DataFrame, end_K: NDArray[np.int64], length: timedelta
) -> pd.DataFrame:
    event_N, ingest_N = micros(rows["event_time"]), micros(rows["ingest_time"])
    found = newest_rows(event_N, ingest_N, end_K, offset=length, max_age=MAX_AGE * length)
    keys = {"entity_key": entity, "event_time": utc(end_K[found.bar_V]), "ingest_time": utc(found.known_V)}
    return pd.concat([pd.DataFrame(keys), values.iloc[found.row_V].reset_index(drop=True)], axis=1)


AGGREGATE = Aggregate(name="onchain", columns=tuple(_METRICS), versions=_versions)
