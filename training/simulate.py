"""From scores to positions to net returns: the one home of that sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from feature_repo.market.costs import CostModel, Liquidity
from training.metrics.performance import sharpe

FloatArray: TypeAlias = NDArray[np.float64]

# Tensor suffixes: T decisions, N entities.


@dataclass(frozen=True, kw_only=True, slots=True)
class Book:
    """What a book held and earned, one row a decision.

    ``positions_TN`` are the weights held from this decision's execution to the next one's, as shares of capital;
    ``gross_T`` the return over that span, ``cost_T`` what trading into the weights and borrowing cost,
    ``net_T = gross_T - cost_T``; ``turnover_T`` the weight traded, buys plus sells. ``unit_impact_T`` is what market
    impact would cost a book whose capital is 1 (see ``CostModel.unit_impact_TN``), NaN where it isn't known.
    """

    positions_TN: FloatArray
    gross_T: FloatArray
    cost_T: FloatArray
    net_T: FloatArray
    turnover_T: FloatArray
    unit_impact_T: FloatArray


def positions_from_scores(score_TN: FloatArray, threshold: float | FloatArray) -> FloatArray:
    """Dollar-neutral weights (T, N) from scores: longs sum to +0.5, shorts to -0.5, gross 1.

    Scores are centred on the mean of the row's finite ones; of those at least ``threshold`` away from it (one number,
    or one a decision) each leg shares its half in proportion to the distance. NaN has no position; the row is flat
    where a leg is empty. Row t uses the scores of row t only.
    """
    edge_TN = demeaned(score_TN)
    kept_TN = np.where(np.abs(edge_TN) >= np.reshape(threshold, (-1, 1)), edge_TN, 0.0)
    kept_TN = np.where(np.isfinite(kept_TN), kept_TN, 0.0)
    long_TN, short_TN = np.maximum(kept_TN, 0.0), np.maximum(-kept_TN, 0.0)
    longs, shorts = long_TN.sum(axis=1, keepdims=True), short_TN.sum(axis=1, keepdims=True)
    tradable = (longs > 0) & (shorts > 0)
    weights_TN = long_TN / np.where(tradable, longs, 1.0) - short_TN / np.where(tradable, shorts, 1.0)
    return np.where(tradable, 0.5 * weights_TN, 0.0)


def simulate(
    score_TN: FloatArray,
    price_return_TN: FloatArray,
    *,
    threshold: float | FloatArray,
    costs: CostModel,
    liquidity: Liquidity | None = None,
) -> Book:
    """Trade the scores bar by bar, from flat, net of costs.

    ``price_return_TN[i]`` is the return from decision i's execution price to decision i+1's, the span its weights are
    held for; NaN counts as 0 with the position held. Costs are charged on the weight traded away from the
    previous row's weights as they drifted, and on shorts; the first row pays to enter, the last doesn't pay to leave.
    Row t uses scores up to t and returns of row t and before. Without ``liquidity`` there is no market impact.
    """
    positions_TN = positions_from_scores(score_TN, threshold)
    return_TN = np.where(np.isfinite(price_return_TN), price_return_TN, 0.0)
    gross_T = (positions_TN * return_TN).sum(axis=1)
    drifted_TN = _drifted(positions_TN, return_TN, gross_T)
    cost_T = costs.cost_TN(positions_TN, drifted_TN, liquidity).sum(axis=1)
    impact_T = np.full(len(cost_T), np.nan)
    if liquidity is not None:
        impact_T = costs.unit_impact_TN(positions_TN, drifted_TN, liquidity).sum(axis=1)
    return Book(
        positions_TN=positions_TN,
        gross_T=gross_T,
        cost_T=cost_T,
        net_T=gross_T - cost_T,
        turnover_T=np.abs(positions_TN - drifted_TN).sum(axis=1),
        unit_impact_T=impact_T,
    )


def tune_threshold(
    score_TN: FloatArray,
    return_TN: FloatArray,
    *,
    costs: CostModel,
    quantiles: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
) -> float:
    """The threshold of the best net Sharpe ratio on these (validation) bars; of equals the lowest.

    The candidates are ``quantiles`` of the scores' distance from their row's mean, 0 itself for quantile 0.
    0.0 where nothing was ever traded.
    """
    distance = np.abs(demeaned(score_TN))
    distance = distance[np.isfinite(distance)]
    if not len(distance):
        return 0.0
    candidates = [float(np.quantile(distance, q)) if q > 0 else 0.0 for q in sorted(quantiles)]
    books = [simulate(score_TN, return_TN, threshold=candidate, costs=costs) for candidate in candidates]
    ratios = [float(sharpe(book.net_T, periods_per_year=1.0)) for book in books]
    best = int(np.argmax(np.nan_to_num(ratios, nan=-np.inf)))
    return candidates[best]


def demeaned(score_TN: FloatArray) -> FloatArray:
    """Scores less the mean of their row's finite ones; NaN where not finite."""
    finite_TN = np.isfinite(score_TN)
    total = np.where(finite_TN, score_TN, 0.0).sum(axis=1, keepdims=True)
    mean = total / np.maximum(finite_TN.sum(axis=1, keepdims=True), 1)
    return np.where(finite_TN, score_TN, np.nan) - mean


def _drifted(positions_TN: FloatArray, return_TN: FloatArray, gross_T: FloatArray) -> FloatArray:
    """Weights just before each rebalance: the previous row's after its returns; nothing before the first row."""
    grown_T = np.maximum(1.0 + gross_T, 0.0)[:, None]
    alive = grown_T > 0  # a book that lost everything starts again from flat
    after_TN = np.where(alive, positions_TN * (1.0 + return_TN), 0.0) / np.where(alive, grown_T, 1.0)
    return np.concatenate([np.zeros_like(after_TN[:1]), after_TN[:-1]])
