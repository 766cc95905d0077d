"""Where a retrieval runs and how much of the history it holds: whole, entity by entity, or so on a Ray cluster.

Whole, the rule is applied to all rows at once and columns are read as a whole: the fastest, with memory for the key
columns and a dozen columns of the history. Split, the entities that are asked about are dealt out to partitions. A
partition reads keys and times batch by batch, keeps those of its own entities and finds which rows answer; then the
features are read batch by batch and only those rows are kept. Memory is for one partition's keys and times, a row group
and the result.

An entity's rows stay together and in written order, so each partition gives what the whole would. A row belongs to a
partition when its key equals one of the partition's, as ``Keys`` compares keys: no hash is taken whose value could
differ between two representations of a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from feature_repo.ray_connection import RayConnectionError, connected
from feature_repo.store.join import NO_ROW, Answers, IntArray
from feature_repo.store.parquet import COLUMNS_AT_ONCE, History, Keys, OfflineStoreError, Taker, gather, plain, scan

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")


class Run(Protocol):
    """Does the jobs of a task, and yields their results in order; ``shared`` is the same for all."""

    def __call__(
        self, task: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job]
    ) -> Iterator[Result]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Rows that became their entity's answer, and when: both (n,), in any order."""

    row: IntArray
    known: IntArray


class Reader(Protocol):
    """What a retrieval asks of the files; rows are numbers of the dataset's rows."""

    def find(
        self, history: History, dataset: ds.Dataset, queries: pa.Table, time_Q: IntArray, ttl: int | None
    ) -> IntArray:
        """Row of the answer to each (key, as-of time), ``NO_ROW`` where there is none."""

    def changes(self, history: History, dataset: ds.Dataset, after: int, until: int, *, latest: bool) -> Changes:
        """Rows that became the answer in ``(after, until]``; ``latest`` keeps each entity's last."""

    def gather(self, dataset: ds.Dataset, columns: Sequence[str], find: Callable[[], IntArray]) -> pa.Table:
        """The named columns at the rows that ``find`` returns, null at ``NO_ROW``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """How a store retrieves; ``ray_address`` is ``ray.init``'s, ``None`` for a Ray of this machine."""

    kind: Literal["local", "ray"]
    partitions: int
    ray_address: str | None

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The reader for one retrieval."""
        if self.kind == "ray":
            with _connected(self.ray_address):
                yield Split(partitions=self.partitions, run=_run_on_ray)
        elif self.partitions > 1:
            yield Split(partitions=self.partitions, run=_run_here)
        else:
            yield Whole()


class Whole:
    """Reads everything at once: the rows are looked for while the first columns are read."""

    def find(
        self, history: History, dataset: ds.Dataset, queries: pa.Table, time_Q: IntArray, ttl: int | None
    ) -> IntArray:
        answers, entity_Q = history.answers(dataset, queries)
        return answers.as_of(entity_Q, time_Q, ttl=ttl)

    def changes(self, history: History, dataset: ds.Dataset, after: int, until: int, *, latest: bool) -> Changes:
        nobody = pa.table({str(at): pa.nulls(0) for at in range(len(history.keys))})
        answers, _ = history.answers(dataset, nobody)
        at = _changed(answers, after, until, latest=latest)
        return Changes(row=answers.row_K[at], known=answers.known_K[at])

    def gather(self, dataset: ds.Dataset, columns: Sequence[str], find: Callable[[], IntArray]) -> pa.Table:
        return gather(dataset, columns, find)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Reads entity by entity: entity ``e`` of those there are is in partition ``e % partitions``.

    There are no more partitions than entities.
    """

    partitions: int
    run: Run

    def find(
        self, history: History, dataset: ds.Dataset, queries: pa.Table, time_Q: IntArray, ttl: int | None
    ) -> IntArray:
        entities, entity_Q = _distinct(history.typed_keys(dataset, queries), len(time_Q))
        share = self._deal(history, dataset, entities)
        search = _Search(share=share, entity_Q=entity_Q, time_Q=time_Q, ttl=ttl)
        row_Q = np.full(len(time_Q), NO_ROW, np.int64)
        for part, rows in enumerate(self.run(_find_in, search, range(share.num_parts))):
            row_Q[search.asked(part)] = rows
        return row_Q

    def changes(self, history: History, dataset: ds.Dataset, after: int, until: int, *, latest: bool) -> Changes:
        share = self._deal(history, dataset, history.entities(dataset))
        task = partial(_changes_in, after=after, until=until, latest=latest)
        found = list(self.run(task, share, range(share.num_parts)))
        return Changes(
            row=np.concatenate([part.row for part in found]), known=np.concatenate([part.known for part in found])
        )

    def gather(self, dataset: ds.Dataset, columns: Sequence[str], find: Callable[[], IntArray]) -> pa.Table:
        names = list(dict.fromkeys(columns))
        groups = [names[at : at + COLUMNS_AT_ONCE] for at in range(0, len(names), COLUMNS_AT_ONCE)]
        rows, at = np.unique(find(), return_inverse=True)
        if rows.size and rows[0] == NO_ROW:
            rows, at = rows[1:], at - 1
        take = Taker(at)
        tables = self.run(_rows_of, (dataset, pa.array(rows)), groups)
        arrays = [take(plain(column)) for table in tables for column in table.columns]
        return pa.table(arrays, names=names).select(list(columns))

    def _deal(self, history: History, dataset: ds.Dataset, entities: pa.Table) -> _Share:
        num_parts = max(1, min(self.partitions, entities.num_rows))
        return _Share(history=history, dataset=dataset, entities=entities, num_parts=num_parts)


