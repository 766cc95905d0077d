"""``perennial verify``: a registered model is made again from what is recorded, and its certificate kept beside it.

The training set is rebuilt as known then, twice: from the stored feature tables, of which the rows that were written
by then count, and from the market's data alone. The second must come to the same, unless all that the data say now has
come into the tables since: rows that are dated back, recorded by a later run, change nothing; data that were changed
and say what no table knows are found. Where there are no tables (a fresh clone with the same data) it is all there is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from feature_repo.market.schema import Market
from feature_repo.market.sources import SOURCES
from feature_repo.pipelines.catalog import pipeline
from feature_repo.store.tables import append_rows, read_rows, require_unchanged
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.steps import data
from flows.steps.fit import Trained
from flows.steps.run import DECIDING, Run, run_apart
from training.artifacts import UNKNOWN_VERSION, ArtifactError, code_fingerprint, code_version
from training.certificate import CERTIFICATE, Certificate, Rebuilt, certify
from training.panels import save_panel
from training.rating.evidence import Finding
from training.rating.promotion import ALIASES, Assignment, assignments
from training.recipe import Recipe, read_recipe
from training.tracking import MODEL_FOLDER, markets, model_name
from training.trainer import model_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

STATUS_TAG: Final = "certificate"
"""Tag of a version: ``ok``, or the items that are not."""
SHA256_TAG: Final = "certificate_artifact_sha256"
"""Tag of a version: SHA-256 of the manifest that was checked."""
TIME_TAG: Final = "certificate_at"
_COLOURS: Final = {"ok": "green", "not ok": "bold red", "not checkable": "yellow"}
_NAME: Final = "verify"


class VerifyError(ValueError):
    """No such model, or more than one; the message lists what there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A version of a registered model, and its market's name."""

    market: str
    held: Assignment
    version: ModelVersion


def verify_model(settings: Settings, client: MlflowClient, asked: str, *, market: str, now: datetime) -> Certificate:
    """Certify a registered version, and keep the certificate beside the model and as tags of the version.

    ``asked`` is MODEL or MODEL@STAGE; ``market`` is where its market's data lies now, empty where it lay then.
    """
    named = find(client, asked)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = Path(client.download_artifacts(str(named.version.run_id), MODEL_FOLDER))
        made = certify(
            model,
            registered=named.version.tags,
            version=int(named.version.version),
            saved=_saved(settings.panels, named.version.tags.get("dataset_fingerprint", "")),
            rebuilt=rebuild_of(
                model, market=market, features=settings.features / named.market, scratch=scratch, now=now
            ),
            code=code_fingerprint(DECIDING),
            git_sha=code_version(Path(__file__).parent),
            scratch=scratch / "refit",
            at=now,
        )
        _keep(client, named, made, scratch)
    return made


def certificates(run: Run, trained: Mapping[str, Trained], variants: Collection[str]) -> dict[str, Finding]:
    """What the gates take: the certificate of each of these variants' newest fits, which need not be registered yet.

    It is kept beside the saved model. A panel that several share is rebuilt once.
    """
    found, panels = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            task = trained[variant].tasks[-1]
            model, scratch = model_folder(task), Path(folder) / variant
            if task.panel_fingerprint not in panels:
                panels[task.panel_fingerprint] = rebuild_of(
                    model, market="", features=run.features.parent, scratch=scratch, now=run.now
                )
            try:
                made = certify(
                    model,
                    registered={"training_key": task.key},
                    version=0,
                    saved=_saved(run.panels, task.panel_fingerprint),
                    rebuilt=panels[task.panel_fingerprint],
                    code=run.code,
                    git_sha=run.git_sha,
                    scratch=scratch / "refit",
                    at=run.now,
                )
            except ArtifactError as error:
                found[variant] = Finding(ok=False, why=str(error))
                continue
            (model.parent / CERTIFICATE).write_text(made.to_json(), encoding="utf-8")
            found[variant] = made.finding()
    return found


def find(client: MlflowClient, asked: str) -> Named:
    """The version that MODEL[@STAGE] names: MODEL is a variant's id, or MARKET.ID where several markets have it.

    Without a stage it is the version that holds one, or the newest.
    """
    name, _, stage = asked.partition("@")
    if stage and stage.lower() not in ALIASES.values():
        raise VerifyError(f"no stage {stage!r} to verify; allowed are {', '.join(ALIASES)}, as in {name}@production")
    all_held = [(market, held) for market in markets(client) for held in assignments(client, market).values()]
    alike = [(market, held) for market, held in all_held if name in (held.variant, model_name(market, held.variant))]
    fitting = [(market, held) for market, held in alike if not stage or held.stage.lower() == stage.lower()]
    if len(fitting) > 1:
        names = ", ".join(model_name(market, held.variant) for market, held in fitting)
        raise VerifyError(f"{name!r} is a model of {len(fitting)} markets: name one of {names}")
    if not fitting:
        raise VerifyError(_nothing(name, stage, alike, all_held))
    ((market, held),) = fitting
    version = client.get_model_version(model_name(market, held.variant), str(held.version))
    return Named(market=market, held=held, version=version)


def rebuild_of(folder: Path, *, market: str, features: Path, scratch: Path, now: datetime) -> Rebuilt:
    """The training set of a saved model, made again; ``features`` holds its market's tables by interval."""
    try:
        recipe = read_recipe(folder)
    except ArtifactError as error:
        return Rebuilt(why=str(error))
    if recipe is None:
        return Rebuilt(why="the model has no recipe")
    place = market or recipe.task.market
    if not place:
        return Rebuilt(why="its recipe does not say where its market's data came from; name it with --market")
    if place not in SOURCES and not Path(place).is_dir():
        return Rebuilt(why=f"its market's data are not in {place}; say where they are with --market")
    try:
        return rebuild(recipe, place, features / recipe.task.interval, scratch, now)
    except Exception as error:  # whatever a damaged file may lead to, in any reader
        return Rebuilt(why=f"{type(error).__name__}: {error}", is_damaged=True)


