"""What people do about stages, on a real registry and a real audit log."""

import json
import os
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from flows import cli, stages
from flows.settings import Settings
from flows.stages import Decision
from tests.training.rating.stage_desk import Desk as Registry
from training.rating.gates import Verdict
from training.rating.promotion import StageError, current
from training.rating.verdicts import last_verdicts, write_verdicts

NOW = datetime(2024, 5, 6, 21, tzinfo=UTC)
ANNA = Decision(by="anna", reason="I looked at it", now=NOW)


@pytest.fixture
def variant():
    return f"lstm-{uuid.uuid4().hex}"


@pytest.fixture
def desk(databases, session_settings, variant):
    """A desk whose market has the variant and another, under the policy that lets people decide."""
    with stages.open_desk(session_settings, variant, market=f"m-{uuid.uuid4().hex}", policy="manual") as opened:
        registry = registry_of(opened)
        registry.register(variant, num_versions=2)
        registry.register("gru")
        yield opened


def registry_of(desk):
    return Registry(client=desk.client, log=desk.log, market=desk.market)


def judge(desk, variant, **passed):
    verdicts = [
        Verdict(gate=gate, ok=ok, value=float("nan"), threshold=1.0, why=f"{gate} {'passed' if ok else 'failed'}")
        for gate, ok in passed.items()
    ]
    write_verdicts(desk.log.connection, {variant: verdicts}, market=desk.market, cycle_id="c1", now=NOW)


def trading(desk):
    return {each.variant: (each.version, each.stage, each.allocation) for each in current(desk.client, desk.market)}


def test_a_person_leads_a_variant_up_and_down_and_all_of_it_is_on_record(desk, variant):
    for step in (stages.promote, stages.promote, stages.demote, stages.promote, stages.demote):
        step(desk, variant, ANNA)
    assert registry_of(desk).story(variant) == [
        ("None", "Staging", 2, "anna"),
        ("Staging", "Production", 2, "anna"),
        ("Production", "Archived", 2, "anna"),
        ("Archived", "Staging", 2, "anna"),
        ("Staging", "None", 2, "anna"),
    ]
    rows = [row.entry for row in desk.log.rows(desk.market, variant)]
    assert {row.reason for row in rows} == {"I looked at it"}
    assert rows[1].evidence == {"policy": "manual", "vetoes": "never judged"}
    assert registry_of(desk).agree(variant)


def test_back_to_paper_is_a_demotion_one_can_ask_for(desk, variant):
    for _ in range(2):
        stages.promote(desk, variant, ANNA)
    assert stages.demote(desk, variant, ANNA, to="Staging").from_ == "Production"
    assert trading(desk) == {variant: (2, "Staging", 1.0)}


@pytest.mark.parametrize(
    ("before", "command", "to", "said"),
    [
        (0, stages.promote, "Production", r"from None it can go to: Staging \(selected for paper trading\)"),
        (1, stages.promote, "Staging", "is in Staging already, and Staging is no promotion from there"),
        (2, stages.promote, None, "is in Production already"),
        (2, stages.promote, "Staging", "is in Production already, and Staging is no promotion"),
        (0, stages.demote, None, "is in None, and None is no demotion"),
        (1, stages.demote, "Production", "Production is no demotion"),
        (2, stages.demote, "None", r"from Production it can go to: .*Staging \(back to paper.*Archived"),
    ],
)
def test_what_the_table_does_not_have_is_refused_with_what_it_has(desk, variant, before, command, to, said):
    for _ in range(before):
        stages.promote(desk, variant, ANNA)
    was = trading(desk)
    with pytest.raises(StageError, match=said):
        command(desk, variant, ANNA, to=to)
    assert trading(desk) == was
    assert len(desk.log.rows(desk.market)) == before


