"""From a window to the arrays that models learn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.spec import ModelError, State

# Tensor suffixes: T sample times (targets), N entities, S samples (a target of an entity), L lookback rows from the
# oldest to the newest, F features, K summary features (4 F), R any rows.

LABEL_LIMIT: Final = 5.0  # labels are learned within +-5: one crash must not outweigh a year
MIN_LABELS: Final = 30
FEATURE_LIMIT: Final = 5.0
IQR_OF_A_NORMAL: Final = 1.349


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceSamples:
    """The last ``lookback`` feature rows of every sample.

    ``x_SLF`` float32 with NaN as in the window; ``y_S`` the label, NaN where there is none; ``index_S2`` the
    (target, entity) of each sample, in that order.
    """

    x_SLF: NDArray[np.float32]
    y_S: NDArray[np.float64]
    index_S2: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class SummarySamples:
    """Four statistics of every feature over the lookback: last, mean, standard deviation, (last - mean) / deviation.

    ``x_SK`` float32, K = 4 F in blocks of F in that order; ``y_S`` and ``index_S2`` as in ``SequenceSamples``.
    """

    x_SK: NDArray[np.float32]
    y_S: NDArray[np.float64]
    index_S2: NDArray[np.intp]


def forecastable_TN(window: Window) -> NDArray[np.bool_]:
    """Targets a forecast is possible for: a full lookback in the window, and a known feature of the entity now."""
    first = window.num_history
    known_TN = np.isfinite(window.x_TNF[first:]).any(axis=2)
    rows_T = np.arange(first, len(window.sample_times_T)) + 1
    return known_TN & (rows_T >= window.lookback)[:, None]


def label_TN(window: Window) -> NDArray[np.float64]:
    """The targets' labels within +-``LABEL_LIMIT``, NaN where there is nothing to learn."""
    return np.clip(window.y_TN[window.num_history :], -LABEL_LIMIT, LABEL_LIMIT)


def scatter_TN(window: Window, score_S: NDArray[np.floating], index_S2: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sample scores at their place in a (num_targets, N) array, NaN elsewhere."""
    score_TN = np.full(window.y_TN[window.num_history :].shape, np.nan)
    score_TN[index_S2[:, 0], index_S2[:, 1]] = score_S
    return score_TN


def sequence_samples(window: Window, *, labelled: bool = False) -> SequenceSamples:
    """The sequences of all forecastable targets, or of those with a label; uses data up to each target inclusive."""
    index_S2, y_S = _samples(window, labelled=labelled)
    rows_SL = index_S2[:, :1] + window.num_history + np.arange(1 - window.lookback, 1)
    return SequenceSamples(x_SLF=window.x_TNF[rows_SL, index_S2[:, 1:]], y_S=y_S, index_S2=index_S2)


def summary_samples(window: Window, *, labelled: bool = False) -> SummarySamples:
    """The summaries of all forecastable targets, or of those with a label; uses data up to each target inclusive."""
    index_S2, y_S = _samples(window, labelled=labelled)
    return SummarySamples(x_SK=summarise(window)[index_S2[:, 0], index_S2[:, 1]], y_S=y_S, index_S2=index_S2)


def summarise(window: Window) -> NDArray[np.float32]:
    """The four statistics of each feature over the lookback that ends at each target, shape (T, N, 4 F).

    A statistic is over the known values; NaN where there is none (and for the distance where the deviation is 0).
    Rows missing before the window count as unknown. The sums run row by row from the oldest to the newest, so a
    value depends, bit for bit, on exactly the last ``lookback`` rows.
    """
    num_rows, num_entities, num_features = window.x_TNF.shape
    padding = np.full((window.lookback - 1, num_entities, num_features), np.nan)
    x_TNF = np.concatenate([padding, np.where(np.isfinite(window.x_TNF), window.x_TNF, np.nan)])
    lagged = [x_TNF[lag + window.num_history : lag + num_rows] for lag in range(window.lookback)]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _mean_over(lagged)
        deviation = np.sqrt(_mean_over((x - mean) ** 2 for x in lagged))
        distance = (lagged[-1] - mean) / np.where(deviation > 0, deviation, np.nan)
    return np.concatenate([lagged[-1], mean, deviation, distance], axis=2, dtype=np.float32)


def _mean_over(arrays: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    total, count = np.zeros(1), np.zeros(1)
    for array in arrays:
        total = total + np.nan_to_num(array)
        count = count + ~np.isnan(array)
    return total / count


def require_labels(y_S: NDArray[np.float64]) -> None:
    """Refuse to learn from fewer than ``MIN_LABELS`` labelled samples."""
    if len(y_S) < MIN_LABELS:
        raise ModelError(
            f"{len(y_S)} labelled training samples with a full lookback and known features, needed are {MIN_LABELS}; "
            "give a longer training window or a shorter lookback"
        )


def require_new_labels(y_S: NDArray[np.float64]) -> None:
    """Refuse to update from no labelled sample at all."""
    if not len(y_S):
        raise ModelError(
            "nothing to update from: no target of the window has a label, a full lookback and a known feature; "
            "wait until the labels of new decisions are complete"
        )


def _samples(window: Window, *, labelled: bool) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    y_TN = label_TN(window)
    wanted_TN = forecastable_TN(window)
    if labelled:
        wanted_TN = wanted_TN & np.isfinite(y_TN)
    index_S2 = np.argwhere(wanted_TN)
    return index_S2, y_TN[wanted_TN]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaler:
    """Median and interquartile range of each feature, learned on training rows only.

    ``transform`` gives (x - centre) / scale within +-``FEATURE_LIMIT``, 0 where unknown. The scale of a feature
    without an interquartile range is its standard deviation, or 1.
    """

    centre_F: NDArray[np.float64]
    scale_F: NDArray[np.float64]

    @classmethod
    def fit(cls, x_RF: NDArray[np.floating]) -> Self:
        """Learn from rows of features; a feature never known gets centre 0 and scale 1."""
        moments = [_centre_and_scale(column[np.isfinite(column)]) for column in x_RF.astype(np.float64).T]
        centre_F, scale_F = np.array(moments, dtype=np.float64).reshape(-1, 2).T
        return cls(centre_F=centre_F, scale_F=scale_F)

    def transform(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scale an array whose last axis is the features."""
        scaled = np.clip((x - self.centre_F) / self.scale_F, -FEATURE_LIMIT, FEATURE_LIMIT)
        return np.nan_to_num(scaled, nan=0.0).astype(np.float32)

    def state(self) -> State:
        """The fitted arrays."""
        return {"scaler.centre": self.centre_F, "scaler.scale": self.scale_F}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The scaler whose ``state`` this is."""
        return cls(centre_F=np.asarray(state["scaler.centre"]), scale_F=np.asarray(state["scaler.scale"]))


def _centre_and_scale(known_R: NDArray[np.float64]) -> tuple[float, float]:
    if len(known_R) == 0:
        return 0.0, 1.0
    low, centre, high = np.percentile(known_R, [25, 50, 75])
    candidates = ((high - low) / IQR_OF_A_NORMAL, float(known_R.std()))
    return float(centre), next((float(scale) for scale in candidates if scale > 1e-12), 1.0)
