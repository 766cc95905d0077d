"""Selection: every variant gets a place or a reason."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rating.gates import Verdict
from training.rating.selection import MARGIN, SelectionError, select

PASSED = Verdict(gate="skill", ok=True, value=2.0, threshold=1.5, why="beats 1.50")
FAILED = Verdict(gate="skill", ok=False, value=1.0, threshold=1.5, why="does not beat 1.50")
WARNED = Verdict(gate="deflated_sharpe", ok=False, value=0.3, threshold=0.95, why="0.30 is not above 0.95", veto=False)


def ratings(num=30, sharpe=1.0):
    names = [f"v{i:02d}" for i in range(num)]
    table = pd.DataFrame(
        {"score": np.linspace(1, 0, num), "rank": range(1, num + 1), "sharpe_net": sharpe}, index=names
    )
    return table.sample(frac=1.0, random_state=0), pd.DataFrame(np.eye(num), index=names, columns=names)


def test_the_best_are_staged_and_those_that_pass_every_gate_go_live():
    table, correlation = ratings()
    verdicts = {f"v{i:02d}": [PASSED if i in (1, 4) else FAILED, WARNED] for i in range(30)}
    chosen = select(table, correlation, verdicts)
    assert list(chosen.production) == ["v01", "v04"]
    assert list(chosen.staging) == [f"v{i:02d}" for i in range(12) if i not in (1, 4)]
    assert chosen.reasons["v01"] == "rank 2, live: every gate passed"
    assert "skill: does not beat 1.50" in chosen.reasons["v00"]
    assert "12 places in Staging were taken" in chosen.refused["v20"]


@pytest.mark.parametrize(
    ("num", "top", "policy"), list(itertools.product((1, 2, 7, 40), (1, 12), ("strict", "advisory", "manual")))
)
def test_every_variant_has_one_place_and_a_reason(num, top, policy):
    table, correlation = ratings(num)
    verdicts = {name: [PASSED if i % 2 else FAILED] for i, name in enumerate(correlation)}
    chosen = select(table, correlation, verdicts, policy=policy, top=top)
    assert set(chosen.reasons) == set(table.index)
    assert not set(chosen.staging) & set(chosen.production)
    assert {*chosen.staging, *chosen.production, *chosen.refused} == set(table.index)
    assert len(chosen.staging) + len(chosen.production) == min(top, max(1, num // 2))
    assert all(chosen.reasons.values())
    for stage in (chosen.staging, chosen.production):
        assert sum(stage.values()) == pytest.approx(1.0 if stage else 0.0)
        assert list(stage.values()) == sorted(stage.values(), reverse=True)


def test_a_twin_gives_way_to_the_next_and_names_its_better():
    table, correlation = ratings()
    correlation.loc["v01", "v00"] = correlation.loc["v00", "v01"] = 0.97
    correlation.loc["v02", "v00"] = correlation.loc["v00", "v02"] = np.nan
    correlation.loc["v03", "v00"] = correlation.loc["v00", "v03"] = -0.99
    chosen = select(table, correlation, {}, top=3)
    assert list(chosen.staging) == ["v00", "v02", "v03"]
    assert "too like v00" in chosen.refused["v01"]
    assert "0.97" in chosen.refused["v01"]
    assert "v01" in select(table, correlation, {}, top=3, max_correlation=0.98).staging


def test_what_never_traded_is_not_staged():
    table, correlation = ratings()
    table.loc["v00", "sharpe_net"] = np.nan
    chosen = select(table, correlation, {})
    assert "never traded" in chosen.refused["v00"]


@pytest.mark.parametrize("policy", ["strict", "advisory"])
def test_a_loser_stays_on_paper_whatever_the_gates_say(policy):
    table, correlation = ratings(sharpe=-0.2)
    chosen = select(table, correlation, dict.fromkeys(table.index, (PASSED,)), policy=policy)
    assert not chosen.production
    assert "did not make money" in chosen.reasons["v00"]


def test_strict_fails_closed_without_verdicts():
    table, correlation = ratings()
    chosen = select(table, correlation, {})
    assert not chosen.production
    assert "no gate has judged it" in chosen.reasons["v00"]


def test_advisory_lets_rank_decide_and_shows_the_gate_and_manual_promotes_nobody():
    table, correlation = ratings()
    verdicts = dict.fromkeys(table.index, (FAILED,))
    advisory = select(table, correlation, verdicts, policy="advisory")
    assert list(advisory.production) == [f"v{i:02d}" for i in range(12)]
    assert "does not beat 1.50" in advisory.reasons["v00"]
    manual = select(table, correlation, dict.fromkeys(table.index, (PASSED,)), policy="manual")
    assert not manual.production
    assert "until a person promotes it" in manual.reasons["v00"]


def test_shares_fall_linearly_with_rank():
    table, correlation = ratings(6)
    assert select(table, correlation, {}).staging == {"v00": 3 / 6, "v01": 2 / 6, "v02": 1 / 6}


def test_an_unknown_policy_names_the_choices():
    table, correlation = ratings()
    with pytest.raises(SelectionError, match="'lax'; choose one of strict, advisory, manual"):
        select(table, correlation, {}, policy="lax")


# ---- members, families, caps -----------------------------------------------------------------------------------------


@st.composite
def worlds(draw):
    """Ratings with ties and variants that never traded, groups of twins, families and members, drawn at random."""
    num = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = [f"v{i:02d}" for i in range(num)]
    score = np.sort(np.round(rng.uniform(0.3, 0.7, num), 2))[::-1]
    sharpe = np.where(rng.random(num) < 0.1, np.nan, 1.0)
    table = pd.DataFrame({"score": score, "rank": range(1, num + 1), "sharpe_net": sharpe}, index=names)
    group = rng.integers(0, max(2, num // 2), num)
    correlation = pd.DataFrame(np.where(group[:, None] == group, 0.95, 0.1), index=names, columns=names)
    members = rng.permutation(names)[: rng.integers(0, num)]
    return {
        "table": table.sample(frac=1.0, random_state=0),
        "correlation": correlation,
        "top": draw(st.sampled_from([1, 3, 5, 12])),
        "active": {str(name): str(rng.choice(["Staging", "Production"])) for name in members},
        "families": {name: f"f{rng.integers(0, 4)}" for name in names},
    }


def choose(world, **changes):
    return select(**{**world, "verdicts": {}, **changes})


@given(world=worlds())
def test_places_and_caps_hold_for_members_too(world):
    chosen = list(choose(world).staging)
    num = min(world["top"], max(1, len(world["table"]) // 2))
    assert len(chosen) <= num
    alike = world["correlation"].loc[chosen, chosen].to_numpy()[~np.eye(len(chosen), dtype=bool)]
    assert (alike <= 0.9).all()
    counts = pd.Series(world["families"])[chosen].value_counts()
    assert len(set(world["families"].values())) == 1 or (counts <= max(1, num // 2)).all()
    assert np.isfinite(world["table"].loc[chosen, "sharpe_net"]).all()


@given(world=worlds())
def test_a_member_within_the_exit_rank_gives_way_to_the_caps_or_a_clearly_better_one_alone(world):
    chosen = choose(world)
    table, active, families = world["table"], world["active"], world["families"]
    num = min(world["top"], max(1, len(table) // 2))
    holds = {name for name in active if table.loc[name, "rank"] <= int(num * 1.5)}
    for name in holds - set(chosen.staging):
        better = [
            other
            for other in chosen.staging
            if (other in holds and table.loc[other, "score"] >= table.loc[name, "score"])
            or (table.loc[other, "rank"] <= num and table.loc[other, "score"] > table.loc[name, "score"] + MARGIN)
        ]
        assert (
            not np.isfinite(table.loc[name, "sharpe_net"])
            or len(better) == num
            or any(world["correlation"].loc[name, other] > 0.9 for other in better)
            or sum(families[other] == families[name] for other in better) == max(1, num // 2)
        )


@given(world=worlds())
def test_the_same_ratings_choose_the_same_and_a_choice_stands_while_they_stay(world):
    first = choose(world)
    shuffled = {**world, "table": world["table"].sort_index(), "correlation": world["correlation"].iloc[::-1, ::-1]}
    assert choose(shuffled) == first
    assert choose(world, active=dict.fromkeys(first.staging, "Staging")).staging == first.staging


@given(world=worlds())
def test_without_members_and_families_the_best_by_rank_take_the_places(world):
    table, correlation = world["table"].sort_values("rank"), world["correlation"]
    taken = []
    for name in table.index[np.isfinite(table["sharpe_net"])]:
        if not any(correlation.loc[name, other] > 0.9 for other in taken):
            taken.append(name)
    plain = choose(world, active={}, families={})
    assert list(plain.staging) == taken[: min(world["top"], max(1, len(table) // 2))]


def scored(scores):
    """Ratings with these scores by name."""
    table = pd.DataFrame({"score": pd.Series(scores), "sharpe_net": 1.0}).sort_values("score", ascending=False)
    table["rank"] = range(1, len(table) + 1)
    return table, pd.DataFrame(np.eye(len(table)), index=table.index, columns=table.index)


SCORES = {"a": 0.70, "b": 0.69, "c": 0.68, "d": 0.67, "e": 0.66, "f": 0.65, "g": 0.64, "h": 0.5, "i": 0.5, "j": 0.5}


def test_a_member_keeps_its_place_down_to_the_exit_rank_and_says_so():
    members = dict.fromkeys("abfg", "Staging")  # 4 places, exit below rank 6
    chosen = select(*scored(SCORES), {}, top=4, active=members)
    assert list(chosen.staging) == ["a", "b", "c", "f"]
    assert chosen.reasons["f"].startswith("rank 6 (a member keeps its place down to rank 6), on paper")
    assert "rank 7 of 10: it fell below rank 6 and gave up its place" in chosen.refused["g"]
    assert "4 places in Staging were taken, and it beats no member's score by more than 0.05" in chosen.refused["d"]
    assert list(select(*scored(SCORES), {}, top=4).staging) == ["a", "b", "c", "d"]


def test_a_newcomer_within_the_places_takes_one_by_a_clear_margin_alone():
    members = dict.fromkeys("bcdf", "Staging")
    assert list(select(*scored(SCORES), {}, top=4, active=members).staging) == ["b", "c", "d", "f"]
    clear = select(*scored({**SCORES, "a": 0.701}), {}, top=4, active=members)
    assert list(clear.staging) == ["a", "b", "c", "d"]
    assert "newcomers that beat its score by more than 0.05" in clear.refused["f"]


def test_a_member_is_not_ousted_by_a_twin_that_is_hardly_better():
    table, correlation = scored(SCORES)
    correlation.loc["a", "b"] = correlation.loc["b", "a"] = 0.95
    held = select(table, correlation, {}, top=4, active={"b": "Staging"})
    assert list(held.staging) == ["b", "c", "d", "e"]
    assert "too like b, which has a place already: correlation 0.95" in held.refused["a"]
    assert list(select(table, correlation, {}, top=4).staging) == ["a", "c", "d", "e"]


def test_a_family_has_half_of_the_places_unless_it_is_the_only_one():
    families = {name: "deep" if name in "abcd" else "trees" for name in SCORES}
    chosen = select(*scored(SCORES), {}, top=4, families=families)
    assert list(chosen.staging) == ["a", "b", "e", "f"]
    assert "the family deep has 2 of the 4 places" in chosen.refused["c"]
    alone = select(*scored(SCORES), {}, top=4, families=dict.fromkeys(SCORES, "deep"))
    assert list(alone.staging) == ["a", "b", "c", "d"]


def test_what_a_person_promoted_stays_live_under_the_manual_policy_while_it_has_a_place():
    active = {"b": "Production", "c": "Staging", "j": "Production"}
    chosen = select(*scored(SCORES), {"b": (FAILED,)}, top=4, policy="manual", active=active)
    assert list(chosen.production) == ["b"]
    assert "a person promoted it; skill: does not beat 1.50" in chosen.reasons["b"]
    assert "gave up its place" in chosen.refused["j"]
    strict = select(*scored(SCORES), {"b": (FAILED,)}, top=4, policy="strict", active=active)
    assert not strict.production


def num_changes(*, remembered):
    """Entries and exits over a year of nightly selections; merit wanders slowly, what is seen of it is noisy."""
    rng = np.random.default_rng(7)
    names = [f"v{i:02d}" for i in range(60)]
    correlation = pd.DataFrame(np.eye(60), index=names, columns=names)
    merit, members, changes = rng.normal(0.5, 0.1, 60), set(), 0
    for _ in range(252):
        merit = 0.5 + 0.99 * (merit - 0.5) + 0.1 * np.sqrt(1 - 0.99**2) * rng.standard_normal(60)
        table, _ = scored(dict(zip(names, merit + 0.01 * rng.standard_normal(60), strict=True)))
        active = dict.fromkeys(members, "Staging") if remembered else {}
        now = set(select(table, correlation, {}, active=active).staging)
        changes += len(now ^ members)
        members = now
    return changes


def test_membership_flaps_less_where_members_are_remembered():
    flapping, steady = num_changes(remembered=False), num_changes(remembered=True)
    assert steady < 0.5 * flapping
    assert steady > 12  # those that do decay are replaced all the same
