"""Evaluation: whatever its stage, every variant with a live fit forecasts each new bar; what was missed is caught up.

Nothing is fitted here. Which model speaks of which bar is ``training.evaluation``'s rule; here is what is due, what was
said already, and the way there: feature tables, panels of just the bars that are needed, the workers, the store.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import psycopg
from numpy.typing import NDArray

from feature_repo.market.calendar import PriceGrid
from feature_repo.market.schema import Market
from flows.steps import data
from flows.steps.run import Run
from training.dataset import TimeArray
from training.engine import Lost, Pool
from training.evaluation import (
    KIND,
    NONE,
    LiveModel,
    Scored,
    ScoringTask,
    failure,
    latencies,
    live_models,
    score_models,
    signal_rows,
    speakers,
)
from training.latency import silent_bars, write_latencies
from training.panels import PanelError, save_panel
from training.rating.promotion import Assignment
from training.signals import SignalStore

if TYPE_CHECKING:
    from feast import FeatureStore

Clock = Callable[[], datetime]
OpenStore = Callable[[], "FeatureStore"]

MOST_MISSED: Final = 252
"""Bars that are caught up; what was missed before that stays missed."""
MODELS_AT_ONCE: Final = 8
BARS_AT_ONCE: Final = 64
"""So many models, and forecasts of theirs, are one task of the pool."""
_PANELS: Final = "evaluation"


class EvaluateError(RuntimeError):
    """An evaluation that can't begin; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation came to.

    Of ``num_variants`` with a live fit ``num_scored`` forecast bars now: ``num_bars`` different ones, in so many
    signals; ``num_late`` of a variant's bars were caught up, newer ones being there. ``failed`` maps a variant to the
    reason; it is tried again the next time. ``waits_for`` is the end of a bar that is not whole yet (ISO 8601, UTC).
    """

    market: str
    num_variants: int
    num_scored: int = 0
    num_bars: int = 0
    num_late: int = 0
    num_signals: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    waits_for: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Bars that a model has not forecast, by their ends (datetime64[us], UTC)."""

    model: LiveModel
    event_times: TimeArray


class _Watch:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def evaluate(
    run: Run,
    market: Market,
    connection: psycopg.Connection,
    open_store: OpenStore,
    pool: Pool,
    *,
    clock: Clock,
    held: Mapping[str, Assignment] = MappingProxyType({}),
) -> Evaluation:
    """Forecast every bar that is due and has not been forecast yet, by every variant with a live fit.

    ``connection`` is in autocommit mode and holds the market's lock, ``open_store`` opens the market's Feast store,
    ``held`` are the versions that hold a stage, by variant.
    Signals are dated by the ``clock`` when they are there, and kept as they come: a killed evaluation is taken up by
    the next one. Raises ``EvaluateError`` before the first cycle.
    """
    config, watch, signals = run.config, _Watch(), SignalStore(root=run.signals)
    with watch.part("what is missing"):
        models, failed = live_models(signals, run.fits, interval=config.interval, horizon=config.horizon)
        if not models and not failed:
            raise EvaluateError(
                f"no variant has a live fit for {config.interval} bars of market {run.market!r}, {config.horizon} "
                "ahead, and an evaluation fits nothing: `perennial run` with the same market does"
            )
        grid = data.market_grid(market, config.interval)
        num_due = due(grid, run.now)
        missing = missing_bars(models, held, grid, num_due, signals, connection, run.market)
    scored: list[Scored] = []
    if missing:
        with watch.part("feature tables"), ThreadPoolExecutor(1) as beside:
            tables = beside.submit(data.build_tables, run, market, connection, pool)
            store = open_store()  # Feast takes seconds to import, and the workers build meanwhile
            not_applicable = tables.result()
        with _panel_folder(run) as folder:
            with watch.part("panels"):
                panels, without = _panels(run, market, grid, missing, store, folder, not_applicable)
                tasks, impossible = _tasks(run, missing, panels, without)
            scored += impossible

            def keep(results: Sequence[Scored]) -> None:
                scored.extend(results)
                _keep(run, signals, connection, results, clock())

            with watch.part("forecasts"):
                score_all(tasks, pool, keep)
    failed |= {each.variant: each.reason for each in scored if each.reason}
    return _evaluation(run, len({*models, *failed}), failed, scored, grid, num_due, watch.seconds)


