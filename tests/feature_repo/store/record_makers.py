"""A migrated database that the tests of a file share: each test has views of its own in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from feature_repo.database import connect, migrate
from flows import postgres


@contextmanager
def migrated_database(databases: postgres.Databases) -> Iterator[str]:
    """DSN of a database that is gone afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with connect(databases.dsn("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        migrate(databases.dsn(name), "feature_repo")
        yield databases.dsn(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def new_view() -> str:
    """Name of a view that no other test uses."""
    return f"view_{uuid.uuid4().hex}"
