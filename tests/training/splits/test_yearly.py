"""Yearly folds against brute force: each calendar year on what was known before it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.panel_makers import make_panel
from tests.training.splits.histories import CASES, history, mask, touching
from training.dataset import window
from training.leakage.folds import check_folds
from training.models.fitted import fit_model
from training.models.registry import architecture
from training.models.spec import Budget
from training.splits.walk_forward import SplitError, walk_forward
from training.splits.yearly import calendar_years, yearly

SMALL = {"min_train": 20, "validate": 10}


def years_of(samples):
    """Brute force: the year in each time's own text."""
    return np.array([int(str(time)[:4]) for time in samples])


def overlaps(earlier_T, later, starts, ends):
    """Pairs (i of the earlier set, j of the later one) whose label intervals share a time."""
    return touching(earlier_T, mask(later, len(starts)), starts, ends)


@settings(max_examples=25, deadline=None)
@given(case=CASES, num_times=st.integers(420, 520), embargo=st.integers(0, 3))
def test_no_label_interval_touches_another_set(case, num_times, embargo):
    samples, starts, ends = history(num_times, **case)
    folds = yearly(samples, starts, ends, **SMALL, embargo=embargo)
    assert folds
    for fold in folds:
        assert overlaps(fold.learn_T, fold.validate, starts, ends) == []
        assert overlaps(fold.learn_T, fold.test, starts, ends) == []
        assert overlaps(fold.validate_T, fold.test, starts, ends) == []
        assert (ends[fold.learn_T] < samples[fold.validate.start - embargo]).all()
        assert (ends[fold.validate_T] < samples[fold.test.start - embargo]).all()


@settings(max_examples=25, deadline=None)
@given(case=CASES, num_times=st.integers(420, 520), lag_h=st.integers(0, 23))
def test_a_year_is_tested_whole_on_all_that_came_before(case, num_times, lag_h):
    samples, starts, ends = history(num_times, **(case | {"lag_h": lag_h}))
    year_T, labelled = years_of(samples), ~np.isnat(ends)
    np.testing.assert_array_equal(calendar_years(samples), year_T)
    folds = yearly(samples, starts, ends, **SMALL)
    for fold in folds:
        np.testing.assert_array_equal(mask(fold.test, num_times), (year_T == fold.index) & labelled)
        assert (fold.train.start, fold.train.stop, fold.validate.stop) == (0, fold.validate.start, fold.test.start)
        assert fold.validate.stop - fold.validate.start == 10
    # Every labelled year with enough before it has its fold, in order, and no date is tested twice.
    enough = [y for y in np.unique(year_T[labelled]) if (year_T < y).sum() >= 30]
    assert [fold.index for fold in folds] == enough


def test_too_little_before_a_year_leaves_it_out():
    samples, starts, ends = history(3 * 365)  # from 2015-01-02 on: 364 sample times before 2016
    assert [fold.index for fold in yearly(samples, starts, ends, min_train=301, validate=63)] == [2016, 2017]
    assert [fold.index for fold in yearly(samples, starts, ends, min_train=302, validate=63)] == [2017]
    assert [fold.index for fold in yearly(samples, starts, ends, num_folds=1)] == [2017]


def test_a_years_fold_stays_as_history_grows():
    old, new = (yearly(*history(num)) for num in (2 * 366, 3 * 366))
    assert (old[0].index, old[0].train, old[0].validate) == (new[0].index, new[0].train, new[0].validate)
    assert old[0].test == new[0].test  # 2016 was over in both
    np.testing.assert_array_equal(np.flatnonzero(old[0].learn_T), np.flatnonzero(new[0].learn_T))


def test_a_year_under_way_is_tested_as_far_as_it_is_labelled():
    samples, starts, ends = history(366 + 100, horizon=3)
    fold = yearly(samples, starts, ends)[-1]
    assert fold.index == 2016
    assert fold.test.stop == 366 + 100 - 1 - 3


def test_the_year_is_that_of_the_decision_not_of_the_bar():
    """A bar that ends on New Year's Eve and is known on New Year's Day is decided on in the new year."""
    samples = np.array(["2019-12-31T23:59:59", "2020-01-01T00:00:00"], dtype="datetime64[us]")
    np.testing.assert_array_equal(calendar_years(samples), [2019, 2020])


def test_without_purging_label_intervals_overlap():
    samples, starts, ends = history(500)
    fold = yearly(samples, starts, ends)[0]
    assert overlaps(mask(fold.train, 500), fold.validate, starts, ends)


def test_cut_like_walk_forward_where_they_are_the_same():
    """A walk-forward fold with the year's edges has the same masks: one rule of purging."""
    samples, starts, ends = history(366 + 200, horizon=2)
    ours = yearly(samples, starts, ends, embargo=4)[0]
    length = ours.test.stop - ours.test.start
    theirs = walk_forward(
        samples, starts, ends, train=ours.train.stop, validate=63, test=length, step=length, embargo=4
    )[0]
    np.testing.assert_array_equal(ours.learn_T, theirs.learn_T)
    np.testing.assert_array_equal(ours.validate_T, theirs.validate_T)


def test_models_and_leak_checks_take_its_folds():
    panel = make_panel(signal=0.7)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    (fold,) = yearly(*times)
    assert fold.index == 2019
    assert check_folds(panel, [fold]).findings == ()
    leaky = dataclasses.replace(fold, learn_T=mask(fold.train, len(times[0])))
    assert check_folds(panel, [leaky]).findings
    train = window(panel, fold.train.start, fold.train.stop, lookback=5, learn_T=fold.learn_T)
    valid = window(panel, fold.validate.start, fold.validate.stop, lookback=5, learn_T=fold.validate_T)
    model = fit_model(architecture("elastic_net"), {}, train, valid, lookback=5, seed=1, budget=Budget())
    score = model.predict(window(panel, fold.test.start, fold.test.stop, lookback=5)).score_TN
    assert np.corrcoef(score.ravel(), panel.labels.y_TN[fold.test].ravel())[0, 1] > 0.4


@pytest.mark.parametrize(
    ("num_times", "change", "message"),
    [
        (300, {}, r"1 yearly fold\(s\) wanted, this history of 298 labelled sessions \(2015-01-02 to .*has 0.*315"),
        (500, {"num_folds": 2}, r"2 yearly fold\(s\) wanted.*has 1"),
        (500, {"num_folds": 0}, "wanted"),
        (500, {"embargo": 63}, "shorter than train"),
        (500, {"validate": 0}, "at least 1"),
    ],
)
def test_what_can_not_be_split_is_refused(num_times, change, message):
    with pytest.raises(SplitError, match=message):
        yearly(*history(num_times), **change)


def test_a_history_without_labels_is_refused():
    samples, starts, ends = history(30, horizon=40)
    with pytest.raises(SplitError, match="0 labelled sessions has 0"):
        yearly(samples, starts, ends)