# ---- what is due -----------------------------------------------------------------------------------------------------


def due(grid: PriceGrid, now: datetime) -> int:
    """How many of the grid's bars may be forecast: all, but the newest only once it is whole.

    It is when every entity that had the bar before has it, or after the longest publication lag of the last month: who
    is later than that is not waited for. What is said of a bar stays, so it must not be said on half of it.
    """
    num_bars = len(grid.event_times_T)
    known_TN = np.isfinite(grid.close_TN)
    if num_bars < 2 or not (known_TN[-2] & ~known_TN[-1]).any():
        return num_bars
    lags_T = (grid.sample_times_T - grid.event_times_T)[-1 - data.TEST : -1]
    moment = np.datetime64(now.astimezone(UTC).replace(tzinfo=None), "us")
    return num_bars if moment > grid.event_times_T[-1] + lags_T.max() else num_bars - 1


def missing_bars(
    models: Mapping[str, Sequence[LiveModel]],
    held: Mapping[str, Assignment],
    grid: PriceGrid,
    num_due: int,
    signals: SignalStore,
    connection: psycopg.Connection,
    market: str,
) -> list[Missing]:
    """What each model has not said a word on, of the bars that are its own among the newest due ones.

    A bar is done where the store has a signal of it, or where it was forecast and there was nothing to say.
    """
    rows = slice(max(0, num_due - MOST_MISSED), num_due)
    event_times_T, sample_times_T = grid.event_times_T[rows], grid.sample_times_T[rows]
    silent: dict[tuple[str, str], list[np.datetime64]] = {}
    for variant, version, end in silent_bars(connection, market, since=_aware(event_times_T[0])):
        silent.setdefault((variant, version), []).append(_naive(end))
    found = []
    for variant, own in models.items():
        speaking_T = _speakers(own, sample_times_T, held.get(variant))
        for at in np.unique(speaking_T[speaking_T != NONE]):
            model = own[at]
            done = [
                *signals.event_times(variant, model_version=model.key, kind=KIND),
                *silent.get((variant, model.key), []),
            ]
            left = np.setdiff1d(event_times_T[speaking_T == at], np.array(done, dtype="datetime64[us]"))
            if len(left):
                found.append(Missing(model=model, event_times=left))
    return found


def _speakers(own: Sequence[LiveModel], sample_times_T: TimeArray, held: Assignment | None) -> NDArray[np.intp]:
    if held is None:
        return speakers(own, sample_times_T)
    return speakers(own, sample_times_T, held=held.training_key, since=_naive(held.since))


# ---- panels and tasks ------------------------------------------------------------------------------------------------


@contextmanager
def _panel_folder(run: Run) -> Iterator[Path]:
    """A place for panels that serve once; the market's lock keeps others out of it."""
    folder = run.panels / _PANELS / run.market / run.config.interval
    shutil.rmtree(folder, ignore_errors=True)  # left by one that was killed
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _panels(
    run: Run,
    market: Market,
    grid: PriceGrid,
    missing: Sequence[Missing],
    store: FeatureStore,
    folder: Path,
    not_applicable: Mapping[str, str],
) -> tuple[dict[str, Path], dict[str, str]]:
    """The pipelines' panels over the bars that are missing and their lookback, and why others have none."""
    first = np.searchsorted(grid.event_times_T, min(each.event_times[0] for each in missing))
    longest = max(each.model.lookback for each in missing)
    grid = grid.tail(len(grid.event_times_T) - int(first) + longest - 1)
    panels, without = {}, {}
    for name in sorted({each.model.pipeline for each in missing}):
        if name in not_applicable:
            without[name] = not_applicable[name]
            continue
        try:
            panel = data.point_in_time_panel(name, market, grid, run.config.horizon, store, label=run.config.label)
            panels[name] = save_panel(panel, folder)
        except PanelError as reason:
            without[name] = str(reason)
    return panels, without


