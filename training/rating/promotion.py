"""The stages: which version of which variant trades, on paper or live; what may follow what; reading the registry.

A stage belongs to the variant; one version holds it. MLflow keeps it in three places: the version's stage, an alias of
the registered model (``@staging``, ``@production``) and the version's tags. For people it also stands in the version's
description, with the reason, and in the model's tag ``stage``, which MLflow's page of models can filter by; nothing
reads it there. ``training.rating.moves`` writes them all. A tag of the registered model says that a change is on its
way: then it has happened, for every reader of this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from training.tracking import MODELS_PER_PAGE, model_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from training.rating.selection import Policy

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
"""Tag of the registered model: a change is on its way, told in the tag of this name of that version.

The model's own tags hold 5,000 characters in MLflow's database, which is too few for some evidence.
"""
LAST: Final = "stage_change"
"""Tag of the registered model: the last change of stage that was made, see ``last_change``."""
UI_ACTOR: Final = "mlflow-ui"
MAX_VERSIONS: Final = 10_000  # of one model: a page of MLflow's that holds them all
MAX_DESCRIPTION_CHARS: Final = 5_000  # what the column of MLflow's database takes
_STAGE_NOTE: Final = "**Stage:**"  # begins the paragraph of a description that is ours


class StageError(RuntimeError):
    """A change of stage that isn't allowed."""


class StaleError(StageError):
    """A change of stage that no longer fits what the registry holds, since somebody was faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The stage of a variant, and the version that holds it.

    ``allocation`` is the share of the stage's capital, 0 to 1. ``training_span`` is the first and last sample time
    learned from (ISO 8601, UTC); ``source`` is the URI of the saved model, and ``artifact_sha256`` proves it;
    ``training_key`` is the model version of its signals. ``by`` is
    ``mlflow-ui`` where MLflow's stage isn't the one written here: somebody moved it there, and MLflow is right.
    ``change`` is the id of the variant's last change of stage, empty where it never had one.
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
    change: str = ""


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
    decision rested on. ``after`` is the id of the variant's last change when this one was planned: it is made only
    while that still is the last one, so of two made from the same state one wins.
    """

    variant: str
    version: int
    from_: Stage
    to: Stage
    allocation: float
    reason: str
    evidence: Mapping[str, str | float] = field(default_factory=dict)
    after: str = ""

    @property
    def id(self) -> str:
        """A hash of all that it says: no two changes of a variant have the same, since no two follow the same one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent:
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
        raise StageError(f"{variant} can't go from {from_} to {to}; from {from_} it can go to: {_allowed(from_)}")


def _allowed(from_: Stage) -> str:
    return "; ".join(f"{end} ({why})" for (start, end), why in TRANSITIONS.items() if start == from_)


def described(description: str, tags: Mapping[str, str]) -> str:
    """A version's description that ends with its stage and the newest reason, from its tags; the rest stays.

    MLflow's page of a version shows it first, so a move that was refused is seen there. Beyond what the column takes
    the reason is cut; the tag ``stage_reason`` has it whole.
    """
    kept = [each for each in description.split("\n\n") if each and not each.startswith(_STAGE_NOTE)]
    since = datetime.fromisoformat(tags["stage_since"]).astimezone(UTC)
    reason = " ".join(tags["stage_reason"].split())  # of one paragraph, so that the next one replaces it all
    note = f"{_STAGE_NOTE} {tags['stage']} since {since:%Y-%m-%d %H:%M} UTC, by {tags['stage_by']}: {reason}"
    return "\n\n".join([*kept, note])[:MAX_DESCRIPTION_CHARS]


def plan(current: Mapping[str, Assignment], desired: Mapping[str, Target]) -> list[StageChange]:
    """The changes that lead from ``current`` (see ``assignments``) to ``desired``; those that leave a stage come first.

    A variant that isn't in ``current`` has the stage None; one that holds a stage and isn't desired leaves it. From
    None or Archived to Production leads over Staging. Raises ``StageError`` where no way is allowed.
    """
    dropped = [held for variant, held in sorted(current.items()) if held.stage in DROPPED and variant not in desired]
    changes = [
        change for variant in sorted(desired) for change in _way(variant, current.get(variant), desired[variant])
    ]
    return [*(drop(held, reason="no longer selected") for held in dropped), *changes]


def drop(held: Assignment, *, reason: str) -> StageChange:
    """The change that takes a variant out of trading."""
    return change_to(held, Target(version=held.version, stage=DROPPED[held.stage], allocation=0.0, reason=reason))


def change_to(held: Assignment, target: Target) -> StageChange:
    """The one change that leads a variant from where it is to there, whether or not it is allowed."""
    return _change(held.variant, held.stage, held.change, target)


def kept_live(current: Mapping[str, Assignment], desired: Mapping[str, Target]) -> dict[str, Target]:
    """What is desired where only people decide on Production: who trades live goes on to, with the version desired."""
    live = {
        variant: Target(
            version=desired[variant].version if variant in desired else held.version,
            stage="Production",
            allocation=held.allocation,
            reason="live until a person moves it",
            evidence=desired[variant].evidence if variant in desired else {},
        )
        for variant, held in current.items()
        if held.stage == "Production"
    }
    return {**desired, **live}


def refusal(from_: Stage, to: Stage, *, policy: Policy, vetoes: Sequence[str] | None) -> str:
    """Why the policy keeps a person from putting a version there; empty where it doesn't.

    ``vetoes`` are what the gates of the last cycle that judged the variant had against it, None where none ever did.
    Whatever leaves trading may; under ``strict`` what enters Production has to come by the table and without a veto.
    """
    if policy != "strict" or to != "Production":
        return ""
    if (from_, to) not in TRANSITIONS:
        return f"from {from_} it can go to: {_allowed(from_)}"
    if vetoes is None:
        return "the policy is strict, and no cycle has judged it"
    return f"the policy is strict, and against it stand: {'; '.join(vetoes)}" if vetoes else ""


def room(current: Mapping[str, Assignment], variant: str, stage: Stage) -> float:
    """The share of a stage's capital that no other variant has."""
    given = sum(held.allocation for other, held in current.items() if held.stage == stage and other != variant)
    return max(0.0, 1.0 - given)


