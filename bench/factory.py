"""What the factory adds to the fits themselves.

``perennial factory train`` over every 8th variant of the catalogue, in a home whose databases were made beforehand and
that has nothing else, no feature, panel or fit: its wall time times the cores, over the CPU time of the bare fits and
forecasts (``model.fit`` and ``model.predict`` on arrays that are there already, with the platform's seeds), made by as
many plain processes at once. A machine's speed drifts by more than what is measured here, so the platform trains before
the bare fits and again after them, and its figures are the means of both.

What is done once, whatever is fitted (imports, features, panels), weighs the less the more is fitted: one fold by
default, as in ``factory train``; a cycle's twelve with ``--folds 12``; all 486 variants with ``--every 1``. Beside it:
the most memory that all its processes held and, of all 486, what share rating and MLflow took.
(``bench.stacking`` has networks trained together, ``bench.tracking`` MLflow by itself.)

The market is a simulated one, written as a market directory first, in which every pipeline has data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

import psutil

from bench.report import Report, Row, at_most, options, progress, publish
from feature_repo.market.simulated.market import write_market
from feature_repo.market.simulated.spec import SimSpec
from flows import postgres
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps.data import TEST, TRAIN, VALIDATE
from training.dataset import Panel, window
from training.models.fitted import complete_params
from training.models.registry import architecture
from training.models.spec import Budget
from training.splits.walk_forward import Fold, walk_forward
from training.tracking import connect
from training.trainer import fit_seed
from training.variants import Variant, catalogue, find

START_UP: Final = "start-up"
EVERY: Final = 8
NUM_QUICK: Final = 12
CORES: Final = len(os.sched_getaffinity(0))
MAX_OVERHEAD: Final = 1.15
MAX_MLFLOW: Final = 0.05
MAX_PEAK_GIB: Final = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A training by the platform: its wall time, what it said, and the most memory its processes held together."""

    wall_s: float
    report: dict[str, Any]
    peak_gib: float

    @property
    def seconds(self) -> dict[str, float]:
        """The wall time of its parts; start-up is the interpreter, imports and Postgres, and the process's end."""
        parts: dict[str, float] = self.report["seconds"]
        return {**parts, START_UP: self.wall_s - sum(parts.values())}


def train(ids: Sequence[str], market: Path, home: Path, *, folds: int) -> Trained:
    """The platform, from a home without features."""
    make_databases(home)
    listed = home.with_suffix(".toml")
    listed.write_text(f"ids = {json.dumps(list(ids))}\n")
    command = [sys.executable, "-m", "flows.cli", "factory", "train", "--json", "--folds", str(folds)]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--market", str(market), "--catalogue", str(listed)],
        env={**os.environ, "PERENNIAL_HOME": str(home), "PERENNIAL_WORKERS": str(CORES)},
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = _Peak(process.pid)
    out, _ = process.communicate()
    wall_s = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"the training failed with status {process.returncode}; its error is above")
    return Trained(wall_s=wall_s, report=json.loads(out), peak_gib=peak.stop() / 2**30)


def make_databases(home: Path) -> None:
    """What the first command in a home does once: a Postgres, and MLflow's tables in it."""
    settings = Settings(home=home)
    with postgres.Hold(settings) as hold:
        connect(hold.databases.url("mlflow")).search_experiments()
    postgres.stop(settings)


class _Peak:
    """The most memory that a process and its children held, looked at twice a second: pages they share count in each.

    What each has to itself would have to be added up from its page tables, which took a fifth of a core.
    """

    def __init__(self, pid: int) -> None:
        self._process, self._most, self._ended = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Bytes."""
        self._ended.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            with suppress(psutil.Error):
                family = [self._process, *self._process.children(recursive=True)]
                self._most = max(self._most, sum(_held(each) for each in family))


def _held(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def bare_seconds(ids: Sequence[str], home: Path, *, folds: int) -> dict[str, float | None]:
    """CPU time of each variant's bare fits and forecasts, by plain processes that share the ids; None: it failed."""
    parts = [ids[core::CORES] for core in range(CORES)]
    command = [sys.executable, "-m", "bench.factory", "--bare", str(home), "--folds", str(folds)]
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")}
    running = [
        subprocess.Popen([*command, *part], env=env, stdout=subprocess.PIPE, text=True) for part in parts if part
    ]
    answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("the bare fits failed; the error is above")
    return {name: seconds for answer in answers for name, seconds in json.loads(answer.splitlines()[-1]).items()}


def fit_bare(ids: Sequence[str], home: Path, *, folds: int) -> dict[str, float | None]:
    """One process's share, in its turn."""
    import torch

    from training.panels import load_panel

    torch.set_num_threads(1)
    panels = {panel.pipeline: panel for panel in (load_panel(path.parent) for path in home.glob("panels/*/panel.json"))}
    variants = [find(name) for name in ids]
    return {variant.id: _time_fits(variant, panels[variant.pipeline], folds) for variant in variants}


