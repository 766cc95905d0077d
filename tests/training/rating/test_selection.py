"""Selection: every variant gets a place or a reason."""

import itertools

import numpy as np
import pandas as pd
import pytest

from training.rating.gates import Verdict
from training.rating.selection import SelectionError, select

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
