"""The servers of ``perennial up``: what they are, starting them detached, looking after them, stopping them."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import psutil

from flows import postgres
from flows.settings import PREFIX, Settings, quiet_environment

_START_S = 180  # MLflow, Prefect and Evidently import for 20 s each on a busy laptop
_STOP_S = 10
_CLOCK_S = 2  # a process's create time moves by rounding, and with corrections of the clock
_LOG_LINES = 15


class ServiceError(RuntimeError):
    """A service can't be started; the message says which, why and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One server: ``python -m <arguments>``, and how to know that it is ready; ``needs`` are ready before it starts."""

    name: str
    title: str
    arguments: tuple[str, ...]
    ready: Callable[[], bool]
    host: str
    port: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where a person finds it; empty if it has no port."""
        return f"http://{self.host}:{self.port}" if self.port else ""


Plan: TypeAlias = Callable[[Settings], Sequence[Service]]
Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A service as found: ``state`` is ``up``, ``not answering`` or ``down``."""

    name: str
    title: str
    state: str
    url: str
    pid: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """The process of a service: the create time tells it from another with the same pid later."""

    pid: int
    created: float
    port: int | None


def up(settings: Settings, tell: Tell, plan: Plan | None = None) -> bool:
    """Start what does not run, wait until it answers, and leave it running; ``tell`` hears of each step.

    Returns whether anything had to be started. A start that fails stops what it had started.
    """
    with _one_at_a_time(settings):
        settings = as_started(settings)
        with postgres.Hold(settings) as hold:
            services = (plan or standard_plan)(settings)
            missing = [service for service in services if not _process(settings, service.name)]
            _check_ports(missing)
            _start(settings, services, missing, hold, tell)
    return bool(missing)


def down(settings: Settings) -> list[str]:
    """Stop all services, the last started first, then Postgres unless a run uses it; returns what was stopped."""
    with _one_at_a_time(settings):
        stopped = [name for name in _recorded(settings) if _stop(settings, name)]
        if postgres.stop(settings):
            stopped.append("postgres")
    return stopped


def status(settings: Settings, plan: Plan | None = None) -> list[State]:
    """Every service as it is now, Postgres first."""
    settings = as_started(settings)
    services = (plan or standard_plan)(settings)
    return [_postgres_state(settings), *(_state(settings, service) for service in services)]


def as_started(settings: Settings) -> Settings:
    """The settings with the ports that the running services took when they were started."""
    ports = {
        f"{name}_port": record.port
        for name in ("mlflow", "prefect", "evidently", "api")
        if (record := _record(settings, name)) and record.port and _live(record)
    }
    return settings.model_copy(update=ports)


def prefect_api(settings: Settings) -> str | None:
    """URL of the API of the Prefect server, if it was started and answers."""
    settings = as_started(settings)
    return settings.prefect_api_url if _process(settings, "prefect") and _prefect(settings).ready() else None


def end_orphans(settings: Settings) -> int:
    """End the servers that Prefect started for runs of this home which were killed since; returns how many.

    Without ``perennial up`` a run brings a Prefect server of its own, and a killed run can't take it along.
    """
    orphans = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "prefect.server.api.server:create_app" not in process.cmdline():
                continue
            parent = process.parent()  # a run, while it lives; then init, or whatever adopts orphans here
            alone = parent is None or not parent.name().startswith(("python", "perennial"))
            if alone and process.environ().get("PREFECT_HOME") == str(settings.prefect_home):
                orphans.append(process)
                process.terminate()
    psutil.wait_procs(orphans, timeout=_STOP_S)
    return len(orphans)


# ---- what they are ---------------------------------------------------------------------------------------------------


def standard_plan(settings: Settings) -> tuple[Service, ...]:
    """The services in the order in which they are started."""
    return (
        _mlflow(settings),
        _prefect(settings),
        _evidently(settings),
        _signal_api(settings),
        _deployments(settings),
    )


def _mlflow(settings: Settings) -> Service:
    host, port = settings.host, settings.mlflow_port
    databases = postgres.attached(settings)
    return Service(
        name="mlflow",
        title="MLflow",
        arguments=("mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"),
        ready=partial(_answers, host, port, "/health"),
        host=host,
        port=port,
        env={
            "MLFLOW_BACKEND_STORE_URI": databases.url("mlflow")
            if databases
            else "",  # not on the command line, which every user can read
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": settings.artifacts_url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 5 processes instead of 13
        },
    )


