"""What an aggregate is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pandas as pd

from feature_repo.market.schema import Market

EVERYONE: Final = "*"
"""The entity of market-wide rows: they belong to every entity's bar of that event time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """Columns that a market's other tables give to its bars.

    ``versions(market, interval)`` gives ``entity_key, event_time, ingest_time, <columns>``, or None where the market
    has not the tables. ``event_time`` is a bar's; ``entity_key`` may be ``EVERYONE``. A row holds all the columns as
    known at its ``ingest_time``: what arrives or is restated later is a new row with a later one. A null says that
    there is no value (any more). Rows without a bar do no harm.
    """

    name: str
    columns: tuple[str, ...]
    versions: Callable[[Market, str], pd.DataFrame | None]
