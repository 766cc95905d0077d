"""Combinatorial splits against brute force over label intervals, and against a library's on a regular calendar."""

from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.splits.histories import CASES, history, touching
from training.splits.combinatorial import UNUSED, Combinations, combinatorial
from training.splits.purge import clear_of_T
from training.splits.walk_forward import SplitError

SHAPES = st.fixed_dictionaries(
    {"num_groups": st.integers(3, 7), "num_test_groups": st.integers(1, 3), "embargo": st.integers(0, 3)}
).filter(lambda shape: shape["num_test_groups"] < shape["num_groups"])


def crowding(split, samples, ends, embargo):
    """Brute force over all pairs: those (learnt, tested) nearer than the purge and the embargo allow.

    A label learnt before a test ends ``embargo`` sample times before the tested one at least; a sample learnt after a
    test has ``embargo`` samples between it and the tested label's end.
    """
    learnt, tested = np.flatnonzero(split.learn_T), np.flatnonzero(split.test_T)
    limit = np.array([samples[j - embargo] if j >= embargo else np.datetime64("0001-01-01") for j in tested])
    num_over = np.array([(samples <= ends[j]).sum() for j in tested])  # the first sample after the label's end
    early = (learnt[:, None] < tested) & ~(ends[learnt, None] < limit)
    late = (learnt[:, None] > tested) & (learnt[:, None] < num_over + embargo)
    return [(learnt[i], tested[j]) for i, j in np.argwhere(early | late)]


def check_no_leak(found: Combinations, samples, starts, ends, embargo) -> None:
    for split in found.splits:
        assert touching(split.learn_T, split.test_T, starts, ends) == []
        assert crowding(split, samples, ends, embargo) == []


@settings(max_examples=40, deadline=None)
@given(case=CASES, shape=SHAPES, num_times=st.integers(80, 110))
def test_no_learnt_label_touches_a_tested_one_and_the_embargo_is_kept(case, shape, num_times):
    samples, starts, ends = history(num_times, **case)
    check_no_leak(combinatorial(samples, starts, ends, **shape), samples, starts, ends, shape["embargo"])


@settings(max_examples=40, deadline=None)
@given(case=CASES, shape=SHAPES, num_times=st.integers(80, 110))
def test_purging_costs_no_more_than_it_must(case, shape, num_times):
    """Every sample left out would crowd a tested one, or is tested, or has no label yet."""
    samples, starts, ends = history(num_times, **case)
    for split in combinatorial(samples, starts, ends, **shape).splits:
        for i in np.flatnonzero(~split.learn_T & ~split.test_T & ~np.isnat(ends)):
            alone = np.zeros_like(split.learn_T)
            alone[i] = True
            single = type(split)(index=0, test_groups=(), learn_T=alone, test_T=split.test_T)
            assert crowding(single, samples, ends, shape["embargo"]), i


@settings(max_examples=40, deadline=None)
@given(case=CASES, shape=SHAPES, num_times=st.integers(80, 110))
def test_every_labelled_date_is_tested_equally_often_and_no_other_ever(case, shape, num_times):
    samples, starts, ends = history(num_times, **case)
    found = combinatorial(samples, starts, ends, **shape)
    num, chosen = shape["num_groups"], shape["num_test_groups"]
    labelled = ~np.isnat(ends)
    times_tested = np.sum([split.test_T for split in found.splits], axis=0)
    assert set(times_tested[labelled]) == {comb(num - 1, chosen - 1)}
    assert not times_tested[~labelled].any()
    assert [split.test_groups for split in found.splits] == list(combinations(range(num), chosen))
    assert [split.index for split in found.splits] == list(range(comb(num, chosen)))
    lengths = [dates.stop - dates.start for dates in found.groups]
    assert max(lengths) - min(lengths) <= 1
    assert not any((split.learn_T & ~labelled).any() for split in found.splits)


@settings(max_examples=40, deadline=None)
@given(case=CASES, shape=SHAPES, num_times=st.integers(80, 110))
def test_a_path_tests_every_date_once_and_the_paths_use_every_test_once(case, shape, num_times):
    samples, starts, ends = history(num_times, **case)
    found = combinatorial(samples, starts, ends, **shape)
    num, chosen = shape["num_groups"], shape["num_test_groups"]
    assert len(found.path_PT) == comb(num, chosen) * chosen // num
    used = []
    for path_T in found.path_PT:
        np.testing.assert_array_equal(path_T == UNUSED, np.isnat(ends))
        for t in np.flatnonzero(path_T != UNUSED):
            assert found.splits[path_T[t]].test_T[t]
            assert not found.splits[path_T[t]].learn_T[t]
            used.append((path_T[t], t))
    tests = [(split.index, t) for split in found.splits for t in np.flatnonzero(split.test_T)]
    assert sorted(used) == sorted(tests)


