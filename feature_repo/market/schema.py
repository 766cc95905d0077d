"""What a market is: its tables, its facts and what validation said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pandas as pd

from feature_repo.market.costs import CostModel


class MarketError(ValueError):
    """A market that can't be read; the message says what, got, allowed and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketInfo:
    """The facts of a market, from ``market.yaml`` or inferred (then ``inferred`` names them).

    ``benchmark`` names the entity whose bars are the benchmark and which is not traded. Returns are rated residual to
    it, where there is one, and to the equal-weighted mean of the market's own assets. ``lags`` date the
    ``ingest_time`` of tables without one.
    """

    name: str
    asset_class: str = "unknown"
    calendar: str = "unknown"
    sessions_per_year: int = 252
    benchmark: str | None = None
    costs: CostModel = field(default_factory=CostModel)
    lags: Mapping[str, timedelta] = field(default_factory=dict)
    inferred: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Market:
    """A validated market.

    ``tables`` maps a table's name (``bars_1d``, ``trades`` …) to its accepted rows, restatements included, with
    ``event_time`` and ``ingest_time`` as aware UTC microseconds. ``quarantine`` keeps every refused row
    (``table, row, reason, record``: the record as JSON), ``flags`` the accepted but suspicious ones, same columns.
    ``fingerprint`` is a SHA-256 over the accepted rows, ``ignored`` names files that are no table of the layout.
    """

    info: MarketInfo
    tables: Mapping[str, pd.DataFrame]
    quarantine: pd.DataFrame
    flags: pd.DataFrame
    fingerprint: str
    ignored: tuple[str, ...] = ()

    def bars(self, interval: str) -> pd.DataFrame:
        """Accepted bars of ``interval``; a clear error names the intervals there are."""
        table = f"bars_{interval}"
        if table not in self.tables:
            have = sorted(name.removeprefix("bars_") for name in self.tables if name.startswith("bars_"))
            raise MarketError(
                f"market {self.info.name!r} has no bars of interval {interval!r}; it has {have or 'no bars at all'}: "
                f"choose one with --interval or add a {table}.parquet{self._refused(table)}"
            )
        return self.tables[table]

    def traded_bars(self, interval: str) -> pd.DataFrame:
        """Bars of every entity but the benchmark."""
        bars = self.bars(interval)
        return bars[bars["entity_key"] != self.info.benchmark] if self.info.benchmark else bars

    def _refused(self, table: str) -> str:
        """What to know of a table that is not there because no row of it was accepted."""
        reasons = self.quarantine.loc[self.quarantine["table"] == table, "reason"]
        if reasons.empty:
            return ""
        return (
            f"; {table} is there, but all its {len(reasons)} rows are quarantined, most because {reasons.mode()[0]!r}"
        )
