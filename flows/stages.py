"""What people do about stages: promote, demote, roll back, look back; and the watch over what they do in the MLflow UI.

The rules are in ``training.rating``; here is what the commands ask of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from feature_repo import database
from flows import postgres
from flows.postgres import Databases
from flows.settings import Settings
from training.rating.audit import AuditLog, AuditReport, AuditRow
from training.rating.moves import apply, reconcile, rollback_target
from training.rating.promotion import (
    ALIASES,
    DROPPED,
    Assignment,
    Stage,
    StageChange,
    StageError,
    Target,
    assignments,
    change_to,
    check,
    refusal,
    room,
    versions_of,
)
from training.rating.selection import Policy
from training.rating.verdicts import last_verdicts
from training.tracking import connect, markets, model_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HEIGHT: Final[dict[Stage, int]] = {"None": 0, "Archived": 0, "Staging": 1, "Production": 2}
_UP: Final[dict[Stage, Stage]] = {"None": "Staging", "Archived": "Staging", "Staging": "Production"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """A market's registry and the audit log, and by which policy a person may promote."""

    client: MlflowClient
    log: AuditLog
    market: str
    policy: Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Who decides, why, and when."""

    by: str
    reason: str
    now: datetime


# ---- opening ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_log(settings: Settings, databases: Databases) -> Iterator[AuditLog]:
    """The audit log, with its head in the home folder."""
    dsn = databases.dsn("perennial")
    database.migrate(dsn, "training")
    with database.connect(dsn, autocommit=True) as connection:
        yield AuditLog(connection=connection, head_file=settings.home / "audit" / "head.json")


@contextmanager
def open_desk(settings: Settings, variant: str, *, market: str | None, policy: Policy) -> Iterator[Desk]:
    """The desk of a variant's market, which needs to be named only where several markets have the variant."""
    with _held(settings) as databases, open_log(settings, databases) as log:
        client = connect(databases.url("mlflow"))
        yield Desk(client=client, log=log, market=market or _market_of(client, variant), policy=policy)


@contextmanager
def _held(settings: Settings) -> Iterator[Databases]:
    if not postgres.exists(settings):
        raise StageError(f"there is no stage to change or look at in {settings.home}: `perennial run` makes some")
    with postgres.Hold(settings) as hold:
        yield hold.databases


def _market_of(client: MlflowClient, variant: str) -> str:
    having = _having(client, variant, markets(client), "any market")
    if len(having) > 1:
        raise StageError(f"{', '.join(having)} all have {variant}; say which: --market {having[0]}")
    return having[0]


def _having(client: MlflowClient, variant: str, among: Sequence[str], where: str) -> list[str]:
    """Those of the markets that have the variant; there must be one."""
    having = [market for market in among if versions_of(client, model_name(market, variant))]
    if not having:
        known = sorted({name for market in among for name in assignments(client, market)})
        raise _unknown(variant, where, known)
    return having


def _unknown(variant: str, where: str, known: Sequence[str]) -> StageError:
    near = get_close_matches(variant, known, n=3)
    meant = f"did you mean {' or '.join(near)}?" if near else "`perennial factory list` shows the ids"
    return StageError(f"no variant {variant!r} is registered in {where}, of {len(known)}; {meant}")


# ---- the commands ----------------------------------------------------------------------------------------------------


def promote(
    desk: Desk, variant: str, decision: Decision, *, to: Stage | None = None, allocation: float | None = None
) -> StageChange:
    """Put a variant one stage up (or into ``to``), with the version it holds there, else its newest.

    Its share is the one it has, for a newcomer an equal one, and never more than the stage has free. What
    ``allocation`` asks for is given in full or refused. Raises ``StageError`` where table or policy don't allow it.
    """
    current = _settled(desk, variant, decision.now)
    held = current[variant]
    target = to or _UP.get(held.stage, held.stage)
    if _HEIGHT[target] <= _HEIGHT[held.stage]:
        raise StageError(f"{variant} is in {held.stage} already, and {target} is no promotion from there")
    newest = max(versions_of(desk.client, model_name(desk.market, variant)))
    place = Target(
        version=held.version if held.stage in ALIASES else newest,
        stage=target,
        allocation=_share(current, held, target, allocation),
        reason=decision.reason,
    )
    return _move(desk, held, place, decision)


def demote(desk: Desk, variant: str, decision: Decision, *, to: Stage | None = None) -> StageChange:
    """Take a variant out of trading: to the archive from Production, to evaluation only from Staging; or to ``to``."""
    current = _settled(desk, variant, decision.now)
    held = current[variant]
    target = to or DROPPED.get(held.stage, held.stage)
    if _HEIGHT[target] >= _HEIGHT[held.stage]:
        raise StageError(f"{variant} is in {held.stage}, and {target} is no demotion from there")
    share = min(held.allocation, room(current, variant, target)) if target in ALIASES else 0.0
    place = Target(version=held.version, stage=target, allocation=share, reason=decision.reason)
    return _move(desk, held, place, decision)


