"""`perennial leakcheck`: a sound market is clean by the way that a cycle goes, and a leak is told."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from feature_repo.leakage.challenges import pick_moments
from feature_repo.leakage.findings import Checked, Place, Places, found
from feature_repo.market.schema import Market
from feature_repo.pipelines.base import PipelineError
from feature_repo.store import online_embedded, read_through
from feature_repo.store.packed import OnlineStoreError
from flows import leakcheck
from flows.cycle import CycleConfig
from flows.leakcheck import LeakReport, check_market, render
from flows.steps import data
from tests.flows.small_market import write_small_market
from training.leakage.verdict import make_verdict

NOW = datetime(2023, 1, 1, tzinfo=UTC)


def verdict(*findings):
    checked = Checked(findings=findings, num_compared=1234)
    return make_verdict("momentum: features", checked, fingerprint="abc", checks=("truncation",), moments=())


def leak():
    time = np.array(["2020-01-02T21:00"], dtype="datetime64[us]")
    places = Places(entity_R=np.array(["A"], dtype=object), event_R=time, moment_R=time)
    place = Place(places=places, row=0, feature="return_1")
    return found("truncation", "it rests on the future", place, expected=None, got=0.5, num=3)


def shown(report: LeakReport) -> str:
    console = Console(file=io.StringIO(), width=140)
    render(console, report)
    return console.file.getvalue()


def test_a_leak_is_told_with_its_feature_and_moment_and_is_not_clean() -> None:
    report = LeakReport(scope="small 1d", verdicts=[verdict(leak())], not_applicable={"onchain": "no such table"})
    assert not report.clean
    text = shown(report)
    assert "1 leaks" in text or "1 leak" in text
    assert "return_1 of A for 2020-01-02T21:00:00+00:00" in text
    assert "not checked: onchain: no such table" in text


def test_without_a_verdict_nothing_is_clean() -> None:
    assert LeakReport(scope="", verdicts=[verdict()], not_applicable={}).clean
    assert not LeakReport(scope="", verdicts=[], not_applicable={}).clean


def test_a_market_is_checked_from_its_tables_to_its_panels(tmp_path) -> None:
    folder = write_small_market(tmp_path / "small", num_assets=3, num_days=520)
    report = check_market(str(folder), "1d", only="momentum", now=NOW, tell=lambda _said: None)
    assert report.clean, shown(report)
    assert [each.subject for each in report.verdicts] == [
        "momentum: features",
        "momentum: online",
        "momentum: panel",
        "the store: from table to panel",
    ]
    assert report.not_applicable == {}
    assert "520 of 520 bars, as known at 6 moments" in report.scope


def test_a_history_too_short_for_panels_says_so(tmp_path) -> None:
    folder = write_small_market(tmp_path / "small", num_assets=2, num_days=200)
    report = check_market(str(folder), "1d", only="momentum", now=NOW, tell=lambda _said: None)
    assert [each.subject for each in report.verdicts] == ["momentum: features", "momentum: online"]
    assert "labelled sessions" in report.not_applicable["panels"]


@pytest.fixture(scope="module")
def restated(tmp_path_factory) -> Market:
    """A market whose newest bars were restated some hours later, before the next one came."""
    folder = write_small_market(tmp_path_factory.mktemp("markets") / "small", num_assets=3, num_days=200)
    file = folder / "bars_1d.parquet"
    bars = pd.read_parquet(file)
    again = bars[bars["event_time"] > bars["event_time"].max() - pd.Timedelta(days=30)]
    again = again.assign(close=again["close"] * 1.01, ingest_time=again["ingest_time"] + pd.Timedelta(hours=3))
    pd.concat([bars, again]).sort_values("ingest_time").to_parquet(file, index=False)
    return data.load(CycleConfig(market=str(folder)), NOW)


def served(market: Market) -> set[str]:
    """Which ways of serving are told, of momentum over the restated bars."""
    moments = pick_moments(market, "1d", num_bars=20, num_moments=2)
    checked = leakcheck.check_online(CycleConfig(), market, ["momentum"], moments, NOW)["momentum"]
    assert checked.num_compared > 2 * 2 * len(moments)
    return {finding.check for finding in checked.findings}


def test_what_is_served_online_is_what_was_known(restated) -> None:
    assert served(restated) == set()


@pytest.mark.parametrize("newer", [">", ">="])
def test_a_store_that_overwrites_by_event_time_alone_is_told(newer, restated, monkeypatch) -> None:
    rule = "(excluded.event_time, excluded.ingest_time) >= (packed.event_time, packed.ingest_time)"
    assert rule in online_embedded._WRITE
    broken = online_embedded._WRITE.replace(rule, f"excluded.event_time {newer} packed.event_time")
    monkeypatch.setattr(online_embedded, "_WRITE", broken)
    assert served(restated) == {"materialised"}


def test_a_miss_computed_from_bars_not_known_yet_is_told(restated, monkeypatch) -> None:
    def trusting(bars: pd.DataFrame, _now: datetime, num_bars: int) -> pd.DataFrame:
        last = bars.sort_values(["event_time", "ingest_time"]).drop_duplicates(
            ["entity_key", "event_time"], keep="last"
        )
        return last.groupby("entity_key").tail(num_bars)

    monkeypatch.setattr(read_through, "_recent", trusting)
    with pytest.raises(OnlineStoreError, match="become known only after"):  # what computed it refuses to keep it
        served(restated)


def test_an_unknown_pipeline_is_refused(tmp_path) -> None:
    folder = write_small_market(tmp_path / "small", num_assets=2, num_days=60)
    with pytest.raises(PipelineError, match="no pipeline 'momentun'"):
        check_market(str(folder), "1d", only="momentun", now=NOW, tell=lambda _said: None)
