"""The stage machine: changes of stage, written so that a crash can't tear them and two promoters can't both win.

A change is written in this order, under a lock of its variant:

1. the intent: a tag of the version that tells it all, then one of the registered model that names the version. From
   here on the change has happened, for every reader;
2. the row of the audit log, once, whoever comes here again: it bears the change's id;
3. every other version that holds a stage: Archived, with its tags;
4. the version: its stage, its description, its tags (``stage`` last, so that it stands for all of them);
5. the aliases: the wrong one is deleted, the right one set;
6. the model's tags: ``stage``, for whoever filters models by it, and ``stage_change``, which names the change; then the
   intent is deleted, the model's tag first.

Steps 2-6 can be repeated, so ``reconcile`` (or the next ``apply``) finishes what a crash has torn. A change is made
only while the one that it was planned after is the variant's last: who planned on a state that is no more is refused.

People move stages in the MLflow UI, or aliases, which is all that its newer view offers. Where no change is on its way
and the registry isn't as the log left it, a person did that; a stage counts before an alias. ``reconcile`` puts such a
move on record, and honours it or, where the policy forbids it, moves the variant back.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, cast

from training.rating.audit import AuditLog, AuditRow, Entry
from training.rating.promotion import (
    ALIASES,
    DROPPED,
    INTENT,
    LAST,
    UI_ACTOR,
    Intent,
    Stage,
    StageChange,
    StageError,
    StaleError,
    Target,
    assignments,
    check,
    described,
    holder,
    intent_of,
    kept_live,
    last_change,
    last_id,
    models_of,
    plan,
    recorded_stage,
    refusal,
    room,
    stage_of,
    versions_of,
)
from training.rating.verdicts import last_verdicts
from training.tracking import MODEL_STAGE, model_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from training.rating.selection import Policy

ROLLED_BACK: Final = "rolled_back_to"
"""In a row's evidence: the number of the row whose state it brought back."""
_TRIES: Final = 3


# ---- our own changes -------------------------------------------------------------------------------------------------


def apply(change: StageChange, client: MlflowClient, log: AuditLog, *, market: str, now: datetime, actor: str) -> bool:
    """Make a change: log, stage, alias and tags. Making it again changes nothing; returns whether it was made now.

    What an earlier crash left torn is finished first. Raises ``StageError`` where the table doesn't allow the change or
    the version isn't registered, ``StaleError`` where the variant isn't (any more) where the change starts from.
    """
    check(change.variant, change.from_, change.to)
    name = model_name(market, change.variant)
    intent = Intent(change=change, since=now.isoformat(), by=actor)
    _entry(market, intent)  # what the log would refuse is refused before anything is written
    with log.alone(_lock(name)):
        versions = versions_of(client, name)
        if change.version not in versions:
            raise StageError(f"{name} has no version {change.version}; registered are {sorted(versions) or 'none'}")
        model = client.get_registered_model(name)
        if INTENT in model.tags:
            _finish(client, log, market, model)
            model, versions = client.get_registered_model(name), versions_of(client, name)
        if last_id(model) == change.id:
            return False
        _check_fresh(change, model, versions.values())
        _start(client, log, market, name, intent)
    return True


def rebalance(
    client: MlflowClient,
    log: AuditLog,
    desired: Mapping[str, Target],
    *,
    market: str,
    policy: Policy,
    now: datetime,
    actor: str,
) -> list[StageChange]:
    """Reconcile, then bring the stages to what is desired; returns all changes made.

    Under ``manual`` who trades live goes on to. Where somebody moves a variant meanwhile, it is planned again.
    """
    made = []
    for attempt in range(_TRIES):
        made += reconcile(client, log, market=market, policy=policy, now=now)
        current = assignments(client, market)
        try:
            for change in plan(current, kept_live(current, desired) if policy == "manual" else desired):
                if apply(change, client, log, market=market, now=now, actor=actor):
                    made.append(change)
            break
        except StaleError:
            if attempt == _TRIES - 1:
                raise
    return made


