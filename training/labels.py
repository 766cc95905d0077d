"""Labels: what a decision earned, from the first price after its sample time, and what of it a model learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.dataset import FloatArray, Labels, TimeArray

WINSOR: Final = 5.0
BARRIER: Final = 1.0
"""The horizontal barriers' distance from the entry price, in volatilities over the horizon."""

LabelKind: TypeAlias = Literal["vol_scaled", "return", "sign", "triple_barrier"]

# Tensor suffixes: T sample times, N entities.


class LabelError(ValueError):
    """Prices or times that labels can't be made of, or a kind there is none of; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What every kind of label is made of.

    ``price_TN`` are the execution prices, ``forward_TN`` the simple return to the one ``horizon`` decisions later, and
    ``scale_TN`` the volatility over the horizon known at the sample time; NaN where there is none.
    """

    horizon: int
    price_TN: FloatArray
    forward_TN: FloatArray
    scale_TN: FloatArray


def make_labels(
    *,
    exec_times_T: TimeArray,
    exec_price_TN: FloatArray,
    vol_TN: FloatArray,
    horizon: int,
    kind: LabelKind = "vol_scaled",
) -> Labels:
    """Label decision i with what came of it between its own execution and that of decision i + horizon.

    ``exec_times_T`` holds the time of the first price after each sample time (NaT at the tail, where it is not there
    yet), ``exec_price_TN`` those prices, ``vol_TN`` the per-bar volatility known at the sample time; ``horizon``
    counts decisions. ``forward_TN`` is the plain return whatever the kind, NaN where a price is missing or not
    positive; ``y_TN`` is what models learn:

    - ``vol_scaled``: the return over ``vol * sqrt(horizon)``, winsorised to +-5.
    - ``return``: the return itself, a few hundredths on most days. It is divided by nothing, since a constant that
      brought it to order 1 would have to be known before the folds are; learners with constants in units of the label
      (a tube, an L1 of gradients, a cost beside the reward) do not suit it.
    - ``sign``: +1 or -1, and 0 for a return of exactly 0.
    - ``triple_barrier``: see ``triple_barrier``.

    All kinds are NaN where the plain return is; those that need the volatility also where that is not a positive
    number. A label lies wholly after its sample time. Its interval is [exec_times_T[i], exec_times_T[i + horizon]],
    one for all entities and kinds: a barrier touched earlier does not shorten it, which purges more than it must.
    """
    _check(exec_times_T, exec_price_TN, vol_TN, horizon, kind)
    entry_TN = np.where(exec_price_TN > 0, exec_price_TN, np.nan)
    outcome = Outcome(
        horizon=horizon,
        price_TN=entry_TN,
        forward_TN=_ahead(entry_TN, horizon, np.nan) / entry_TN - 1.0,
        scale_TN=np.where(np.isfinite(vol_TN) & (vol_TN > 0), vol_TN, np.nan) * np.sqrt(horizon),
    )
    return Labels(
        horizon=horizon,
        kind=kind,
        start_T=exec_times_T,
        end_T=_ahead(exec_times_T, horizon, np.datetime64("NaT")),
        forward_TN=outcome.forward_TN,
        y_TN=KINDS[kind](outcome),
    )


def vol_scaled(outcome: Outcome) -> FloatArray:
    """The return in volatilities over the horizon, within +-``WINSOR``."""
    return np.clip(outcome.forward_TN / outcome.scale_TN, -WINSOR, WINSOR)


def plain_return(outcome: Outcome) -> FloatArray:
    """The return itself."""
    return outcome.forward_TN


def sign(outcome: Outcome) -> FloatArray:
    """The return's sign, 0 where it is exactly 0."""
    return np.sign(outcome.forward_TN)


def triple_barrier(outcome: Outcome) -> FloatArray:
    """+1 or -1 for the barrier that is touched first; at the horizon, how far towards one the price came.

    The horizontal barriers are returns of +-``BARRIER`` volatilities over the horizon, the vertical one is the
    horizon. What is left at that is the return as a share of the barrier's, within +-1: it keeps the order of the
    outcomes, where a sign would make much of next to nothing. Only execution prices of the decisions up to the
    horizon are looked at: what the price did in between is not known here. A missing price touches nothing. At a
    horizon of 1 this is ``vol_scaled`` winsorised at the barriers.
    Source: Lopez de Prado, Advances in Financial Machine Learning (2018), 3.4.
    """
    barrier_TN = BARRIER * outcome.scale_TN
    y_TN = np.clip(outcome.forward_TN / barrier_TN, -1.0, 1.0)
    for bars in range(outcome.horizon, 0, -1):  # from the last to the first, so that the first touch has the last word
        return_TN = _ahead(outcome.price_TN, bars, np.nan) / outcome.price_TN - 1.0
        y_TN = np.where(np.abs(return_TN) >= barrier_TN, np.sign(return_TN), y_TN)
    return np.where(np.isfinite(outcome.forward_TN), y_TN, np.nan)


KINDS: Final[Mapping[LabelKind, Callable[[Outcome], FloatArray]]] = {
    "vol_scaled": vol_scaled,
    "return": plain_return,
    "sign": sign,
    "triple_barrier": triple_barrier,
}


def _ahead(values: NDArray, bars: int, missing: object) -> NDArray:
    """Row i holds what row i + bars held."""
    out = np.full_like(values, missing)
    out[:-bars] = values[bars:]
    return out


def _check(
    exec_times_T: TimeArray, exec_price_TN: FloatArray, vol_TN: FloatArray, horizon: int, kind: LabelKind
) -> None:
    if kind not in KINDS:
        raise LabelError(f"no kind of label {kind!r}; there are {', '.join(KINDS)}")
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
