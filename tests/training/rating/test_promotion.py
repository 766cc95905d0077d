import itertools
import uuid
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.dying_client import DyingClient, Killed
from training.rating.promotion import (
    ALIASES,
    INTENT,
    TRANSITIONS,
    Assignment,
    StageChange,
    StageError,
    Target,
    apply,
    assignments,
    check,
    current,
    plan,
    reconcile,
)
from training.tracking import connect, model_name

NOW = datetime(2024, 5, 6, 21, tzinfo=UTC)
STAGES = ("None", "Staging", "Production", "Archived")

# ---- the pure part ---------------------------------------------------------------------------------------------------


def held(variant, stage, version=1, allocation=0.1):
    return Assignment(
        variant=variant, version=version, stage=stage, allocation=allocation, since=NOW, by="cycle", reason=""
    )


variants = st.sampled_from(["arima", "dqn", "lgbm", "lstm"])
versions = st.integers(1, 3)
shares = st.sampled_from([0.1, 0.25, 0.5])
holdings = st.dictionaries(variants, st.builds(held, st.just(""), st.sampled_from(STAGES), versions, shares)).map(
    lambda chosen: {variant: replace(each, variant=variant) for variant, each in chosen.items()}
)
targets = st.dictionaries(
    variants,
    st.builds(
        Target,
        version=versions,
        stage=st.sampled_from(["Staging", "Production"]),
        allocation=shares,
        reason=st.just("r"),
    ),
)


def follow(holding, changes):
    """What the registry holds after these changes, each checked against the table and against where it starts."""
    holding = dict(holding)
    for change in changes:
        check(change.variant, change.from_, change.to)
        assert change.from_ == (holding[change.variant].stage if change.variant in holding else "None")
        holding[change.variant] = held(change.variant, change.to, change.version, change.allocation)
    return holding


@given(holdings, targets)
def test_a_plan_leads_by_allowed_steps_to_just_what_is_desired(holding, desired):
    after = follow(holding, plan(holding, desired))
    trading = {
        variant: (each.version, each.stage, each.allocation) for variant, each in after.items() if each.stage in ALIASES
    }
    assert trading == {variant: (each.version, each.stage, each.allocation) for variant, each in desired.items()}
    assert plan(after, desired) == []


@given(holdings, targets)
def test_who_leaves_comes_first_so_that_capital_is_free_before_it_is_given(holding, desired):
    leaving = [change.to not in ALIASES for change in plan(holding, desired)]
    assert leaving == sorted(leaving, reverse=True)


def test_no_variant_reaches_production_without_having_been_staged():
    changes = plan({}, {"lstm": Target(version=1, stage="Production", allocation=0.5, reason="gate")})
    assert [(change.from_, change.to) for change in changes] == [("None", "Staging"), ("Staging", "Production")]


def test_a_dropped_variant_leaves_production_for_the_archive_and_staging_for_evaluation():
    changes = plan({"a": held("a", "Production"), "b": held("b", "Staging"), "c": held("c", "Archived")}, {})
    assert [(change.variant, change.to, change.allocation) for change in changes] == [
        ("a", "Archived", 0.0),
        ("b", "None", 0.0),
    ]


@pytest.mark.parametrize(("from_", "to"), sorted(set(itertools.product(STAGES, STAGES)) - set(TRANSITIONS)))
def test_a_transition_that_is_not_in_the_table_is_refused_with_those_that_are(from_, to):
    with pytest.raises(StageError) as refused:
        check("lstm", from_, to)
    listed = {end for (start, end) in TRANSITIONS if f"{end} ({TRANSITIONS[start, end]})" in str(refused.value)}
    assert f"lstm can't go from {from_} to {to}" in str(refused.value)
    assert listed >= {end for start, end in TRANSITIONS if start == from_}


# ---- on a real registry ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(databases):
    return connect(databases.url("mlflow"))


@pytest.fixture
def market():
    """A market of its own for every test, since they share one registry."""
    return f"market-{uuid.uuid4().hex}"


