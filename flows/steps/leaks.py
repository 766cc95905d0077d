"""Leaks: whether anything in a cycle's panels knows the future. The verdict is kept beside each panel.

The way from market to panel is checked in three stretches, each with its own data: the pipelines on the market's newest
bars, what they say against the feature tables that are stored, and the panel against those tables without what became
known after a moment. So a verdict holds for this panel, also where its tables were written by older code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from feature_repo.aggregates.adjustment import ACTIONS
from feature_repo.aggregates.attach import pipeline_bars
from feature_repo.leakage.challenges import newest, pick_moments
from feature_repo.leakage.checks import (
    Builder,
    check_features,
    check_reader,
    feature_names,
    once_a_market,
    questions_at,
    rule_answers,
)
from feature_repo.leakage.findings import Checked, LeakageError, together
from feature_repo.market.schema import Market, MarketError
from feature_repo.pipelines.build import NotApplicableError, build_features
from feature_repo.pipelines.catalog import pipeline
from feature_repo.store.tables import append_rows, read_rows
from flows.steps.data import BAR, Panels, market_grid, point_in_time_panel
from flows.steps.run import Run
from training.artifacts import code_fingerprint
from training.dataset import Panel
from training.leakage.folds import check_folds
from training.leakage.panels import check_panels
from training.leakage.verdict import LeakVerdict, make_verdict, read_verdict, write_verdict
from training.panels import PanelError, load_panel

if TYPE_CHECKING:
    from feast import FeatureStore

NUM_BARS: Final = 300
"""Newest bars whose features are recomputed: twice the longest window, and two months to look from."""
LOOKED_AT: Final = 42
NUM_MOMENTS: Final = 4
NUM_SAMPLES: Final = 84
DECIDING: Final = ("feature_repo", "training", "flows.steps.data", "flows.steps.leaks")
"""The source that makes panels and checks them: a verdict by another one is not reused."""
_CHECKS: Final = (
    *("truncation", "restatement", "changed future", "replay"),
    *("label times", "label in features", "panel truncation"),
)
_BULKY: Final = ("bars_", "trades", "quotes")
_SEED: Final = 7
_NAME: Final = "leakcheck"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakCheck:
    """The verdicts on a cycle's panels by pipeline, and why the others of its panels (``not_checked``) have none."""

    verdicts: Mapping[str, LeakVerdict]
    not_checked: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """What was found, in a line."""
        clean = [verdict for verdict in self.verdicts.values() if verdict.clean]
        num_compared = sum(verdict.num_compared for verdict in clean)
        num_panels = len(self.verdicts) + len(self.not_checked)
        said = [f"{len(clean)} of {num_panels} panels clean, {num_compared:,} values compared in them"]
        said += [_told(verdict) for verdict in self.verdicts.values() if not verdict.clean]
        return "; ".join([*said, *(f"{name} not checked: {reason}" for name, reason in self.not_checked.items())])


def _told(verdict: LeakVerdict) -> str:
    if not verdict.findings:
        return f"{verdict.subject}: nothing could be compared"
    more = f" (and {len(verdict.findings) - 1} more)" if len(verdict.findings) > 1 else ""
    return f"{verdict.subject} LEAKS: {verdict.findings[0].message}{more}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tail:
    """The newest part of a cycle's market, its pipelines' builders and the moments to look at."""

    market: Market
    builders: Mapping[str, Builder]
    moments: Sequence[pd.Timestamp]


