"""Names of tables and intervals."""

from __future__ import annotations

from datetime import timedelta

import pytest

from feature_repo.market.layout import KINDS, find_kind, interval_length, interval_of
from feature_repo.market.schema import MarketError


@pytest.mark.parametrize(
    ("interval", "seconds"), [("30s", 30), ("15m", 900), ("4h", 14_400), ("1d", 86_400), ("1w", 604_800)]
)
def test_an_interval_is_a_number_and_a_unit(interval, seconds):
    assert interval_length(interval) == timedelta(seconds=seconds)


@pytest.mark.parametrize("interval", ["0d", "d", "1", "1mo", "1D", "-1d", "1.5h", "1d "])
def test_other_intervals_are_refused(interval):
    with pytest.raises(MarketError, match="one of s/m/h/d/w"):
        interval_length(interval)


def test_tables_are_found_by_name():
    assert find_kind("bars_1h") is KINDS["bars_<interval>"]
    assert find_kind("onchain_1d") is KINDS["onchain_<interval>"]
    assert find_kind("corporate_actions") is KINDS["corporate_actions"]
    assert interval_of("bars_15m") == "15m"
    assert interval_of("corporate_actions") is None
    for name in ("bars", "bars_<interval>", "onchain_vintages", "trades_1d", "prices", ""):
        assert find_kind(name) is None
