"""The stage machine on a real registry and a real audit log: our own changes, two promoters, crashes, going back."""

import itertools
import json
import threading
from dataclasses import asdict, replace

import pytest

from feature_repo.database import connect as connect_postgres
from tests.training.dying_client import DyingClient, Killed
from tests.training.rating.stage_desk import (
    ARCHIVE,
    DEMOTE,
    LATER,
    NOW,
    REFIT,
    TO_PRODUCTION,
    TO_STAGING,
    DyingLog,
    change,
    dying,
    seen,
)
from training.rating import moves
from training.rating.audit import AuditError
from training.rating.moves import ROLLED_BACK, rollback_target
from training.rating.promotion import (
    INTENT,
    Assignment,
    StageError,
    StaleError,
    Target,
    assignments,
    current,
    plan,
)
from training.tracking import model_name

# ---- our own changes -------------------------------------------------------------------------------------------------


def test_stage_alias_tags_and_log_are_written_together(desk):
    desk.register("lstm")
    asked = replace(TO_STAGING, evidence={"sharpe_net": 1.25, "gate": "StepM"})
    assert desk.apply(asked, actor="anna")
    assert desk.state() == ({1: ("Staging", "Staging")}, {"staging": 1}, False)
    assert current(desk.client, desk.market) == [
        Assignment(
            variant="lstm",
            version=1,
            stage="Staging",
            allocation=0.25,
            since=NOW,
            by="anna",
            reason="asked for",
            evidence={"sharpe_net": 1.25, "gate": "StepM"},
            training_span=("2019", "2020"),
            checksum="c1",
            artifact_sha256="s1",
            source="file:///models/1",
            change=asked.id,
        )
    ]
    (row,) = desk.log.rows(desk.market)
    assert (row.entry.time, row.entry.actor, row.entry.reason) == (NOW, "anna", "asked for")
    assert (row.entry.evidence, row.entry.allocation) == ({"sharpe_net": 1.25, "gate": "StepM"}, 0.25)
    assert desk.agree()


def test_mlflow_s_search_of_models_finds_a_stage(desk):
    """What is typed into the search field of its page of models."""
    for variant in ("lstm", "gru", "var"):
        desk.register(variant)
    found = []
    for move in (None, TO_STAGING, TO_PRODUCTION, ARCHIVE):
        if move:
            desk.step(move)
        asked = f"tags.stage = '{move.to if move else 'None'}' and tags.market = '{desk.market}'"
        found.append([model.name.split(".")[1] for model in desk.client.search_registered_models(asked)])
    assert found == [["gru", "lstm", "var"], ["lstm"], ["lstm"], ["lstm"]]


def test_a_demotion_deletes_the_alias(desk):
    desk.register("lstm")
    desk.step(TO_STAGING, TO_PRODUCTION)
    assert desk.state() == ({1: ("Production", "Production")}, {"production": 1}, False)
    desk.step(ARCHIVE)
    assert desk.state() == ({1: ("Archived", "Archived")}, {}, False)
    assert current(desk.client, desk.market) == []
    assert assignments(desk.client, desk.market)["lstm"].stage == "Archived"
    assert [row[:2] for row in desk.story()] == [
        ("None", "Staging"),
        ("Staging", "Production"),
        ("Production", "Archived"),
    ]


def test_a_refitted_version_inherits_the_stage_and_can_be_rolled_back(desk):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING, TO_PRODUCTION, REFIT)
    refitted = {1: ("Archived", "Archived"), 2: ("Production", "Production")}
    assert desk.state() == (refitted, {"production": 2}, False)
    old = desk.client.get_model_version(model_name(desk.market, "lstm"), "1")
    assert (old.tags["stage_reason"], old.tags["allocation"]) == ("replaced by version 2", "0.0")
    desk.step(change(version=1, from_="Production", to="Production"))
    rolled_back = {1: ("Production", "Production"), 2: ("Archived", "Archived")}
    assert desk.state() == (rolled_back, {"production": 1}, False)


def test_an_allocation_changes_without_a_change_of_stage(desk):
    desk.register("lstm")
    desk.step(TO_STAGING)
    desk.step(change(from_="Staging", allocation=0.5), now=LATER)
    assert [(each.allocation, each.since) for each in current(desk.client, desk.market)] == [(0.5, LATER)]
    assert desk.agree()


