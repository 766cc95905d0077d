"""A home with a few live fits on a small market, whose bars come to be known as the clock goes."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import psycopg

from feature_repo.definitions.repo import open_feature_store
from feature_repo.market.schema import Market
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps import data, fit
from flows.steps.evaluate import Evaluation, evaluate
from flows.steps.run import Run, name_run
from tests.flows.small_market import write_small_market
from training.engine import Pool
from training.evaluation import LiveModel, live_models
from training.models.spec import Budget
from training.rating.promotion import Assignment
from training.signals import SignalStore
from training.trainer import FoldResult, train_fold
from training.variants import Variant, full_grid

NUM_DAYS = 460
PIPELINES = ("momentum", "ohlcv")
ENDS = pd.bdate_range("2019-01-01", periods=NUM_DAYS, tz="UTC") + pd.Timedelta(hours=21)
LAG = timedelta(minutes=15)
RESTATED = -7
"""This bar has another close from between the first and the second of the last three bars on."""


def bar_known(number: int) -> datetime:
    """When a bar has just become known; ``-1`` is the market's last."""
    return ENDS[number].to_pydatetime() + LAG + timedelta(minutes=5)


def write_market(folder: Path) -> Path:
    """The small market with a bar that is restated on the way."""
    write_small_market(folder, num_assets=5, num_days=NUM_DAYS)
    bars = pd.read_parquet(folder / "bars_1d.parquet")
    old = bars[(bars["event_time"] == ENDS[RESTATED]) & (bars["entity_key"] == "A1")]
    known = pd.Timestamp(bar_known(-3) + timedelta(hours=4)).as_unit("us")
    restated = old.assign(close=1.2 * old["close"], ingest_time=known)
    at = bars.index.get_loc(old.index[0]) + 1  # beside the first version: a row out of order is one of bad data
    together = pd.concat([bars[:at], restated, bars[at:]], ignore_index=True)
    together.to_parquet(folder / "bars_1d.parquet", index=False)
    return folder


def pick(architecture: str, pipeline: str, lookback: int) -> Variant:
    """The first such variant of the full grid."""
    return next(v for v in full_grid([pipeline]) if v.architecture == architecture and v.lookback == lookback)


def variants() -> list[Variant]:
    """One of each manner: trees, parameters of each entity, a network."""
    return [pick("lightgbm", "momentum", 7), pick("var", "ohlcv", 7), pick("dlinear", "momentum", 14)]


class Inline:
    """A worker in this process."""

    def ask(self, question: bytes) -> bytes:
        run, task = pickle.loads(question)
        return pickle.dumps((True, run(task)))

    def end(self) -> None:
        """Nothing to end."""

    abort = end


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A home, the market's folder, and a database of the home's own (None: of the fits alone)."""

    home: Path
    folder: Path
    connection: psycopg.Connection

    @property
    def signals(self) -> SignalStore:
        return SignalStore(root=Settings(home=self.home).signals / "small")

    @property
    def fits(self) -> Path:
        return Settings(home=self.home).cycles / "fits"

    def run(self, now: datetime) -> tuple[Run, Market]:
        config = CycleConfig(market=str(self.folder), folds=1)
        market = data.load(config, now)
        return name_run(Settings(home=self.home), config, market, now), market

    def fit(self, now: datetime, chosen: Sequence[Variant], *, seed: int = 7) -> dict[str, FoldResult]:
        """The live fits of a cycle at this time."""
        run, market = self.run(now)
        run = replace(run, config=replace(run.config, seed=seed))
        data.build_tables(run, market, self.connection)
        panels = data.assemble_panels(run, market, PIPELINES, self._store(run))
        done = {}
        for variant in chosen:
            task = fit.fold_task(run, panels, variant, panels.live, kind="live", costs=market.info.costs, tuned={})
            done[variant.id] = train_fold(replace(task, budget=Budget(max_trees=8, max_epochs=2, device="cpu")))
        assert all(result.ok for result in done.values()), done
        return done

    def evaluate(
        self, now: datetime, pool: Pool | None = None, *, held: Mapping[str, Assignment] = MappingProxyType({})
    ) -> Evaluation:
        """An evaluation at this time, an hour of which passes with each answer."""
        run, market = self.run(now)
        hours = iter(range(1, 1000))
        return evaluate(
            run,
            market,
            self.connection,
            lambda: self._store(run),
            pool or Pool([Inline()]),
            clock=lambda: now + timedelta(minutes=next(hours)),
            held=held,
        )

    def models(self) -> Mapping[str, list[LiveModel]]:
        found, unreadable = live_models(self.signals, self.fits, interval="1d", horizon=1)
        assert not unreadable
        return found

    def said(self, *, since: int) -> pd.DataFrame:
        """All live signals of the last bars, in order."""
        names = sorted(self.signals.versions("live"))
        frames = [self.signals.read(variant, model_versions=[key], kind="live") for variant, key in names]
        rows = pd.concat(frames)
        rows = rows[rows["event_time"] >= ENDS[since]]
        return rows.sort_values(["variant", "model_version", "event_time", "entity_key"], ignore_index=True)

    def copy(self, home: Path, connection: psycopg.Connection) -> Desk:
        """The same home elsewhere, with another database, and a market of its own."""
        shutil.copytree(self.home, home)
        shutil.copytree(self.folder, home / "markets" / "small")
        return Desk(home=home, folder=home / "markets" / "small", connection=connection)

    def _store(self, run: Run):
        registry = f"sqlite:///{self.home}/registry.db"
        return open_feature_store(project="small", registry=registry, features_root=run.features, interval="1d")
