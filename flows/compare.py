"""What ``perennial compare`` does: two variants and two baselines trained alike, tested in pairs, and told.

Panels and folds are those that a cycle would make, in a place of their own that is gone after; nothing is tuned,
registered or promoted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from feature_repo.market.costs import CostModel
from feature_repo.market.schema import Market
from feature_repo.pipelines.catalog import CATALOGUE
from flows.console import phase
from flows.cycle import CycleConfig
from flows.steps import data, fit
from flows.steps.run import Run, run_apart
from training.comparison import Arm, Comparison, Setting, compare
from training.comparison_report import Report, figure_section, html, markdown, pair_section
from training.dataset import FloatArray, Panel, window
from training.engine import Lost, local_pool
from training.models.fitted import FittedModel
from training.models.registry import architecture, architectures
from training.panels import load_panel
from training.rating.tracks import build_tracks, score_matrix
from training.signals import SignalStore
from training.splits.walk_forward import Fold
from training.trainer import FoldResult, FoldTask, model_folder, train_fold
from training.variants import OWN_HISTORY, UnknownVariantError, Variant, find, full_grid

LOOKBACK: Final = 30
PIPELINE: Final = "technical"
BASELINES: Final = {"LSTM baseline": "lstm", "linear baseline": "elastic_net"}
_NAME: Final = "compare"


class CompareError(RuntimeError):
    """A comparison that can't be made; the message says why and what to type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedFit:
    """A fit, the CPU seconds it took, and the CPU milliseconds of forecasting a bar."""

    result: FoldResult
    fit_cpu_s: float
    bar_cpu_ms: float


Fit: TypeAlias = TimedFit | Lost[FoldTask]


def compare_variants(
    first: str, second: str, config: CycleConfig, *, num_seeds: int, workers: int, now: datetime, bars: Progress
) -> Report:
    """Train two architectures or variants and the baselines on the cycle's newest folds, and test them in pairs.

    Seeds are ``config.seed`` and the next ones; ``config``'s budget, trials and policy play no part.
    """
    roles = choose_arms(first, second)
    if num_seeds < 1:
        raise CompareError(f"at least one seed is needed, got {num_seeds}")
    market = data.load(config, now)
    variants = {variant.id: variant for variant in roles.values()}
    with TemporaryDirectory(prefix="perennial-compare-") as folder:
        run = run_apart(_NAME, config, market, now, Path(folder))
        with phase(bars, "Features and panels"):
            panels = _panels(run, market, sorted({variant.pipeline for variant in variants.values()}))
        runs = [replace(run, config=replace(config, seed=config.seed + s)) for s in range(num_seeds)]
        panel = load_panel(next(iter(panels.folders.values())))  # all have the same assets, times and labels
        num_fits = len(variants) * num_seeds * len(panels.folds)
        with phase(bars, f"Fits of {len(variants)} variants", num_fits) as done:
            fits = _train(runs, panels, list(variants.values()), market, workers, done)
        store, costs = SignalStore(root=run.signals), market.info.costs
        arms = {name: make_arm(name, each, panels.folds, panel, store, costs) for name, each in fits.items()}
        setting = _setting(panel, panels.folds, market)
    for name in dict.fromkeys([roles["A"].id, roles["B"].id]):
        if len(arms[name].failures) == arms[name].num_fits:
            raise CompareError(f"every fit of {name} failed, so there is nothing to compare: {arms[name].failures[0]}")
    return Report(
        title=f"{roles['A'].id} against {roles['B'].id}",
        facts=_facts(config, market, setting, panels, [each.config.seed for each in runs]),
        notes=_notes(first, second, roles, num_seeds),
        setting=setting,
        arms=_by_role(roles, arms),
        pairs=_pairs(roles, arms, setting, seed=config.seed),
    )


def choose_arms(first: str, second: str) -> dict[str, Variant]:
    """The variants by role: A, B, and the baselines with A's lookback and pipeline.

    An architecture's name stands for its variant with the lookback and pipeline of the other side where that is a
    variant's id, else ``LOOKBACK`` and ``PIPELINE``, and with the first choice of every hyperparameter.
    """
    ids = {name: _find(name) for name in (first, second) if name not in architectures()}
    traits = [(variant.lookback, variant.pipeline) for variant in ids.values()] or [(LOOKBACK, PIPELINE)]
    a, b = (ids.get(name) or default_variant(name, *traits[0]) for name in (first, second))
    baselines = {role: default_variant(name, a.lookback, a.pipeline) for role, name in BASELINES.items()}
    return {"A": a, "B": b, **baselines}


