from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest

from flows import postgres, services
from flows.services import Plan, Service, ServiceError
from flows.settings import Settings

# A server whose own process only waits for its child, as MLflow's does; the child serves.
PARENT = "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'http.server', *sys.argv[1:]])\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    yield settings
    services.down(settings)
    postgres.remove(settings)


@pytest.fixture
def settings(home: Settings) -> Iterator[Settings]:
    """A home in which nothing runs, before and after."""
    yield home
    services.down(home)
    assert postgres.attached(home) is None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _web(name: str, *, port: int | None = None, module: str = "http.server", **options: object) -> Service:
    port = port or _free_port()
    return Service(
        name=name,
        title=name.title(),
        arguments=(module, str(port), "--bind", "127.0.0.1"),
        ready=partial(services._answers, "127.0.0.1", port, "/"),
        host="127.0.0.1",
        port=port,
        **options,
    )


def _plan(*planned: Service) -> Plan:
    return lambda _: planned


def _quiet(_: str) -> None: ...


def _states(settings: Settings, plan: Plan) -> dict[str, str]:
    return {state.name: state.state for state in services.status(settings, plan)}


def _alive(pids: Sequence[int]) -> bool:
    return any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def test_up_starts_what_is_missing_and_down_stops_it(settings: Settings) -> None:
    plan = _plan(_web("one"), _web("two"))
    assert _states(settings, plan) == {"postgres": "down", "one": "down", "two": "down"}
    assert services.up(settings, _quiet, plan) is True
    assert _states(settings, plan) == {"postgres": "up", "one": "up", "two": "up"}
    assert services.up(settings, _quiet, plan) is False
    pids = [state.pid for state in services.status(settings, plan) if state.pid]
    assert [os.getsid(pid) for pid in pids] == pids, "each has a session of its own, out of reach of Ctrl-C"
    assert services.down(settings) == ["two", "one", "postgres"]
    assert not _alive(pids)
    assert services.down(settings) == []


def test_a_service_starts_when_what_it_needs_is_ready(settings: Settings) -> None:
    told: list[str] = []
    first = _web("first")
    second = _web("second", needs=("first",))
    services.up(settings, told.append, _plan(second, first))
    assert told == ["First is ready", "Second is ready"]


def test_postgres_lives_as_long_as_a_service_and_no_longer(settings: Settings) -> None:
    plan = _plan(_web("one"))
    services.up(settings, _quiet, plan)
    with postgres.Hold(settings):
        pass
    assert postgres.attached(settings), "the end of a run leaves it to the services"
    with postgres.Hold(settings):
        assert services.down(settings) == ["one"]
        assert postgres.attached(settings), "the end of the services leaves it to a run"


def test_a_taken_port_is_named_with_its_holder_and_nothing_is_started(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ServiceError) as caught:
            services.up(settings, _quiet, _plan(_web("one"), _web("two", port=port)))
    for part in (f"Two can't have port {port}", f"process {os.getpid()}", "up --two-port", "PERENNIAL_TWO_PORT"):
        assert part in str(caught.value)
    assert not (settings.run / "services" / "one.json").exists()


def test_two_services_can_not_share_a_port(settings: Settings) -> None:
    port = _free_port()
    with pytest.raises(ServiceError, match=r"Two can't have port .*: One wants it too"):
        services.up(settings, _quiet, _plan(_web("one", port=port), _web("two", port=port)))


def test_a_service_that_dies_shows_its_log_and_takes_the_others_with_it(settings: Settings) -> None:
    broken = _web("broken", module="no_such_module")
    plan = _plan(_web("one"), broken)
    with pytest.raises(ServiceError, match=r"(?s)Broken stopped while starting.*No module named no_such_module"):
        services.up(settings, _quiet, plan)
    assert _states(settings, plan) == {"postgres": "down", "one": "down", "broken": "down"}


def test_a_dead_service_is_started_again(settings: Settings) -> None:
    plan = _plan(_web("one"), _web("two"))
    services.up(settings, _quiet, plan)
    before = {state.name: state.pid for state in services.status(settings, plan)}
    os.kill(before["one"] or 0, signal.SIGKILL)
    os.waitpid(before["one"] or 0, 0)
    assert _states(settings, plan)["one"] == "down"
    services.up(settings, _quiet, plan)
    after = {state.name: state.pid for state in services.status(settings, plan)}
    assert after["one"] not in (None, before["one"])
    assert after["two"] == before["two"]


