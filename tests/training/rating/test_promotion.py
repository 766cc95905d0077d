import itertools
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.rating.stage_desk import change
from training.rating.promotion import (
    ALIASES,
    TRANSITIONS,
    Assignment,
    StageError,
    Target,
    change_to,
    check,
    kept_live,
    plan,
    refusal,
    room,
)

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
    """What the registry holds after these changes, each checked against the table and against what it follows."""
    holding = dict(holding)
    for each in changes:
        check(each.variant, each.from_, each.to)
        before = holding.get(each.variant)
        assert (each.from_, each.after) == ((before.stage, before.change) if before else ("None", ""))
        holding[each.variant] = replace(held(each.variant, each.to, each.version, each.allocation), change=each.id)
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


def test_no_two_changes_of_a_variant_have_the_same_id_though_they_do_the_same():
    there, again = held("a", "None"), held("a", "Staging")
    seen = set()
    for _ in range(3):
        into = change_to(there, Target(version=1, stage="Staging", allocation=0.1, reason="r"))
        out = change_to(replace(again, change=into.id), Target(version=1, stage="None", allocation=0.0, reason="r"))
        seen |= {into.id, out.id}
        there = replace(there, change=out.id)
    assert len(seen) == 6


def test_every_word_of_a_change_is_in_its_id():
    one = change()
    others = [
        replace(one, **{name: value})
        for name, value in {
            "variant": "gru",
            "version": 2,
            "from_": "Archived",
            "to": "Production",
            "allocation": 0.5,
            "reason": "other",
            "evidence": {"a": 1.0},
            "after": "x",
        }.items()
    ]
    assert len({one.id, *(each.id for each in others)}) == 9
    assert set(one.__slots__) == {"variant", "version", "from_", "to", "allocation", "reason", "evidence", "after"}


# ---- what a policy refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["strict", "advisory", "manual"])
@pytest.mark.parametrize("to", ["None", "Staging", "Archived"])
@pytest.mark.parametrize("from_", STAGES)
def test_whoever_leaves_production_or_stays_on_paper_is_never_held_back(from_, to, policy):
    assert refusal(from_, to, policy=policy, vetoes=["skill: none"]) == ""
    assert refusal(from_, to, policy=policy, vetoes=None) == ""


@pytest.mark.parametrize("from_", STAGES)
def test_into_production_a_strict_policy_lets_only_what_the_gates_and_the_table_let(from_):
    assert "no cycle has judged it" in refusal("Staging", "Production", policy="strict", vetoes=None)
    assert refusal("Staging", "Production", policy="strict", vetoes=["skill: weak", "leaks: 2"]).endswith(
        "against it stand: skill: weak; leaks: 2"
    )
    passed = refusal(from_, "Production", policy="strict", vetoes=[])
    assert passed == ("from None it can go to: Staging (selected for paper trading)" if from_ == "None" else "")
    for policy in ("advisory", "manual"):
        assert refusal(from_, "Production", policy=policy, vetoes=["skill: weak"]) == ""


def test_where_only_people_decide_the_live_ones_stay_with_their_newest_version():
    live, paper = held("a", "Production", allocation=0.4), held("b", "Staging")
    desired = {"a": Target(version=2, stage="Staging", allocation=0.7, reason="rank 1", evidence={"score": 1.0})}
    kept = kept_live({"a": live, "b": paper}, desired)
    assert (kept["a"].stage, kept["a"].version, kept["a"].allocation) == ("Production", 2, 0.4)
    assert kept["a"].evidence == {"score": 1.0}
    unselected = kept_live({"a": live, "b": paper}, {})
    assert {name: (each.stage, each.version) for name, each in unselected.items()} == {"a": ("Production", 1)}


def test_the_room_in_a_stage_is_what_the_others_leave():
    holding = {"a": held("a", "Production", allocation=0.4), "b": held("b", "Production", allocation=0.25)}
    assert room(holding, "c", "Production") == pytest.approx(0.35)
    assert room(holding, "a", "Production") == pytest.approx(0.75)
    assert room(holding, "c", "Staging") == 1.0
    assert room({**holding, "d": held("d", "Production", allocation=0.9)}, "c", "Production") == 0.0


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
