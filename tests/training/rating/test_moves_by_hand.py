"""What people do in the MLflow UI, put on record and honoured, or moved back."""

from contextlib import suppress
from dataclasses import replace

import pytest

from tests.training.dying_client import Killed
from tests.training.rating.stage_desk import (
    ARCHIVE,
    LATER,
    NOW,
    REFIT,
    TO_PRODUCTION,
    TO_STAGING,
    change,
    dying,
    seen,
)
from training.rating.gates import Verdict
from training.rating.promotion import (
    ALIASES,
    MAX_DESCRIPTION_CHARS,
    StaleError,
    current,
)
from training.rating.verdicts import last_verdicts, write_verdicts
from training.tracking import MODEL_STAGE, model_name


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
