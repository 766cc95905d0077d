"""Splits, dividends and delistings, so that a price series means one thing throughout, in two times.

Prices are carried forward: the bars after a split are multiplied by its ratio (and their volume divided), those after
a dividend by 1 + amount / close, as if it bought more of the asset. Earlier bars stay as they were, so an action that
is announced ahead restates nothing; one that becomes known late restates the bars since. Returns and all scale-free
features are those of back-adjusted prices.

An action takes effect on the bars that end after its ``event_time``. Source: CRSP, Data Description Guide, "Adjustment
factors" (a split's ratio is new shares for one old).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.aggregates.attach import attach
from feature_repo.market.calendar import PriceGrid
from feature_repo.market.schema import Market

FloatArray: TypeAlias = NDArray[np.float64]
TimeArray: TypeAlias = NDArray[np.datetime64]

# Array suffixes: B bars of one entity, A actions of it, in order of knowledge; T bars of a grid, N entities.

ACTIONS: Final = "corporate_actions"
SPLIT, DIVIDEND, DELISTING = "split", "dividend", "delisting"
_PRICES: Final = ("open", "high", "low", "close")
_ACTION: Final = ("kind", "event_time", "ingest_time", "ratio", "amount")
_PRICE, _VOLUME = "_price_factor", "_volume_factor"


def adjust(market: Market) -> Market:
    """The market with its bars adjusted for splits and dividends; unchanged where there are none."""
    actions = market.tables.get(ACTIONS)
    if actions is None or not actions["kind"].isin([SPLIT, DIVIDEND]).any():
        return market
    tables = {
        name: _adjusted(table, actions) if name.startswith("bars_") else table for name, table in market.tables.items()
    }
    return replace(market, tables=tables)


def settle_delistings(grid: PriceGrid, actions: pd.DataFrame) -> PriceGrid:
    """The grid with what a delisted asset's holder got: its last close times 1 + ``delisting_return``.

    It is the asset's price, open and close, at the first time of the grid after its last close; an asset whose bars go
    on, or whose return nobody gave, is left as it is.
    """
    if "delisting_return" not in actions:
        return grid
    close_TN = grid.close_TN.copy()
    open_TN = None if grid.open_TN is None else grid.open_TN.copy()
    ends = actions[(actions["kind"] == DELISTING) & actions["delisting_return"].notna()]
    for entity, paid in ends.groupby("entity_key")["delisting_return"].last().items():
        if entity not in grid.entities:
            continue
        n = grid.entities.index(str(entity))
        priced = np.flatnonzero(np.isfinite(close_TN[:, n]))
        if len(priced) and priced[-1] + 1 < len(close_TN):
            close_TN[priced[-1] + 1, n] = close_TN[priced[-1], n] * (1.0 + paid)
            if open_TN is not None:
                open_TN[priced[-1] + 1, n] = close_TN[priced[-1] + 1, n]
    return replace(grid, close_TN=close_TN, open_TN=open_TN)


def _adjusted(bars: pd.DataFrame, actions: pd.DataFrame) -> pd.DataFrame:
    factors = [part for entity, rows in bars.groupby("entity_key") for part in _factors(str(entity), rows, actions)]
    if not factors:
        return bars
    table = attach(bars, [pd.concat(factors, ignore_index=True)])
    price, volume = table.pop(_PRICE).fillna(1.0), table.pop(_VOLUME).fillna(1.0)
    scaled = {name: table[name] * price for name in _PRICES if name in table}
    if "volume" in table:
        scaled["volume"] = table["volume"] / volume
    return table.assign(**scaled)


def _factors(entity: str, bars: pd.DataFrame, actions: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Versions of the factors of every bar of an entity that has actions: one each time one becomes known."""
    own = actions[(actions["entity_key"] == entity) & actions["kind"].isin([SPLIT, DIVIDEND])]
    own = own.reindex(columns=_ACTION).dropna(subset="ingest_time").sort_values("ingest_time", kind="stable")
    if own.empty:
        return
    first = bars.sort_values("ingest_time", kind="stable").drop_duplicates("event_time").sort_values("event_time")
    before = np.ones(len(first)), np.ones(len(first))
    for moment in own["ingest_time"].unique():
        known = own[own["ingest_time"] <= moment].drop_duplicates(["kind", "event_time"], keep="last")
        price_B, volume_B = _as_known(known, first)
        changed = (price_B != before[0]) | (volume_B != before[1])
        before = price_B, volume_B
        yield pd.DataFrame(
            {
                "entity_key": entity,
                "event_time": first["event_time"][changed],
                "ingest_time": first["event_time"][changed].clip(lower=moment),
                _PRICE: price_B[changed],
                _VOLUME: volume_B[changed],
            }
        )


def _as_known(actions: pd.DataFrame, bars: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Factors of an entity's bars (B,): products over the earlier actions. A dividend is of the close first known."""
    price_B, volume_B = np.ones(len(bars)), np.ones(len(bars))
    event_B, close_B = pd.DatetimeIndex(bars["event_time"]), bars["close"].to_numpy(np.float64)
    for action in actions.itertuples():
        after = int(event_B.searchsorted(action.event_time, side="right"))
        if action.kind == SPLIT and action.ratio > 0:
            price_B[after:] *= action.ratio
            volume_B[after:] *= action.ratio
        elif action.kind == DIVIDEND and action.amount > 0 and after < len(bars):
            price_B[after:] *= 1.0 + action.amount / close_B[after]
    return price_B, volume_B
