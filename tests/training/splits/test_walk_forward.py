"""Walk-forward folds against brute force: no label interval of one set ever touches another set's."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.splits.histories import CASES, history, mask, touching
from training.splits.purge import purged_T
from training.splits.walk_forward import LIVE, SplitError, final_fold, walk_forward


def overlaps(earlier_T, later, starts, ends):
    """Pairs (i of the earlier set, j of the later one) whose label intervals share a time."""
    return touching(earlier_T, mask(later, len(starts)), starts, ends)


@settings(max_examples=60, deadline=None)
@given(
    case=CASES,
    num_times=st.integers(60, 110),
    train=st.integers(15, 25),
    validate=st.integers(10, 14),
    test=st.integers(3, 6),
    gap=st.integers(0, 2),
    embargo=st.integers(0, 2),
)
def test_no_label_interval_touches_another_set(case, num_times, train, validate, test, gap, embargo):
    samples, starts, ends = history(num_times, **case)
    folds = walk_forward(
        samples, starts, ends, train=train, validate=validate, test=test, step=test + gap, embargo=embargo
    )
    assert folds
    for fold in folds:
        assert overlaps(fold.learn_T, fold.validate, starts, ends) == []
        assert overlaps(fold.learn_T, fold.test, starts, ends) == []
        assert overlaps(fold.validate_T, fold.test, starts, ends) == []
        # What is learnt had happened before the next set's first decision, the embargo before it.
        assert (ends[fold.learn_T] < samples[fold.validate.start - embargo]).all()
        assert (ends[fold.validate_T] < samples[fold.test.start - embargo]).all()
        # Purging costs no more than it must.
        purged = np.setdiff1d(np.arange(fold.train.start, fold.train.stop), np.flatnonzero(fold.learn_T))
        assert (ends[purged] >= samples[fold.validate.start - embargo]).all()


@settings(max_examples=30, deadline=None)
@given(case=CASES)
def test_without_purging_label_intervals_overlap(case):
    samples, starts, ends = history(80, **case)
    fold = walk_forward(samples, starts, ends, train=20, validate=10, test=5, step=5)[0]
    unpurged = np.zeros(80, dtype=bool)
    unpurged[fold.train] = True
    assert overlaps(unpurged, fold.validate, starts, ends)


@settings(max_examples=40, deadline=None)
@given(case=CASES, num_times=st.integers(63, 120), test=st.integers(2, 6), num_folds=st.integers(1, 4))
def test_folds_are_contiguous_and_their_tests_consecutive(case, num_times, test, num_folds):
    samples, starts, ends = history(num_times, **case)
    folds = walk_forward(samples, starts, ends, train=20, validate=12, test=test, step=test, num_folds=num_folds)
    assert len(folds) == num_folds
    for fold in folds:
        assert fold.train.stop == fold.validate.start
        assert fold.validate.stop == fold.test.start
        lengths = [part.stop - part.start for part in (fold.train, fold.validate, fold.test)]
        assert lengths == [20, 12, test]
        assert np.flatnonzero(fold.learn_T).max() < fold.validate.start
    for earlier, later in pairwise(folds):
        assert earlier.test.stop == later.test.start
        assert later.index == earlier.index + 1
    labelled = num_times - case["delay"] - case["horizon"]
    assert labelled - test < folds[-1].test.stop <= labelled


def test_a_date_is_in_one_set_for_every_entity():
    """Three entities share the dates; the same fold taken as rows of the long table would put one date in two sets."""
    samples, starts, ends = history(60)
    fold = walk_forward(samples, starts, ends, train=20, validate=12, test=5, step=5)[0]
    parts = (fold.train, fold.validate, fold.test)
    by_date = [set(samples[part]) for part in parts]
    by_row = [set(np.repeat(samples, 3)[part]) for part in parts]
    assert not by_date[0] & by_date[1]
    assert not by_date[1] & by_date[2]
    assert by_row[0] & by_row[1]


def test_a_fold_keeps_its_index_and_dates_as_history_grows():
    old = walk_forward(*history(100), train=20, validate=12, test=5, step=5)
    new = walk_forward(*history(108), train=20, validate=12, test=5, step=5)
    assert len(new) > len(old)
    for before, after in zip(old, new, strict=False):
        assert (before.index, before.train, before.validate, before.test) == (
            after.index,
            after.train,
            after.validate,
            after.test,
        )
        np.testing.assert_array_equal(np.flatnonzero(before.learn_T), np.flatnonzero(after.learn_T))


def test_final_fold_ends_at_the_last_labelled_sample():
    samples, starts, ends = history(60, horizon=3)
    fold = final_fold(samples, starts, ends, train=20, validate=12)
    labelled = 60 - 1 - 3
    assert fold.index == LIVE
    assert (fold.train, fold.validate) == (slice(labelled - 32, labelled - 12), slice(labelled - 12, labelled))
    assert (fold.test.start, fold.test.stop) == (labelled, labelled)
    assert fold.validate_T[fold.validate].all()
    assert overlaps(fold.learn_T, fold.validate, starts, ends) == []


def test_a_label_that_ends_at_the_boundary_or_is_unknown_is_purged():
    ends = np.array(["2020-01-02", "2020-01-03", "NaT"], dtype="datetime64[us]")
    mask = purged_T(slice(0, 3), ends, np.datetime64("2020-01-03"))
    np.testing.assert_array_equal(mask, [True, False, False])


def test_a_short_history_says_what_there_is_and_what_is_needed():
    with pytest.raises(
        SplitError, match=r"12 fold\(s\) need 567 labelled sessions .* has 298, enough for 0.*fewer folds"
    ):
        walk_forward(*history(300), num_folds=12)
    with pytest.raises(SplitError, match=r"1 fold\(s\) need 336 .* has 298"):
        walk_forward(*history(300))
    with pytest.raises(SplitError, match=r"need 315 .* has 298"):
        final_fold(*history(300))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, "overlap"),
        ({"train": 0}, "at least 1"),
        ({"embargo": -1}, "at least 0"),
        ({"embargo": 20}, "shorter than train"),
        ({"num_folds": 0}, "need"),
        ({"train": 5, "validate": 5}, "nothing to learn from"),
    ],
)
def test_impossible_lengths_are_refused(change, message):
    settings_ = {"train": 20, "validate": 12, "test": 5, "step": 5, **change}
    with pytest.raises(SplitError, match=message):
        walk_forward(*history(90, horizon=6), **settings_)


def test_labels_that_start_too_early_or_unsorted_times_are_refused():
    samples, starts, ends = history(60)
    with pytest.raises(SplitError, match="at or before their sample time"):
        walk_forward(samples, samples, ends, train=20, validate=12, test=5, step=5)
    with pytest.raises(SplitError, match="rise strictly"):
        walk_forward(samples[::-1], starts, ends, train=20, validate=12, test=5, step=5)
