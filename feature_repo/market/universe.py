"""Who belonged to the universe, as known then: without it a backtest trades only those that survived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

TimeArray: TypeAlias = NDArray[np.datetime64]

# Tensor suffixes: T times, N entities, R rows of the table.


def members(universe: pd.DataFrame, entities: Sequence[str], times_T: TimeArray) -> NDArray[np.bool_]:
    """Membership (T, N) at each time as known at that time.

    ``universe`` has ``entity_key, from, to, ingest_time``: member from ``from`` inclusive to ``to`` exclusive, null for
    no end yet. A later row of the same (entity, from) restates the end. An announcement counts from its ``ingest_time``
    on and takes effect at ``from``. Entities that the table does not name were never members.
    """
    member_TN = np.zeros((len(times_T), len(entities)), dtype=bool)
    column = {entity: n for n, entity in enumerate(entities)}
    order = universe.sort_values("ingest_time", kind="stable")
    start_R, stop_R, known_R = (_times(order[name]) for name in ("from", "to", "ingest_time"))
    rows = order.reset_index(drop=True).groupby(["entity_key", "from"], sort=False).indices
    for (entity, _), versions in rows.items():
        if entity not in column or (versions := versions[~np.isnat(known_R[versions])]).size == 0:
            continue
        at_T = np.searchsorted(known_R[versions], times_T, side="right") - 1
        current_T = versions[np.maximum(at_T, 0)]
        inside_T = (start_R[current_T] <= times_T) & (np.isnat(stop_R[current_T]) | (times_T < stop_R[current_T]))
        member_TN[:, column[entity]] |= (at_T >= 0) & inside_T
    return member_TN


def _times(times: pd.Series) -> TimeArray:
    naive: TimeArray = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]")
    return naive
