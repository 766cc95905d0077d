"""Fundamentals through Feast: what was said of the latest period by then, restated, withdrawn, and too old at last."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from feature_repo.definitions.repo import open_feature_store
from feature_repo.market.fundamentals import VIEW, fundamental_rows
from feature_repo.store.tables import append_rows, feature_names

PERIOD, NEXT = "2023-03-31", "2023-06-30"


def said(*rows: tuple[str, str, str, float | None]) -> pd.DataFrame:
    """(period, known, name, value) of one company."""
    table = pd.DataFrame(rows, columns=["event_time", "ingest_time", "name", "value"]).assign(entity_key="A")
    times = {name: pd.to_datetime(table[name], utc=True).dt.as_unit("us") for name in ("event_time", "ingest_time")}
    return table.assign(**times)


REPORTS = said(
    (PERIOD, "2023-04-20", "eps", 1.0),
    (PERIOD, "2023-05-02", "book", 50.0),
    (PERIOD, "2023-05-20", "eps", 0.8),
    (PERIOD, "2023-06-10", "book", None),
    (NEXT, "2023-07-25", "eps", 1.2),
)


def rows(reports: pd.DataFrame = REPORTS) -> pd.DataFrame:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    return fundamental_rows(reports, producer="test", producer_version="abc", run_id="r", written_at=now)


@pytest.mark.parametrize(
    ("day", "eps", "book"),
    [
        ("2023-04-19", None, None),
        ("2023-04-21", 1.0, None),
        ("2023-05-03", 1.0, 50.0),
        ("2023-05-21", 0.8, 50.0),
        ("2023-06-11", 0.8, None),
        ("2023-07-26", 1.2, None),
        ("2024-07-01", 1.2, None),
        ("2024-09-01", None, None),
    ],
)
def test_figures_are_those_known_then(tmp_path: Path, day: str, eps: float | None, book: float | None) -> None:
    append_rows(tmp_path / "features" / VIEW, rows())
    store = open_feature_store(
        project="toy_1d",
        registry=f"sqlite:///{tmp_path / 'registry.db'}",
        features_root=tmp_path / "features",
        interval="1d",
    )
    asked = pd.DataFrame({"entity_key": ["A"], "event_timestamp": [pd.Timestamp(day, tz="UTC")]})
    answer = store.get_historical_features(asked, store.get_feature_service(VIEW)).to_df()
    got = [None if pd.isna(answer[name][0]) else answer[name][0] for name in ("eps", "book")]
    assert got == [eps, book]


def test_a_row_for_each_moment_something_became_known() -> None:
    table = rows()
    assert len(table) == 5
    assert table["eps"].tolist() == [1.0, 1.0, 0.8, 0.8, 1.2]
    assert table["ingest_time"].is_monotonic_increasing


def test_repeating_the_build_appends_nothing(tmp_path: Path) -> None:
    assert append_rows(tmp_path / VIEW, rows()) == 5
    assert append_rows(tmp_path / VIEW, rows()) == 0
    assert feature_names(tmp_path / VIEW) == ["book", "eps"]
    assert feature_names(tmp_path / "absent") == []