def default_variant(name: str, lookback: int, pipeline: str) -> Variant:
    """The architecture's variant of first choices; one that reads no features is on ``OWN_HISTORY``."""
    wanted = pipeline if architecture(name).reads_features else OWN_HISTORY
    return next(
        variant for variant in full_grid([wanted]) if (variant.architecture, variant.lookback) == (name, lookback)
    )


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write ``A_vs_B.md`` and ``A_vs_B.html`` into the folder; returns them by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{report.pairs[0].first}_vs_{report.pairs[0].second}"
    texts = {"markdown": (".md", markdown(report)), "html": (".html", html(report))}
    files = {kind: folder / f"{stem}{suffix}" for kind, (suffix, _) in texts.items()}
    for kind, (_, text) in texts.items():
        files[kind].write_text(text, encoding="utf-8")
    return files


def render(console: Console, report: Report) -> None:
    """Print the verdict, the figures and the tests of the question's pair; the rest is in the files."""
    for section in (figure_section(report), pair_section(report.pairs[0])):
        head, *rows = section.rows
        table = Table(title=section.title, title_justify="left")
        for column, name in enumerate(head):
            table.add_column(name, justify="right" if column else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(report.verdict, style="bold", markup=False, soft_wrap=True)


def _find(name: str) -> Variant:
    try:
        return find(name)
    except UnknownVariantError:
        raise CompareError(
            f"no architecture and no variant {name!r}; architectures are {', '.join(architectures())}; ids read "
            "architecture-l<lookback>-pipeline-<hyperparameters>, see `perennial factory list`"
        ) from None


def _panels(run: Run, market: Market, pipelines: Sequence[str]) -> data.Panels:
    not_applicable = data.build_tables(run, market, None)
    for name in pipelines:
        if name in not_applicable:
            others = sorted(set(CATALOGUE) - set(not_applicable))
            raise CompareError(f"{not_applicable[name]}; name variants of another pipeline: {', '.join(others)}")
    store = data.open_store(run, f"sqlite:///{run.reports / 'registry.db'}")
    return data.assemble_panels(run, market, pipelines, store)


def _setting(panel: Panel, folds: Sequence[Fold], market: Market) -> Setting:
    rows = _test_rows(folds)
    return Setting(
        event_times_T=panel.event_times_T[rows],
        outcome_TN=panel.labels.forward_TN[rows],
        fold_T=np.concatenate([np.full(fold.test.stop - fold.test.start, fold.index) for fold in folds]),
        horizon=panel.labels.horizon,
        bars_per_year=market.info.sessions_per_year,
    )


def _test_rows(folds: Sequence[Fold]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(fold.test.start, fold.test.stop) for fold in folds])


def _train(
    runs: Sequence[Run],
    panels: data.Panels,
    variants: Sequence[Variant],
    market: Market,
    workers: int,
    done: Callable[[object], None],
) -> dict[str, list[list[Fit]]]:
    """Every fold of every variant under every seed, in one pool; by variant, seed and fold."""
    tasks = {
        (variant.id, s): [
            fit.fold_task(run, panels, variant, fold, kind="oos", costs=market.info.costs, tuned={}, keeps_model=True)
            for fold in panels.folds
        ]
        for variant in variants
        for s, run in enumerate(runs)
    }
    with local_pool(workers, limits=fit.FIT_LIMITS) as pool:
        timed = iter(pool.map(_timed_fold, [task for each in tasks.values() for task in each], on_done=done))
    fits = {key: [next(timed) for _ in each] for key, each in tasks.items()}
    return {variant.id: [fits[variant.id, s] for s in range(len(runs))] for variant in variants}


def _timed_fold(task: FoldTask) -> TimedFit:
    """Runs in a worker, which has one thread: its CPU time is the task's."""
    started = time.process_time()
    result = train_fold(task)
    fit_cpu_s = time.process_time() - started
    return TimedFit(result=result, fit_cpu_s=fit_cpu_s, bar_cpu_ms=_bar_cpu_ms(task) if result.ok else float("nan"))


def _bar_cpu_ms(task: FoldTask) -> float:
    model, test = FittedModel.load(model_folder(task)), task.fold.test
    asked = window(load_panel(task.panel), test.start, test.stop, lookback=task.variant.lookback)
    started = time.process_time()
    model.predict(asked)
    return (time.process_time() - started) * 1000.0 / asked.num_targets


