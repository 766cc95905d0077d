"""Walk-forward folds over the dates of a panel, purged by the labels' own intervals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.dataset import TimeArray
from training.splits.purge import purged_T

LIVE: Final = -1

# Tensor suffix: T sample times, shared by all entities: a date is in one set for every entity or for none.


class SplitError(ValueError):
    """A history that can't be split as asked; the message says what there is, what is needed and what to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """One walk-forward step, as ranges of sample times that follow one another.

    ``learn_T`` and ``validate_T`` (T,) mark the samples of ``train`` and ``validate`` whose labels may be seen: the
    others are purged. ``index`` counts steps from the start of the history, so a fold keeps its index and its dates
    as the history grows; the final fit has ``LIVE`` and an empty ``test`` that starts where the unlabelled tail does.
    """

    index: int
    train: slice
    validate: slice
    test: slice
    learn_T: NDArray[np.bool_]
    validate_T: NDArray[np.bool_]


def walk_forward(
    sample_times_T: TimeArray,
    label_start_T: TimeArray,
    label_end_T: TimeArray,
    *,
    train: int = 252,
    validate: int = 63,
    test: int = 21,
    step: int = 21,
    embargo: int = 0,
    num_folds: int | None = None,
) -> list[Fold]:
    """The last ``num_folds`` folds (``None``: all), up to the newest test window that is labelled throughout.

    All lengths count sample times. Test window k is ``test`` long and starts at ``train + validate + k * step``;
    the windows never overlap. A train sample is learnt from only if its label ends before the first validation
    sample time, ``embargo`` sample times earlier still where one is set; validation against test alike.
    """
    check_lengths(train, validate, test, step, embargo)
    check_labels(sample_times_T, label_start_T)
    labelled = num_labelled(label_end_T)
    available = max(0, (labelled - train - validate - test) // step + 1)
    wanted = available if num_folds is None else num_folds
    if wanted < 1 or wanted > available:
        raise SplitError(_too_short(labelled, max(wanted, 1), train + validate + test, step, available))
    starts = [(k, k * step) for k in range(available - wanted, available)]
    return [
        cut(k, (a, a + train, a + train + validate, a + train + validate + test), sample_times_T, label_end_T, embargo)
        for k, a in starts
    ]


def final_fold(
    sample_times_T: TimeArray,
    label_start_T: TimeArray,
    label_end_T: TimeArray,
    *,
    train: int = 252,
    validate: int = 63,
    embargo: int = 0,
) -> Fold:
    """The fold of the live fit: train and validate up to the last labelled sample time, nothing to test on."""
    check_lengths(train, validate, 1, 1, embargo)
    check_labels(sample_times_T, label_start_T)
    stop = num_labelled(label_end_T)
    start = stop - train - validate
    if start < 0:
        raise SplitError(_too_short(stop, 1, train + validate, 1, 0))
    return cut(LIVE, (start, start + train, stop, stop), sample_times_T, label_end_T, embargo)


def cut(
    index: int, edges: tuple[int, int, int, int], sample_times_T: TimeArray, label_end_T: TimeArray, embargo: int
) -> Fold:
    """The fold whose train, validation and test windows lie between these four edges, purged."""
    train, validate, test = (slice(a, b) for a, b in pairwise(edges))
    learn_T = purged_T(train, label_end_T, sample_times_T[validate.start - embargo])
    if index == LIVE:  # nothing is tested: every validation label that has happened may be seen
        validate_T = purged_T(validate, label_end_T, np.datetime64("9999-12-31"))
    else:
        validate_T = purged_T(validate, label_end_T, sample_times_T[test.start - embargo])
    if not (learn_T.any() and validate_T.any()):
        raise SplitError(
            f"purging leaves nothing to learn from in fold {index}: the labels' span and the embargo of {embargo} "
            f"cover all {train.stop - train.start} train or {validate.stop - validate.start} validation sample times; "
            "lengthen the window or shorten the horizon or the embargo"
        )
    return Fold(index=index, train=train, validate=validate, test=test, learn_T=learn_T, validate_T=validate_T)


def num_labelled(label_end_T: TimeArray) -> int:
    """Sample times up to the last whose label is complete."""
    complete = np.flatnonzero(~np.isnat(label_end_T))
    return int(complete[-1]) + 1 if len(complete) else 0


def check_lengths(train: int, validate: int, test: int, step: int, embargo: int) -> None:
    """Refuse lengths of windows that give no folds or overlapping tests."""
    if min(train, validate, test, step) < 1 or embargo < 0:
        raise SplitError(
            f"train, validate, test and step must be at least 1 and embargo at least 0; got train={train}, "
            f"validate={validate}, test={test}, step={step}, embargo={embargo}"
        )
    if step < test:
        raise SplitError(
            f"step={step} is shorter than test={test}: test windows would overlap; make step at least test"
        )
    if embargo >= min(train, validate):
        raise SplitError(f"embargo={embargo} must be shorter than train={train} and validate={validate}")


def check_labels(sample_times_T: TimeArray, label_start_T: TimeArray) -> None:
    """Refuse sample times out of order and labels that start at or before them."""
    if (np.diff(sample_times_T) <= np.timedelta64(0)).any():
        raise SplitError("sample times must rise strictly; sort them and drop repeated ones")
    early = np.flatnonzero(label_start_T <= sample_times_T)
    if len(early):
        raise SplitError(
            f"{len(early)} labels start at or before their sample time, the first at {sample_times_T[early[0]]}: "
            "a label must start at the first price after it"
        )


def _too_short(labelled: int, folds: int, shortest: int, step: int, available: int) -> str:
    return (
        f"{folds} fold(s) need {shortest + (folds - 1) * step} labelled sessions ({shortest} for the first, {step} for "
        f"each further one); this history has {labelled}, enough for {available}: bring a longer history, ask for "
        "fewer folds, or shorten train, validate or test"
    )
