"""What ``perennial leakcheck`` does: the leak detector over a market's pipelines, by the way that a cycle goes."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from feature_repo.aggregates.attach import pipeline_bars
from feature_repo.leakage.challenges import newest, pick_moments
from feature_repo.leakage.checks import (
    Reader,
    check_features,
    check_reader,
    check_replay,
    once_a_market,
    questions_at,
)
from feature_repo.leakage.findings import Checked, micros, together
from feature_repo.market.schema import Market
from feature_repo.pipelines.catalog import CATALOGUE, PIPELINES, pipeline
from feature_repo.store.online_embedded import EmbeddedBackend
from feature_repo.store.online_values import OnlineValues, OnlineView
from feature_repo.store.packed import Unpacked
from feature_repo.store.read_through import ReadThrough
from feature_repo.store.tables import append_rows, read_rows
from flows.cycle import CycleConfig
from flows.steps import data
from flows.steps.leaks import feature_builders
from flows.steps.run import run_apart
from training.dataset import Panel
from training.leakage.canary import CANARY, canary_rows, check_canary, panel_reads
from training.leakage.folds import check_folds
from training.leakage.panels import check_panels
from training.leakage.verdict import LeakVerdict, make_verdict
from training.panels import PanelError, load_panel
from training.splits.walk_forward import SplitError

if TYPE_CHECKING:
    from feast import FeatureStore

_ReadAt: TypeAlias = Callable[[Sequence[str], datetime], Unpacked]

NUM_BARS: Final = 700
"""Newest bars that are checked: the longest window, a fold and its lookback, and two months to look from."""
LOOKED_AT: Final = 42
NUM_MOMENTS: Final = 6
NUM_PANEL_MOMENTS: Final = 2
NUM_RESTATED: Final = 3  # times of restatements that are served, beside the moments
_FEATURE_CHECKS: Final = ("truncation", "restatement", "changed future", "replay")
_PANEL_CHECKS: Final = ("samples", "labels", "label in features", "folds")
_ONLINE_CHECKS: Final = ("materialised", "read-through")
_LONG_AGO: Final = datetime(1970, 1, 2, tzinfo=UTC)
_SEED: Final = 7
_NAME: Final = "leakcheck"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakReport:
    """The verdicts on a market, and what they rest on.

    ``scope`` says what was checked, ``not_applicable`` which pipelines (or ``panels``) could not be, with the reason.
    """

    scope: str
    verdicts: Sequence[LeakVerdict]
    not_applicable: Mapping[str, str]

    @property
    def clean(self) -> bool:
        """Whether every verdict is clean, and there is one."""
        return bool(self.verdicts) and all(verdict.clean for verdict in self.verdicts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cycle:
    """One market's panels with their folds, built as a cycle builds them."""

    panels: Mapping[str, Panel]
    folds: data.Panels

    def panel(self, name: str) -> Panel:
        """A pipeline's panel."""
        if name not in self.panels:
            raise PanelError(self.folds.not_applicable[name])
        return self.panels[name]


def check_market(
    market: str, interval: str, *, only: str | None, now: datetime, tell: Callable[[str], None]
) -> LeakReport:
    """Check the pipelines (or the one named) of a market given by name or directory, and the panels made of them.

    The newest ``NUM_BARS`` bars are checked at ``NUM_MOMENTS`` moments, and at those of late or restated rows, among
    the newest ``LOOKED_AT``; what is served online also when it was restated; panels, which take longer, at
    ``NUM_PANEL_MOMENTS``. ``tell`` is told what goes on.
    """
    config = CycleConfig(market=market, interval=interval, folds=1)
    whole = data.load(config, now)
    tail = newest(whole, interval, num_bars=NUM_BARS)
    moments = pick_moments(tail, interval, num_bars=LOOKED_AT, num_moments=NUM_MOMENTS)
    builders, not_applicable = feature_builders(tail, interval, (only,) if only else tuple(PIPELINES), now)
    tell(f"Checking {len(builders)} feature tables at {len(moments)} moments ...")
    rng = np.random.default_rng(_SEED)
    tables = check_features(builders, tail, moments, rng=rng)
    with tempfile.TemporaryDirectory() as folder:
        replayed = check_replay(builders, tail, moments[::2], folder=Path(folder))
    features = {name: together([tables[name], replayed[name]]) for name in builders}
    verdicts = _verdicts(features, tail, moments, _FEATURE_CHECKS, "features")
    tell("Checking what is served online ...")
    online = check_online(config, tail, list(builders), moments, now)
    verdicts += _verdicts(online, tail, moments, _ONLINE_CHECKS, "online")
    names = [name for name in builders if name in CATALOGUE]
    tell(f"Checking {len(names)} panels and the canary ...")
    try:
        panels, missing = _check_panels(config, tail, names, moments, now)
        verdicts += panels
        not_applicable |= missing
    except (SplitError, PanelError) as reason:
        not_applicable["panels"] = str(reason)
    return LeakReport(scope=_scope(whole, tail, interval, moments), verdicts=verdicts, not_applicable=not_applicable)


