"""The stage machine: which version of which variant trades, on paper or live, written so that a crash can't tear it.

A stage belongs to the variant; one version holds it. MLflow keeps it in three places: the version's stage, an alias of
the registered model (``@staging``, ``@production``) and the version's tags. ``apply`` writes them in this order:

1. the intent, one tag of the registered model: from here on the change has happened, for every reader of this module;
2. every other version that holds a stage: Archived, with its tags;
3. the version: its stage, its tags (``stage`` last, so that it stands for all of them);
4. the aliases: the wrong one is deleted, the right one set;
5. the intent is deleted.

Steps 2-5 can be repeated, so ``reconcile`` (or the next ``apply``) finishes what a crash has torn.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from training.tracking import MODELS_PER_PAGE, model_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

Stage: TypeAlias = Literal["None", "Staging", "Production", "Archived"]

TRANSITIONS: Final[Mapping[tuple[Stage, Stage], str]] = MappingProxyType(
    {
        ("None", "Staging"): "selected for paper trading",
        ("Staging", "Staging"): "refitted, rolled back or reallocated",
        ("Staging", "Production"): "passed the gate",
        ("Staging", "None"): "no longer selected, evaluated only",
        ("Staging", "Archived"): "withdrawn",
        ("Production", "Production"): "refitted, rolled back or reallocated",
        ("Production", "Staging"): "back to paper trading",
        ("Production", "Archived"): "taken out of trading, kept for rollback",
        ("Archived", "Staging"): "selected again",
        ("Archived", "Production"): "rolled back",
    }
)
ALIASES: Final[Mapping[Stage, str]] = MappingProxyType({"Staging": "staging", "Production": "production"})
DROPPED: Final[Mapping[Stage, Stage]] = MappingProxyType({"Staging": "None", "Production": "Archived"})
INTENT: Final = "stage_intent"
UI_ACTOR: Final = "mlflow-ui"
MAX_VERSIONS: Final = 10_000  # of one model: a page of MLflow's that holds them all


class StageError(RuntimeError):
    """A change of stage that isn't allowed, or no longer fits what the registry holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The stage of a variant, and the version that holds it.

    ``allocation`` is the share of the stage's capital, 0 to 1. ``training_span`` is the first and last sample time
    learned from (ISO 8601, UTC); ``source`` is the URI of the saved model, and ``artifact_sha256`` proves it;
    ``training_key`` is the model version of its signals. ``by`` is
    ``mlflow-ui`` where MLflow's stage isn't the one written here: somebody moved it there, and MLflow is right.
    """

    variant: str
    version: int
    stage: Stage
    allocation: float
    since: datetime
    by: str
    reason: str
    evidence: Mapping[str, str | float] = field(default_factory=dict)
    training_span: tuple[str, str] = ("", "")
    dataset_fingerprint: str = ""
    checksum: str = ""
    artifact_sha256: str = ""
    source: str = ""
    training_key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a variant should be, with which version (the newest that passed its checks)."""

    version: int
    stage: Stage
    allocation: float
    reason: str
    evidence: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChange:
    """A variant moves from a stage to another, or to another version or allocation within its stage.

    ``version`` holds the stage afterwards; every other version that held one is archived. ``evidence`` is what the
    decision rested on.
    """

    variant: str
    version: int
    from_: Stage
    to: Stage
    allocation: float
    reason: str
    evidence: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Intent:
    """A change on its way, with who decided it and when (ISO 8601, UTC)."""

    change: StageChange
    since: str
    by: str

    def tags(self) -> dict[str, str]:
        """What the version's tags say once it is done; ``stage`` is the last."""
        return {
            "stage_since": self.since,
            "stage_by": self.by,
            "stage_reason": self.change.reason,
            "stage_evidence": json.dumps(dict(self.change.evidence), sort_keys=True),
            "allocation": repr(float(self.change.allocation)),
            "stage": self.change.to,
        }


# ---- the pure part ---------------------------------------------------------------------------------------------------


def check(variant: str, from_: Stage, to: Stage) -> None:
    """Raise a ``StageError`` that lists the allowed ones unless the table has this transition."""
    if (from_, to) not in TRANSITIONS:
        allowed = "; ".join(f"{end} ({why})" for (start, end), why in TRANSITIONS.items() if start == from_)
        raise StageError(f"{variant} can't go from {from_} to {to}; from {from_} it can go to: {allowed}")


def plan(current: Mapping[str, Assignment], desired: Mapping[str, Target]) -> list[StageChange]:
    """The changes that lead from ``current`` (see ``assignments``) to ``desired``; those that leave a stage come first.

    A variant that isn't in ``current`` has the stage None; one that holds a stage and isn't desired leaves it. From
    None or Archived to Production leads over Staging. Raises ``StageError`` where no way is allowed.
    """
    dropped = [held for variant, held in sorted(current.items()) if held.stage in DROPPED and variant not in desired]
    changes = [
        change for variant in sorted(desired) for change in _way(variant, current.get(variant), desired[variant])
    ]
    return [*map(_drop, dropped), *changes]


