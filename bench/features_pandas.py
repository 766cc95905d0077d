"""The features of ``bench.features`` that pandas expresses in a line or two, by ``rolling``.

Each function takes bars as last known and gives features under the names that the pipelines have. It does so for one
asset's frame, whose columns are series, and as well for frames with a row a time and a column an asset. The first is
the form for any market; ``groupby(...).rolling`` took twice as long on 100 assets. The second is quicker and has no
place for a missing bar. What several features share is computed once. These are the windows of one history: no
restatement, no knowledge time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from scipy.special import ndtr

Features: TypeAlias = dict[str, Any]
KEYS: Final = ("entity_key", "event_time")


def log_return(x: Any, lag: int = 1) -> Any:
    return np.log(x / x.shift(lag))


def z_score(x: Any, window: int) -> Any:
    rolling = x.rolling(window)
    return (x - rolling.mean()) / rolling.std()


def place(x: Any, low: Any, high: Any) -> Any:
    return (x - low) / (high - low)


def ohlcv(b: Any) -> Features:
    close, volume, value, spread = b["close"], b["volume"], b["close"] * b["volume"], np.log(b["high"] / b["low"])
    returns, last_20 = log_return(close), close.rolling(20)
    return {
        "close_return": returns,
        "close_return_z_20": returns / returns.rolling(20).std(),
        "close_place_20": place(close, last_20.min(), last_20.max()),
        "body_share": (close - b["open"]) / (b["high"] - b["low"]),
        "range_ratio_20": spread / spread.rolling(20).mean(),
        "volume_ratio_20": np.log1p(volume / volume.rolling(20).mean()),
        "volume_level_5_63": np.log1p(volume.rolling(5).mean() / volume.rolling(63).mean()),
        "volume_z_20": z_score(volume, 20),
        "volume_z_63": z_score(volume, 63),
        "dollar_volume_ratio_63": np.log1p(value / value.rolling(63).mean()),
        "return_on_volume_20": returns * volume / volume.rolling(20).mean(),
    }


def technical(b: Any) -> Features:
    close, high, low, volume = b["close"], b["high"], b["low"], b["volume"]
    change, middle, band = close.diff(), close.rolling(20).mean(), 2.0 * close.rolling(20).std(ddof=0)
    fast_k = 100.0 * place(close, low.rolling(14).min(), high.rolling(14).max())
    price = (high + low + close) / 3.0
    flow = np.sign(price.diff()) * price * volume
    inflow, outflow = flow.clip(lower=0.0).rolling(14).sum(), (-flow).clip(lower=0.0).rolling(14).sum()
    return {
        "cmo_14": 100.0 * change.rolling(14).sum() / change.abs().rolling(14).sum(),
        "bollinger_b_20": place(close, middle - band, middle + band),
        "bollinger_width_20": 2.0 * band / middle,
        "efficiency_ratio_10": close.diff(10).abs() / change.abs().rolling(10).sum(),
        "stoch_k_14": fast_k.rolling(3).mean(),
        "stoch_d_14": fast_k.rolling(3).mean().rolling(3).mean(),
        "williams_r_14": fast_k - 100.0,
        "mfi_14": 100.0 * inflow / (inflow + outflow),
        "obv_change_20": (np.sign(change) * volume).rolling(20).sum() / volume.rolling(20).sum(),
    }


def momentum(b: Any) -> Features:
    close, volume = b["close"], b["volume"]
    returns, ten = log_return(close), log_return(close, 10)
    return {
        **{f"return_{lag}": log_return(close, lag) for lag in (1, 5, 21, 63)},
        "acceleration_10": ten - ten.shift(10),
        "distance_ma_20": np.log(close / close.rolling(20).mean()),
        "distance_ma_50": np.log(close / close.rolling(50).mean()),
        "distance_high_63": np.log(close / close.rolling(63).max()),
        "distance_low_63": np.log(close / close.rolling(63).min()),
        "return_to_risk_63": returns.rolling(63).mean() / returns.rolling(63).std(),
        "volume_weighted_return_21": (returns * volume).rolling(21).sum() / volume.rolling(21).sum(),
        "distance_vwap_20": np.log(close * volume.rolling(20).sum() / (close * volume).rolling(20).sum()),
    }


def volatility(b: Any) -> Features:
    open_, high, low, close = b["open"], b["high"], b["low"], b["close"]
    returns, spread, body = log_return(close), np.log(high / low), np.log(close / open_)
    drift_free = np.log(high / close) * np.log(high / open_) + np.log(low / close) * np.log(low / open_)
    overnight, k = np.log(open_ / close.shift(1)), 0.34 / (1.34 + 22.0 / 20.0)
    vol = {window: returns.rolling(window).std() for window in (5, 10, 21, 63)}
    yang_zhang = overnight.rolling(21).var() + k * body.rolling(21).var() + (1.0 - k) * drift_free.rolling(21).mean()
    return {
        **{f"vol_{window}": values for window, values in vol.items()},
        "vol_ratio_5_21": vol[5] / vol[21],
        "vol_of_vol_42": vol[10].rolling(42).std() / vol[10].rolling(42).mean(),
        "skew_63": returns.rolling(63).skew(),
        "kurtosis_63": returns.rolling(63).kurt(),
        "parkinson_21": np.sqrt((spread**2 / (4.0 * np.log(2.0))).rolling(21).mean()),
        "garman_klass_21": np.sqrt((0.5 * spread**2 - (2.0 * np.log(2.0) - 1.0) * body**2).rolling(21).mean()),
        "rogers_satchell_21": np.sqrt(drift_free.rolling(21).mean()),
        "yang_zhang_21": np.sqrt(yang_zhang),
        "realised_vol_5": np.sqrt(b["realised_variance"].rolling(5).mean()),
        "realised_vol_22": np.sqrt(b["realised_variance"].rolling(22).mean()),
    }


def order_flow(b: Any) -> Features:
    close, volume, value = b["close"], b["volume"], b["close"] * b["volume"]
    returns = log_return(close)
    bulk = ndtr(returns / returns.rolling(20).std())
    imbalance = 2.0 * (b["buy_volume"] / (b["buy_volume"] + b["sell_volume"])).fillna(bulk) - 1.0
    signed, illiquidity = imbalance * volume, returns.abs() / value
    bounce = returns.rolling(20).cov(returns.shift(1), ddof=0, pairwise=False)
    return {
        "flow_imbalance": imbalance,
        **{f"flow_imbalance_{w}": signed.rolling(w).sum() / volume.rolling(w).sum() for w in (5, 21)},
        "flow_persistence_42": imbalance.rolling(42).corr(imbalance.shift(1), pairwise=False),
        "kyle_lambda_21": returns.rolling(21).cov(signed, pairwise=False)
        / signed.rolling(21).var()
        * volume.rolling(21).mean(),
        "amihud_21": np.log(illiquidity.rolling(21).mean() * value.rolling(21).mean()),
        "amihud_ratio_21_63": np.log(illiquidity.rolling(21).mean() / illiquidity.rolling(63).mean()),
        "roll_spread_21": 2.0 * np.sqrt((-bounce).clip(lower=0.0)),
    }


def cross_asset(b: Any) -> Features:
    own, others = log_return(b["close"]), b["others_return"]
    beta = {
        window: own.rolling(window).cov(others, pairwise=False) / others.rolling(window).var() for window in (21, 63)
    }
    return {
        **{f"beta_{window}": values for window, values in beta.items()},
        **{f"correlation_{window}": own.rolling(window).corr(others, pairwise=False) for window in (21, 63)},
        "residual_return_1": own - beta[63] * others,
        "relative_strength_63": (own - others).rolling(63).sum(),
        "lag_to_market_63": own.rolling(63).corr(others.shift(1), pairwise=False),
        "market_vol_21": b["market_return"].rolling(21).std(),
        "dispersion_21": b["market_dispersion"].rolling(21).mean(),
        "breadth_5": b["market_breadth"].rolling(5).mean(),
        "correlation_change_21": b["market_correlation"].diff(21),
    }


def sentiment(b: Any) -> Features:
    found: Features = {}
    for whose in ("asset", "market"):
        level, heard = b[f"{whose}_sentiment"], 1.0 + b[f"{whose}_sentiment_count"]
        last_63 = level.rolling(63)
        found |= {
            **{f"{whose}_sentiment_change_{lag}": level.diff(lag) for lag in (1, 5, 21)},
            f"{whose}_sentiment_dispersion_21": level.rolling(21).std(),
            f"{whose}_sentiment_place_63": place(level, last_63.min(), last_63.max()),
            f"{whose}_sentiment_attention_63": np.log(heard / heard.rolling(63).mean()),
        }
    difference = b["asset_sentiment"] - b["market_sentiment"]
    return found | {"sentiment_difference": difference, "sentiment_difference_change_5": difference.diff(5)}


def onchain(b: Any) -> Features:
    addresses, transactions, fees = (b[f"onchain_{name}"] for name in ("active_addresses", "transactions", "fees_usd"))
    cap, issuance = b["onchain_market_cap_usd"], b["onchain_issuance_usd"]
    return {
        **{f"active_addresses_change_{lag}": log_return(addresses, lag) for lag in (1, 7, 30)},
        "active_addresses_z_90": z_score(np.log(addresses), 90),
        "transactions_z_90": z_score(np.log(transactions), 90),
        "fees_z_90": z_score(np.log(fees), 90),
        "nvt_z_90": z_score(np.log(b["onchain_nvt"]), 90),
        "mvrv_z_90": z_score(np.log(b["onchain_mvrv"]), 90),
        "issuance_rate": issuance / cap,
        "fee_share": fees / (fees + issuance),
        "fee_per_transaction_z_90": z_score(np.log(fees / transactions), 90),
        "network_value_gap_30": log_return(cap, 30) - log_return(addresses, 30),
    }


FEATURES: Mapping[str, Callable[[Any], Features]] = {
    function.__name__: function
    for function in (ohlcv, technical, momentum, volatility, order_flow, cross_asset, sentiment, onchain)
}


def by_asset(pipeline: str, bars: pd.DataFrame) -> pd.DataFrame:
    """The pipeline's features of every asset's frame in turn, as one table."""
    parts = [own[list(KEYS)].assign(**FEATURES[pipeline](own)) for _, own in bars.groupby("entity_key", sort=False)]
    return pd.concat(parts, ignore_index=True)


def all_assets(pipeline: str, bars: pd.DataFrame) -> pd.DataFrame:
    """The same from frames with a row a time and a column an asset, which takes bars without gaps."""
    found = FEATURES[pipeline](bars.pivot(index="event_time", columns="entity_key"))
    return pd.concat(found, axis=1).stack(level="entity_key", future_stack=True).reset_index()


def ticks(time: np.ndarray, price: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The ten features of ``feature_repo.kernels.microstructure``, signed by the tick rule."""
    p, v = pd.Series(price), pd.Series(size)
    sign = np.sign(p.diff()).replace(0.0, np.nan).ffill().fillna(0.0)
    volume, late = v.rolling(10).sum(), v.rolling(5).sum()
    high, low = p.rolling(10).max(), p.rolling(10).min()
    columns = {
        **{f"return_{lag}": log_return(p, lag) for lag in (1, 5, 10)},
        "vwap_distance": p / ((p * v).rolling(10).sum() / volume) - 1.0,
        "realised_vol": np.sqrt((log_return(p) ** 2).rolling(10).sum()),
        "flow_imbalance": (sign * v).rolling(10).sum() / volume,
        "trade_sign": sign,
        "seconds_since_trade": pd.Series(time).diff() / 1e6,
        "high_low_spread": 2.0 * (high - low) / (high + low),
        "volume_acceleration": 2.0 * (2.0 * late - volume) / volume,
    }
    out = pd.DataFrame(columns).to_numpy()
    out[:10] = np.nan
    return out
