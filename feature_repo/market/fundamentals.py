"""Fundamentals as a feature table: slow figures, each period's restated when a company restates them."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import numpy as np
import pandas as pd

VIEW: Final = "fundamentals_v1"
_KEYS: Final = ["entity_key", "event_time", "ingest_time"]
_WITHDRAWN: Final = np.inf  # no accepted value is infinite


def fundamental_rows(
    fundamentals: pd.DataFrame, *, producer: str, producer_version: str, run_id: str, written_at: datetime
) -> pd.DataFrame:
    """Complete rows of a market's ``fundamentals`` (``entity_key, event_time, ingest_time, name, value``).

    One row for each moment at which anything about a period (an entity and event time) became known, a column a name:
    what was said by then, null where nothing was or where it was withdrawn (a null value). With the columns of
    provenance it is a feature table, as ``store.tables`` has it.
    """
    said = fundamentals.dropna(subset=_KEYS).drop_duplicates([*_KEYS, "name"], keep="last")
    said = said.assign(value=said["value"].fillna(_WITHDRAWN))
    wide = said.pivot(index=_KEYS, columns="name", values="value").sort_index()
    rows = wide.groupby(level=_KEYS[:2]).ffill().replace(_WITHDRAWN, np.nan).reset_index()
    rows.columns.name = None
    written = pd.Timestamp(written_at).tz_convert("UTC").as_unit("us")
    return rows.assign(written_at=written, producer=producer, producer_version=producer_version, run_id=run_id)