def test_applying_again_writes_nothing(desk):
    desk.register("lstm")
    assert desk.apply(TO_STAGING)
    assert not desk.apply(TO_STAGING, now=LATER, **dying(desk, 0))
    assert current(desk.client, desk.market)[0].since == NOW
    assert len(desk.story()) == 1


def test_there_and_back_and_there_again_is_three_changes(desk):
    desk.register("lstm")
    desk.step(TO_STAGING, DEMOTE, TO_STAGING)
    assert [row[:2] for row in desk.story()] == [("None", "Staging"), ("Staging", "None"), ("None", "Staging")]


def test_a_change_planned_on_a_stage_that_is_no_more_is_refused(desk):
    desk.register("lstm")
    desk.step(TO_STAGING)
    with pytest.raises(StaleError, match=r"is in Staging with version 1, and was moved since .* plan again"):
        desk.step(ARCHIVE)
    assert desk.agree()
    assert len(desk.story()) == 1


def test_a_version_that_is_not_registered_is_refused_before_anything_is_written(desk):
    desk.register("lstm")
    with pytest.raises(StageError, match=r"no version 7; registered are \[1\]"):
        desk.apply(change(version=7))
    with pytest.raises(StageError, match="no version 1; registered are none"):
        desk.apply(change(variant="nonesuch"))
    assert desk.agree()
    assert desk.log.rows(desk.market) == []


@pytest.mark.parametrize("reason", ["", "nul \0"])
def test_what_the_log_would_refuse_is_refused_before_anything_is_written(desk, reason):
    desk.register("lstm")
    with pytest.raises(AuditError, match="the reason of a change"):
        desk.apply(replace(TO_STAGING, reason=reason))
    assert desk.state() == ({1: ("None", "None")}, {}, False)


def test_while_the_log_cannot_be_trusted_nothing_is_moved(desk, tmp_path):
    desk.register("lstm")
    elsewhere = replace(desk.log, head_file=tmp_path / "head.json")
    elsewhere.head_file.write_text('{"announced": "", "count": 999999, "hash": "f"}')
    with pytest.raises(AuditError, match="the tail was cut"):
        desk.apply(TO_STAGING, log=elsewhere)
    assert desk.state() == ({1: ("None", "None")}, {}, False)


def test_evidence_may_be_longer_than_a_registered_model_s_tag_holds(desk):
    desk.register("lstm")
    with pytest.raises(Killed):
        desk.apply(replace(TO_STAGING, evidence={"gates": "long " * 4000}), **dying(desk, 3))
    assert current(desk.client, desk.market)[0].evidence == {"gates": "long " * 4000}
    desk.reconcile()
    assert desk.log.last(desk.market, "lstm").entry.evidence == {"gates": "long " * 4000}
    assert desk.agree()


def test_an_illegal_transition_is_refused_before_anything_is_written(desk):
    desk.register("lstm")
    with pytest.raises(StageError, match=r"from None it can go to: Staging \(selected for paper trading\)"):
        desk.apply(change(to="Production"))
    assert desk.state() == ({1: ("None", "None")}, {}, False)
    assert desk.log.rows(desk.market) == []


def test_what_trades_is_of_one_market_production_first_then_by_allocation(desk):
    for variant, share in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)):
        desk.register(variant)
        if variant != "d":
            desk.step(change(variant=variant, allocation=share))
    desk.step(change(variant="a", from_="Staging", to="Production", allocation=0.1))
    other = replace(desk, market=f"{desk.market}_other")
    other.register("a")
    other.step(change(variant="a"))
    desk.client.create_registered_model(model_name(desk.market, "empty"), tags={"market": desk.market})
    assert [(each.variant, each.stage) for each in current(desk.client, desk.market)] == [
        ("a", "Production"),
        ("c", "Staging"),
        ("b", "Staging"),
    ]
    assert sorted(assignments(desk.client, desk.market)) == ["a", "b", "c", "d"]
    assert desk.reconcile() == []


