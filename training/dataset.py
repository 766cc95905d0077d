"""Panels: what was known of every entity at every sample time, and what happened next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
TimeArray: TypeAlias = NDArray[np.datetime64]

# Tensor suffixes: T sample times, N entities, F features.


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What happened after each sample time.

    ``start_T``/``end_T`` are the times of the entry and exit prices (NaT where the exit is not there yet); the
    label's interval is [start, end]. ``forward_TN`` is the simple return from entry to exit. ``y_TN`` is what models
    learn, by the ``kind`` of label (see ``training.labels``): by default that return divided by the volatility known at
    the sample time (per bar, times the square root of the horizon). NaN where a price is missing.
    """

    horizon: int
    kind: str = "vol_scaled"
    start_T: TimeArray
    end_T: TimeArray
    forward_TN: FloatArray
    y_TN: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Point-in-time samples of one pipeline.

    ``sample_times_T`` (datetime64[us], UTC) is the bar's end plus its publication lag. ``x_TNF`` (float32),
    ``returns_TN`` (simple return of the bar just ended) and ``vol_TN`` (its per-bar volatility) hold what was known
    then; NaN is not known or not computable. ``hold_TN`` is the simple return from this sample's execution price to
    the next sample's, what a book holds over. ``fingerprint`` is a SHA-256 over all of it, labels included.
    """

    pipeline: str
    event_times_T: TimeArray
    sample_times_T: TimeArray
    entities: tuple[str, ...]
    feature_names: tuple[str, ...]
    x_TNF: NDArray[np.float32]
    returns_TN: NDArray[np.float64]
    vol_TN: NDArray[np.float64]
    hold_TN: NDArray[np.float64]
    labels: Labels
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A run of consecutive sample times as a model sees it.

    The first ``num_history`` times are history only (they fill the lookback of the first target); the targets are
    the rest. ``y_TN`` is NaN where there is nothing to learn (purged, unknown, not yet happened); at prediction it
    is all NaN. ``forward_TN`` is the label's plain return (agents' reward), NaN alike.
    """

    lookback: int
    num_history: int
    sample_times_T: TimeArray
    x_TNF: NDArray[np.float32]
    returns_TN: NDArray[np.float64]
    vol_TN: NDArray[np.float64]
    y_TN: NDArray[np.float64]
    forward_TN: NDArray[np.float64]

    @property
    def num_targets(self) -> int:
        """Number of sample times to score."""
        return len(self.sample_times_T) - self.num_history


def window(panel: Panel, first: int, stop: int, *, lookback: int, learn_T: NDArray[np.bool_] | None = None) -> Window:
    """Targets ``first .. stop-1`` of a panel with up to ``lookback - 1`` earlier times as history.

    ``learn_T`` (T,) marks the sample times whose labels may be seen; ``None`` hides all labels (prediction).
    """
    start = max(0, first - (lookback - 1))
    rows = slice(start, stop)
    visible = np.zeros(stop - start, dtype=bool) if learn_T is None else learn_T[rows].copy()
    visible[: first - start] = False
    hide = ~visible[:, None]
    return Window(
        lookback=lookback,
        num_history=first - start,
        sample_times_T=panel.sample_times_T[rows],
        x_TNF=panel.x_TNF[rows],
        returns_TN=panel.returns_TN[rows],
        vol_TN=panel.vol_TN[rows],
        y_TN=np.where(hide, np.nan, panel.labels.y_TN[rows]),
        forward_TN=np.where(hide, np.nan, panel.labels.forward_TN[rows]),
    )
