"""A real registry and a real audit log, for whatever changes stages."""

import pytest

from feature_repo.database import connect as connect_postgres
from tests.databases import migrated_database
from tests.training.rating.stage_desk import Desk
from training.rating.audit import AuditLog
from training.tracking import connect


@pytest.fixture(scope="module")
def hasty_commits():
    """Thousands of small commits need not each wait for the disk here; libpq reads this variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGOPTIONS", "-c synchronous_commit=off")
        yield


@pytest.fixture(scope="module")
def dsn(databases):
    """One database for all tests of a module."""
    with migrated_database(databases, "training") as dsn:
        yield dsn


@pytest.fixture(scope="module")
def client(databases, hasty_commits):
    return connect(databases.url("mlflow"))


@pytest.fixture(scope="module")
def log(dsn, hasty_commits, tmp_path_factory):
    """One audit log for all tests of a module, each with a market of its own."""
    with connect_postgres(dsn, autocommit=True) as connection:
        yield AuditLog(connection=connection, head_file=tmp_path_factory.mktemp("audit") / "head.json")


@pytest.fixture
def desk(client, log):
    yield (made := Desk(client=client, log=log))
    assert log.verify().ok, made.market
