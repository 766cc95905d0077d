"""The stage machine on a real registry and a real audit log."""

import itertools
import json
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from feature_repo.database import connect as connect_postgres
from feature_repo.database import migrate
from tests.training.dying_client import DyingClient, Killed
from tests.training.rating.stage_desk import NOW, Desk, change
from training.rating import moves
from training.rating.audit import AuditError, AuditLog
from training.rating.gates import Verdict
from training.rating.moves import ROLLED_BACK, rollback_target
from training.rating.promotion import (
    ALIASES,
    INTENT,
    MAX_DESCRIPTION_CHARS,
    Assignment,
    StageChange,
    StageError,
    StaleError,
    Target,
    assignments,
    current,
    plan,
)
from training.rating.verdicts import last_verdicts, write_verdicts
from training.tracking import MODEL_STAGE, connect, model_name

TO_STAGING = change()
TO_PRODUCTION = change(from_="Staging", to="Production")
REFIT = change(version=2, from_="Production", to="Production")
ARCHIVE = change(from_="Production", to="Archived", allocation=0.0)
DEMOTE = change(from_="Staging", to="None", allocation=0.0)
LATER = NOW + timedelta(days=1)


@pytest.fixture(scope="module", autouse=True)
def _hasty_commits():
    """Thousands of small commits need not each wait for the disk here; libpq reads this variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGOPTIONS", "-c synchronous_commit=off")
        yield


@pytest.fixture(scope="module")
def client(databases):
    return connect(databases.url("mlflow"))


@pytest.fixture(scope="module")
def dsn(databases):
    """One audit log for all tests here, each with a market of its own."""
    name = f"test_{uuid.uuid4().hex}"
    with connect_postgres(databases.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        migrate(databases.dsn(name), "training")
        yield databases.dsn(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def log(dsn, tmp_path_factory):
    with connect_postgres(dsn, autocommit=True) as connection:
        yield AuditLog(connection=connection, head_file=tmp_path_factory.mktemp("audit") / "head.json")


@pytest.fixture
def desk(client, log):
    yield (made := Desk(client=client, log=log))
    assert log.verify().ok, made.market


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


# ---- what people do in the MLflow UI ---------------------------------------------------------------------------------


def veto(gate="skill", why="its Sharpe ratio is luck", ok=False):
    return Verdict(gate=gate, ok=ok, value=0.5, threshold=1.0, why=why)


def judge(desk, *verdicts, cycle="c1", now=NOW):
    write_verdicts(desk.log.connection, {"lstm": verdicts}, market=desk.market, cycle_id=cycle, now=now)


@pytest.mark.parametrize(
    ("before", "by_hand", "expected"),
    [
        ([], [(1, "Production")], ("None", "Production")),
        ([], [(2, "Archived")], ("None", "Archived")),
        ([TO_STAGING], [(1, "Production")], ("Staging", "Production")),
        ([TO_STAGING], [(2, "Production")], ("Staging", "Production")),
        ([TO_STAGING, TO_PRODUCTION], [(1, "None")], ("Production", "None")),
        ([TO_STAGING, TO_PRODUCTION], [(1, "Archived")], ("Production", "Archived")),
        ([TO_STAGING, TO_PRODUCTION], [(2, "Production")], ("Production", "Production")),
        ([TO_STAGING, TO_PRODUCTION], [(1, "Archived"), (2, "Production")], ("Production", "Production")),
        ([TO_STAGING, TO_PRODUCTION, REFIT], [(1, "Production")], ("Production", "Production")),
        ([TO_STAGING, change(version=2, from_="Staging")], [(1, "Staging")], ("Staging", "Staging")),
    ],
)
def test_a_stage_set_in_the_mlflow_ui_is_put_on_record_and_honoured(desk, before, by_hand, expected):
    desk.register("lstm", num_versions=2)
    desk.step(*before)
    for move in by_hand:
        desk.by_hand(*move)
    assert not desk.agree()
    version, stage = by_hand[-1]
    trading = [(version, stage, "mlflow-ui")] if stage in ALIASES else []
    assert [(each.version, each.from_, each.to) for each in desk.reconcile(now=LATER)] == [(version, *expected)]
    assert desk.agree()
    assert [(each.version, each.stage, each.by) for each in current(desk.client, desk.market)] == trading
    moved = desk.client.get_model_version(model_name(desk.market, "lstm"), str(version))
    assert moved.tags["stage_by"] == "mlflow-ui"
    assert desk.story()[-1] == (*expected, version, "mlflow-ui")
    assert desk.log.last(desk.market, "lstm").entry.time == LATER
    assert desk.reconcile() == []


@pytest.mark.parametrize(
    ("before", "alias", "version", "expected"),
    [
        ([], "staging", 2, ("None", "Staging", 2)),
        ([], "production", 1, ("None", "Production", 1)),
        ([TO_STAGING], "staging", 2, ("Staging", "Staging", 2)),
        ([TO_STAGING], "production", 1, ("Staging", "Production", 1)),
        ([TO_STAGING], "production", 2, ("Staging", "Production", 2)),
        ([TO_STAGING], "staging", None, ("Staging", "None", 1)),
        ([TO_STAGING, TO_PRODUCTION], "production", 2, ("Production", "Production", 2)),
        ([TO_STAGING, TO_PRODUCTION], "production", None, ("Production", "Archived", 1)),
        ([TO_STAGING, TO_PRODUCTION], "staging", 2, ("Production", "Production", 1)),
    ],
)
def test_an_alias_moved_by_hand_counts_as_much_as_a_stage(desk, before, alias, version, expected):
    desk.register("lstm", num_versions=2)
    desk.step(*before)
    desk.alias_by_hand(alias, version)
    desk.alias_by_hand("champion", 2)
    assert [(each.from_, each.to, each.version) for each in desk.reconcile()] == [expected]
    assert desk.story()[-1] == (*expected, "mlflow-ui")
    assert desk.agree()
    assert desk.state()[1]["champion"] == 2
    assert desk.reconcile() == []


def test_where_stage_and_alias_were_both_moved_the_stage_counts(desk):
    desk.register("lstm", num_versions=3)
    desk.step(TO_STAGING)
    desk.by_hand(2, "Production")
    desk.alias_by_hand("production", 3)
    assert [(each.to, each.version) for each in desk.reconcile()] == [("Production", 2)]
    assert desk.agree()


@pytest.mark.parametrize(
    ("before", "home", "version", "hand"),
    [
        ([], ("None", 2), 1, "stage"),
        ([], ("None", 2), 2, "alias"),
        ([TO_STAGING], ("Staging", 1), 1, "stage"),
        ([TO_STAGING], ("Staging", 1), 2, "stage"),
        ([TO_STAGING], ("Staging", 1), 2, "alias"),
        ([TO_STAGING, TO_PRODUCTION, ARCHIVE], ("Archived", 1), 1, "stage"),
        ([TO_STAGING, TO_PRODUCTION, ARCHIVE], ("Archived", 1), 2, "alias"),
    ],
)
def test_under_a_strict_policy_a_move_to_production_that_no_gate_allows_is_moved_back(
    desk, before, home, version, hand
):
    desk.register("lstm", num_versions=2)
    desk.step(*before)
    judge(desk, veto(), veto("leaks", "clean", ok=True))
    was = current(desk.client, desk.market)
    stages_before = desk.state()[0]
    move = desk.by_hand if hand == "stage" else lambda number, _: desk.alias_by_hand("production", number)
    move(version, "Production")
    (moved,) = desk.reconcile(policy="strict", now=LATER)
    stage, held = home
    assert (moved.from_, moved.to, moved.version) == (stage, stage, held)
    assert {number: found[0] for number, found in desk.state()[0].items()} == {
        number: found[0] for number, found in stages_before.items()
    }
    assert [seen(each) for each in current(desk.client, desk.market)] == [seen(each) for each in was]
    entry = desk.log.last(desk.market, "lstm").entry
    assert entry.actor == "mlflow-ui"
    assert f"moved back from Production, version {version}" in entry.reason
    assert ("from None it can go to" if stage == "None" else "skill: its Sharpe ratio is luck") in entry.reason
    assert "clean" not in entry.reason
    assert (entry.evidence["asked_stage"], entry.evidence["asked_version"]) == ("Production", version)
    assert desk.agree()
    assert desk.reconcile(policy="strict") == []


def test_a_crash_in_the_way_back_ends_there_too(desk):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING)
    was = [seen(each) for each in current(desk.client, desk.market)]
    for num_writes in range(8):
        desk.by_hand(2, "Production")
        with suppress(Killed):
            desk.reconcile(policy="strict", **dying(desk, num_writes))
        desk.reconcile(policy="strict")
        assert [seen(each) for each in current(desk.client, desk.market)] == was
        assert desk.agree()
    assert len(desk.story()) == 1 + 8


def test_under_a_strict_policy_the_newest_cycle_s_gates_decide(desk):
    desk.register("lstm")
    desk.step(TO_STAGING)
    judge(desk, veto(), cycle="older")
    judge(desk, veto(ok=True), cycle="newer", now=LATER)
    assert last_verdicts(desk.log.connection, desk.market, "lstm").vetoes == []
    desk.by_hand(1, "Production")
    assert [each.to for each in desk.reconcile(policy="strict")] == ["Production"]
    assert desk.log.last(desk.market, "lstm").entry.evidence == {"policy": "strict", "vetoes": ""}


def test_what_a_person_overrode_is_on_record(desk):
    desk.register("lstm")
    desk.step(TO_STAGING)
    judge(desk, veto())
    desk.by_hand(1, "Production")
    desk.reconcile(policy="manual")
    vetoes = "skill: its Sharpe ratio is luck"
    assert desk.log.last(desk.market, "lstm").entry.evidence == {"policy": "manual", "vetoes": vetoes}


def test_whoever_takes_a_model_out_of_trading_may_under_any_policy(desk):
    desk.register("lstm")
    desk.step(TO_STAGING, TO_PRODUCTION)
    desk.by_hand(1, "None")
    desk.reconcile(policy="strict")
    assert current(desk.client, desk.market) == []
    assert desk.story()[-1] == ("Production", "None", 1, "mlflow-ui")


def test_a_move_by_hand_gets_no_more_capital_than_is_free(desk):
    for variant in ("lstm", "gru"):
        desk.register(variant)
    desk.step(change(allocation=0.5), change(variant="gru", allocation=0.5))
    desk.step(change(variant="gru", from_="Staging", to="Production", allocation=0.8))
    desk.by_hand(1, "Production")
    (moved,) = desk.reconcile()
    assert moved.allocation == pytest.approx(0.2)


@pytest.mark.parametrize(("tag", "value"), [("stage", "Production"), ("allocation", "0.9")])
def test_tags_edited_by_hand_are_put_back_as_the_log_has_them(desk, tag, value):
    desk.register("lstm")
    desk.step(TO_STAGING)
    desk.client.set_model_version_tag(model_name(desk.market, "lstm"), "1", tag, value)
    (moved,) = desk.reconcile()
    assert (moved.from_, moved.to, moved.version, moved.allocation) == ("Staging", "Staging", 1, 0.25)
    assert desk.agree()


@pytest.mark.parametrize("tag", [None, "Production"])
@pytest.mark.parametrize(("before", "stage"), [([], "None"), ([TO_STAGING], "Staging")])
def test_a_model_s_tag_of_its_stage_is_set_right_where_it_is_missing_or_edited_and_that_is_no_move(
    desk, before, stage, tag
):
    desk.register("lstm", num_versions=2)
    desk.step(*before)
    name, num_rows = model_name(desk.market, "lstm"), len(desk.story())
    if tag is None:  # as models were registered before there was the tag
        desk.client.delete_registered_model_tag(name, MODEL_STAGE)
    else:
        desk.client.set_registered_model_tag(name, MODEL_STAGE, tag)
    with pytest.raises(Killed):
        desk.reconcile(**dying(desk, 0))
    assert desk.reconcile() == []
    assert desk.client.get_registered_model(name).tags[MODEL_STAGE] == stage
    assert len(desk.story()) == num_rows
    assert desk.agree()
    assert desk.reconcile(**dying(desk, 0)) == []


def test_a_model_without_a_version_has_nothing_to_reconcile(desk):
    name = model_name(desk.market, "empty")
    desk.client.create_registered_model(name, tags={"market": desk.market})
    assert desk.reconcile(**dying(desk, 0)) == []


def test_a_wrong_tag_of_the_model_keeps_nobody_from_moving_it(desk):
    desk.register("lstm")
    desk.client.set_registered_model_tag(model_name(desk.market, "lstm"), MODEL_STAGE, "Production")
    desk.step(TO_STAGING)
    assert desk.agree()


def test_a_move_that_is_refused_says_so_in_the_versions_description(desk):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING)
    judge(desk, veto())
    desk.by_hand(2, "Production")
    desk.reconcile(policy="strict", now=LATER)
    name = model_name(desk.market, "lstm")
    told = [desk.client.get_model_version(name, number).description for number in ("1", "2")]
    assert told[0].startswith("**Stage:** Staging since 2024-05-07 21:00 UTC, by mlflow-ui: moved back from Production")
    assert told[1].startswith("**Stage:** None since 2024-05-07 21:00 UTC, by mlflow-ui: moved back from Production")
    assert all("skill: its Sharpe ratio is luck" in each for each in told)


def test_a_description_keeps_what_others_wrote_and_only_the_newest_reason(desk):
    desk.register("lstm")
    desk.client.update_model_version(model_name(desk.market, "lstm"), "1", "lstm, of ann\n\nlook at 2020")
    desk.step(replace(TO_STAGING, reason="in\n\ntwo parts"), replace(TO_PRODUCTION, reason="passed"))
    (version,) = desk.client.search_model_versions(f"name = '{model_name(desk.market, 'lstm')}'")
    assert version.description == (
        "lstm, of ann\n\nlook at 2020\n\n**Stage:** Production since 2024-05-06 21:00 UTC, by cycle: passed"
    )


def test_a_reason_longer_than_mlflow_s_description_moves_the_stage_all_the_same(desk):
    desk.register("lstm")
    asked = replace(TO_STAGING, reason="long " * 2000)
    desk.step(asked)
    version = desk.client.get_model_version(model_name(desk.market, "lstm"), "1")
    assert len(version.description) == MAX_DESCRIPTION_CHARS
    assert version.tags["stage_reason"] == asked.reason
    desk.reconcile(**dying(desk, 0))


def test_a_change_planned_before_somebody_moved_a_stage_by_hand_is_refused(desk):
    desk.register("lstm", num_versions=2)
    desk.step(TO_STAGING)
    planned = desk.planned(TO_PRODUCTION)
    desk.by_hand(2, "Staging")
    with pytest.raises(StaleError, match="just moved by hand"):
        desk.apply(planned)


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