@pytest.mark.parametrize(("num_groups", "num_test_groups"), [(6, 2), (5, 3)])
def test_on_a_regular_calendar_it_is_skfolio(num_groups, num_test_groups):
    """Its purge counts rows: a label of one day executed a day later spans two of them. Its embargo is one-sided."""
    from skfolio.model_selection import CombinatorialPurgedCV

    samples, starts, ends = history(62)
    found = combinatorial(samples, starts, ends, num_groups=num_groups, num_test_groups=num_test_groups)
    theirs = CombinatorialPurgedCV(n_folds=num_groups, n_test_folds=num_test_groups, purged_size=2, embargo_size=0)
    path_ids = theirs.get_path_ids()
    for split, (learnt, tested) in zip(found.splits, theirs.split(np.zeros((60, 2))), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(split.learn_T), learnt)
        np.testing.assert_array_equal(np.flatnonzero(split.test_T), np.concatenate(tested))
        for path, dates in zip(path_ids[split.index], tested, strict=True):
            assert (found.path_PT[path, dates] == split.index).all()


def test_lopez_de_prados_example():
    """Six groups of which two are tested: 15 splits and 5 paths (2018, figure 12.1)."""
    found = combinatorial(*history(62))
    assert (len(found.splits), len(found.path_PT)) == (15, 5)
    by_group = found.path_PT[:, [dates.start for dates in found.groups]]
    first = {split.test_groups: split.index for split in found.splits}
    np.testing.assert_array_equal(by_group[0], [first[0, 1], first[0, 1], *[first[0, g] for g in range(2, 6)]])


# The checks bite.


def without_purge(found: Combinations) -> Combinations:
    splits = [
        type(split)(index=split.index, test_groups=split.test_groups, learn_T=~split.test_T, test_T=split.test_T)
        for split in found.splits
    ]
    return Combinations(groups=found.groups, splits=tuple(splits), path_PT=found.path_PT)


@settings(max_examples=20, deadline=None)
@given(case=CASES)
def test_without_purging_label_intervals_touch_on_both_sides(case):
    samples, starts, ends = history(80, **case)
    plain = without_purge(combinatorial(samples, starts, ends))
    with pytest.raises(AssertionError):
        check_no_leak(plain, samples, starts, ends, 0)
    pairs = [pair for split in plain.splits for pair in touching(split.learn_T, split.test_T, starts, ends)]
    assert any(i < j for i, j in pairs)
    assert any(i > j for i, j in pairs)


def test_an_embargo_forgotten_on_one_side_is_caught():
    samples, starts, ends = history(80)
    with pytest.raises(AssertionError):
        check_no_leak(combinatorial(samples, starts, ends, embargo=1), samples, starts, ends, 2)


def test_label_intervals_that_only_touch_count_as_overlap():
    """Labels [1, 2], [2, 3], ...: the next one starts at the very time the one before it ends."""
    times = (np.datetime64("2020-01-01", "us") + np.arange(8) * np.timedelta64(1, "D")).astype("datetime64[us]")
    samples, starts, ends = times[:6] + np.timedelta64(1, "h"), times[1:7], times[2:8]
    clear = clear_of_T(slice(2, 4), samples, ends)
    np.testing.assert_array_equal(np.flatnonzero(clear), [0, 5])
    assert (starts[1] <= ends[2], starts[2] <= ends[1]) == (True, True)  # 1 and 2 share one time
    assert starts[4] == ends[3]


def test_a_tested_label_without_an_end_purges_all_that_follows():
    samples, _, ends = history(20)
    ends[9] = np.datetime64("NaT")
    assert np.flatnonzero(clear_of_T(slice(8, 10), samples, ends)).max() < 8


def test_an_embargo_as_long_as_what_comes_before_leaves_none_of_it():
    samples, _, ends = history(20)
    assert not clear_of_T(slice(3, 6), samples, ends, embargo=3)[:3].any()
    assert not clear_of_T(slice(3, 6), samples, ends, embargo=99).any()


def test_a_date_is_in_one_set_for_every_entity():
    """Groups of the rows of a long table would tear a date's entities apart; such rows are refused."""
    samples, starts, ends = history(62)
    for split in combinatorial(samples, starts, ends, num_groups=7).splits:
        assert split.learn_T.shape == split.test_T.shape == samples.shape
        assert not set(samples[split.learn_T]) & set(samples[split.test_T])
    rows = [np.repeat(times, 3) for times in (samples, starts, ends)]
    by_row = np.array_split(rows[0], 7)
    assert any(set(one) & set(other) for one, other in pairwise(by_row))
    with pytest.raises(SplitError, match="rise strictly"):
        combinatorial(*rows, num_groups=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_test_groups": 0}, "at least 1"),
        ({"num_test_groups": 6}, "below num_groups"),
        ({"embargo": -1}, "at least 0"),
        ({"num_groups": 61}, "61 groups of 60 labelled sample times"),
        ({"num_groups": 20, "num_test_groups": 19, "embargo": 2}, r"nothing to learn from where groups \[0, 1, 2"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(SplitError, match=message):
        combinatorial(*history(62), **change)


def test_labels_that_start_too_early_are_refused():
    samples, _, ends = history(62)
    with pytest.raises(SplitError, match="at or before their sample time"):
        combinatorial(samples, samples, ends)
