"""Probability of backtest overfitting: is the variant that was best in one half of the time any good in the other?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.rating.gates import GateError, Verdict

FloatArray = NDArray[np.float64]

NUM_BLOCKS: Final = 16
MAX_PBO: Final = 0.05  # the paper's, by the custom of a test's level

_AT_ONCE: Final = 256  # combinations whose Sharpe ratios stay in the processor's cache

# Tensor suffixes: V variants (trials), T bars, B blocks of bars, C combinations of blocks.


@dataclass(frozen=True, kw_only=True, slots=True)
class Overfitting:
    """What cross-validating the choice of the best came to.

    ``pbo`` is the share of the ``num_combinations`` in which the variant best in sample came out at or below the
    median out of sample, ``loss_share`` that in which it lost money there, ``mean_rank`` its mean relative rank
    (rank / (V + 1): 0.5 is no better than any other). All are NaN where there was nothing to choose.
    """

    pbo: float
    loss_share: float
    mean_rank: float
    num_combinations: int
    num_trials: int
    num_bars: int

    def verdict(self, *, limit: float = MAX_PBO) -> Verdict:
        """A warning about the whole search: it names no variant."""
        ok = bool(self.pbo <= limit)
        if np.isnan(self.pbo):
            why = f"not defined for {self.num_trials} variants over {self.num_bars} bars"
        else:
            why = (
                f"the variant best in one half of the time came out in the worse half of all, in the other half of "
                f"the time, in {self.pbo:.1%} of {self.num_combinations:,} ways to halve it "
                f"({'at most' if ok else 'more than'} {limit:.0%}), and lost money there in {self.loss_share:.1%}"
            )
        return Verdict(gate="overfitting", ok=ok, value=self.pbo, threshold=limit, why=why, veto=False)


def overfitting(returns_VT: FloatArray, *, num_blocks: int = NUM_BLOCKS) -> Overfitting:
    """PBO by combinatorially symmetric cross-validation of the choice by Sharpe ratio.

    ``returns_VT`` are all trials' returns, without NaN. The oldest bars go where T is no multiple of the blocks. Of
    equal variants the first is chosen; out of sample equals share their mean rank. A variant that earned the same on
    every bar of a half (it did not trade) has a ratio of 0 there.
    Source: Bailey, Borwein, Lopez de Prado & Zhu (2017), The probability of backtest overfitting, sections 2 and 3.
    """
    if num_blocks < 2 or num_blocks % 2:
        raise GateError(f"the bars are cut into an even number of blocks, at least 2; got {num_blocks}")
    num, bars = len(returns_VT), returns_VT.shape[1] // num_blocks * num_blocks
    if num < 2 or bars < 2 * num_blocks:
        return _nothing(num, bars)
    first_CB = _halves(num_blocks)
    sums_BV, squares_BV = _block_sums(returns_VT[:, returns_VT.shape[1] - bars :], num_blocks)
    rank, lost = np.empty((2, len(first_CB))), np.empty((2, len(first_CB)), dtype=bool)
    for start in range(0, len(first_CB), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        halves = [
            _sharpe(in_CB @ sums_BV, in_CB @ squares_BV, bars // 2) for in_CB in (first_CB[some], 1 - first_CB[some])
        ]
        for way, (seen_CV, unseen_CV) in enumerate((halves, halves[::-1])):
            rank[way, some], lost[way, some] = _outcome(seen_CV, unseen_CV)
    relative = rank / (num + 1)
    return Overfitting(
        pbo=float((relative <= 0.5).mean()),
        loss_share=float(lost.mean()),
        mean_rank=float(relative.mean()),
        num_combinations=comb(num_blocks, num_blocks // 2),
        num_trials=num,
        num_bars=bars,
    )


def _nothing(num_trials: int, num_bars: int) -> Overfitting:
    nan = float("nan")
    return Overfitting(
        pbo=nan, loss_share=nan, mean_rank=nan, num_combinations=0, num_trials=num_trials, num_bars=num_bars
    )


def _halves(num_blocks: int) -> FloatArray:
    """Ones and zeros, a row for each way to halve the blocks with the first block in; the others are complements."""
    chosen = np.array(list(combinations(range(1, num_blocks), num_blocks // 2 - 1)), dtype=np.int64)
    first_CB = np.zeros((len(chosen), num_blocks))
    first_CB[:, 0] = 1.0
    np.put_along_axis(first_CB, chosen, 1.0, axis=1)
    return first_CB


def _block_sums(returns_VT: FloatArray, num_blocks: int) -> tuple[FloatArray, FloatArray]:
    """Sums and sums of squares (B, V) of returns brought to a root mean square of 1, which no Sharpe ratio notices."""
    size_V = np.sqrt((returns_VT**2).mean(axis=1, keepdims=True))
    unit_VT = returns_VT / np.where(size_V > 0, size_V, 1.0)
    blocks_VBT = unit_VT.reshape(len(unit_VT), num_blocks, -1)
    return blocks_VBT.sum(axis=2).T, (blocks_VBT**2).sum(axis=2).T


def _sharpe(sum_CV: FloatArray, square_CV: FloatArray, num_bars: int) -> FloatArray:
    """Mean over standard deviation (n, not n - 1: ranks don't notice), 0 without variance."""
    mean_CV = sum_CV / num_bars
    second_CV = square_CV / num_bars
    variance_CV = second_CV - mean_CV**2
    varies = variance_CV > 1e-12 * second_CV
    return np.where(varies, mean_CV, 0.0) / np.sqrt(np.where(varies, variance_CV, 1.0))


def _outcome(seen_CV: FloatArray, unseen_CV: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The rank (from 1, ties averaged) out of sample of the variant best in sample, and whether it lost there."""
    winner_C1 = seen_CV.argmax(axis=1)[:, None]
    its_C1 = np.take_along_axis(unseen_CV, winner_C1, axis=1)
    below = np.count_nonzero(unseen_CV < its_C1, axis=1)
    upto = np.count_nonzero(unseen_CV <= its_C1, axis=1)
    return (below + upto + 1) / 2.0, its_C1[:, 0] < 0.0