def _tasks(
    run: Run, missing: Sequence[Missing], panels: Mapping[str, Path], without: Mapping[str, str]
) -> tuple[list[ScoringTask], list[Scored]]:
    """What the workers are asked, those of a pipeline and an architecture together; and what nobody can be asked."""
    tasks, impossible = [], []
    times_T = {name: np.load(folder / "event_times_T.npy") for name, folder in panels.items()}
    for each in sorted(missing, key=lambda each: (each.model.pipeline, each.model.architecture, each.model.variant)):
        model, reason = each.model, without.get(each.model.pipeline, "")
        entities = trained_entities(run.panels, model.panel_fingerprint) if model.per_entity else None
        if model.per_entity and entities is None:
            reason = reason or (
                f"the panel {model.panel_fingerprint[:16]} that it learned from is gone from {run.panels}, so nobody "
                "knows which entities its parameters belong to; `perennial run` fits it again"
            )
        if reason:
            impossible.append(Scored(variant=model.variant, key=model.key, reason=reason))
            continue
        rows = tuple(np.searchsorted(times_T[model.pipeline], each.event_times).tolist())
        tasks.append(ScoringTask(model=model, panel=panels[model.pipeline], rows=rows, entities=entities))
    return tasks, impossible


def trained_entities(panels: Path, fingerprint: str) -> tuple[str, ...] | None:
    """The entities of a saved panel, in its order; None where it is gone."""
    file = panels / fingerprint[:16] / "panel.json"
    return tuple(json.loads(file.read_text())["entities"]) if file.exists() else None


# ---- the workers -----------------------------------------------------------------------------------------------------


def score_all(tasks: Sequence[ScoringTask], pool: Pool, keep: Callable[[Sequence[Scored]], None]) -> None:
    """Forecast all tasks in the pool, some at once; ``keep`` gets results as they come.

    Of those whose worker was lost (it took too long, or died) each is tried again by itself.
    """
    left: list[ScoringTask] = []

    def take(answer: list[Scored] | Lost[list[ScoringTask]]) -> None:
        if not isinstance(answer, Lost):
            keep(answer)
        elif len(answer.task) > 1:
            left.extend(answer.task)
        else:
            keep([failure(answer.task[0], answer.reason)])

    pool.map(score_models, list(_chunks(tasks)), on_done=take)
    alone, left = left, []
    pool.map(score_models, [[task] for task in alone], on_done=take)


def _chunks(tasks: Iterable[ScoringTask]) -> Iterator[list[ScoringTask]]:
    chunk: list[ScoringTask] = []
    for task in tasks:
        num_bars = sum(len(each.rows) for each in (*chunk, task))
        if chunk and (len(chunk) == MODELS_AT_ONCE or num_bars > BARS_AT_ONCE or task.panel != chunk[0].panel):
            yield chunk
            chunk = []
        chunk.append(task)
    if chunk:
        yield chunk


def _keep(
    run: Run, signals: SignalStore, connection: psycopg.Connection, results: Sequence[Scored], made_at: datetime
) -> None:
    """Times first: a bar without signals is done only where its time says that there were none to make."""
    good = [each for each in results if each.bars]
    write_latencies(connection, run.market, [row for each in good for row in latencies(each, measured_at=made_at)])
    frames = [
        signal_rows(each, interval=run.config.interval, horizon=run.config.horizon, made_at=made_at) for each in good
    ]
    if any(map(len, frames)):
        signals.append(pd.concat([frame for frame in frames if len(frame)], ignore_index=True))


def _evaluation(
    run: Run,
    num_variants: int,
    failed: Mapping[str, str],
    scored: Sequence[Scored],
    grid: PriceGrid,
    num_due: int,
    seconds: Mapping[str, float],
) -> Evaluation:
    bars = [(each.variant, bar) for each in scored for bar in each.bars]
    newest = grid.event_times_T[num_due - 1]
    waiting = grid.event_times_T[num_due:]
    return Evaluation(
        market=run.market,
        num_variants=num_variants,
        num_scored=len({variant for variant, _ in bars}),
        num_bars=len({bar.event_time for _, bar in bars}),
        num_late=sum(bool(bar.event_time < newest) for _, bar in bars),
        num_signals=sum(int(np.isfinite(bar.score_N).sum()) for _, bar in bars),
        failed=dict(sorted(failed.items())),
        waits_for=_aware(waiting[0]).isoformat() if len(waiting) else "",
        seconds=seconds,
    )


def _aware(moment: np.datetime64) -> datetime:
    return pd.Timestamp(moment, tz="UTC").to_pydatetime()


def _naive(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")
