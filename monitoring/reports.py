"""Drift reports for people: built with Evidently, saved as HTML and in the workspace that ``evidently ui`` serves.

The module imports Evidently (seconds): import it late.
"""

from __future__ import annotations

import math
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.core.metric_types import Metric
from evidently.core.report import Snapshot
from evidently.sdk.models import DashboardModel, DashboardPanelPlot, DashboardTabModel, PanelMetric, ProjectModel
from evidently.sdk.panels import line_plot_panel
from evidently.tests import gt
from evidently.ui.storage.local.base import DASHBOARD_FILE_NAME, PROJECT_FILE_NAME, SNAPSHOTS_DIR_NAME

from monitoring.alerts.matrix import RULES, History, respond
from monitoring.evidently_metrics import (
    FEATURES,
    OUTCOMES,
    VERDICTS,
    DriftedFeatures,
    EvidentlyPsi,
    InformationCoefficient,
)

IC_WARNING: Final = max(rule.threshold for rule in RULES if rule.signal == "ic")
PSI_WARNING: Final = min(rule.threshold for rule in RULES if rule.signal == "psi")
ALL: Final = "all pipelines"
NAMESPACE: Final = uuid.UUID("6f1c8a52-9c0e-5d43-8f3b-5b7d0c2a4e19")  # of the workspace's project ids


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """What one report shows of a pipeline's features between two windows.

    ``reference`` and ``current`` have one float column a feature and one row a (session, asset), NaN where unknown.
    ``psi`` is our quantile PSI of each feature, ``psi_limits`` its calibrated threshold (None: not calibrated). ``ic``
    is the mean IC of the pipeline's variants over the current window; NaN leaves it out of report and trend.
    ``verdicts`` are shown as they are. ``timestamp`` is the report's place on the trend panels.
    """

    name: str
    reference: pd.DataFrame
    current: pd.DataFrame
    psi: Mapping[str, float]
    psi_limits: Mapping[str, float | None]
    ic: float
    verdicts: Sequence[str]
    timestamp: datetime
    cycle_id: str


def build(report: DriftReport) -> Snapshot:
    """Run the Evidently report: our PSI and the verdicts, the IC with its test, then Evidently's own PSI."""
    columns = _comparable(report)
    definition = DataDefinition(numerical_columns=columns)
    evidently_report = Report(_metrics(report, columns), metadata={"cycle_id": report.cycle_id}, tags=[report.name])
    with _quiet():
        return evidently_report.run(
            Dataset.from_pandas(report.current[columns], data_definition=definition),
            Dataset.from_pandas(report.reference[columns], data_definition=definition),
            additional_data=_additional_data(report),
            timestamp=report.timestamp,
            name=f"{report.name} {report.timestamp:%Y-%m-%d}",
        )


def save(snapshot: Snapshot, *, html: Path, workspace: Path, project: str, cycle_id: str, name: str) -> Path:
    """Write the report as HTML and into the workspace's project; a rerun of the same cycle and name replaces both.

    ``name`` is the report's: it tells the reports of a cycle apart and its trends get panels of their own.
    The files are written as Evidently's workspace lays them out, but whole or not at all: its own ``Workspace`` reads
    every earlier report on opening, and a half-written one keeps its server from starting.
    """
    folder = _ensure_project(workspace, project, name)
    run_id = uuid.uuid5(uuid.UUID(folder.name), f"{cycle_id}/{name}")
    with _quiet():
        page, stored = snapshot.get_html_str(as_iframe=False), snapshot.dumps()
    _publish(folder / SNAPSHOTS_DIR_NAME / f"{run_id}.json", stored, through=workspace.parent)
    html.parent.mkdir(parents=True, exist_ok=True)
    _publish(html, page, through=html.parent)
    return html


def _comparable(report: DriftReport) -> list[str]:
    """The features with finite values in both windows; Evidently refuses empty columns."""
    finite = np.isfinite(report.reference).any() & np.isfinite(report.current).any()
    return [str(column) for column in report.reference.columns[finite]]


