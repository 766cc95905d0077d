"""Landing: only what is new lands, nothing landed ever changes, and a kill leaves the old file or the new one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.connectors import landing
from feature_repo.connectors.base import ConnectorError, Landed
from feature_repo.connectors.landing import Arrival, Lander, land, merge, read_landed
from feature_repo.market.directory import read_market_directory

T0 = datetime(2024, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
EMPTY = pd.DataFrame(
    {
        "entity_key": pd.Series(dtype=object),
        "event_time": pd.Series(dtype="datetime64[us, UTC]"),
        "ingest_time": pd.Series(dtype="datetime64[us, UTC]"),
    }
)


def metrics(days: dict[int, float | None], entity: str = "BTC", **more) -> pd.DataFrame:
    times = pd.DatetimeIndex([T0 + day * DAY for day in days]).as_unit("us")
    values = pd.Series(list(days.values()), dtype="float64")
    return pd.DataFrame({"entity_key": entity, "event_time": times, "TxCnt": values, **more})


def arrival(rows: pd.DataFrame, hours: float, extent="rows") -> Arrival:
    return Arrival(rows=rows, ingest_time=T0 + 10 * DAY + timedelta(hours=hours), extent=extent)


def landed(table: pd.DataFrame) -> list[tuple[int, float | None, float]]:
    """(day, value or None, hours after T0 + 10 days that it was known) of each row."""
    return [
        (
            (row.event_time - T0) // DAY,
            None if np.isnan(row.TxCnt) else row.TxCnt,
            (row.ingest_time - T0 - 10 * DAY) / timedelta(hours=1),
        )
        for row in table.itertuples()
    ]


def test_new_known_and_restated():
    table, counts = merge("onchain_1d", EMPTY, [arrival(metrics({1: 5.0, 2: 6.0}), 0)])
    assert counts == Landed(num_new=2)
    again, counts = merge("onchain_1d", table, [arrival(metrics({1: 5.0, 2: 6.0}), 1)])
    assert counts == Landed(num_known=2)
    pd.testing.assert_frame_equal(again, table)
    table, counts = merge("onchain_1d", table, [arrival(metrics({1: 5.0, 2: 7.0, 3: 8.0}), 2)])
    assert counts == Landed(num_new=1, num_restated=1, num_known=1)
    assert landed(table) == [(1, 5.0, 0), (2, 6.0, 0), (2, 7.0, 2), (3, 8.0, 2)]


def test_a_value_that_comes_back_is_a_restatement_too():
    table, _ = merge(
        "onchain_1d", EMPTY, [arrival(metrics({1: value}), at) for at, value in enumerate([5.0, 6.0, 5.0])]
    )
    assert landed(table) == [(1, 5.0, 0), (1, 6.0, 1), (1, 5.0, 2)]


def test_null_is_a_value_and_equals_null():
    table, counts = merge("onchain_1d", EMPTY, [arrival(metrics({1: 5.0}), 0), arrival(metrics({1: None}), 1)])
    assert counts == Landed(num_new=1, num_restated=1)
    assert merge("onchain_1d", table, [arrival(metrics({1: None}), 2)])[1] == Landed(num_known=1)


@pytest.mark.parametrize(("extent", "withdrawn"), [("rows", set()), ("span", {3}), ("whole", {1, 3, 5})])
def test_what_vanished_is_withdrawn_as_far_as_the_source_says_all(extent, withdrawn):
    table, _ = merge("onchain_1d", EMPTY, [arrival(metrics(dict.fromkeys(range(1, 6), 1.0)), 0)])
    table, _ = merge("onchain_1d", table, [arrival(metrics({1: 9.0}, entity="ETH"), 0)])
    table, counts = merge("onchain_1d", table, [arrival(metrics({2: 1.0, 4: 1.0}), 1, extent)])
    assert counts == Landed(num_withdrawn=len(withdrawn), num_known=2)
    assert {day for day, value, _ in landed(table) if value is None} == withdrawn
    again, counts = merge("onchain_1d", table, [arrival(metrics({2: 1.0, 4: 1.0}), 2, extent)])
    assert counts == Landed(num_known=2)  # withdrawn once
    _, counts = merge("onchain_1d", again, [arrival(metrics(dict.fromkeys(range(1, 6), 1.0)), 3, extent)])
    assert counts == Landed(num_restated=len(withdrawn), num_known=5 - len(withdrawn))


def test_a_column_the_source_lacks_is_completed_unless_the_source_is_whole():
    both = metrics({1: 5.0, 2: 6.0}).assign(Fees=[1.5, 2.5])
    table, _ = merge("onchain_1d", EMPTY, [arrival(both, 0)])
    completed, counts = merge("onchain_1d", table, [arrival(metrics({1: 7.0, 2: 6.0}), 1)])
    assert counts == Landed(num_restated=1, num_known=1)
    assert completed.loc[completed["TxCnt"] == 7.0, "Fees"].tolist() == [1.5]
    whole, counts = merge("onchain_1d", table, [arrival(metrics({1: 5.0, 2: 6.0}), 1, "whole")])
    assert counts == Landed(num_restated=2)
    assert whole["Fees"].isna().sum() == 2


def test_no_row_is_withdrawn_while_a_name_does_not_read():
    table, _ = merge("onchain_1d", EMPTY, [arrival(metrics(dict.fromkeys(range(1, 4), 1.0)), 0)])
    said = metrics({1: 1.0, 2: 1.0, 3: 1.0})
    said["event_time"] = ["2024-03-02T00:00:00+00:00", "garbage", "2024-03-04T00:00:00+00:00"]
    table, counts = merge("onchain_1d", table, [arrival(said, 1, "whole")])
    assert counts == Landed(num_new=1, num_known=2)


def test_bars_can_not_be_withdrawn():
    bars = metrics({1: 1.0}).rename(columns={"TxCnt": "close"})
    with pytest.raises(ConnectorError, match="may not be null"):
        merge("bars_1d", EMPTY, [arrival(bars, 0), arrival(bars, 1, "span")])


def test_a_source_that_contradicts_itself_lands_once_and_is_quarantined(tmp_path):
    twice = pd.concat([metrics({1: 5.0}), metrics({1: 6.0}), metrics({1: 5.0})], ignore_index=True)
    assert land(tmp_path, "onchain_1d", [arrival(twice, 0)]).num_written == 2
    assert land(tmp_path, "onchain_1d", [arrival(twice, 1)]) == Landed(num_known=3)
    changed = pd.concat([metrics({1: 5.0}), metrics({1: 7.0})], ignore_index=True)
    assert land(tmp_path, "onchain_1d", [arrival(changed, 2)]).num_written == 2
    assert land(tmp_path, "onchain_1d", [arrival(changed, 3)]) == Landed(num_known=2)
    quarantine = read_market_directory(tmp_path, now=T0 + 20 * DAY).quarantine
    assert len(quarantine) == 2
    assert quarantine["reason"].str.contains("contradicts").all()


def test_a_restatement_is_known_later_even_if_the_clock_ran_back():
    table, _ = merge("onchain_1d", EMPTY, [arrival(metrics({1: 5.0}), 3), arrival(metrics({1: 6.0}), 1)])
    assert table["TxCnt"].tolist() == [5.0, 6.0]
    assert table["ingest_time"].diff().tolist()[1] == timedelta(microseconds=1)


def test_a_lag_dates_first_rows_only_and_never_after_their_arrival():
    lag = timedelta(hours=13)
    table, _ = merge("onchain_1d", EMPTY, [arrival(metrics({1: 5.0, 10: 6.0}), 2)], lag=lag)
    assert table["ingest_time"].tolist() == [T0 + DAY + lag, T0 + 10 * DAY + timedelta(hours=2)]
    table, _ = merge("onchain_1d", table, [arrival(metrics({1: 5.5}), 3)], lag=lag)
    assert table["ingest_time"].tolist()[1] == T0 + 10 * DAY + timedelta(hours=3)


def test_a_cell_that_does_not_read_is_kept_as_text_and_quarantined(tmp_path):
    said = metrics({1: 1.0, 2: 2.0, 3: 3.0})
    land(tmp_path, "onchain_1d", [arrival(said, 0)])
    said = pd.DataFrame(
        {
            "entity_key": "BTC",
            "event_time": ["2024-03-02T00:00:00Z", "2024-03-03T00:00:00Z", "2024-03-04T00:00:00Z", "yesterday"],
            "TxCnt": ["1", "2.50", "n/a?", "1"],
        }
    )
    assert land(tmp_path, "onchain_1d", [arrival(said, 1)]) == Landed(num_new=1, num_restated=2, num_known=1)
    assert land(tmp_path, "onchain_1d", [arrival(said, 2)]) == Landed(num_known=4)
    market = read_market_directory(tmp_path, now=T0 + 20 * DAY)
    assert sorted(market.quarantine["reason"]) == ["TxCnt is not a number", "event_time is not an ISO 8601 time"]
    assert "n/a?" in "".join(market.quarantine["record"])
    assert landed(market.tables["onchain_1d"]) == [(1, 1.0, 0), (2, 2.0, 0), (2, 2.5, 1), (3, 3.0, 0)]


# ---- the two times, against brute force ------------------------------------------------------------------------------


@st.composite
def publications(draw):
    """What a source says at each of several times: day -> value, or the day left out."""
    num = draw(st.integers(1, 5))
    day_values = st.dictionaries(st.integers(0, 5), st.sampled_from([1.0, 2.0, None]), min_size=1)
    return [draw(day_values) for _ in range(num)]


@settings(max_examples=30)
@given(said=publications(), together=st.booleans())
def test_every_as_of_query_returns_what_was_published_then(said, together):
    arrivals = [arrival(metrics(days), at, "whole") for at, days in enumerate(said)]
    table = EMPTY
    for some in [arrivals] if together else [[one] for one in arrivals]:
        before, (table, _) = table, merge("onchain_1d", table, some)
        kept = table.merge(before, how="inner") if len(before) else before
        assert len(kept) == len(before)  # nothing landed was changed
    for at, days in enumerate(said):
        known = table[table["ingest_time"] <= T0 + 10 * DAY + timedelta(hours=at)]
        latest = known.sort_values("ingest_time", kind="stable").drop_duplicates("event_time", keep="last")
        values = {(time - T0) // DAY: value for time, value in zip(latest["event_time"], latest["TxCnt"], strict=True)}
        published = {day: value for day, value in days.items() if value is not None}
        assert {day: value for day, value in values.items() if not np.isnan(value)} == published


# ---- ticks -----------------------------------------------------------------------------------------------------------


def ticks(*trades: tuple[int, float, str | None]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "entity_key": "BTC",
            "event_time": pd.DatetimeIndex([T0 + timedelta(seconds=second) for second, _, _ in trades]).as_unit("us"),
            "price": [price for _, price, _ in trades],
            "size": 1.0,
            "trade_id": pd.Series([trade_id for _, _, trade_id in trades], dtype=object),
        }
    )


def test_ticks_are_recognised_by_their_id():
    first, second = ticks((1, 5, "a"), (2, 5, "b")), ticks((2, 5, "b"), (2, 5, "c"), (3, 6, "d"), (3, 6, "d"))
    table, counts = merge("trades", EMPTY, [arrival(first, 0), arrival(second, 1)])
    assert counts == Landed(num_new=4, num_known=2)
    assert table["trade_id"].tolist() == ["a", "b", "c", "d"]


def test_a_known_id_with_other_values_is_counted_and_not_landed():
    table, counts = merge("trades", EMPTY, [arrival(ticks((1, 5, "a")), 0), arrival(ticks((1, 6, "a")), 1)])
    assert counts == Landed(num_new=1, num_contradicted=1)
    assert table["price"].tolist() == [5]


def test_ticks_without_ids_are_recognised_by_their_values_and_their_number():
    first = ticks((1, 5, None), (2, 5, None), (2, 5, None))
    second = ticks((2, 5, None), (2, 5, None), (2, 5, None), (2, 6, None))  # the third of second 2 came later
    table, counts = merge("trades", EMPTY, [arrival(first, 0), arrival(second, 1)])
    assert counts == Landed(num_new=5, num_known=2)
    assert table["price"].tolist() == [5, 5, 5, 5, 6]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_lander_holds_back_and_lands_in_order(tmp_path):
    lander = Lander(tmp_path, "onchain_1d", num_rows_held=3)
    lander.add(arrival(metrics({1: 1.0, 2: 1.0}), 0))
    assert not list(tmp_path.iterdir())
    lander.add(arrival(metrics({2: 2.0}), 1))
    assert lander.landed == Landed(num_new=2, num_restated=1)
    lander.flush()
    assert lander.landed.num_written == len(read_landed(tmp_path / "onchain_1d.parquet", "onchain_1d")) == 3


def test_nothing_new_leaves_the_file_untouched(tmp_path):
    land(tmp_path, "onchain_1d", [arrival(metrics({1: 1.0}), 0)])
    before = (tmp_path / "onchain_1d.parquet").stat().st_ino
    land(tmp_path, "onchain_1d", [arrival(metrics({1: 1.0}), 1)])
    assert (tmp_path / "onchain_1d.parquet").stat().st_ino == before


def test_foreign_tables_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "onchain_1d.csv").write_text("entity_key,event_time,ingest_time\n")
    with pytest.raises(ConnectorError, match=r"convert onchain_1d\.csv"):
        land(tmp_path, "onchain_1d", [arrival(metrics({1: 1.0}), 0)])
    (tmp_path / "onchain_1d.csv").unlink()
    metrics({1: 1.0}).to_parquet(tmp_path / "onchain_1d.parquet")
    with pytest.raises(ConnectorError, match=r"no column \['ingest_time'\]"):
        land(tmp_path, "onchain_1d", [arrival(metrics({1: 1.0}), 0)])
    naive = metrics({1: 1.0}).assign(ingest_time=pd.Timestamp("2024-03-02"))
    naive.to_parquet(tmp_path / "onchain_1d.parquet")
    with pytest.raises(ConnectorError, match="no zone"):
        land(tmp_path, "onchain_1d", [arrival(metrics({1: 1.0}), 0)])


def test_rows_of_others_with_more_columns_and_integers_stay(tmp_path):
    old = metrics({1: 1.0}).assign(ingest_time=pd.Timestamp(T0 + DAY), Blocks=[7])
    old.to_parquet(tmp_path / "onchain_1d.parquet", index=False)
    land(tmp_path, "onchain_1d", [arrival(metrics({1: 2.0, 2: 3.0}), 0)])
    table = read_landed(tmp_path / "onchain_1d.parquet", "onchain_1d")
    assert table["Blocks"].tolist()[:2] == [7, 7]
    assert table["TxCnt"].tolist() == [1, 2, 3]


def _land_many(folder, worker: int) -> None:
    for day in range(8):
        land(folder, "onchain_1d", [arrival(metrics({day: 1.0}, entity=f"E{worker}"), day)])


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_land_many, args=(tmp_path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(read_landed(tmp_path / "onchain_1d.parquet", "onchain_1d")) == 24


def _land_for_ever(folder) -> None:
    for round_ in range(10_000):
        land(folder, "onchain_1d", [arrival(metrics(dict.fromkeys(range(300), float(round_))), round_)])


def _die_while_writing(folder) -> None:
    def write_half(table, file, **kwargs):
        file.write(b"PAR1")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    landing.pq.write_table = write_half  # of this process alone
    land(folder, "onchain_1d", [arrival(metrics({1: 2.0}), 1)])


def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(tmp_path):
    land(tmp_path, "onchain_1d", [arrival(metrics({1: 1.0}), 0)])
    worker = multiprocessing.get_context("fork").Process(target=_die_while_writing, args=(tmp_path,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert read_market_directory(tmp_path, now=T0 + 20 * DAY).tables["onchain_1d"]["TxCnt"].tolist() == [1.0]
    assert land(tmp_path, "onchain_1d", [arrival(metrics({1: 2.0}), 1)]) == Landed(num_restated=1)


@pytest.mark.parametrize("after_s", [0.05, 0.11, 0.17])
def test_a_kill_leaves_a_whole_file(tmp_path, after_s):
    worker = multiprocessing.get_context("fork").Process(target=_land_for_ever, args=(tmp_path,))
    worker.start()
    while not (tmp_path / "onchain_1d.parquet").exists():
        time.sleep(0.01)
    time.sleep(after_s)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    table = read_landed(tmp_path / "onchain_1d.parquet", "onchain_1d")
    assert len(table) % 300 == 0  # whole landings
    assert land(tmp_path, "onchain_1d", [arrival(metrics({1: -1.0}), 1e6)]).num_written == 1  # and no lock is left