def test_the_children_of_a_killed_service_are_stopped_too(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "parent_of_server.py").write_text(PARENT)
    plan = _plan(_web("one", module="parent_of_server", env={"PYTHONPATH": str(tmp_path)}))
    services.up(settings, _quiet, plan)
    parent = psutil.Process(services.status(settings, plan)[1].pid)
    children = [child.pid for child in parent.children()]
    assert children
    parent.kill()
    parent.wait()
    assert _alive(children)
    assert services.down(settings) == ["one", "postgres"]
    assert not _alive(children)


def test_a_service_deaf_to_term_is_killed(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_STOP_S", 0.5)
    (tmp_path / "deaf_server.py").write_text(
        "import runpy, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "runpy.run_module('http.server', run_name='__main__', alter_sys=True)\n"
    )
    plan = _plan(_web("deaf", module="deaf_server", env={"PYTHONPATH": str(tmp_path)}))
    services.up(settings, _quiet, plan)
    pid = services.status(settings, plan)[1].pid
    assert pid
    assert services.down(settings) == ["deaf", "postgres"]
    assert not _alive([pid])


def test_a_pid_that_is_anothers_by_now_is_left_alone(settings: Settings) -> None:
    plan = _plan(_web("one"))
    services.up(settings, _quiet, plan)
    services.down(settings)
    environment = {**os.environ, **settings.exported()}
    stranger = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )
    created = psutil.Process(stranger.pid).create_time() - 3600
    record = {"pid": stranger.pid, "created": created, "port": 1}
    (settings.run / "services" / "one.json").write_text(json.dumps(record))
    assert _states(settings, plan)["one"] == "down"
    assert services.down(settings) == []
    assert stranger.poll() is None
    stranger.communicate(b"\n")


def test_running_services_keep_the_ports_they_were_started_with(settings: Settings) -> None:
    first, second = _free_port(), _free_port()
    plan: Plan = lambda given: [_web("mlflow", port=given.mlflow_port)]  # noqa: E731
    services.up(settings.model_copy(update={"mlflow_port": first}), _quiet, plan)
    elsewhere = settings.model_copy(update={"mlflow_port": second})
    assert services.up(elsewhere, _quiet, plan) is False
    assert services.status(elsewhere, plan)[1].url == f"http://127.0.0.1:{first}"


def test_the_services_are_five_on_loopback_at_the_ports_of_the_settings(tmp_path: Path) -> None:
    planned = services.standard_plan(
        Settings(home=tmp_path, mlflow_port=1, prefect_port=2, evidently_port=3, api_port=4)
    )
    assert {service.name: service.url for service in planned} == {
        "mlflow": "http://127.0.0.1:1",
        "prefect": "http://127.0.0.1:2",
        "evidently": "http://127.0.0.1:3",
        "api": "http://127.0.0.1:4",
        "deployments": "",
    }
    ready: set[str] = set()
    for service in planned:
        assert ready.issuperset(service.needs), "each comes after what it needs"
        ready.add(service.name)


def test_the_real_servers_start_answer_and_stop(settings: Settings) -> None:
    ports = {f"{name}_port": _free_port() for name in ("mlflow", "prefect", "evidently")}
    chosen = settings.model_copy(update=ports)
    plan: Plan = lambda given: [service for service in services.standard_plan(given) if not service.needs]  # noqa: E731
    services.up(chosen, _quiet, plan)
    assert set(_states(settings, plan).values()) == {"up"}
    assert services.prefect_api(settings) == f"http://127.0.0.1:{ports['prefect_port']}/api"
    page = services._ask("127.0.0.1", ports["prefect_port"], "GET", "/ui-settings")
    assert json.loads(page or b"{}")["api_url"] == services.prefect_api(settings)
    for port in ports.values():
        assert b"<html" in (services._ask("127.0.0.1", port, "GET", "/") or b"").lower()
    assert set(services.down(settings)) == {"mlflow", "prefect", "evidently", "postgres"}
    assert services.prefect_api(settings) is None