def _prefect(settings: Settings) -> Service:
    host, port = settings.host, settings.prefect_port
    return Service(
        name="prefect",
        title="Prefect",
        arguments=("prefect", "server", "start", "--host", host, "--port", str(port)),
        ready=partial(_answers, host, port, "/api/health"),
        host=host,
        port=port,
        env={"PREFECT_SERVER_UI_API_URL": settings.prefect_api_url},  # else the page asks port 4200
    )


def _evidently(settings: Settings) -> Service:
    host, port = settings.host, settings.evidently_port
    workspace = str(settings.evidently_workspace)
    return Service(
        name="evidently",
        title="Evidently",
        arguments=("evidently.cli", "ui", "--workspace", workspace, "--host", host, "--port", str(port)),
        ready=partial(_answers, host, port, "/api/version"),
        host=host,
        port=port,
    )


def _signal_api(settings: Settings) -> Service:
    host, port = settings.host, settings.api_port
    databases = postgres.attached(settings)
    return Service(
        name="api",
        title="Signal API",
        arguments=("uvicorn", "serving.app:create_app", "--factory", "--host", host, "--port", str(port)),
        ready=partial(_answers, host, port, "/health"),
        host=host,
        port=port,
        env={f"{PREFIX}MLFLOW_URI": databases.url("mlflow") if databases else ""},
        needs=("mlflow",),  # which makes the tables that both read
    )


def _deployments(settings: Settings) -> Service:
    return Service(
        name="deployments",
        title="Prefect flows",
        arguments=("flows.deployments",),
        ready=partial(_has_deployments, settings.host, settings.prefect_port),
        host=settings.host,
        env={"PREFECT_API_URL": settings.prefect_api_url},
        needs=("prefect", "mlflow"),
    )


def _answers(host: str, port: int, path: str) -> bool:
    return _ask(host, port, "GET", path) is not None


def _has_deployments(host: str, port: int) -> bool:
    counted = _ask(host, port, "POST", "/api/deployments/count")
    return counted is not None and int(counted) > 0