# ---- two promoters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (change(from_="Staging", allocation=0.3), change(from_="Staging", allocation=0.5)),
        (change(version=2, from_="Staging"), change(version=3, from_="Staging")),
        (TO_PRODUCTION, DEMOTE),
    ],
    ids=["allocations", "versions", "up and down"],
)
def test_of_two_changes_planned_on_the_same_state_one_is_made(desk, first, second):
    desk.register("lstm", num_versions=3)
    desk.step(TO_STAGING)
    planned = [desk.planned(first), desk.planned(second)]
    assert desk.apply(planned[0], actor="anna")
    with pytest.raises(StaleError, match="plan again"):
        desk.apply(planned[1], actor="bob")
    assert desk.story()[-1] == ("Staging", first.to, first.version, "anna")
    assert len(desk.story()) == 2
    assert desk.agree()


def test_who_planned_before_somebody_came_and_went_is_refused_though_all_looks_as_before(desk):
    desk.register("lstm")
    desk.step(TO_STAGING)
    planned = desk.planned(TO_PRODUCTION)
    desk.step(DEMOTE, TO_STAGING)
    with pytest.raises(StaleError):
        desk.apply(planned)


class Interrupted:
    """A client that lets somebody else in just before it writes its intent, when all is checked."""

    def __init__(self, client, meanwhile):
        self.client, self.meanwhile = client, meanwhile

    def __getattr__(self, name):
        return getattr(self.client, name)

    def set_registered_model_tag(self, name, key, value):
        if key == INTENT and (meanwhile := self.meanwhile):
            self.meanwhile = None
            meanwhile()
        return self.client.set_registered_model_tag(name, key, value)


def wait_for_a_waiter(dsn):
    """Until a connection waits for an advisory lock; the test's own timeout ends it otherwise."""
    with connect_postgres(dsn, autocommit=True) as connection:
        waiting = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
        while connection.execute(waiting).fetchone() == (0,):
            pass


def test_a_promoter_who_comes_while_another_writes_waits_and_is_refused(desk, dsn):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING)
    refused, planned = [], desk.planned(change(version=2, from_="Staging", to="Production"))

    def second():
        with connect_postgres(dsn, autocommit=True) as connection:
            try:
                desk.apply(planned, actor="bob", log=replace(desk.log, connection=connection))
            except StaleError as error:
                refused.append(error)

    thread = threading.Thread(target=second)

    def meanwhile():
        thread.start()
        wait_for_a_waiter(dsn)

    desk.apply(desk.planned(TO_PRODUCTION), actor="anna", client=Interrupted(desk.client, meanwhile))
    thread.join()
    assert len(refused) == 1
    assert desk.story()[1:] == [("Staging", "Production", 1, "anna")]
    assert desk.agree()


def test_without_the_lock_both_would_win(desk):
    """Why the lock: the other comes between check and writing. (A connection's locks don't exclude itself.)"""
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING)
    first, second = desk.planned(TO_PRODUCTION), desk.planned(change(version=2, from_="Staging", to="Production"))
    meanwhile = Interrupted(desk.client, lambda: desk.apply(second, actor="bob"))
    assert desk.apply(first, actor="anna", client=meanwhile)
    assert [row.entry.actor for row in desk.log.rows(desk.market)] == ["cycle", "bob", "anna"]


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_whichever_write_a_crash_hits_readers_see_all_or_nothing_and_reconcile_finishes(desk):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING)
    there, back = change(version=2, from_="Staging", to="Production"), change(from_="Production", to="Staging")
    torn = 0
    for num_writes in itertools.count():
        crashed = [crash(desk, desk.planned(last), num_writes) for last in (there, back)]
        torn += sum(crashed)
        if num_writes > 2 and not any(crashed):
            break
    assert torn == 2 * (num_writes - 2) > 20  # every crash while the model told of an intent


