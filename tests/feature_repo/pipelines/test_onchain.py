"""The on-chain features: closed forms, an exact window, and restated rows for restated metrics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.onchain import AGGREGATE
from feature_repo.market.assembly import known_at
from feature_repo.market.schema import Market
from feature_repo.pipelines.build import NotApplicableError
from feature_repo.pipelines.catalog import CATALOGUE
from feature_repo.pipelines.onchain import PIPELINE
from tests.feature_repo.aggregates.market_makers import at, bars_with, daily_bars, rows, toy_market
from tests.feature_repo.pipelines.window_checks import assert_rows_hold_the_rule, assert_window_is_exact, build

NUM_BARS = 180
Z_SCORES = {
    "active_addresses": "onchain_active_addresses",
    "transactions": "onchain_transactions",
    "transfer_value": "onchain_transfer_value_usd",
    "fees": "onchain_fees_usd",
    "issuance": "onchain_issuance_usd",
    "hash_rate": "onchain_hash_rate",
    "nvt": "onchain_nvt",
    "mvrv": "onchain_mvrv",
}
CHANGES = {
    "active_addresses": (1, 7, 30),
    "transactions": (7,),
    "transfer_value": (7,),
    "fees": (1, 7, 30),
    "hash_rate": (30,),
    "nvt": (7, 30),
    "mvrv": (7, 30),
}


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.exp(5.0 + rng.normal(0.0, 0.1, NUM_BARS).cumsum()) for name in AGGREGATE.columns}


def late_market() -> Market:
    rng = np.random.default_rng(4)
    parts = []
    for entity in ("A", "B"):
        event = np.concatenate([np.arange(130.0), rng.integers(60, 125, 8)])
        lag = np.where(np.arange(138) < 130, 0.55, rng.integers(1, 9, 138))
        lag[rng.integers(60, 130, 3)] = 2.5
        names = ("AdrActCnt", "TxCnt", "FeeTotUSD", "IssTotUSD", "CapMrktCurUSD", "TxTfrValAdjUSD", "CapRealUSD")
        values = {name: np.exp(rng.normal(3.0, 0.3, 138)) for name in (*names, "HashRate")}
        for name in names:
            values[name][130:132] = np.nan
        parts.append(rows(entity, event, event + lag, **values))
    keys = ["entity_key", "event_time", "ingest_time"]
    table = pd.concat(parts).drop_duplicates(keys).sort_values(keys, kind="stable", ignore_index=True)
    return toy_market(bars_1d=daily_bars(["A", "B"], 130), onchain_1d=table)


def test_it_is_in_the_catalogue() -> None:
    assert CATALOGUE["onchain"] is PIPELINE


def test_value_is_a_function_of_exactly_the_last_warmup_bars() -> None:
    assert_window_is_exact(PIPELINE, columns())


def test_changes_and_z_scores_are_what_their_descriptions_say() -> None:
    given = columns()
    got = {name: series[-1] for name, series in PIPELINE.compute(given).items()}
    for name, lags in CHANGES.items():
        x = given[Z_SCORES[name]]
        for lag in lags:
            assert got[f"{name}_change_{lag}"] == pytest.approx(np.log(x[-1] / x[-1 - lag]), rel=1e-10)
    for name, column in Z_SCORES.items():
        x = np.log(given[column][-90:])
        assert got[f"{name}_z_90"] == pytest.approx((x[-1] - x.mean()) / x.std(ddof=1), rel=1e-9)


def test_the_other_features_are_what_their_descriptions_say() -> None:
    given = columns()
    got = {name: series[-1] for name, series in PIPELINE.compute(given).items()}
    named = {name.removeprefix("onchain_"): series for name, series in given.items()}
    fees, issuance, cap = named["fees_usd"], named["issuance_usd"], named["market_cap_usd"]
    fee = np.log(fees[-90:] / named["transactions"][-90:])
    want = {
        "nvt_log": np.log(named["nvt"][-1]),
        "mvrv_log": np.log(named["mvrv"][-1]),
        "issuance_rate": issuance[-1] / cap[-1],
        "fee_share": fees[-1] / (fees[-1] + issuance[-1]),
        "fee_per_transaction_z_90": (fee[-1] - fee.mean()) / fee.std(ddof=1),
        "network_value_gap_30": np.log(cap[-1] / cap[-31])
        - np.log(named["active_addresses"][-1] / named["active_addresses"][-31]),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name
    told = {f"{name}_change_{lag}" for name, lags in CHANGES.items() for lag in lags}
    assert {*want, *told, *(f"{name}_z_90" for name in Z_SCORES)} == set(got)


def test_units_and_source_are_named() -> None:
    sources = ("AdrActCnt", "TxCnt", "TxTfrValAdjUSD", "FeeTotUSD", "IssTotUSD", "HashRate", "NVTAdj", "CapMVRVCur")
    for feature in PIPELINE.features:
        if feature.name != "network_value_gap_30":
            assert any(source in feature.description for source in sources), feature.name


def test_values_do_not_depend_on_the_unit_of_a_metric() -> None:
    given = columns()
    other = {name: 1024.0 * series for name, series in given.items()}
    one, two = PIPELINE.compute(given), PIPELINE.compute(other)
    for name in set(one) - {"nvt_log", "mvrv_log"}:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-7, atol=1e-10, err_msg=name)


def test_a_coin_without_miners_lacks_what_issuance_tells_and_no_more() -> None:
    given = columns()
    given["onchain_issuance_usd"][:] = 0.0
    got = {name: series[-1] for name, series in PIPELINE.compute(given).items()}
    assert {name for name, value in got.items() if np.isnan(value)} == {"issuance_z_90"}
    assert got["issuance_rate"] == 0.0
    assert got["fee_share"] == 1.0


def test_features_follow_the_columns_there_are() -> None:
    few = {name: columns()[name] for name in ("onchain_transactions", "onchain_fees_usd")}
    assert set(PIPELINE.compute(few)) == {
        "transactions_change_7",
        "transactions_z_90",
        "fees_change_1",
        "fees_change_7",
        "fees_change_30",
        "fees_z_90",
        "fee_per_transaction_z_90",
    }


def test_a_market_without_on_chain_rows_is_not_applicable_and_the_reason_says_so() -> None:
    with pytest.raises(NotApplicableError, match=r"'onchain' is not applicable.*onchain_active_addresses"):
        build(PIPELINE, bars_with(toy_market(bars_1d=daily_bars(["A"], 100)), "1d", AGGREGATE))


def test_rows_known_at_any_time_are_the_features_of_what_was_known_then() -> None:
    attached = bars_with(late_market(), "1d", AGGREGATE).drop(columns="close")
    assert attached.duplicated(["entity_key", "event_time"]).sum() > 15
    assert_rows_hold_the_rule(PIPELINE, attached, at([100.5, 115.02, 123.7, 140.0]))


def test_keeping_the_last_version_only_breaks_the_rule() -> None:
    attached = bars_with(late_market(), "1d", AGGREGATE).drop(columns="close")
    revised = attached.drop_duplicates(["entity_key", "event_time"], keep="last")
    with pytest.raises(AssertionError):
        assert_rows_hold_the_rule(PIPELINE, attached, at(np.arange(95.02, 130.0)), features=build(PIPELINE, revised))


def test_deleting_what_is_known_later_changes_nothing() -> None:
    market = late_market()
    features = build(PIPELINE, bars_with(market, "1d", AGGREGATE))
    for moment in at([99.5, 110.01, 127.9]):
        past = build(PIPELINE, bars_with(known_at(market, moment), "1d", AGGREGATE))
        before = features[features["ingest_time"] <= moment].reset_index(drop=True)
        pd.testing.assert_frame_equal(past, before, check_exact=True)


def test_a_restated_day_restates_the_rows_that_read_it_from_then_on() -> None:
    day = np.arange(100.0)
    plain = rows("A", day, day + 0.55, TxCnt=100.0 + day % 7)
    again = rows("A", [92.0], [97.5], TxCnt=[500.0])
    table = pd.concat([plain, again]).sort_values(["event_time", "ingest_time"], ignore_index=True)
    bars = daily_bars(["A"], 100)
    before, after = (
        build(PIPELINE, bars_with(toy_market(bars_1d=bars, onchain_1d=given), "1d", AGGREGATE))
        for given in (plain, table)
    )
    moment = at([97.5])[0]
    restated = after[after["ingest_time"] == moment]
    assert list(restated["event_time"]) == list(at([93.0, 94.0, 95.0, 96.0, 97.0]))
    earlier = after[after["ingest_time"] < moment].reset_index(drop=True)
    pd.testing.assert_frame_equal(earlier, before[before["ingest_time"] < moment].reset_index(drop=True))