def _ask(host: str, port: int, method: str, path: str) -> bytes | None:
    """Body of a 200 answer, None for anything else."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(
            method, path, body="{}" if method == "POST" else None, headers={"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        return answer.read() if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


# ---- starting --------------------------------------------------------------------------------------------------------


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    settings.run.mkdir(parents=True, exist_ok=True)
    with (settings.run / "services.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_ports(services: Sequence[Service]) -> None:
    """Refuse ports that are taken, or given to two services, before anything is started."""
    seen: dict[int, Service] = {}
    for service in services:
        if service.port is None:
            continue
        other = seen.setdefault(service.port, service)
        problem = _port_problem(service) if other is service else f"{other.title} wants it too"
        if problem:
            variable = f"{PREFIX}{service.name.upper()}_PORT"
            raise ServiceError(
                f"{service.title} can't have port {service.port} on {service.host}: {problem}. "
                f"Choose another: perennial up --{service.name}-port PORT, or set {variable}"
            )


def _port_problem(service: Service) -> str | None:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((service.host, service.port))
        except OSError as error:
            return _listener(service.port or 0) or str(error)
    return None


def _listener(port: int) -> str | None:
    """Who listens on a port, where this user may know."""
    with suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                command = " ".join(psutil.Process(found.pid).cmdline())
                return f"process {found.pid} has it ({command[:80]})"
    return None


def _start(
    settings: Settings, services: Sequence[Service], missing: Sequence[Service], hold: postgres.Hold, tell: Tell
) -> None:
    """Start the missing ones as soon as what they need is ready; on any trouble stop those started here again."""
    waiting = {service.name: service for service in missing}
    ready = {service.name for service in services} - waiting.keys()
    started: dict[str, Service] = {}
    deadline = time.monotonic() + _START_S
    try:
        while waiting:
            for service in waiting.values():
                if service.name not in started and ready.issuperset(service.needs):
                    _spawn(settings, service, hold)
                    started[service.name] = service
            for name in [name for name in started if name in waiting and _is_ready(settings, started[name], deadline)]:
                tell(f"{waiting.pop(name).title} is ready")
                ready.add(name)
            time.sleep(0.1)
    except BaseException:
        for name in reversed(started):
            _stop(settings, name)
        raise


def _is_ready(settings: Settings, service: Service, deadline: float) -> bool:
    log = settings.logs / f"{service.name}.log"
    if not _process(settings, service.name):
        raise ServiceError(f"{service.title} stopped while starting; the end of {log}:\n{_tail(log)}")
    if service.ready():
        return True
    if time.monotonic() > deadline:
        raise ServiceError(f"{service.title} did not answer within {_START_S} s; the end of {log}:\n{_tail(log)}")
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _spawn(settings: Settings, service: Service, hold: postgres.Hold) -> None:
    """Start a service in a session of its own; it inherits the hold on Postgres."""
    settings.logs.mkdir(parents=True, exist_ok=True)
    with (settings.logs / f"{service.name}.log").open("wb") as log:
        child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", *service.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=settings.run,
            env={**os.environ, **quiet_environment(settings), **service.env},
            start_new_session=True,
            pass_fds=[] if hold.fd is None else [hold.fd],
        )
    child.returncode = 0  # it is meant to outlive this handle, which would warn of that
    record = _Record(pid=child.pid, created=psutil.Process(child.pid).create_time(), port=service.port)
    file = _record_file(settings, service.name)
    file.parent.mkdir(exist_ok=True)
    file.with_suffix(".partial").write_text(json.dumps(asdict(record)))
    file.with_suffix(".partial").replace(file)


# ---- looking after ---------------------------------------------------------------------------------------------------


def _record_file(settings: Settings, name: str) -> Path:
    return settings.run / "services" / f"{name}.json"


def _recorded(settings: Settings) -> list[str]:
    """Names of the services that were started and not stopped, the last started first."""
    names = [path.stem for path in (settings.run / "services").glob("*.json")]
    records = {name: record for name in names if (record := _record(settings, name))}
    return sorted(records, key=lambda name: (records[name].created, name), reverse=True)


def _record(settings: Settings, name: str) -> _Record | None:
    try:
        return _Record(**json.loads(_record_file(settings, name).read_text()))
    except FileNotFoundError:
        return None


def _live(record: _Record) -> psutil.Process | None:
    """The recorded process, if it still runs and its pid is not another's by now."""
    with suppress(psutil.Error):
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.created) < _CLOCK_S and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _process(settings: Settings, name: str) -> psutil.Process | None:
    record = _record(settings, name)
    return _live(record) if record else None


def _state(settings: Settings, service: Service) -> State:
    process = _process(settings, service.name)
    word = "down" if process is None else "up" if service.ready() else "not answering"
    pid = process.pid if process else None
    return State(name=service.name, title=service.title, state=word, url=service.url, pid=pid)


def _postgres_state(settings: Settings) -> State:
    title = "Postgres (yours)" if settings.database_url else "Postgres"
    word = "up" if postgres.answers(settings) else "down"
    return State(name="postgres", title=title, state=word, url="", pid=None)


def _stop(settings: Settings, name: str) -> bool:
    """End a service and all it started; returns whether there was anything to end."""
    record = _record(settings, name)
    if record is None:
        return False
    found = members = _members(settings, record)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in members:
            with suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(members, timeout=_STOP_S)
        members = _members(settings, record)
    _record_file(settings, name).unlink()
    return bool(found)


def _members(settings: Settings, record: _Record) -> list[psutil.Process]:
    """The live processes of a service's session, also when its first one is gone.

    No stranger is ever ended: the kernel gives out no pid that still names a session, a recycled one has another
    create time, and a member carries our home in its environment.
    """
    members = []
    for process in [] if _is_recycled(record) else psutil.process_iter():
        with suppress(psutil.Error, OSError):
            ours = os.getsid(process.pid) == record.pid and process.environ().get(f"{PREFIX}HOME") == str(settings.home)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def _is_recycled(record: _Record) -> bool:
    with suppress(psutil.Error):
        return abs(psutil.Process(record.pid).create_time() - record.created) >= _CLOCK_S
    return False
