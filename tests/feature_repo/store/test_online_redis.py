"""The Redis backend's reads: one exchange over redis-py's pool, tried once more, and explained where it fails."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import redis

from feature_repo.store.online_redis import connect_redis
from feature_repo.store.online_values import OnlineValues
from feature_repo.store.packed import OnlineStoreError
from tests.feature_repo.store import online_writer

VIEW = online_writer.VIEW
LATE = datetime(2030, 1, 1, tzinfo=UTC)


def put(values: OnlineValues, entity: str, number: int) -> int:
    time = np.array([number], "datetime64[us]")
    values_NF = np.full((1, len(VIEW.features)), float(number))
    return values.write_features(VIEW, [entity], event_N=time, ingest_N=time, values_NF=values_NF, now=LATE)


def get(values: OnlineValues, *entities: str) -> list[float]:
    return values.read_features(VIEW, entities, now=LATE).values_NF[:, 0].tolist()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """The empty server, to be meddled with."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def values(server: redis.Redis, redis_url: str) -> Iterator[OnlineValues]:
    opened = online_writer.open_values(redis_url)
    yield opened
    opened.backend.close()


class Relay(socketserver.ThreadingUnixStreamServer):
    """A way to the server at ``path`` that hangs up on as many reads as ``num_hang_ups`` says."""

    num_hang_ups = 0

    def __init__(self, path: Path, server: str) -> None:
        self.server = server
        super().__init__(str(path), _Relayed)


class _Relayed(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(self.server.server)
            while asked := self.request.recv(2**16):
                if b"MGET" in asked and self.server.num_hang_ups:
                    self.server.num_hang_ups -= 1
                    return
                server.sendall(asked)
                self.request.sendall(server.recv(2**16))


@pytest.fixture
def relay(server: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[Relay]:
    with Relay(tmp_path / "relay.sock", redis_url.removeprefix("unix://")) as opened:
        relaying = threading.Thread(target=opened.serve_forever, args=(0.01,))
        relaying.start()
        yield opened
        opened.shutdown()
        relaying.join()


def test_a_read_that_is_hung_up_on_is_tried_once_more(relay: Relay) -> None:
    values = online_writer.open_values(f"unix://{relay.server_address}")
    put(values, "A", 1)
    relay.num_hang_ups = 1
    assert get(values, "A") == [1]
    relay.num_hang_ups = 2
    with pytest.raises(OnlineStoreError, match=r"Redis did not answer \(ConnectionError"):
        get(values, "A")
    assert relay.num_hang_ups == 0
    assert get(values, "A") == [1], "the server is back"
    values.backend.close()


def test_a_server_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        values = OnlineValues(connect_redis(f"unix://{tmp_path}/silent.sock?socket_timeout=0.05"), project="p")
        with pytest.raises(OnlineStoreError, match=r"Redis did not answer \(TimeoutError"):
            get(values, "A")
        values.backend.close()


def test_connections_that_the_server_closed_are_opened_again(server: redis.Redis, values: OnlineValues) -> None:
    put(values, "A", 1)
    for _ in range(3):
        server.client_kill_filter(_type="normal", skipme=True)
        assert get(values, "A") == [1]


def test_an_error_reply_is_explained_and_leaves_the_connection_whole(
    server: redis.Redis, redis_url: str, values: OnlineValues
) -> None:
    put(values, "A", 1)
    server.execute_command("ACL SETUSER", "reader", "reset", "on", ">secret", "~*", "+@all", "-mget")
    reader = online_writer.open_values(f"{redis_url.replace('//', '//reader@')}?password=secret")
    for _ in range(2):
        with pytest.raises(OnlineStoreError, match=r"Redis did not answer \(NoPermissionError"):
            get(reader, "A")
    server.execute_command("ACL SETUSER", "reader", "+mget")
    assert get(reader, "A") == [1]
    assert [client["user"] for client in server.client_list()].count("reader") == 1
    reader.backend.close()
    server.execute_command("ACL DELUSER", "reader")


def test_a_server_that_forgot_the_script_is_given_it_again(server: redis.Redis, values: OnlineValues) -> None:
    for number in (1, 2, 3):
        server.script_flush()
        assert put(values, "A", number) == 1
        server.script_flush()
        assert get(values, "A") == [number]
        assert put(values, "A", number - 1) == 0


def test_threads_that_share_a_backend_get_their_own_answers(values: OnlineValues) -> None:
    names = [f"E{at}" for at in range(6)]
    for number, name in enumerate(names):
        put(values, name, number)
    wrong: list[list[float]] = []

    def read(number: int) -> None:
        num_more = number + 1  # replies of different lengths
        for _ in range(300):
            found = get(values, *[names[number]] * num_more)
            if found != [number] * num_more:
                wrong.append(found)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(len(names))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert wrong == []
