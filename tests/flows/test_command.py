"""A command as a process: how it ends."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit
from flows.command import run_alone

def app():
    atexit.register(print, "the library's last words")
    print("its answer")
    {end}

run_alone(app)
"""


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(130)", 130, ""),
        ("raise SystemExit('no such market')", 1, "no such market\n"),
        ("raise ValueError('a fault of ours')", 1, "ValueError: a fault of ours\n"),
    ],
)
def test_a_command_ends_with_its_status_all_that_was_said_and_what_libraries_do_at_the_end(end, status, told):
    ended = subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert ended.stdout == "its answer\nthe library's last words\n"
    assert ended.stderr.endswith(told)
    assert bool(ended.stderr) == bool(told)


def test_a_command_whose_reader_has_gone_ends_quietly():
    script = "from flows.command import run_alone; run_alone(lambda: print('its answer'))"
    unread, said = os.pipe()
    os.close(unread)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=said,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(said)
    assert ended.stderr == ""
