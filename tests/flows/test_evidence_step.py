"""What monitoring and serving know of a variant reaches its gates: from the table of verdicts to the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest

from feature_repo.database import connect, migrate
from feature_repo.definitions.repo import open_feature_store
from feature_repo.market.schema import Market
from flows.cycle import CycleConfig
from flows.steps import data, fit
from flows.steps.evidence import MAX_AGE, drift_findings, read_drift
from flows.steps.judge import Judgement, judge, write_report
from flows.steps.leaks import LeakCheck, check_leaks
from flows.steps.run import Run
from monitoring.alerts.matrix import RESPONSES
from monitoring.drift.monitor import DriftVerdict
from monitoring.store import write_verdicts
from tests.training.rating.judged_makers import VARIANTS, YEAR, good, returns
from training.rating.evidence import Finding
from training.rating.judging import judge as ask_every_gate
from training.trainer import train_fold
from training.variants import Variant

TODAY = date(2024, 5, 6)
YESTERDAY = TODAY - timedelta(days=1)
NAME = "lightgbm-l7-momentum-n7"
NOW = datetime(2023, 1, 1, tzinfo=UTC)


def verdict(action: str = "none", **changes: object) -> DriftVerdict:
    given = {
        "day": YESTERDAY,
        "strategy": "v",
        "feature": "*",
        "signal": "ic",
        "value": -0.02,
        "calibrated": 0.01,
        "severity": "severe",
        "action": action,
        "why": f"asks to {action}",
    }
    return DriftVerdict(**{**given, **changes})  # type: ignore[arg-type]


def found(*verdicts: DriftVerdict) -> dict[str, Finding]:
    return drift_findings(verdicts, newest_bar=TODAY)


# ---- from verdicts to findings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", sorted({response.action for response in RESPONSES.values()}))
def test_to_trade_less_or_to_retrain_is_against_it_and_to_look_is_not(action: str) -> None:
    finding = found(verdict("none", signal="psi"), verdict(action))["v"]
    assert finding.ok == (action not in ("halve", "pause", "retrain"))


def test_the_worst_is_named_with_its_numbers() -> None:
    finding = found(
        verdict("retrain", signal="psi", feature="rsi_14", value=0.4, calibrated=0.2),
        verdict("pause", severity="critical", value=-0.03),
        verdict("halve", signal="sharpe", value=-1.0),
        verdict("watch", signal="psi", feature="ret_5"),
    )["v"]
    assert finding == Finding(
        ok=False,
        why="on 2024-05-05 monitoring asked to pause it: asks to pause (and 2 more of 4 verdicts ask to act)",
        value=-0.03,
        threshold=0.01,
    )
    alone = found(verdict("retrain", signal="psi", feature="rsi_14", calibrated=None))["v"]
    assert alone.why == "on 2024-05-05 monitoring asked to retrain it: rsi_14: asks to retrain"
    assert math.isnan(alone.threshold)


def test_only_its_own_newest_day_counts() -> None:
    earlier, later = YESTERDAY - timedelta(days=2), YESTERDAY
    findings = found(
        verdict("pause", day=earlier),
        verdict("none", day=later),
        verdict("none", day=earlier, strategy="w"),
        verdict("halve", day=earlier, strategy="w"),
    )
    assert findings["v"].ok
    assert not findings["w"].ok  # not monitored since: what was said last stands, for a week
    assert findings["v"].why == "on 2024-05-05 none of 1 drift verdicts asked to trade it less or retrain it"


def test_the_cycles_own_day_does_not_count_so_that_a_rerun_ends_the_same() -> None:
    before = [verdict("none"), verdict("none", signal="sharpe")]
    written_by_the_killed_run = [verdict("pause", day=TODAY), verdict("pause", day=TODAY, strategy="new")]
    assert found(*before, *written_by_the_killed_run) == found(*before)
    assert found(verdict("pause", day=TODAY + timedelta(days=1))) == {}  # nor what was said later, for a cycle as of


def test_words_older_than_a_week_are_none() -> None:
    oldest = TODAY - MAX_AGE
    assert not found(verdict("pause", day=oldest))["v"].ok
    assert found(verdict("pause", day=oldest - timedelta(days=1))) == {}


def test_of_the_same_action_the_more_severe_is_named_whatever_their_order() -> None:
    alike = [
        verdict("halve", signal=signal, severity=severity, why=f"{signal} is {severity}")
        for signal, severity in (("sharpe", "severe"), ("ic", "severe"), ("ic", "critical"))
    ]
    assert found(*alike) == found(*reversed(alike))
    assert "halve its position: ic is critical" in found(*alike)["v"].why
    assert found(*alike[:2]) == found(*reversed(alike[:2]))


def test_who_is_vetoed_and_who_is_not_known() -> None:
    """The gates on a search in which the first six variants have true skill and nothing else against them."""
    findings = drift_findings(
        [verdict("halve", strategy="skilled"), verdict("diagnose", strategy="leaky")], newest_bar=TODAY
    )
    evidence = {variant: good(drift=findings.get(variant)) for variant in VARIANTS}
    judged = ask_every_gate(VARIANTS, returns(), evidence, seed=0, periods_per_year=YEAR)
    assert judged.promotable == ["leaky", "uncertified", "forged", "slow", "drifted"]
    said = {verdict.gate: verdict for verdict in judged.verdicts["slow"]}
    assert (said["drift"].veto, said["drift"].why) == (False, "no drift verdict on it yet")


# ---- through Postgres and the judging step ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Cycle:
    """A cycle up to its judging, on a market with something to learn."""

    run: Run
    market: Market
    panels: data.Panels
    trained: fit.Trained
    check: LeakCheck

    def judge(self, policy: str = "strict", **known: object) -> Judgement:
        run = replace(self.run, config=replace(self.run.config, policy=policy))
        return judge(run, self.market.info, self.panels, {NAME: self.trained}, self.check, **known)  # type: ignore[arg-type]

    @property
    def newest_bar(self) -> date:
        newest: pd.Timestamp = self.market.bars("1d")["event_time"].max()
        return newest.date()


def write_trending_market(folder: Path, *, num_days: int = 700) -> Path:
    """Closes with slow trends of each asset's own, which momentum sees."""
    rng = np.random.default_rng(0)
    ends = pd.bdate_range("2019-01-01", periods=num_days, tz="UTC") + pd.Timedelta(hours=21)
    parts = []
    for name in ("A", "B", "C", "D"):
        trend = np.zeros(num_days)
        for t, shock in enumerate(rng.standard_normal(num_days - 1), 1):
            trend[t] = 0.97 * trend[t - 1] + 0.002 * shock
        returns = trend + 0.008 * rng.standard_normal(num_days)
        parts.append(
            pd.DataFrame(
                {
                    "entity_key": name,
                    "event_time": ends.astype("datetime64[us, UTC]"),
                    "ingest_time": (ends + pd.Timedelta(minutes=15)).astype("datetime64[us, UTC]"),
                    "close": 100 * np.exp(np.cumsum(returns)),
                }
            )
        )
    folder.mkdir(parents=True)
    pd.concat(parts).to_parquet(folder / "bars_1d.parquet", index=False)
    (folder / "market.yaml").write_text("name: trending\nasset_class: test\ncalendar: weekdays\n")
    return folder


