"""Golden values: the classic indicators beside TA-Lib's.

Windowed indicators agree to the last digits. Recursive ones are cut to a finite window here (a value is a function of
exactly its last bars), there they go back to the first bar ever: they agree up to the weight that was cut off.
"""

from __future__ import annotations

import numpy as np
import pytest
import talib

from feature_repo.pipelines.catalog import PIPELINES

NUM_BARS = 1500
SETTLED = slice(700, None)  # TA-Lib's start has faded by then


def bars(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    close = 50.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, NUM_BARS)))
    open_ = close * np.exp(rng.normal(0.0, 0.01, NUM_BARS))
    return {
        "open": open_,
        "high": np.maximum(open_, close) * np.exp(rng.uniform(0.0, 0.01, NUM_BARS)),
        "low": np.minimum(open_, close) * np.exp(-rng.uniform(0.0, 0.01, NUM_BARS)),
        "close": close,
        "volume": rng.integers(1, 1000, NUM_BARS).astype(float),
    }


BARS = bars()
HIGH, LOW, CLOSE, VOLUME = (BARS[name] for name in ("high", "low", "close", "volume"))


def ours(name: str, pipeline: str = "technical") -> np.ndarray:
    return PIPELINES[pipeline].compute(BARS)[name]


def bollinger() -> tuple[np.ndarray, np.ndarray]:
    upper, middle, lower = talib.BBANDS(CLOSE, timeperiod=20, nbdevup=2, nbdevdn=2)
    return (CLOSE - lower) / (upper - lower), (upper - lower) / middle


def stochastic() -> tuple[np.ndarray, np.ndarray]:
    return talib.STOCH(HIGH, LOW, CLOSE, fastk_period=14, slowk_period=3, slowd_period=3)


def obv_change() -> np.ndarray:
    obv = talib.OBV(CLOSE, VOLUME)
    change = np.full(NUM_BARS, np.nan)
    change[20:] = obv[20:] - obv[:-20]
    return change / talib.SUM(VOLUME, timeperiod=20)


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("bollinger_b_20", bollinger()[0]),
        ("bollinger_width_20", bollinger()[1]),
        ("stoch_k_14", stochastic()[0]),
        ("stoch_d_14", stochastic()[1]),
        ("williams_r_14", talib.WILLR(HIGH, LOW, CLOSE, timeperiod=14)),
        ("cci_20", talib.CCI(HIGH, LOW, CLOSE, timeperiod=20)),
        ("mfi_14", talib.MFI(HIGH, LOW, CLOSE, VOLUME, timeperiod=14)),
        ("obv_change_20", obv_change()),
    ],
)
def test_windowed_indicators_are_talibs(name: str, golden: np.ndarray) -> None:
    np.testing.assert_allclose(ours(name)[SETTLED], golden[SETTLED], rtol=1e-7, atol=1e-7)


def macd() -> tuple[np.ndarray, ...]:
    return tuple(line / CLOSE for line in talib.MACD(CLOSE, 12, 26, 9))


@pytest.mark.parametrize(
    ("name", "golden", "share"),
    [
        ("rsi_14", talib.RSI(CLOSE, timeperiod=14), 0.03),
        ("macd", macd()[0], 0.03),
        ("macd_signal", macd()[1], 0.03),
        ("macd_hist", macd()[2], 0.03),
        ("trix_9", talib.TRIX(CLOSE, timeperiod=9) / 100.0, 0.03),
        ("plus_di_14", talib.PLUS_DI(HIGH, LOW, CLOSE, timeperiod=14), 0.03),
        ("minus_di_14", talib.MINUS_DI(HIGH, LOW, CLOSE, timeperiod=14), 0.03),
        ("adx_14", talib.ADX(HIGH, LOW, CLOSE, timeperiod=14), 0.06),
    ],
)
def test_recursive_indicators_are_talibs_up_to_what_was_cut_off(name: str, golden: np.ndarray, share: float) -> None:
    """Off by at most a share of the indicator's own spread, on average."""
    error = np.abs(ours(name)[SETTLED] - golden[SETTLED]).mean()
    assert error < share * golden[SETTLED].std()


def test_average_true_range_is_talibs_up_to_what_was_cut_off() -> None:
    golden = talib.NATR(HIGH, LOW, CLOSE, timeperiod=14)[SETTLED] / 100.0
    np.testing.assert_allclose(ours("natr_14", "volatility")[SETTLED], golden, rtol=0.02)