def rollback_target(rows: Sequence[AuditRow]) -> Target:
    """Where a variant was before, by its rows of the log, oldest first.

    That is the newest earlier state with another stage or version. What was rolled back is gone: the next rollback
    goes further back. Raises ``StageError`` where there is nothing before.
    """
    if not rows:
        raise StageError("the audit log has no change of it to go back from; see `perennial history`")
    first = rows[0].entry
    states = [(0, _state(first.version, first.from_, 0.0))]
    for row in rows:
        entry, back = row.entry, row.entry.evidence.get(ROLLED_BACK)
        if back is None:
            states.append((row.seq, _state(entry.version, entry.to, entry.allocation)))
        else:
            states = [(seq, state) for seq, state in states if seq <= int(back)]
    _, now = states[-1]
    for seq, state in reversed(states):
        if state.stage != now.stage or (state.stage in ALIASES and state.version != now.version):
            return replace(state, evidence={ROLLED_BACK: seq})
    raise StageError(f"{first.variant} was never elsewhere than in {now.stage} with version {now.version}")


def _state(version: int, stage: str, allocation: float) -> Target:
    return Target(version=version, stage=cast("Stage", stage), allocation=allocation, reason="as before")


def _check_fresh(change: StageChange, model: RegisteredModel, versions: Collection[ModelVersion]) -> None:
    held = holder(model, versions)
    if not _agrees(model, versions):
        raise StaleError(
            f"{change.variant} was just moved by hand, to {stage_of(held)} with version {held.version}: plan again"
        )
    if last_id(model) != change.after or stage_of(held) != change.from_:
        raise StaleError(
            f"{change.variant} is in {stage_of(held)} with version {held.version}, and was moved since the change to "
            f"{change.to} was planned (from {change.from_}): plan again"
        )


# ---- what crashes and people left ------------------------------------------------------------------------------------


def reconcile(client: MlflowClient, log: AuditLog, *, market: str, policy: Policy, now: datetime) -> list[StageChange]:
    """Finish changes that a crash has torn; put on record what people moved in the MLflow UI, or move it back.

    Afterwards log, stage, alias and tags agree for every variant. Returns the changes that were finished or put on
    record. Those that people made may be any, also ones the table doesn't have; whatever the policy refuses is one
    that leads back to where the variant was, and says what was asked and why not. Where only the model's tag ``stage``
    is missing or wrong it is set, which is no change.
    """
    return [
        change
        for model in models_of(client, market)
        if not _is_settled(client, model) and (change := _settle(client, log, market, model.name, policy, now))
    ]


def _is_settled(client: MlflowClient, model: RegisteredModel) -> bool:
    if INTENT in model.tags or not model.latest_versions:
        return INTENT not in model.tags
    # MLflow gives the newest version of each stage, and behind one that trades another may hide
    trades = any(stage_of(each) in ALIASES for each in model.latest_versions)
    versions = versions_of(client, model.name).values() if trades else model.latest_versions
    return _agrees(model, versions) and _is_filed(model, versions)


def _is_filed(model: RegisteredModel, versions: Collection[ModelVersion]) -> bool:
    return model.tags.get(MODEL_STAGE) == stage_of(holder(model, versions))


def _agrees(model: RegisteredModel, versions: Collection[ModelVersion]) -> bool:
    held, last = holder(model, versions), last_change(model)
    others = [each for each in versions if each is not held]
    return (
        _aliases(model) == _aliases_for(int(held.version), stage_of(held))
        and all(recorded_stage(each) == stage_of(each) for each in versions)
        and not any(stage_of(each) in ALIASES for each in others)
        and (last is None or stage_of(held) not in ALIASES or held.tags.get("allocation") == last["allocation"])
    )


def _aliases(model: RegisteredModel) -> dict[str, int]:
    """Ours among the model's aliases."""
    return {alias: int(version) for alias, version in model.aliases.items() if alias in ALIASES.values()}