def test_a_strict_policy_refuses_production_and_says_what_stands_against_it(desk, variant):
    strict = replace(desk, policy="strict")
    stages.promote(strict, variant, ANNA)
    with pytest.raises(StageError, match="stays in Staging: the policy is strict, and no cycle has judged it"):
        stages.promote(strict, variant, ANNA)
    judge(desk, variant, skill=False, leaks=True, certificate=False)
    with pytest.raises(StageError, match=r"certificate: certificate failed; skill: skill failed\. A person may"):
        stages.promote(strict, variant, ANNA)
    assert trading(desk)[variant][1] == "Staging"
    judge(desk, variant, skill=True, leaks=True, certificate=True)
    stages.promote(strict, variant, ANNA)
    assert trading(desk)[variant][1] == "Production"
    assert desk.log.last(desk.market, variant).entry.evidence == {"policy": "strict", "cycle_id": "c1", "vetoes": ""}


@pytest.mark.parametrize("policy", ["advisory", "manual"])
def test_where_a_person_decides_the_vetoes_are_on_record(desk, variant, policy):
    judge(desk, variant, skill=False)
    for _ in range(2):
        stages.promote(replace(desk, policy=policy), variant, ANNA)
    evidence = desk.log.last(desk.market, variant).entry.evidence
    assert evidence == {"policy": policy, "cycle_id": "c1", "vetoes": "skill: skill failed"}


def test_what_a_cycle_said_again_replaces_what_it_said(desk, variant):
    judge(desk, variant, skill=False, leaks=True)
    judge(desk, variant, skill=True)
    last = last_verdicts(desk.log.connection, desk.market, variant)
    assert [(each.gate, each.ok, each.threshold) for each in last.verdicts] == [("skill", True, 1.0)]
    assert last.verdicts[0].value != last.verdicts[0].value  # NaN, kept as null
    assert last_verdicts(desk.log.connection, desk.market, "gru") is None


def test_a_newcomer_gets_an_equal_share_of_what_is_free(desk, variant):
    stages.promote(desk, "gru", ANNA, allocation=0.7)
    stages.promote(desk, variant, ANNA)
    assert trading(desk)[variant][2] == pytest.approx(0.3)  # half would be too much
    stages.promote(desk, variant, ANNA)
    assert trading(desk)[variant][1:] == ("Production", pytest.approx(0.3))


def test_more_capital_than_is_free_is_refused(desk, variant):
    stages.promote(desk, "gru", ANNA, allocation=0.7)
    with pytest.raises(StageError, match=r"can't have 50\.0% of the capital of Staging: 30\.0% is free"):
        stages.promote(desk, variant, ANNA, allocation=0.5)
    assert variant not in trading(desk)


def test_a_rollback_brings_back_the_version_the_stage_and_then_what_was_before(desk, variant):
    registry = registry_of(desk)
    for _ in range(2):
        stages.promote(desk, variant, ANNA)
    registry.by_hand(1, "Production", variant=variant)
    assert stages.rollback(replace(desk, policy="advisory"), variant, ANNA).version == 2
    assert [row[1:] for row in registry.story(variant)][2:] == [
        ("Production", 1, "mlflow-ui"),
        ("Production", 2, "anna"),
    ]
    assert stages.rollback(desk, variant, ANNA).to == "Staging"
    assert stages.rollback(desk, variant, ANNA).to == "None"
    with pytest.raises(StageError, match="never elsewhere"):
        stages.rollback(desk, variant, ANNA)


def test_a_rollback_into_production_asks_the_policy_but_one_within_it_does_not(desk, variant):
    strict = replace(desk, policy="strict")
    for _ in range(2):
        stages.promote(desk, variant, ANNA)
    registry_of(desk).by_hand(1, "Production", variant=variant)
    registry_of(desk).reconcile()
    judge(desk, variant, skill=False)
    back = stages.rollback(strict, variant, ANNA)
    assert (back.from_, back.to, back.version) == ("Production", "Production", 2)
    stages.demote(strict, variant, ANNA)
    with pytest.raises(StageError, match="skill failed"):
        stages.rollback(strict, variant, ANNA)


def test_an_unknown_variant_is_refused_with_those_that_are_alike(desk, session_settings, variant):
    with pytest.raises(StageError, match=f"did you mean {variant}"):
        stages.promote(desk, variant[:-2], ANNA)
    with (
        pytest.raises(StageError, match=f"no variant '{variant[:-2]}' is registered in any market.*{variant}"),
        stages.open_desk(session_settings, variant[:-2], market=None, policy="manual"),
    ):
        pass


