from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from feature_repo.database import DatabaseError, connect
from flows import postgres
from flows.postgres import Databases, Hold, PostgresError
from flows.settings import Settings

# Holds Postgres of the home argv[1], prints the server's start time, and waits to be told to go or killed.
HOLDER = """
import sys
from pathlib import Path
from feature_repo.database import connect
from flows.postgres import Hold
from flows.settings import Settings
with Hold(Settings(home=Path(sys.argv[1]))) as hold:
    with connect(hold.databases.dsn("perennial")) as connection:
        print(connection.execute("SELECT pg_postmaster_start_time()").fetchone()[0], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One home for the module (making a cluster takes the longest); every test finds and leaves it stopped."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    yield settings
    postgres.remove(settings)


def _holder(settings: Settings) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(settings.home)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _said(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout
    return holder.stdout.readline().strip()


def _end(holder: subprocess.Popen[str]) -> None:
    holder.communicate("")


def _server(settings: Settings) -> psutil.Process:
    process = postgres._postmaster(postgres._data(settings))
    assert process
    return process


def _answer(databases: Databases) -> int:
    with connect(databases.dsn("perennial")) as connection:
        row = connection.execute("SELECT 42").fetchone()
    assert row
    return row[0]


def test_it_runs_while_held_and_stops_with_the_last_holder(home: Settings) -> None:
    assert postgres.attached(home) is None
    first, second = Hold(home), Hold(home)
    first.release()
    assert postgres.attached(home) == second.databases
    assert _answer(second.databases) == 42
    assert postgres.stop(home) is False
    second.release()
    assert postgres.attached(home) is None


def test_who_comes_while_it_stops_waits_and_starts_it_again(home: Settings) -> None:
    for _ in range(3):
        with Hold(home) as hold:
            server = _server(home)
            with connect(hold.databases.dsn("perennial"), autocommit=True) as connection:
                connection.execute("DROP TABLE IF EXISTS much")  # for the checkpoint on the way out
                connection.execute("CREATE TABLE much AS SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
        assert postgres.attached(home) is None
        with Hold(home) as hold:
            assert _answer(hold.databases) == 42
            assert _server(home) != server


def test_the_four_databases_are_there_and_speak_utc(home: Settings) -> None:
    with Hold(home) as hold:
        for name in postgres.NAMES:
            with connect(hold.databases.dsn(name)) as connection:
                row = connection.execute("SELECT current_database(), current_setting('timezone')").fetchone()
            assert row == (name, "UTC")


def test_sqlalchemy_reads_its_url(home: Settings) -> None:
    import sqlalchemy

    with Hold(home) as hold:
        engine = sqlalchemy.create_engine(hold.databases.url("optuna"))
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT current_database()")).scalar() == "optuna"
        engine.dispose()


def test_it_is_closed_to_the_network_and_to_other_users(home: Settings) -> None:
    with Hold(home):
        assert not [c for c in _server(home).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert postgres._data(home).stat().st_mode & 0o077 == 0


def test_processes_that_start_at_once_share_one_server(home: Settings) -> None:
    holders = [_holder(home) for _ in range(3)]
    started = {_said(holder) for holder in holders}
    assert len(started) == 1
    assert "" not in started
    _end(holders[0])
    _end(holders[1])
    assert postgres.attached(home)
    _end(holders[2])
    assert postgres.attached(home) is None


def test_the_server_of_a_killed_holder_is_taken_over(home: Settings) -> None:
    holder = _holder(home)
    started = _said(holder)
    holder.kill()
    holder.communicate()
    assert postgres.attached(home), "kill -9 leaves the server running"
    successor = _holder(home)
    assert _said(successor) == started
    _end(successor)
    assert postgres.attached(home) is None


def test_ctrl_c_does_not_reach_the_server(home: Settings) -> None:
    holder = _holder(home)
    _said(holder)
    server = _server(home)
    with Hold(home) as hold:
        os.killpg(holder.pid, signal.SIGINT)
        holder.communicate()
        assert _server(home) == server
        assert _answer(hold.databases) == 42


def test_a_killed_server_is_started_again(home: Settings) -> None:
    with Hold(home):
        server = _server(home)
        server.kill()
        psutil.wait_procs([server], timeout=10)
        with Hold(home) as hold:
            assert _answer(hold.databases) == 42
            assert _server(home) != server


def test_a_pid_that_another_program_has_by_now_is_no_server(home: Settings) -> None:
    with Hold(home):
        pid_file = postgres._data(home) / "postmaster.pid"
        text = pid_file.read_text().split("\n", 1)
    postgres.stop(home)  # the last one out does not wait for it
    pid_file.write_text(f"{os.getpid()}\n{text[1]}")
    assert postgres.attached(home) is None
    with Hold(home) as hold:
        assert _answer(hold.databases) == 42


def test_a_child_that_inherits_the_hold_keeps_the_server(home: Settings) -> None:
    hold = Hold(home)
    assert hold.fd is not None
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[hold.fd])
    hold.release()
    assert postgres.attached(home)
    assert postgres.stop(home) is False
    child.communicate(b"\n")
    assert postgres.stop(home) is True
    assert postgres.stop(home) is False


def test_a_cluster_cut_short_is_made_again(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with Hold(settings):
        data = postgres._data(settings)
    data.rename(data.with_name("partial"))
    (data.with_name("partial") / "PG_VERSION").unlink()
    with Hold(settings) as hold:
        assert _answer(hold.databases) == 42
    assert not data.with_name("partial").exists()
    postgres.remove(settings)
    assert not (tmp_path / "postgres").exists()


def test_a_long_path_gets_a_short_private_socket_folder(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100) / "data"
    long.mkdir(parents=True)
    folder = postgres._socket_folder(long)
    assert len(bytes(folder / ".s.PGSQL.5432")) <= 107
    assert folder.stat().st_mode & 0o777 == 0o700
    assert postgres._socket_folder(long) == folder
    folder.chmod(0o755)
    with pytest.raises(PostgresError, match="not a private folder"):
        postgres._socket_folder(long)
    folder.rmdir()
    assert postgres._socket_folder(tmp_path) == tmp_path


def _server_of_yours(databases: Databases, tmp_path: Path, user: str, own: str) -> Settings:
    return Settings(home=tmp_path, database_url=f"postgresql://{user}@/{own}?{databases.query}")


def test_a_server_of_yours_is_used_and_nothing_is_started(
    databases: Databases, fresh_database: str, tmp_path: Path
) -> None:
    settings = _server_of_yours(databases, tmp_path, "postgres", fresh_database)
    with Hold(settings) as hold:
        assert _answer(hold.databases) == 42
        assert hold.databases.url("mlflow").startswith("postgresql+psycopg://postgres@/mlflow?")
    assert postgres.stop(settings) is False
    assert list(tmp_path.iterdir()) == []


def test_a_user_who_may_not_create_databases_is_told_which_to_ask_for(home: Settings, tmp_path: Path) -> None:
    with Hold(home) as hold:
        with connect(hold.databases.dsn("postgres"), autocommit=True) as connection:
            connection.execute("CREATE ROLE clerk LOGIN")
            connection.execute("DROP DATABASE optuna")
        with pytest.raises(PostgresError, match="CREATE DATABASE optuna"):
            Hold(_server_of_yours(hold.databases, tmp_path, "clerk", "postgres"))


def test_an_unreachable_server_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="PERENNIAL_DATABASE_URL"):
        Hold(Settings(home=tmp_path, database_url="postgresql://me:secret@127.0.0.1:1/x"))
    with pytest.raises(PostgresError, match="scheme 'mysql'"):
        Hold(Settings(home=tmp_path, database_url="mysql://me@127.0.0.1/x"))
