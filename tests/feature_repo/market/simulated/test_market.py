"""The exchange as a market: repeatable, the same from memory and from a folder, its faults counted to the row."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

import feature_repo.market.parsing as parsing
import feature_repo.market.validation as validation
from feature_repo.market.assembly import fingerprint
from feature_repo.market.directory import read_market_directory
from feature_repo.market.layout import KINDS
from feature_repo.market.schema import Market, MarketError
from feature_repo.market.simulated.market import SimulatedMarket, simulate, write_market
from feature_repo.market.simulated.spec import SimSpec
from feature_repo.market.sources import SOURCES, load_market
from feature_repo.market.validation import validate

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = SimSpec(
    num_assets=4,
    num_sectors=2,
    num_days=200,
    num_delistings=1,
    num_days_15m=12,
    num_tick_days=2,
    num_tick_assets=2,
    late_share=0.01,
    restated_share=0.01,
    gap_share=0.01,
)
# Changes with every change of what is simulated; then say so in the CHANGELOG, for recorded results no longer repeat.
FINGERPRINT = "7d769466f68a8c6a2f1ed525640f8ae3d4d0601ad14caac25a431eaae7ab8cd5"


@pytest.fixture(scope="module")
def simulated() -> SimulatedMarket:
    return simulate(SMALL)


@pytest.fixture(scope="module")
def market(simulated) -> Market:
    return simulated.read(now=NOW)


def by_reason(records: pd.DataFrame, table: str) -> dict[str, int]:
    return dict(Counter(records.loc[records["table"] == table, "reason"]))


def test_the_fingerprint_is_pinned(market):
    assert market.fingerprint == FINGERPRINT


def test_the_same_spec_gives_the_same_tables_byte_for_byte(simulated):
    again = simulate(SMALL)
    assert list(again.tables) == list(simulated.tables)
    for name, table in again.tables.items():
        pd.testing.assert_frame_equal(table, simulated.tables[name], check_exact=True)
    assert again.truth == simulated.truth


def test_another_seed_gives_another_market(simulated, market):
    other = simulate(replace(SMALL, seed=1))
    theirs = other.read(now=NOW)
    for name, table in market.tables.items():
        if name != "universe":
            assert fingerprint({name: table}) != fingerprint({name: theirs.tables[name]}), name


def test_the_clock_moves_nothing(simulated, market):
    assert simulated.read(now=datetime(2031, 7, 1, tzinfo=UTC)).fingerprint == market.fingerprint
    earlier = simulated.read(now=datetime(2021, 3, 1, tzinfo=UTC))
    assert earlier.bars("1d")["ingest_time"].max() <= pd.Timestamp("2021-03-01", tz="UTC")
    assert "event_time is in the future" in set(earlier.quarantine["reason"])


def test_every_table_of_the_layout_is_there(market):
    kinds = {re.sub(r"_(1d|1h|15m)$", "_<interval>", name) for name in market.tables}
    assert kinds == set(KINDS)
    assert {"bars_1d", "bars_1h", "bars_15m"} <= set(market.tables)


def test_quarantine_holds_just_what_was_planted(simulated, market):
    faults = simulated.truth.faults
    assert set(faults) == set(simulated.tables)
    for name, table in simulated.tables.items():
        assert by_reason(market.quarantine, name) == faults[name].bad, name
        assert by_reason(market.flags, name) == faults[name].odd, name
        assert len(market.tables[name]) == faults[name].num_good, name
        assert len(table) == faults[name].num_good + sum(faults[name].bad.values()), name
    assert sum(sum(fault.bad.values()) for fault in faults.values()) == len(market.quarantine) > 300


def test_one_bad_row_more_would_be_seen(simulated):
    table = simulated.tables["bars_1d"].copy()
    planted = simulated.truth.faults["bars_1d"].bad
    table.loc[table.index[-1], "volume"] = -5.0
    quarantine = validate("bars_1d", table, now=NOW, lag=None).quarantine
    assert by_reason(quarantine, "bars_1d") == {**planted, "volume is negative": planted["volume is negative"] + 1}


def test_bad_rows_take_nothing_away(market):
    assert simulate(replace(SMALL, num_bad_rows=0)).read(now=NOW).fingerprint == market.fingerprint
    most = simulate(replace(SMALL, num_bad_rows=10))
    found = most.read(now=NOW)
    assert found.fingerprint == market.fingerprint
    for name in most.tables:
        assert by_reason(found.quarantine, name) == most.truth.faults[name].bad, name


@pytest.mark.parametrize("seed", range(1, 4))
def test_counts_are_exact_for_any_seed(seed):
    simulated = simulate(replace(SMALL, seed=seed, num_days=60, num_days_15m=4, num_tick_days=1, benchmark=True))
    market = simulated.read(now=NOW)
    for name in simulated.tables:
        assert by_reason(market.quarantine, name) == simulated.truth.faults[name].bad, name
        assert by_reason(market.flags, name) == simulated.truth.faults[name].odd, name


def reasons_of(module) -> list[str]:
    """Every reason that a module's source can give, as a pattern: the texts of its (reason, mask) pairs."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    pairs = [node.elts for node in ast.walk(tree) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
    yielded = [node.value.elts for node in ast.walk(tree) if isinstance(node, ast.Yield) and node.value]
    texts = [elts[0] for elts in [*pairs, *yielded] if isinstance(elts[0], ast.JoinedStr | ast.Constant)]
    return [
        "".join(
            re.escape(part.value) if isinstance(part, ast.Constant) else ".+"
            for part in getattr(text, "values", [text])
        )
        for text in texts
        if isinstance(text, ast.JoinedStr) or (isinstance(text.value, str) and " " in text.value)
    ]


