"""The command line. Nothing that takes seconds to import is imported before the command that needs it."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from flows import evaluate_command, ingest, stage_commands
from flows.command import Json, command_settings, echo, run_alone, table
from flows.console import make_console
from flows.cycle import CycleConfig, LabelKind, Policy, Splitter

if TYPE_CHECKING:
    from flows.services import State
    from flows.settings import Settings
    from flows.trading import TradingRow

_OURS = {"flows", "serving", "monitoring", "training", "feature_repo"}
_PYTHONS = ((3, 11), (3, 12), (3, 13))
_DEFAULTS = CycleConfig()


class MachineError(RuntimeError):
    """This machine lacks something; the message says what and the command that mends it."""


class _Shell(TyperGroup):
    """Turns the errors that we raise ourselves, and Ctrl-C, into one clear line."""

    def invoke(self, ctx: Any) -> Any:
        console = make_console(stderr=True)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.print(f"\nstopped; type `perennial {ctx.invoked_subcommand}` again to continue", style="yellow")
            raise typer.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug") or not _is_known(error):
                raise
            console.print(f"{error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None


def _is_known(error: Exception) -> bool:
    """Whether its message says all: an exception class of our own packages, no right to a file, no space left."""
    ours = type(error).__module__.partition(".")[0] in _OURS
    return ours or (isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ENOSPC))


app = typer.Typer(
    name="perennial",
    cls=_Shell,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
factory = typer.Typer(no_args_is_help=True, help="The model factory: which variants there are, and training them.")
app.add_typer(factory, name="factory")
features = typer.Typer(no_args_is_help=True, help="The features: tear sheets before training, health after.")
app.add_typer(features, name="features")
app.add_typer(ingest.app, name="ingest")
stage_commands.register(app)
evaluate_command.register(app)
signals = typer.Typer(no_args_is_help=True, help="Forecasts of your own, from a file.")
app.add_typer(signals, name="signals")

Market = Annotated[str, typer.Option(help="A built-in market, or a folder of your own data.")]
Interval = Annotated[str, typer.Option(help="The bars to use, such as 1d or 1h.")]
Pipelines = Annotated[list[str] | None, typer.Option("--pipeline", help="Only this pipeline; may be repeated.")]
Catalogue = Annotated[Path | None, typer.Option(help="A catalogue of your own (TOML).", show_default=False)]
AsOf = Annotated[datetime | None, typer.Option(help="Hide what became known later (UTC).")]
Horizon = Annotated[int, typer.Option(min=1, help="Bars ahead that are forecast.")]
Label = Annotated[LabelKind, typer.Option(help="What models learn.")]
Splits = Annotated[Splitter, typer.Option(help="Test windows: 21 sessions, or calendar years.")]
Folds = Annotated[int, typer.Option(min=1, help="How many test windows, the newest.")]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]
Engine = Annotated[
    str | None,
    typer.Option(
        help="Where fits run: local, ray, or a Ray cluster (HOST:6379, ray://HOST:10001).", show_default="local"
    ),
]
Port = Annotated[int | None, typer.Option(help="Take this port.", show_default=False)]


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,  # noqa: FBT002
) -> None:
    """Perennial keeps a quant desk's strategies alive: features in two times, a model factory, gated stages, drift.

    Start with [bold]perennial run[/]; then [bold]perennial up[/] shows MLflow, Prefect and Evidently.
    All data lies in .perennial (PERENNIAL_HOME); Postgres is embedded unless PERENNIAL_DATABASE_URL names yours.
    """


@app.command()
def run(
    market: Market = _DEFAULTS.market,
    interval: Interval = _DEFAULTS.interval,
    horizon: Horizon = _DEFAULTS.horizon,
    label: Label = _DEFAULTS.label,
    variants: Annotated[int, typer.Option(min=1, help="How many variants to train.")] = _DEFAULTS.variants,
    splitter: Splits = _DEFAULTS.splitter,
    folds: Folds = _DEFAULTS.folds,
    agent_folds: Annotated[int, typer.Option(min=1, help="Folds of the agents.")] = _DEFAULTS.agent_folds,
    trials: Annotated[int, typer.Option(min=1, help="Optuna trials an architecture.")] = _DEFAULTS.trials,
    agent_trials: Annotated[int, typer.Option(min=1, help="Optuna trials of the agents.")] = _DEFAULTS.agent_trials,
    seed: Seed = _DEFAULTS.seed,
    as_of: AsOf = None,
    catalogue: Catalogue = None,
    policy: Annotated[Policy, typer.Option(envvar="PERENNIAL_POLICY", help="How Production is decided.")] = (
        _DEFAULTS.policy
    ),
    engine: Engine = None,
) -> None:
    """Run the whole loop on a market: features, variants, ratings, stages, drift report, summary."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # what fails is raised, and told once
    make_console(stderr=True).print("Starting; the first bar shows in about 20 seconds ...", style="dim")
    settings = _prepared(**({"engine": engine} if engine else {}))
    from flows.cycle_flow import run_cycle
    from flows.summary import render

    config = CycleConfig(
        market=market,
        interval=interval,
        horizon=horizon,
        label=label,
        variants=variants,
        splitter=splitter,
        folds=folds,
        agent_folds=agent_folds,
        trials=trials,
        agent_trials=agent_trials,
        seed=seed,
        as_of=as_of and as_of.replace(tzinfo=UTC),
        catalogue=_listed(catalogue),
        policy=policy,
    )
    render(make_console(), run_cycle(settings, config))


