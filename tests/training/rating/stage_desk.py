"""A market of its own in a real registry, with a real audit log, and how a test looks at both."""

from __future__ import annotations

import itertools
import uuid
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from tests.training.dying_client import DyingClient, Killed
from training.rating import moves
from training.rating.promotion import ALIASES, INTENT, StageChange, assignments, last_id
from training.tracking import MODEL_STAGE, model_name

NOW = datetime(2024, 5, 6, 21, tzinfo=UTC)


def change(variant="lstm", version=1, from_="None", to="Staging", allocation=0.25, **more):
    return StageChange(
        variant=variant, version=version, from_=from_, to=to, allocation=allocation, reason="asked for", **more
    )


@dataclass(frozen=True, kw_only=True)
class Desk:
    client: object
    log: object
    market: str = field(default_factory=lambda: f"market-{uuid.uuid4().hex}")

    def register(self, variant, *, num_versions=1):
        name = model_name(self.market, variant)
        self.client.create_registered_model(name, tags={"market": self.market, MODEL_STAGE: "None"})
        for number in range(1, num_versions + 1):
            self.add_version(variant, number)

    def add_version(self, variant, number):
        facts = {"train_from": "2019", "train_to": "2020", "checksum": f"c{number}", "artifact_sha256": f"s{number}"}
        name = model_name(self.market, variant)
        self.client.create_model_version(name, f"file:///models/{number}", tags=facts, await_creation_for=0)

    def apply(self, asked, *, now=NOW, actor="cycle", client=None, log=None):
        return moves.apply(asked, client or self.client, log or self.log, market=self.market, now=now, actor=actor)

    def planned(self, asked):
        """The change as somebody plans it now."""
        return replace(asked, after=assignments(self.client, self.market)[asked.variant].change)

    def step(self, *changes, now=NOW):
        for each in changes:
            self.apply(self.planned(each), now=now)

    def reconcile(self, *, policy="manual", now=NOW, client=None, log=None):
        return moves.reconcile(client or self.client, log or self.log, market=self.market, policy=policy, now=now)

    def rebalance(self, desired, *, policy="strict", now=NOW):
        return moves.rebalance(
            self.client, self.log, desired, market=self.market, policy=policy, now=now, actor="cycle"
        )

    def by_hand(self, version, stage, variant="lstm"):
        """What the 'Transition to' menu of the MLflow UI does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.client.transition_model_version_stage(model_name(self.market, variant), str(version), stage)

    def alias_by_hand(self, alias, version, variant="lstm"):
        name = model_name(self.market, variant)
        if version is None:
            self.client.delete_registered_model_alias(name, alias)
        else:
            self.client.set_registered_model_alias(name, alias, str(version))

    def state(self, variant="lstm"):
        """Stage and ``stage`` tag by version, the aliases, and whether a change is on its way."""
        name = model_name(self.market, variant)
        model = self.client.get_registered_model(name)
        found = self.client.search_model_versions(f"name = '{name}'")
        stages = {int(each.version): (each.current_stage, each.tags.get("stage", "None")) for each in found}
        return stages, {alias: int(version) for alias, version in model.aliases.items()}, INTENT in model.tags

    def agree(self, variant="lstm"):
        """Whether stage, alias, tags, description and log say the same, one trades at most, nothing is on its way."""
        name = model_name(self.market, variant)
        model = self.client.get_registered_model(name)
        versions = {int(each.version): each for each in self.client.search_model_versions(f"name = '{name}'")}
        trading = {number: each.current_stage for number, each in versions.items() if each.current_stage in ALIASES}
        aliases = {alias: int(version) for alias, version in model.aliases.items() if alias in ALIASES.values()}
        shares = {number: float(versions[number].tags.get("allocation", "nan")) for number in trading}
        return (
            INTENT not in model.tags
            and len(trading) <= 1
            and aliases == {ALIASES[stage]: number for number, stage in trading.items()}
            and all(each.current_stage == each.tags.get("stage", "None") for each in versions.values())
            and (trading, shares, last_id(model)) == self._logged(variant)
            and self._told(variant, model, versions)
        )

    def _told(self, variant, model, versions):
        """Whether people find the variant by its stage and read the last reason beside it."""
        row = self.log.last(self.market, variant)
        if row is None:
            return model.tags.get(MODEL_STAGE) == "None"
        entry = row.entry
        told = f"**Stage:** {entry.to} since {entry.time:%Y-%m-%d %H:%M} UTC, by {entry.actor}: {entry.reason}"
        return model.tags.get(MODEL_STAGE) == entry.to and versions[entry.version].description == told

    def _logged(self, variant):
        """What the log says: who trades, with which share, and the last change."""
        row = self.log.last(self.market, variant)
        if row is None:
            return {}, {}, ""
        entry = row.entry
        trading = {entry.version: entry.to} if entry.to in ALIASES else {}
        return trading, dict.fromkeys(trading, entry.allocation), entry.change

    def story(self, variant="lstm"):
        """The log's rows of a variant: from, to, version, actor; each starts where the one before ended."""
        rows = [row.entry for row in self.log.rows(self.market, variant)]
        assert all(later.from_ == earlier.to for earlier, later in itertools.pairwise(rows))
        return [(each.from_, each.to, each.version, each.actor) for each in rows]


class Unaudited:
    """A log that keeps nothing, for tests that need a model in a stage and no history of it."""

    def alone(self, what):
        return nullcontext()

    def check(self):
        pass

    def append(self, entry):
        pass


TO_STAGING = change()
TO_PRODUCTION = change(from_="Staging", to="Production")
REFIT = change(version=2, from_="Production", to="Production")
ARCHIVE = change(from_="Production", to="Archived", allocation=0.0)
DEMOTE = change(from_="Staging", to="None", allocation=0.0)
LATER = NOW + timedelta(days=1)


class DyingLog:
    """The audit log of a process that dies with its client: to append is one more write."""

    def __init__(self, log, client):
        self.log, self.client = log, client

    def __getattr__(self, name):
        return getattr(self.log, name)

    def append(self, entry):
        if self.client.left <= 0:
            raise Killed
        self.client.left -= 1
        return self.log.append(entry)


def dying(desk, num_writes):
    client = DyingClient(desk.client, num_writes)
    return {"client": client, "log": DyingLog(desk.log, client)}


def seen(each):
    return each.version, each.to if isinstance(each, StageChange) else each.stage, each.allocation
