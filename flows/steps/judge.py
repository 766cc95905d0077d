"""From trained variants to who deserves a stage: tracks, ratings, gates, selection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from feature_repo.market.schema import MarketInfo
from flows.cycle import CycleConfig
from flows.steps.data import Panels
from flows.steps.fit import Trained
from flows.steps.leaks import LeakCheck
from flows.steps.run import Run
from flows.verify import certificates
from training.metrics.performance import MIN_BETA_BARS, hedged
from training.outside_signals import over
from training.panels import load_panel
from training.rating.engine import Ratings, rate
from training.rating.evidence import Evidence, Finding
from training.rating.judging import Judged
from training.rating.judging import judge as ask_every_gate
from training.rating.promotion_report import PromotionReport, html
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

    judged: Judged
    selection: Selection


def rate_all(
    run: Run,
    info: MarketInfo,
    panels: Panels,
    trained: Mapping[str, Trained],
    *,
    active: Collection[str] = (),
    beside: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> Rated:
    """Rate every variant that trained; ``active`` are those that trade now, on paper or live.

    ``beside`` are variants whose forecasts come from outside: their model versions and the thresholds of these.
    """
    results = {variant: each.results for variant, each in trained.items()}
    failed = {variant: reason for variant, folds in results.items() if (reason := _failure(folds))}
    thresholds = {
        variant: {fold.key: fold.threshold for fold in folds if fold.kind == "oos"}
        for variant, folds in results.items()
        if variant not in failed
    }
    panel = load_panel(next(iter(panels.folders.values())))
    tracks = build_tracks(
        SignalStore(root=run.signals),
        {**thresholds, **beside},
        panel,
        costs=info.costs,
        traded_value_TN=panels.traded_value_TN,
    )
    # the folds' tables count back from the last bar tested, and nobody must have the longer memory
    tracks = over(tracks, panel.event_times_T[panels.folds[0].test.start : panels.folds[-1].test.stop])
    sizes = {variant: folds[-1].num_parameters for variant, folds in results.items() if variant not in failed}
    at = np.searchsorted(panel.event_times_T, tracks.event_times_T)
    ratings = rate(
        tracks, panels.market_FT[:, at], periods_per_year=info.sessions_per_year, active=active, num_parameters=sizes
    )
    return Rated(tracks=tracks, ratings=ratings, failed=failed)


def judge(
    run: Run,
    info: MarketInfo,
    panels: Panels,
    trained: Mapping[str, Trained],
    checked: LeakCheck,
    *,
    active: Mapping[str, str] = MappingProxyType({}),
    beside: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    num_tuning_trials: int = 0,
    drift: Mapping[str, Finding] = MappingProxyType({}),
    latency_p99_ms: Mapping[str, float] = MappingProxyType({}),
) -> Judgement:
    """Rate every variant that trained, gate all trials together, and choose the stages.

    ``active`` maps who trades now to the stage. ``drift`` is what monitoring found (``flows.steps.evidence``) and
    ``latency_p99_ms`` what serving measured, of the variants that have been running; of the others nothing is known.
    Only variants that nothing else stands against are refitted for their certificate.
    """
    rated = rate_all(run, info, panels, trained, active=active, beside=beside)
    ratings = rated.ratings
    judged = ask_every_gate(
        ratings.variants,
        hedged(ratings.residual_VT)[:, MIN_BETA_BARS:],
        {
            variant: replace(
                _evidence(panels, trained.get(variant), checked),
                latency_p99_ms=latency_p99_ms.get(variant),
                drift=drift.get(variant),
            )
            for variant in ratings.variants
        },
        seed=run.config.seed,
        periods_per_year=info.sessions_per_year,
        num_failed=len(rated.failed),
        num_tuning_trials=num_tuning_trials,
        require_certificate=run.config.policy == "strict",
    )
    judged = judged.certified(certificates(run, trained, judged.to_certify))
    return Judgement(
        tracks=rated.tracks,
        ratings=ratings,
        failed=rated.failed,
        judged=judged,
        selection=_select(run.config, ratings, judged, trained, active),
    )


def write_report(run: Run, judgement: Judgement) -> Path:
    """The promotion report as a file among the cycle's reports."""
    selection = judgement.selection
    stages = dict.fromkeys(selection.reasons, "None")
    stages |= dict.fromkeys(selection.staging, "Staging") | dict.fromkeys(selection.production, "Production")
    report = PromotionReport(
        title=f"Promotion report, {run.market}",
        facts={"cycle": run.cycle_id, "policy": selection.policy, "at": run.now.isoformat(timespec="minutes")},
        judged=judgement.judged,
        stages=stages,
        reasons=selection.reasons,
        failed=judgement.failed,
    )
    run.reports.mkdir(parents=True, exist_ok=True)
    path = run.reports / "promotion.html"
    path.write_text(html(report), encoding="utf-8")
    return path


def _failure(folds: Sequence[FoldResult]) -> str:
    reasons = [fold.reason for fold in folds if not fold.ok]
    return f"{len(reasons)} of {len(folds)} fits failed; the first: {reasons[0]}" if reasons else ""


def _evidence(panels: Panels, trained: Trained | None, checked: LeakCheck) -> Evidence:
    """What the cycle itself knows of a variant beside its returns; of one from outside nothing is."""
    if trained is None:
        return Evidence(fingerprint="")
    pipeline = trained.variant.pipeline
    return Evidence(fingerprint=panels.fingerprints[pipeline], leaks=checked.verdicts.get(pipeline))


def _select(
    config: CycleConfig,
    ratings: Ratings,
    judged: Judged,
    trained: Mapping[str, Trained],
    active: Mapping[str, str],
) -> Selection:
    """Choose among the trained: what comes from outside is rated and counted as tried, but can't be served."""
    ours = ratings.table[ratings.table.index.isin(list(trained))].sort_values("rank")
    ours = ours.assign(rank=range(1, len(ours) + 1))
    families = {name: each.variant.family for name, each in trained.items()}
    chosen = select(ours, ratings.correlation, judged.verdicts, policy=config.policy, active=active, families=families)
    why = "rated beside the trained ones; its forecasts come from outside, so there is no model to serve"
    outside = dict.fromkeys(ratings.table.index.difference(ours.index), why)
    return replace(chosen, reasons={**chosen.reasons, **outside})
