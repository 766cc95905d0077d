"""The simulated exchange as a market: in memory, or written as a plain market directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from feature_repo.market.assembly import assemble
from feature_repo.market.calendar import SESSIONS_PER_YEAR
from feature_repo.market.costs import CostModel
from feature_repo.market.directory import FACTS_FILE
from feature_repo.market.schema import Market, MarketError, MarketInfo
from feature_repo.market.simulated.bars import INDEX, bars_frame, make_bars
from feature_repo.market.simulated.faults import disturb
from feature_repo.market.simulated.outside import (
    delistings,
    fundamentals_table,
    onchain_table,
    sentiment_table,
    universe_table,
    with_ingest,
)
from feature_repo.market.simulated.spec import SimSpec, random_stream
from feature_repo.market.simulated.ticks import make_ticks
from feature_repo.market.simulated.truth import SimTruth, tell_truth
from feature_repo.market.simulated.world import World, draw_world
from feature_repo.market.validation import validate

NAME: Final = "sim"
TRUTH_FILE: Final = "truth.json"
CALENDAR: Final = "24/7"
_LAGS_S: Final[Mapping[str, tuple[float, float]]] = {
    "bars_1d": (120.0, 300.0),
    "bars_1h": (20.0, 40.0),
    "bars_15m": (5.0, 15.0),
    "trades": (0.02, 0.3),
    "quotes": (0.01, 0.1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedMarket:
    """A simulated market: its tables as published, bad rows included, and its truth."""

    spec: SimSpec
    tables: Mapping[str, pd.DataFrame]
    truth: SimTruth

    def read(self, *, now: datetime) -> Market:
        """The validated market; ``now`` (aware) is the time of reading: rows after it are quarantined."""
        validated = {name: validate(name, rows, now=now, lag=None) for name, rows in self.tables.items()}
        return assemble(_info(self.spec), validated)


def simulate(spec: SimSpec) -> SimulatedMarket:
    """Make the market of this spec; the same spec gives the same tables."""
    world = draw_world(spec)
    clean = _clean_tables(world)
    published, faults = {}, {}
    for name, table in clean.items():
        published[name], faults[name] = disturb(name, table, spec)
    return SimulatedMarket(spec=spec, tables=published, truth=tell_truth(world, delistings(world), faults))


def load_simulated(*, now: datetime) -> Market:
    """The default market: 12 assets, 1,500 days to 2025-02-08, as it is known at ``now`` (aware)."""
    return simulate(SimSpec()).read(now=now)


def write_market(spec: SimSpec, folder: Path) -> SimTruth:
    """Write the market as a market directory: Parquet tables, ``market.yaml`` and, beside them, ``truth.json``.

    The folder is made; one that holds anything is refused.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MarketError(f"{folder} is there and not an empty folder; name another, or remove it first")
    market = simulate(spec)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in market.tables.items():
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / f"{name}.parquet")
    (folder / FACTS_FILE).write_text(yaml.safe_dump(_facts(_info(spec)), sort_keys=False), encoding="utf-8")
    (folder / TRUTH_FILE).write_text(market.truth.to_json(), encoding="utf-8")
    return market.truth


def _clean_tables(world: World) -> dict[str, pd.DataFrame]:
    """Every table that has rows, with usual ingest times; a series' rows stand together, in order of time."""
    spec, bars = world.spec, make_bars(world)
    timed = {
        "bars_1d": bars_frame(world, bars.daily, "1d"),
        "bars_1h": bars_frame(world, bars.hourly, "1h"),
        "bars_15m": bars_frame(world, bars.quarterly, "15m"),
    }
    if spec.num_tick_days and spec.num_tick_assets:
        timed["trades"], timed["quotes"] = make_ticks(world, bars.quarterly)
    tables = {name: _received(name, table, spec) for name, table in timed.items()}
    tables |= {
        "sentiment": sentiment_table(world),
        "onchain_1d": onchain_table(world, bars.daily),
        "fundamentals": fundamentals_table(world),
        "universe": universe_table(world),
        "corporate_actions": delistings(world),
    }
    return {name: table for name, table in tables.items() if len(table)}


def _received(name: str, table: pd.DataFrame, spec: SimSpec) -> pd.DataFrame:
    """With ingest times; the bars of one end come together, as an exchange sends them."""
    rng = random_stream(spec, f"lags {name}")
    least, most = (pd.Timedelta(seconds=lag_s) for lag_s in _LAGS_S[name])
    if not name.startswith("bars_"):
        return with_ingest(table, rng, least, most)
    ends = table[["event_time"]].drop_duplicates().sort_values("event_time", ignore_index=True)
    return table.merge(with_ingest(ends, rng, least, most), on="event_time", how="left")


def _info(spec: SimSpec) -> MarketInfo:
    sessions = SESSIONS_PER_YEAR[CALENDAR]
    return MarketInfo(
        name=NAME,
        asset_class="crypto",
        calendar=CALENDAR,
        sessions_per_year=sessions,
        benchmark=INDEX if spec.benchmark else None,
        costs=CostModel(sessions_per_year=sessions),
    )


def _facts(info: MarketInfo) -> dict[str, object]:
    """The facts as ``market.yaml`` has them."""
    facts = {
        "name": info.name,
        "asset_class": info.asset_class,
        "calendar": info.calendar,
        "sessions_per_year": info.sessions_per_year,
        "benchmark": info.benchmark,
        "fee_bps": info.costs.fee_bps,
        "half_spread_bps": info.costs.half_spread_bps,
        "borrow_bps_ann": info.costs.borrow_bps_ann,
    }
    return {key: value for key, value in facts.items() if value is not None}
