"""Live ratings: what every variant's live forecasts have earned up to the newest known prices, kept every five minutes.

They are made by ``build_tracks`` and ``rate``, as the out-of-sample ones are, so the two can't disagree on a bar. Only
``timely`` forecasts count: those by models that were there before the bar could be traded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.kernels.rolling import rolling_std
from feature_repo.market.calendar import PriceGrid, first_price_after
from feature_repo.market.costs import CostModel
from feature_repo.market.schema import Market
from training.dataset import Panel
from training.labels import make_labels
from training.rating.engine import rate
from training.rating.tracks import build_tracks
from training.signals import SignalStore
from training.trainer import FoldResult

FloatArray = NDArray[np.float64]

SLOT: Final = timedelta(minutes=5)
VOL_BARS: Final = 60

# Tensor suffixes: T bars, N entities.


class SnapshotError(ValueError):
    """A snapshot that can't be taken as asked; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotStore:
    """The history of snapshots: Parquet files ``<root>/<day>/<HHMM>.parquet``, one a slot of five minutes (UTC).

    A row is a variant's figures at ``at``; the two are the key. A slot's file appears whole or not at all, and the
    first one stays.
    """

    root: Path

    def write(self, rows: pd.DataFrame, *, slot: datetime) -> None:
        """Keep a slot's rows, unless it has some."""
        path = self._path(slot)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), partial)
        with suppress(FileExistsError):
            os.link(partial, path)  # unlike a rename it does not replace
        partial.unlink()

    def at(self, slot: datetime) -> pd.DataFrame | None:
        """A slot's rows; ``None`` where there are none."""
        path = self._path(slot)
        return pq.read_table(path).to_pandas() if path.exists() else None

    def read(self, since: datetime, until: datetime) -> pd.DataFrame:
        """All rows with ``since <= at < until``, in order of time; no columns where there are none."""
        tables = [pq.read_table(path) for path in self._between(_utc(since), _utc(until))]
        return pa.concat_tables(tables, promote_options="default").to_pandas() if tables else pd.DataFrame()

    def _path(self, slot: datetime) -> Path:
        return self.root / f"{slot:%Y-%m-%d}" / f"{slot:%H%M}.parquet"

    def _between(self, since: datetime, until: datetime) -> Iterator[Path]:
        for path in sorted(self.root.glob("*/*.parquet")):
            slot = datetime.strptime(f"{path.parent.name} {path.stem}", "%Y-%m-%d %H%M").replace(tzinfo=UTC)
            if since <= slot < until:
                yield path


def slot_of(at: datetime) -> datetime:
    """The start of the five minutes that a moment lies in."""
    at = _utc(at)
    return at - timedelta(minutes=at.minute % 5, seconds=at.second, microseconds=at.microsecond)


def snapshot(
    store: SnapshotStore,
    signals: SignalStore,
    thresholds: Mapping[str, Mapping[str, float]],
    panel: Panel,
    market_FT: FloatArray,
    *,
    at: datetime,
    costs: CostModel,
    periods_per_year: float,
    traded_value_TN: FloatArray | None = None,
    active: Collection[str] = (),
    num_parameters: Mapping[str, int] = MappingProxyType({}),
) -> pd.DataFrame:
    """Rate every variant by its live signals up to now, and keep the figures: one row a variant, best rank first.

    ``panel`` is a ``live_panel`` as known at ``at``, ``market_FT`` the market's returns over its bars (see ``rate``; of
    the open one those so far). Columns: ``at`` (the slot's start), ``variant``, ``bar`` (the newest that counts, null
    before the first) and those of ``rate``. The slot's snapshot is taken once: asked again within it, the one that is
    kept is returned.
    """
    slot = slot_of(at)
    kept = store.at(slot)
    if kept is not None:
        return kept
    tracks = build_tracks(signals, thresholds, panel, costs=costs, kind="live", traded_value_TN=traded_value_TN)
    rated = np.isin(panel.event_times_T, tracks.event_times_T)
    ratings = rate(
        tracks,
        market_FT[:, rated],
        periods_per_year=periods_per_year,
        active=active,
        num_parameters=num_parameters,
    )
    rows = ratings.table.reset_index()
    newest = tracks.event_times_T[-1] if len(tracks.event_times_T) else np.datetime64("NaT", "us")
    rows.insert(0, "at", pd.Timestamp(slot).as_unit("us"))
    rows.insert(2, "bar", pd.Series([newest] * len(rows), dtype="datetime64[us]").dt.tz_localize("UTC"))
    store.write(rows, slot=slot)
    return rows