def _aliases_for(version: int, stage: Stage) -> dict[str, int]:
    return {ALIASES[stage]: version} if stage in ALIASES else {}


def _settle(
    client: MlflowClient, log: AuditLog, market: str, name: str, policy: Policy, now: datetime
) -> StageChange | None:
    """Under the variant's lock, so that what a live process is about to finish isn't taken for torn."""
    with log.alone(_lock(name)):
        model = client.get_registered_model(name)
        if INTENT in model.tags:
            return _finish(client, log, market, model)
        versions = versions_of(client, name).values()
        if not versions or _agrees(model, versions):
            if versions and not _is_filed(model, versions):
                client.set_registered_model_tag(name, MODEL_STAGE, stage_of(holder(model, versions)))
            return None
        change = _by_hand(client, log, market, model, policy)
        _start(client, log, market, name, Intent(change=change, since=now.isoformat(), by=UI_ACTOR))
        return change


def _by_hand(client: MlflowClient, log: AuditLog, market: str, model: RegisteredModel, policy: Policy) -> StageChange:
    """What a person did in the MLflow UI, as if it had been asked for here; where that is refused, the way back."""
    variant = model.name.removeprefix(model_name(market, ""))
    versions = versions_of(client, model.name)
    before = _before(log.last(market, variant), versions)
    wish = _wish(before, model, versions)
    judged = last_verdicts(log.connection, market, variant)
    same = (wish.version, wish.stage) == (before.version, before.stage)
    vetoes = judged.vetoes if judged else None
    why = "" if same else refusal(before.stage, wish.stage, policy=policy, vetoes=vetoes)
    evidence: dict[str, str | float] = {"policy": policy}
    if same:
        target = replace(before, reason="stays: what was edited by hand in the MLflow UI does not move it")
    elif why:
        reason = f"moved back from {wish.stage}, version {wish.version}, where it was put in the MLflow UI: {why}"
        asked = {"asked_stage": wish.stage, "asked_version": wish.version}
        target = replace(before, reason=reason, evidence={**evidence, **asked})
    else:
        share = min(before.allocation, room(assignments(client, market), variant, wish.stage))
        against = "never judged" if vetoes is None else "; ".join(vetoes)
        target = replace(
            wish, allocation=share if wish.stage in ALIASES else 0.0, evidence={**evidence, "vetoes": against}
        )
    return StageChange(
        variant=variant,
        version=target.version,
        from_=before.stage,
        to=target.stage,
        allocation=target.allocation,
        reason=target.reason,
        evidence=target.evidence,
        after=last_id(model),
    )


def _before(row: AuditRow | None, versions: Mapping[int, ModelVersion]) -> Target:
    """Where the variant was: what the log says, or the tags where the log never heard of it."""
    if row and row.entry.version in versions:
        return _state(row.entry.version, row.entry.to, row.entry.allocation)
    order = ("None", "Archived", *ALIASES)
    known = max(versions.values(), key=lambda each: (order.index(recorded_stage(each)), int(each.version)))
    stage = recorded_stage(known)
    return _state(int(known.version), stage, float(known.tags.get("allocation", 0.0)) if stage in ALIASES else 0.0)


def _wish(before: Target, model: RegisteredModel, versions: Mapping[int, ModelVersion]) -> Target:
    """Where a person put it: by stage, or, where no stage was touched, by alias."""
    trading = {number: stage_of(each) for number, each in versions.items() if stage_of(each) in ALIASES}
    expected = {before.version: before.stage} if before.stage in ALIASES else {}
    if trading != expected or any(stage_of(each) != recorded_stage(each) for each in versions.values()):
        held = _moved(model, versions.values(), expected)
        return Target(version=int(held.version), stage=stage_of(held), allocation=0.0, reason="moved in the MLflow UI")
    aliases, reason = _aliases(model), "moved by alias in the MLflow UI"
    for stage in ("Production", "Staging"):
        if ALIASES[stage] in aliases:
            return Target(version=aliases[ALIASES[stage]], stage=stage, allocation=0.0, reason=reason)
    dropped = DROPPED.get(before.stage, before.stage)
    return Target(version=before.version, stage=dropped, allocation=0.0, reason=reason)