def register(client, market, variant, *, num_versions=1):
    name = model_name(market, variant)
    client.create_registered_model(name, tags={"market": market})
    for number in range(1, num_versions + 1):
        facts = {"train_from": "2019", "train_to": "2020", "checksum": f"c{number}", "artifact_sha256": f"s{number}"}
        client.create_model_version(name, f"file:///models/{number}", tags=facts, await_creation_for=0)


def change(variant="lstm", version=1, from_="None", to="Staging", allocation=0.25, **more):
    return StageChange(
        variant=variant, version=version, from_=from_, to=to, allocation=allocation, reason="asked for", **more
    )


def step(client, market, *changes, now=NOW):
    for each in changes:
        apply(each, client, market=market, now=now, actor="cycle")


def state(client, market, variant="lstm"):
    """Stage and ``stage`` tag by version, our aliases, and whether a change is on its way."""
    name = model_name(market, variant)
    model = client.get_registered_model(name)
    found = client.search_model_versions(f"name = '{name}'")
    stages = {int(each.version): (each.current_stage, each.tags.get("stage", "None")) for each in found}
    return stages, {alias: int(version) for alias, version in model.aliases.items()}, INTENT in model.tags


def agree(client, market, variant="lstm"):
    """Whether stage, alias and tags say the same, one version at most trades, and nothing is on its way."""
    stages, aliases, torn = state(client, market, variant)
    expected = {ALIASES[stage]: version for version, (stage, _) in stages.items() if stage in ALIASES}
    one = sum(stage in ALIASES for stage, _ in stages.values()) <= 1
    return not torn and one and aliases == expected and all(stage == tag for stage, tag in stages.values())


