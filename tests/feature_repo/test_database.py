from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from feature_repo.database import DatabaseError, connect, migrate

Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Makes a package ``owner`` whose migrations are the keywords; call it again to change them."""
    folder = tmp_path / "owner"
    (folder / "migrations").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**migrations: str) -> str:
        for old in (folder / "migrations").iterdir():
            old.unlink()
        for name, sql in migrations.items():
            (folder / "migrations" / f"{name.lstrip('m')}.sql").write_text(sql)
        return "owner"

    yield write
    sys.modules.pop("owner", None)


def _tables(dsn: str) -> set[str]:
    with connect(dsn) as connection:
        return {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_migrations_run_once_and_in_order(dsn: str, package: Package) -> None:
    owner = package(m0002_more="ALTER TABLE a ADD y int; CREATE TABLE b (x int)", m0001_first="CREATE TABLE a (x int)")
    assert migrate(dsn, owner) == ["0001_first.sql", "0002_more.sql"]
    assert migrate(dsn, owner) == []
    assert _tables(dsn) == {"a", "b", "schema_migrations"}


def test_a_new_migration_is_applied_alone(dsn: str, package: Package) -> None:
    migrate(dsn, package(m0001_first="CREATE TABLE a (x int)"))
    assert migrate(dsn, package(m0001_first="CREATE TABLE a (x int)", m0002_b="CREATE TABLE b (x int)")) == [
        "0002_b.sql"
    ]


def test_a_failing_migration_leaves_nothing_of_itself(dsn: str, package: Package) -> None:
    broken = package(m0001_first="CREATE TABLE a (x int)", m0002_bad="CREATE TABLE b (x int); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(dsn, broken)
    assert _tables(dsn) == {"a", "schema_migrations"}
    assert migrate(dsn, package(m0001_first="CREATE TABLE a (x int)", m0002_bad="CREATE TABLE b (x int)")) == [
        "0002_bad.sql"
    ]


def test_an_edited_migration_is_refused_before_anything_runs(dsn: str, package: Package) -> None:
    migrate(dsn, package(m0001_first="CREATE TABLE a (x int)"))
    edited = package(m0001_first="CREATE TABLE a (x bigint)", m0002_b="CREATE TABLE b (x int)")
    with pytest.raises(DatabaseError, match=r"owner/0001_first\.sql was edited after it was applied"):
        migrate(dsn, edited)
    assert "b" not in _tables(dsn)


def test_a_database_from_the_future_is_refused(dsn: str, package: Package) -> None:
    migrate(dsn, package(m0001_first="CREATE TABLE a (x int)", m0002_b="CREATE TABLE b (x int)"))
    with pytest.raises(DatabaseError, match=r"0002_b\.sql, this version of Perennial does not know it"):
        migrate(dsn, package(m0001_first="CREATE TABLE a (x int)"))


@pytest.mark.parametrize("names", [("m0001_a", "m0001_b"), ("mfirst",), ("m1_a",)])
def test_bad_file_names_are_refused(dsn: str, package: Package, names: tuple[str, ...]) -> None:
    with pytest.raises(DatabaseError, match=r"NNNN_name\.sql"):
        migrate(dsn, package(**dict.fromkeys(names, "SELECT 1")))


def test_two_migrators_at_once_take_turns(dsn: str, package: Package) -> None:
    owner = package(m0001_slow="SELECT pg_sleep(0.3); CREATE TABLE a (x int)", m0002_b="CREATE TABLE b (x int)")
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda _: migrate(dsn, owner), range(4)))
    assert sorted(applied, key=len) == [[], [], [], ["0001_slow.sql", "0002_b.sql"]]


def test_what_was_applied_is_recorded(dsn: str, package: Package) -> None:
    owner = package(m0001_first="CREATE TABLE a (x int)")
    migrate(dsn, owner)
    with connect(dsn) as connection:
        rows = connection.execute("SELECT package, name, length(sha256) FROM schema_migrations").fetchall()
    assert rows == [("owner", "0001_first.sql", 64)]


def test_an_absent_server_is_a_clear_error() -> None:
    with pytest.raises(DatabaseError, match="Postgres did not answer"):
        connect("postgresql://nobody@127.0.0.1:1/nothing")
