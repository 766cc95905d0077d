"""Registered markets and directories by one call."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest

from feature_repo.market.schema import MarketError
from feature_repo.market.sources import load_market

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_us_stocks():
    market = load_market("us_stocks", now=NOW)
    bars = market.bars("1d")
    assert len(bars) == 21 * 8_313
    assert market.quarantine.empty
    assert market.flags.empty
    assert market.info.benchmark == "SP500"
    assert market.info.inferred == ()
    assert market.traded_bars("1d")["entity_key"].nunique() == 20
    assert bars["event_time"].min() == pd.Timestamp("1990-01-02T16:00", tz="America/New_York")
    assert set(bars["event_time"].dt.tz_convert("America/New_York").dt.hour) == {16}
    assert set(bars["ingest_time"] - bars["event_time"]) == {pd.Timedelta(minutes=15)}
    index = bars[bars["entity_key"] == "SP500"]
    assert index["close"].iloc[0] == 359.69
    assert market.fingerprint == load_market("us_stocks", now=NOW).fingerprint


def test_an_earlier_now_knows_less():
    market = load_market("us_stocks", now=datetime(2000, 1, 1, tzinfo=UTC))
    assert market.bars("1d")["ingest_time"].max() <= pd.Timestamp("2000-01-01", tz="UTC")
    assert set(market.quarantine["reason"]) == {"event_time is in the future"}


def test_a_directory_is_a_source_too(tmp_path):
    ends = pd.to_datetime(["2024-01-02T21:00Z", "2024-01-03T21:00Z"])
    pd.DataFrame({"entity_key": "A", "event_time": ends, "ingest_time": ends, "close": 1.0}).to_parquet(
        tmp_path / "bars_1d.parquet"
    )
    assert len(load_market(str(tmp_path), now=NOW).bars("1d")) == 2
    assert load_market(tmp_path, now=NOW).fingerprint == load_market(str(tmp_path), now=NOW).fingerprint


def test_neither_name_nor_directory():
    with pytest.raises(MarketError, match=r"no market 'us_stokcs'.*registered name \(sim, us_stocks\) nor a directory"):
        load_market("us_stokcs", now=NOW)


def test_an_interval_that_is_not_there(tmp_path):
    with pytest.raises(MarketError, match=r"no bars of interval '1h'; it has \['1d'\]"):
        load_market("us_stocks", now=NOW).bars("1h")
