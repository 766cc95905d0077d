"""A stub of the outside world: a server on loopback that serves recorded shapes, and a clock that only sleep moves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest

from feature_repo.connectors.base import RetryPolicy, Runtime


@dataclass
class Reply:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_to: int | None = None  # bytes sent of those announced


@dataclass
class Stub:
    """``routes`` answer by path; a reply in ``faults`` for a path's n-th request (from 1) goes before them."""

    url: str = ""
    routes: dict[str, Callable[[dict[str, str]], Reply]] = field(default_factory=dict)
    faults: dict[tuple[str, int], Reply] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @staticmethod
    def json(content: object, **kwargs) -> Reply:
        return Reply(body=json.dumps(content).encode(), **kwargs)

    @staticmethod
    def text(content: str, **kwargs) -> Reply:
        return Reply(body=content.encode(), **kwargs)

    def answer(self, target: str) -> Reply:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        self.asked.append((parts.path, query))
        fault = self.faults.get((parts.path, self.num_asked(parts.path)))
        if fault is not None:
            return fault
        route = self.routes.get(parts.path)
        return route(query) if route else Reply(body=b"not here", status=404)

    def num_asked(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)


@pytest.fixture
def stub(monkeypatch) -> Iterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            reply = served.answer(self.path)
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut_to])

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield served
        server.shutdown()


@dataclass
class World:
    """The time it is; sleeping lets it pass."""

    now: datetime
    sleeps: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += timedelta(seconds=seconds)

    def runtime(self, **policy) -> Runtime:
        return Runtime(
            clock=lambda: self.now, sleep=self.sleep, rng=np.random.default_rng(0), retry=RetryPolicy(**policy)
        )


@pytest.fixture
def world() -> World:
    return World(now=datetime(2024, 1, 10, 12, 30, 20, tzinfo=UTC))
