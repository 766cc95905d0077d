"""A real Redis for the tests of the online store."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real server on a socket of its own, with nothing on disk."""
    server = shutil.which("redis-server")
    if server is None:
        reason = "redis-server is not installed"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/redis.sock"
        options = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", folder]
        running = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
        for _ in range(500):
            if Path(socket).exists():
                break
            time.sleep(0.01)
        yield f"unix://{socket}"
        running.terminate()
        running.wait()
