"""The raw bar: its values by hand, its scale, its silence about the future, and its volume's causality."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.directory import read_market_directory
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import CATALOGUE
from feature_repo.pipelines.ohlcv import PIPELINE

NUM_BARS = 150
STOCKS = Path(__file__).resolve().parents[3] / "../shared/data/us_equities_2013_2018"


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    close = 50.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, NUM_BARS)))
    open_ = close * np.exp(rng.normal(0.0, 0.01, NUM_BARS))
    return {
        "open": open_,
        "high": np.maximum(open_, close) * 1.01,
        "low": np.minimum(open_, close) * 0.98,
        "close": close,
        "volume": rng.integers(0, 1000, NUM_BARS).astype(float),
    }


def last(bars: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(series[-1]) for name, series in PIPELINE.compute(bars).items()}


def test_it_is_in_the_catalogue() -> None:
    assert CATALOGUE["ohlcv"] is PIPELINE
    assert 15 <= len(PIPELINE.features) <= 20


def test_the_last_bar_by_hand() -> None:
    bars = columns()
    for name, value in {"open": 102.0, "high": 110.0, "low": 100.0, "close": 108.0}.items():
        bars[name][-1] = value
    bars["close"][-2] = 101.0
    got = last(bars)
    want = {
        "close_return": math.log(108 / 101),
        "open_gap": math.log(102 / 101),
        "high_return": math.log(110 / 101),
        "low_return": math.log(100 / 101),
        "body": math.log(108 / 102),
        "upper_shadow": math.log(110 / 108),
        "lower_shadow": math.log(102 / 100),
        "range": math.log(1.1),
        "body_share": 0.6,
        "close_location": 0.6,
    }
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-12)
    assert got["open_gap"] + got["body"] == pytest.approx(got["close_return"])


def test_volume_and_place_against_pandas() -> None:
    bars = columns()
    frame, got = pd.DataFrame(bars), last(columns())
    volume, value = frame["volume"], frame["close"] * frame["volume"]
    returns = np.log(frame["close"]).diff()
    close, spread = frame["close"].tail(20), np.log(frame["high"] / frame["low"]).tail(20)
    want = {
        "volume_ratio_20": math.log1p(volume.iloc[-1] / volume.tail(20).mean()),
        "volume_level_5_63": math.log1p(volume.tail(5).mean() / volume.tail(63).mean()),
        "volume_z_20": (volume.iloc[-1] - volume.tail(20).mean()) / volume.tail(20).std(),
        "volume_z_63": (volume.iloc[-1] - volume.tail(63).mean()) / volume.tail(63).std(),
        "dollar_volume_ratio_63": math.log1p(value.iloc[-1] / value.tail(63).mean()),
        "return_on_volume_20": returns.iloc[-1] * volume.iloc[-1] / volume.tail(20).mean(),
        "close_return_z_20": returns.iloc[-1] / returns.tail(20).std(),
        "close_place_20": (close.iloc[-1] - close.min()) / (close.max() - close.min()),
        "range_ratio_20": spread.iloc[-1] / spread.mean(),
    }
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-9)


def test_a_bar_without_range_or_volume_has_features() -> None:
    bars = columns()
    for name in ("open", "high", "low", "close"):
        bars[name][-1] = 55.0
    bars["volume"][-1] = 0.0
    got = last(bars)
    assert [got[name] for name in ("range", "body_share", "close_location", "volume_ratio_20")] == [0, 0, 0, 0]
    assert np.isfinite(list(got.values())).all()


def test_no_feature_has_a_currency_or_a_unit_of_size() -> None:
    bars = columns()
    scaled = {name: series * (4096.0 if name != "volume" else 1e-3) for name, series in bars.items()}
    for name, series in PIPELINE.compute(scaled).items():
        np.testing.assert_allclose(series, PIPELINE.compute(bars)[name], rtol=1e-7, atol=1e-10, err_msg=name)


def test_volume_is_normalised_by_its_past_alone() -> None:
    bars, louder = columns(), columns()
    louder["volume"][100:] *= 50.0
    for name, series in PIPELINE.compute(louder).items():
        np.testing.assert_array_equal(series[:100], PIPELINE.compute(bars)[name][:100])
    whole_sample = [(of["volume"] / of["volume"].mean())[90] for of in (bars, louder)]
    assert whole_sample[0] != whole_sample[1]  # what the broken variant would let through


def test_warmup_is_exact() -> None:
    bars, changed = columns(), columns()
    at = NUM_BARS - 1
    oldest = at - PIPELINE.warmup_bars + 1
    changed["volume"][oldest] *= 3.0
    before, after = PIPELINE.compute(bars), PIPELINE.compute(changed)
    assert {name for name in before if before[name][at] != after[name][at]} == {
        *("volume_level_5_63", "volume_z_63", "dollar_volume_ratio_63")
    }
    cut = {name: series[oldest:].copy() for name, series in bars.items()}
    assert last(cut) == {name: float(series[at]) for name, series in before.items()}


def test_closes_alone_feed_what_is_made_of_closes() -> None:
    names = [feature.name for feature in PIPELINE.applicable(frozenset({"close"}))]
    assert names == ["close_return", "close_return_z_20", "close_place_20"]
    assert sorted(PIPELINE.compute({"close": columns()["close"]})) == sorted(names)


@pytest.mark.skipif(not STOCKS.exists(), reason=f"no real bars in {STOCKS}")
def test_real_bars_have_all_features_in_their_ranges() -> None:
    bars = read_market_directory(STOCKS, now=datetime(2024, 1, 1, tzinfo=UTC)).bars("1d")
    few = bars[bars["entity_key"].isin(sorted(bars["entity_key"].unique())[:10])]
    features = build_features(
        PIPELINE, few, producer="test", producer_version="abc", run_id="r", written_at=datetime(2024, 1, 1, tzinfo=UTC)
    )
    assert features[[feature.name for feature in PIPELINE.features]].notna().to_numpy().mean() > 0.999
    for name, low, high in (("close_place_20", 0, 1), ("close_location", -1, 1), ("body_share", -1, 1)):
        assert features[name].between(low - 1e-5, high + 1e-5).all()
    assert features["volume_ratio_20"].median() == pytest.approx(math.log(2), abs=0.1)
