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
