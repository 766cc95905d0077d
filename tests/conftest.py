"""What all tests share: a quiet environment that is not the user's, and an embedded Postgres in a temporary home."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from flows import postgres
from flows.settings import PREFIX, Settings, quiet_environment

# The same examples on every machine, so that green here is green in CI; --hypothesis-profile=default explores others.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")

_HOME = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before a test module imports MLflow, Prefect or Evidently."""
    for name in [name for name in os.environ if name.startswith((PREFIX, "MLFLOW_", "PREFECT_"))]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="perennial-tests-"))
    config.stash[_HOME] = home
    os.environ.update(quiet_environment(Settings(home=home)))
    del os.environ[f"{PREFIX}HOME"]  # a test that forgets to say where must not share the session's home


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


@pytest.fixture(scope="session")
def session_settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of the test session (of each worker of pytest-xdist), in a temporary home."""
    return Settings(home=request.config.stash[_HOME])


@pytest.fixture(scope="session")
def databases(session_settings: Settings) -> Iterator[postgres.Databases]:
    """A running embedded Postgres with the platform's four databases, shared by the session; never skipped."""
    hold = postgres.Hold(session_settings)
    yield hold.databases
    hold.release()
    postgres.remove(session_settings)


@pytest.fixture
def fresh_database(databases: postgres.Databases) -> Iterator[str]:
    """Name of an empty database of its own: ``databases.dsn(fresh_database)`` or ``databases.url(...)``."""
    from feature_repo.database import connect

    name = f"test_{uuid.uuid4().hex}"
    with connect(databases.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield name
    with connect(databases.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def dsn(databases: postgres.Databases, fresh_database: str) -> str:
    """DSN of an empty database of its own."""
    return databases.dsn(fresh_database)
