"""The retry policy, and the document getter that uses it."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.connectors.base import (
    ConnectorError,
    RetryPolicy,
    TransientError,
    ask_patiently,
    is_transient,
    retry_after_s,
)
from feature_repo.connectors.web import Web

NOW = datetime(2024, 1, 10, tzinfo=UTC)


@given(attempt=st.integers(1, 40), seed=st.integers(0, 99))
def test_waits_double_up_to_a_ceiling_with_half_of_them_random(attempt, seed):
    policy = RetryPolicy(first_wait_s=1.5, max_wait_s=20)
    ceiling = min(20, 1.5 * 2 ** (attempt - 1))
    assert ceiling / 2 <= policy.wait_s(attempt, np.random.default_rng(seed)) <= ceiling


def test_jitter_is_from_the_generator_alone():
    policy = RetryPolicy()
    waits = [policy.wait_s(3, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert waits[0] == waits[1] != waits[2]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("Wed, 10 Jan 2024 00:01:30 GMT", 90.0),
        ("Wed, 10 Jan 2024 00:01:30", 90.0),
        ("Tue, 09 Jan 2024 00:00:00 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after_s(header, now=NOW) == seconds


@pytest.mark.parametrize(("status", "transient"), [(429, True), (408, True), (418, True), (500, True), (503, True)])
def test_what_may_pass(status, transient):
    assert is_transient(status) is transient


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_will_not_pass(status):
    assert not is_transient(status)


def failing(num_failures: int, **kwargs):
    calls = []

    def ask() -> str:
        calls.append(1)
        if len(calls) <= num_failures:
            raise TransientError("busy", **kwargs)
        return f"answer {len(calls)}"

    return ask


def test_it_asks_until_it_is_answered(world):
    assert ask_patiently(failing(3), world.runtime()) == "answer 4"
    assert len(world.sleeps) == 3
    assert world.sleeps[0] < world.sleeps[1] < world.sleeps[2]


def test_it_gives_up_and_says_so(world):
    with pytest.raises(ConnectorError, match=r"busy; gave up after 4 attempts"):
        ask_patiently(failing(99), world.runtime(num_attempts=4))
    assert len(world.sleeps) == 3


def test_retry_after_is_a_floor_and_a_long_one_ends_the_run(world):
    ask_patiently(failing(1, retry_after_s=44.0), world.runtime())
    assert world.sleeps == [44.0]
    with pytest.raises(ConnectorError, match=r"asks to wait 7200 s"):
        ask_patiently(failing(1, retry_after_s=7200.0), world.runtime())
    assert world.sleeps == [44.0]


def test_other_errors_pass_through(world):
    def ask():
        raise ConnectorError("no such thing")

    with pytest.raises(ConnectorError, match="no such thing"):
        ask_patiently(ask, world.runtime())
    assert not world.sleeps


def test_documents_are_paced(stub, world):
    stub.routes["/a"] = lambda query: stub.text("text")
    web = Web(world.runtime(), min_gap_s=2.0)
    for _ in range(3):
        web.get(f"{stub.url}/a", bytes.decode)
    assert world.sleeps == [2.0, 2.0]
    world.now += timedelta(seconds=5)
    web.get(f"{stub.url}/a", bytes.decode)
    assert world.sleeps == [2.0, 2.0]


def test_nobody_there(world, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a"
        with pytest.raises(ConnectorError, match=r"can't be reached.*gave up after 3 attempts"):
            Web(world.runtime(num_attempts=3)).get(url, bytes.decode)
    assert len([wait for wait in world.sleeps if wait]) >= 2


def test_an_address_that_is_none(world):
    with pytest.raises(ConnectorError, match="correct the address"):
        Web(world.runtime()).get("http://", bytes.decode)
