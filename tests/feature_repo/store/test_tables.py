"""The embedded feature table: appends may be repeated, interrupted and contradicted; history stays."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from feature_repo.store import tables
from feature_repo.store.completion import EventRow, Statement, rows_to_add
from feature_repo.store.parquet import History
from feature_repo.store.tables import KEY, TableError, append_rows, feature_names, fitted, new_rows, read_rows

DAY = pd.Timedelta(days=1)
START = pd.Timestamp("2024-01-01", tz="UTC")
FIRST_WRITE = pd.Timestamp("2024-06-01 12:00", tz="UTC")


def feature_rows(num_days: int = 5, *, written_at: pd.Timestamp = FIRST_WRITE, **features: list[float]) -> pd.DataFrame:
    """Rows of two entities, known as soon as they happen."""
    times = pd.DatetimeIndex(np.tile(pd.date_range(START, periods=num_days, freq=DAY), 2)).as_unit("us")
    frame = pd.DataFrame(
        {"entity_key": np.repeat(["A", "B"], num_days), "event_time": times, "ingest_time": times}
        | (features or {"x": np.arange(2.0 * num_days), "y": np.full(2 * num_days, np.nan)})
    )
    frame["written_at"] = written_at.as_unit("us")
    return frame.assign(producer="test", producer_version="abc", run_id="run-1")


def with_value(frame: pd.DataFrame, row: int, value: float) -> pd.DataFrame:
    changed = frame.copy()
    changed.loc[row, "x"] = value
    return changed


def later(frame: pd.DataFrame, days: int) -> pd.DataFrame:
    """The same rows as a later run writes them."""
    return frame.assign(written_at=frame["written_at"] + days * DAY, run_id=f"run-{days}")


def current(folder: Path, entity: str = "A") -> list[float]:
    rows = read_rows(folder).sort_values(list(KEY)).drop_duplicates(["entity_key", "event_time"], keep="last")
    return rows.loc[rows["entity_key"] == entity, "x"].tolist()


def test_round_trip_keeps_values_and_types(tmp_path: Path) -> None:
    frame = feature_rows()
    assert append_rows(tmp_path / "t", frame) == 10
    pd.testing.assert_frame_equal(read_rows(tmp_path / "t"), frame)
    schema = pq.read_schema(tmp_path / "t" / "part-000000.parquet")
    assert str(schema.field("event_time").type) == "timestamp[us, tz=UTC]"
    assert str(schema.field("x").type) == "double"


def test_table_that_is_not_there_reads_empty(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "nothing").empty
    assert append_rows(tmp_path / "t", feature_rows().iloc[:0]) == 0
    assert list(read_rows(tmp_path / "t").columns) == [*KEY, "written_at", "producer", "producer_version", "run_id"]


def test_same_rows_again_are_no_new_rows(tmp_path: Path) -> None:
    frame = feature_rows()
    append_rows(tmp_path, frame)
    shuffled = later(frame, 1).sample(frac=1.0, random_state=0)
    assert append_rows(tmp_path, shuffled) == 0
    assert append_rows(tmp_path, shuffled.iloc[:3]) == 0
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_longer_history_appends_only_what_is_new_and_rewrites_nothing(tmp_path: Path) -> None:
    append_rows(tmp_path, feature_rows(5, x=[*range(5), *range(10, 15)]))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert append_rows(tmp_path, feature_rows(7, x=[*range(7), *range(10, 17)])) == 4
    assert {path: path.read_bytes() for path in before} == before
    assert current(tmp_path, "B") == [10, 11, 12, 13, 14, 15, 16]


def test_a_different_value_under_a_key_is_a_restatement_known_now(tmp_path: Path) -> None:
    frame = feature_rows()
    append_rows(tmp_path, frame)
    corrected = later(with_value(frame, 2, 99.0), 1)
    assert append_rows(tmp_path, corrected) == 1
    rows = read_rows(tmp_path)
    versions = rows[(rows["entity_key"] == "A") & (rows["event_time"] == START + 2 * DAY)]
    assert versions["x"].tolist() == [2.0, 99.0]
    assert versions["ingest_time"].tolist() == [START + 2 * DAY, FIRST_WRITE + DAY]
    assert append_rows(tmp_path, later(corrected, 5)) == 0, "saying it again is no news"


def test_the_current_value_follows_the_producer_forth_and_back(tmp_path: Path) -> None:
    frame = feature_rows()
    for days, value in enumerate([2.0, 99.0, 7.0, 2.0, np.nan, 2.0]):
        append_rows(tmp_path, later(with_value(frame, 2, value), days))
        np.testing.assert_array_equal(current(tmp_path)[2], value)
    assert not read_rows(tmp_path).duplicated(list(KEY)).any()
    assert len(read_rows(tmp_path)) == 10 + 5


def test_restatements_by_one_clock_tick_still_have_their_order(tmp_path: Path) -> None:
    frame = feature_rows()
    for value in (2.0, 99.0, 7.0):
        append_rows(tmp_path, with_value(frame, 2, value))
    assert current(tmp_path)[2] == 7.0
    assert not read_rows(tmp_path).duplicated(list(KEY)).any()


def test_an_older_version_said_again_does_not_come_back(tmp_path: Path) -> None:
    frame = feature_rows()
    restated = frame.iloc[[2]].assign(ingest_time=START + 30 * DAY, x=50.0)
    assert append_rows(tmp_path, pd.concat([frame, restated])) == 11
    assert append_rows(tmp_path, later(frame, 1)) == 0
    assert append_rows(tmp_path, later(with_value(frame, 2, 1.0), 2)) == 0, "superseded by the data's own restatement"
    assert current(tmp_path)[2] == 50.0


def test_an_older_version_alone_does_not_undo_a_correction(tmp_path: Path) -> None:
    frame = feature_rows()
    newer = frame.iloc[[2]].assign(ingest_time=START + 30 * DAY, x=50.0)
    append_rows(tmp_path, pd.concat([frame, newer]))
    assert append_rows(tmp_path, later(newer.assign(x=51.0), 1)) == 1
    assert append_rows(tmp_path, later(frame, 2)) == 0, "the correction is about a later version"
    assert current(tmp_path)[2] == 51.0


@pytest.mark.parametrize("knows_restatements", [True, False])
def test_the_rule_is_that_of_the_api(knows_restatements: bool) -> None:
    """Random versions of an event, one or two given at a time; who forgets what a restatement is about goes wrong."""
    rng, entities = random.Random(0), [f"E{number:03d}" for number in range(150)]
    logs: dict[str, list[EventRow]] = {entity: [] for entity in entities}
    stored = fitted(feature_rows(1, x=[0.0, 0.0]).iloc[:0], ["x"])
    for now in FIRST_WRITE + DAY * np.array([0, 1, 1, 4, 4, 5, 8, 9]):
        dates = [START + date * DAY for date in (1, 2, 3, 154, 156, 159) if START + date * DAY <= now]
        said = {name: {date: rng.choice([0.0, 1.0, 2.0]) for date in rng.sample(dates, 2)} for name in entities}
        for entity, values in said.items():
            statements = [Statement(ingest_time=date, features={"x": value}) for date, value in values.items()]
            logs[entity] += rows_to_add(logs[entity], statements, now.to_pydatetime())
        rows = [(name, START, date, value) for name, values in said.items() for date, value in values.items()]
        frame = pd.DataFrame(rows, columns=[*KEY, "x"])
        given = frame.assign(written_at=now, producer="p", producer_version="v", run_id="r")
        new = new_rows(stored, fitted(given, ["x"]))
        stored = pd.concat([stored, new]) if len(stored) else new
        if not knows_restatements:
            stored["restates"] = stored["restates"].mask(stored["restates"].notna())
    by_api = [(name, row.ingest_time, row.features["x"]) for name, log in logs.items() for row in log]
    by_us = stored[["entity_key", "ingest_time", "x"]].itertuples(index=False, name=None)
    assert (sorted(by_us) == sorted(by_api)) == knows_restatements


def test_of_equal_keys_in_one_append_the_last_counts(tmp_path: Path) -> None:
    frame = feature_rows()
    assert append_rows(tmp_path, pd.concat([frame, with_value(frame, 0, 5.0).iloc[[0]]])) == 10
    assert current(tmp_path)[0] == 5.0


@pytest.mark.parametrize("seed", range(8))
def test_random_appends_end_at_what_was_said_last(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    said: dict[tuple[str, pd.Timestamp], float] = {}
    for step in range(12):
        frame = feature_rows(8, x=rng.integers(0, 3, 16).astype(float), written_at=FIRST_WRITE + step * DAY)
        chosen = frame.sample(int(rng.integers(1, 17)), random_state=int(rng.integers(1 << 30)))
        append_rows(tmp_path, chosen)
        said |= {(row.entity_key, row.event_time): row.x for row in chosen.itertuples()}
        assert append_rows(tmp_path, chosen) == 0
    rows = read_rows(tmp_path).sort_values(list(KEY))
    assert not rows.duplicated(list(KEY)).any()
    newest = rows.drop_duplicates(["entity_key", "event_time"], keep="last")
    assert {(row.entity_key, row.event_time): row.x for row in newest.itertuples()} == said


def test_other_columns_need_another_version(tmp_path: Path) -> None:
    append_rows(tmp_path, feature_rows())
    with pytest.raises(TableError, match=r"only stored \['y'\], only given \['z'\]; raise the pipeline's version"):
        append_rows(tmp_path, feature_rows().rename(columns={"y": "z"}))
    with pytest.raises(TableError, match=r"lack the columns \['run_id'\]"):
        append_rows(tmp_path, feature_rows().drop(columns="run_id"))
    with pytest.raises(TableError, match=r"nulls in \['ingest_time'\]"):
        append_rows(tmp_path, feature_rows().assign(ingest_time=pd.NaT))


def test_names_may_become_columns_where_that_is_said(tmp_path: Path) -> None:
    append_rows(tmp_path, feature_rows())
    grown = later(feature_rows(6, x=[*range(5), 20, *range(5, 10), 20], z=[1.0, *[np.nan] * 11]), 1)
    assert append_rows(tmp_path, grown, may_grow=True) == 3, "two rows, and what is said of the first now"
    assert feature_names(tmp_path) == ["x", "y", "z"]
    rows = read_rows(tmp_path)
    assert list(rows.columns) == [*KEY, "x", "y", "z", "written_at", "producer", "producer_version", "run_id"]
    assert rows["z"].notna().sum() == 1
    assert append_rows(tmp_path, grown, may_grow=True) == 0
    assert append_rows(tmp_path, later(feature_rows(), 2), may_grow=True) == 1, "a name that is gone is withdrawn"
    history = History(name="t", path=tmp_path, keys=KEY[:1], event_time="event_time", ingest_time="ingest_time")
    assert history.open().to_table(columns=["z"])["z"].drop_null().to_pylist() == [1.0]
    with pytest.raises(TableError, match=r"only stored \['z'\], only given \[\]; raise the pipeline's version"):
        append_rows(tmp_path, feature_rows())


def test_columns_of_the_tables_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"have the columns \['stated'\], which the table fills in itself"):
        append_rows(tmp_path, feature_rows().assign(stated=1.0))


def test_readers_ignore_what_a_killed_writer_left_and_the_next_one_clears_it(tmp_path: Path) -> None:
    append_rows(tmp_path, feature_rows())
    leftover = tmp_path / "_part-000001.partial"
    leftover.write_bytes(b"half a part")
    assert len(read_rows(tmp_path)) == 10
    assert ds.dataset(tmp_path, format="parquet").count_rows() == 10
    append_rows(tmp_path, feature_rows())
    assert not leftover.exists()


def test_failing_write_leaves_the_table_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_rows(tmp_path, feature_rows())

    def tear(writer: object, table: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", tear)
    with pytest.raises(OSError, match="disk full"):
        append_rows(tmp_path, feature_rows(9, x=list(range(18)), y=[np.nan] * 18))
    monkeypatch.undo()
    assert len(read_rows(tmp_path)) == 10


def test_writers_at_the_same_time_take_turns(tmp_path: Path) -> None:
    frames = [feature_rows(40, x=list(range(80))).iloc[start::7] for start in range(7)] * 2
    with ThreadPoolExecutor(8) as pool:
        written = sum(pool.map(lambda frame: append_rows(tmp_path, frame), frames))
    assert written == len(read_rows(tmp_path)) == 80
    assert not read_rows(tmp_path).duplicated(list(KEY)).any()


WRITER = """
import sys
from pathlib import Path
import pandas as pd
from feature_repo.store.tables import append_rows
frame = pd.read_parquet(sys.argv[2])
for start in range(0, len(frame), 50):
    append_rows(Path(sys.argv[1]), frame.iloc[: start + 50])
"""


def test_killed_at_any_point_and_run_again_ends_right(tmp_path: Path) -> None:
    folder, source = tmp_path / "table", tmp_path / "rows.parquet"
    frame = feature_rows(2000, x=list(np.random.default_rng(0).normal(size=4000)))
    frame.to_parquet(source)
    for num_parts in (1, 5):
        command = [sys.executable, "-c", WRITER, str(folder), str(source)]
        with subprocess.Popen(command) as writer:
            while writer.poll() is None and len(list(folder.glob("*.parquet"))) < num_parts:
                time.sleep(0.002)
            writer.send_signal(signal.SIGKILL)
        assert 0 < len(read_rows(folder)) < 4000
    assert append_rows(folder, frame) > 0
    got = read_rows(folder).sort_values(list(KEY), ignore_index=True)
    pd.testing.assert_frame_equal(got, frame)