def test_every_reason_of_the_validation_is_planted(simulated):
    faults = simulated.truth.faults.values()
    planted = {reason for fault in faults for reason in (*fault.bad, *fault.odd)}
    possible = {*reasons_of(validation), *reasons_of(parsing)}
    assert len(possible) >= 20
    missing = [pattern for pattern in possible if not any(re.fullmatch(pattern, reason) for reason in planted)]
    assert missing == []
    explained = [reason for reason in planted if any(re.fullmatch(pattern, reason) for pattern in possible)]
    assert len(explained) == len(planted)


def test_late_restated_and_missing_rows_are_as_many_as_the_truth_says(simulated, market):
    usual = {"bars_1d": "5min", "bars_1h": "1min", "bars_15m": "1min", "onchain_1d": "14h", "trades": "1s"}
    for name, lag in usual.items():
        fault, table = simulated.truth.faults[name], market.tables[name]
        keys = ["entity_key", "event_time", *(["trade_id"] if name == "trades" else [])]
        is_second = table.duplicated(keys)
        assert is_second.sum() == fault.num_restated
        late = (table["ingest_time"] - table["event_time"]) > pd.Timedelta(lag)
        assert (late & ~is_second).sum() == fault.num_late > 0
    hours = market.tables["bars_1h"].drop_duplicates(["entity_key", "event_time"])
    ends = hours.groupby("entity_key")["event_time"].agg(["min", "max", "size"])
    num_hours = ((ends["max"] - ends["min"]) / pd.Timedelta(hours=1)).astype(int) + 1
    fault = simulated.truth.faults["bars_1h"]
    assert (num_hours - ends["size"]).sum() == fault.num_gaps > 0


def test_restatements_are_later_and_other(market):
    for name in ("bars_1d", "bars_1h", "bars_15m", "onchain_1d", "sentiment"):
        table = market.tables[name]
        keys = ["entity_key", "event_time", *(["name"] if "name" in table else [])]
        versions = table[table.duplicated(keys, keep=False)].drop(columns="interval", errors="ignore")
        first, second = versions.iloc[::2].reset_index(drop=True), versions.iloc[1::2].reset_index(drop=True)
        pd.testing.assert_frame_equal(first[keys], second[keys])
        assert (second["ingest_time"] > first["ingest_time"]).all()
        values = [column for column in versions if column not in (*keys, "ingest_time")]
        assert (first[values] != second[values]).any(axis=1).all()