def rebuild(recipe: Recipe, place: str, features: Path, scratch: Path, now: datetime) -> Rebuilt:
    """Make a panel again from what was known when it was made, by the tables in ``features`` and by the data alone."""
    scratch.mkdir(parents=True, exist_ok=True)
    task = recipe.task
    made_at = datetime.fromisoformat(task.made_at)
    config = CycleConfig(
        market=place,
        interval=task.interval,
        horizon=recipe.horizon,
        label=recipe.label,
        as_of=datetime.fromisoformat(task.as_of or task.made_at),
    )
    known = data.load(config, now)
    run = run_apart(_NAME, config, known, made_at, scratch)
    data.build_tables(run, known, None, pipelines=[task.variant.pipeline])
    anew = _panel(recipe, known, run.features, scratch / "anew")
    views = [features / pipeline(name).view_name for name in (task.variant.pipeline, data.BAR)]
    if not views[0].is_dir():
        return Rebuilt(panel=anew)
    for view in views:
        require_unchanged(view)
    then = _panel(recipe, known, features, scratch / "then", written_before=made_at)
    if then.name == anew.name or all(_knows(view, run.features / view.name, scratch / "tables") for view in views):
        return Rebuilt(panel=then)
    return Rebuilt(panel=then, differs=f"{anew.name} from the data in {place}, which are not what the tables hold")


def _panel(
    recipe: Recipe, known: Market, features: Path, scratch: Path, written_before: datetime | None = None
) -> Path:
    """The panel by these feature tables, saved in a folder that is named for its fingerprint."""
    from feature_repo.definitions.repo import open_feature_store  # Feast takes seconds to import

    scratch.mkdir()
    store = open_feature_store(
        project=_NAME,
        registry=f"sqlite:///{scratch}/registry.db",
        features_root=features,
        interval=recipe.task.interval,
        written_before=written_before,
    )
    grid = data.market_grid(known, recipe.task.interval)
    first = np.datetime64(recipe.first_event.removesuffix("+00:00"), "us")
    grid = grid.tail(int((grid.event_times_T >= first).sum()))
    name, horizon, label = recipe.task.variant.pipeline, recipe.horizon, recipe.label
    return save_panel(data.point_in_time_panel(name, known, grid, horizon, store, label=label), scratch / "panels")


def _knows(table: Path, anew: Path, scratch: Path) -> bool:
    """Whether a feature table, as it is now, says all that one says that was built anew."""
    copy = shutil.copytree(table, scratch / table.name)
    return append_rows(copy, read_rows(anew)) == 0


def render(console: Console, made: Certificate) -> None:
    """Print the items, and what they come to."""
    version = f", version {made.version}" if made.version else ""
    table = Table(title=f"{made.model}{version}", title_justify="left")
    for name in ("item", "", "expected", "got"):
        table.add_column(name, overflow="fold")
    for item in made.items:
        said = ("as recorded", "") if item.status == "ok" else (escape(item.expected), escape(item.got))
        table.add_row(item.name, f"[{_COLOURS[item.status]}]{item.status}[/]", *said)
    console.print(table)
    if step := _next_step(made):
        console.print(step, markup=False, soft_wrap=True)
    console.print("Reproduced." if made.ok else "NOT reproduced.", style="bold green" if made.ok else "bold red")


def _next_step(made: Certificate) -> str:
    """What to do where the source is another; nothing where only packages are, which no commit brings back."""
    code = next((item for item in made.items if item.name == "code version" and item.status == "not ok"), None)
    if code is None or "; source " not in code.expected:
        return ""
    recorded = code.expected.partition(";")[0].removeprefix("commit ")
    commit = recorded.removesuffix("-dirty")
    if commit == UNKNOWN_VERSION:
        return "The source is another one, and nobody knows its commit: it was no git checkout."
    changed = " (it also had changes that were never committed)" if commit != recorded else ""
    return f"The source is another one: check out {commit}{changed} and verify again."


def _saved(panels: Path, fingerprint: str) -> Path | None:
    folder = panels / fingerprint[:16]
    return folder if fingerprint and folder.is_dir() else None


def _keep(client: MlflowClient, named: Named, made: Certificate, scratch: Path) -> None:
    file = scratch / CERTIFICATE
    file.write_text(made.to_json(), encoding="utf-8")
    client.log_artifact(str(named.version.run_id), str(file))
    status = "ok" if made.ok else "; ".join(f"{each.name} {each.status}" for each in made.items if each.status != "ok")
    for tag, value in {
        SHA256_TAG: made.artifact_sha256,
        TIME_TAG: made.checked_at.isoformat(),
        STATUS_TAG: status,
    }.items():
        client.set_model_version_tag(named.version.name, str(named.version.version), tag, value)


def _nothing(name: str, stage: str, alike: list[tuple[str, Assignment]], held: list[tuple[str, Assignment]]) -> str:
    if alike:
        has = ", ".join(f"{model_name(market, each.variant)} is in {each.stage}" for market, each in alike)
        return f"no model {name} in stage {stage}: {has}"
    full = {model_name(market, each.variant): each.variant for market, each in held}
    names = {known: model for model, variant in full.items() for known in (variant, model)}
    near = dict.fromkeys(names[close] for close in get_close_matches(name, names, n=3))
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    trading = [model_name(market, each.variant) for market, each in held if each.stage in ALIASES]
    return (
        f"no model {name!r} among {len(held)} registered ones{meant}; on paper or live: "
        f"{', '.join(trading) or 'none'}; `perennial status` lists them"
    )
