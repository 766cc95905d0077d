"""Order flow from bars, from trades and from quotes: by hand, against least squares, and in two times."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from feature_repo.kernels.order_flow import vpin
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import CATALOGUE
from feature_repo.pipelines.order_flow import PIPELINE

NUM_BARS = 160
WRITTEN_AT = datetime(2024, 1, 1, tzinfo=UTC)
ORIGIN = pd.Timestamp("2023-01-01", tz="UTC")
OF_BARS = ("close", "volume", "high", "low")
OF_TRADES = ("buy_volume", "sell_volume", "num_trades", "vpin")


def columns(num_bars: int = NUM_BARS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    close = 50.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, num_bars)))
    volume = rng.integers(1, 1000, num_bars).astype(float)
    bought = volume * rng.random(num_bars)
    return {
        "close": close,
        "volume": volume,
        "high": close * np.exp(rng.uniform(0.0, 0.02, num_bars)),
        "low": close * np.exp(-rng.uniform(0.0, 0.02, num_bars)),
        "buy_volume": bought,
        "sell_volume": volume - bought,
        "num_trades": rng.integers(1, 50, num_bars).astype(float),
        "vpin": rng.random(num_bars),
        "ofi": rng.normal(0.0, 100.0, num_bars),
        "depth": rng.uniform(10.0, 50.0, num_bars),
        "quoted_spread": rng.uniform(1e-4, 3e-4, num_bars),
        "depth_imbalance": rng.uniform(-1.0, 1.0, num_bars),
    }


def only(*names: str) -> dict[str, np.ndarray]:
    return {name: series for name, series in columns().items() if name in names}


def last(bars: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(series[-1]) for name, series in PIPELINE.compute(bars).items()}


def bulk_shares(close: np.ndarray) -> np.ndarray:
    """Bought share of each bar by the definition; NaN for the first twenty."""
    returns = pd.Series(np.log(close)).diff()
    z = returns / returns.rolling(20).std()
    return z.map(lambda value: NormalDist().cdf(value) if value == value else np.nan).to_numpy()


def test_it_is_in_the_catalogue_and_applies_to_what_a_market_has() -> None:
    assert CATALOGUE["order_flow"] is PIPELINE
    assert len(PIPELINE.compute(columns())) == len(PIPELINE.features)
    closes = {feature.name for feature in PIPELINE.applicable(frozenset({"close"}))}
    assert closes == {"flow_imbalance", "flow_persistence_42", "roll_spread_21"}
    assert {feature.name for feature in PIPELINE.applicable(frozenset({"ofi", "depth"}))} == {
        *("ofi_1", "ofi_5", "ofi_21", "depth_ratio_20")
    }


def test_bars_alone_are_classified_in_bulk() -> None:
    bars = only("close", "volume")
    signed = 2.0 * bulk_shares(bars["close"]) - 1.0
    got, volume = last(bars), bars["volume"]
    assert got["flow_imbalance"] == pytest.approx(signed[-1], rel=1e-9)
    for window in (5, 21, 63):
        want = (signed * volume)[-window:].sum() / volume[-window:].sum()
        assert got[f"flow_imbalance_{window}"] == pytest.approx(want, rel=1e-9)
    want = np.corrcoef(signed[-42:], signed[-43:-1])[0, 1]
    assert got["flow_persistence_42"] == pytest.approx(want, rel=1e-9)


def test_trades_replace_the_bulk_where_the_bar_has_them() -> None:
    bars = only("close", "volume", "buy_volume", "sell_volume")
    untold = np.arange(NUM_BARS) % 3 == 0
    for name in ("buy_volume", "sell_volume"):
        bars[name] = np.where(untold, np.nan, bars[name])
    share = np.where(untold, bulk_shares(bars["close"]), bars["buy_volume"] / bars["volume"])
    got = PIPELINE.compute(bars)["flow_imbalance"]
    np.testing.assert_allclose(got[82:], 2.0 * share[82:] - 1.0, rtol=1e-9)
    signed, volume = (2.0 * share - 1.0)[-21:], bars["volume"][-21:]
    assert last(bars)["flow_imbalance_21"] == pytest.approx((signed * volume).sum() / volume.sum(), rel=1e-9)
    assert last(bars)["flow_imbalance_21"] != last(only("close", "volume"))["flow_imbalance_21"]


def test_vpin_is_of_the_windows_own_buckets() -> None:
    bars = columns()
    for window in (21, 63):
        buy, sell = (bars[name][-window:].copy() for name in ("buy_volume", "sell_volume"))
        assert last(bars)[f"vpin_{window}"] == pytest.approx(vpin(buy, sell, window // 3), rel=1e-9)


@pytest.mark.parametrize("window", [21, 63])
def test_kyle_lambda_is_the_least_squares_slope(window: int) -> None:
    bars = columns()
    returns = np.diff(np.log(bars["close"]))[-window:]
    signed = (bars["buy_volume"] - bars["sell_volume"])[-window:] / bars["volume"][-window:].mean()
    slope = np.linalg.lstsq(np.column_stack([np.ones(window), signed]), returns, rcond=None)[0][1]
    assert last(bars)[f"kyle_lambda_{window}"] == pytest.approx(slope, rel=1e-9)


def test_kyle_lambda_finds_a_planted_impact() -> None:
    rng = np.random.default_rng(4)
    bars = columns()
    imbalance = (bars["buy_volume"] - bars["sell_volume"]) / bars["volume"]
    returns = 0.01 * imbalance * bars["volume"] / bars["volume"].mean() + rng.normal(0.0, 1e-4, NUM_BARS)
    bars["close"] = 50.0 * np.exp(np.cumsum(returns))
    mean = bars["volume"][-63:].mean() / bars["volume"].mean()
    assert last(bars)["kyle_lambda_63"] == pytest.approx(0.01 * mean, rel=0.01)


def test_liquidity_measures_by_their_definitions() -> None:
    bars = columns()
    bars["volume"][-4] = 0.0
    returns, value = np.append(np.nan, np.diff(np.log(bars["close"]))), bars["close"] * bars["volume"]
    with np.errstate(divide="ignore"):
        illiquidity = np.abs(returns) / value
    means = {window: illiquidity[-window:][value[-window:] > 0].mean() for window in (21, 63)}
    got = last(bars)
    assert got["amihud_21"] == pytest.approx(math.log(means[21] * value[-21:].mean()), rel=1e-9)
    assert got["amihud_ratio_21_63"] == pytest.approx(math.log(means[21] / means[63]), rel=1e-9)
    assert 0.0 <= got["roll_spread_21"] < 0.1
    assert 0.0 <= got["corwin_schultz_21"] < 0.1


def test_features_of_trades_and_quotes_by_hand() -> None:
    bars, got = columns(), last(columns())
    num_trades, volume, depth = bars["num_trades"], bars["volume"], bars["depth"]
    want = {
        "trade_vpin_1": bars["vpin"][-1],
        "trade_vpin_21": bars["vpin"][-21:].mean(),
        "trade_intensity_20": math.log1p(num_trades[-1] / num_trades[-20:].mean()),
        "trade_size_ratio_20": math.log1p(volume[-1] / num_trades[-1] / (volume[-20:].sum() / num_trades[-20:].sum())),
        "ofi_1": bars["ofi"][-1] / depth[-1],
        "ofi_5": bars["ofi"][-5:].sum() / depth[-5:].mean(),
        "ofi_21": bars["ofi"][-21:].sum() / depth[-21:].mean(),
        "quoted_spread": bars["quoted_spread"][-1],
        "quoted_spread_ratio_20": bars["quoted_spread"][-1] / bars["quoted_spread"][-20:].mean(),
        "depth_imbalance": bars["depth_imbalance"][-1],
        "depth_ratio_20": math.log(depth[-1] / depth[-20:].mean()),
    }
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-9)


def test_no_feature_has_a_currency_or_a_unit_of_size() -> None:
    sizes = ("volume", "buy_volume", "sell_volume", "ofi", "depth")
    scaled = {
        name: series * (4096.0 if name in ("close", "high", "low") else 1e-3 if name in sizes else 1.0)
        for name, series in columns().items()
    }
    for name, series in PIPELINE.compute(scaled).items():
        np.testing.assert_allclose(series, PIPELINE.compute(columns())[name], rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("names", [OF_BARS, (*OF_BARS, *OF_TRADES), tuple(columns())])
def test_value_is_a_function_of_exactly_the_last_warmup_bars(names: tuple[str, ...]) -> None:
    full = PIPELINE.compute(only(*names))
    for stop in (PIPELINE.warmup_bars, 120, NUM_BARS):
        part = slice(stop - PIPELINE.warmup_bars, stop)
        cut = PIPELINE.compute({name: series[part].copy() for name, series in only(*names).items()})
        assert {name: series[-1] for name, series in cut.items()} == {
            name: series[stop - 1] for name, series in full.items()
        }
    changed = only(*names)
    changed["close"][NUM_BARS - PIPELINE.warmup_bars] *= 1.5
    moved = {name for name, series in PIPELINE.compute(changed).items() if series[-1] != full[name][-1]}
    assert moved == ({"flow_imbalance_63", "vpin_63", "kyle_lambda_63"} if names == OF_BARS else set())


def test_deleting_the_future_changes_nothing() -> None:
    full = PIPELINE.compute(columns())
    past = PIPELINE.compute({name: series[:120].copy() for name, series in columns().items()})
    for name, series in past.items():
        np.testing.assert_array_equal(series, full[name][:120])


def in_two_times(rng: np.random.Generator) -> pd.DataFrame:
    """Bars with their columns, as ``attach`` gives them: half are restated when late trades arrive."""
    num_bars = 110
    bars = pd.DataFrame(columns(num_bars))
    bars.loc[rng.random(num_bars) < 0.02, list(OF_TRADES)] = np.nan
    time = ORIGIN + pd.to_timedelta(np.arange(num_bars), unit="h")
    bars = pd.concat([pd.DataFrame({"entity_key": "A", "event_time": time, "ingest_time": time}), bars], axis=1)
    again = bars.sample(frac=0.5, random_state=1)
    again["ingest_time"] += pd.to_timedelta(rng.integers(1, 9, len(again)), unit="h")
    again["buy_volume"] *= 1.25
    return pd.concat([bars, again], ignore_index=True).astype(
        dict.fromkeys(["event_time", "ingest_time"], "M8[us, UTC]")
    )


def known_at(rows: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    rows = rows[(rows["event_time"] <= moment) & (rows["ingest_time"] <= moment)]
    return rows.sort_values(["event_time", "ingest_time"], kind="stable").drop_duplicates("event_time", keep="last")


def disagrees(features: pd.DataFrame, bars: pd.DataFrame) -> bool:
    names = [feature.name for feature in PIPELINE.features]
    for hours in (83, 95.5, 109, 130):
        moment = ORIGIN + pd.Timedelta(hours=hours)
        known = known_at(bars, moment)
        want = PIPELINE.compute({name: known[name].to_numpy() for name in columns(1)})
        direct = np.column_stack([want[name] for name in names])[PIPELINE.warmup_bars - 1 :]
        if not np.array_equal(known_at(features, moment)[names].to_numpy(), direct, equal_nan=True):
            return True
    return False


def test_late_trades_restate_the_features_and_nothing_before_them() -> None:
    bars = in_two_times(np.random.default_rng(2))
    final = bars.sort_values("ingest_time", kind="stable").drop_duplicates("event_time", keep="last")
    built = [
        build_features(PIPELINE, rows, producer="test", producer_version="abc", run_id="r", written_at=WRITTEN_AT)
        for rows in (bars, final.assign(ingest_time=final["event_time"]))
    ]
    assert not disagrees(built[0], bars)
    assert disagrees(built[1], bars)  # the broken variant: late trades used as if they had been there
