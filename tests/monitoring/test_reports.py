"""Drift reports: what the page says, what the workspace holds, what a rerun leaves."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# Evidently's own imports warn of what its dependencies will drop.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:numpy\.core.* is deprecated:DeprecationWarning",
    r"ignore:.*Deprecated in litestar:DeprecationWarning",
)

FEATURES = ["momentum_21", "rsi_14"]
DAY = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def reports():
    from monitoring import reports as module  # here, for the marks above do not reach collection

    return module


@pytest.fixture(scope="module")
def drift(reports):
    rng = np.random.default_rng(0)
    reference = pd.DataFrame(rng.standard_normal((600, 2)), columns=FEATURES)
    current = pd.DataFrame(rng.standard_normal((120, 2)) + np.array([0.0, 2.0]), columns=FEATURES)
    current.iloc[:5, 0] = np.nan
    return reports.DriftReport(
        name="momentum",
        reference=reference,
        current=current,
        psi={"momentum_21": 0.1234, "rsi_14": 2.3456},
        psi_limits={"momentum_21": 0.3, "rsi_14": 0.4567},
        ic=0.0314,
        verdicts=["rsi_14 has shifted: retrain"],
        timestamp=DAY,
        cycle_id="cycle-1",
    )


@pytest.fixture(scope="module")
def snapshot(reports, drift):
    return reports.build(drift)


def metric(snapshot, name: str):
    found = [entry["value"] for entry in snapshot.dict()["metrics"] if entry["metric_name"].startswith(name)]
    return found[0] if found else None


def save(reports, snapshot, folder: Path, *, cycle_id: str = "cycle-1", name: str = "momentum") -> Path:
    html = folder / "html" / f"{cycle_id}-{name}.html"
    return reports.save(
        snapshot, html=html, workspace=folder / "workspace", project="us_stocks", cycle_id=cycle_id, name=name
    )


def open_workspace(folder: Path):
    from evidently.ui.workspace import Workspace

    return Workspace(str(folder / "workspace"))


def test_the_figures_are_those_passed_in(snapshot):
    assert metric(snapshot, "InformationCoefficient") == pytest.approx(0.0314)
    # 0.1234 breaks the classic row only, 2.3456 the calibrated threshold too
    assert metric(snapshot, "DriftedFeatures") == 0.5
    assert snapshot.to_snapshot_model().timestamp == DAY


def test_evidently_computes_its_own_psi_beside_ours(snapshot):
    own = [entry["value"] for entry in snapshot.dict()["metrics"] if entry["metric_name"].startswith("ValueDrift")]
    assert len(own) == 2
    assert max(own) > 1.0
    assert max(own) != pytest.approx(2.3456, abs=1e-3)


@pytest.mark.parametrize(("ic", "status"), [(0.0314, "SUCCESS"), (0.0199, "WARNING"), (-0.05, "WARNING")])
def test_a_low_ic_warns(reports, drift, ic, status):
    snapshot = reports.build(dataclasses.replace(drift, ic=ic))
    (result,) = snapshot.tests_results
    assert result.status.value == status


def test_an_unknown_ic_leaves_a_gap_not_a_value(reports, drift):
    snapshot = reports.build(dataclasses.replace(drift, ic=math.nan))
    assert metric(snapshot, "InformationCoefficient") is None
    assert metric(snapshot, "DriftedFeatures") == 0.5


def test_a_feature_that_stopped_coming_is_shown_and_does_not_break_the_report(reports, drift, tmp_path):
    gone = drift.current.assign(rsi_14=np.nan)
    psi = {**drift.psi, "rsi_14": math.nan}
    html = save(reports, reports.build(dataclasses.replace(drift, current=gone, psi=psi)), tmp_path)
    assert "too few values" in html.read_text()
    assert "it has stopped coming" in html.read_text()


def test_a_constant_feature_does_not_break_the_report(reports, drift):
    flat = dataclasses.replace(
        drift, reference=drift.reference.assign(rsi_14=1.0), current=drift.current.assign(rsi_14=1.0)
    )
    assert metric(reports.build(flat), "ValueDrift(column=rsi_14") == pytest.approx(0.0, abs=1e-9)


def test_the_page_holds_features_figures_and_verdicts(reports, snapshot, tmp_path):
    html = save(reports, snapshot, tmp_path)
    page = html.read_text()
    expected = [*FEATURES, "0.1234", "2.3456", "0.4567", "rsi_14 has shifted: retrain", "Sturges", "ten quantile bins"]
    assert [text for text in expected if text not in page] == []
    assert html.stat().st_size < 10e6


def test_a_rerun_replaces_and_another_cycle_or_name_adds(reports, snapshot, drift, tmp_path):
    save(reports, snapshot, tmp_path)
    save(reports, reports.build(dataclasses.replace(drift, ic=0.01)), tmp_path)
    (project,) = open_workspace(tmp_path).list_projects()
    (only,) = open_workspace(tmp_path).list_runs(project.id)
    stored = open_workspace(tmp_path).get_run(project.id, only)
    assert metric_of_model(stored) == pytest.approx(0.01)
    assert stored.metadata == {"cycle_id": "cycle-1"}

    later = dataclasses.replace(drift, cycle_id="cycle-2", timestamp=DAY + timedelta(days=1))
    save(reports, reports.build(later), tmp_path, cycle_id="cycle-2")
    assert len(open_workspace(tmp_path).list_runs(project.id)) == 2
    save(reports, reports.build(dataclasses.replace(drift, name="technical")), tmp_path, name="technical")
    assert len(open_workspace(tmp_path).list_runs(project.id)) == 3
    assert len(open_workspace(tmp_path).list_projects()) == 1


def metric_of_model(model) -> float:
    return next(
        result.value
        for result in model.metric_results.values()
        if result.display_name.startswith("Information coefficient")
    )


def test_the_dashboard_has_trends_of_all_and_of_each_pipeline_once(reports, snapshot, tmp_path):
    for name in ("momentum", "momentum", "technical"):
        save(reports, snapshot, tmp_path, name=name)
    (project,) = open_workspace(tmp_path).list_projects()
    values = [panel.values[0] for panel in project.dashboard.model().panels]
    assert [value.tags for value in values] == [[], [], ["momentum"], ["momentum"], ["technical"], ["technical"]]
    assert {value.metric.rpartition(":")[2] for value in values} == {"InformationCoefficient", "DriftedFeatures"}


def test_trends_are_one_line_a_pipeline(reports, drift, tmp_path):
    """A metric that carried its value as a parameter would start a new line every day."""
    ids = []
    for day in range(2):
        built = reports.build(dataclasses.replace(drift, ic=0.01 * day, timestamp=DAY + timedelta(days=day)))
        ids.append([key for key, result in built.metric_results.items() if "coefficient" in result.display_name])
    assert ids[0] == ids[1]


def test_nothing_but_whole_files_is_left(reports, snapshot, tmp_path):
    save(reports, snapshot, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".html"}
    assert all(json.loads(path.read_text()) for path in files if path.suffix == ".json")
