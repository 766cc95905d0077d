"""What MLflow is told: a run and a registered version a variant, the stages, and the cycle's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from flows.steps.data import Panels
from flows.steps.fit import Trained
from flows.steps.judge import Judgement, Rated
from flows.steps.run import Run
from training.artifacts import read_manifest
from training.metrics.forecast import mean_ic
from training.metrics.performance import sharpe
from training.rating.audit import AuditLog
from training.rating.moves import rebalance
from training.rating.promotion import Stage, StageChange, Target
from training.rating.tracks import Tracks
from training.rating.verdicts import write_verdicts
from training.tracking import CycleSummary, FailedVariant, Tracker, VariantRecord
from training.trainer import FoldTask, model_folder

SERIES = ("ic", "sharpe_net", "threshold")
NUM_EQUITY_CURVES = 5
ACTOR = "perennial"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """Each judged variant's registered version, and its table of folds."""

    versions: Mapping[str, int]
    fold_tables: Mapping[str, pd.DataFrame]


def log_and_register_all(
    run: Run,
    tracker: Tracker,
    trained: Mapping[str, Trained],
    panels: Panels,
    rated: Rated,
    periods_per_year: int,
) -> Registered:
    """Log a run for every variant, register the newest model of each rated one, and say why the others failed."""
    judged = [trained[name] for name in rated.tracks.variants if name in trained]
    tables = {each.variant.id: fold_table(each, panels, rated.tracks, periods_per_year) for each in judged}
    versions = tracker.log_variants(_variant_record(run, each, rated, tables[each.variant.id]) for each in judged)
    tracker.log_failures(_failed_variant(run, trained[name], reason) for name, reason in rated.failed.items())
    return Registered(versions=versions, fold_tables=tables)


def _variant_record(run: Run, trained: Trained, rated: Rated, table: pd.DataFrame) -> VariantRecord:
    folder = model_folder(trained.tasks[-1])
    figures = rated.ratings.table.loc[trained.variant.id]
    return VariantRecord(
        cycle_id=run.cycle_id,
        architecture=trained.variant.architecture,
        family=trained.variant.family,
        pipeline=trained.variant.pipeline,
        lookback=trained.variant.lookback,
        training_key=trained.tasks[-1].key,
        folder=folder,
        manifest=read_manifest(folder),
        metrics={
            "test": {str(name): float(value) for name, value in figures.items()},
            "train": {
                "fit_s": float(table["fit_s"].sum()),
                "num_parameters": float(table["num_parameters"].iloc[-1]),
            },
        },
        fold_table=table,
        series=SERIES,
        started_at=run.now,
        ended_at=run.now + timedelta(seconds=float(table["fit_s"].sum())),
    )


def _failed_variant(run: Run, failed: Trained, reason: str) -> FailedVariant:
    variant, task = failed.variant, failed.tasks[0]
    return FailedVariant(
        cycle_id=run.cycle_id,
        variant=variant.id,
        architecture=variant.architecture,
        family=variant.family,
        pipeline=variant.pipeline,
        lookback=variant.lookback,
        params=task.params,
        dataset_fingerprint=task.panel_fingerprint,
        seed=task.fit_seed,
        code_version=run.git_sha,
        reason=reason,
        started_at=run.now,
        ended_at=run.now + timedelta(seconds=sum(result.fit_s for result in failed.results)),
    )


def fold_table(trained: Trained, panels: Panels, tracks: Tracks, periods_per_year: int) -> pd.DataFrame:
    """A row a test fold: its IC and net Sharpe ratio (annualised), its threshold, its fit."""
    v = tracks.variants.index(trained.variant.id)
    rows = []
    for task, result in zip(trained.tasks, trained.results, strict=True):
        if task.kind == "live":
            continue
        bars = _bars(task, panels, tracks)
        rows.append(
            {
                "fold": result.fold,
                "ic": float(mean_ic(tracks.ic_VT[v : v + 1, bars])[0]),
                "sharpe_net": float(sharpe(tracks.net_VT[v, bars], periods_per_year=periods_per_year)),
                "threshold": result.threshold,
                "num_signals": result.num_signals,
                "num_parameters": result.num_parameters,
                "trained_from": result.trained_from,
                "trained_to": result.trained_to,
                "checksum": result.checksum,
                "fit_s": result.fit_s,
            }
        )
    return pd.DataFrame(rows)


