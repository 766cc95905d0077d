"""The one cost model: what trading and holding a position costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Tensor suffixes: T decisions, N entities.


@dataclass(frozen=True, kw_only=True, slots=True)
class Liquidity:
    """What market impact depends on, as known at each decision, shape (T, N).

    ``value_TN`` is the mean traded value of a bar in the currency of the prices, ``vol_TN`` the standard deviation of
    a bar's return. NaN, or a value that is not above zero, is unknown.
    """

    value_TN: FloatArray
    vol_TN: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Linear trading costs, square-root market impact, and the borrow fee of shorts.

    Impact is off while ``capital`` is 0, its default: as far as the model knows, the book then trades too little to
    move a price. It is also off for an asset whose volume or volatility is not known.

    Parameters
    ----------
    fee_bps, half_spread_bps
        Per unit of traded notional, basis points.
    borrow_bps_ann
        Per unit of short notional and year, basis points.
    sessions_per_year
        Bars a year, to bring the borrow fee to one bar.
    capital
        What one book trades with, in the currency of the prices.
    impact_coefficient
        The price move, in volatilities of a bar, of trading what the market trades in a bar.
    """

    fee_bps: float = 1.0
    half_spread_bps: float = 2.0
    borrow_bps_ann: float = 50.0
    sessions_per_year: int = 252
    capital: float = 0.0
    impact_coefficient: float = 1.0

    def cost_TN(
        self, positions_TN: FloatArray, drifted_TN: FloatArray, liquidity: Liquidity | None = None
    ) -> FloatArray:
        """Cost of each bar as a share of capital, shape (T, N).

        ``positions_TN`` are the weights held over the bar, ``drifted_TN`` the weights just before the rebalance.
        """
        traded = np.abs(positions_TN - drifted_TN) * (self.fee_bps + self.half_spread_bps) * 1e-4
        borrowed = np.maximum(-positions_TN, 0.0) * self.borrow_bps_ann * 1e-4 / self.sessions_per_year
        if liquidity is None or self.capital == 0:
            return traded + borrowed
        impact = self.unit_impact_TN(positions_TN, drifted_TN, liquidity)
        return traded + borrowed + np.sqrt(self.capital) * np.where(np.isfinite(impact), impact, 0.0)

    def unit_impact_TN(self, positions_TN: FloatArray, drifted_TN: FloatArray, liquidity: Liquidity) -> FloatArray:
        """What impact would cost a book whose capital is 1, as a share of it (T, N); a capital C pays sqrt(C) times it.

        Trading the value Q moves the price by Y * sigma * sqrt(Q / V), and all of Q pays it: a weight w traded by a
        capital C costs Y * sigma * w^(3/2) * sqrt(C / V) of it. V is the mean traded value of a bar and sigma the
        volatility of a bar; that bars of another length give the same answer is a property of the square root. 0 where
        nothing is traded, NaN where what is traded has an unknown V or sigma.

        Sources: Torre (1997), BARRA market impact model handbook; Grinold & Kahn, Active Portfolio Management (1999),
        ch. 16: trading a day's volume costs about a day's volatility, hence Y = 1. Almgren, Thum, Hauptmann & Li
        (2005), Direct estimation of equity market impact, fit the power 3/5 instead of 1/2 to the temporary part.
        """
        traded = np.abs(positions_TN - drifted_TN)
        known = (liquidity.value_TN > 0) & (liquidity.vol_TN > 0) & np.isfinite(liquidity.value_TN * liquidity.vol_TN)
        value, vol = np.where(known, liquidity.value_TN, np.nan), np.where(known, liquidity.vol_TN, np.nan)
        return np.where(traded > 0, self.impact_coefficient * vol * traded * np.sqrt(traded / value), 0.0)