def by_hand(client, market, version, stage, variant="lstm"):
    """What the 'Transition to' menu of the MLflow UI does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        client.transition_model_version_stage(model_name(market, variant), str(version), stage)


TO_STAGING = change()
TO_PRODUCTION = change(from_="Staging", to="Production")
REFIT = change(version=2, from_="Production", to="Production")
ARCHIVE = change(from_="Production", to="Archived", allocation=0.0)
DEMOTE = change(from_="Staging", to="None", allocation=0.0)


def test_stage_alias_and_tags_are_written_together(client, market):
    register(client, market, "lstm")
    apply(
        replace(TO_STAGING, evidence={"sharpe_net": 1.25, "gate": "StepM"}),
        client,
        market=market,
        now=NOW,
        actor="anna",
    )
    assert state(client, market) == ({1: ("Staging", "Staging")}, {"staging": 1}, False)
    assert current(client, market) == [
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
        )
    ]


def test_a_demotion_deletes_the_alias(client, market):
    register(client, market, "lstm")
    step(client, market, TO_STAGING, TO_PRODUCTION)
    assert state(client, market) == ({1: ("Production", "Production")}, {"production": 1}, False)
    step(client, market, ARCHIVE)
    assert state(client, market) == ({1: ("Archived", "Archived")}, {}, False)
    assert current(client, market) == []
    assert assignments(client, market)["lstm"].stage == "Archived"


def test_a_refitted_version_inherits_the_stage_and_can_be_rolled_back(client, market):
    register(client, market, "lstm", num_versions=2)
    step(client, market, TO_STAGING, TO_PRODUCTION, REFIT)
    refitted = {1: ("Archived", "Archived"), 2: ("Production", "Production")}
    assert state(client, market) == (refitted, {"production": 2}, False)
    old = client.get_model_version(model_name(market, "lstm"), "1")
    assert (old.tags["stage_reason"], old.tags["allocation"]) == ("replaced by version 2", "0.0")
    step(client, market, change(version=1, from_="Production", to="Production"))
    rolled_back = {1: ("Production", "Production"), 2: ("Archived", "Archived")}
    assert state(client, market) == (rolled_back, {"production": 1}, False)


def test_an_allocation_changes_without_a_change_of_stage(client, market):
    register(client, market, "lstm")
    later = NOW + timedelta(days=1)
    step(client, market, TO_STAGING)
    step(client, market, change(from_="Staging", allocation=0.5), now=later)
    assert [(each.allocation, each.since) for each in current(client, market)] == [(0.5, later)]


def test_applying_again_writes_nothing(client, market):
    register(client, market, "lstm")
    step(client, market, TO_STAGING)
    step(DyingClient(client, 0), market, TO_STAGING, now=NOW + timedelta(days=1))
    assert current(client, market)[0].since == NOW


def test_a_change_planned_on_a_stage_that_is_no_more_is_refused(client, market):
    register(client, market, "lstm")
    step(client, market, TO_STAGING)
    with pytest.raises(StageError, match=r"is in Staging with version 1, not in Production.*plan again"):
        step(client, market, ARCHIVE)
    assert agree(client, market)


def test_a_version_that_is_not_registered_is_refused_before_anything_is_written(client, market):
    register(client, market, "lstm")
    with pytest.raises(StageError, match=r"no version 7; registered are \[1\]"):
        step(client, market, change(version=7))
    with pytest.raises(StageError, match="no version 1; registered are none"):
        step(client, market, change(variant="nonesuch"))
    assert agree(client, market)


def test_an_illegal_transition_is_refused_before_anything_is_written(client, market):
    register(client, market, "lstm")
    with pytest.raises(StageError, match=r"from None it can go to: Staging \(selected for paper trading\)"):
        step(client, market, change(to="Production"))
    assert state(client, market) == ({1: ("None", "None")}, {}, False)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (TO_STAGING, DEMOTE),
        (change(version=2, from_="Staging", to="Production"), change(from_="Production", to="Staging")),
    ],
    ids=["stage and demote", "promote a refitted version and roll back"],
)
def test_whichever_write_a_crash_hits_readers_see_all_or_nothing_and_reconcile_finishes(client, market, there, back):
    register(client, market, "lstm", num_versions=2)
    if there.from_ == "Staging":
        step(client, market, TO_STAGING)
    torn = 0
    for num_writes in itertools.count():
        crashed = [crash(client, market, last, num_writes) for last in (there, back)]
        torn += sum(crashed)
        if num_writes > 0 and not any(crashed):
            break
    assert torn == 2 * (num_writes - 1) > 10  # every crash but the one before the first write tore something


def crash(client, market, last, num_writes):
    """Crash in a change, look, repair and look again; returns whether stage, alias and tags disagreed meanwhile."""
    old = [seen(each) for each in current(client, market)]
    new = [seen(last)] if last.to in ALIASES else []
    died = False
    try:
        step(DyingClient(client, num_writes), market, last)
    except Killed:
        died = True
    torn = not agree(client, market)
    assert [seen(each) for each in current(client, market)] == (new if num_writes else old)
    assert [each.to for each in reconcile(client, market)] == ([last.to] if torn else [])
    assert agree(client, market)
    step(client, market, last)
    assert agree(client, market)
    assert [(*seen(each), each.by) for each in current(client, market)] == [(*each, "cycle") for each in new]
    assert torn == (died and num_writes > 0)
    return torn


def seen(each):
    return each.version, each.to if isinstance(each, StageChange) else each.stage, each.allocation


def test_the_next_change_finishes_a_torn_one_first(client, market):
    register(client, market, "lstm")
    with pytest.raises(Killed):
        step(DyingClient(client, 3), market, TO_STAGING)
    step(client, market, TO_PRODUCTION, now=NOW + timedelta(days=1))
    assert state(client, market) == ({1: ("Production", "Production")}, {"production": 1}, False)


def test_a_crash_while_reconciling_is_reconciled(client, market):
    register(client, market, "lstm", num_versions=2)
    step(client, market, TO_STAGING, TO_PRODUCTION)
    with pytest.raises(Killed):
        step(DyingClient(client, 2), market, REFIT)
    for num_writes in range(4):
        with pytest.raises(Killed):
            reconcile(DyingClient(client, num_writes), market)
    assert len(reconcile(client, market)) == 1
    assert agree(client, market)
    assert [seen(each) for each in current(client, market)] == [(2, "Production", 0.25)]


@pytest.mark.parametrize(
    ("before", "moves", "expected"),
    [
        ([], [(1, "Production")], ("None", "Production")),
        ([TO_STAGING], [(1, "Production")], ("Staging", "Production")),
        ([TO_STAGING], [(2, "Production")], ("Staging", "Production")),
        ([TO_STAGING, TO_PRODUCTION], [(1, "None")], ("Production", "None")),
        ([TO_STAGING, TO_PRODUCTION], [(1, "Archived")], ("Production", "Archived")),
        ([TO_STAGING, TO_PRODUCTION], [(2, "Production")], ("Production", "Production")),
        ([TO_STAGING, TO_PRODUCTION], [(1, "Archived"), (2, "Production")], ("Production", "Production")),
    ],
)
def test_a_stage_set_in_the_mlflow_ui_is_the_truth_and_reconcile_follows(client, market, before, moves, expected):
    register(client, market, "lstm", num_versions=2)
    step(client, market, *before)
    for move in moves:
        by_hand(client, market, *move)
    assert not agree(client, market)
    version, stage = moves[-1]
    trading = [(version, stage, "mlflow-ui")] if stage in ALIASES else []
    assert [(each.version, each.stage, each.by) for each in current(client, market)] == trading
    assert [(each.version, each.from_, each.to) for each in reconcile(client, market)] == [(version, *expected)]
    assert agree(client, market)
    assert [(each.version, each.stage, each.by) for each in current(client, market)] == trading
    moved = client.get_model_version(model_name(market, "lstm"), str(version))
    assert moved.tags["stage_by"] == "mlflow-ui"
    assert reconcile(client, market) == []


def test_an_alias_moved_by_hand_goes_back_to_the_stage_and_other_aliases_stay(client, market):
    register(client, market, "lstm", num_versions=2)
    step(client, market, TO_STAGING)
    name = model_name(market, "lstm")
    before = current(client, market)
    client.set_registered_model_alias(name, "staging", "2")
    client.set_registered_model_alias(name, "champion", "2")
    reconcile(client, market)
    assert state(client, market)[1] == {"staging": 1, "champion": 2}
    assert current(client, market) == before
    assert reconcile(client, market) == []


def test_an_alias_on_a_variant_without_a_stage_is_deleted(client, market):
    register(client, market, "lstm")
    client.set_registered_model_alias(model_name(market, "lstm"), "production", "1")
    assert [(each.from_, each.to) for each in reconcile(client, market)] == [("None", "None")]
    assert agree(client, market)


def test_what_trades_is_of_one_market_production_first_then_by_allocation(client, market):
    for variant, share in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)):
        register(client, market, variant)
        if variant != "d":
            step(client, market, change(variant=variant, allocation=share))
    step(client, market, change(variant="a", from_="Staging", to="Production", allocation=0.1))
    register(client, f"{market}_other", "a")
    step(client, f"{market}_other", change(variant="a"))
    client.create_registered_model(model_name(market, "empty"), tags={"market": market})
    assert [(each.variant, each.stage) for each in current(client, market)] == [
        ("a", "Production"),
        ("c", "Staging"),
        ("b", "Staging"),
    ]
    assert sorted(assignments(client, market)) == ["a", "b", "c", "d"]


def test_a_plan_made_from_the_registry_and_applied_leaves_nothing_to_plan(client, market):
    for variant in "abc":
        register(client, market, variant, num_versions=2)
    first = {
        "a": Target(version=1, stage="Production", allocation=0.5, reason="rank 1"),
        "b": Target(version=1, stage="Staging", allocation=0.5, reason="rank 2"),
    }
    second = {
        "b": Target(version=2, stage="Production", allocation=1.0, reason="rank 1"),
        "c": Target(version=1, stage="Staging", allocation=0.5, reason="rank 2"),
    }
    for desired in (first, second):
        step(client, market, *plan(assignments(client, market), desired))
        trading = {each.variant: seen(each) for each in current(client, market)}
        assert trading == {name: (each.version, each.stage, each.allocation) for name, each in desired.items()}
        assert plan(assignments(client, market), desired) == []
