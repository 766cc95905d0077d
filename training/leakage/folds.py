"""Checks of folds, and of what is fitted for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from feature_repo.leakage.findings import Checked, Place, compare, found, together
from training.dataset import Panel
from training.leakage.panels import for_all_entities, for_each_entity
from training.splits.walk_forward import LIVE, Fold

Preparation: TypeAlias = Callable[[Panel, Fold], NDArray[np.floating]]

# Tensor suffixes: T sample times, N entities, F features, R rows, I samples of one set, J of a later one.


def check_folds(panel: Panel, folds: Sequence[Fold]) -> Checked:
    """Whether any sample that may be learnt from has a label interval that touches one of a later set.

    Brute force over all pairs of samples; a label that was not over at the later set's first decision counts too.
    """
    return together(_check_fold(panel, fold) for fold in folds)


def _check_fold(panel: Panel, fold: Fold) -> Checked:
    learn_I, validate_I = np.flatnonzero(fold.learn_T), np.flatnonzero(fold.validate_T)
    validation_J, test_J = (
        np.arange(fold.validate.start, fold.validate.stop),
        np.arange(fold.test.start, fold.test.stop),
    )
    pairs = [("train", learn_I, "validation", validation_J)]
    if fold.index != LIVE:
        pairs += [("train", learn_I, "test", test_J), ("validation", validate_I, "test", test_J)]
    return together(_check_overlap(panel, fold, *pair) for pair in pairs)


def _check_overlap(
    panel: Panel, fold: Fold, name: str, earlier_I: NDArray[np.intp], later_name: str, later_J: NDArray[np.intp]
) -> Checked:
    start_T, end_T, taken_T = panel.labels.start_T, panel.labels.end_T, panel.sample_times_T
    begins = taken_T[later_J].min()
    touches_IJ = (start_T[earlier_I, None] <= end_T[later_J]) & (start_T[later_J] <= end_T[earlier_I, None])
    rows = earlier_I[touches_IJ.any(axis=1) | ~(end_T[earlier_I] < begins)]
    if not len(rows):
        return Checked(num_compared=touches_IJ.size)
    finding = found(
        "folds",
        f"its label reaches into the {later_name} set and must be purged",
        Place(places=for_all_entities(panel), row=int(rows[0]), feature=f"{name} label in fold {fold.index}"),
        expected=f"over before {begins}",
        got=f"over at {end_T[rows[0]]}",
        num=len(rows),
    )
    return Checked(findings=(finding,), num_compared=touches_IJ.size)


def check_preparation(prepare: Preparation, panel: Panel, fold: Fold, *, rng: np.random.Generator) -> Checked:
    """Whether what is fitted for training (a scaler, an imputer, a selection) saw what comes after the train set.

    ``prepare`` gives the fold's train samples as a model learns from them, (train, N, inputs). They may not change
    when every feature from the first validation sample on does.
    """
    x_TNF = np.array(panel.x_TNF)
    later = slice(fold.validate.start, None)
    x_TNF[later] = x_TNF[later] * rng.uniform(1.5, 2.5, x_TNF[later].shape) + 1.0
    expected_TNF, got_TNF = (
        np.asarray(prepare(each, fold), dtype=np.float64) for each in (replace(panel, x_TNF=x_TNF), panel)
    )
    num_inputs = got_TNF.shape[-1]
    own = num_inputs == len(panel.feature_names)
    return compare(
        "preparation",
        "a train sample changes with the features of the sets that come after it",
        places=for_each_entity(
            panel.entities, panel.event_times_T[fold.train], panel.sample_times_T[fold.validate.start]
        ),
        names=panel.feature_names if own else [f"input {i}" for i in range(num_inputs)],
        expected_RF=expected_TNF.reshape(-1, num_inputs),
        got_RF=got_TNF.reshape(-1, num_inputs),
    )
