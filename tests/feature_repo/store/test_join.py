"""The fast form against the plain statement of the rule, over thousands of small tables; and broken forms fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.store import join
from feature_repo.store.join import NEVER, NO_ROW, IntArray, find_answers

NUM_ENTITIES = 3
SPAN = 8
Row = tuple[int, int, int]  # entity (negative: null), event time, ingest time
Query = tuple[int, int]  # entity, as-of time

time = st.one_of(st.integers(0, SPAN), st.just(NEVER))
entity = st.integers(-1, NUM_ENTITIES - 1)
rows_of_tables = st.lists(st.tuples(entity, time, time), max_size=14)
queries = st.lists(st.tuples(st.integers(-1, NUM_ENTITIES), time), max_size=10)


def rule(rows: list[Row], query: Query, ttl: int | None) -> int:
    """The plain statement, row by row."""
    who, as_of = query
    allowed = [
        (event, ingest, n)
        for n, (entity, event, ingest) in enumerate(rows)
        if entity == who >= 0
        and NEVER not in (event, ingest, as_of)
        and event <= as_of
        and ingest <= as_of
        and (ttl is None or event >= as_of - ttl)
    ]
    return max(allowed)[2] if allowed else NO_ROW


def columns(rows: list[tuple[int, ...]], width: int) -> list[IntArray]:
    return list(np.array(rows, np.int64).reshape(-1, width).T.copy())


def fast(rows: list[Row], queries: list[Query], ttl: int | None) -> list[int]:
    return find_answers(*columns(rows, 3), NUM_ENTITIES).as_of(*columns(queries, 2), ttl=ttl).tolist()


def random_tables(num_tables: int) -> Iterator[tuple[list[Row], list[Query], int | None]]:
    """Few distinct times, so that ties, restatements, late rows and nulls are common."""
    rng = np.random.default_rng(20240607)
    for _ in range(num_tables):
        num_rows, span = rng.integers(0, 25), rng.integers(1, 12)
        event = rng.integers(0, span, num_rows)
        ingest = event + rng.integers(-1, 5, num_rows) * rng.integers(0, 2, num_rows)
        for column in (event, ingest):
            column[rng.random(num_rows) < 0.05] = NEVER
        rows = list(
            zip(rng.integers(-1, NUM_ENTITIES, num_rows).tolist(), event.tolist(), ingest.tolist(), strict=True)
        )
        asked = [(int(rng.integers(-1, NUM_ENTITIES + 1)), int(rng.integers(-1, span + 6))) for _ in range(12)]
        yield rows, asked, None if rng.random() < 0.5 else int(rng.integers(0, 5))


def disagreements(answer: Callable[[list[Row], Query], int], num_tables: int = 300) -> int:
    """Tables on which an answer without ttl differs from the rule."""
    return sum(
        any(answer(rows, query) != rule(rows, query, None) for query in asked)
        for rows, asked, _ in random_tables(num_tables)
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=rows_of_tables, asked=queries, ttl=st.one_of(st.none(), st.integers(0, SPAN)))
def test_every_small_table_follows_the_rule(rows: list[Row], asked: list[Query], ttl: int | None) -> None:
    assert fast(rows, asked, ttl) == [rule(rows, query, ttl) for query in asked]


def test_thousands_of_random_tables_follow_the_rule() -> None:
    wrong = [
        (rows, asked, ttl)
        for rows, asked, ttl in random_tables(5000)
        if fast(rows, asked, ttl) != [rule(rows, query, ttl) for query in asked]
    ]
    assert not wrong


def test_ignoring_when_rows_became_known_is_wrong() -> None:
    def blind(rows: list[Row], query: Query) -> int:
        return rule([(who, event, event if ingest != NEVER else NEVER) for who, event, ingest in rows], query, None)

    assert disagreements(blind) > 50


def test_taking_the_last_known_row_is_wrong() -> None:
    """Without the running maximum a late or restated old row hides the newer one."""

    def last_known(rows: list[Row], query: Query) -> int:
        who, as_of = query
        known = [
            (max(event, ingest), n)
            for n, (entity, event, ingest) in enumerate(rows)
            if entity == who >= 0 and NEVER not in (event, ingest) and max(event, ingest) <= as_of
        ]
        return max(known)[1] if known else NO_ROW

    assert disagreements(last_known) > 50


def test_sorting_by_event_time_only_is_wrong() -> None:
    """An as-of join on event_time, checked for knowledge afterwards, loses the answer it should fall back to."""

    def by_event(rows: list[Row], query: Query) -> int:
        who, as_of = query
        past = [
            (event, n)
            for n, (entity, event, ingest) in enumerate(rows)
            if entity == who >= 0 and NEVER not in (event, ingest) and event <= as_of
        ]
        return max(past)[1] if past and rows[max(past)[1]][2] <= as_of else NO_ROW

    assert disagreements(by_event) > 50


def test_skipping_nulls_in_the_moment_of_knowledge_is_wrong() -> None:
    """``greatest`` and ``max_horizontal`` would date a row without ingest time by its event time."""

    def lenient(rows: list[Row], query: Query) -> int:
        return rule([(who, event, event if ingest == NEVER else ingest) for who, event, ingest in rows], query, None)

    assert disagreements(lenient) > 30


def test_ttl_is_inclusive_and_checked_on_the_answer() -> None:
    rows = [(0, 10, 10), (0, 8, 12)]
    assert fast(rows, [(0, 15), (0, 16)], 5) == [0, NO_ROW]


def test_exact_ties_go_to_the_last_written() -> None:
    assert fast([(0, 1, 2), (0, 1, 2), (1, 0, 0), (0, 1, 2)], [(0, 2), (1, 5)], None) == [3, 2]


def test_unknown_entities_and_empty_tables_have_no_answer() -> None:
    assert fast([], [(0, 5), (NUM_ENTITIES, 5), (-1, 5)], None) == [NO_ROW] * 3


def test_answers_between_are_those_that_changed_what_is_known() -> None:
    rows = [(0, 1, 1), (0, 3, 3), (0, 2, 5), (0, 3, 6), (1, 4, 4)]  # row 2 is late and never the answer
    answers = find_answers(*columns(rows, 3), 2)
    assert answers.row_K[answers.between(1, 6)].tolist() == [1, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_a_block_is_sorted_like_numpy_does(seed: int) -> None:
    known = np.random.default_rng(seed).integers(0, 40, 37 + 200 * seed)
    order = np.argsort(known, kind="stable")
    for sort in (join._sort_block, join._sort_block.py_func):
        block, row = known.copy(), np.arange(known.size)
        sort(block, row)
        np.testing.assert_array_equal(row, order)
        np.testing.assert_array_equal(block, known[order])


@pytest.mark.parametrize("seed", range(5))
def test_kernels_equal_their_python(seed: int) -> None:
    rng = np.random.default_rng(seed)
    entity, event, ingest = rng.integers(-1, 4, 60), rng.integers(0, 20, 60), rng.integers(0, 25, 60)
    ingest[::9] = NEVER
    frozen = [join._frozen(column) for column in (entity, event, ingest)]
    blocks = join._by_entity(*frozen, 4)
    for jitted, plain in zip(blocks, join._by_entity.py_func(*frozen, 4), strict=True):
        np.testing.assert_array_equal(jitted, plain)
    kept, by_python = ([part.copy() for part in blocks] for _ in range(2))
    start_E, known = join._keep_answers(*kept)
    np.testing.assert_array_equal(start_E, join._keep_answers.py_func(*by_python)[0])
    for jitted, plain in zip(kept[1:], by_python[1:], strict=True):
        np.testing.assert_array_equal(jitted, plain)
    asked = join._frozen(rng.integers(-1, 5, 40)), join._frozen(rng.integers(0, 30, 40))
    index = start_E, kept[1], known, kept[2]
    np.testing.assert_array_equal(join._look_up(*index, *asked, 6), join._look_up.py_func(*index, *asked, 6))
