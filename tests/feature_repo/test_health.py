"""Feature health: a healthy table is silent, and each thing that breaks is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from feature_repo.health import RECENT, check_health

START = pd.Timestamp("2023-01-02", tz="UTC")
NUM_DAYS = 300


def healthy(seed: int = 0) -> pd.DataFrame:
    """Weekdays of four entities: a slow feature, a fast one and one with some nulls."""
    rng = np.random.default_rng(seed)
    time = pd.bdate_range(START, periods=NUM_DAYS, tz="UTC").as_unit("us")
    parts = []
    for entity in "ABCD":
        values = {
            "slow": rng.normal(size=NUM_DAYS).cumsum() / 10,
            "fast": rng.standard_t(4, NUM_DAYS),
            "gappy": np.where(rng.random(NUM_DAYS) < 0.2, np.nan, rng.normal(size=NUM_DAYS)),
        }
        keys = {"entity_key": entity, "event_time": time, "ingest_time": time + timedelta(minutes=5)}
        parts.append(pd.DataFrame(keys | values))
    return pd.concat(parts, ignore_index=True).assign(written_at=START, producer="p", producer_version="v", run_id="r")


NOW = (healthy()["event_time"].max() + timedelta(hours=20)).to_pydatetime()


def is_recent(rows: pd.DataFrame) -> pd.Series:
    return rows["event_time"] >= sorted(rows["event_time"].unique())[-RECENT]


def found(rows: pd.DataFrame, now: datetime = NOW) -> set[tuple[str, str]]:
    return {(finding.feature, finding.check) for finding in check_health(rows, view="toy_v1", now=now)}


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_table_is_silent(seed: int) -> None:
    assert found(healthy(seed)) == set()


def test_a_weekend_is_no_delay_but_a_week_is() -> None:
    assert found(healthy(), NOW + timedelta(days=3)) == set()
    assert found(healthy(), NOW + timedelta(days=9)) == {("*", "freshness")}


def test_rows_that_are_not_known_yet_do_not_count_as_fresh() -> None:
    rows = healthy()
    rows.loc[is_recent(rows), "ingest_time"] = NOW + timedelta(days=1)
    assert ("*", "freshness") in found(rows)
    assert found(rows.assign(ingest_time=NOW + timedelta(days=1))) == {("*", "freshness")}


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        ("nulls", lambda values: values * np.nan),
        ("range", lambda values: values + 1000.0),
        ("stuck", lambda values: values * 0.0 + 0.123),
        ("jumps", lambda values: values * np.where(np.arange(len(values)) % 2, 60.0, -60.0)),
    ],
)
def test_what_breaks_is_named(check: str, broken) -> None:
    rows = healthy()
    rows.loc[is_recent(rows), "slow"] = broken(rows.loc[is_recent(rows), "slow"])
    assert ("slow", check) in found(rows)
    assert {feature for feature, _ in found(rows)} == {"slow"}


def test_repeated_rows_are_counted() -> None:
    rows = healthy()
    doubled = pd.concat([rows, rows.tail(3)], ignore_index=True)
    [finding] = check_health(doubled, view="toy_v1", now=NOW)
    assert (finding.check, finding.got) == ("duplicates", 3)
    assert "3 rows repeat" in finding.message


def test_a_restatement_is_read_as_known() -> None:
    rows = healthy()
    wrong = rows[is_recent(rows)].assign(slow=1000.0)
    mended = rows[is_recent(rows)].assign(ingest_time=wrong["ingest_time"] + timedelta(minutes=1))
    table = pd.concat([rows[~is_recent(rows)], wrong, mended], ignore_index=True)
    assert found(table) == set()
    assert ("slow", "range") in found(pd.concat([rows[~is_recent(rows)], wrong], ignore_index=True))


def test_a_young_table_is_not_judged_by_its_past() -> None:
    assert found(healthy().head(30), datetime(2023, 2, 13, tzinfo=UTC)) == set()