def _drop(held: Assignment) -> StageChange:
    return StageChange(
        variant=held.variant,
        version=held.version,
        from_=held.stage,
        to=DROPPED[held.stage],
        allocation=0.0,
        reason="no longer selected",
    )


def _way(variant: str, held: Assignment | None, target: Target) -> Iterator[StageChange]:
    stage: Stage = held.stage if held else "None"
    if _is_there(stage, held, target):
        return
    over: tuple[Stage, ...] = ("Staging",) if stage not in ALIASES and target.stage == "Production" else ()
    for following in (*over, target.stage):
        check(variant, stage, following)
        yield StageChange(
            variant=variant,
            version=target.version,
            from_=stage,
            to=following,
            allocation=target.allocation,
            reason=target.reason,
            evidence=target.evidence,
        )
        stage = following


def _is_there(stage: Stage, held: Assignment | None, target: Target) -> bool:
    if stage != target.stage:
        return False
    same = held is not None and (held.version, held.allocation) == (target.version, target.allocation)
    return same or stage not in ALIASES


# ---- reading the registry --------------------------------------------------------------------------------------------


def current(client: MlflowClient, market: str) -> list[Assignment]:
    """What trades now, on paper or live: Production first, then by allocation."""
    held = [each for each in assignments(client, market).values() if each.stage in ALIASES]
    return sorted(held, key=lambda each: (each.stage, -each.allocation, each.variant))


def assignments(client: MlflowClient, market: str) -> dict[str, Assignment]:
    """Every registered variant and its stage, by one query of the registry.

    Where several versions hold a stage in MLflow (somebody left both there), Production goes before Staging and the
    newest version before the others; the rest is archived with the variant's next change. Where none does, it is the
    newest version.
    """
    found = [_assignment(client, model, market) for model in _models(client, market)]
    return {each.variant: each for each in found if each is not None}


