"""From trained variants to who deserves a stage: tracks, ratings, gates, selection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_repo.market.schema import MarketInfo
from flows.cycle import CycleConfig
from flows.steps.data import Panels
from flows.steps.fit import Trained
from flows.steps.leaks import LeakCheck
from flows.steps.run import Run
from training.metrics.performance import MIN_BETA_BARS
from training.panels import load_panel
from training.rating.engine import Ratings, rate
from training.rating.gates import GateResult, Verdict, deflated_sharpe, leaks, skilled, track_record
from training.rating.selection import Selection, select
from training.rating.tracks import Tracks, build_tracks
from training.signals import SignalStore
from training.trainer import FoldResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Rated:
    """How the trained variants did out of sample; ``failed`` maps those that could not be rated to the reason."""

    tracks: Tracks
    ratings: Ratings
    failed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement(Rated):
    """What the cycle thinks of its variants."""

    gate: GateResult
    verdicts: Mapping[str, Sequence[Verdict]]
    selection: Selection


def rate_all(
    run: Run, info: MarketInfo, panels: Panels, trained: Mapping[str, Trained], *, active: Collection[str] = ()
) -> Rated:
    """Rate every variant that trained; ``active`` are those that trade now, on paper or live."""
    results = {variant: each.results for variant, each in trained.items()}
    failed = {variant: reason for variant, folds in results.items() if (reason := _failure(folds))}
    thresholds = {
        variant: {fold.key: fold.threshold for fold in folds if fold.kind == "oos"}
        for variant, folds in results.items()
        if variant not in failed
    }
    panel = load_panel(next(iter(panels.folders.values())))
    tracks = build_tracks(
        SignalStore(root=run.signals), thresholds, panel, costs=info.costs, traded_value_TN=panels.traded_value_TN
    )
    sizes = {variant: folds[-1].num_parameters for variant, folds in results.items() if variant not in failed}
    at = np.searchsorted(panel.event_times_T, tracks.event_times_T)
    ratings = rate(
        tracks, panels.benchmark_T[at], periods_per_year=info.sessions_per_year, active=active, num_parameters=sizes
    )
    return Rated(tracks=tracks, ratings=ratings, failed=failed)


def judge(
    run: Run,
    info: MarketInfo,
    panels: Panels,
    trained: Mapping[str, Trained],
    checked: LeakCheck,
    *,
    active: Collection[str] = (),
) -> Judgement:
    """Rate every variant that trained, gate all trials together, and choose the stages."""
    rated = rate_all(run, info, panels, trained, active=active)
    ratings = rated.ratings
    # Before there are bars enough for a beta a residual is a raw return, and on those holding the market is "skill".
    gate = skilled(_every_trial(ratings.residual_VT[:, MIN_BETA_BARS:], len(rated.failed)), seed=run.config.seed)
    clean = {variant: _leaks(panels, trained[variant].variant.pipeline, checked) for variant in ratings.variants}
    verdicts = _verdicts(ratings, gate, clean, info.sessions_per_year)
    return Judgement(
        tracks=rated.tracks,
        ratings=ratings,
        failed=rated.failed,
        gate=gate,
        verdicts=verdicts,
        selection=_select(run.config, ratings, verdicts),
    )


def _failure(folds: Sequence[FoldResult]) -> str:
    reasons = [fold.reason for fold in folds if not fold.ok]
    return f"{len(reasons)} of {len(folds)} fits failed; the first: {reasons[0]}" if reasons else ""


def _every_trial(residual_VT: np.ndarray, num_failed: int) -> np.ndarray:
    """Failed variants were tried too: rows of NaN."""
    return np.vstack([residual_VT, np.full((num_failed, residual_VT.shape[1]), np.nan)])


def _leaks(panels: Panels, pipeline: str, checked: LeakCheck) -> Verdict:
    return leaks(checked.verdicts.get(pipeline), fingerprint=panels.fingerprints[pipeline])


def _verdicts(
    ratings: Ratings, gate: GateResult, clean: Mapping[str, Verdict], periods_per_year: int
) -> dict[str, list[Verdict]]:
    skill = gate.verdicts(periods_per_year=periods_per_year)
    deflated = deflated_sharpe(ratings.residual_VT)
    return {
        variant: [clean[variant], skill[v], track_record(ratings.residual_VT[v]), deflated[v]]
        for v, variant in enumerate(ratings.variants)
    }


def _select(config: CycleConfig, ratings: Ratings, verdicts: Mapping[str, Sequence[Verdict]]) -> Selection:
    return select(ratings.table, ratings.correlation, verdicts, policy=config.policy)