def crash(desk, last, num_writes):
    """Crash in a change, look, repair and look again; returns whether registry and log disagreed meanwhile."""
    old = [seen(each) for each in current(desk.client, desk.market)]
    died, num_rows = False, len(desk.story())
    try:
        desk.apply(last, **dying(desk, num_writes))
    except Killed:
        died = True
    torn = not desk.agree()
    announced = num_writes >= 2  # first on the version, then on the model
    assert [seen(each) for each in current(desk.client, desk.market)] == ([seen(last)] if announced else old)
    assert [each.to for each in desk.reconcile(now=LATER)] == ([last.to] if torn else [])
    assert desk.apply(last) == (not announced)
    assert desk.agree()
    assert [(*seen(each), each.by) for each in current(desk.client, desk.market)] == [(*seen(last), "cycle")]
    assert len(desk.story()) == num_rows + 1
    assert desk.log.last(desk.market, "lstm").entry.time == NOW  # when it was decided, not when it was finished
    assert died or not torn
    return torn


def test_the_next_change_finishes_a_torn_one_first(desk):
    desk.register("lstm")
    with pytest.raises(Killed):
        desk.apply(TO_STAGING, **dying(desk, 4))
    desk.step(TO_PRODUCTION, now=LATER)
    assert desk.state() == ({1: ("Production", "Production")}, {"production": 1}, False)
    assert [row[:2] for row in desk.story()] == [("None", "Staging"), ("Staging", "Production")]


def test_a_crash_while_reconciling_is_reconciled(desk):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING, TO_PRODUCTION)
    with pytest.raises(Killed):
        desk.apply(desk.planned(REFIT), **dying(desk, 2))
    for num_writes in range(5):
        with pytest.raises(Killed):
            desk.reconcile(**dying(desk, num_writes))
    assert len(desk.reconcile()) == 1
    assert desk.agree()
    assert [seen(each) for each in current(desk.client, desk.market)] == [(2, "Production", 0.25)]
    assert len(desk.story()) == 3


