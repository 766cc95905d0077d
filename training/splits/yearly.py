"""Year by year: each calendar year is tested on a model of the years before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from training.dataset import TimeArray
from training.splits.walk_forward import Fold, SplitError, check_labels, check_lengths, cut, num_labelled

# Tensor suffix: T sample times, shared by all entities.


def yearly(
    sample_times_T: TimeArray,
    label_start_T: TimeArray,
    label_end_T: TimeArray,
    *,
    min_train: int = 252,
    validate: int = 63,
    embargo: int = 0,
    num_folds: int | None = None,
) -> list[Fold]:
    """A fold for each of the last ``num_folds`` calendar years (``None``: all) that enough history comes before.

    A year is that of the sample time, in UTC: the year a decision is taken in. The test window of a year is all its
    labelled sample times, of the newest year those there are so far. Validation is the last ``validate`` sample times
    before it, train all earlier ones, at least ``min_train``: the train window grows. Purging and embargo are those of
    ``walk_forward``. A fold's ``index`` is the year.
    """
    check_lengths(min_train, validate, 1, 1, embargo)
    check_labels(sample_times_T, label_start_T)
    labelled = num_labelled(label_end_T)
    years = [(year, test) for year, test in _years(sample_times_T[:labelled]) if test.start >= min_train + validate]
    wanted = len(years) if num_folds is None else num_folds
    if wanted < 1 or wanted > len(years):
        raise SplitError(_too_short(sample_times_T[:labelled], max(wanted, 1), len(years), min_train, validate))
    return [
        cut(year, (0, test.start - validate, test.start, test.stop), sample_times_T, label_end_T, embargo)
        for year, test in years[-wanted:]
    ]


def calendar_years(times_T: TimeArray) -> NDArray[np.int64]:
    """The calendar year (UTC) of each time."""
    return times_T.astype("datetime64[Y]").astype(np.int64) + 1970


def _years(times_T: TimeArray) -> Iterator[tuple[int, slice]]:
    """Each year with sample times, and the range of them."""
    year_T = calendar_years(times_T)
    for year in np.unique(year_T):
        yield int(year), slice(*(int(edge) for edge in np.searchsorted(year_T, [year, year + 1])))


def _too_short(times_T: TimeArray, wanted: int, available: int, min_train: int, validate: int) -> str:
    span = f" ({times_T[0].astype('datetime64[D]')} to {times_T[-1].astype('datetime64[D]')})" if len(times_T) else ""
    return (
        f"{wanted} yearly fold(s) wanted, this history of {len(times_T)} labelled sessions{span} has {available}: "
        f"before a year that is tested come at least {min_train + validate} sessions (min_train {min_train}, validate "
        f"{validate}); bring a longer history, ask for fewer folds, or shorten min_train or validate"
    )
