"""A migrated database that the tests of a file share, since making one takes longer than most tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from feature_repo.database import connect, migrate
from flows import postgres


@contextmanager
def migrated_database(databases: postgres.Databases, package: str) -> Iterator[str]:
    """DSN of a database with this package's tables that is gone afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with connect(databases.dsn("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        migrate(databases.dsn(name), package)
        yield databases.dsn(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