def _metrics(report: DriftReport, columns: list[str]) -> list[Metric]:
    drifted = DriftedFeatures(strategy=report.name)
    ic = InformationCoefficient(strategy=report.name, tests=[gt(IC_WARNING, is_critical=False)])
    own = EvidentlyPsi(columns=columns, method="psi", include_tests=False)
    return [*([ic] if math.isfinite(report.ic) else []), drifted, *([own] if columns else [])]


def _additional_data(report: DriftReport) -> dict[str, pd.DataFrame]:
    return {
        OUTCOMES: pd.DataFrame({"ic": [report.ic]}),
        FEATURES: pd.DataFrame([_feature_row(name, psi, report.psi_limits[name]) for name, psi in report.psi.items()]),
        VERDICTS: pd.DataFrame({"verdict": list(report.verdicts)}, dtype=object),
    }


def _feature_row(feature: str, psi: float, limit: float | None) -> dict[str, str | float]:
    alert = respond(History(signal="psi", values=(psi,), calibrated_threshold=limit))
    return {
        "feature": feature,
        "psi": "too few values" if math.isnan(psi) else f"{psi:.4f}",
        "classic": alert.severity,
        "calibrated": "not calibrated" if limit is None else f"{limit:.4f}",
        "drifted": float(limit is not None and psi > max(limit, PSI_WARNING)),
        "verdict": alert.why,
    }


def _ensure_project(workspace: Path, project: str, name: str) -> Path:
    """The project's folder, made at the first call, with the trends of the report's name on its dashboard."""
    model = ProjectModel(id=uuid.uuid5(NAMESPACE, project), name=project, description="Perennial's drift reports")
    folder = workspace / str(model.id)
    (folder / SNAPSHOTS_DIR_NAME).mkdir(parents=True, exist_ok=True)
    stored = folder / DASHBOARD_FILE_NAME
    panels = DashboardModel.parse_raw(stored.read_bytes()).panels if stored.exists() else _trends(ALL, [], "full")
    if not any([name] == panel.values[0].tags for panel in panels):
        panels += _trends(name, [name], "half")
        tab = DashboardTabModel(title="Drift", panels=[panel.id for panel in panels])
        _publish(stored, DashboardModel(tabs=[tab], panels=panels).json(), through=workspace.parent)
    if not (folder / PROJECT_FILE_NAME).exists():
        _publish(folder / PROJECT_FILE_NAME, model.json(), through=workspace.parent)
    return folder


def _trends(title: str, tags: list[str], size: str) -> list[DashboardPanelPlot]:
    """IC and drift of the reports with ``tags``; a line joins only points without another pipeline's report between."""
    warning = f"Mean IC of the variants over the current window; warning below {IC_WARNING}"
    beyond = "Quantile PSI beyond both the classic and the calibrated threshold"
    return [
        _trend(f"Information coefficient: {title}", InformationCoefficient, warning, tags, size),
        _trend(f"Share of drifted features: {title}", DriftedFeatures, beyond, tags, size),
    ]


def _trend(title: str, metric: type[Metric], description: str, tags: list[str], size: str) -> DashboardPanelPlot:
    value = PanelMetric(legend="{{strategy}}", metric=metric.__name__, tags=tags)
    return line_plot_panel(title, [value], description=description, size=size)


def _publish(path: Path, text: str, *, through: Path) -> None:
    """Write a file so that a reader sees all of it or none.

    ``through`` is a folder of the same file system. For the workspace it lies outside: the running server's watcher
    takes a file moved in from outside for a new one, and overlooks one renamed inside.
    """
    partial = through / f".{path.name}.{uuid.uuid4().hex}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Evidently's arithmetic on empty bins and constant columns warns; the report shows what came out."""
    with warnings.catch_warnings():
        for category in (RuntimeWarning, FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        yield