def _time_fits(variant: Variant, panel: Panel, num_folds: int) -> float | None:
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    folds = walk_forward(*times, train=TRAIN, validate=VALIDATE, test=TEST, num_folds=num_folds)
    seconds = [_time_fit(variant, panel, fold) for fold in folds]
    return None if None in seconds else sum(each for each in seconds if each)


def _time_fit(variant: Variant, panel: Panel, fold: Fold) -> float | None:
    lookback, spec = variant.lookback, architecture(variant.architecture)
    train = window(panel, fold.train.start, fold.train.stop, lookback=lookback, learn_T=fold.learn_T)
    valid = window(panel, fold.validate.start, fold.validate.stop, lookback=lookback, learn_T=fold.validate_T)
    test = window(panel, fold.test.start, fold.test.stop, lookback=lookback)
    model = spec.model(complete_params(spec, dict(variant.params)), lookback=lookback)
    started = time.process_time()
    try:
        model.fit(train, valid, seed=fit_seed(CycleConfig().seed, variant, fold), budget=Budget())
        model.predict(valid)
        model.predict(test)
    except Exception:  # the platform's failed the same way, or the bench's variants differ
        return None
    return time.process_time() - started


def compare(*, folds: int, every: int, quick: bool) -> Report:
    """The platform's trainings and, between them, the bare fits of the same variants."""
    variants = catalogue()[::every]
    ids = [variant.id for variant in (variants[:: len(variants) // NUM_QUICK][:NUM_QUICK] if quick else variants)]
    with tempfile.TemporaryDirectory() as folder:
        market, homes = Path(folder) / "market", [Path(folder) / "before", Path(folder) / "after"]
        progress("writing the simulated market")
        write_market(SimSpec(seed=1), market)
        try:
            progress(f"training {len(ids)} variants")
            before = train(ids, market, homes[0], folds=folds)
            progress("the same fits, bare")
            bare = bare_seconds(ids, homes[0], folds=folds)
            progress("training them again")
            after = train(ids, market, homes[1], folds=folds)
        finally:
            for home in homes:
                postgres.remove(Settings(home=home))
    trained = {name for name in ids if name in before.report["trained"] and name in after.report["trained"]}
    if failed := [name for name in ids if bare[name] is None or name not in trained]:
        raise SystemExit(f"failed, so the times mean nothing: {failed}")
    bare_s = sum(seconds for seconds in bare.values() if seconds)
    what = f"{len(ids)} of {len(catalogue())} variants, {folds} folds of {TRAIN}/{VALIDATE}/{TEST} bars"
    return _report([before, after], bare_s, what, is_whole=len(ids) == len(catalogue()), quick=quick)


def _report(trained: Sequence[Trained], bare_s: float, what: str, *, is_whole: bool, quick: bool) -> Report:
    walls = [each.wall_s for each in trained]
    seconds = {name: mean(each.seconds[name] for each in trained) for name in trained[0].seconds}
    peak_gib = max(each.peak_gib for each in trained)
    overheads = [CORES * (each.wall_s - (each.seconds[START_UP] if quick else 0.0)) / bare_s for each in trained]
    rows = [
        Row(name="Perennial, wall x cores", seconds=CORES * mean(walls), peak_mb=1024 * peak_gib),
        *(Row(name=f"of it {name}", seconds=CORES * value) for name, value in seconds.items()),
        Row(name="bare fits and forecasts, CPU", seconds=bare_s),
    ]
    left_out = ", start-up left out" if quick else ""
    last, rated_s = trained[-1].report, seconds["rating and MLflow"]
    share = rated_s / (CORES * mean(walls))  # one call after another, Postgres' too: never more CPU than wall time
    whole = [at_most("rating and MLflow, of wall x cores", share, MAX_MLFLOW)] if is_whole else []
    return Report(
        bench="factory",
        rows=rows,
        bars=[
            at_most(f"wall x cores over the bare fits{left_out}", mean(overheads), MAX_OVERHEAD),
            *whole,
            at_most("peak memory of all processes, GiB", peak_gib, MAX_PEAK_GIB),
        ],
        facts=[
            f"{what}, 12 simulated assets; {CORES} workers, no feature cached, nothing stacked",
            f"the training before the bare fits {overheads[0]:.3f} times them, the one after {overheads[1]:.3f}",
            f"{last['num_at_cap']} of {last['num_networks']} networks ran to the last epoch",
        ],
    )


def main() -> int:
    """Run the bench, or one process's share of the bare fits."""
    parser = options(__doc__)
    parser.add_argument("--bare", type=Path, metavar="HOME", help="fit the named variants on the panels there")
    parser.add_argument("--folds", type=int, default=1, help="test windows that each variant is trained for")
    parser.add_argument("--every", type=int, default=EVERY, help="train each so-manyth variant of the catalogue")
    parser.add_argument("ids", nargs="*")
    chosen = parser.parse_args()
    if chosen.bare:
        print(json.dumps(fit_bare(chosen.ids, chosen.bare, folds=chosen.folds)))
        return 0
    return publish(compare(folds=chosen.folds, every=chosen.every, quick=chosen.quick), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
