"""Combinatorial purged splits: every choice of a few groups of dates is a test, and their pieces make many paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.dataset import TimeArray
from training.splits.purge import clear_of_T
from training.splits.walk_forward import SplitError, check_labels, num_labelled

# Tensor suffixes: T sample times, shared by all entities: a date is in one set for every entity or for none; G groups
# of consecutive dates, P backtest paths.

UNUSED: Final = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class CombinatorialSplit:
    """One choice of test groups. ``learn_T`` (T,) marks the samples that may be learnt from, ``test_T`` the tested."""

    index: int
    test_groups: tuple[int, ...]
    learn_T: NDArray[np.bool_]
    test_T: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Combinations:
    """All splits, and the backtest paths that their tests make.

    ``groups`` are ranges of sample times that follow one another, up to the last labelled one; what comes after is in
    no set. Row p of ``path_PT`` says which split scores each sample time on path p (``UNUSED`` after the last group):
    a path tests every date once, always by a model that did not learn it.
    """

    groups: tuple[slice, ...]
    splits: tuple[CombinatorialSplit, ...]
    path_PT: NDArray[np.intp]


def combinatorial(
    sample_times_T: TimeArray,
    label_start_T: TimeArray,
    label_end_T: TimeArray,
    *,
    num_groups: int = 6,
    num_test_groups: int = 2,
    embargo: int = 0,
) -> Combinations:
    """Split the labelled sample times into groups, and test each choice of ``num_test_groups`` of them on the others.

    There are C(G, k) splits, which test every group C(G - 1, k - 1) times: so many paths. Groups differ in length by
    one date at most. A sample is learnt from only if its label's interval lies clear of every tested label's: over
    before the first sample time of the tested groups that follow it, and taken after the last label of those before
    it was over, ``embargo`` sample times more on either side. Models learn from what came after the test, so these
    splits tell how results spread, not what could have been earned. Features reach back over the lookback: an embargo
    of that length keeps a test's bars out of the features learnt from after it.
    Source: Lopez de Prado, Advances in Financial Machine Learning (2018), 12.3-12.4 and 7.4.
    """
    check_labels(sample_times_T, label_start_T)
    num_dates = num_labelled(label_end_T)
    _check_counts(num_dates, num_groups, num_test_groups, embargo)
    edges = [round(g * num_dates / num_groups) for g in range(num_groups + 1)]
    groups = tuple(slice(a, b) for a, b in pairwise(edges))
    splits = tuple(
        _split(index, chosen, groups, sample_times_T, label_end_T, embargo)
        for index, chosen in enumerate(combinations(range(num_groups), num_test_groups))
    )
    return Combinations(groups=groups, splits=splits, path_PT=_paths(groups, splits, len(sample_times_T)))


def _split(
    index: int,
    chosen: tuple[int, ...],
    groups: Sequence[slice],
    sample_times_T: TimeArray,
    label_end_T: TimeArray,
    embargo: int,
) -> CombinatorialSplit:
    learn_T, test_T = np.zeros((2, len(sample_times_T)), dtype=bool)
    learn_T[: groups[-1].stop] = True
    for block in _blocks(chosen, groups):
        test_T[block] = True
        learn_T &= clear_of_T(block, sample_times_T, label_end_T, embargo=embargo)
    if not learn_T.any():
        raise SplitError(
            f"purging leaves nothing to learn from where groups {list(chosen)} of {len(groups)} are tested: the "
            f"labels' span and the embargo of {embargo} cover all other dates; take fewer groups or shorten the "
            "horizon or the embargo"
        )
    return CombinatorialSplit(index=index, test_groups=chosen, learn_T=learn_T, test_T=test_T)


def _blocks(chosen: Sequence[int], groups: Sequence[slice]) -> list[slice]:
    """The tested ranges of dates; neighbouring groups are one."""
    blocks: list[slice] = []
    for g in chosen:
        if blocks and blocks[-1].stop == groups[g].start:
            blocks[-1] = slice(blocks[-1].start, groups[g].stop)
        else:
            blocks.append(groups[g])
    return blocks


def _paths(groups: Sequence[slice], splits: Sequence[CombinatorialSplit], num_times: int) -> NDArray[np.intp]:
    """Path p takes each group from the p-th split that tests it."""
    tested_by_GP = np.array([[split.index for split in splits if g in split.test_groups] for g in range(len(groups))])
    path_PT = np.full((tested_by_GP.shape[1], num_times), UNUSED, dtype=np.intp)
    for dates, tested_by_P in zip(groups, tested_by_GP, strict=True):
        path_PT[:, dates] = tested_by_P[:, None]
    return path_PT


def _check_counts(num_dates: int, num_groups: int, num_test_groups: int, embargo: int) -> None:
    if not 1 <= num_test_groups < num_groups or embargo < 0:
        raise SplitError(
            "num_test_groups must be at least 1 and below num_groups, and embargo at least 0; got "
            f"num_test_groups={num_test_groups}, num_groups={num_groups}, embargo={embargo}"
        )
    if num_groups > num_dates:
        raise SplitError(
            f"{num_groups} groups of {num_dates} labelled sample times: each needs at least one; take fewer groups or "
            "bring a longer history"
        )