def live_panel(grid: PriceGrid, newest_N: FloatArray, *, horizon: int) -> Panel:
    """What rating needs to know of the bars of a grid, with no features: labels, and what a book holds over.

    ``newest_N`` is each entity's newest known price. The last decision executed is still open: its ``hold_TN`` is the
    return from its execution to that price. A decision whose execution price the grid doesn't hold yet is not in the
    book. ``vol_TN`` is that of the last 60 bars' closes.
    """
    times_T, price_TN = first_price_after(grid)
    returns_TN = np.full(grid.close_TN.shape, np.nan)
    returns_TN[1:] = grid.close_TN[1:] / grid.close_TN[:-1] - 1.0
    vol_TN = np.column_stack([rolling_std(returns_N, VOL_BARS, 1) for returns_N in np.ascontiguousarray(returns_TN.T)])
    labels, next_labels = (
        make_labels(exec_times_T=times_T, exec_price_TN=price_TN, vol_TN=vol_TN, horizon=bars) for bars in (horizon, 1)
    )
    hold_TN = next_labels.forward_TN
    num_executed = int((~np.isnat(times_T)).sum())
    if num_executed:
        hold_TN[num_executed - 1] = newest_N / price_TN[num_executed - 1] - 1.0
    return Panel(
        pipeline="live",
        event_times_T=grid.event_times_T,
        sample_times_T=grid.sample_times_T,
        entities=grid.entities,
        feature_names=(),
        x_TNF=np.empty((*price_TN.shape, 0), dtype=np.float32),
        returns_TN=returns_TN,
        vol_TN=vol_TN,
        hold_TN=hold_TN,
        labels=labels,
        fingerprint="",
    )


def newest_prices(market: Market, entities: Sequence[str], *, at: datetime) -> FloatArray:
    """Each entity's newest price known at ``at``, from the bars of every interval and the trades (N,); NaN without one.

    Of several versions the one known last counts.
    """
    parts = [
        table.rename(columns={"price": "close"})[["entity_key", "event_time", "ingest_time", "close"]]
        for name, table in market.tables.items()
        if name.startswith("bars_") or name == "trades"
    ]
    prices = pd.concat([part[(part["event_time"] <= at) & (part["ingest_time"] <= at)] for part in parts])
    prices = prices[prices["close"].notna()].sort_values(["event_time", "ingest_time"], kind="stable")
    return prices.groupby("entity_key")["close"].last().reindex(list(entities)).to_numpy(dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelySignals(SignalStore):
    """A signal store without the forecasts of bars that could be traded before their model was there.

    A model is there from its first forecast on: a fit leaves that. Bars that an evaluation caught up later, by a model
    that was there in time, are forecasts like any. ``executed`` maps a bar's end to the time of its first tradable
    price, both in UTC; a bar that has none yet is still to be executed.
    """

    executed: pd.Series

    def read(self, variant: str, *, model_versions: list[str], kind: str) -> pd.DataFrame:
        frame = SignalStore.read(self, variant, model_versions=model_versions, kind=kind)
        there = frame.groupby("model_version")["made_at"].transform("min")
        executed = frame["event_time"].map(self.executed)
        return frame[executed.isna() | (there < executed)].reset_index(drop=True)


def timely(signals: SignalStore, panel: Panel) -> TimelySignals:
    """The store's forecasts that no model made of what it may have learned from."""
    ends, executed = (
        pd.DatetimeIndex(times).tz_localize("UTC") for times in (panel.event_times_T, panel.labels.start_T)
    )
    return TimelySignals(root=signals.root, executed=pd.Series(executed, index=ends))


def live_fits(signals: SignalStore, fits: Path, *, interval: str, horizon: int) -> dict[str, list[FoldResult]]:
    """The fits behind the live signals in the store, by variant, the newest last, as ``trainer.train_fold`` left them.

    Signals of other origin than ``fits``, or of another interval or horizon, are left out.
    """
    found: dict[str, list[FoldResult]] = {}
    for path in sorted(signals.root.glob("*/*-live.parquet")):
        variant, version = path.parent.name, path.stem.removesuffix("-live")
        fit = fits / variant / version / "result.json"
        first = pq.read_table(path, columns=["interval", "horizon"]).slice(0, 1).to_pylist()
        if fit.exists() and first == [{"interval": interval, "horizon": horizon}]:
            found.setdefault(variant, []).append(FoldResult(**json.loads(fit.read_text())))
    return {variant: sorted(each, key=lambda fit: (fit.trained_to, fit.key)) for variant, each in found.items()}


def _utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise SnapshotError(f"a moment needs a time zone; got {at.isoformat()}: give datetime.now(UTC)")
    return at.astimezone(UTC)
