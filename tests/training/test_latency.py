"""Latencies: the first measurement of a bar stays, and a percentile of the newest ones."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from feature_repo.database import connect, migrate
from training.latency import FEWEST, NEWEST, BarLatency, latency_p99, silent_bars, write_latencies

START = datetime(2023, 1, 2, 21, tzinfo=UTC)


@pytest.fixture
def connection(dsn):
    migrate(dsn, "training")
    with connect(dsn, autocommit=True) as connection:
        yield connection


def bar(day, latency_ms, *, variant="v", version="k1", num_signals=20):
    end = START + timedelta(days=day)
    return BarLatency(
        variant=variant,
        model_version=version,
        event_time=end,
        measured_at=end + timedelta(minutes=20),
        latency_ms=latency_ms,
        num_signals=num_signals,
    )


def test_the_percentile_is_of_the_newest_measurements_of_all_versions(connection):
    rng = np.random.default_rng(0)
    took_ms = rng.exponential(5.0, NEWEST + 40)
    took_ms[:40] = 1e4  # before the year that counts
    rows = [bar(day, ms, version="k1" if day < 100 else "k2") for day, ms in enumerate(took_ms)]
    write_latencies(connection, "m", [*rows, bar(0, 7.0, variant="new")])
    write_latencies(connection, "other", [bar(day, 9.0) for day in range(10)])
    assert latency_p99(connection, "m") == pytest.approx({"v": np.percentile(took_ms[40:], 99)})
    assert latency_p99(connection, "other") == {"v": 9.0}
    assert latency_p99(connection, "nobody's") == {}


def test_of_few_measurements_nothing_is_said(connection):
    write_latencies(connection, "m", [bar(day, 3.0) for day in range(FEWEST - 1)])
    assert latency_p99(connection, "m") == {}
    write_latencies(connection, "m", [bar(FEWEST, 3.0)])
    assert latency_p99(connection, "m") == {"v": 3.0}


def test_what_was_measured_later_can_be_left_out(connection):
    write_latencies(connection, "m", [bar(day, float(day)) for day in range(20)])
    until = START + timedelta(days=10)
    assert latency_p99(connection, "m", before=until) == pytest.approx({"v": np.percentile(np.arange(10.0), 99)})


def test_the_first_measurement_of_a_bar_stays(connection):
    for ms in (3.0, 99.0):
        write_latencies(connection, "m", [bar(day, ms) for day in range(FEWEST)])
    assert latency_p99(connection, "m") == {"v": 3.0}


def test_bars_that_nothing_was_said_of(connection):
    rows = [bar(0, 1.0, num_signals=0), bar(1, 1.0), bar(2, 1.0, num_signals=0), bar(2, 1.0, variant="w")]
    write_latencies(connection, "m", rows)
    assert silent_bars(connection, "m", since=START + timedelta(days=1)) == {("v", "k1", START + timedelta(days=2))}
    assert silent_bars(connection, "other", since=START) == set()
