"""Returns as the econometric models read them: what may be learned, and the lookback of every target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.spec import ModelError, State
from training.models.windows import label_TN

# Tensor suffixes: T sample times (targets), N entities.

MIN_RETURNS: Final = 60
BARS_AHEAD: Final = 2  # the label starts at the next price, so its return is the one after the next
MEMORY_ROWS: Final = 252  # what a fit knows weighs in an update: the rows of each entity that it usually learns from
RETURN_LIMIT: Final = 5.0  # pooled regressions read returns within +-5 deviations: one crash must not outweigh a year


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Mean and standard deviation of each entity's training returns.

    An entity with fewer than ``MIN_RETURNS`` returns, or constant ones, is not ``enough``: it gets mean 0 and the
    median deviation of the others.
    """

    mean_N: NDArray[np.float64]
    deviation_N: NDArray[np.float64]
    enough_N: NDArray[np.bool_]

    @classmethod
    def fit(cls, known_TN: NDArray[np.float64]) -> Self:
        """Learn from returns with NaN where unknown; ``ModelError`` when no entity has enough."""
        count_N = np.isfinite(known_TN).sum(axis=0)
        mean_N = np.nansum(known_TN, axis=0) / np.maximum(count_N, 1)
        deviation_N = np.sqrt(np.nansum((known_TN - mean_N) ** 2, axis=0) / np.maximum(count_N, 1))
        enough_N = (count_N >= MIN_RETURNS) & (deviation_N > 1e-12)
        if not enough_N.any():
            raise ModelError(
                f"none of {len(count_N)} entities has the {MIN_RETURNS} known training returns that vary a fit needs; "
                f"the most is {count_N.max(initial=0)}: give a longer training window"
            )
        return cls(
            mean_N=np.where(enough_N, mean_N, 0.0),
            deviation_N=np.where(enough_N, deviation_N, np.median(deviation_N[enough_N])),
            enough_N=enough_N,
        )

    def state(self) -> State:
        """The fitted arrays."""
        return {"returns.mean": self.mean_N, "returns.deviation": self.deviation_N, "returns.enough": self.enough_N}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The moments whose ``state`` this is."""
        return cls(
            mean_N=np.asarray(state["returns.mean"], dtype=np.float64),
            deviation_N=np.asarray(state["returns.deviation"], dtype=np.float64),
            enough_N=np.asarray(state["returns.enough"], dtype=np.bool_),
        )

    def standardise(self, returns_TN: NDArray[np.float64]) -> NDArray[np.float64]:
        """Deviations from the mean in standard deviations, within +-``RETURN_LIMIT``; NaN stays NaN."""
        return np.clip((returns_TN - self.mean_N) / self.deviation_N, -RETURN_LIMIT, RETURN_LIMIT)

    def require_entities(self, window: Window) -> None:
        """Refuse a window of another number of entities: parameters belong to entities, in their order."""
        if window.returns_TN.shape[1] != len(self.mean_N):
            raise ModelError(
                f"a window of {window.returns_TN.shape[1]} entities for a model of {len(self.mean_N)}; "
                "its parameters belong to the entities it was fitted on, in their order"
            )


def learnable_returns(train: Window) -> NDArray[np.float64]:
    """Returns of the targets whose label may be seen, NaN elsewhere: a purged target's return is as forbidden."""
    returns_TN = finite(train.returns_TN[train.num_history :])
    return np.where(np.isfinite(label_TN(train)), returns_TN, np.nan)


def new_returns(new: Window, moments: Moments) -> NDArray[np.float64]:
    """``learnable_returns`` to update from, of the entities that were enough; ``ModelError`` where there are none.

    The lookback of a target explains the return of the one after it: that of the first target is not explained.
    """
    known_TN = np.where(moments.enough_N, learnable_returns(new), np.nan)
    if not np.isfinite(known_TN[1:]).any():
        raise ModelError(
            f"nothing to update from: of {len(known_TN)} targets none but the first has a known return and a label; "
            "give at least two decisions whose labels are complete"
        )
    return known_TN


def finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values with NaN for infinities too."""
    return np.where(np.isfinite(values), values, np.nan)


def lagged(values_TN: NDArray[np.float64], window: Window) -> list[NDArray[np.float64]]:
    """The lookback of every target: ``lookback`` arrays (num_targets, N) from the oldest row to the newest.

    ``values_TN`` has a row for each of the window's sample times; rows before the window are NaN.
    """
    first, num_rows = window.num_history, len(values_TN)
    padded_TN = np.concatenate([np.full((window.lookback - 1, values_TN.shape[1]), np.nan), values_TN])
    return [padded_TN[first + lag : num_rows + lag] for lag in range(window.lookback)]


def mean_of_known(arrays: Sequence[NDArray[np.float64]], *, otherwise: float) -> NDArray[np.float64]:
    """Elementwise mean over the arrays' known values, ``otherwise`` where there is none.

    Summed array by array, so that a value depends, bit for bit, on its own column of values alone.
    """
    total, count = np.zeros_like(arrays[0]), np.zeros_like(arrays[0])
    for array in arrays:
        total = total + np.nan_to_num(array)
        count = count + ~np.isnan(array)
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)


def known_volatility(window: Window) -> NDArray[np.float64]:
    """Volatility known at each target, NaN where it is not a positive number."""
    vol_TN = window.vol_TN[window.num_history :]
    return np.where(vol_TN > 0, vol_TN, np.nan)
