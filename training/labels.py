"""Labels: what a decision earned, from the first price after its sample time."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.dataset import FloatArray, Labels, TimeArray

WINSOR: Final = 5.0

# Tensor suffixes: T sample times, N entities.


class LabelError(ValueError):
    """Prices or times that labels can't be made of; the message says why."""


def make_labels(*, exec_times_T: TimeArray, exec_price_TN: FloatArray, vol_TN: FloatArray, horizon: int) -> Labels:
    """Label decision i with the return from its own execution to that of decision i + horizon.

    ``exec_times_T`` holds the time of the first price after each sample time (NaT at the tail, where it is not there
    yet), ``exec_price_TN`` those prices, ``vol_TN`` the per-bar volatility known at the sample time; ``horizon``
    counts decisions. ``y`` is the return over ``vol * sqrt(horizon)``, winsorised to +-5. Both are NaN where a price
    is missing or not positive, ``y`` also where the volatility is not a positive number. A label lies wholly after
    its sample time: its interval is [exec_times_T[i], exec_times_T[i + horizon]].
    """
    _check(exec_times_T, exec_price_TN, vol_TN, horizon)
    entry_TN = np.where(exec_price_TN > 0, exec_price_TN, np.nan)
    forward_TN = _ahead(entry_TN, horizon, np.nan) / entry_TN - 1.0
    scale_TN = np.where(np.isfinite(vol_TN) & (vol_TN > 0), vol_TN, np.nan) * np.sqrt(horizon)
    return Labels(
        horizon=horizon,
        start_T=exec_times_T,
        end_T=_ahead(exec_times_T, horizon, np.datetime64("NaT")),
        forward_TN=forward_TN,
        y_TN=np.clip(forward_TN / scale_TN, -WINSOR, WINSOR),
    )


def _ahead(values: NDArray, bars: int, missing: object) -> NDArray:
    """Row i holds what row i + bars held."""
    out = np.full_like(values, missing)
    out[:-bars] = values[bars:]
    return out


def _check(exec_times_T: TimeArray, exec_price_TN: FloatArray, vol_TN: FloatArray, horizon: int) -> None:
    if horizon < 1:
        raise LabelError(f"the horizon counts decisions ahead and must be at least 1; got {horizon}")
    if exec_price_TN.shape != vol_TN.shape or len(exec_times_T) != len(exec_price_TN):
        raise LabelError(
            f"times {exec_times_T.shape}, prices {exec_price_TN.shape} and volatilities {vol_TN.shape} don't match; "
            "they must be (T,), (T, N) and (T, N)"
        )
    known = exec_times_T[~np.isnat(exec_times_T)]
    if np.isnat(exec_times_T[: len(known)]).any():
        raise LabelError("an execution time is missing before the tail: only the newest decisions may be unexecuted")
    if (np.diff(known) < np.timedelta64(0)).any():
        raise LabelError("execution times go backwards; sort the decisions by sample time")