def rollback(desk: Desk, variant: str, decision: Decision) -> StageChange:
    """Bring back the stage and version a variant had before, by the audit log; once more goes further back."""
    current = _settled(desk, variant, decision.now)
    back = rollback_target(desk.log.rows(desk.market, variant))
    share = min(back.allocation, room(current, variant, back.stage))
    place = replace(back, allocation=share, reason=decision.reason)
    return _move(desk, current[variant], place, decision)


def _settled(desk: Desk, variant: str, now: datetime) -> dict[str, Assignment]:
    """The market's stages, after finishing and following whatever there is."""
    reconcile(desk.client, desk.log, market=desk.market, policy=desk.policy, now=now)
    current = assignments(desk.client, desk.market)
    if variant not in current:
        raise _unknown(variant, desk.market, sorted(current))
    return current


def _share(current: dict[str, Assignment], held: Assignment, stage: Stage, asked: float | None) -> float:
    free = room(current, held.variant, stage)
    if asked is not None and asked > free:
        raise StageError(
            f"{held.variant} can't have {asked:.1%} of the capital of {stage}: {free:.1%} is free; "
            "ask for less, or demote another first"
        )
    if asked is not None:
        return asked
    num_holders = sum(each.stage == stage for each in current.values())
    return min(held.allocation if held.stage in ALIASES else 1 / (num_holders + 1), free)


def _move(desk: Desk, held: Assignment, place: Target, decision: Decision) -> StageChange:
    """Check table and policy, then make the change; what stood against it is on record with it."""
    check(held.variant, held.stage, place.stage)
    evidence: dict[str, str | float] = {**place.evidence, "policy": desk.policy}
    if place.stage == "Production":
        last = last_verdicts(desk.log.connection, desk.market, held.variant)
        vetoes = last.vetoes if last else None
        same_stage = held.stage == "Production"  # a rollback of its version, which would be worse to refuse
        why = "" if same_stage else refusal(held.stage, place.stage, policy=desk.policy, vetoes=vetoes)
        if why:
            raise StageError(
                f"{held.variant} stays in {held.stage}: {why}. A person may decide otherwise where the policy is "
                "manual or advisory (--policy, PERENNIAL_POLICY)"
            )
        judged = {"cycle_id": last.cycle_id, "vetoes": "; ".join(last.vetoes)} if last else {"vetoes": "never judged"}
        evidence |= judged
    change = change_to(held, replace(place, evidence=evidence))
    apply(change, desk.client, desk.log, market=desk.market, now=decision.now, actor=decision.by)
    return change


# ---- looking back ----------------------------------------------------------------------------------------------------


def history(settings: Settings, *, variant: str | None = None, market: str | None = None) -> list[dict[str, Any]]:
    """The rows of the audit log, oldest first, as plain data; ``StageError`` where nobody knows the variant."""
    with _held(settings) as databases, open_log(settings, databases) as log:
        rows = [_plain(row) for row in log.rows(market, variant)]
        if variant and not rows:  # never moved, or misspelt
            client = connect(databases.url("mlflow"))
            _having(client, variant, [market] if market else markets(client), market or "any market")
    return rows


def _plain(row: AuditRow) -> dict[str, Any]:
    entry = row.entry
    return {
        "seq": row.seq,
        "time": entry.time.isoformat(timespec="seconds"),
        "market": entry.market,
        "variant": entry.variant,
        "version": entry.version,
        "from": entry.from_,
        "to": entry.to,
        "allocation": entry.allocation,
        "actor": entry.actor,
        "reason": entry.reason,
        "evidence": dict(entry.evidence),
        "hash": row.hash,
    }


def verify_log(settings: Settings) -> AuditReport:
    """Whether every row of the audit log and its head agree."""
    with _held(settings) as databases, open_log(settings, databases) as log:
        return log.verify()


def accept_log(settings: Settings, decision: Decision) -> AuditRow:
    """Go on from the end of the log as it is; who decided that is on record."""
    with _held(settings) as databases, open_log(settings, databases) as log:
        return log.accept(by=decision.by, reason=decision.reason, now=decision.now)


def watch(settings: Settings, *, policy: Policy, now: datetime) -> dict[str, list[StageChange]]:
    """Put on record what people moved in the MLflow UI, or move it back; what was found, by market."""
    with _held(settings) as databases, open_log(settings, databases) as log:
        client = connect(databases.url("mlflow"))
        found = {market: reconcile(client, log, market=market, policy=policy, now=now) for market in markets(client)}
    return {market: changes for market, changes in found.items() if changes}
