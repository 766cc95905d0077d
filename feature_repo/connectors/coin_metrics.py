"""Daily on-chain metrics in the column layout of Coin Metrics' community files.

One file an asset (``btc.csv``: ``time,AdrActCnt,...``) or one for all (``asset,time,AdrActCnt,...``). The ``time`` of a
row (``date`` in older files) is the day it describes, at its START; ``event_time`` is the midnight after it. An asset's
``entity_key`` is its name in capitals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

import pandas as pd

from feature_repo.connectors.base import ConnectorError, Outcome, Runtime
from feature_repo.connectors.documents import land_document, numbers_or_text, read_csv, read_document, times_or_text
from feature_repo.connectors.landing import Extent, read_landed
from feature_repo.connectors.web import Web

TABLE: Final = "onchain_1d"
DAY_COLUMNS: Final = ("time", "date")
ASSET_COLUMN: Final = "asset"
TEXT_COLUMNS: Final = ("principal_market_usd",)  # names a market; the layout's metrics are numbers
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CoinMetrics:
    """Lands community files in ``onchain_1d``.

    Parameters
    ----------
    where
        Files or addresses.
    metrics
        The columns to land; all where it is empty.
    whole
        The files are all there is of their assets: days outside a file's span and metrics it does not have were
        withdrawn. Without it only what is missing inside the span is, and a metric that is landed but not in the file
        is named in the notes and left alone.
    lag
        Dates a history (see :func:`feature_repo.connectors.landing.land`).
    """

    where: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    whole: bool = False
    lag: timedelta | None = None

    def __post_init__(self) -> None:
        if self.whole and self.metrics:
            raise ConnectorError("a choice of metrics is not the whole of what was published: give one of the two")

    def ingest(self, into: Path, *, runtime: Runtime) -> Iterator[Outcome]:
        """Land the files one after another; each arrives when it is read."""
        web = Web(runtime)
        for where in self.where:
            said, arrived = read_document(where, read_csv, web=web, runtime=runtime)
            rows = self._rows(where, said)
            notes = self._unsaid(into, rows)
            extent: Extent = "whole" if self.whole else "span"
            landed, num_unclosed = land_document(into, TABLE, rows, arrived=arrived, extent=extent, lag=self.lag)
            yield Outcome(
                source=f"coin_metrics {where}", table=TABLE, landed=landed, num_unclosed=num_unclosed, notes=notes
            )

    def _rows(self, where: str, said: pd.DataFrame) -> pd.DataFrame:
        day = next((name for name in DAY_COLUMNS if name in said), None)
        if day is None:
            raise ConnectorError(
                f"{where} has no column of days; it has {list(said.columns)[:8]}, and the layout begins with "
                f"{ASSET_COLUMN},{DAY_COLUMNS[0]}: get the file from the community data"
            )
        metrics = [name for name in said.columns if name not in (ASSET_COLUMN, day, *TEXT_COLUMNS)]
        unknown = sorted(set(self.metrics) - set(metrics))
        if unknown:
            raise ConnectorError(f"{where} has no metric {unknown}; it has {metrics}")
        # A file in the name of an asset is the layout, so this is no guess.
        asset = said[ASSET_COLUMN] if ASSET_COLUMN in said else PurePosixPath(urlsplit(where).path).stem
        asset = asset.str.upper() if isinstance(asset, pd.Series) else asset.upper()
        midnight = pd.to_datetime(said[day], utc=True, errors="coerce", format="ISO8601").dt.normalize() + _DAY
        numbers = {name: numbers_or_text(said[name]) for name in self.metrics or metrics}
        return pd.DataFrame({"entity_key": asset, "event_time": times_or_text(midnight, said[day]), **numbers})

    def _unsaid(self, into: Path, rows: pd.DataFrame) -> tuple[str, ...]:
        """A note on metrics that are landed for these assets and of which the file says nothing."""
        if self.whole or self.metrics:
            return ()
        landed = read_landed(into / f"{TABLE}.parquet", TABLE)
        landed = landed[landed["entity_key"].isin(rows["entity_key"].unique())]
        unsaid = [
            name for name in landed.columns if name not in (*rows.columns, "ingest_time") and landed[name].notna().any()
        ]
        if not unsaid:
            return ()
        return (f"landed before but not in this file: {unsaid}; if they were withdrawn, say that the file is whole",)