def make_arm(
    name: str,
    fits: Sequence[Sequence[Fit]],
    folds: Sequence[Fold],
    panel: Panel,
    store: SignalStore,
    costs: CostModel,
) -> Arm:
    """One variant's forecasts and books, from the signals of its fits by seed and fold."""
    every = [each for by_fold in fits for each in by_fold]
    good = [each for each in every if isinstance(each, TimedFit) and each.result.ok]
    tracks = [_seed_track(name, by_fold, folds, panel, store, costs) for by_fold in fits]
    return Arm(
        variant=name,
        **{field: np.stack([track[field] for track in tracks]) for field in tracks[0]},
        num_parameters=_median([each.result.num_parameters for each in good]),
        fit_cpu_s=_median([each.fit_cpu_s for each in good]),
        bar_cpu_ms=_median([each.bar_cpu_ms for each in good]),
        num_fits=len(every),
        failures=[reason for each in every if (reason := _failure(each))],
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _failure(each: Fit) -> str:
    return each.reason if isinstance(each, Lost) else each.result.reason


def _seed_track(
    name: str,
    fits: Sequence[Fit],
    folds: Sequence[Fold],
    panel: Panel,
    store: SignalStore,
    costs: CostModel,
) -> dict[str, FloatArray]:
    """One seed's arrays over the test bars, NaN on those of folds whose fit failed; fields as in ``Arm``."""
    results = [each.result for each in fits if isinstance(each, TimedFit) and each.result.ok]
    thresholds = {result.key: result.threshold for result in results}
    signals = store.read(name, model_versions=list(thresholds), kind="oos")
    rows, fitted = _test_rows(folds), {result.fold for result in results}
    failed_T = np.concatenate([np.full(fold.test.stop - fold.test.start, fold.index not in fitted) for fold in folds])
    score_TN, _ = score_matrix(signals, panel.event_times_T, panel.entities)
    confidence_TN, _ = score_matrix(signals.assign(score=signals["confidence"]), panel.event_times_T, panel.entities)
    tracks = build_tracks(store, {name: thresholds}, panel, costs=costs)
    at = np.searchsorted(panel.event_times_T, tracks.event_times_T)
    found = {"score_STN": score_TN[rows], "confidence_STN": confidence_TN[rows]}
    for field, series_VT in (("net", tracks.net_VT), ("gross", tracks.gross_VT), ("turnover", tracks.turnover_VT)):
        whole_T = np.full(len(panel.event_times_T), np.nan)
        whole_T[at] = series_VT[0]
        found[f"{field}_ST"] = np.where(failed_T, np.nan, whole_T[rows])
    return found


def _pairs(roles: Mapping[str, Variant], arms: Mapping[str, Arm], setting: Setting, *, seed: int) -> list[Comparison]:
    """A with B first, then both with each baseline that they aren't."""
    a, b, *baselines = (variant.id for variant in roles.values())
    wanted = [(a, b), *((one, baseline) for baseline in baselines for one in (a, b) if baseline not in (a, b))]
    return [compare(arms[one], arms[other], setting, seed=seed) for one, other in dict.fromkeys(wanted)]


def _by_role(roles: Mapping[str, Variant], arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """One column a variant, headed by all its roles."""
    names = {variant.id: [role for role, each in roles.items() if each == variant] for variant in roles.values()}
    return {", ".join(held): arms[name] for name, held in names.items()}


def _facts(
    config: CycleConfig, market: Market, setting: Setting, panels: data.Panels, seeds: Sequence[int]
) -> dict[str, str]:
    days = np.datetime_as_string(setting.event_times_T, unit="D")
    costs = market.info.costs
    return {
        "market": f"{market.info.name}, {config.interval} bars, {setting.outcome_TN.shape[1]} assets",
        "known": f"as of {config.as_of:%Y-%m-%d %H:%M} UTC" if config.as_of else "all that the market holds",
        "test": f"{len(days)} bars from {days[0]} to {days[-1]} in {len(panels.folds)} walk-forward folds",
        "fold": f"train {data.TRAIN}, validate {data.VALIDATE}, test {data.TEST} bars, purged",
        "label": f"the return over {config.horizon} bar{'s' if config.horizon > 1 else ''}",
        "costs": (
            f"{costs.fee_bps + costs.half_spread_bps:g} bps of a trade, {costs.borrow_bps_ann:g} bps a year of shorts"
        ),
        "seeds": ", ".join(map(str, seeds)),
    }


def _notes(first: str, second: str, roles: Mapping[str, Variant], num_seeds: int) -> list[str]:
    notes = [
        "All were trained on the same dates, assets, folds and seeds; of the hyperparameters those in an id are its "
        "own, the others each architecture's defaults: nothing was tuned. All figures are out of sample."
    ]
    named = {name: roles[role].id for role, name in (("A", first), ("B", second)) if name != roles[role].id}
    if named:
        notes.append("; ".join(f"`{name}` stands for `{variant}`" for name, variant in named.items()) + ".")
    pipelines = {variant.id: variant.pipeline for variant in roles.values()}
    if len(set(pipelines.values())) > 1:
        read = ", ".join(f"{variant} reads {pipeline}" for variant, pipeline in pipelines.items())
        notes.append(f"The features differ ({read}), on the same dates and assets: what is compared is both together.")
    if num_seeds == 1:
        notes.append("One seed: another fit of the same network may do better or worse; `--seeds 5` averages that out.")
    return notes