def _moved(model: RegisteredModel, versions: Collection[ModelVersion], expected: Mapping[int, Stage]) -> ModelVersion:
    """The version that holds the stage now: of several in the highest one, one that a person put there."""
    held = holder(model, versions)
    if stage_of(held) not in ALIASES:
        return held
    beside = [each for each in versions if stage_of(each) == stage_of(held)]
    return holder(model, [each for each in beside if expected.get(int(each.version)) != stage_of(each)] or beside)


# ---- writing ---------------------------------------------------------------------------------------------------------


def _lock(name: str) -> str:
    return f"stages of {name}"


def _entry(market: str, intent: Intent) -> Entry:
    change = intent.change
    return Entry(
        time=datetime.fromisoformat(intent.since),
        market=market,
        variant=change.variant,
        version=change.version,
        from_=change.from_,
        to=change.to,
        allocation=change.allocation,
        actor=intent.by,
        reason=change.reason,
        evidence=change.evidence,
        change=change.id,
    )


def _start(client: MlflowClient, log: AuditLog, market: str, name: str, intent: Intent) -> None:
    log.check()  # else the intent would stand, and count as done, with no way to finish it
    version = str(intent.change.version)
    client.set_model_version_tag(name, version, INTENT, json.dumps(asdict(intent), sort_keys=True))
    client.set_registered_model_tag(name, INTENT, version)
    _finish(client, log, market, client.get_registered_model(name))


def _finish(client: MlflowClient, log: AuditLog, market: str, model: RegisteredModel) -> StageChange:
    """Steps 2-6 of the order above, each repeatable, for the change on its way."""
    name, versions = model.name, versions_of(client, model.name)
    version = versions.pop(int(model.tags[INTENT]))
    intent = intent_of(version)
    change = intent.change
    log.append(_entry(market, intent))
    for other in versions.values():
        _retire(client, other, intent)
    _write(client, version, change.to, intent.tags())
    for stage, alias in ALIASES.items():
        if stage != change.to:
            client.delete_registered_model_alias(name, alias)
    if change.to in ALIASES:
        client.set_registered_model_alias(name, ALIASES[change.to], str(change.version))
    client.set_registered_model_tag(name, MODEL_STAGE, change.to)
    last = {"id": change.id, "version": change.version, "stage": change.to, "allocation": intent.tags()["allocation"]}
    client.set_registered_model_tag(name, LAST, json.dumps(last))
    client.delete_registered_model_tag(name, INTENT)
    client.delete_model_version_tag(name, version.version, INTENT)
    return change


def _retire(client: MlflowClient, version: ModelVersion, intent: Intent) -> None:
    """Archive a version that holds a stage; one that only a person's hand put there goes back to where it was.

    A version whose tags don't say what its stage is gets them right.
    """
    was = recorded_stage(version)
    back: Stage = "Archived" if was in ALIASES else was
    stage = back if stage_of(version) in ALIASES else stage_of(version)
    if stage_of(version) == stage == was:
        return
    by_hand = intent.by == UI_ACTOR
    reason = intent.change.reason if by_hand else f"replaced by version {intent.change.version}"
    change = replace(intent.change, to=stage, allocation=0.0, reason=reason, evidence={})
    _write(client, version, stage, replace(intent, change=change).tags())


def _write(client: MlflowClient, version: ModelVersion, stage: Stage, tags: Mapping[str, str]) -> None:
    if stage_of(version) != stage:
        with warnings.catch_warnings():
            message = ".*transition_model_version_stage"  # MLflow deprecates stages, and its UI still lives by them
            warnings.filterwarnings("ignore", message, category=FutureWarning)
            client.transition_model_version_stage(version.name, version.version, stage)
    before = version.description or ""
    if (after := described(before, tags)) != before:
        client.update_model_version(version.name, version.version, after)
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.version, key, value)
