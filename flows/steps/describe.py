"""The cycle's summary in words and figures for ``flows.summary`` to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from feature_repo.market.schema import Market
from flows.cycle import CycleConfig, CycleSummary, RankedVariant
from flows.steps.data import TEST, TRAIN, VALIDATE, Panels
from flows.steps.fit import Trained
from flows.steps.judge import Judgement
from flows.steps.record import staged_table
from flows.steps.run import Run
from flows.steps.watch import Watched
from monitoring.drift.monitor import DriftVerdict
from training.panels import load_panel
from training.rating.gates import AFTER_BETA
from training.tuning import Tuned


def summarise(
    run: Run,
    market: Market,
    panels: Panels,
    *,
    not_applicable: Mapping[str, str],
    tuned: Sequence[Tuned],
    trained: Mapping[str, Trained],
    judgement: Judgement,
    watched: Watched,
    places: Mapping[str, str],
    seconds: float,
) -> CycleSummary:
    """Everything a person is told at the end of a cycle; ``places`` are addresses and files to look at."""
    return CycleSummary(
        cycle_id=run.cycle_id,
        market=run.market,
        facts=_facts(run, market, panels, trained, judgement),
        not_applicable=not_applicable,
        tuned=[_tuned(each) for each in tuned],
        ranking=_ranking(trained, judgement),
        failed=judgement.failed,
        gate=_gate(run, judgement, num_trials=sum(each.num_trials for each in tuned)),
        drift=_drift(watched),
        reports=places,
        seconds=seconds,
    )


def split_of(config: CycleConfig) -> str:
    """How the history was cut, in words."""
    if config.splitter == "yearly":
        return f"of calendar years after all before, {VALIDATE} bars of them for validation, purged"
    return f"of {TRAIN}/{VALIDATE}/{TEST} bars, walk-forward, purged"


def _facts(
    run: Run, market: Market, panels: Panels, trained: Mapping[str, Trained], judgement: Judgement
) -> dict[str, str]:
    bars = market.traded_bars(run.config.interval)
    panel = load_panel(next(iter(panels.folders.values())))
    families = Counter(each.variant.family for each in trained.values())
    times = judgement.tracks.event_times_T
    info = market.info
    guessed = f" (inferred: {', '.join(info.inferred)})" if info.inferred else ""
    return {
        "data": f"{bars['entity_key'].nunique()} assets, {len(bars):,} bars of {run.config.interval}, "
        f"{bars['event_time'].min():%Y-%m-%d} to {bars['event_time'].max():%Y-%m-%d}; "
        f"{len(market.quarantine):,} rows in quarantine, {len(market.flags):,} flagged",
        "facts": f"{info.asset_class}, calendar {info.calendar}, {info.sessions_per_year} bars a year, benchmark "
        f"{info.benchmark or 'the equal-weighted average of the assets'}{guessed}",
        "costs": f"fee {info.costs.fee_bps:g} bp and half spread {info.costs.half_spread_bps:g} bp a trade, "
        f"borrow {info.costs.borrow_bps_ann:g} bp a year"
        + (f", market impact of {info.costs.capital:,.0f}" if info.costs.capital else ""),
        "trained": f"{len(trained)} variants ({', '.join(f'{n} {family}' for family, n in sorted(families.items()))}), "
        "architectures in turn, each time the least used pipeline, lookback and parameters",
        "tested": f"{len(panels.folds)} folds (agents {run.config.agent_folds}) {split_of(run.config)}, "
        f"{str(times[0])[:10]} to {str(times[-1])[:10]}; live models learned up to "
        f"{str(panel.sample_times_T[panels.live.validate.stop - 1])[:10]}",
        "seed": f"{run.config.seed}; dataset {panel.fingerprint[:12]}, code {run.git_sha[:12]}",
    }


def _tuned(tuned: Tuned) -> dict[str, str]:
    return {
        "architecture": tuned.architecture,
        "trials": str(tuned.num_trials),
        "pruned": str(tuned.num_pruned),
        "failed": str(tuned.num_failed),
        "validation IC": f"{tuned.validation_ic:+.3f}",
        "parameters": ", ".join(f"{name} {value}" for name, value in tuned.params.items()),
    }


def _ranking(trained: Mapping[str, Trained], judgement: Judgement) -> list[RankedVariant]:
    table = staged_table(trained, judgement)
    figures = list(judgement.ratings.table.columns)
    return [
        RankedVariant(
            rank=int(row["rank"]),
            variant=row["variant"],
            family=row["family"],
            stage=row["stage"],
            allocation=float(row["allocation"]),
            metrics={name: float(row[name]) for name in figures},
            why=row["why"],
        )
        for row in table.to_dict("records")
    ]


def _gate(run: Run, judgement: Judgement, *, num_trials: int) -> dict[str, str]:
    gate = judgement.judged.gate
    judged = int(gate.judged.sum())
    if not judged:
        skill = f"no variant can be judged: that takes {gate.min_days} bars {AFTER_BETA}"
    else:
        scale = np.sqrt(1.0 / gate.num_days)
        skill = (
            f"StepM at {gate.level:.1%} over all {gate.num_trials} variants ({judged} with a long enough track, "
            f"{gate.num_days} bars {AFTER_BETA}) finds {int(gate.superior.sum())} skilled; "
            f"p of the best {gate.p_value:.2f}, a t-statistic of {gate.critical / scale:.1f} was needed"
        )
    return {
        f"Gate ({run.config.policy})": skill,
        "Tried": f"{gate.num_trials} variants and {num_trials} tuning trials, failed and pruned ones counted",
    }


def _drift(watched: Watched) -> list[dict[str, str]]:
    """The staged variants' outcomes, and of each pipeline the feature that moved most."""
    rows = []
    for pipeline, verdicts in watched.features.items():
        worst = max(verdicts, key=lambda verdict: (verdict.severity == "critical", np.nan_to_num(verdict.value)))
        acting = sum(verdict.action not in ("none", "watch") for verdict in verdicts)
        what = f"{pipeline}: {worst.feature}, worst of {len(verdicts)}, {acting} to act on"
        rows.append(_drift_row(what, worst))
    return [*rows, *(_drift_row(verdict.strategy, verdict) for verdict in watched.outcomes)]


def _drift_row(what: str, verdict: DriftVerdict) -> dict[str, str]:
    return {
        "what": what,
        "signal": verdict.signal.upper() if verdict.signal != "sharpe" else "Sharpe",
        "value": f"{verdict.value:.3f}",
        "classic": verdict.severity,
        "calibrated": "too little history" if verdict.calibrated is None else f"{verdict.calibrated:.3f}",
        "action": verdict.action,
    }