@pytest.fixture(scope="module")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Cycle:
    home = tmp_path_factory.mktemp("home")
    run = Run(
        config=CycleConfig(market=str(write_trending_market(home / "trending")), folds=9),
        cycle_id="cycle",
        market="trending",
        now=NOW,
        code="code",
        git_sha="sha",
        features=home / "features" / "trending" / "1d",
        panels=home / "panels",
        fits=home / "fits",
        signals=home / "signals",
        reports=home / "reports",
    )
    market = data.load(run.config, NOW)
    data.build_tables(run, market, None)
    registry = f"sqlite:///{run.features}/registry.db"
    store = open_feature_store(project="trending", registry=registry, features_root=run.features, interval="1d")
    panels = data.assemble_panels(run, market, ("momentum",), store)
    variant = Variant(
        id=NAME,
        architecture="lightgbm",
        family="classical",
        lookback=7,
        pipeline="momentum",
        params=(("num_leaves", 7),),
    )
    tasks = fit.variant_tasks(run, panels, variant, costs=market.info.costs, tuned={})
    trained = fit.Trained(variant=variant, tasks=tasks, results=[train_fold(task) for task in tasks])
    return Cycle(run=run, market=market, panels=panels, trained=trained, check=check_leaks(run, market, panels))


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    migrate(dsn, "monitoring")
    with connect(dsn, autocommit=True) as opened:
        yield opened


def gate(judgement: Judgement, name: str) -> object:
    return {verdict.gate: verdict for verdict in judgement.judged.verdicts[NAME]}[name]


def test_with_nothing_known_it_is_promoted_and_that_is_said(cycle: Cycle) -> None:
    judgement = cycle.judge()
    assert list(judgement.selection.production) == [NAME]
    page = write_report(cycle.run, judgement).read_text(encoding="utf-8")
    for said in ("no drift verdict on it yet", "no live latency was measured yet"):
        assert said in page


@pytest.mark.parametrize("action", ["halve", "pause", "retrain"])
def test_a_drift_verdict_in_postgres_keeps_it_out_and_the_report_says_why(
    cycle: Cycle, connection: psycopg.Connection, action: str
) -> None:
    day = cycle.newest_bar - timedelta(days=1)
    said = [verdict(action, day=day, strategy=NAME), verdict("watch", day=day, strategy=NAME, signal="psi")]
    write_verdicts(connection, said, market="trending", cycle_id="the day before's")
    findings = read_drift(connection, cycle.run, cycle.panels)
    assert set(findings) == {NAME}
    judgement = cycle.judge(drift=findings)
    assert list(judgement.selection.staging) == [NAME]
    assert judgement.judged.to_certify == []  # nobody refits what is refused anyway
    assert f"drift: on {day} monitoring asked to {action}" in judgement.selection.reasons[NAME]
    assert findings[NAME].why in write_report(cycle.run, judgement).read_text(encoding="utf-8")
    assert list(cycle.judge("advisory", drift=findings).selection.production) == [NAME]


@pytest.mark.parametrize(("age", "action"), [(1, "watch"), (1, "diagnose"), (0, "pause"), (8, "pause")])
def test_words_to_look_and_words_of_today_or_of_long_ago_keep_nobody_out(
    cycle: Cycle, connection: psycopg.Connection, age: int, action: str
) -> None:
    said = verdict(action, day=cycle.newest_bar - timedelta(days=age), strategy=NAME)
    write_verdicts(connection, [said], market="trending", cycle_id="cycle")
    write_verdicts(connection, [replace(said, day=YESTERDAY, action="pause")], market="other", cycle_id="cycle")
    findings = read_drift(connection, cycle.run, cycle.panels)
    assert list(cycle.judge(drift=findings).selection.production) == [NAME]


def test_a_slow_one_is_kept_out_and_one_in_time_is_not(cycle: Cycle) -> None:
    slow = cycle.judge(latency_p99_ms={NAME: 80.0, "another": 1.0})
    assert list(slow.selection.staging) == [NAME]
    assert "latency: 99% of its live answers came within 80.0 ms, over the budget" in slow.selection.reasons[NAME]
    assert list(cycle.judge(latency_p99_ms={NAME: 8.0}).selection.production) == [NAME]