def test_the_market_is_named_only_where_several_have_the_variant(desk, session_settings, variant):
    with stages.open_desk(session_settings, variant, market=None, policy="manual") as found:
        assert found.market == desk.market
    other = replace(registry_of(desk), market=f"{desk.market}-2")
    other.register(variant)
    with (
        pytest.raises(StageError, match=f"{desk.market}, {other.market} all have {variant}; say which: --market"),
        stages.open_desk(session_settings, variant, market=None, policy="manual"),
    ):
        pass


def test_history_is_plain_data_and_the_log_is_verified(desk, session_settings, variant):
    stages.promote(desk, variant, ANNA)
    stages.promote(desk, "gru", ANNA, allocation=0.0)
    (row,) = stages.history(session_settings, variant=variant)
    assert json.loads(json.dumps(row)) == row
    shown = {name: row[name] for name in ("time", "variant", "version", "from", "to", "allocation", "actor", "reason")}
    assert shown == {
        "time": "2024-05-06T21:00:00+00:00",
        "variant": variant,
        "version": 2,
        "from": "None",
        "to": "Staging",
        "allocation": 1.0,
        "actor": "anna",
        "reason": "I looked at it",
    }
    assert [row["variant"] for row in stages.history(session_settings, market=desk.market)] == [variant, "gru"]
    assert stages.verify_log(session_settings).ok
    accepted = stages.accept_log(session_settings, ANNA)
    assert stages.history(session_settings)[-1]["hash"] == accepted.hash


def _history(*arguments):
    return CliRunner().invoke(cli.app, ["history", *arguments])


@pytest.fixture
def in_session_home(session_settings, monkeypatch):
    """Commands work on the session's home, and leave the environment as it was."""
    before = dict(os.environ)
    monkeypatch.setenv("PERENNIAL_HOME", str(session_settings.home))
    yield
    os.environ.clear()
    os.environ.update(before)


def test_the_history_of_a_variant_that_nobody_knows_is_refused(desk, session_settings, in_session_home, variant):
    assert stages.history(session_settings, variant=variant) == []  # it is registered, and was never moved
    said = _history(variant)
    assert (said.exit_code, said.stdout) == (0, "No stage was ever changed.\n")
    with pytest.raises(StageError, match=f"no variant '{variant}' is registered in elsewhere, of 0"):
        stages.history(session_settings, variant=variant, market="elsewhere")
    said = _history(variant[:-2])
    assert said.exit_code == 1
    assert f"no variant '{variant[:-2]}' is registered in any market" in said.output
    assert f"did you mean {variant}" in said.output


def test_the_history_is_printed_to_the_minute_and_whole_as_json(desk, in_session_home, variant):
    stages.promote(desk, variant, ANNA)
    printed = " ".join(_history(variant).stdout.split())
    assert "2024-05-06" in printed
    assert "21:00:00" not in printed
    assert json.loads(_history(variant, "--json").stdout)[0]["time"] == "2024-05-06T21:00:00+00:00"


def test_the_watch_finds_what_people_moved_in_any_market(desk, session_settings, variant):
    other = replace(registry_of(desk), market=f"{desk.market}-2")
    other.register("tcn")
    registry_of(desk).by_hand(2, "Staging", variant=variant)
    other.by_hand(1, "Production", variant="tcn")
    found = stages.watch(session_settings, policy="strict", now=NOW)
    assert {market: [(each.variant, each.to) for each in changes] for market, changes in found.items()} == {
        desk.market: [(variant, "Staging")],
        other.market: [("tcn", "None")],
    }
    assert stages.watch(session_settings, policy="strict", now=NOW) == {}


def test_before_the_first_cycle_there_is_nothing_to_look_at(tmp_path):
    with pytest.raises(StageError, match=r"no stage to change or look at in .*perennial run"):
        stages.history(Settings(home=tmp_path))
