"""Postgres for every package: connections, and the numbered migrations that each package owns.

A package keeps ``migrations/NNNN_name.sql``; a file that was applied is never edited, a change is a new file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import psycopg

_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_LOCK = 7_305_081_943  # any constant: all migrators of one database take the same advisory lock
_RECORD = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        package text NOT NULL,
        name text NOT NULL,
        sha256 text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (package, name)
    )
"""


class DatabaseError(RuntimeError):
    """The database can't be reached or its schema is not ours; the message says what, got and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One numbered SQL file of a package."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Hash of its text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def connect(dsn: str, *, autocommit: bool = False) -> psycopg.Connection:
    """Open a connection; used as a context manager it commits, or rolls back on an error, and closes."""
    try:
        return psycopg.connect(dsn, autocommit=autocommit, connect_timeout=10)
    except psycopg.OperationalError as error:
        raise DatabaseError(
            f"Postgres did not answer: {str(error).strip()}: check PERENNIAL_DATABASE_URL and that the server runs"
        ) from error


def migrate(dsn: str, package: str) -> list[str]:
    """Apply the package's migrations that this database lacks, in order, each in its own transaction.

    Returns the names applied now. Safe to run again and from several processes at once; an applied migration that
    was edited or is gone is refused before anything is run.
    """
    migrations = _read(package)
    with connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))  # let go when the connection closes
        connection.execute(_RECORD)
        applied = _applied(connection, package)
        _check(package, migrations, applied)
        pending = [migration for migration in migrations if migration.name not in applied]
        for migration in pending:
            _apply(connection, package, migration)
    return [migration.name for migration in pending]


def _read(package: str) -> list[Migration]:
    folder = files(package) / "migrations"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    numbers = [match[1] for item in found if (match := _FILE_NAME.fullmatch(item.name))]
    if len(numbers) < len(found) or len(set(numbers)) < len(numbers):
        names = ", ".join(item.name for item in found)
        raise DatabaseError(f"migrations of {package} are NNNN_name.sql, each number once; got {names}: rename them")
    return [Migration(name=item.name, sql=item.read_text(encoding="utf-8")) for item in found]


def _applied(connection: psycopg.Connection, package: str) -> dict[str, str]:
    rows = connection.execute("SELECT name, sha256 FROM schema_migrations WHERE package = %s", (package,)).fetchall()
    return dict(rows)


def _check(package: str, migrations: Sequence[Migration], applied: Mapping[str, str]) -> None:
    known = {migration.name: migration.sha256 for migration in migrations}
    for name, sha256 in sorted(applied.items()):
        if name not in known:
            raise DatabaseError(
                f"the database has the migration {package}/{name}, this version of Perennial does not know it: "
                "install the newer version that wrote it"
            )
        if known[name] != sha256:
            raise DatabaseError(
                f"the migration {package}/{name} was edited after it was applied (applied {sha256[:12]}, "
                f"file {known[name][:12]}): restore the file and put the change in a new migration"
            )


def _apply(connection: psycopg.Connection, package: str, migration: Migration) -> None:
    with connection.transaction():
        connection.execute(migration.sql)  # our own file, and several statements at once
        connection.execute(
            "INSERT INTO schema_migrations (package, name, sha256) VALUES (%s, %s, %s)",
            (package, migration.name, migration.sha256),
        )