def _way(variant: str, held: Assignment | None, target: Target) -> Iterator[StageChange]:
    stage: Stage = held.stage if held else "None"
    if _is_there(stage, held, target):
        return
    over: tuple[Stage, ...] = ("Staging",) if stage not in ALIASES and target.stage == "Production" else ()
    after = held.change if held else ""
    for following in (*over, target.stage):
        check(variant, stage, following)
        change = _change(variant, stage, after, replace(target, stage=following))
        yield change
        stage, after = following, change.id


def _change(variant: str, from_: Stage, after: str, target: Target) -> StageChange:
    return StageChange(
        variant=variant,
        version=target.version,
        from_=from_,
        to=target.stage,
        allocation=target.allocation,
        reason=target.reason,
        evidence=target.evidence,
        after=after,
    )


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
    found = [_assignment(client, model, market) for model in models_of(client, market)]
    return {each.variant: each for each in found if each is not None}


def models_of(client: MlflowClient, market: str) -> Iterator[RegisteredModel]:
    """The registered models of a market."""
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
    if INTENT in model.tags:
        version = client.get_model_version(model.name, model.tags[INTENT])
        intent = intent_of(version)
        return _read(variant, version, intent.change.to, {**version.tags, **intent.tags()}, intent.change.id)
    if not model.latest_versions:
        return None
    version = holder(model, model.latest_versions)
    return _read(variant, version, stage_of(version), version.tags, last_id(model))


def versions_of(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """All versions of a model by number; one that isn't there has none."""
    return {int(each.version): each for each in client.search_model_versions(f"name = '{name}'", MAX_VERSIONS)}


def intent_of(version: ModelVersion) -> Intent:
    """The change on its way to this version."""
    fields = json.loads(version.tags[INTENT])
    return Intent(change=StageChange(**fields.pop("change")), **fields)


def last_id(model: RegisteredModel) -> str:
    """Id of the last change of stage that was made; empty where none ever was."""
    last = last_change(model)
    return cast(str, last["id"]) if last else ""


def last_change(model: RegisteredModel) -> dict[str, Any] | None:
    """The last change of stage that was made: its id, and the version, stage and allocation it led to."""
    return json.loads(model.tags[LAST]) if LAST in model.tags else None


def holder(model: RegisteredModel, versions: Collection[ModelVersion]) -> ModelVersion:
    """The version that holds the variant's stage; where none trades, the one that was moved away.

    Else the one that was archived last; for a variant that is evaluated only, the newest that never was.
    """
    rank: dict[Stage, int] = {"Staging": 1, "Production": 2}

    def order(version: ModelVersion) -> tuple[int, int, int]:
        now, before = rank.get(stage_of(version), 0), rank.get(recorded_stage(version), 0)
        return now, 0 if now else before, int(version.version)

    held, last = max(versions, key=order), last_change(model)
    if any(order(held)[:2]) or last is None:
        return held
    alike = [each for each in versions if stage_of(each) == last["stage"]] or versions
    archived = [each for each in alike if last["stage"] == "Archived" and int(each.version) == last["version"]]
    return max(archived or alike, key=order)


def stage_of(version: ModelVersion) -> Stage:
    """The stage that MLflow shows."""
    return cast(Stage, version.current_stage)


def recorded_stage(version: ModelVersion) -> Stage:
    """The stage that was written here, whatever MLflow's own says."""
    return cast(Stage, version.tags.get("stage", "None"))


def _read(variant: str, version: ModelVersion, stage: Stage, tags: Mapping[str, str], change: str) -> Assignment:
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
        change=change,
    )