class Unannounced:
    """A client whose intents are lost."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        return getattr(self.client, name)

    def set_registered_model_tag(self, name, key, value):
        if key != INTENT:
            self.client.set_registered_model_tag(name, key, value)

    def get_registered_model(self, name):
        """As the process itself remembers it."""
        model = self.client.get_registered_model(name)
        model._tags[INTENT] = "1"
        return model


def test_without_the_intent_a_crash_would_leave_a_row_that_never_happened(desk):
    """Why the intent comes first: the log has the change, the registry never hears of it."""
    desk.register("lstm")
    client = DyingClient(Unannounced(desk.client), 1)
    desk.client.set_model_version_tag(
        model_name(desk.market, "lstm"),
        "1",
        INTENT,
        json.dumps({"change": asdict(TO_STAGING), "since": NOW.isoformat(), "by": "cycle"}),
    )
    with pytest.raises(Killed):
        moves._finish(
            client,
            DyingLog(desk.log, client),
            desk.market,
            client.get_registered_model(model_name(desk.market, "lstm")),
        )
    assert desk.reconcile() == []
    assert desk.story() == [("None", "Staging", 1, "cycle")]
    assert current(desk.client, desk.market) == []
    assert not desk.agree()


def test_what_a_live_process_is_writing_is_not_taken_for_torn(desk, dsn):
    desk.register("lstm")
    found = []

    def watch():
        with connect_postgres(dsn, autocommit=True) as connection:
            found.extend(desk.reconcile(log=replace(desk.log, connection=connection)))

    thread = threading.Thread(target=watch)

    class Watched(DyingClient):
        """Starts the watcher once the intent stands."""

        def __getattr__(self, name):
            if name == "transition_model_version_stage" and not thread.ident:
                thread.start()
                wait_for_a_waiter(dsn)
            return super().__getattr__(name)

    desk.apply(TO_STAGING, client=Watched(desk.client, 100))
    thread.join()
    assert found == []
    assert desk.agree()


# ---- the nightly rebalance -------------------------------------------------------------------------------------------


def target(version=1, stage="Staging", allocation=0.5):
    return Target(version=version, stage=stage, allocation=allocation, reason="rank")


def test_a_rebalance_leads_to_what_is_desired_and_then_changes_nothing(desk):
    for variant in "abc":
        desk.register(variant, num_versions=2)
    first = {"a": target(stage="Production"), "b": target()}
    second = {"b": target(version=2, stage="Production", allocation=1.0), "c": target()}
    for desired in (first, second):
        assert desk.rebalance(desired)
        trading = {each.variant: seen(each) for each in current(desk.client, desk.market)}
        assert trading == {name: (each.version, each.stage, each.allocation) for name, each in desired.items()}
        assert plan(assignments(desk.client, desk.market), desired) == []
        assert desk.rebalance(desired) == []
        assert all(desk.agree(variant) for variant in trading)


def test_a_rebalance_plans_again_around_whom_a_person_moves_meanwhile(desk):
    for variant in "ab":
        desk.register(variant)
    hand = Interrupted(desk.client, lambda: desk.by_hand(1, "Staging", variant="b"))
    moving = replace(desk, client=hand)
    made = moving.rebalance({"a": target(), "b": target()})
    assert [each.variant for each in made] == ["a", "b", "b"]  # the person's move of b, then the cycle's
    assert [row[3] for row in desk.story("b")] == ["mlflow-ui", "cycle"]
    assert desk.agree("a")
    assert desk.agree("b")


def test_under_a_manual_policy_a_rebalance_neither_promotes_nor_demotes_the_live_ones(desk):
    for variant in "ab":
        desk.register(variant, num_versions=2)
    desk.step(change(variant="a"), change(variant="a", from_="Staging", to="Production", allocation=0.4))
    desk.rebalance({"a": target(version=2), "b": target()}, policy="manual")
    assert {each.variant: seen(each) for each in current(desk.client, desk.market)} == {
        "a": (2, "Production", 0.4),
        "b": (1, "Staging", 0.5),
    }
    desk.rebalance({"b": target()}, policy="strict")
    assert [each.variant for each in current(desk.client, desk.market)] == ["b"]


# ---- rolling back ----------------------------------------------------------------------------------------------------


def test_a_rollback_goes_to_the_state_before_and_the_next_one_further_back(desk):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING, TO_PRODUCTION, replace(TO_PRODUCTION, from_="Production", allocation=0.9), REFIT)
    went = []
    for _ in range(3):
        back = rollback_target(desk.log.rows(desk.market, "lstm"))
        held = assignments(desk.client, desk.market)["lstm"]
        desk.step(replace(change(version=back.version, from_=held.stage, to=back.stage), evidence=back.evidence))
        went.append((back.version, back.stage, back.allocation))
    assert went == [(1, "Production", 0.9), (1, "Staging", 0.25), (1, "None", 0.0)]
    with pytest.raises(StageError, match="never elsewhere than in None with version 1"):
        rollback_target(desk.log.rows(desk.market, "lstm"))
    assert [row.entry.evidence.get(ROLLED_BACK) is not None for row in desk.log.rows(desk.market, "lstm")] == [
        *[False] * 4,
        *[True] * 3,
    ]


def test_what_came_after_a_rollback_is_rolled_back_first(desk):
    desk.register("lstm", num_versions=3)
    desk.step(TO_STAGING, change(version=2, from_="Staging"))
    back = rollback_target(desk.log.rows(desk.market, "lstm"))
    desk.step(change(version=1, from_="Staging", evidence=back.evidence), change(version=3, from_="Staging"))
    assert rollback_target(desk.log.rows(desk.market, "lstm")).version == 1


def test_an_archived_variant_is_brought_back_though_a_newer_version_was_registered_since(desk):
    desk.register("lstm")
    desk.step(TO_STAGING, TO_PRODUCTION, ARCHIVE)
    desk.add_version("lstm", 2)
    held = assignments(desk.client, desk.market)["lstm"]
    assert (held.stage, held.version) == ("Archived", 1)
    back = rollback_target(desk.log.rows(desk.market, "lstm"))
    desk.step(change(version=back.version, from_="Archived", to=back.stage))
    assert [seen(each) for each in current(desk.client, desk.market)] == [(1, "Production", 0.25)]
    desk.step(ARCHIVE, change(version=2, from_="Archived"), change(version=2, from_="Staging", to="None"))
    held = assignments(desk.client, desk.market)["lstm"]
    assert (held.stage, held.version) == ("None", 2)


def test_without_a_row_there_is_nothing_to_go_back_to():
    with pytest.raises(StageError, match="no change of it to go back from"):
        rollback_target([])