def change_stages(
    run: Run, tracker: Tracker, log: AuditLog, judgement: Judgement, versions: Mapping[str, int]
) -> list[StageChange]:
    """Finish what a crash left, follow what people did in the UI, then bring the stages to the cycle's selection.

    What the gates said is kept for whoever wants to promote a variant later.
    """
    write_verdicts(log.connection, judgement.judged.verdicts, market=run.market, cycle_id=run.cycle_id, now=run.now)
    selection = judgement.selection
    stages: dict[Stage, Mapping[str, float]] = {"Staging": selection.staging, "Production": selection.production}
    desired = {
        variant: Target(
            version=versions[variant],
            stage=stage,
            allocation=allocation,
            reason=selection.reasons[variant],
            evidence=_evidence(run, judgement, variant),
        )
        for stage, allocations in stages.items()
        for variant, allocation in allocations.items()
    }
    return rebalance(
        tracker.client, log, desired, market=run.market, policy=run.config.policy, now=run.now, actor=ACTOR
    )


def log_summary(
    run: Run,
    tracker: Tracker,
    panels: Panels,
    ranking: pd.DataFrame,
    tracks: Tracks,
    *,
    num_variants: int,
    num_trials: int,
    fold_tables: Mapping[str, pd.DataFrame],
    reports: Sequence[Path],
    ended_at: datetime,
) -> str:
    """Log the run's one summary (``ranking`` with a ``stage``); returns its id."""
    return tracker.log_cycle_summary(
        CycleSummary(
            cycle_id=run.cycle_id,
            dataset_fingerprint=next(iter(panels.fingerprints.values())),
            code_version=run.git_sha,
            seed=run.config.seed,
            ranking=ranking,
            fold_ic=_fold_ic(ranking["variant"], fold_tables),
            equity=_equity(ranking["variant"][:NUM_EQUITY_CURVES], tracks),
            reports=reports,
            num_variants=num_variants,
            num_trials=num_trials,
            num_staging=int((ranking["stage"] == "Staging").sum()),
            num_production=int((ranking["stage"] == "Production").sum()),
            started_at=run.now,
            ended_at=ended_at,
        )
    )


def ranking_table(trained: Mapping[str, Trained], rated: Rated) -> pd.DataFrame:
    """The ratings, best first, with what each variant is."""
    table = rated.ratings.table.reset_index()
    variants = [trained[name].variant if name in trained else None for name in table["variant"]]
    traits = ("architecture", "family", "pipeline", "lookback")
    return table.assign(**{trait: [getattr(variant, trait, None) for variant in variants] for trait in traits})


def staged_table(trained: Mapping[str, Trained], judgement: Judgement) -> pd.DataFrame:
    """The ranking with each variant's stage, and why."""
    table = ranking_table(trained, judgement)
    return table.assign(
        stage=[stage_of(judgement, name) for name in table["variant"]],
        allocation=[allocation_of(judgement, name) for name in table["variant"]],
        why=[judgement.selection.reasons[name] for name in table["variant"]],
    )


def stage_of(judgement: Judgement, variant: str) -> Stage:
    """The stage the cycle chose for a variant."""
    if variant in judgement.selection.production:
        return "Production"
    return "Staging" if variant in judgement.selection.staging else "None"


def allocation_of(judgement: Judgement, variant: str) -> float:
    """Its share of that stage's capital."""
    selection = judgement.selection
    return {**selection.staging, **selection.production}.get(variant, 0.0)


def _evidence(run: Run, judgement: Judgement, variant: str) -> dict[str, str | float]:
    gates = {f"{verdict.gate}": verdict.why for verdict in judgement.judged.verdicts[variant]}
    return {"cycle_id": run.cycle_id, "score": float(judgement.ratings.table.loc[variant, "score"]), **gates}


def _bars(task: FoldTask, panels: Panels, tracks: Tracks) -> slice:
    """The bars of a fold's test window on the tracks' grid, whose last bar is the last one tested."""
    offset = panels.folds[-1].test.stop - len(tracks.event_times_T)
    return slice(task.fold.test.start - offset, task.fold.test.stop - offset)


def _fold_ic(variants: pd.Series, fold_tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    series = {name: fold_tables[name].set_index("fold")["ic"] for name in variants if name in fold_tables}
    return pd.DataFrame(series).T


def _equity(variants: pd.Series, tracks: Tracks) -> pd.DataFrame:
    rows = [tracks.variants.index(name) for name in variants]
    grown = np.cumprod(1.0 + np.nan_to_num(tracks.net_VT[rows]), axis=1).T
    return pd.DataFrame(grown, index=pd.DatetimeIndex(tracks.event_times_T), columns=list(variants))
