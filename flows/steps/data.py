"""Market to panels: feature tables, then what Feast says was known at every sample time, labels and folds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import psycopg
from numpy.typing import NDArray

from feature_repo.aggregates.adjustment import ACTIONS, adjust, settle_delistings
from feature_repo.aggregates.attach import pipeline_bars
from feature_repo.market import fundamentals
from feature_repo.market.assembly import known_at
from feature_repo.market.calendar import PriceGrid, first_price_after, price_grid
from feature_repo.market.fundamentals import fundamental_rows
from feature_repo.market.liquidity import mean_traded_value
from feature_repo.market.schema import Market, MarketError, MarketInfo
from feature_repo.market.sources import load_market
from feature_repo.market.universe import members
from feature_repo.pipelines.build import NotApplicableError, build_features
from feature_repo.pipelines.catalog import CATALOGUE, pipeline
from feature_repo.store.postgres import View
from feature_repo.store.record import record
from feature_repo.store.tables import append_rows
from flows.cycle import CycleConfig
from flows.steps.run import Run
from training.dataset import Labels, Panel
from training.engine import Lost, Pool
from training.labels import LabelKind, make_labels
from training.panels import PanelError, build_panel, known_features, save_panel
from training.splits.walk_forward import Fold, final_fold, walk_forward
from training.splits.yearly import yearly
from training.worker import EngineError

FloatArray = NDArray[np.float64]

if TYPE_CHECKING:
    from feast import FeatureStore

TRAIN: Final = 252
VALIDATE: Final = 63
TEST: Final = 21
TUNING_FOLDS: Final = 2
LONGEST_LOOKBACK: Final = 90
BAR: Final = "bar"
PRODUCER: Final = "perennial"


@dataclass(frozen=True, kw_only=True, slots=True)
class Panels:
    """The panels of a cycle, all on one grid of sample times.

    ``folders`` and ``fingerprints`` go by pipeline, ``not_applicable`` says why others have none; ``market_FT``
    are the returns of ``market_returns``, ``traded_value_TN`` what of an asset trades in a bar.
    ``folds`` are tested on, ``live`` is the final fit, ``tuning`` lie wholly before the first test window.
    """

    folders: Mapping[str, Path]
    fingerprints: Mapping[str, str]
    not_applicable: Mapping[str, str]
    market_FT: FloatArray
    traded_value_TN: FloatArray
    folds: Sequence[Fold]
    live: Fold
    tuning: Sequence[Fold]


def load(config: CycleConfig, now: datetime) -> Market:
    """The market as known at the cycle's as-of time, adjusted for its corporate actions, its yearly rates per bar."""
    market = load_market(config.market, now=now)
    market = adjust(known_at(market, config.as_of) if config.as_of else market)
    return replace(market, info=per_bar(market.info, market.traded_bars(config.interval)))


def per_bar(info: MarketInfo, bars: pd.DataFrame) -> MarketInfo:
    """The facts with ``sessions_per_year`` counting bars: its sessions times the bars of a typical session."""
    ends = bars["event_time"].drop_duplicates()
    bars_per_session = ends.groupby((ends - pd.Timedelta("1us")).dt.date).size().median()
    num_bars = round(info.sessions_per_year * bars_per_session)
    return replace(info, sessions_per_year=num_bars, costs=replace(info.costs, sessions_per_year=num_bars))


def feast_project(market: str, interval: str) -> str:
    """Feast's project of a market and interval: letters, digits and underscores only."""
    return re.sub(r"\W", "_", f"{market}_{interval}")


def open_store(run: Run, registry: str) -> FeatureStore:
    """The market's Feast store, its definitions registered at this URL."""
    from feature_repo.definitions.repo import open_feature_store  # Feast takes seconds to import

    return open_feature_store(
        project=feast_project(run.market, run.config.interval),
        registry=registry,
        features_root=run.features,
        interval=run.config.interval,
    )


