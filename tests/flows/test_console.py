"""Progress: one live line a step on a terminal, one final line elsewhere."""

import io
import threading

import pytest
from rich.console import Console

from flows.console import phase, progress, variants_phase


class Clock:
    """A clock that is told the time."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=140)


def state(bars):
    """The last line's text after its bar."""
    column, task = bars.columns[-1], bars.tasks[-1]
    return column.render(task).plain


def test_a_variants_line_tells_done_failed_rate_and_time_left(console, clock):
    bars = progress(console, clock=clock)
    with variants_phase(bars, "Training 486 variants", {f"v{i}": 1 for i in range(486)}) as ended:
        assert state(bars) == "done 0 failed 0  0:00:00"
        for i in range(212):
            clock.now_s += 0.5
            ended(f"v{i}", ok=i not in (3, 50, 211))
        assert state(bars) == "done 212 failed 3  2.0/s  0:02:17 left"
        for i in range(212, 486):
            clock.now_s += 2.0
            ended(f"v{i}", ok=True)
    took_s = 212 * 0.5 + 274 * 2
    assert took_s == 10 * 60 + 54
    assert state(bars) == "done 486 failed 3  44.6/min  0:10:54"


def test_a_variant_is_done_with_its_last_fit_and_failed_with_any(console, clock):
    bars = progress(console, clock=clock)
    with variants_phase(bars, "Training", {"a": 4, "b": 1}) as ended:
        ended("a", ok=False)
        assert state(bars).startswith("done 0 failed 1")
        clock.now_s = 10.0
        ended("a", ok=False)
        assert state(bars) == "done 0 failed 1  1.5/min  0:01:00 left"  # a quarter of a variant in 10 s
        ended("a", ok=True)
        ended("a", ok=True)
        ended("b", ok=True)
        assert state(bars).startswith("done 2 failed 1")
    assert bars.finished


def test_the_rate_follows_what_happens_now_not_what_was_found_finished(console, clock):
    bars = progress(console, clock=clock)
    with variants_phase(bars, "Training", {f"v{i}": 1 for i in range(400)}) as ended:
        for i in range(300):
            ended(f"v{i}", ok=True)
        for i in range(300, 320):
            clock.now_s += 10.0
            ended(f"v{i}", ok=True)
        assert state(bars) == "done 320 failed 0  6.0/min  0:13:20 left"


def test_fits_that_end_in_several_threads_are_all_counted(console, clock):
    bars = progress(console, clock=clock)
    names = [f"v{i}" for i in range(400)]
    with variants_phase(bars, "Training", dict.fromkeys(names, 1)) as ended:
        threads = [
            threading.Thread(target=lambda part: [ended(name, ok=False) for name in part], args=[names[k::4]])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert state(bars).startswith("done 400 failed 400")


def test_a_plain_phase_counts_steps_or_only_takes_its_time(console, clock):
    bars = progress(console, clock=clock)
    with phase(bars, "Hyperparameters", total=8) as advance:
        advance(None)
        clock.now_s = 1.0
        advance(None)
        assert state(bars) == "2/8  1.0/s  0:00:06 left"
    assert state(bars) == "8/8  8.0/s  0:00:01"
    with phase(bars, "Features"):
        clock.now_s = 66.0
        assert state(bars) == "0:01:05"
    assert state(bars) == "0:01:05"


def train_three(bars):
    with bars, variants_phase(bars, "Training 3 variants", {"a": 1, "b": 1, "c": 1}) as ended:
        for name in "abc":
            ended(name, ok=name != "b")
            bars.refresh()


def test_off_a_terminal_only_the_end_is_told(clock):
    file = io.StringIO()
    train_three(progress(Console(file=file, width=140), clock=clock))
    [line] = file.getvalue().strip().splitlines()
    assert line.split("━")[0].strip() == "✓ Training 3 variants"
    assert "done 3 failed 1" in line
    assert "\x1b" not in line


def test_on_a_terminal_the_line_lives(clock):
    file = io.StringIO()
    train_three(progress(Console(file=file, width=140, force_terminal=True, color_system=None), clock=clock))
    seen = file.getvalue()
    assert all(f"done {i} failed {failed}" in seen for i, failed in [(1, 0), (2, 1), (3, 1)])
