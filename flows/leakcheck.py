"""What ``perennial leakcheck`` does: the leak detector over a market's pipelines, by the way that a cycle goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from feature_repo.aggregates.attach import pipeline_bars
from feature_repo.leakage.challenges import newest, pick_moments
from feature_repo.leakage.checks import Builder, check_features, check_replay, once_a_market
from feature_repo.leakage.findings import Checked, together
from feature_repo.market.schema import Market
from feature_repo.pipelines.build import NotApplicableError, build_features
from feature_repo.pipelines.catalog import CATALOGUE, PIPELINES, pipeline
from feature_repo.store.tables import append_rows
from flows.cycle import CycleConfig
from flows.steps import data
from flows.steps.run import Run
from training.dataset import Panel
from training.leakage.canary import CANARY, canary_rows, check_canary, panel_reads
from training.leakage.folds import check_folds
from training.leakage.panels import check_panels
from training.leakage.verdict import LeakVerdict, make_verdict
from training.panels import PanelError, load_panel
from training.splits.walk_forward import SplitError

NUM_BARS: Final = 700
"""Newest bars that are checked: the longest window, a fold and its lookback, and two months to look from."""
LOOKED_AT: Final = 42
NUM_MOMENTS: Final = 6
NUM_PANEL_MOMENTS: Final = 2
_FEATURE_CHECKS: Final = ("truncation", "restatement", "changed future", "replay")
_PANEL_CHECKS: Final = ("samples", "labels", "label in features", "folds")
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


def check_market(
    market: str, interval: str, *, only: str | None, now: datetime, tell: Callable[[str], None]
) -> LeakReport:
    """Check the pipelines (or the one named) of a market given by name or directory, and the panels made of them.

    The newest ``NUM_BARS`` bars are checked at ``NUM_MOMENTS`` moments, and at those of late or restated rows, among
    the newest ``LOOKED_AT``; panels, which take longer, at ``NUM_PANEL_MOMENTS``. ``tell`` is told what goes on.
    """
    config = CycleConfig(market=market, interval=interval, folds=1)
    whole = data.load(config, now)
    tail = newest(whole, interval, num_bars=NUM_BARS)
    moments = pick_moments(tail, interval, num_bars=LOOKED_AT, num_moments=NUM_MOMENTS)
    builders, not_applicable = _builders(tail, interval, (only,) if only else tuple(PIPELINES), now)
    tell(f"Checking {len(builders)} feature tables at {len(moments)} moments ...")
    rng = np.random.default_rng(_SEED)
    tables = check_features(builders, tail, moments, rng=rng)
    with tempfile.TemporaryDirectory() as folder:
        replayed = check_replay(builders, tail, moments[::2], folder=Path(folder))
    features = {name: together([tables[name], replayed[name]]) for name in builders}
    verdicts = _verdicts(features, tail, moments, _FEATURE_CHECKS, "features")
    names = [name for name in builders if name in CATALOGUE]
    tell(f"Checking {len(names)} panels and the canary ...")
    try:
        verdicts += _check_panels(config, tail, names, moments, now)
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


def _builders(
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


def _check_panels(
    config: CycleConfig, market: Market, names: Sequence[str], moments: Sequence[pd.Timestamp], now: datetime
) -> list[LeakVerdict]:
    """Verdicts on the panels of these pipelines, and on the way they take through the store."""
    if not names:
        return []
    rng, few = np.random.default_rng(_SEED), moments[1::3][:NUM_PANEL_MOMENTS]
    cycle = once_a_market(lambda each: _run_cycle(config, each, names, now))
    builders = {name: partial(lambda name, each: cycle(each).panels[name], name) for name in names}
    whole = cycle(market)
    folds = [*whole.folds.folds, *whole.folds.tuning, whole.folds.live]
    cut = {name: check_folds(panel, folds) for name, panel in whole.panels.items()}
    samples = check_panels(builders, market, few, rng=rng)
    checked = {name: together([cut[name], samples[name]]) for name in names}
    canary = _check_canary(config, market, names[0], now, rng)
    way = _verdicts({"the store": canary}, market, (), ("canary",), "from table to panel")
    return _verdicts(checked, market, few, _PANEL_CHECKS, "panel") + way


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
        run = _run(config, market, now, Path(folder))
        data.build_tables(run, market)
        if plant:
            plant(run.features)
        registry = f"sqlite:///{folder}/registry.db"
        store = open_feature_store(
            project=_NAME, registry=registry, features_root=run.features, interval=config.interval
        )
        made = data.assemble_panels(run, market, names, store)
        # what is mapped stays readable when its folder is gone
        return _Cycle(panels={name: load_panel(path) for name, path in made.folders.items()}, folds=made)


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


def _run(config: CycleConfig, market: Market, now: datetime, folder: Path) -> Run:
    return Run(
        config=config,
        cycle_id=_NAME,
        market=market.info.name,
        now=now,
        code=_NAME,
        git_sha=_NAME,
        features=folder / "features",
        panels=folder / "panels",
        fits=folder / "fits",
        signals=folder / "signals",
        reports=folder / "reports",
    )


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
