"""Purging: which samples may be learnt from, by the times of their labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.dataset import TimeArray


def purged_T(part: slice, label_end_T: TimeArray, before: np.datetime64) -> NDArray[np.bool_]:
    """The samples of ``part`` whose labels are over before ``before``, as a (T,) mask.

    A label that ends at ``before`` itself is purged too, and so is one whose end is not there yet (NaT). With
    ``before`` the first sample time of the next set, whose labels all start after it, no two label intervals of the
    two sets touch. Source: Lopez de Prado, Advances in Financial Machine Learning (2018), 7.4.1.
    """
    mask = np.zeros(len(label_end_T), dtype=bool)
    mask[part] = label_end_T[part] < before
    return mask


def clear_of_T(
    block: slice, sample_times_T: TimeArray, label_end_T: TimeArray, *, embargo: int = 0
) -> NDArray[np.bool_]:
    """The samples that may be learnt from, on both sides of a block of others, as a (T,) mask.

    Before the block: those whose labels are over before its first sample time, ``embargo`` sample times earlier still.
    After it: those taken after its last label is over, ``embargo`` sample times later still. Where a label of the block
    has no end yet (NaT), nothing after it. Source: as ``purged_T``, and 7.4.2 for the embargo.
    """
    clear_T = np.zeros(len(label_end_T), dtype=bool)
    if block.start > embargo:
        clear_T = purged_T(slice(0, block.start), label_end_T, sample_times_T[block.start - embargo])
    later_T = np.flatnonzero(sample_times_T > label_end_T[block].max())
    clear_T[later_T[embargo:]] = True
    return clear_T
