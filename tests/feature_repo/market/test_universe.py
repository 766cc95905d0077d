"""Membership in two times, against brute force."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.universe import members

ORIGIN = pd.Timestamp("2024-01-01", tz="UTC")


def table(rows: list[tuple[str, float, float | None, float]]) -> pd.DataFrame:
    def times(days: list[float | None]) -> pd.Series:
        offsets = pd.to_timedelta(pd.Series(days, dtype=float), unit="D")
        return (ORIGIN + offsets).astype("datetime64[us, UTC]")

    entity, start, stop, known = zip(*rows, strict=True)
    columns = {"entity_key": entity, "from": times(start), "to": times(stop), "ingest_time": times(known)}
    return pd.DataFrame(columns)


def at(*days: float) -> np.ndarray:
    return np.array([(ORIGIN + pd.Timedelta(days=d)).to_datetime64() for d in days], dtype="datetime64[us]")


def test_an_addition_announced_ahead_takes_effect_at_its_date() -> None:
    got = members(table([("A", 5, None, 2)]), ["A"], at(1, 3, 5, 50))
    assert got[:, 0].tolist() == [False, False, True, True]


def test_a_removal_counts_from_when_it_is_known() -> None:
    got = members(table([("A", 0, None, 0), ("A", 0, 5, 7)]), ["A"], at(4, 6, 7, 8))
    assert got[:, 0].tolist() == [True, True, False, False]


def test_an_entity_may_come_back_and_strangers_are_no_members() -> None:
    got = members(table([("A", 0, 5, 0), ("A", 10, None, 9)]), ["A", "B"], at(1, 5, 9, 10))
    assert got.tolist() == [[True, False], [False, False], [False, False], [True, False]]


@pytest.mark.parametrize("seed", range(30))
def test_membership_is_what_the_known_rows_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(12):
        start = float(rng.integers(0, 10))
        stop = None if rng.random() < 0.4 else start + float(rng.integers(1, 10))
        rows.append((str(rng.choice(["A", "B"])), start, stop, float(rng.permutation(200)[0]) / 10))
    universe = table(rows)
    days = [float(day) for day in np.arange(0, 22, 0.5)]
    got = members(universe, ["A", "B"], at(*days))
    for t, moment in enumerate(days):
        now = ORIGIN + pd.Timedelta(days=moment)
        known = universe[universe["ingest_time"] <= now].sort_values("ingest_time", kind="stable")
        current = known.drop_duplicates(["entity_key", "from"], keep="last")
        inside = current[(current["from"] <= now) & (current["to"].isna() | (now < current["to"]))]
        assert got[t].tolist() == [name in set(inside["entity_key"]) for name in ("A", "B")]


def test_using_the_last_word_before_it_was_spoken_differs() -> None:
    universe = table([("A", 0, None, 0), ("A", 0, 5, 7)])
    final = universe.drop_duplicates(["entity_key", "from"], keep="last").assign(ingest_time=ORIGIN)
    assert members(final, ["A"], at(6))[0, 0] != members(universe, ["A"], at(6))[0, 0]
