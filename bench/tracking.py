"""MLflow at full size: what logging a training of 486 variants costs, in CPU seconds of this process and of Postgres.

A run has 20 parameters, 12 final figures, 3 series over 12 folds, the folds' table, a model folder and the dataset; a
trained one is registered as a version, 2% failed. The bar is the logging's share of 30 minutes on 2 cores, which a
training of all may take. The peer is MLflow's fluent API as its documentation shows it, dictionaries at once, on the
same Postgres; it looks for no earlier run, so it could not be killed and run again. Both must leave the same runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from bench.report import Report, Row, alone, at_least, at_most, options, peak_mb, progress, publish, ratio
from feature_repo.database import connect
from flows import postgres
from flows.settings import Settings, quiet_environment
from training.artifacts import write_manifest
from training.tracking import MODEL_FOLDER, CycleSummary, FailedVariant, Tracker, VariantRecord, metric_name, model_name
from training.variants import Variant, catalogue

NUM_VARIANTS, CORES, MINUTES = 486, 2, 30
NUM_PARAMS, NUM_FOLDS, MODEL_BYTES, FAILED_EVERY = 20, 12, 200_000, 49
PEER_EVERY = 3  # the peer is slow, and a run costs it the same whichever it is
FIGURES = (
    *("sharpe_net", "sharpe_residual", "sharpe_90", "ann_return_net", "ann_vol", "max_drawdown"),
    *("win_rate", "profit_factor", "ic", "ic_t", "turnover_ann", "score"),
)
SERIES = ("ic", "sharpe_net", "threshold")
NOW = datetime(2024, 5, 6, 21, tzinfo=UTC)
MARKET = "bench"
OURS, FLUENT = "Perennial", "MLflow fluent, dictionaries at once"
OPEN, FIRST, SUMMARY, NEXT, AGAIN = "open", "first cycle", "summary", "next cycle", "the same cycle again"

Phases = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What logging one training costs: CPU seconds of this process and of Postgres, opening and summary included."""

    num_variants: int
    python_s: float
    postgres_s: float
    wall_s: float

    @property
    def cpu_s(self) -> float:
        """Both together."""
        return self.python_s + self.postgres_s

    def share(self, core_s: float) -> float:
        """Part of the whole's core seconds (wall time x cores)."""
        return self.cpu_s / core_s


def measure(num_variants: int = NUM_VARIANTS) -> Cost:
    """The cost of logging a first training of so many variants, on a Postgres of its own."""
    with server() as databases:
        return _cost(num_variants, contend(OURS, num_variants, databases)["phases"])


