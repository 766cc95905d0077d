"""The rows of an event against a list of statements that is searched, over thousands of random sequences of writes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.store.completion import EventRow, Statement, rows_to_add

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)
NUM_DATES = 6

Said = dict[str, Any]
Write = tuple[tuple[int | None, Said], ...]  # (date or None, features) of one write
Rule = Callable[[Sequence[EventRow], Sequence[Statement], datetime], list[EventRow]]

said = st.dictionaries(st.sampled_from("abc"), st.sampled_from([None, 1.0, 2.0]), min_size=1)
dated = st.dictionaries(st.integers(0, NUM_DATES), said, min_size=1, max_size=3).map(lambda said: tuple(said.items()))
undated = said.map(lambda features: ((None, features),))
writes = st.lists(st.one_of(dated, dated, undated), min_size=1, max_size=7)


def hour(number: float) -> datetime:
    return START + number * HOUR


class Statements:
    """The plain statement of the rule: every (feature, date, value, origin) is kept, and the list is searched."""

    def __init__(self) -> None:
        self.all: list[tuple[str, datetime, Any, datetime]] = []

    def about(self, name: str, until: datetime) -> list[tuple[str, datetime, Any, datetime]]:
        return sorted((one for one in self.all if one[0] == name and one[1] <= until), key=lambda one: one[1])

    def current(self, name: str) -> tuple[Any, datetime] | None:
        about = self.about(name, datetime.max.replace(tzinfo=UTC))
        return about[-1][2:] if about else None

    def write(self, write: Write, now: datetime) -> None:
        end = max([now, *(date + TICK for _, date, _, _ in self.all)])
        for number, features in write:
            if number is None and any(
                self.current(name) != (value, self._origin(name)) for name, value in features.items()
            ):
                self.all += [(name, end, value, end) for name, value in features.items()]
        dates = sorted((hour(number), features) for number, features in write if number is not None)
        for date, features in dates:
            taken = {name for name, at, _, _ in self.all if at == date}
            self.all += [(name, date, value, date) for name, value in features.items() if name not in taken]
        for date, features in reversed(dates):
            newer = {name for at, said in dates if at > date for name in said}
            newest = {name: value for name, value in features.items() if name not in newer}
            older = {name: value for name, value in newest.items() if self._origin(name) <= date}
            if any(self.current(name)[0] != value for name, value in older.items()):
                end = max([now, *(at + TICK for _, at, _, _ in self.all)])
                self.all += [(name, end, value, date) for name, value in older.items()]

    def _origin(self, name: str) -> datetime | None:
        current = self.current(name)
        return current and current[1]

    def as_of(self, time: datetime) -> Said:
        return {name: about[-1][2] for name in "abc" if (about := self.about(name, time))}


def as_of(rows: Sequence[EventRow], time: datetime) -> Said:
    """The rule of ``join`` within one event: the latest ingest time, of these the last written."""
    known = [row for row in rows if row.ingest_time <= time]
    return dict(max(known, key=lambda row: row.position).features) if known else {}


def statements(write: Write) -> list[Statement]:
    return [Statement(ingest_time=None if at is None else hour(at), features=features) for at, features in write]


def moments(*rows: EventRow) -> list[datetime]:
    times = {hour(number) for number in range(-1, NUM_DATES + 30)} | {row.ingest_time for row in rows}
    return sorted(times | {time - TICK for time in times})


def play(sequence: Sequence[Write], rule: Rule = rows_to_add) -> tuple[list[EventRow], Statements]:
    """Writes an hour apart, the first in the middle of the dates."""
    rows: list[EventRow] = []
    oracle = Statements()
    for step, write in enumerate(sequence):
        now = hour(3.5 + step)
        rows += rule(rows, statements(write), now)
        oracle.write(write, now)
    return rows, oracle


def agrees(sequence: Sequence[Write], rule: Rule = rows_to_add) -> bool:
    rows, oracle = play(sequence, rule)
    return all(as_of(rows, time) == oracle.as_of(time) for time in moments(*rows))


def random_writes(num_sequences: int) -> Iterator[list[Write]]:
    rng = random.Random(20240607)
    for _ in range(num_sequences):
        yield [_random_write(rng) for _ in range(rng.randint(1, 6))]


def _random_write(rng: random.Random) -> Write:
    def features() -> Said:
        return {name: rng.choice([None, 1.0, 2.0]) for name in rng.sample("abc", rng.randint(1, 3))}

    if rng.random() < 0.3:
        return ((None, features()),)
    return tuple((date, features()) for date in rng.sample(range(NUM_DATES + 1), rng.randint(1, 2)))


@settings(max_examples=400)
@given(writes)
def test_at_every_moment_the_last_row_says_what_was_said_last(sequence: list[Write]) -> None:
    assert agrees(sequence)


def test_thousands_of_random_sequences_agree() -> None:
    assert all(agrees(sequence) for sequence in random_writes(800))


@settings(max_examples=200)
@given(writes)
def test_the_same_write_again_adds_nothing(sequence: list[Write]) -> None:
    rows, _ = play(sequence)
    assert rows_to_add(rows, statements(sequence[-1]), hour(40)) == []


@settings(max_examples=200)
@given(writes)
def test_rows_are_unique_and_come_in_any_order(sequence: list[Write]) -> None:
    rows, _ = play(sequence[:-1])
    added = rows_to_add(rows, statements(sequence[-1]), hour(40))
    assert added == rows_to_add(rows[::-1], statements(sequence[-1])[::-1], hour(40))
    positions = [row.position for row in [*rows, *added]]
    assert len(set(positions)) == len(positions)
    assert all(row.stated <= row.features.keys() for row in added)


@settings(max_examples=200)
@given(writes)
def test_a_restatement_comes_after_every_row_and_not_before_now(sequence: list[Write]) -> None:
    rows, _ = play(sequence[:-1])
    now = hour(4)
    for row in rows_to_add(rows, statements(sequence[-1]), now):
        if row.restates is not None:
            assert row.ingest_time >= now
            assert all(row.ingest_time > other.ingest_time for other in rows)


@settings(max_examples=100)
@given(st.dictionaries(st.tuples(st.integers(0, NUM_DATES), st.sampled_from("abc")), st.sampled_from([None, 1.0, 2.0])))
def test_dated_statements_may_arrive_in_any_order(said: dict[tuple[int, str], Any]) -> None:
    """Also where a value is confirmed: between it and the first a different one may turn up."""
    in_order = [((date, {name: value}),) for (date, name), value in sorted(said.items(), key=lambda one: one[0])]
    shuffled = random.Random(0).sample(in_order, len(in_order))
    one, other = play(in_order)[0], play(shuffled)[0]
    assert all(as_of(one, time) == as_of(other, time) for time in moments(*one, *other))


def test_leaving_out_what_says_the_same_value_again_is_wrong() -> None:
    """A later date that confirms a value is news: without it a statement that turns up in between would stand."""

    def only_changes(rows: Sequence[EventRow], said: Sequence[Statement], now: datetime) -> list[EventRow]:
        changing = [
            one
            for one in said
            if one.ingest_time is None
            or any(as_of(rows, one.ingest_time).get(name, "none") != value for name, value in one.features.items())
        ]
        return rows_to_add(rows, changing, now)

    assert sum(not agrees(sequence, only_changes) for sequence in random_writes(300)) > 20


def test_not_carrying_into_later_rows_is_wrong() -> None:
    def no_copies(rows: Sequence[EventRow], said: Sequence[Statement], now: datetime) -> list[EventRow]:
        return [row for row in rows_to_add(rows, said, now) if row.stated]

    assert sum(not agrees(sequence, no_copies) for sequence in random_writes(300)) > 20


def test_completing_from_the_row_written_last_is_wrong() -> None:
    """It hands what was learned later to a statement dated before."""

    def from_last_written(rows: Sequence[EventRow], said: Sequence[Statement], now: datetime) -> list[EventRow]:
        newest = dict(rows[-1].features) if rows else {}
        return [
            EventRow(
                ingest_time=one.ingest_time or now,
                revision=len(rows) + at,
                features=newest | one.features,
                stated=frozenset(one.features),
                restates=None,
            )
            for at, one in enumerate(said)
        ]

    assert sum(not agrees(sequence, from_last_written) for sequence in random_writes(300)) > 100


def test_a_partial_write_is_completed_from_the_row_before() -> None:
    rows, _ = play([((0, {"a": 1.0, "b": 1.0}),), ((2, {"b": 2.0}),)])
    assert [row.features for row in rows] == [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}]
    assert rows[1].stated == {"b"}


def test_a_backdated_feature_is_copied_into_later_rows_that_lack_it() -> None:
    rows, _ = play([((0, {"a": 1.0}),), ((4, {"a": 2.0}),), ((2, {"b": 5.0}),)])
    added = {row.position: row for row in rows[2:]}
    assert added[hour(2), 0].features == {"a": 1.0, "b": 5.0}
    assert added[hour(4), 1].features == {"a": 2.0, "b": 5.0}
    assert added[hour(4), 1].stated == frozenset()


def test_two_producers_may_say_their_parts_for_one_date() -> None:
    rows, _ = play([((0, {"a": 1.0}),), ((0, {"b": 2.0}),)])
    assert [row.position for row in rows] == [(hour(0), 0), (hour(0), 1)]
    assert rows[1].features == {"a": 1.0, "b": 2.0}
    assert rows[1].restates is None


def test_null_withdraws_and_is_not_filled_from_before() -> None:
    rows, _ = play([((0, {"a": 1.0}),), ((2, {"a": None}),), ((3, {"b": 1.0}),)])
    assert rows[-1].features == {"a": None, "b": 1.0}


@pytest.mark.parametrize("date", [0, None])
def test_a_value_goes_forth_and_back(date: int | None) -> None:
    values = [2.0, 99.0, 7.0, 2.0, None, 2.0]
    rows, _ = play([((date, {"a": value}),) for value in values])
    assert [row.features["a"] for row in rows] == values
    assert [row.ingest_time for row in rows[1:]] == [hour(4.5 + step) for step in range(5)]


def test_restatements_by_one_clock_tick_still_have_their_order() -> None:
    rows: list[EventRow] = []
    for value in (2.0, 99.0, 7.0):
        rows += rows_to_add(rows, statements(((0, {"a": value}),)), hour(1))
    assert [row.ingest_time for row in rows] == [hour(0), hour(1), hour(1) + TICK]


def test_an_older_version_said_again_does_not_come_back() -> None:
    rows, _ = play([((0, {"a": 1.0}),), ((2, {"a": 50.0}),)])
    assert rows_to_add(rows, statements(((0, {"a": 1.0}),)), hour(9)) == []
    assert rows_to_add(rows, statements(((0, {"a": 3.0}),)), hour(9)) == [], "superseded by a later date"


def test_an_older_version_that_turns_up_does_not_undo_a_correction() -> None:
    rows, _ = play([((2, {"a": 1.0}),), ((2, {"a": 99.0}),)])
    added = rows_to_add(rows, statements(((0, {"a": 0.0}),)), hour(9))
    assert [(row.ingest_time, row.features["a"]) for row in added] == [(hour(0), 0.0)]


def test_of_several_dates_of_one_write_only_the_newest_restates() -> None:
    """7, known late to have been known at 3 already, and that it was 5 before: 5 does not come back."""
    history = (((2, {"a": 5.0}),), ((2, {"a": 7.0}),), ((2, {"a": 5.0}), (3, {"a": 7.0})))
    rows, _ = play(history)
    assert [(row.ingest_time, row.features["a"]) for row in rows[2:]] == [(hour(3), 7.0)]
    assert rows_to_add(rows, statements(history[-1]), hour(9)) == []
    assert rows_to_add(rows, statements(((2, {"a": 5.0, "b": 1.0}), (3, {"a": 7.0}))), hour(9))[-1].features == {
        "a": 7.0,
        "b": 1.0,
    }


def test_a_truth_is_no_number() -> None:
    rows, _ = play([((None, {"a": 1.0}),), ((None, {"a": True}),), ((None, {"a": [1.0]}),), ((None, {"a": [True]}),)])
    assert len(rows) == 4


def test_every_order_of_three_producers_ends_alike() -> None:
    parts: list[Write] = [((0, {"a": 1.0}),), ((1, {"b": 2.0}),), ((1, {"c": 3.0}),)]
    for order in itertools.permutations(parts):
        rows, _ = play(order)
        assert as_of(rows, hour(1)) == {"a": 1.0, "b": 2.0, "c": 3.0}
        assert as_of(rows, hour(0)) == {"a": 1.0}
