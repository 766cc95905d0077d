"""The volatility pipeline's realised features against their definitions and through the aggregate."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.attach import attach
from feature_repo.aggregates.intraday import intraday_versions
from feature_repo.market.directory import read_market_directory
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.volatility import PIPELINE

NUM_BARS = 160
CRYPTO = Path(__file__).resolve().parents[3] / "../shared/data/crypto_2015_2020"
NAMES = [feature.name for feature in PIPELINE.features if "realised_variance" in feature.inputs]


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    variance = rng.uniform(1e-5, 1e-3, NUM_BARS)
    return {
        "close": 100.0 * np.exp(rng.normal(0.0, 0.02, NUM_BARS).cumsum()),
        "realised_variance": variance,
        "bipower_variation": variance * rng.uniform(0.5, 1.1, NUM_BARS),
        "upside_semivariance": variance * rng.uniform(0.0, 1.0, NUM_BARS),
    }


def plain(c: pd.DataFrame) -> dict[str, pd.Series]:
    total = c.realised_variance.rolling(22).sum()
    vol = {window: np.sqrt(c.realised_variance.rolling(window).mean()) for window in (1, 5, 22)}
    return {
        **{f"realised_vol_{window}": vol[window] for window in vol},
        "realised_change_1_22": np.log(vol[1] / vol[22]),
        "jump_share_22": (1 - c.bipower_variation.rolling(22).sum() / total).clip(lower=0),
        "upside_share_22": c.upside_semivariance.rolling(22).sum() / total,
    }


def test_features_equal_the_definition() -> None:
    got, want = PIPELINE.compute(columns()), plain(pd.DataFrame(columns()))
    assert set(NAMES) == set(want)
    first = PIPELINE.warmup_bars - 1
    for name, series in want.items():
        assert np.isnan(got[name][:first]).all(), name
        np.testing.assert_allclose(got[name][first:], series.to_numpy()[first:], rtol=1e-10, atol=1e-14, err_msg=name)


def test_more_bipower_than_variance_is_no_negative_jump() -> None:
    given = columns()
    given["bipower_variation"] = given["realised_variance"] * 1.2
    assert (PIPELINE.compute(given)["jump_share_22"][PIPELINE.warmup_bars - 1 :] == 0.0).all()


def test_value_is_a_function_of_the_last_22_bars() -> None:
    full = PIPELINE.compute(columns())
    changed = columns()
    for series in changed.values():
        series[-23] *= 2.0
    after = PIPELINE.compute(changed)
    assert all(after[name][-1] == full[name][-1] for name in NAMES)
    for series in changed.values():
        series[-22] *= 2.0
    after = PIPELINE.compute(changed)
    assert after["realised_vol_22"][-1] != full["realised_vol_22"][-1]


def test_they_are_left_out_without_intraday_bars_and_nothing_else_is() -> None:
    with_them, without = columns(), {"close": columns()["close"]}
    assert set(PIPELINE.compute(with_them)) - set(PIPELINE.compute(without)) == set(NAMES)


def test_real_bitcoin_and_ether() -> None:
    if not CRYPTO.is_dir():
        pytest.skip("the shared data set crypto_2015_2020 is not beside the repository")
    market = read_market_directory(CRYPTO, now=datetime(2026, 1, 1, tzinfo=UTC))
    bars = market.bars("1d")
    pair = bars[bars["entity_key"].isin(["BTC", "ETH"]) & (bars["event_time"] >= pd.Timestamp("2017-01-01", tz="UTC"))]
    versions = intraday_versions(market, "1d")
    assert versions is not None
    features = build_features(
        PIPELINE,
        attach(pair, [versions]),
        producer="test",
        producer_version="a",
        run_id="r",
        written_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    latest = features.drop_duplicates(["entity_key", "event_time"], keep="last")
    assert (latest["ingest_time"] - latest["event_time"] == pd.Timedelta(minutes=5)).all(), "as the daily bars"
    assert latest["realised_vol_22"].isna().mean() < 0.1
    for name, (low, high) in {"BTC": (0.02, 0.06), "ETH": (0.03, 0.08)}.items():
        of_asset = latest[latest["entity_key"] == name]
        assert low < of_asset["realised_vol_22"].mean() < high
        both = of_asset[["realised_vol_22", "vol_21"]].corr(method="spearman")  # Kraken had a flash crash or two
        assert both.iloc[0, 1] > 0.8
        assert 0.02 < of_asset["jump_share_22"].mean() < 0.3
        assert 0.4 < of_asset["upside_share_22"].mean() < 0.6
