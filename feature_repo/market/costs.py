"""The one cost model: what trading and holding a position costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Linear trading costs and the borrow fee of shorts.

    Parameters
    ----------
    fee_bps, half_spread_bps
        Per unit of traded notional, basis points.
    borrow_bps_ann
        Per unit of short notional and year, basis points.
    sessions_per_year
        Bars a year, to bring the borrow fee to one bar.
    """

    fee_bps: float = 1.0
    half_spread_bps: float = 2.0
    borrow_bps_ann: float = 50.0
    sessions_per_year: int = 252

    def cost_TN(self, positions_TN: FloatArray, drifted_TN: FloatArray) -> FloatArray:
        """Cost of each bar as a share of capital, shape (T, N).

        ``positions_TN`` are the weights held over the bar, ``drifted_TN`` the weights just before the rebalance.
        """
        traded = np.abs(positions_TN - drifted_TN) * (self.fee_bps + self.half_spread_bps) * 1e-4
        borrowed = np.maximum(-positions_TN, 0.0) * self.borrow_bps_ann * 1e-4 / self.sessions_per_year
        return traded + borrowed
