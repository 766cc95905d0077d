"""Who started a trade: +1 the buyer, -1 the seller, 0 where nothing tells.

All series are of one instrument and in time order; the sign of trade i uses trades up to i and quotes before it.
The two scalar rules are the single home of the comparison: the kernels here compile them, and so does what signs trades
one at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@register_jitable
def tick_sign(price: float, price_before: float, sign_before: float) -> float:
    """The tick rule: the direction of the last change of price. A NaN price keeps the sign before."""
    if price > price_before:
        return 1.0
    if price < price_before:
        return -1.0
    return sign_before


@register_jitable
def quote_sign(price: float, mid: float, sign_by_tick: float) -> float:
    """The quote rule: above the midpoint a buy, below it a sell; at it, or without one (NaN), the tick rule's sign."""
    if price > mid:
        return 1.0
    if price < mid:
        return -1.0
    return sign_by_tick


def tick_rule_python(price: FloatArray) -> FloatArray:
    """The tick rule's sign of each trade, 0 until the price first changes; ``price`` (num_trades,)."""
    out = np.zeros(len(price))
    sign = 0.0
    for i in range(1, len(price)):
        sign = tick_sign(price[i], price[i - 1], sign)
        out[i] = sign
    return out


def lee_ready_python(price: FloatArray, mid: FloatArray) -> FloatArray:
    """Lee and Ready's (1991) sign of each trade: the quote rule, and the tick rule where that is silent.

    ``price``, ``mid`` (num_trades,): ``mid`` as ``midpoint_in_force`` gives it, NaN where there is none. The tick rule
    looks at all trades before, those signed by quotes too.
    """
    out = np.zeros(len(price))
    sign = 0.0
    for i in range(len(price)):
        if i > 0:
            sign = tick_sign(price[i], price[i - 1], sign)
        out[i] = quote_sign(price[i], mid[i], sign)
    return out


def midpoint_in_force_python(
    trade_time: IntArray, quote_time: IntArray, bid: FloatArray, ask: FloatArray
) -> FloatArray:
    """Midpoint of the last quote strictly before each trade: (num_trades,).

    A quote of the trade's own time may already show what the trade did to the book (Holden & Jacobsen 2014). NaN where
    no quote is before, or where the last one lacks a side or is crossed.
    """
    out = np.full(len(trade_time), np.nan)
    last = -1
    for i in range(len(trade_time)):
        while last + 1 < len(quote_time) and quote_time[last + 1] < trade_time[i]:
            last += 1
        if last >= 0 and bid[last] <= ask[last]:
            out[i] = 0.5 * (bid[last] + ask[last])
    return out


tick_rule = njit(cache=True, nogil=True)(tick_rule_python)
lee_ready = njit(cache=True, nogil=True)(lee_ready_python)
midpoint_in_force = njit(cache=True, nogil=True)(midpoint_in_force_python)
