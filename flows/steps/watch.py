"""Drift: verdicts on the features and on every staged variant, kept in Postgres and shown by Evidently."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg

from feature_repo.market.schema import MarketInfo
from flows.steps.data import Panels
from flows.steps.fit import Trained
from flows.steps.judge import Judgement
from flows.steps.run import Run
from monitoring.drift.monitor import FEATURE_WINDOW, WINDOW, DriftVerdict, feature_verdicts, outcome_verdicts
from monitoring.store import write_verdicts
from training.dataset import Panel
from training.panels import load_panel


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """The day's verdicts: ``features`` by pipeline, ``outcomes`` of the staged variants; ``files`` are the reports."""

    features: Mapping[str, Sequence[DriftVerdict]]
    outcomes: Sequence[DriftVerdict]
    files: Sequence[Path]


def watch(
    run: Run,
    info: MarketInfo,
    panels: Panels,
    judgement: Judgement,
    trained: Mapping[str, Trained],
    connection: psycopg.Connection,
    workspace: Path,
) -> Watched:
    """Compare the newest sessions with the live models' training window, write the verdicts and the reports."""
    selection = judgement.selection
    staged = [name for name in judgement.tracks.variants if name in {**selection.staging, **selection.production}]
    opened = {name: load_panel(folder) for name, folder in panels.folders.items()}
    day = pd.Timestamp(next(iter(opened.values())).event_times_T[-1]).date()
    features = {name: _features(run, panel, panels, day) for name, panel in opened.items()}
    outcomes = [verdict for name in staged for verdict in _outcomes(run, info, judgement, name, day)]
    by_variant = [
        replace(verdict, strategy=name) for name in staged for verdict in features[trained[name].variant.pipeline]
    ]
    write_verdicts(connection, [*by_variant, *outcomes], market=run.market, cycle_id=run.cycle_id)
    files = [
        _report(run, panel, panels, features[name], _pipeline_ic(judgement, trained, name), workspace)
        for name, panel in opened.items()
    ]
    return Watched(features=features, outcomes=outcomes, files=files)


def _features(run: Run, panel: Panel, panels: Panels, day: date) -> list[DriftVerdict]:
    reference_TNF, current_TNF = _windows(panel, panels)
    rng = np.random.default_rng(run.config.seed)
    return feature_verdicts(panel.pipeline, panel.feature_names, reference_TNF, current_TNF, day=day, rng=rng)


def _windows(panel: Panel, panels: Panels) -> tuple[np.ndarray, np.ndarray]:
    """The live models' training window, and the newest sessions."""
    return np.asarray(panel.x_TNF[panels.live.train]), np.asarray(panel.x_TNF[-FEATURE_WINDOW:])


def _outcomes(run: Run, info: MarketInfo, judgement: Judgement, variant: str, day: date) -> list[DriftVerdict]:
    tracks = judgement.tracks
    v = tracks.variants.index(variant)
    rng = np.random.default_rng(run.config.seed)
    return outcome_verdicts(
        variant, tracks.ic_VT[v], tracks.net_VT[v], periods_per_year=info.sessions_per_year, day=day, rng=rng
    )


def _pipeline_ic(judgement: Judgement, trained: Mapping[str, Trained], pipeline: str) -> float:
    """Mean out-of-sample IC of the pipeline's variants over the newest sessions; NaN without any."""
    tracks = judgement.tracks
    rows = [v for v, name in enumerate(tracks.variants) if trained[name].variant.pipeline == pipeline]
    recent = tracks.ic_VT[rows, -WINDOW:]
    return float(recent[np.isfinite(recent)].mean()) if np.isfinite(recent).any() else float("nan")


def _report(
    run: Run, panel: Panel, panels: Panels, verdicts: Sequence[DriftVerdict], ic: float, workspace: Path
) -> Path:
    with warnings.catch_warnings():  # what Evidently's import says of its own dependencies is not for our users
        warnings.simplefilter("ignore", DeprecationWarning)
        from monitoring import reports
    reference_TNF, current_TNF = _windows(panel, panels)
    content = reports.DriftReport(
        name=panel.pipeline,
        reference=_frame(reference_TNF, panel.feature_names),
        current=_frame(current_TNF, panel.feature_names),
        psi={verdict.feature: verdict.value for verdict in verdicts},
        psi_limits={verdict.feature: verdict.calibrated for verdict in verdicts},
        ic=ic,
        verdicts=[f"{verdict.feature}: {verdict.why}" for verdict in verdicts],
        timestamp=pd.Timestamp(panel.sample_times_T[-1], tz="UTC").to_pydatetime(),
        cycle_id=run.cycle_id,
    )
    return reports.save(
        reports.build(content),
        html=run.reports / f"drift_{panel.pipeline}.html",
        workspace=workspace,
        project=run.market,
        cycle_id=run.cycle_id,
        name=panel.pipeline,
    )


def _frame(x_TNF: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(x_TNF.reshape(-1, x_TNF.shape[2]), columns=list(names), dtype=float)