def render(console: Console, report: LeakReport) -> None:
    """Print the verdicts as a table, and under it every leak."""
    table = Table(title=report.scope, title_justify="left")
    for name in ("subject", "checks", "moments", "values compared", "verdict"):
        table.add_column(name, justify="right" if name in ("moments", "values compared") else "left")
    for verdict in report.verdicts:
        said = "[green]clean[/]" if verdict.clean else f"[bold red]{len(verdict.findings)} leaks[/]"
        counts = (str(len(verdict.checked_at)), f"{verdict.num_compared:,}")
        table.add_row(verdict.subject, ", ".join(verdict.checks), *counts, said)
    console.print(table)
    for name, reason in report.not_applicable.items():
        console.print(f"not checked: {name}: {reason}", style="dim", markup=False, soft_wrap=True)
    for verdict in report.verdicts:
        for finding in verdict.findings:
            console.print(f"{verdict.subject}: {finding.message}", style="red", markup=False, soft_wrap=True)


def _check_panels(
    config: CycleConfig, market: Market, names: Sequence[str], moments: Sequence[pd.Timestamp], now: datetime
) -> tuple[list[LeakVerdict], Mapping[str, str]]:
    """Verdicts on the panels of these pipelines and on their way through the store; and why others have no panel."""
    if not names:
        return [], {}
    rng, few = np.random.default_rng(_SEED), moments[1::3][:NUM_PANEL_MOMENTS]
    cycle = once_a_market(lambda each: _run_cycle(config, each, names, now))
    whole = cycle(market)
    builders = {name: partial(lambda name, each: cycle(each).panel(name), name) for name in whole.panels}
    folds = [*whole.folds.folds, *whole.folds.tuning, whole.folds.live]
    cut = {name: check_folds(panel, folds) for name, panel in whole.panels.items()}
    samples = check_panels(builders, market, few, rng=rng)
    checked = {name: together([cut[name], samples[name]]) for name in whole.panels}
    canary = _check_canary(config, market, next(iter(whole.panels)), now, rng)
    way = _verdicts({"the store": canary}, market, (), ("canary",), "from table to panel")
    return _verdicts(checked, market, few, _PANEL_CHECKS, "panel") + way, whole.folds.not_applicable


def _run_cycle(
    config: CycleConfig,
    market: Market,
    names: Sequence[str],
    now: datetime,
    plant: Callable[[Path], None] | None = None,
) -> _Cycle:
    """What a cycle makes of the market, in a folder that is gone after; ``plant`` may change the feature tables."""
    from feature_repo.definitions.repo import open_feature_store  # Feast takes seconds to import

    with tempfile.TemporaryDirectory() as folder:
        run = run_apart(_NAME, config, market, now, Path(folder))
        data.build_tables(run, market, None)
        if plant:
            plant(run.features)
        registry = f"sqlite:///{folder}/registry.db"
        store = open_feature_store(
            project=_NAME, registry=registry, features_root=run.features, interval=config.interval
        )
        made = data.assemble_panels(run, market, names, store)
        # what is mapped stays readable when its folder is gone
        return _Cycle(panels={name: load_panel(path) for name, path in made.folders.items()}, folds=made)


@dataclass(kw_only=True, slots=True)
class _Materialised:
    """A view's online values, brought up to each moment that is asked about; moments must rise.

    After each materialisation the one before is done again, as a job that is retried late: it may change nothing.
    """

    store: FeatureStore
    view: OnlineView
    values: OnlineValues
    done_until: list[datetime] = field(default_factory=lambda: [_LONG_AGO])

    def read_at(self, entities: Sequence[str], now: datetime) -> Unpacked:
        """What is served then."""
        self.store.config.online_store.as_of = now
        self.done_until.append(now)
        for start, end in list(pairwise(self.done_until))[:-3:-1]:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # Feast reports each view
                self.store.materialize(start, end, feature_views=[self.view.name])
        return self.values.read_features(self.view, entities, now=now)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Missed:
    """A view's values computed from recent bars, as where the online store has none."""

    through: ReadThrough

    def read_at(self, entities: Sequence[str], now: datetime) -> Unpacked:
        """What is served then, from an empty store."""
        self.through.values.drop_view(self.through.view)
        return self.through.read_features(entities, now=now).found


