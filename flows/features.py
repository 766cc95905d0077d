"""What `perennial features ...` does: tear sheets of the features, and the health of the feature tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from feature_repo.health import check_health
from feature_repo.pipelines.catalog import CATALOGUE, pipeline
from feature_repo.store.tables import read_rows
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps import data
from flows.steps.run import run_apart
from training.dataset import Panel
from training.tearsheet import feature_sheets, render


class FeaturesError(RuntimeError):
    """There is nothing to look at; the message says what to type first."""


def write_tear_sheets(config: CycleConfig, names: list[str], folder: Path) -> dict[str, Path]:
    """One HTML page a pipeline (none given: all that apply) below ``folder``; returns them by pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for panel in _panels(config, names):
        title = f"Features of {panel.pipeline}, {config.interval} bars"
        written[panel.pipeline] = folder / f"{panel.pipeline}.html"
        written[panel.pipeline].write_text(render(title, panel, feature_sheets(panel)), encoding="utf-8")
    return written


def health(settings: Settings, config: CycleConfig, now: datetime) -> tuple[list[dict[str, Any]], int]:
    """What is not well with the market's stored feature tables, and how many tables were looked at."""
    market = data.load(config, now)
    root = settings.features / market.info.name / config.interval
    views = [declared.view_name for declared in CATALOGUE.values() if (root / declared.view_name).is_dir()]
    if not views:
        raise FeaturesError(
            f"market {market.info.name!r} has no feature tables of {config.interval} bars yet: type "
            f"`perennial run --market {config.market} --interval {config.interval}` first"
        )
    findings = [each for view in views for each in check_health(read_rows(root / view), view=view, now=now)]
    return [asdict(finding) for finding in findings], len(views)


def _panels(config: CycleConfig, names: list[str]) -> Iterator[Panel]:
    """Panels over the whole history, built in a place of their own so that the market's tables stay as they are."""
    wanted = [pipeline(name).name for name in names]  # refuse a wrong name before the work begins
    market = data.load(config, datetime.now(UTC))
    with TemporaryDirectory(prefix="perennial-features-") as folder:
        run = run_apart("features", config, market, datetime.now(UTC), Path(folder))
        not_applicable = data.build_tables(run, market, None)
        store = data.open_store(run, f"sqlite:///{run.reports / 'registry.db'}")
        grid = data.market_grid(market, config.interval)
        for name in wanted or [name for name in CATALOGUE if name not in not_applicable]:
            if name in not_applicable:
                raise FeaturesError(not_applicable[name])
            yield data.point_in_time_panel(name, market, grid, config.horizon, store, label=config.label)