def _models(client: MlflowClient, market: str) -> Iterator[RegisteredModel]:
    token = None
    while True:
        page = client.search_registered_models(f"tags.market = '{market}'", MODELS_PER_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _assignment(client: MlflowClient, model: RegisteredModel, market: str) -> Assignment | None:
    """A model's assignment, None where it has no version yet; a change on its way counts as done."""
    variant = model.name.removeprefix(model_name(market, ""))
    intent = _pending(model)
    if intent:
        version = client.get_model_version(model.name, str(intent.change.version))
        return _read(variant, version, intent.change.to, {**version.tags, **intent.tags()})
    return _as_it_is(variant, _holder(model.latest_versions)) if model.latest_versions else None


def _as_it_is(variant: str, version: ModelVersion) -> Assignment:
    return _read(variant, version, _stage(version), version.tags)


def _versions(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """All versions of a model by number; one that isn't there has none."""
    return {int(each.version): each for each in client.search_model_versions(f"name = '{name}'", MAX_VERSIONS)}


def _pending(model: RegisteredModel) -> _Intent | None:
    if INTENT not in model.tags:
        return None
    fields = json.loads(model.tags[INTENT])
    return _Intent(change=StageChange(**fields.pop("change")), **fields)


def _holder(versions: Collection[ModelVersion]) -> ModelVersion:
    """The version that holds the variant's stage; of those without one, the one that was moved away, or the newest."""
    rank: dict[Stage, int] = {"Staging": 1, "Production": 2}

    def order(version: ModelVersion) -> tuple[int, int, int]:
        now, before = rank.get(_stage(version), 0), rank.get(_recorded(version), 0)
        return now, 0 if now else before, int(version.version)

    return max(versions, key=order)


def _stage(version: ModelVersion) -> Stage:
    """The stage that MLflow shows."""
    return cast(Stage, version.current_stage)


def _recorded(version: ModelVersion) -> Stage:
    """The stage that was written here, whatever MLflow's own says."""
    return cast(Stage, version.tags.get("stage", "None"))


def _read(variant: str, version: ModelVersion, stage: Stage, tags: Mapping[str, str]) -> Assignment:
    moved = stage != tags.get("stage", "None")
    touched = datetime.fromtimestamp(int(version.last_updated_timestamp or 0) / 1000, UTC)
    return Assignment(
        variant=variant,
        version=int(version.version),
        stage=stage,
        allocation=float(tags.get("allocation", 0.0)) if stage in ALIASES else 0.0,
        since=touched if moved or "stage_since" not in tags else datetime.fromisoformat(tags["stage_since"]),
        by=UI_ACTOR if moved else tags.get("stage_by", ""),
        reason="moved in the MLflow UI" if moved else tags.get("stage_reason", ""),
        evidence={} if moved else json.loads(tags.get("stage_evidence", "{}")),
        training_span=(tags.get("train_from", ""), tags.get("train_to", "")),
        dataset_fingerprint=tags.get("dataset_fingerprint", ""),
        checksum=tags.get("checksum", ""),
        artifact_sha256=tags.get("artifact_sha256", ""),
        source=version.source or "",
        training_key=tags.get("training_key", ""),
    )


# ---- writing it ------------------------------------------------------------------------------------------------------


def apply(change: StageChange, client: MlflowClient, *, market: str, now: datetime, actor: str) -> None:
    """Make a change in MLflow: stage, alias and tags. Doing it again changes nothing.

    What an earlier crash left torn is finished first. Raises ``StageError`` where the table doesn't allow the change,
    the version isn't registered, or the variant isn't (any more) in the stage the change starts from.
    """
    check(change.variant, change.from_, change.to)
    name = model_name(market, change.variant)
    versions = _versions(client, name)
    if change.version not in versions:
        raise StageError(f"{name} has no version {change.version}; registered are {sorted(versions) or 'none'}")
    torn = _pending(client.get_registered_model(name))
    if torn:
        _finish(client, name, torn)
        versions = _versions(client, name)
    held = _holder(versions.values())
    if _is_done(change, versions[change.version], held):
        return
    if _stage(held) != change.from_:
        raise StageError(
            f"{change.variant} is in {_stage(held)} with version {held.version}, not in {change.from_}: "
            "it was moved since the change was planned; plan again"
        )
    _start(client, name, _Intent(change=change, since=now.isoformat(), by=actor))


def reconcile(client: MlflowClient, market: str) -> list[StageChange]:
    """Finish changes that a crash has torn, and follow the stages that people set in the MLflow UI.

    Afterwards stage, alias and tags agree for every variant. Returns the changes finished or followed; those that
    people made may be any, also ones the table doesn't have.
    """
    changes = []
    for model in _models(client, market):
        torn = _pending(model)
        if torn:
            _finish(client, model.name, torn)
            changes.append(torn.change)
        elif model.latest_versions and not _agrees(model):
            moved = _moved(_versions(client, model.name).values(), model.name.removeprefix(model_name(market, "")))
            _start(client, model.name, moved)
            changes.append(moved.change)
    return changes


def _agrees(model: RegisteredModel) -> bool:
    holder = _holder(model.latest_versions)
    want = {ALIASES[_stage(holder)]: int(holder.version)} if _stage(holder) in ALIASES else {}
    aliases = {alias: int(version) for alias, version in model.aliases.items() if alias in ALIASES.values()}
    others = [each for each in model.latest_versions if each is not holder]
    return (
        aliases == want
        and all(_recorded(each) == _stage(each) for each in model.latest_versions)
        and not any(_stage(each) in ALIASES for each in others)
    )


def _moved(versions: Collection[ModelVersion], variant: str) -> _Intent:
    """What a person did in the MLflow UI, as if it had been asked for here."""
    held = _as_it_is(variant, _holder(versions))
    before = max(map(_recorded, versions), key=["None", "Archived", *ALIASES].index)
    change = StageChange(
        variant=held.variant,
        version=held.version,
        from_=before,
        to=held.stage,
        allocation=held.allocation,
        reason=held.reason,
        evidence=held.evidence,
    )
    return _Intent(change=change, since=held.since.isoformat(), by=held.by)


def _is_done(change: StageChange, version: ModelVersion, held: ModelVersion) -> bool:
    if _stage(version) != change.to:
        return False
    if change.to not in ALIASES:
        return _stage(held) not in ALIASES
    return held is version and float(version.tags.get("allocation", "nan")) == change.allocation


def _start(client: MlflowClient, name: str, intent: _Intent) -> None:
    client.set_registered_model_tag(name, INTENT, json.dumps(asdict(intent), sort_keys=True))
    _finish(client, name, intent)


def _finish(client: MlflowClient, name: str, intent: _Intent) -> None:
    """Steps 2-5 of the order above, each repeatable."""
    change = intent.change
    versions = _versions(client, name)
    version = versions.pop(change.version)
    for other in versions.values():
        _retire(client, other, intent)
    _write(client, version, change.to, intent.tags())
    for stage, alias in ALIASES.items():
        if stage != change.to:
            client.delete_registered_model_alias(name, alias)
    if change.to in ALIASES:
        client.set_registered_model_alias(name, ALIASES[change.to], str(change.version))
    client.delete_registered_model_tag(name, INTENT)


def _retire(client: MlflowClient, version: ModelVersion, intent: _Intent) -> None:
    """Archive a version that holds a stage; a version whose tags don't say what its stage is gets them right."""
    stage: Stage = "Archived" if _stage(version) in ALIASES else _stage(version)
    if _stage(version) == stage == _recorded(version):
        return
    by_hand = intent.by == UI_ACTOR
    reason = intent.change.reason if by_hand else f"replaced by version {intent.change.version}"
    change = replace(intent.change, to=stage, allocation=0.0, reason=reason, evidence={})
    _write(client, version, stage, replace(intent, change=change).tags())


def _write(client: MlflowClient, version: ModelVersion, stage: Stage, tags: Mapping[str, str]) -> None:
    if _stage(version) != stage:
        with warnings.catch_warnings():
            message = ".*transition_model_version_stage"  # MLflow deprecates stages, and its UI still lives by them
            warnings.filterwarnings("ignore", message, category=FutureWarning)
            client.transition_model_version_stage(version.name, version.version, stage)
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.version, key, value)
