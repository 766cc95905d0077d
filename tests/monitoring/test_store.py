"""The table of verdicts, on a real Postgres."""

import math
from dataclasses import replace
from datetime import date

import pytest

from feature_repo.database import connect, migrate
from monitoring.drift.monitor import DriftVerdict
from monitoring.store import read_verdicts, write_verdicts

VERDICT = DriftVerdict(
    day=date(2024, 1, 2),
    strategy="v",
    feature="rsi_14",
    signal="psi",
    value=0.3,
    calibrated=0.2,
    severity="severe",
    action="retrain",
    why="because",
)


@pytest.fixture
def connection(dsn):
    migrate(dsn, "monitoring")
    with connect(dsn) as connection:
        yield connection


def test_verdicts_are_read_back_as_written(connection):
    other = replace(VERDICT, feature="*", signal="ic", calibrated=None)
    write_verdicts(connection, [VERDICT, other], market="m", cycle_id="c")
    assert set(read_verdicts(connection, market="m", since=VERDICT.day)) == {VERDICT, other}
    assert read_verdicts(connection, market="another", since=VERDICT.day) == []
    assert read_verdicts(connection, market="m", since=date(2024, 1, 3)) == []


def test_the_same_day_again_replaces_and_never_doubles(connection):
    write_verdicts(connection, [VERDICT], market="m", cycle_id="c")
    write_verdicts(connection, [replace(VERDICT, value=0.4)], market="m", cycle_id="d")
    [found] = read_verdicts(connection, market="m", since=VERDICT.day)
    assert found.value == 0.4


def test_a_value_that_could_not_be_computed_stays_that(connection):
    write_verdicts(connection, [replace(VERDICT, value=math.nan)], market="m", cycle_id="c")
    [found] = read_verdicts(connection, market="m", since=VERDICT.day)
    assert math.isnan(found.value)