def market_view(market: str, interval: str, name: str) -> View:
    """A view of a market's pipelines as Postgres knows it: by the path of its folder, for all markets have the same."""
    return View(name=f"{market}/{interval}/{name}", version=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableTask:
    """One pipeline's feature table to be built from these bars."""

    pipeline: str
    bars: pd.DataFrame
    run_id: str
    git_sha: str
    written_at: datetime


def build_table(task: TableTask) -> tuple[str, pd.DataFrame | str]:
    """The pipeline's name and its rows, or the reason why it does not apply to these bars."""
    by = {"producer": PRODUCER, "producer_version": task.git_sha, "run_id": task.run_id}
    try:
        return task.pipeline, build_features(pipeline(task.pipeline), task.bars, **by, written_at=task.written_at)
    except NotApplicableError as reason:
        return task.pipeline, str(reason)


def build_tables(
    run: Run,
    market: Market,
    connection: psycopg.Connection | None,
    pool: Pool | None = None,
    *,
    pipelines: Sequence[str] = tuple(CATALOGUE),
) -> dict[str, str]:
    """Bring the pipelines' feature tables, and the bars' own, up to date; returns who don't apply, with the reason.

    The tables are recorded in Postgres (``connection`` is in autocommit mode) and exported to ``run.features``, or
    are there alone, where they are nobody else's business (None). They are built in the ``pool``, or here without one.
    """
    bars = _pipeline_bars(market, run.config.interval, pool)
    tasks = [
        TableTask(pipeline=name, bars=bars, run_id=run.cycle_id, git_sha=run.git_sha, written_at=run.now)
        for name in (BAR, *pipelines)
    ]
    absent: dict[str, str] = {}

    def write(built: tuple[str, pd.DataFrame | str] | Lost[TableTask]) -> None:
        if isinstance(built, Lost):
            raise EngineError(f"the feature table of {built.task.pipeline} could not be built: {built.reason}")
        name, rows = built
        if isinstance(rows, str):
            absent[name] = rows
            return
        # a version waiting for its tick is not known yet; written early it could differ from the one that comes
        known = rows[rows["ingest_time"] <= (run.config.as_of or run.now)]
        _write_rows(run, pipeline(name).view_name, known, connection, may_grow=False)

    if pool is None:
        for task in tasks:
            write(build_table(task))
    else:
        pool.map(build_table, tasks, on_done=write)
    if "fundamentals" in market.tables:
        by = {"producer": PRODUCER, "producer_version": run.git_sha, "run_id": run.cycle_id}
        rows = fundamental_rows(market.tables["fundamentals"], **by, written_at=run.now)
        _write_rows(run, fundamentals.VIEW, rows, connection, may_grow=True)
    return {name: absent[name] for name in (BAR, *pipelines) if name in absent}


def _pipeline_bars(market: Market, interval: str, pool: Pool | None) -> pd.DataFrame:
    """``pipeline_bars``; in a worker this process can import meanwhile."""
    if pool is None:
        return pipeline_bars(market, interval)
    (bars,) = pool.map(_bars_of, [(market, interval)])
    if isinstance(bars, Lost):
        raise EngineError(f"the bars of {market.info.name} could not be put together: {bars.reason}")
    return bars


def _bars_of(question: tuple[Market, str]) -> pd.DataFrame:
    return pipeline_bars(*question)


def _write_rows(
    run: Run, name: str, rows: pd.DataFrame, connection: psycopg.Connection | None, *, may_grow: bool
) -> None:
    if connection is None:
        append_rows(run.features / name, rows, may_grow=may_grow)
    else:
        view = market_view(run.market, run.config.interval, name)
        record(connection, view, run.features / name, rows, may_grow=may_grow)


def assemble_panels(run: Run, market: Market, pipelines: Iterable[str], store: FeatureStore) -> Panels:
    """Ask Feast what was known at every sample time, add the labels, cut the folds and save the panels."""
    config, benchmark = run.config, market.info.benchmark
    grid = market_grid(market, config.interval)
    grid = grid.tail(sessions_needed(config, len(grid.event_times_T)))
    panels, not_applicable = {}, {}
    for name in pipelines:
        try:
            panel = point_in_time_panel(name, market, grid, config.horizon, store, label=config.label)
            panels[name] = still_fed(panel)
        except PanelError as reason:
            not_applicable[name] = str(reason)
    if not panels:
        raise MarketError(f"no pipeline applies to market {market.info.name!r}: it needs at least closes; see its bars")
    first = next(iter(panels.values()))
    return Panels(
        folders={name: save_panel(panel, run.panels) for name, panel in panels.items()},
        fingerprints={name: panel.fingerprint for name, panel in panels.items()},
        not_applicable=not_applicable,
        market_FT=market_returns(grid, benchmark, first.hold_TN),
        traded_value_TN=mean_traded_value(market.bars(config.interval), grid.only(first.entities)),
        folds=_test_folds(first, config),
        live=final_fold(*_times(first), train=TRAIN, validate=VALIDATE),
        tuning=_tuning_folds(first, config),
    )


def still_fed(panel: Panel) -> Panel:
    """The panel, unless the pipeline's data ended: nobody can trade on features that have had no value for a month."""
    last_known = int(np.argwhere(np.isfinite(panel.x_TNF))[-1, 0])
    if last_known >= len(panel.event_times_T) - TEST:
        return panel
    last = pd.Timestamp(panel.event_times_T[last_known])
    raise PanelError(
        f"pipeline {panel.pipeline!r} has had no feature with a value since {last:%Y-%m-%d}, over {TEST} bars ago: it "
        "is not applicable; bring newer data, or look at an earlier time with --as-of"
    )


def sessions_needed(config: CycleConfig, available: int) -> int:
    """How many of the newest sessions a cycle looks at: of the others, whole steps are dropped at the start.

    Dropping whole steps keeps the folds' dates the same from one day's cycle to the next. Years need all there is: the
    train windows of later ones grow.
    """
    if config.splitter == "yearly":
        return available
    tuning = TUNING_FOLDS * TEST
    tail = TEST + config.horizon + 1  # sessions since the newest whole test window, and those not labelled yet
    needed = LONGEST_LOOKBACK + TRAIN + VALIDATE + config.folds * TEST + tuning + tail
    return available - max(0, available - needed) // TEST * TEST


def market_returns(grid: PriceGrid, benchmark: str | None, hold_TN: FloatArray) -> FloatArray:
    """What is no skill to hold (F, T), from each execution time to the next: the benchmark and the assets' mean.

    Beside the benchmark, where there is one, goes the equal-weighted mean of the assets: those that a desk trades
    today are the ones that did well, and holding them beats an index without any skill.
    """
    held = np.isfinite(hold_TN)
    mean_T = np.where(held, hold_TN, 0.0).sum(axis=1) / np.maximum(held.sum(axis=1), 1)
    return mean_T[None] if benchmark is None else np.stack([_benchmark_returns(grid, benchmark), mean_T])


def _benchmark_returns(grid: PriceGrid, benchmark: str) -> FloatArray:
    own = grid.only([benchmark])
    if own.open_TN is not None and not np.isfinite(own.open_TN).any():
        own = replace(own, open_TN=None, open_times_T=None)  # an index of closes beside assets with opens
    return _hold(*first_price_after(own)).forward_TN[:, 0]


def market_grid(market: Market, interval: str) -> PriceGrid:
    """The prices of everything in the market, what delisted assets paid included."""
    grid = price_grid(market.bars(interval), calendar=market.info.calendar, interval=interval)
    return settle_delistings(grid, market.tables[ACTIONS]) if ACTIONS in market.tables else grid


def point_in_time_panel(
    name: str, market: Market, grid: PriceGrid, horizon: int, store: FeatureStore, *, label: LabelKind
) -> Panel:
    """The panel of a pipeline over the grid's traded assets: what Feast says was known at each sample time, and labels.

    Of an asset that was not, as known then, in the universe (where the market has one) nothing is known.
    """
    grid = grid.only([entity for entity in grid.entities if entity != market.info.benchmark])
    spec, bar = pipeline(name), pipeline(BAR).view_name
    names, known_TNF = known_features(store, spec.view_name, entities=grid.entities, sample_times_T=grid.sample_times_T)
    if "universe" in market.tables:
        member_TN = members(market.tables["universe"], grid.entities, grid.sample_times_T)
        known_TNF = np.where(member_TN[..., None], known_TNF, np.nan)
    exec_times_T, exec_price_TN = first_price_after(grid)
    labels = make_labels(
        exec_times_T=exec_times_T,
        exec_price_TN=exec_price_TN,
        vol_TN=known_TNF[..., names.index(f"{bar}__vol_60")],
        horizon=horizon,
        kind=label,
    )
    return build_panel(
        pipeline=name,
        entities=grid.entities,
        event_times_T=grid.event_times_T,
        sample_times_T=grid.sample_times_T,
        names=names,
        known_TNF=known_TNF,
        labels=labels,
        hold_TN=_hold(exec_times_T, exec_price_TN).forward_TN,
        bar_view=bar,
    )


def _hold(exec_times_T: np.ndarray, exec_price_TN: FloatArray) -> Labels:
    """Returns from one execution to the next: labels of horizon 1 whose volatility nobody asks for."""
    return make_labels(
        exec_times_T=exec_times_T, exec_price_TN=exec_price_TN, vol_TN=np.ones_like(exec_price_TN), horizon=1
    )


def _times(panel: Panel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return panel.sample_times_T, panel.labels.start_T, panel.labels.end_T


def _test_folds(panel: Panel, config: CycleConfig) -> list[Fold]:
    if config.splitter == "yearly":
        return yearly(*_times(panel), min_train=TRAIN, validate=VALIDATE, num_folds=config.folds)
    return walk_forward(*_times(panel), train=TRAIN, validate=VALIDATE, test=TEST, num_folds=config.folds)


def _tuning_folds(panel: Panel, config: CycleConfig) -> list[Fold]:
    """Folds whose last sample lies before the first test window, so that tuning never sees a test."""
    first = _test_folds(panel, config)[0]
    early = [times[: first.test.start] for times in _times(panel)]
    return walk_forward(*early, train=TRAIN, validate=VALIDATE, test=TEST, num_folds=TUNING_FOLDS)