# A partition's tasks. What they share is sent to the cluster once.


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """Entities (a row of keys each) and the partitions they are dealt out to, one after the other."""

    history: History
    dataset: ds.Dataset
    entities: pa.Table
    num_parts: int

    def answers(self, part: int) -> tuple[Answers, IntArray, IntArray]:
        """The answers of a partition's entities, their codes in it, and the dataset's row of each of its rows."""
        mine = self.entities.take(np.arange(part, self.entities.num_rows, self.num_parts))
        return self.history.answers_of(self.dataset, mine)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Search:
    """As-of times of Q questions, each about one of the entities (negative: about none)."""

    share: _Share
    entity_Q: IntArray
    time_Q: IntArray
    ttl: int | None

    def asked(self, part: int) -> IntArray:
        """Positions of the questions about a partition's entities."""
        return np.flatnonzero((self.entity_Q >= 0) & (self.entity_Q % self.share.num_parts == part))


def _find_in(search: _Search, part: int) -> IntArray:
    """The dataset's row that answers each question about a partition's entities."""
    answers, code_E, row_N = search.share.answers(part)
    asked = search.asked(part)
    code_Q = code_E[search.entity_Q[asked] // search.share.num_parts]
    found_Q = answers.as_of(code_Q, search.time_Q[asked], ttl=search.ttl)
    return np.append(row_N, NO_ROW)[found_Q]  # NO_ROW is the last


def _changes_in(share: _Share, part: int, *, after: int, until: int, latest: bool) -> Changes:
    answers, _, row_N = share.answers(part)
    at = _changed(answers, after, until, latest=latest)
    return Changes(row=row_N[answers.row_K[at]], known=answers.known_K[at])


def _rows_of(source: tuple[ds.Dataset, pa.Array], names: list[str]) -> pa.Table:
    """The columns at ascending rows."""
    dataset, rows = source
    return scan(dataset, names).take(rows)


def _distinct(keys: pa.Table, num_rows: int) -> tuple[pa.Table, IntArray]:
    """The distinct keys, and which of them each row has: (num_rows,), negative where one is null."""
    if not keys.num_columns:
        return keys, np.zeros(num_rows, np.int64)
    _, code_Q = Keys.of(keys)
    there = np.flatnonzero(code_Q >= 0)
    _, first, entity = np.unique(code_Q[there], return_index=True, return_inverse=True)
    entity_Q = np.full(num_rows, -1)
    entity_Q[there] = entity
    return keys.take(there[first]), entity_Q


def _changed(answers: Answers, after: int, until: int, *, latest: bool) -> IntArray:
    """Positions in the answers of those that came in ``(after, until]``."""
    at = answers.between(after, until)
    if not latest:
        return at
    entity = np.searchsorted(answers.start_E, at, side="right")
    return at[np.append(entity[1:] != entity[:-1], np.ones(min(len(at), 1), bool))]  # the last of each run


# Where the tasks run.


def _run_here(task: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job]) -> Iterator[Result]:
    """One after the other."""
    return (task(shared, job) for job in jobs)


def _run_on_ray(task: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job]) -> Iterator[Result]:
    """Side by side on the cluster that is connected; it must see the same files and have this package installed."""
    import ray

    held, do = ray.put(shared), cast(Any, ray.remote(_do))
    waiting = [do.remote(task, held, job) for job in jobs]
    while waiting:
        try:
            yield ray.get(waiting.pop(0))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OfflineStoreError):
                raise error.cause from error
            raise


def _do(task: Callable[[Shared, Job], Result], shared: Shared, job: Job) -> Result:
    return task(shared, job)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    try:
        with connected(address):
            yield
    except RayConnectionError as error:
        raise OfflineStoreError(
            f"offline_store has engine: ray and ray_address: {address}, but {error}; or set engine: local"
        ) from error
