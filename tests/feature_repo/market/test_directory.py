"""Market directories: what is read, what is inferred and what is refused."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.directory import read_market_directory
from feature_repo.market.schema import Market, MarketError

NOW = datetime(2024, 6, 1, tzinfo=UTC)


def daily(
    entities: tuple[str, ...] = ("A", "B"), freq: str = "B", hour: int = 16, zone: str = "America/New_York"
) -> pd.DataFrame:
    days = pd.date_range("2023-01-02", periods=120, freq=freq)
    ends = (days + pd.Timedelta(hours=hour)).tz_localize(zone).tz_convert("UTC").as_unit("us")
    rng = np.random.default_rng(7)
    return pd.concat(
        pd.DataFrame(
            {
                "entity_key": entity,
                "event_time": ends,
                "ingest_time": ends + timedelta(minutes=15),
                "close": np.exp(rng.normal(size=len(ends))),
                "volume": rng.integers(1, 1000, len(ends)),
            }
        )
        for entity in entities
    ).reset_index(drop=True)


def write(folder: Path, facts: str | None = None, /, **tables: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    if facts is not None:
        (folder / "market.yaml").write_text(facts)
    return folder


def read(folder: Path) -> Market:
    return read_market_directory(folder, now=NOW)


def test_tables_are_in_canonical_order_whatever_the_file(tmp_path):
    by_entity = daily()
    by_time = by_entity.sort_values("event_time", kind="stable")
    first, second = read(write(tmp_path / "a", bars_1d=by_entity)), read(write(tmp_path / "b", bars_1d=by_time))
    pd.testing.assert_frame_equal(first.tables["bars_1d"], second.tables["bars_1d"])
    assert first.fingerprint == second.fingerprint
    assert first.quarantine.empty
    assert second.quarantine.empty


def test_csv_and_parquet_of_equal_content_are_the_same_market(tmp_path):
    bars = daily().assign(num_trades=np.arange(240, dtype="int32"), note="x")
    (tmp_path / "csv").mkdir()
    bars.to_csv(tmp_path / "csv" / "bars_1d.csv", index=False)
    parquet, csv = read(write(tmp_path / "parquet", bars_1d=bars)), read(tmp_path / "csv")
    pd.testing.assert_frame_equal(parquet.tables["bars_1d"], csv.tables["bars_1d"], check_dtype=False)
    assert parquet.fingerprint == csv.fingerprint


@pytest.mark.parametrize("column", ["close", "event_time", "ingest_time", "entity_key", "volume"])
def test_the_fingerprint_sees_every_cell(tmp_path, column):
    bars = daily()
    other = bars.copy()
    other.loc[239, column] = {
        "close": np.nextafter(bars["close"][239], 2),
        "event_time": bars["event_time"][239] - timedelta(microseconds=1),
        "ingest_time": bars["ingest_time"][239] + timedelta(microseconds=1),
        "entity_key": "C",
        "volume": bars["volume"][239] + 1,
    }[column]
    first, second = read(write(tmp_path / "a", bars_1d=bars)), read(write(tmp_path / "b", bars_1d=other))
    assert first.fingerprint != second.fingerprint


def test_ties_of_ticks_keep_the_files_order(tmp_path):
    ends = daily()["event_time"].iloc[[0, 0, 0]]
    trades = pd.DataFrame({"entity_key": "A", "event_time": ends, "ingest_time": ends, "price": [3.0, 1, 2], "size": 1})
    assert read(write(tmp_path / "a", trades=trades)).tables["trades"]["price"].tolist() == [3.0, 1.0, 2.0]


def test_facts_are_inferred_and_said(tmp_path):
    info = read(write(tmp_path / "desk", bars_1d=daily())).info
    assert (info.name, info.calendar, info.sessions_per_year, info.benchmark) == ("desk", "XNYS", 252, None)
    assert info.inferred == ("name", "calendar", "sessions_per_year", "fee_bps", "half_spread_bps", "borrow_bps_ann")
    assert info.costs.sessions_per_year == 252


@pytest.mark.parametrize(
    ("bars", "calendar", "sessions"),
    [
        (daily(freq="D", hour=0, zone="UTC"), "24/7", 365),
        (daily(freq="B", hour=17), "weekdays", 252),
        (daily(freq="B", hour=24), "weekdays", 252),  # Friday's bar ends as Saturday begins
    ],
)
def test_the_calendar_is_read_from_the_bars(tmp_path, bars, calendar, sessions):
    info = read(write(tmp_path / "a", bars_1d=bars)).info
    assert (info.calendar, info.sessions_per_year, info.costs.sessions_per_year) == (calendar, sessions, sessions)


def test_early_closes_do_not_hide_new_york(tmp_path):
    bars = daily()
    early = bars["event_time"] == bars["event_time"][3]
    bars.loc[early, "event_time"] -= timedelta(hours=3)
    assert read(write(tmp_path / "a", bars_1d=bars)).info.calendar == "XNYS"


def test_market_yaml_gives_the_facts(tmp_path):
    facts = (
        "name: mine\nasset_class: equity\ncalendar: XNYS\nsessions_per_year: 250\nbenchmark: B\n"
        "fee_bps: 0.5\nhalf_spread_bps: 3\nborrow_bps_ann: 20\nlags: {bars_1d: 20min, trades: 1s}\n"
    )
    market = read(write(tmp_path / "a", facts, bars_1d=daily().drop(columns="ingest_time")))
    info, bars = market.info, market.bars("1d")
    assert (info.name, info.asset_class, info.calendar, info.sessions_per_year) == ("mine", "equity", "XNYS", 250)
    assert (info.costs.fee_bps, info.costs.half_spread_bps, info.costs.borrow_bps_ann) == (0.5, 3.0, 20.0)
    assert info.lags == {"bars_1d": timedelta(minutes=20), "trades": timedelta(seconds=1)}
    assert info.inferred == ()
    assert set(bars["ingest_time"] - bars["event_time"]) == {pd.Timedelta(minutes=20)}
    assert set(market.traded_bars("1d")["entity_key"]) == {"A"}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("fees: 1", r"unknown keys \['fees'\].*'asset_class', 'benchmark', 'borrow_bps_ann'"),
        ("- a", "must map keys to values"),
        ("a: [", "is no YAML"),
        ("calendar: LSE", "calendar must be one of.*'XNYS'.*got 'LSE'"),
        ("sessions_per_year: 0", "sessions_per_year must be a whole number"),
        ("sessions_per_year: true", "sessions_per_year must be a whole number"),
        ("fee_bps: -1", "fee_bps must be a number of basis points"),
        ("fee_bps: .inf", "fee_bps must be a number of basis points"),
        ("benchmark: 5", "benchmark must be the entity_key"),
        ("benchmark: C", "benchmark 'C'.*has no bars.*'A', 'B'"),
        ("lags: 5min", "lags must be a mapping"),
        ("lags: {bars_1d: 5}", "lags must be a mapping"),
        ("lags: {bars_1d: soon}", "lags must be a mapping"),
        ("lags: {bars_1d: -5min}", "lags must be a mapping"),
        ("lags: {prices: 5min}", "no kind of table is named 'prices'"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path, facts, message):
    with pytest.raises(MarketError, match=message):
        read(write(tmp_path / "a", facts, bars_1d=daily()))


def test_a_table_without_ingest_time_needs_a_lag(tmp_path):
    with pytest.raises(MarketError, match=r"market.yaml, such as `lags: \{bars_1d: 15min\}`"):
        read(write(tmp_path / "a", bars_1d=daily().drop(columns="ingest_time")))


def test_csv_lines_that_are_no_rows_and_times_without_a_zone_are_kept_aside(tmp_path):
    (tmp_path / "bars_1d.csv").write_text(
        "entity_key,event_time,ingest_time,close\n"
        "NA,2024-01-02T21:00:00Z,2024-01-02T21:15:00Z,1.5\n"
        "NA,2024-01-03T21:00:00Z\n"
        "\n"
        "NA,2024-01-04T21:00:00,2024-01-04T21:15:00Z,1.5\n"
        "NA,2024-01-05T21:00:00Z,2024-01-05T21:15:00Z,abc\n"
        "NA,2024-01-08T21:00:00Z,2024-01-08T21:15:00Z,NA\n"
        "NA,2024-01-09T16:00:00-05:00,2024-01-09T21:15:00Z,2.5\n"
        "NA,2024-01-10T21:00:00Z,2024-01-10T20:59:59Z,3.5\n"
    )
    market = read(tmp_path)
    assert dict(zip(market.quarantine["row"], market.quarantine["reason"], strict=True)) == {
        1: "has 2 fields where the header has 4",
        2: "event_time has no time zone",
        3: "close is not a number",
        4: "close is null",
    }
    assert "2024-01-03T21:00:00Z" in market.quarantine.set_index("row").loc[1, "record"]
    assert market.flags["row"].tolist() == [6]
    bars = market.bars("1d")
    assert bars["entity_key"].tolist() == ["NA"] * 3  # a ticker, not a null
    assert bars["event_time"][1] == pd.Timestamp("2024-01-09T21:00:00Z")


def test_a_table_quarantined_whole_is_left_out_and_the_error_says_why(tmp_path):
    naive = daily().assign(event_time=lambda bars: bars["event_time"].dt.tz_localize(None))
    market = read(write(tmp_path / "a", bars_1d=naive))
    assert market.tables == {}
    assert len(market.quarantine) == len(naive)
    assert market.info.calendar == "unknown"
    with pytest.raises(
        MarketError, match="all its 240 rows are quarantined, most because 'event_time has no time zone'"
    ):
        market.bars("1d")


def test_other_data_files_are_named(tmp_path):
    folder = write(tmp_path / "a", bars_1d=daily(), onchain_vintages=daily())
    (folder / "README.md").write_text("hello")
    assert read(folder).ignored == ("onchain_vintages.parquet",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no table.*no Parquet or CSV file.*bars_<interval>, trades"),
        ({"prices.csv": b"a\n"}, r"holds no table.*\['prices.csv'\]"),
        ({"bars_1d.csv": b"a\n", "bars_1d.parquet": b""}, "has both bars_1d.csv and bars_1d.parquet"),
        ({"bars_1d.parquet": b"PAR"}, "does not open as parquet"),
        ({"bars_1d.csv": b""}, "does not open as csv"),
        ({"bars_1d.csv": b"entity_key,event_time,ingest_time\n"}, r"lacks the columns \['close'\]"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MarketError, match=message):
        read(tmp_path)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(MarketError, match="there is no market directory"):
        read(tmp_path / "nowhere")


def test_parquet_with_a_named_index_and_dictionaries(tmp_path):
    bars = daily()
    bars.astype({"entity_key": "category"}).set_index("event_time").to_parquet(tmp_path / "bars_1d.parquet")
    plain = read(write(tmp_path / "plain", bars_1d=bars))
    assert read(tmp_path).fingerprint == plain.fingerprint


# Real data, where the machine has it.

DATA = Path(os.environ.get("PERENNIAL_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def real(name: str) -> Market:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set PERENNIAL_TEST_DATA to the folder that holds {name}")
    return read_market_directory(folder, now=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("name", "rows", "flags", "calendar", "sessions"),
    [
        (
            "crypto_2015_2020",
            {"bars_1d": 27_330, "bars_1h": 69_959, "onchain_1d": 41_666, "sentiment": 1_582},
            {},
            "24/7",
            365,
        ),
        ("us_equities_2013_2018", {"bars_1d": 125_900}, {}, "XNYS", 252),
        (
            "crypto_ticks_20240809",
            {"quotes": 335_931, "trades": 78_638},
            {
                "slow receive clock: ingest_time before event_time": 203_999 + 78_638,
                "repeats an earlier tick to the last column": 4,
            },
            "unknown",
            252,
        ),
        (
            "us_equity_ticks_201310",
            {"trades": 126_395},
            {"repeats an earlier tick to the last column": 8_152},
            "unknown",
            252,
        ),
    ],
)
def test_real_markets_load(name, rows, flags, calendar, sessions):
    market = real(name)
    assert {table: len(frame) for table, frame in market.tables.items()} == rows
    assert market.quarantine.empty
    assert market.flags["reason"].value_counts().to_dict() == flags
    assert (market.info.calendar, market.info.sessions_per_year) == (calendar, sessions)
    for frame in market.tables.values():
        assert frame.select_dtypes("float32").empty


def test_vintages_are_no_table_of_the_layout():
    with pytest.raises(MarketError, match=r"\['onchain_vintages.parquet'\]"):
        real("onchain_vintages_2018")