@app.command()
def up(mlflow_port: Port = None, prefect_port: Port = None, evidently_port: Port = None, api_port: Port = None) -> None:
    """Start Postgres, MLflow, Prefect with the flows, Evidently and the signal API, and return."""
    from flows import services

    ports = {"mlflow": mlflow_port, "prefect": prefect_port, "evidently": evidently_port, "api": api_port}
    settings = _prepared(**{f"{name}_port": port for name, port in ports.items() if port})
    console = make_console()
    with console.status("Starting, half a minute or so ..."):
        started = services.up(settings, tell=console.print)
    console.print("All is up." if started else "All was up already.")
    console.print(_services_table(services.status(settings)))


@app.command()
def down() -> None:
    """Stop all that `perennial up` started."""
    from flows import services

    stopped = services.down(command_settings())
    make_console().print(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was up.")


@app.command()
def status(as_json: Json = False) -> None:  # noqa: FBT002
    """Show which services are up, and what is trading now."""
    from flows import services

    settings = command_settings()
    states = services.status(settings)
    trading = _trading(settings)
    if as_json:
        echo({"services": [dataclasses.asdict(state) for state in states], "trading": _rows(trading)})
        return
    console = make_console()
    console.print(_services_table(states))
    console.print(table("What is trading now", _rows(trading)) if trading else "Nothing is trading: `perennial run`.")


@factory.command("list")
def list_variants(as_json: Json = False) -> None:  # noqa: FBT002
    """List the catalogue of variants."""
    from training.variants import catalogue

    rows = [dataclasses.asdict(variant) for variant in catalogue()]
    if as_json:
        echo(rows)
        return
    for row in rows:
        row["params"] = ", ".join(f"{name} {value}" for name, value in row["params"])
    make_console().print(table(f"{len(rows)} variants", rows))


@factory.command("explain")
def explain_catalogue(as_json: Json = False) -> None:  # noqa: FBT002
    """Show how the catalogue is cut from the full grid: each rule, its reason, and what it left out."""
    from training.variants import explain

    variants, cuts = explain()
    if as_json:
        echo([dataclasses.asdict(cut) for cut in cuts])
        return
    console = make_console()
    console.print(
        f"The full grid has {cuts[0].num_excluded + cuts[0].num_left} variants, the catalogue {len(variants)}."
    )
    console.print(table("Rules", [dataclasses.asdict(cut) for cut in cuts]))
    for trait in ("family", "architecture", "pipeline", "lookback"):
        counts = Counter(str(getattr(variant, trait)) for variant in variants)
        console.print(table(f"By {trait}", [{trait: name, "variants": count} for name, count in counts.items()]))


@factory.command("show")
def show_variant(
    variant_id: Annotated[str, typer.Argument(metavar="ID", help="Such as lstm-l30-technical-h64.")],
) -> None:
    """Show a variant: its architecture's source, its hyperparameters and what Optuna may pick."""
    from training.models.registry import architecture
    from training.variants import catalogue, find

    variant = find(variant_id)
    spec = architecture(variant.architecture)
    rows = {
        "id": variant.id,
        "in the catalogue": "yes" if variant in catalogue() else "no, only in the full grid",
        "family": variant.family,
        "source": spec.source,
        "pipeline": variant.pipeline,
        "lookback": f"{variant.lookback} bars",
        **{name: str(value) for name, value in variant.params},
        **{f"{name} (Optuna)": ", ".join(map(str, choices)) for name, choices in spec.space.items()},
        "digest": variant.digest,
    }
    make_console().print(table(variant.id, [{"what": name, "value": value} for name, value in rows.items()]))


@factory.command("train")
def train_catalogue(
    market: Market = _DEFAULTS.market,
    interval: Interval = _DEFAULTS.interval,
    horizon: Horizon = _DEFAULTS.horizon,
    label: Label = _DEFAULTS.label,
    splitter: Splits = _DEFAULTS.splitter,
    folds: Folds = 1,
    seed: Seed = _DEFAULTS.seed,
    as_of: AsOf = None,
    catalogue: Catalogue = None,
    variants: Annotated[int | None, typer.Option(min=1, help="Only this many.", show_default="all")] = None,
    engine: Engine = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Train the catalogue's variants walk-forward, rate them and log them to MLflow; no stage is changed."""
    settings = _prepared(**({"engine": engine} if engine else {}))
    from flows.console import progress
    from flows.factory import render, train_catalogue

    config = CycleConfig(
        market=market,
        interval=interval,
        horizon=horizon,
        label=label,
        variants=variants or sys.maxsize,
        splitter=splitter,
        folds=folds,
        seed=seed,
        as_of=as_of and as_of.replace(tzinfo=UTC),
        catalogue=_listed(catalogue),
    )
    with progress(make_console(stderr=True)) as bars:
        report = train_catalogue(settings, config, bars)
    if as_json:
        echo({**dataclasses.asdict(report), "ranking": json.loads(report.ranking.to_json(orient="records"))})
    else:
        render(make_console(), report)


@features.command("report")
def report_features(
    market: Market = _DEFAULTS.market,
    interval: Interval = _DEFAULTS.interval,
    pipelines: Pipelines = None,
    folder: Annotated[Path | None, typer.Option("--into", help="Folder for the pages.", show_default=False)] = None,
) -> None:
    """Write a tear sheet of every feature: IC and its decay, coverage, autocorrelation, turnover."""
    settings = command_settings()
    from flows.features import write_tear_sheets

    console = make_console()
    config = CycleConfig(market=market, interval=interval)
    with console.status("Building the features and their returns ..."):
        written = write_tear_sheets(config, pipelines or [], folder or settings.reports / "features")
    for name, page in written.items():
        console.print(f"{name}: {page}", soft_wrap=True)


@features.command("health")
def check_features(
    market: Market = _DEFAULTS.market,
    interval: Interval = _DEFAULTS.interval,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Check the stored feature tables: freshness, nulls, range, jumps, stuck and repeated values."""
    from flows.features import health

    findings, num_views = health(command_settings(), CycleConfig(market=market, interval=interval), datetime.now(UTC))
    if as_json:
        echo(findings)
    elif findings:
        make_console().print(table(f"{len(findings)} findings in {num_views} feature tables", findings))
    else:
        make_console().print(f"All is well in {num_views} feature tables.")
    raise typer.Exit(1 if findings else 0)


@signals.command("import")
def import_forecasts(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet: entity_key, event_time, made_at, score[, confidence].")],
    variant: Annotated[str, typer.Option(help="The name to rate them under.")],
    market: Market = _DEFAULTS.market,
    interval: Interval = _DEFAULTS.interval,
    horizon: Horizon = _DEFAULTS.horizon,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Enter a desk's own forecasts as a rated variant; what was imported before can't be changed."""
    settings = _prepared()
    from flows.signals import import_file

    config = CycleConfig(market=market, interval=interval, horizon=horizon)
    done = import_file(settings, config, file, variant=variant, now=datetime.now(UTC))
    if as_json:
        echo(dataclasses.asdict(done))
        return
    make_console().print(
        f"{done.variant}, version {done.version}: {done.num_new:,} new forecasts, {done.num_known:,} known already; "
        f"{done.num_witnessed:,} of the new ones came before their outcome was known."
    )


@app.command()
def leakcheck(
    market: Market = _DEFAULTS.market,
    interval: Interval = _DEFAULTS.interval,
    pipeline: Annotated[str | None, typer.Option(help="Check this pipeline alone.", show_default=False)] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Check that no feature, label or panel of a market knows the future; the exit status is 1 where one does."""
    command_settings()
    from flows.leakcheck import check_market, render

    console = make_console(stderr=True)
    report = check_market(
        market, interval, only=pipeline, now=datetime.now(UTC), tell=lambda said: console.print(said, style="dim")
    )
    if as_json:
        echo([json.loads(verdict.to_json()) for verdict in report.verdicts])
    else:
        render(make_console(), report)
    if not report.clean:
        raise typer.Exit(1)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL[@STAGE]", help="Such as lstm-l30-technical-h64@production.")],
    market: Annotated[str, typer.Option(help="Where its market's data lies now.", show_default="where it lay")] = "",
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Make a registered model again from what is recorded; the exit status is 1 where an item is not ok."""
    check_machine()
    settings = command_settings()
    from flows.postgres import Hold
    from flows.verify import render, verify_model
    from training.tracking import connect

    with Hold(settings) as hold:
        client = connect(hold.databases.url("mlflow"))
        made = verify_model(settings, client, model, market=market, now=datetime.now(UTC))
    if as_json:
        echo(json.loads(made.to_json()))
    else:
        render(make_console(), made)
    if not made.ok:
        raise typer.Exit(1)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="An architecture or a variant's id.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    market: Market = _DEFAULTS.market,
    interval: Interval = _DEFAULTS.interval,
    folds: Folds = _DEFAULTS.folds,
    horizon: Horizon = _DEFAULTS.horizon,
    as_of: AsOf = None,
    seed: Seed = _DEFAULTS.seed,
    seeds: Annotated[int, typer.Option(min=1, help="Fit under so many seeds, from --seed on.")] = 1,
    folder: Annotated[Path | None, typer.Option("--into", help="Folder for the reports.", show_default=False)] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Compare two models on the same data, folds and seeds, with an LSTM and a linear baseline, by paired tests.

    An architecture stands for its variant of 30 bars on the technical pipeline, or as the other side's id has it.
    """
    check_machine()
    settings = command_settings()
    from flows.compare import compare_variants, render, write_report
    from flows.console import progress
    from training.comparison_report import plain

    config = CycleConfig(
        market=market,
        interval=interval,
        horizon=horizon,
        folds=folds,
        seed=seed,
        as_of=as_of and as_of.replace(tzinfo=UTC),
    )
    with progress(make_console(stderr=True)) as bars:
        report = compare_variants(
            first, second, config, num_seeds=seeds, workers=settings.workers, now=datetime.now(UTC), bars=bars
        )
    written = write_report(report, folder or settings.reports / "compare")
    if as_json:
        echo(plain(report) | {"reports": {kind: str(file) for kind, file in written.items()}})
        return
    render(make_console(), report)
    for kind, file in written.items():
        make_console().print(f"{kind}: {file}", soft_wrap=True)


def check_machine() -> None:
    """Refuse a Python that is not supported, and name a system library that is missing."""
    if sys.version_info[:2] not in _PYTHONS:
        raise MachineError(
            f"Perennial runs on Python 3.11, 3.12 or 3.13, this is {sys.version.split()[0]}: "
            "install python3.11 and type `make run PYTHON=python3.11`"
        )
    try:
        if sys.platform == "linux":
            ctypes.CDLL("libgomp.so.1")
    except OSError:
        raise MachineError("LightGBM needs libgomp.so.1: type `sudo apt-get install libgomp1`") from None


def _listed(catalogue: Path | None) -> str:
    """The catalogue's file as a configuration has it, found from any folder."""
    return str(catalogue.expanduser().absolute()) if catalogue else ""


def _prepared(**given: Any) -> Settings:
    """Settings for a command that starts something."""
    check_machine()
    from flows import postgres, services

    settings = command_settings(**given)
    settings.prefect_home.mkdir(parents=True, exist_ok=True)  # Prefect makes its own folder, but not its parents
    if note := postgres.first_start_note(settings):
        make_console(stderr=True).print(note, style="yellow")  # what is asked for may be JSON
    services.end_orphans(settings)
    if api := services.prefect_api(settings):
        os.environ["PREFECT_API_URL"] = api  # runs show in the server that is up; else Prefect starts one for itself
    return settings


def _trading(settings: Settings) -> list[TradingRow]:
    from flows import postgres
    from flows.trading import trading_now

    if not postgres.exists(settings):
        return []
    with postgres.Hold(settings) as hold:
        return trading_now(hold.databases)


def _services_table(states: list[State]) -> Table:
    shown = [{"service": state.title, "state": state.state, "address": state.url} for state in states]
    return table("Services", shown)


def _rows(trading: list[TradingRow]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in trading]


def start() -> None:
    """The command as a process of its own."""
    run_alone(app)


if __name__ == "__main__":
    start()
