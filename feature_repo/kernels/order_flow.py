"""Order flow: who pressed the market, how one-sidedly, and what it cost to trade.

Series are float64 in time order: of bars (num_bars,), where the value at i uses bars up to i inclusive and a rolling
one is a function of exactly the last ``window`` (see ``rolling``), of trades (num_trades,) or of quotes (num_quotes,).
Returns and spreads are in logs or shares of the price. NaN in gives NaN out where nothing else is said.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def bulk_buy_share_python(change: FloatArray, spread: FloatArray) -> FloatArray:
    """Share of each bar's volume that was bought: the normal distribution function of ``change / spread``.

    Bulk volume classification (Easley, Lopez de Prado & O'Hara 2012): ``change`` is the bar's change of price,
    ``spread`` the standard deviation of such changes. Where that is zero, the limit: 1 for a rise, 0 for a fall, a half
    for no change.
    """
    out = np.full(len(change), np.nan)
    for i in range(len(change)):
        if spread[i] > 0.0:
            out[i] = 0.5 * math.erfc(-change[i] / spread[i] / math.sqrt(2.0))
        elif spread[i] == 0.0 and change[i] == change[i]:
            out[i] = 1.0 if change[i] > 0.0 else 0.0 if change[i] < 0.0 else 0.5
    return out


@register_jitable
def _toxicity(buy: FloatArray, sell: FloatArray, start: int, stop: int, num_buckets: int) -> float:
    """Of rows start .. stop-1, as ``vpin`` has it."""
    total = 0.0
    for j in range(start, stop):
        total += buy[j] + sell[j]
    if not total > 0.0:
        return np.nan
    bucket = total / num_buckets
    toxic, signed, filled, num_closed = 0.0, 0.0, 0.0, 0
    for j in range(start, stop):
        left = buy[j] + sell[j]
        if not left > 0.0:
            continue
        side = (buy[j] - sell[j]) / left
        while num_closed < num_buckets - 1 and left >= bucket - filled:
            left -= bucket - filled
            toxic += abs(signed + side * (bucket - filled))
            signed, filled, num_closed = 0.0, 0.0, num_closed + 1
        signed += side * left
        filled += left
    return (toxic + abs(signed)) / total


def vpin_python(buy: FloatArray, sell: FloatArray, num_buckets: int) -> float:
    """Volume-synchronised probability of informed trading of all the rows (Easley, Lopez de Prado & O'Hara 2012).

    The rows' volume is poured into ``num_buckets`` buckets of equal volume; a row that does not fit is split, its parts
    bought and sold in the row's own proportion. The result is the mean over the buckets of ``|buy - sell|`` over the
    bucket's volume: 0 for balanced flow, 1 for one-sided. NaN without volume.
    """
    return _toxicity(buy, sell, 0, len(buy), num_buckets)


def rolling_vpin_python(buy: FloatArray, sell: FloatArray, window: int, num_buckets: int) -> FloatArray:
    """``vpin`` of the last ``window`` bars, whose own volume sets the size of the buckets."""
    out = np.full(len(buy), np.nan)
    for i in range(window - 1, len(buy)):
        out[i] = _toxicity(buy, sell, i - window + 1, i + 1, num_buckets)
    return out


def order_flow_imbalance_python(
    bid: FloatArray, bid_size: FloatArray, ask: FloatArray, ask_size: FloatArray
) -> FloatArray:
    """What each best quote added to demand less what it added to supply, in units of size: (num_quotes,).

    The e_n of Cont, Kukanov & Stoikov (2014); their order flow imbalance is its sum over an interval. NaN for
    the first quote, which has none before it. A null price is an empty side of the book: no size, worse than any.
    """
    out = np.full(len(bid), np.nan)
    bid_before, bid_size_before, ask_before, ask_size_before = -math.inf, 0.0, math.inf, 0.0
    for n in range(len(bid)):
        bid_now, bid_size_now, ask_now, ask_size_now = bid[n], bid_size[n], ask[n], ask_size[n]
        if bid_now != bid_now:
            bid_now, bid_size_now = -math.inf, 0.0
        if ask_now != ask_now:
            ask_now, ask_size_now = math.inf, 0.0
        flow = 0.0
        if bid_now >= bid_before:
            flow += bid_size_now
        if bid_now <= bid_before:
            flow -= bid_size_before
        if ask_now <= ask_before:
            flow -= ask_size_now
        if ask_now >= ask_before:
            flow += ask_size_before
        if n > 0:
            out[n] = flow
        bid_before, bid_size_before, ask_before, ask_size_before = bid_now, bid_size_now, ask_now, ask_size_now
    return out


def time_weighted_mean_python(value: FloatArray, time: IntArray, start: int, end: int) -> float:
    """Mean over (start, end] of a value that holds from its time until the next one's.

    What was said before ``start`` counts from there on. Times when the value is NaN are left out; NaN if that is all.
    """
    total, weight = 0.0, 0.0
    for i in range(len(time)):
        until = time[i + 1] if i + 1 < len(time) else end
        length = min(until, end) - max(time[i], start)
        if length > 0 and value[i] == value[i]:
            total += value[i] * length
            weight += length
    return total / weight if weight > 0.0 else np.nan


def rolling_illiquidity_python(returns: FloatArray, value: FloatArray, window: int) -> FloatArray:
    """Mean of ``|return| / value traded`` over those of the last ``window`` bars that traded (Amihud 2002).

    NaN where none did.
    """
    out = np.full(len(returns), np.nan)
    for i in range(window - 1, len(returns)):
        total, num_traded = 0.0, 0
        for j in range(i - window + 1, i + 1):
            if value[j] != 0.0:
                total += abs(returns[j]) / value[j]
                num_traded += 1
            elif returns[j] != returns[j]:
                total += returns[j]
        if num_traded > 0:
            out[i] = total / num_traded
    return out


def roll_spread_python(returns: FloatArray, window: int) -> FloatArray:
    """Effective spread from the bounce between bid and ask, 2 sqrt(-cov(r[t], r[t-1])) (Roll 1984).

    From the ``window - 1`` pairs of neighbours among the last ``window`` returns, divisor ``window - 1``; 0 where the
    covariance is positive (Goyenko, Holden & Trzcinka 2009).
    """
    out = np.full(len(returns), np.nan)
    num_pairs = window - 1
    for i in range(window - 1, len(returns)):
        start = i - window + 1
        early, late = 0.0, 0.0
        for j in range(start, i):
            early += returns[j]
            late += returns[j + 1]
        product = 0.0
        for j in range(start, i):
            product += (returns[j] - early / num_pairs) * (returns[j + 1] - late / num_pairs)
        out[i] = 2.0 * math.sqrt(-product / num_pairs) if product < 0.0 else product * 0.0
    return out


def corwin_schultz_spread_python(high: FloatArray, low: FloatArray, close: FloatArray) -> FloatArray:
    """Spread as a share of the price from the ranges of a bar and the one before (Corwin & Schultz 2012).

    The range of two bars holds twice the variance of one bar's, but the spread only once. A bar that gapped away from
    the close before is moved back by the gap, and a negative estimate is 0, as in the paper. NaN at the first bar.
    """
    out = np.full(len(close), np.nan)
    root = 3.0 - 2.0 * math.sqrt(2.0)
    for i in range(1, len(close)):
        before = close[i - 1]
        if not (before > 0.0 and high[i] > 0.0 and low[i] > 0.0 and high[i - 1] > 0.0 and low[i - 1] > 0.0):
            continue
        gap = low[i] - before if low[i] > before else high[i] - before if high[i] < before else 0.0
        top, bottom = high[i] - gap, low[i] - gap
        now, then = math.log(top / bottom), math.log(high[i - 1] / low[i - 1])
        both = math.log(max(top, high[i - 1]) / min(bottom, low[i - 1]))
        one_bar = now * now + then * then
        alpha = (math.sqrt(2.0 * one_bar) - math.sqrt(one_bar)) / root - math.sqrt(both * both / root)
        out[i] = max(2.0 * (math.exp(alpha) - 1.0) / (1.0 + math.exp(alpha)), 0.0)
    return out


bulk_buy_share = njit(cache=True, nogil=True)(bulk_buy_share_python)
vpin = njit(cache=True, nogil=True)(vpin_python)
rolling_vpin = njit(cache=True, nogil=True)(rolling_vpin_python)
order_flow_imbalance = njit(cache=True, nogil=True)(order_flow_imbalance_python)
time_weighted_mean = njit(cache=True, nogil=True)(time_weighted_mean_python)
rolling_illiquidity = njit(cache=True, nogil=True)(rolling_illiquidity_python)
roll_spread = njit(cache=True, nogil=True)(roll_spread_python)
corwin_schultz_spread = njit(cache=True, nogil=True)(corwin_schultz_spread_python)
