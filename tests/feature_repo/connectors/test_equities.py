"""Daily bars of equities in the common shapes of files."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import pandas as pd
import pytest

from feature_repo.connectors.base import ConnectorError, Landed
from feature_repo.connectors.equities import Equities
from feature_repo.connectors.landing import read_landed
from feature_repo.market.directory import read_market_directory

YAHOO = """Date,Open,High,Low,Close,Adj Close,Volume
2023-07-03,100.5,102,100,101.25,99.1,1200300
2023-12-29,110,112,109,111,110.5,1300000
2024-01-10,120,121,119,120.5,120.5,900
"""
PANEL = """date,open,high,low,close,volume,Name
2024-01-08,1,2,0.5,1.5,100,AAL
2024-01-08,10,20,5,15,1000,NA
"""


def run(folder, world, where, **more):
    (outcome,) = Equities(where=(str(where),), **more).ingest(folder, runtime=world.runtime())
    return outcome


def bars(folder, now):
    return read_market_directory(folder, now=now).bars("1d")


def test_one_symbol_a_file(tmp_path, world):
    (tmp_path / "AAPL.csv").write_text(YAHOO)
    outcome = run(tmp_path / "m", world, tmp_path / "AAPL.csv", entity_key="AAPL")
    assert (outcome.landed, outcome.num_unclosed) == (Landed(num_new=2), 1)  # it is 7:30 in New York
    table = bars(tmp_path / "m", world.now)
    assert table["event_time"].tolist() == [
        datetime(2023, 7, 3, 20, tzinfo=UTC),  # 16:00 in summer
        datetime(2023, 12, 29, 21, tzinfo=UTC),
    ]
    assert table["close"].tolist() == [101.25, 111.0]  # as traded, not adjusted
    assert set(table.columns) == {
        "entity_key", "interval", "event_time", "ingest_time", "open", "high", "low", "close", "volume"
    }  # fmt: skip
    assert (table["ingest_time"] == world.now).all()
    world.now = datetime(2024, 1, 10, 21, 0, 1, tzinfo=UTC)
    assert run(tmp_path / "m", world, tmp_path / "AAPL.csv", entity_key="AAPL").landed == Landed(num_new=1, num_known=2)


def test_a_panel_with_a_symbol_called_na(tmp_path, world):
    (tmp_path / "panel.csv").write_text(PANEL)
    run(tmp_path / "m", world, tmp_path / "panel.csv")
    assert bars(tmp_path / "m", world.now)["entity_key"].tolist() == ["AAL", "NA"]


@pytest.mark.parametrize("zoned", [False, True])
def test_parquet_with_typed_days(tmp_path, world, zoned):
    days = pd.DatetimeIndex(["2024-01-05", "2024-01-08"]).tz_localize("America/New_York" if zoned else None)
    pd.DataFrame({"Date": days, "Close": [1.0, 2.0], "Ticker": "X"}).to_parquet(tmp_path / "x.parquet")
    run(tmp_path / "m", world, tmp_path / "x.parquet")
    assert bars(tmp_path / "m", world.now)["event_time"].tolist() == [
        datetime(2024, 1, 5, 21, tzinfo=UTC),
        datetime(2024, 1, 8, 21, tzinfo=UTC),
    ]


def test_other_headers_formats_and_sessions(tmp_path, world):
    (tmp_path / "x.csv").write_text("Zeit,Letzter,Dividends\n05/01/2024,7.5,0\n")
    columns = {"day": "Zeit", "close": "Letzter"}
    run(
        tmp_path / "m", world, tmp_path / "x.csv", entity_key="BMW", columns=columns, ignore=("Dividends",),
        day_format="%d/%m/%Y", close=time(17, 30), zone="Europe/Berlin",
    )  # fmt: skip
    assert bars(tmp_path / "m", world.now)["event_time"].tolist() == [datetime(2024, 1, 5, 16, 30, tzinfo=UTC)]


def test_a_restatement_lands_one_row(tmp_path, world):
    (tmp_path / "p.csv").write_text(PANEL)
    run(tmp_path / "m", world, tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text(PANEL.replace("0.5,1.5,100", "0.5,1.75,100"))
    world.now += timedelta(hours=2)
    assert run(tmp_path / "m", world, tmp_path / "p.csv").landed == Landed(num_restated=1, num_known=1)
    assert bars(tmp_path / "m", world.now)["close"].tolist() == [1.5, 1.75, 15.0]


def test_bad_rows_are_landed_for_the_quarantine_to_count(tmp_path, world):
    rows = [
        "2024-01-02,-1",
        "2024-01-03,x",
        "someday,3",
        "2024-01-05,4",
        "2024-01-05,4",
        "2024-01-05,5",
        "01/08/2024,6",
    ]
    (tmp_path / "x.csv").write_text("Date,Close\n" + "\n".join(rows) + "\n")
    outcome = run(tmp_path / "m", world, tmp_path / "x.csv", entity_key="X")
    assert outcome.landed == Landed(num_new=6, num_known=1)  # a repetition says nothing new
    assert run(tmp_path / "m", world, tmp_path / "x.csv", entity_key="X").landed == Landed(num_known=7)
    market = read_market_directory(tmp_path / "m", now=world.now)
    assert sorted(market.quarantine["reason"]) == [
        "close is not a number",
        "close is not positive",
        "duplicate: contradicts an earlier row of the same times (a correction is known later)",
        "event_time is not an ISO 8601 time",
        "event_time is not an ISO 8601 time",
    ]
    assert market.bars("1d")["close"].tolist() == [4.0]


def test_a_lag_dates_the_history(tmp_path, world):
    (tmp_path / "p.csv").write_text(PANEL)
    run(tmp_path / "m", world, tmp_path / "p.csv", lag=timedelta(minutes=15))
    table = read_landed(tmp_path / "m" / "bars_1d.parquet", "bars_1d")
    assert (table["ingest_time"] == datetime(2024, 1, 8, 21, 15, tzinfo=UTC)).all()


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("Date,Close,Foo\n", {}, r"columns that are not known: \['Foo'\]; known are \['day'"),
        ("Date,Open\n", {"entity_key": "X"}, r"no column for \['close'\]"),
        ("Date,Close\n", {}, r"no column of symbols; it has \['Date', 'Close'\]: give the symbol"),
        ("Date,Close,Symbol\n", {"entity_key": "X"}, "has symbols in 'Symbol'"),
        ("Date,Close,Timestamp\n", {"entity_key": "X"}, "two columns for day, 'Date' and 'Timestamp'"),
        ("Date,Close\n", {"entity_key": "X", "columns": {"open": "Opening"}}, r"no column \['Opening'\]"),
        ("Date,Close\n", {"entity_key": "X", "columns": {"opening": "Date"}}, r"no column of a bar is called"),
        ("Date,Close\n", {"entity_key": "X", "zone": "Moon/Crater"}, "no time zone 'Moon/Crater'"),
        ("Date,Close\n2024-01-02,1\n2024-01-", {"entity_key": "X"}, "line 3"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_said(tmp_path, world, content, options, said):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ConnectorError, match=said):
        run(tmp_path / "m", world, tmp_path / "x.csv", **options)


def test_a_file_that_is_no_parquet(tmp_path, world):
    (tmp_path / "x.parquet").write_bytes(b"PAR1....")
    with pytest.raises(ConnectorError, match="does not open as Parquet"):
        run(tmp_path / "m", world, tmp_path / "x.parquet")
