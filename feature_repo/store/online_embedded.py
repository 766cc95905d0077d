"""The embedded backend of the online store: one SQLite file, no server.

It is in write-ahead mode, so readers never wait for a writer, and a killed writer leaves the last committed state. The
file is a cache that materialisation fills again, so a commit isn't flushed to disk: after a power cut the last writes
may be gone, the file is sound.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Final

from feature_repo.store.packed import OnlineStoreError, times_of

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_WAIT_S: Final = 10.0
_KEYS_AT_ONCE: Final = 1000  # SQLite's oldest limit of parameters is 999 + the clock
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS packed (
        key BLOB PRIMARY KEY,
        event_time INTEGER NOT NULL,
        ingest_time INTEGER NOT NULL,
        expires_at INTEGER,
        value BLOB NOT NULL
    ) WITHOUT ROWID
"""
_READ: Final = "SELECT key, value FROM packed WHERE key IN ({}) AND (expires_at IS NULL OR expires_at > ?)"
_WRITE: Final = """
    INSERT INTO packed VALUES (:key, :event, :ingest, :expires, :value)
    ON CONFLICT (key) DO UPDATE SET
        event_time = excluded.event_time,
        ingest_time = excluded.ingest_time,
        expires_at = excluded.expires_at,
        value = excluded.value
    WHERE (excluded.event_time, excluded.ingest_time) >= (packed.event_time, packed.ingest_time)
        OR packed.expires_at <= :now
"""
_DROP: Final = "DELETE FROM packed WHERE substr(key, 1, length(:prefix)) = :prefix"


class _Connections:
    """A process's two connections, so that its readers need not wait for its writer either."""

    def __init__(self, file: Path) -> None:
        self.reader, self.reading = _connect(file), Lock()
        self.writer, self.writing = _connect(file), Lock()


class EmbeddedBackend:
    """Packed values in ``folder/online.sqlite``, for any number of threads and processes.

    An entry lives for ``entry_ttl``, or until it is replaced; ``clock`` gives the aware time that it is measured by.
    """

    def __init__(
        self,
        folder: Path,
        *,
        entry_ttl: timedelta | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._file = folder / "online.sqlite"
        self._entry_ttl = entry_ttl
        self._clock = clock
        self._of_process: dict[int, _Connections] = {}  # a fork must neither use nor close its parent's
        _create(self._file)

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value under each key."""
        now, connections = self._now(), self._connections()
        found: dict[bytes, bytes] = {}
        with connections.reading, _explained(self._file):
            for at in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[at : at + _KEYS_AT_ONCE]
                found.update(connections.reader.execute(_READ.format(",".join("?" * len(some))), (*some, now)))
        return [found.get(key) for key in keys]

    def write_newer(self, items: Sequence[tuple[bytes, bytes]]) -> int:
        """Store each value under its key unless a later one is there; returns how many were stored, all or none."""
        now, connections = self._now(), self._connections()
        expires = None if self._entry_ttl is None else now + self._entry_ttl // _MICROSECOND
        rows = [
            {"key": key, "event": event, "ingest": ingest, "expires": expires, "value": value, "now": now}
            for key, value in items
            for event, ingest in [times_of(value)]
        ]
        with connections.writing, _explained(self._file), _transaction(connections.writer) as writer:
            return writer.executemany(_WRITE, rows).rowcount

    def drop(self, prefix: bytes) -> None:
        """Forget every key that starts with ``prefix``."""
        connections = self._connections()
        with connections.writing, _explained(self._file), _transaction(connections.writer) as writer:
            writer.execute(_DROP, {"prefix": prefix})

    def close(self) -> None:
        """Close this process's connections; the next call opens new ones."""
        connections = self._of_process.pop(os.getpid(), None)
        if connections is not None:
            connections.reader.close()
            connections.writer.close()

    def _connections(self) -> _Connections:
        process = os.getpid()
        if process not in self._of_process:
            with _explained(self._file):
                self._of_process.setdefault(process, _Connections(self._file))
        return self._of_process[process]

    def _now(self) -> int:
        return (self._clock() - _EPOCH) // _MICROSECOND


def _create(file: Path) -> None:
    """Make the file where there is none; one process at a time, as two can't switch to write-ahead mode at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / "_lock").open("w") as lock, _explained(file):
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _connect(file)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_TABLE)
        connection.close()


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OnlineStoreError(
            f"the online store {file} did not answer: {error}; when it is damaged, delete it and materialize again"
        ) from error
