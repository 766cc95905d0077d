"""Ten features of every trade, from its own window of ten trades: one at a time, or a whole series by the same steps.

``TICK_FEATURES`` names the columns. At trade i, with prices p, sizes v and signs s (+1 the buyer, -1 the seller started
the trade, 0 untold), the window being trades i-9 .. i:

====================== =================================================================================================
return_1, _5, _10      ln(p[i] / p[i-k]); NaN where either price is not positive
vwap_distance          p[i] / VWAP - 1, VWAP = sum(p v) / sum(v) of the window; 0 exactly where all prices are equal
realised_vol           sqrt of the sum of the window's ten squared one-trade log returns, not annualised
flow_imbalance         sum(s v) / sum(v) of the window, -1 to 1
trade_sign             s[i]: as given (Lee and Ready's where there are quotes), else by the tick rule
seconds_since_trade    time[i] - time[i-1] in seconds; 0 in the same microsecond, negative where time goes backwards
high_low_spread        (highest - lowest p) / their midpoint, of the window: a share of the price
volume_acceleration    (mean of the window's last five v - mean of its first five) / mean of all ten, -2 to 2
====================== =================================================================================================

The first ten rows are NaN throughout: a row takes eleven trades, since the window's first return starts before it.
Without volume in the window (all sizes zero) ``vwap_distance``, ``flow_imbalance`` and ``volume_acceleration`` are NaN;
a trade of size zero otherwise counts with its price and return. A NaN price or size fills the windows that hold it.
The unit of size cancels out, the currency too.

Exactness. Sums run over the window afresh, always in one order, and prices less its newest one. Running sums would
be rounded by everything that ever passed through them: at prices of a million the digits that a window needs are gone.
So a row is a function, bit for bit, of exactly its last eleven trades and their signs (the tick rule's sign looks back
to the last change of price), and ten million trades later nothing has drifted.

Of one instrument, in time order; a row uses trades up to its own inclusive. A sign by quotes is ``signing.lee_ready``
for a series; for one trade ``signing.quote_sign(price, mid, nan)``, whose NaN leaves it to the tick rule here.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numpy.typing import NDArray

from feature_repo.kernels.signing import tick_sign

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Array suffixes: T trades, F features, S series of the state, C places of its buffers.

TICK_FEATURES: Final = (
    "return_1",
    "return_5",
    "return_10",
    "vwap_distance",
    "realised_vol",
    "flow_imbalance",
    "trade_sign",
    "seconds_since_trade",
    "high_low_spread",
    "volume_acceleration",
)
TICK_WINDOW: Final = 10
_HALF: Final = TICK_WINDOW // 2
_SMALL: Final = 2.5e-5  # of z squared, where the next term of the series is below 1e-19 of the first

# The state: four buffers of the last trades, each read as one stretch, and a row of single numbers: where the buffers
# stop, and of the last trade its time, its sign by the tick rule and the sign it has.
_PRICE, _SIZE, _SIGNED_SIZE, _SQUARE, _MEMORY = range(5)
_STOP, _TIME, _TICK_SIGN, _SIGN = range(4)
_CAPACITY: Final = 64


def new_tick_state() -> FloatArray:
    """The state before the first trade: (5, 64) plain numbers, which can be kept and resumed as bytes."""
    return np.zeros((_MEMORY + 1, _CAPACITY))


@register_jitable
def _log_ratio(numerator: float, denominator: float) -> float:
    """ln(numerator / denominator) with all its digits, NaN where either is not positive.

    2 artanh(z) for moves below 1%: a quotient close to one would round the move away before its logarithm is taken.
    """
    if not (numerator > 0.0 and denominator > 0.0):
        return np.nan
    z = (numerator - denominator) / (numerator + denominator)
    square = z * z
    if square < _SMALL:
        return 2.0 * z * (1.0 + square * (1.0 / 3.0 + square * (1.0 / 5.0 + square * (1.0 / 7.0))))
    return math.log(numerator / denominator)


@register_jitable
def _take_in(state_SC: FloatArray, time: int, price: float, size: float, sign: float) -> tuple[int, float, float]:
    """Append the trade; where the buffers stop now, the return since the trade before and the seconds since it."""
    stop = int(state_SC[_MEMORY, _STOP])
    if stop == _CAPACITY:  # the last ten go to the front: once in 54 trades
        for series in range(_MEMORY):
            for at in range(TICK_WINDOW):
                state_SC[series, at] = state_SC[series, _CAPACITY - TICK_WINDOW + at]
        stop = TICK_WINDOW
    change, seconds = np.nan, np.nan
    if stop > 0:
        before = state_SC[_PRICE, stop - 1]
        change = _log_ratio(price, before)
        seconds = (time - state_SC[_MEMORY, _TIME]) / 1e6
        state_SC[_MEMORY, _TICK_SIGN] = tick_sign(price, before, state_SC[_MEMORY, _TICK_SIGN])
    known_sign = sign if sign == sign else state_SC[_MEMORY, _TICK_SIGN]
    state_SC[_PRICE, stop], state_SC[_SIZE, stop] = price, size
    state_SC[_SIGNED_SIZE, stop], state_SC[_SQUARE, stop] = known_sign * size, change * change
    state_SC[_MEMORY, _STOP], state_SC[_MEMORY, _TIME], state_SC[_MEMORY, _SIGN] = stop + 1, time, known_sign
    return stop + 1, change, seconds


@register_jitable
def _advance(
    state_SC: FloatArray, time: int, price: float, size: float, sign: float, out_TF: FloatArray, i: int
) -> None:
    """Take in one trade and fill in row ``i``."""
    stop, change, seconds = _take_in(state_SC, time, price, size, sign)
    if stop <= TICK_WINDOW:
        for feature in range(out_TF.shape[1]):
            out_TF[i, feature] = np.nan
        return
    start = stop - TICK_WINDOW
    off, squares, high, low = 0.0, 0.0, price, price
    for at in range(start, stop):
        other = state_SC[_PRICE, at]
        off += (other - price) * state_SC[_SIZE, at]
        squares += state_SC[_SQUARE, at]
        if other > high or other != other:
            high = other
        if other < low or other != other:
            low = other
    early, late, early_signed, late_signed = 0.0, 0.0, 0.0, 0.0  # added alike, so that no imbalance exceeds one
    for at in range(start, start + _HALF):
        early += state_SC[_SIZE, at]
        late += state_SC[_SIZE, at + _HALF]
        early_signed += state_SC[_SIGNED_SIZE, at]
        late_signed += state_SC[_SIGNED_SIZE, at + _HALF]
    volume = early + late
    turnover = price * volume + off
    out_TF[i, 0] = change
    out_TF[i, 1] = _log_ratio(price, state_SC[_PRICE, stop - 6])
    out_TF[i, 2] = _log_ratio(price, state_SC[_PRICE, stop - 11])
    out_TF[i, 3] = -off / turnover if turnover > 0.0 else np.nan
    out_TF[i, 4] = math.sqrt(squares)
    out_TF[i, 5] = (early_signed + late_signed) / volume if volume > 0.0 else np.nan
    out_TF[i, 6] = state_SC[_MEMORY, _SIGN]
    out_TF[i, 7] = seconds
    out_TF[i, 8] = 2.0 * (high - low) / (high + low) if high + low > 0.0 else np.nan
    out_TF[i, 9] = 2.0 * (late - early) / volume if volume > 0.0 else np.nan


def fill_tick_features_python(
    state_SC: FloatArray, time: IntArray, price: FloatArray, size: FloatArray, sign: FloatArray, out_TF: FloatArray
) -> None:
    """Take in trades one after the other and fill in a row of ``out_TF`` each."""
    for i in range(len(price)):
        _advance(state_SC, time[i], price[i], size[i], sign[i], out_TF, i)


def update_tick_python(state_SC: FloatArray, time: int, price: float, size: float, sign: float = np.nan) -> FloatArray:
    """The features of the next trade: (10,), bit for bit its row in ``tick_features``. The state moves on.

    ``time`` in microseconds; ``sign`` +1, -1 or 0, NaN where the tick rule is to tell.
    """
    out_TF = np.empty((1, len(TICK_FEATURES)))
    _advance(state_SC, time, price, size, sign, out_TF, 0)
    return out_TF[0]


# No division above has a zero below it, so numba need not look for one: a fifth of the time.
fill_tick_features = njit(cache=True, nogil=True, error_model="numpy")(fill_tick_features_python)
update_tick = njit(cache=True, nogil=True, error_model="numpy")(update_tick_python)


def tick_features(time: IntArray, price: FloatArray, size: FloatArray, sign: FloatArray) -> FloatArray:
    """The features of every trade: (T, 10), columns as in ``TICK_FEATURES``.

    ``time`` in microseconds; ``sign`` +1, -1 or 0, NaN where the tick rule is to tell. All are (T,), in time order.
    """
    out_TF = np.empty((len(price), len(TICK_FEATURES)))  # numpy's large arrays come in large pages, numba's do not
    fill_tick_features(new_tick_state(), time, price, size, sign, out_TF)
    return out_TF