@contextmanager
def server() -> Iterator[postgres.Databases]:
    """An embedded Postgres in a temporary home, and a quiet MLflow in this process and its children."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder) / "home")
        os.environ.update(quiet_environment(settings))
        try:
            with postgres.Hold(settings) as hold:
                yield hold.databases
        finally:
            postgres.remove(settings)


def contend(name: str, num_variants: int, databases: postgres.Databases) -> dict[str, Any]:
    """Run a contender alone, on a database of its own."""
    with connect(databases.dsn("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE bench_{list(CONTENDERS).index(name)}")
    uri, dsn = databases.url(f"bench_{list(CONTENDERS).index(name)}"), databases.dsn("postgres")
    numbers = ["--variants", str(num_variants), "--uri", uri, "--dsn", dsn]
    return alone("bench.tracking", "--contender", name, *numbers)


# ---- what is logged --------------------------------------------------------------------------------------------------


def records(folder: Path, num_variants: int) -> tuple[list[VariantRecord], list[FailedVariant]]:
    """Variants spread over the catalogue, most of them trained."""
    every = catalogue()
    chosen = [every[at * len(every) // num_variants] for at in range(num_variants)]
    trained = [variant for at, variant in enumerate(chosen) if at % FAILED_EVERY]
    failed = [_failed(variant) for at, variant in enumerate(chosen) if not at % FAILED_EVERY]
    return [_record(folder / variant.id, variant) for variant in trained], failed


def _record(folder: Path, variant: Variant) -> VariantRecord:
    rng = np.random.default_rng(list(variant.id.encode()))
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(rng.bytes(MODEL_BYTES))
    (folder / "model.json").write_text(json.dumps({"architecture": variant.architecture}))
    manifest = write_manifest(
        folder,
        variant=variant.id,
        checksum=rng.bytes(32).hex(),
        params={f"parameter_{at}": float(at) for at in range(NUM_PARAMS)},
        feature_names=tuple(f"feature_{at}" for at in range(40)),
        dataset_fingerprint=hashlib.sha256(variant.pipeline.encode()).hexdigest(),
        training_span=(NOW - timedelta(days=400), NOW - timedelta(days=30)),
        seed=7,
        code_version="0" * 40,
        packages={"numpy": "2.4.0"},
    )
    folds = {name: rng.normal(size=NUM_FOLDS) for name in SERIES}
    return VariantRecord(
        cycle_id="c1",
        architecture=variant.architecture,
        family=variant.family,
        pipeline=variant.pipeline,
        lookback=variant.lookback,
        training_key=rng.bytes(8).hex(),
        folder=folder,
        manifest=manifest,
        metrics={"test": {name: float(rng.normal()) for name in FIGURES}},
        fold_table=pd.DataFrame({"fold": range(NUM_FOLDS), **folds, "checksum": "0" * 64, "fit_s": 1.0}),
        series=SERIES,
        started_at=NOW,
        ended_at=NOW + timedelta(seconds=90),
    )


def _failed(variant: Variant) -> FailedVariant:
    return FailedVariant(
        cycle_id="c1",
        variant=variant.id,
        architecture=variant.architecture,
        family=variant.family,
        pipeline=variant.pipeline,
        lookback=variant.lookback,
        params=dict(variant.params),
        dataset_fingerprint="0" * 64,
        seed=7,
        code_version="0" * 40,
        reason="12 of 13 fits failed; the first: LinAlgError: singular matrix",
        started_at=NOW,
        ended_at=NOW + timedelta(seconds=90),
    )


def _summary(logged: Sequence[VariantRecord]) -> CycleSummary:
    figures = pd.DataFrame([dict(record.metrics["test"]) for record in logged])
    facts = [(each.variant, each.architecture, each.pipeline, "None") for each in logged]
    ranking = pd.DataFrame(facts, columns=["variant", "architecture", "pipeline", "stage"]).join(figures)
    fold_ic = pd.DataFrame([record.fold_table["ic"] for record in logged], index=ranking["variant"])
    times = pd.date_range(NOW - timedelta(days=252), periods=252)
    equity = pd.DataFrame(1.0 + np.random.default_rng(0).normal(size=(252, 5)).cumsum(axis=0) / 100, index=times)
    return CycleSummary(
        cycle_id="c1",
        dataset_fingerprint="0" * 64,
        code_version="0" * 40,
        seed=7,
        ranking=ranking.sort_values("score", ascending=False),
        fold_ic=fold_ic,
        equity=equity,
        reports=[],
        num_variants=len(logged),
        num_trials=len(logged),
        num_staging=0,
        num_production=0,
        started_at=NOW,
        ended_at=NOW + timedelta(minutes=30),
    )


# ---- the contenders --------------------------------------------------------------------------------------------------


class Meter:
    """CPU seconds of this process and of the Postgres server, and wall seconds, by phase."""

    def __init__(self, dsn: str) -> None:
        with connect(dsn) as connection:
            (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone()
            self._server = psutil.Process(pid).parent()
        self.phases: Phases = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        before = self._read()
        yield
        spent = self._read() - before
        self.phases[name] = dict(zip(("python_s", "postgres_s", "wall_s"), spent.tolist(), strict=True))

    def _read(self) -> np.ndarray:
        return np.array([time.process_time(), _cpu_s(self._server), time.perf_counter()])


def _cpu_s(server: psutil.Process) -> float:
    """CPU seconds of the server and of all its children, those that have ended included."""
    own = server.cpu_times()
    alive = [child.cpu_times() for child in server.children()]
    return sum(own[:4]) + sum(times.user + times.system for times in alive)


def perennial(num_variants: int, folder: Path, uri: str, meter: Meter) -> dict[str, Any]:
    """A first cycle, the next one with new fits of the same variants, and a rerun of the finished one."""
    trained, failed = records(folder / "fits", num_variants)
    with meter.phase(OPEN):
        tracker = Tracker(uri, (folder / "artifacts").as_uri(), MARKET)
    with meter.phase(FIRST):
        tracker.log_variants(trained)
        tracker.log_failures(failed)
    with meter.phase(SUMMARY):
        tracker.log_cycle_summary(_summary(trained))
    tomorrow = [replace(each, cycle_id="c2", training_key=f"{each.training_key}-2") for each in trained]
    with meter.phase(NEXT):
        tracker.log_variants(tomorrow)
        tracker.log_failures([replace(each, cycle_id="c2") for each in failed])
    with meter.phase(AGAIN):
        versions = tracker.log_variants(trained)
        tracker.log_failures(failed)
    found = tracker.search("tags.kind = 'variant' and tags.cycle_id = 'c1'")
    if len(found) != num_variants or set(versions.values()) != {1}:
        raise SystemExit(f"logged twice, {num_variants} variants have {len(found)} runs and versions {versions}")
    started = time.perf_counter()
    tracker.client.search_runs([tracker.experiment_id], "", max_results=10, order_by=["metrics.test_score DESC"])
    return {"ranking_ms": 1000 * (time.perf_counter() - started), "runs": _facts(found)}


def fluent(num_variants: int, folder: Path, uri: str, meter: Meter) -> dict[str, Any]:
    """Some of the same trained variants through ``mlflow.start_run`` and its neighbours."""
    import mlflow

    trained = records(folder / "fits", num_variants)[0][::PEER_EVERY]
    with meter.phase(OPEN):
        mlflow.set_tracking_uri(uri)
        experiment = mlflow.create_experiment(MARKET, artifact_location=(folder / "artifacts").as_uri())
    with meter.phase(FIRST):
        for record in trained:
            _log_fluently(record, experiment)
    found = mlflow.MlflowClient().search_runs([experiment], max_results=10_000)
    return {"runs": _facts(found)}


def _log_fluently(record: VariantRecord, experiment: str) -> None:
    import mlflow

    manifest = record.manifest
    client = mlflow.MlflowClient()
    tags = {"variant": record.variant, "family": record.family, "pipeline": record.pipeline}
    with mlflow.start_run(experiment_id=experiment, run_name=record.variant, tags=tags) as run:
        mlflow.log_params(dict(manifest.params))
        mlflow.log_metrics({metric_name("test", name): value for name, value in record.metrics["test"].items()})
        for row in record.fold_table.to_dict("records"):
            mlflow.log_metrics({f"fold/{name}": row[name] for name in SERIES}, step=int(row["fold"]))
        digest = manifest.dataset_fingerprint[:36]
        data = mlflow.entities.Dataset(name=MARKET, digest=digest, source_type="bench", source=digest)
        client.log_inputs(run.info.run_id, [mlflow.entities.DatasetInput(data)])
        mlflow.log_artifacts(str(record.folder), MODEL_FOLDER)
        with tempfile.TemporaryDirectory() as scratch:
            record.fold_table.to_parquet(Path(scratch) / "folds.parquet", index=False)
            mlflow.log_artifact(f"{scratch}/folds.parquet")
    name = model_name(MARKET, record.variant)
    client.create_registered_model(name, tags=tags)
    source = f"{run.info.artifact_uri}/{MODEL_FOLDER}"
    client.create_model_version(name, source, run.info.run_id, tags=tags, await_creation_for=0)


def _facts(runs: Sequence[Any]) -> dict[str, str]:
    """Of each finished variant what both contenders log, hashed."""
    return {
        run.data.tags["variant"]: hashlib.sha256(
            json.dumps([run.data.params, run.data.metrics], sort_keys=True).encode()
        ).hexdigest()
        for run in runs
        if run.info.status == "FINISHED"
    }


CONTENDERS: dict[str, Callable[[int, Path, str, Meter], dict[str, Any]]] = {OURS: perennial, FLUENT: fluent}


# ---- the verdict -----------------------------------------------------------------------------------------------------


def compare(num_variants: int) -> Report:
    """Run each contender alone."""
    figures = {}
    with server() as databases:
        for name in CONTENDERS:
            progress(f"logging {num_variants} variants: {name}")
            figures[name] = contend(name, num_variants, databases)
    ours, theirs = (figures[name]["runs"].items() for name in CONTENDERS)
    if not theirs or not theirs <= ours:
        raise SystemExit("the contenders logged different runs, so their times mean nothing")
    return judge(num_variants, figures)


def judge(num_variants: int, figures: dict[str, dict[str, Any]]) -> Report:
    """Rows and bars; of fewer variants than all, the runs count as often as there would be."""
    ours, theirs = (figures[name]["phases"] for name in CONTENDERS)
    cost = _cost(num_variants, ours)
    per_run = {OURS: _cpu(ours[FIRST]) / num_variants, FLUENT: _cpu(theirs[FIRST]) / len(figures[FLUENT]["runs"])}
    whole_s = cost.cpu_s + per_run[OURS] * (NUM_VARIANTS - num_variants)
    rows = [_row(f"{OURS}: {name}", phase, figures[OURS]["peak_mb"]) for name, phase in ours.items()]
    num_peer = len(figures[FLUENT]["runs"])
    rows += [_row(f"{FLUENT}: {name} ({num_peer})", each, figures[FLUENT]["peak_mb"]) for name, each in theirs.items()]
    return Report(
        bench="tracking",
        rows=rows,
        bars=[
            at_most(
                f"CPU of logging {NUM_VARIANTS}, % of {MINUTES} min x {CORES} cores",
                100 * whole_s / (60 * MINUTES * CORES),
                5,
            ),
            at_least("times less CPU a run than MLflow fluent", ratio(per_run[FLUENT], per_run[OURS]), 1.2),
            at_most("the same cycle again, part of the first's CPU", ratio(_cpu(ours[AGAIN]), _cpu(ours[FIRST])), 0.5),
        ],
        facts=[
            f"{num_variants} variants; CPU of this process and of Postgres, opening and summary included: "
            f"{cost.cpu_s:.1f} s",
            f"a run and its version: {1000 * per_run[OURS]:.0f} ms of CPU, MLflow fluent {1000 * per_run[FLUENT]:.0f}",
            f"the best 10 of all runs, ranked by the database: {figures[OURS]['ranking_ms']:.0f} ms",
            "same parameters and figures from both; logged twice there are as many runs and versions as once",
        ],
    )


def _cost(num_variants: int, phases: Phases) -> Cost:
    whole = {key: sum(phases[name][key] for name in (OPEN, FIRST, SUMMARY)) for key in phases[OPEN]}
    return Cost(num_variants=num_variants, **whole)


def _cpu(phase: dict[str, float]) -> float:
    return phase["python_s"] + phase["postgres_s"]


def _row(name: str, phase: dict[str, float], peak: float) -> Row:
    more = {"CPU s": _cpu(phase), "of it Python": phase["python_s"], "of it Postgres": phase["postgres_s"]}
    return Row(name=name, seconds=phase["wall_s"], peak_mb=peak, more=more)


def main() -> int:
    """Run the bench, or one contender of it."""
    parser = options(__doc__)
    parser.add_argument("--contender", choices=list(CONTENDERS), help="run one alone")
    parser.add_argument("--variants", type=int, default=NUM_VARIANTS)
    parser.add_argument("--uri", help="MLflow's database, for a contender")
    parser.add_argument("--dsn", help="a database of the same server")
    chosen = parser.parse_args()
    if chosen.contender:
        meter = Meter(chosen.dsn)
        with tempfile.TemporaryDirectory() as folder:
            found = CONTENDERS[chosen.contender](chosen.variants, Path(folder), chosen.uri, meter)
        print(json.dumps({**found, "phases": meter.phases, "peak_mb": peak_mb()}))
        return 0
    return publish(compare(36 if chosen.quick else chosen.variants), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