def check_leaks(run: Run, market: Market, panels: Panels) -> LeakCheck:
    """A verdict on every panel: the one beside it, where the same code gave it to the same data, or a new one.

    Features are recomputed over the newest ``NUM_BARS`` bars at ``NUM_MOMENTS`` moments, and at those of late or
    restated rows, among the newest ``LOOKED_AT``; of the panel, the ``NUM_SAMPLES`` newest samples are compared. A
    panel that can't be checked has no verdict.
    """
    checks = (*_CHECKS, f"{len(panels.folds)} folds")
    code = code_fingerprint(DECIDING)
    kept = {name: _kept(panels, name, code, checks) for name in panels.folders}
    verdicts = {name: verdict for name, verdict in kept.items() if verdict}
    todo = [name for name in panels.folders if name not in verdicts]
    if not todo:
        return LeakCheck(verdicts=verdicts)
    try:
        tail, not_checked = _tail(run, market, todo)
        features = check_features(tail.builders, tail.market, tail.moments, rng=np.random.default_rng(_SEED))
        bar = [features[BAR], _check_stored(run, tail, BAR)]
    except LeakageError as reason:
        return LeakCheck(verdicts=verdicts, not_checked=dict.fromkeys(todo, str(reason)))
    with _stored_until(run, market, todo, tail.moments[len(tail.moments) // 2]) as cut:
        for name in [name for name in todo if name not in not_checked]:
            try:
                own = [features[name], _check_stored(run, tail, name), _check_panel(run, market, panels, name, cut)]
            except (LeakageError, PanelError, MarketError) as reason:
                not_checked[name] = str(reason)
                continue
            verdicts[name] = make_verdict(
                f"{name}: panel",
                together([*own, *bar]),
                fingerprint=panels.fingerprints[name],
                checks=checks,
                moments=tail.moments,
                scope=f"features of the newest {NUM_BARS} bars, the newest {NUM_SAMPLES} samples",
                code=code,
            )
            write_verdict(panels.folders[name], verdicts[name])
    return LeakCheck(verdicts=verdicts, not_checked=not_checked)


def feature_builders(
    market: Market, interval: str, names: Sequence[str], now: datetime
) -> tuple[dict[str, Builder], dict[str, str]]:
    """A builder a pipeline, which share each market's bars; and the pipelines that don't apply, with the reason."""
    bars = once_a_market(lambda each: pipeline_bars(each, interval))

    def build(name: str, each: Market) -> pd.DataFrame:
        return build_features(
            pipeline(name), bars(each), producer=_NAME, producer_version=_NAME, run_id=_NAME, written_at=now
        )

    builders: dict[str, Builder] = {}
    not_applicable = {}
    for name in names:
        try:
            build(name, market)
        except NotApplicableError as reason:
            not_applicable[name] = str(reason)
        else:
            builders[name] = partial(build, name)
    return builders, not_applicable


def _kept(panels: Panels, name: str, code: str, checks: Sequence[str]) -> LeakVerdict | None:
    """The verdict beside a panel where it is about these data, by this code and these checks."""
    try:
        verdict = read_verdict(panels.folders[name])
    except (LeakageError, UnicodeDecodeError):
        return None
    same = (verdict.fingerprint, verdict.code, verdict.checks) == (panels.fingerprints[name], code, tuple(checks))
    return verdict if same else None


def _tail(run: Run, market: Market, names: Sequence[str]) -> tuple[_Tail, dict[str, str]]:
    interval = run.config.interval
    tail = _newest(market, interval)
    moments = pick_moments(tail, interval, num_bars=LOOKED_AT, num_moments=NUM_MOMENTS)
    known = [moment for moment in moments if moment <= (run.config.as_of or run.now)]  # later rows are not stored yet
    if not known:
        raise LeakageError(f"nothing of the newest {LOOKED_AT} bars is known yet, so there is no moment to look at")
    builders, not_applicable = feature_builders(tail, interval, (BAR, *names), run.now)
    if BAR in not_applicable:
        raise LeakageError(f"every panel needs the pipeline {BAR!r}, and of the newest bars: {not_applicable[BAR]}")
    return _Tail(market=tail, builders=builders, moments=known), not_applicable


def _newest(market: Market, interval: str) -> Market:
    """The newest bars and ticks with all that is said beside them: a window of a slow series may be of years."""
    tail = newest(market, interval, num_bars=NUM_BARS)
    beside = {name: rows for name, rows in market.tables.items() if not name.startswith(_BULKY)}
    return replace(tail, tables={**tail.tables, **beside})


def _check_stored(run: Run, tail: _Tail, name: str) -> Checked:
    """Whether the stored table answers as the market's rows, taken in the order of their knowledge, say it must.

    Compared in 32 bits, as panels have them: another machine's logarithm may differ in the last of 64.
    """
    from feature_repo.definitions.views import TTL  # Feast takes seconds to import

    must = tail.builders[name](tail.market)
    stored = read_rows(run.features / pipeline(name).view_name)
    stored = stored[stored["event_time"] >= must["event_time"].min()]
    questions = questions_at(sorted(set(must["entity_key"])), tail.moments)
    # of an asset that traded too seldom or too long ago the tail holds no whole window
    is_told = rule_answers(must, questions, ttl=TTL)["event_time"].notna()
    questions = questions[is_told].reset_index(drop=True)
    single = dict.fromkeys(feature_names(must), np.float32)
    read = partial(rule_answers, stored.astype(single), ttl=TTL)
    return check_reader(read, must.astype(single), questions, ttl=TTL, check="replay")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """A feature store without what became known after ``moment``."""

    store: FeatureStore
    moment: pd.Timestamp


@contextmanager
def _stored_until(run: Run, market: Market, names: Sequence[str], moment: pd.Timestamp) -> Iterator[_Cut]:
    """The stored rows that the newest samples rest on, those known at the moment, in a store of their own."""
    from feature_repo.definitions.repo import open_feature_store  # Feast takes seconds to import
    from feature_repo.definitions.views import TTL

    first = market_grid(market, run.config.interval).tail(NUM_SAMPLES + LOOKED_AT).event_times_T[0]
    since = pd.Timestamp(first).tz_localize("UTC") - TTL
    with tempfile.TemporaryDirectory() as folder:
        for view in [pipeline(name).view_name for name in (BAR, *names)]:
            rows = read_rows(run.features / view)
            is_known = (rows[["event_time", "ingest_time"]] <= moment).all(axis=1)
            append_rows(Path(folder) / view, rows[is_known & (rows["event_time"] >= since)])
        store = open_feature_store(
            project=_NAME,
            registry=f"sqlite:///{folder}/registry.db",
            features_root=Path(folder),
            interval=run.config.interval,
        )
        yield _Cut(store=store, moment=moment)


def _check_panel(run: Run, market: Market, panels: Panels, name: str, cut: _Cut) -> Checked:
    """The panel's labels and folds, and its newest samples against those that the cut store gives."""
    panel = load_panel(panels.folders[name])
    wanted = {f"bars_{run.config.interval}", "universe", ACTIONS}
    facts = replace(market, tables={table: rows for table, rows in market.tables.items() if table in wanted})

    def build(each: Market) -> Panel:
        if each is facts:
            return panel
        grid = market_grid(each, run.config.interval).tail(NUM_SAMPLES)
        return point_in_time_panel(name, each, grid, run.config.horizon, cut.store, label=run.config.label)

    samples = check_panels({name: build}, facts, [cut.moment], rng=np.random.default_rng(_SEED))[name]
    return together([samples, check_folds(panel, [*panels.folds, *panels.tuning, panels.live])])