def test_a_written_market_reads_back_as_the_same(tmp_path, simulated, market):
    truth = write_market(SMALL, tmp_path / "market")
    back = read_market_directory(tmp_path / "market", now=NOW)
    assert back.fingerprint == market.fingerprint
    assert back.info == market.info
    assert back.info.inferred == ()
    assert back.ignored == ()
    for part in ("quarantine", "flags"):
        counts = [getattr(found, part)[["table", "row", "reason"]] for found in (back, market)]
        pd.testing.assert_frame_equal(*counts)
    assert truth == simulated.truth
    assert (tmp_path / "market" / "truth.json").read_text(encoding="utf-8") == truth.to_json()
    with pytest.raises(MarketError, match="not an empty folder; name another"):
        write_market(SMALL, tmp_path / "market")


def test_the_truth_is_told_as_json(simulated):
    told = json.loads(simulated.truth.to_json())
    assert told["alpha"] == {"momentum": 0.05, "onchain": 0.05, "order_flow": 0.05, "sentiment": 0.05}
    assert told["planting"]["expected_ic"]["sentiment"] == pytest.approx(0.05, abs=1e-3)
    assert told["start"] == "2021-01-01T00:00:00+00:00"
    assert told["end"] == "2021-07-20T00:00:00+00:00"
    regimes = told["regimes"]
    assert [regimes[0]["start"], regimes[-1]["end"]] == [told["start"], told["end"]]
    assert all(one["end"] == other["start"] for one, other in pairwise(regimes))
    assert {regime["name"] for regime in regimes} == {"sideways", "trend_up", "trend_down", "crisis"}
    assert told["drifts"] == [{"feature": "sentiment", "size": 1.0, "start": "2021-06-20T00:00:00+00:00"}]
    assert told["faults"]["bars_1d"]["bad"]["close is null"] == 3
    assert set(told["sectors"]) == {"SIM00", "SIM01", "SIM02", "SIM03"}
    assert told["leaders"] == {"SIM00": "SIM01", "SIM01": "SIM00", "SIM02": "SIM00", "SIM03": "SIM01"}


def test_a_silent_markets_truth_has_no_alpha_and_no_drift():
    truth = simulate(replace(SMALL, alpha={})).truth
    assert truth.alpha == {}
    assert set(truth.planting.expected_ic.values()) == {0.0}
    assert {regime.drift_ann for regime in truth.regimes} == {0.0}


def test_an_index_is_the_benchmark_where_asked_for():
    market = simulate(replace(SMALL, benchmark=True)).read(now=NOW)
    assert market.info.benchmark == "INDEX"
    assert "INDEX" in set(market.bars("1h")["entity_key"])
    assert "INDEX" not in set(market.traded_bars("1d")["entity_key"])


def test_a_market_without_the_newest_parts():
    spec = replace(SMALL, num_days=40, num_days_15m=0, num_tick_days=0, num_delistings=0)
    market = simulate(spec).read(now=NOW)
    assert {"bars_15m", "trades", "quotes", "corporate_actions"}.isdisjoint(market.tables)
    assert market.bars("1h")["entity_key"].nunique() == 4


def test_the_default_market_by_its_name():
    assert "sim" in SOURCES
    market = load_market("sim", now=NOW)
    assert market.info.name == "sim"
    assert market.info.calendar == "24/7"
    assert market.info.inferred == ()
    bars = market.bars("1d")
    assert bars["entity_key"].nunique() == 12
    assert bars["event_time"].nunique() == 1500
    assert bars["event_time"].max() < pd.Timestamp("2026-01-01", tz="UTC")
