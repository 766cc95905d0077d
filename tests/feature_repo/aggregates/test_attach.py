"""Attached columns against the rule, brute force, at every moment."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.attach import attach
from feature_repo.aggregates.base import EVERYONE

ORIGIN = pd.Timestamp("2024-01-01", tz="UTC")
KEYS = ["entity_key", "event_time", "ingest_time"]


def versions(rng: np.random.Generator, column: str, entities: tuple[str, ...], num_rows: int) -> pd.DataFrame:
    """Rows of a few hourly bars, known up to ten hours later or a little early; some null, some never known."""
    event = rng.integers(0, 6, num_rows)
    table = pd.DataFrame(
        {
            "entity_key": rng.choice(np.array(entities, dtype=object), num_rows),
            "event_time": ORIGIN + pd.to_timedelta(event, unit="h"),
            "ingest_time": ORIGIN + pd.to_timedelta(event + rng.integers(-1, 10, num_rows), unit="h"),
            column: np.where(rng.random(num_rows) < 0.2, np.nan, rng.integers(0, 5, num_rows)),
        }
    ).astype({"event_time": "datetime64[us, UTC]", "ingest_time": "datetime64[us, UTC]"})
    table.loc[rng.random(num_rows) < 0.05, "ingest_time"] = pd.NaT
    return table


def known(table: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """The last known row of each bar, by (entity, event time)."""
    rows = table[(table["event_time"] <= moment) & (table["ingest_time"] <= moment)]
    rows = rows.sort_values("ingest_time", kind="stable").drop_duplicates(KEYS[:2], keep="last")
    return rows.set_index(KEYS[:2]).drop(columns="ingest_time")


def joined(bars: pd.DataFrame, own: pd.DataFrame, shared: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    want = known(bars, moment).join(known(own, moment))
    beside = known(shared, moment).reset_index().drop(columns="entity_key").set_index("event_time")
    return want.join(beside, on="event_time").sort_index()


def moments() -> list[pd.Timestamp]:
    return [ORIGIN + pd.Timedelta(hours=hours) for hours in np.arange(-0.5, 17, 0.5)]


@pytest.mark.parametrize("seed", range(20))
def test_at_every_moment_the_row_is_the_bar_with_what_was_known_beside_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bars, own = versions(rng, "close", ("A", "B"), 15), versions(rng, "own", ("A", "B", "gone"), 25)
    shared = versions(rng, "shared", (EVERYONE,), 20)
    attached = attach(bars, [own, shared])
    assert not attached.duplicated(KEYS).any()
    for moment in moments():
        pd.testing.assert_frame_equal(known(attached, moment).sort_index(), joined(bars, own, shared, moment))


def test_what_arrives_before_its_bar_waits_for_it_and_what_arrives_later_restates_it() -> None:
    def at(hours: list[float]) -> pd.Series:
        return pd.Series(ORIGIN + pd.to_timedelta(hours, unit="h"))

    bars = pd.DataFrame({"entity_key": "A", "event_time": at([0]), "ingest_time": at([1]), "close": [10.0]})
    own = pd.DataFrame({"entity_key": "A", "event_time": at([0, 0]), "ingest_time": at([0.5, 3]), "own": [1.0, np.nan]})
    got = attach(bars, [own])
    assert list(got["ingest_time"]) == [ORIGIN + pd.Timedelta(hours=1), ORIGIN + pd.Timedelta(hours=3)]
    assert got["own"].tolist()[0] == 1.0
    assert np.isnan(got["own"].tolist()[1])
    assert got["close"].tolist() == [10.0, 10.0]


def test_joining_on_event_time_only_breaks_the_rule() -> None:
    rng = np.random.default_rng(1)
    bars, own, shared = (
        versions(rng, name, (who,), 25) for name, who in (("close", "A"), ("own", "A"), ("shared", EVERYONE))
    )
    last = own.sort_values("ingest_time").drop_duplicates("event_time", keep="last")[["event_time", "own"]]
    broken = bars.merge(last, on="event_time", how="left").merge(
        shared.sort_values("ingest_time").drop_duplicates("event_time", keep="last")[["event_time", "shared"]],
        on="event_time",
        how="left",
    )
    differs = [not known(broken, moment).sort_index().equals(joined(bars, own, shared, moment)) for moment in moments()]
    assert any(differs)
