"""The newest row of every bar against the plain statement of the rule, at every moment; and broken forms fail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.aggregates.levels import Versions, late_rows, micros, newest_rows, utc
from feature_repo.store.join import NEVER

SPAN = 12
TICK = timedelta(microseconds=1)
Row = tuple[int, int]
Rule = Callable[[list[Row], int, int, int, int], int | None]

time = st.one_of(st.integers(0, SPAN), st.just(NEVER))
tables = st.lists(st.tuples(time, time), max_size=14)
bar_ends = st.lists(st.integers(0, SPAN + 4), unique=True, max_size=8).map(sorted)


def rule(rows: list[Row], end: int, moment: int, offset: int, max_age: int) -> int | None:
    """The plain statement: the row that answers at ``moment`` for the bar that ends at ``end``."""
    allowed = [
        (event, ingest, n)
        for n, (event, ingest) in enumerate(rows)
        if NEVER not in (event, ingest)
        and event <= moment
        and ingest <= moment
        and end - offset - max_age <= event <= end - offset
    ]
    return max(allowed)[2] if allowed else None


def versions(rows: list[Row], ends: list[int], offset: int, max_age: int) -> Versions:
    event_N, ingest_N = np.array(rows, np.int64).reshape(-1, 2).T.copy()
    end_K = np.array(ends, np.int64)
    return newest_rows(event_N, ingest_N, end_K, offset=offset * TICK, max_age=max_age * TICK)


def answer(found: Versions, bar: int, moment: int) -> int | None:
    rows = found.row_V[(found.bar_V == bar) & (found.known_V <= moment)]
    return int(rows[-1]) if len(rows) else None


def agrees(by: Rule, rows: list[Row], ends: list[int], offset: int, max_age: int) -> bool:
    found = versions(rows, ends, offset, max_age)
    return all(
        answer(found, bar, moment) == by(rows, end, moment, offset, max_age)
        for bar, end in enumerate(ends)
        for moment in range(end, SPAN + 6)
    )


@given(rows=tables, ends=bar_ends, offset=st.integers(0, 3), max_age=st.integers(0, SPAN))
def test_at_every_moment_the_version_is_the_rules_answer(
    rows: list[Row], ends: list[int], offset: int, max_age: int
) -> None:
    assert agrees(rule, rows, ends, offset, max_age)


def random_cases(num_cases: int) -> list[tuple[list[Row], list[int], int, int]]:
    rng = np.random.default_rng(5)
    cases = []
    for _ in range(num_cases):
        event = rng.integers(0, SPAN, int(rng.integers(1, 16)))
        ingest = event + rng.choice([-1, 0, 0, 1, 4], len(event))
        rows = list(zip(event.tolist(), ingest.tolist(), strict=True))
        cases.append((rows, list(range(0, SPAN + 3, 2)), int(rng.integers(0, 3)), int(rng.integers(1, SPAN))))
    return cases


def test_hundreds_of_random_tables_follow_the_rule() -> None:
    assert all(agrees(rule, *case) for case in random_cases(400))


def by_event_time_only(rows: list[Row], end: int, moment: int, offset: int, max_age: int) -> int | None:
    return rule([(event, event) for event, _ in rows], end, moment, offset, max_age)


def by_last_learnt(rows: list[Row], end: int, moment: int, offset: int, max_age: int) -> int | None:
    """A late row of an older event hides the newer one."""
    allowed = [
        (max(row), n)
        for n, row in enumerate(rows)
        if max(row) <= moment and end - offset - max_age <= row[0] <= end - offset
    ]
    return max(allowed)[1] if allowed else None


def frozen_at_the_end(rows: list[Row], end: int, moment: int, offset: int, max_age: int) -> int | None:
    """Restatements and late rows after the bar's end are not told."""
    return rule(rows, end, end, offset, max_age)


def without_age(rows: list[Row], end: int, moment: int, offset: int, max_age: int) -> int | None:
    return rule(rows, end, moment, offset, 10 * SPAN)


def without_offset(rows: list[Row], end: int, moment: int, offset: int, max_age: int) -> int | None:
    return rule(rows, end, moment, 0, max_age)


@pytest.mark.parametrize("broken", [by_event_time_only, by_last_learnt, frozen_at_the_end, without_age, without_offset])
def test_a_broken_rule_is_told_apart(broken: Rule) -> None:
    assert sum(not agrees(broken, *case) for case in random_cases(200)) > 30


def test_versions_change_what_is_known_and_come_in_order() -> None:
    for case in random_cases(100):
        found = versions(*case)
        same_bar = found.bar_V[1:] == found.bar_V[:-1]
        assert (np.diff(found.bar_V) >= 0).all()
        assert (np.diff(found.known_V)[same_bar] > 0).all()
        assert (np.diff(found.row_V)[same_bar] != 0).all()


def test_both_edges_of_the_window_belong_to_it() -> None:
    ends = [9, 10, 14, 15]
    found = versions([(8, 8)], ends, offset=2, max_age=4)
    assert [answer(found, bar, 20) for bar in range(4)] == [None, 0, 0, None]


def test_a_bulk_load_years_later_costs_only_the_bars_in_reach() -> None:
    day = 86_400_000_000
    event_N, end_K = day * np.arange(2000), day * np.arange(2000)
    found = newest_rows(event_N, np.full(2000, 5000 * day), end_K, offset=timedelta(days=1), max_age=timedelta(days=3))
    np.testing.assert_array_equal(found.bar_V, np.arange(1, 2000))
    np.testing.assert_array_equal(found.row_V, np.arange(1999))
    bar_P, row_P = late_rows(event_N, np.full(2000, 5000 * day), end_K, max_age=timedelta(days=3))
    assert len(bar_P) == 4 * 2000 - 6
    assert ((bar_P - row_P) >= 0).all()
    assert ((bar_P - row_P) <= 3).all()


def test_without_a_limit_late_rows_reach_every_bar_until_they_are_known() -> None:
    bar_P, row_P = late_rows(np.array([0, 3]), np.array([4, 3]), np.arange(6), max_age=None)
    assert (bar_P.tolist(), row_P.tolist()) == ([0, 1, 2, 3], [0, 0, 0, 0])


def test_times_pass_through_microseconds() -> None:
    times = pd.Series(pd.to_datetime(["2024-01-01 00:00:00.000001", None], utc=True)).dt.as_unit("us")
    assert micros(times).tolist() == [1_704_067_200_000_001, NEVER]
    assert utc(micros(times.head(1)))[0] == times[0]