def check_online(
    config: CycleConfig, market: Market, names: Sequence[str], moments: Sequence[pd.Timestamp], now: datetime
) -> dict[str, Checked]:
    """What is served online against the rule's answers, when it was materialised and when it is computed on a miss."""
    from feature_repo.definitions.repo import open_feature_store  # Feast takes seconds to import
    from feature_repo.store.online import online_view

    bars = pipeline_bars(market, config.interval)
    with tempfile.TemporaryDirectory() as folder:
        run = run_apart(_NAME, config, market, now, Path(folder))
        data.build_tables(run, market, None)
        registry = f"sqlite:///{folder}/registry.db"
        store = open_feature_store(
            project=_NAME, registry=registry, features_root=run.features, interval=config.interval
        )
        kept, none = Path(store.config.online_store.path), Path(folder) / "none"
        with _online_values(kept) as online, _online_values(none) as empty:
            checked = {}
            for name in names:
                spec = pipeline(name)
                view = online_view(store.get_feature_view(spec.view_name), store.config)
                through = ReadThrough(values=empty, pipeline=spec, bars_of=partial(_bars_of, bars), ttl=view.ttl)
                reads = (
                    _Materialised(store=store, view=view, values=online).read_at,
                    _Missed(through=through).read_at,
                )
                checked[name] = _check_served(read_rows(run.features / spec.view_name), view, reads, moments)
    return checked


def _check_served(
    table: pd.DataFrame, view: OnlineView, reads: Sequence[_ReadAt], moments: Sequence[pd.Timestamp]
) -> Checked:
    if table.empty:
        return Checked()
    questions = questions_at(sorted(set(table["entity_key"])), _asked(moments, table))
    return together(
        check_reader(_reader(read_at, view.features), table, questions, ttl=view.ttl, check=check)
        for check, read_at in zip(_ONLINE_CHECKS, reads, strict=True)
    )


@contextmanager
def _online_values(folder: Path) -> Iterator[OnlineValues]:
    values = OnlineValues(EmbeddedBackend(folder), project=_NAME)
    try:
        yield values
    finally:
        values.backend.close()


def _bars_of(bars: pd.DataFrame, entities: Sequence[str], _now: datetime) -> pd.DataFrame:
    return bars[bars["entity_key"].isin(entities)]


def _reader(read_at: _ReadAt, features: Sequence[str]) -> Reader:
    """A reader of many moments made of one of a moment, which is asked about them in their order."""

    def read(questions: pd.DataFrame) -> pd.DataFrame:
        parts = []
        for moment, asked in questions.groupby("event_timestamp", sort=True):
            found = read_at(asked["entity_key"].tolist(), pd.Timestamp(moment).to_pydatetime())
            parts.append(pd.DataFrame(found.values_NF, columns=list(features), index=asked.index))
        return pd.concat(parts).loc[questions.index]

    return read


def _asked(moments: Sequence[pd.Timestamp], table: pd.DataFrame) -> pd.DatetimeIndex:
    """The moments and the newest at which an answer was restated, and before each the last that brought any news."""
    event, entity = micros(table["event_time"]), table["entity_key"].to_numpy(dtype=str)
    known = np.maximum(event, micros(table["ingest_time"]))
    order = np.lexsort((known, entity))
    again, before = order[1:], order[:-1]
    restated = np.unique(known[again][(entity[again] == entity[before]) & (event[again] == event[before])])
    at = np.union1d(micros(pd.DatetimeIndex(moments)), restated[-NUM_RESTATED:])
    news = np.unique(known)
    asked = np.union1d(at, news[np.maximum(np.searchsorted(news, at) - 1, 0)])
    return pd.DatetimeIndex(asked).tz_localize("UTC")


def _check_canary(config: CycleConfig, market: Market, name: str, now: datetime, rng: np.random.Generator) -> Checked:
    """The canary in place of a pipeline's features, from its table through the store to the panel."""
    canary = canary_rows(market.traded_bars(config.interval), horizon=config.horizon + 4, rng=rng)
    spec = pipeline(name)

    def plant(features: Path) -> None:
        for part in (features / spec.view_name).glob("*.parquet"):
            part.unlink()
        values = {feature.name: canary[CANARY] for feature in spec.features}
        words = dict.fromkeys(("producer", "producer_version", "run_id"), _NAME)
        append_rows(features / spec.view_name, canary.drop(columns=CANARY).assign(**values, **words, written_at=now))

    panel = _run_cycle(config, market, [name], now, plant).panels[name]
    return check_canary(panel_reads(panel), canary)


def _verdicts(
    checked: Mapping[str, Checked],
    market: Market,
    moments: Sequence[pd.Timestamp],
    checks: Sequence[str],
    what: str,
) -> list[LeakVerdict]:
    return [
        make_verdict(f"{name}: {what}", each, fingerprint=market.fingerprint, checks=checks, moments=moments)
        for name, each in checked.items()
    ]


def _scope(whole: Market, tail: Market, interval: str, moments: Sequence[pd.Timestamp]) -> str:
    num_bars, num_all = (each.bars(interval)["event_time"].nunique() for each in (tail, whole))
    span = f"from {moments[0]:%Y-%m-%d %H:%M} to {moments[-1]:%Y-%m-%d %H:%M} UTC"
    return (
        f"{whole.info.name} {interval}: the newest {num_bars:,} of {num_all:,} bars, "
        f"as known at {len(moments)} moments {span}"
    )
