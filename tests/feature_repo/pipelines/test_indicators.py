"""Every feature against a second implementation, written from the definition for one bar at a time."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from feature_repo.pipelines.catalog import PIPELINES

BARS = 320


def market(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 50.0 * np.exp(np.cumsum(rng.normal(0.0003, 0.02, BARS)))
    open_ = np.concatenate([[50.0], close[:-1]]) * np.exp(rng.normal(0.0, 0.006, BARS))
    return pd.DataFrame(
        {
            "open": open_,
            "high": np.maximum(open_, close) * np.exp(rng.exponential(0.005, BARS)),
            "low": np.minimum(open_, close) * np.exp(-rng.exponential(0.005, BARS)),
            "close": close,
            "volume": rng.integers(1_000, 100_000, BARS).astype(float),
        }
    )


def compute(name: str, bars: pd.DataFrame) -> dict[str, np.ndarray]:
    return PIPELINES[name].compute({column: bars[column].to_numpy(float) for column in bars})


def cut_average(x: pd.Series, decay: float, terms: int) -> pd.Series:
    """Weighted by decay**age over the last ``terms`` values, by definition."""
    weights = np.array([decay**age for age in range(terms)][::-1])
    return x.rolling(terms).apply(lambda window: float(np.dot(window, weights) / weights.sum()), raw=True)


def ema(x: pd.Series, span: int) -> pd.Series:
    return cut_average(x, 1 - 2 / (span + 1), 3 * span)


def wilder(x: pd.Series) -> pd.Series:
    return cut_average(x, 13 / 14, 56)


def plain_technical(b: pd.DataFrame) -> dict[str, pd.Series]:
    change = b.close.diff()
    up, down = change.clip(lower=0).where(change.notna()), (-change).clip(lower=0).where(change.notna())
    rsi = 100 - 100 / (1 + wilder(up) / wilder(down))
    line = ema(b.close, 12) - ema(b.close, 26)
    middle, sd = b.close.rolling(20).mean(), b.close.rolling(20).std(ddof=0)
    gaps = pd.concat([b.high - b.low, (b.high - b.close.shift()).abs(), (b.low - b.close.shift()).abs()], axis=1)
    true_range = gaps.max(axis=1, skipna=False)
    rise, fall = b.high.diff(), -b.low.diff()
    plus = 100 * wilder(rise.where((rise > fall) & (rise > 0), 0.0).where(rise.notna())) / wilder(true_range)
    minus = 100 * wilder(fall.where((fall > rise) & (fall > 0), 0.0).where(fall.notna())) / wilder(true_range)
    top, bottom = b.high.rolling(14).max(), b.low.rolling(14).min()
    slow = (100 * (b.close - bottom) / (top - bottom)).rolling(3).mean()
    typical = (b.high + b.low + b.close) / 3
    deviation = typical.rolling(20).apply(lambda w: np.abs(w - w.mean()).mean(), raw=True)
    flow = typical * b.volume
    inflow = flow.where(typical.diff() > 0, 0.0).rolling(14).sum()
    outflow = flow.where(typical.diff() < 0, 0.0).rolling(14).sum()
    balance = (np.sign(change.fillna(0)) * b.volume).cumsum()
    place = ((b.close - b.low) - (b.high - b.close)) / (b.high - b.low)
    triple = ema(ema(ema(b.close, 9), 9), 9)
    return {
        "rsi_14": rsi,
        "stoch_rsi_14": 100 * (rsi - rsi.rolling(14).min()) / (rsi.rolling(14).max() - rsi.rolling(14).min()),
        "cmo_14": 100
        * (up.rolling(14).sum() - down.rolling(14).sum())
        / (up.rolling(14).sum() + down.rolling(14).sum()),
        "macd": line / b.close,
        "macd_signal": ema(line, 9) / b.close,
        "macd_hist": (line - ema(line, 9)) / b.close,
        "trix_9": triple.pct_change(),
        "bollinger_b_20": (b.close - (middle - 2 * sd)) / (4 * sd),
        "bollinger_width_20": 4 * sd / middle,
        "efficiency_ratio_10": b.close.diff(10).abs() / change.abs().rolling(10).sum(),
        "plus_di_14": plus,
        "minus_di_14": minus,
        "adx_14": wilder(100 * (plus - minus).abs() / (plus + minus)),
        "stoch_k_14": slow,
        "stoch_d_14": slow.rolling(3).mean(),
        "williams_r_14": -100 * (top - b.close) / (top - bottom),
        "cci_20": (typical - typical.rolling(20).mean()) / (0.015 * deviation),
        "mfi_14": 100 - 100 / (1 + inflow / outflow),
        "obv_change_20": (balance - balance.shift(20)) / b.volume.rolling(20).sum(),
        "cmf_20": (place * b.volume).rolling(20).sum() / b.volume.rolling(20).sum(),
    }


def slope_t(window: np.ndarray) -> float:
    time = np.arange(len(window))
    slope, intercept = np.polyfit(time, window, 1)
    residual = window - intercept - slope * time
    error = math.sqrt(residual @ residual / (len(window) - 2) / ((time - time.mean()) ** 2).sum())
    return float(slope / error)


def plain_momentum(b: pd.DataFrame) -> dict[str, pd.Series]:
    log = np.log(b.close)
    returns = log.diff()
    average_price = (b.close * b.volume).rolling(20).sum() / b.volume.rolling(20).sum()
    return {
        **{f"return_{lag}": log.diff(lag) for lag in (1, 2, 5, 10, 21, 42, 63)},
        **{f"distance_ma_{w}": np.log(b.close / b.close.rolling(w).mean()) for w in (10, 20, 50)},
        **{f"trend_t_{w}": log.rolling(w).apply(slope_t, raw=True) for w in (21, 63)},
        "momentum_126_21": log.shift(21) - log.shift(126),
        "acceleration_10": log.diff(10) - log.diff(10).shift(10),
        "distance_high_63": np.log(b.close / b.close.rolling(63).max()),
        "distance_low_63": np.log(b.close / b.close.rolling(63).min()),
        "return_to_risk_63": returns.rolling(63).mean() / returns.rolling(63).std(),
        "up_share_21": (b.close > b.close.shift()).rolling(21).mean(),
        "volume_weighted_return_21": (returns * b.volume).rolling(21).sum() / b.volume.rolling(21).sum(),
        "distance_vwap_20": np.log(b.close / average_price),
    }


def drawdown(window: np.ndarray) -> float:
    return float(np.max(1 - window / np.maximum.accumulate(window)))


def plain_volatility(b: pd.DataFrame) -> dict[str, pd.Series]:
    r = np.log(b.close).diff()
    vol = {w: r.rolling(w).std() for w in (5, 10, 21, 63)}
    spread, body = np.log(b.high / b.low), np.log(b.close / b.open)
    satchell = np.log(b.high / b.close) * np.log(b.high / b.open) + np.log(b.low / b.close) * np.log(b.low / b.open)
    gaps = pd.concat([b.high - b.low, (b.high - b.close.shift()).abs(), (b.low - b.close.shift()).abs()], axis=1)
    k = 0.34 / (1.34 + 22 / 20)
    overnight = np.log(b.open / b.close.shift()).rolling(21).var()
    return {
        **{f"vol_{w}": vol[w] for w in vol},
        "vol_ratio_5_21": vol[5] / vol[21],
        "vol_ratio_21_63": vol[21] / vol[63],
        "ewma_vol": np.sqrt(cut_average(r**2, 0.94, 100)),
        "downside_vol_21": np.sqrt((r.clip(upper=0) ** 2).rolling(21).mean()),
        "vol_of_vol_42": vol[10].rolling(42).std() / vol[10].rolling(42).mean(),
        "skew_63": r.rolling(63).skew(),
        "kurtosis_63": r.rolling(63).kurt(),
        "max_drawdown_63": b.close.rolling(63).apply(drawdown, raw=True),
        "parkinson_21": np.sqrt((spread**2).rolling(21).mean() / (4 * math.log(2))),
        "garman_klass_21": np.sqrt((0.5 * spread**2 - (2 * math.log(2) - 1) * body**2).rolling(21).mean()),
        "rogers_satchell_21": np.sqrt(satchell.rolling(21).mean()),
        "yang_zhang_21": np.sqrt(overnight + k * body.rolling(21).var() + (1 - k) * satchell.rolling(21).mean()),
        "natr_14": wilder(gaps.max(axis=1, skipna=False)) / b.close,
    }


def plain_bar(b: pd.DataFrame) -> dict[str, pd.Series]:
    returns = b.close / b.close.shift() - 1
    return {"close": b.close, "ret_1": returns, "vol_60": returns.rolling(60).std()}


PLAIN = {
    "bar": plain_bar,
    "momentum": plain_momentum,
    "technical": plain_technical,
    "volatility": plain_volatility,
}


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_features_equal_the_definition(name: str) -> None:
    bars = market()
    got, want = compute(name, bars), PLAIN[name](bars)
    assert set(got) == set(want) == {feature.name for feature in PIPELINES[name].applicable(frozenset(bars.columns))}
    first = PIPELINES[name].warmup_bars - 1
    for feature, series in want.items():
        np.testing.assert_allclose(got[feature][first:], series.to_numpy()[first:], 1e-8, 1e-11, err_msg=feature)


def test_cut_wilder_average_is_near_the_endless_recursion() -> None:
    close = market().close
    change = close.diff()
    gain = change.clip(lower=0).ewm(alpha=1 / 14, adjust=False).mean()
    loss = (-change).clip(lower=0).ewm(alpha=1 / 14, adjust=False).mean()
    endless = 100 * gain / (gain + loss)
    got = compute("technical", market())["rsi_14"]
    assert np.nanmax(np.abs(got[200:] - endless[200:])) < 1.0  # of a scale of 100


def test_rsi_of_a_market_that_only_rises_is_100_and_of_a_still_one_is_nothing() -> None:
    rising = market().assign(close=np.arange(1.0, BARS + 1.0))
    assert compute("technical", rising)["rsi_14"][-1] == 100.0
    still = market().assign(close=100.0)
    assert np.isnan(compute("technical", still)["rsi_14"]).all()


def test_vol_60_is_numpys_and_needs_61_closes() -> None:
    bars = market()
    vol = compute("bar", bars)["vol_60"]
    returns = bars.close.pct_change().to_numpy()
    assert np.isnan(vol[:60]).all()
    assert vol[60] == pytest.approx(np.std(returns[1:61], ddof=1), rel=1e-12)
