"""Corporate actions: adjusted returns are those a holder had, as far as it was known, and no earlier bar moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.adjustment import adjust, settle_delistings
from feature_repo.market.assembly import known_at
from feature_repo.market.calendar import price_grid
from feature_repo.market.schema import Market, MarketInfo

ORIGIN = pd.Timestamp("2024-01-01", tz="UTC")


def day(days: float) -> pd.Timestamp:
    return (ORIGIN + pd.Timedelta(days=days)).as_unit("us")


def bars(closes: dict[str, list[float]]) -> pd.DataFrame:
    parts = []
    for entity, close in closes.items():
        event = [day(at) for at in range(len(close))]
        known = [time + pd.Timedelta(minutes=5) for time in event]
        keys = {"entity_key": entity, "event_time": event, "ingest_time": known}
        parts.append(pd.DataFrame(keys | {"open": close, "close": close, "volume": 10.0}))
    return pd.concat(parts, ignore_index=True).astype(
        dict.fromkeys(["event_time", "ingest_time"], "datetime64[us, UTC]")
    )


def actions(*rows: dict[str, object]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["entity_key", "event_time", "ingest_time", "kind", "ratio", "amount"])
    return table.astype(dict.fromkeys(["event_time", "ingest_time"], "datetime64[us, UTC]"))


def split(effective: float, known: float, ratio: float = 2.0) -> dict[str, object]:
    return {"entity_key": "A", "event_time": day(effective), "ingest_time": day(known), "kind": "split", "ratio": ratio}


def market(table: pd.DataFrame, done: pd.DataFrame) -> Market:
    nothing = pd.DataFrame()
    tables = {"bars_1d": table, "corporate_actions": done}
    return Market(info=MarketInfo(name="toy"), tables=tables, quarantine=nothing, flags=nothing, fingerprint="")


def closes(of: Market, entity: str = "A", at: float = 1e3) -> list[float]:
    """Closes as known at a moment, by event time."""
    known = known_at(of, day(at)).tables["bars_1d"].query("entity_key == @entity")
    newest = known.sort_values("ingest_time", kind="stable").drop_duplicates("event_time", keep="last")
    return newest.sort_values("event_time")["close"].tolist()


def test_a_split_is_no_loss_and_its_volume_no_more_shares() -> None:
    adjusted = adjust(market(bars({"A": [100, 102, 51, 52], "B": [1, 2, 3, 4]}), actions(split(1.5, 0.5))))
    assert closes(adjusted) == [100, 102, 102, 104]
    assert closes(adjusted, "B") == [1, 2, 3, 4]
    table = adjusted.tables["bars_1d"].query("entity_key == 'A'")
    assert table["volume"].tolist() == [10, 10, 5, 5]
    assert table["open"].tolist() == table["close"].tolist()
    assert len(table) == 4, "announced ahead, it restates nothing"


def test_a_split_takes_effect_on_the_bars_that_end_after_it() -> None:
    assert closes(adjust(market(bars({"A": [100, 50]}), actions(split(0.0, 0.0))))) == [100, 100]
    assert closes(adjust(market(bars({"A": [100, 50]}), actions(split(-0.5, -0.5))))) == [200, 100]


def test_a_split_known_late_restates_the_bars_since() -> None:
    adjusted = adjust(market(bars({"A": [100, 51, 52, 53]}), actions(split(0.5, 2.5))))
    assert closes(adjusted, at=2.25) == [100, 51, 52]
    assert closes(adjusted, at=2.75) == [100, 102, 104]
    assert closes(adjusted) == [100, 102, 104, 106]


def test_a_corrected_ratio_counts_from_when_it_is_known() -> None:
    done = actions(split(0.5, 0.0, ratio=3.0), split(0.5, 1.5, ratio=2.0))
    adjusted = adjust(market(bars({"A": [100, 50, 50]}), done))
    assert closes(adjusted, at=1.25) == [100, 150]
    assert closes(adjusted) == [100, 100, 100]


def test_a_dividend_is_part_of_the_return() -> None:
    dividend = {"entity_key": "A", "event_time": day(0.5), "ingest_time": day(0.0), "kind": "dividend", "amount": 5.0}
    got = closes(adjust(market(bars({"A": [100, 96, 97]}), actions(dividend))))
    assert got[1] / got[0] == pytest.approx((96 + 5) / 100)
    assert got[2] / got[1] == pytest.approx(97 / 96)


def test_no_action_leaves_the_market_as_it_is() -> None:
    untouched = market(bars({"A": [1, 2]}), actions(split(0.5, 0.5) | {"kind": "delisting"}))
    assert adjust(untouched) is untouched
    without = replace(untouched, tables={"bars_1d": untouched.tables["bars_1d"]})
    assert adjust(without) is without


def test_what_becomes_known_later_does_not_move_what_was_known() -> None:
    rng = np.random.default_rng(0)
    table = bars({"A": rng.uniform(50, 60, 30).tolist(), "B": rng.uniform(5, 6, 30).tolist()})
    done = actions(*(split(float(rng.uniform(0, 30)), float(rng.uniform(-2, 32))) for _ in range(6)))
    full = adjust(market(table, done))
    for at in np.linspace(1, 31, 25):
        past = adjust(known_at(market(table, done), day(at)))
        for entity in "AB":
            assert closes(past, entity, at) == closes(full, entity, at)


def test_a_delisted_holder_gets_what_is_left() -> None:
    table = bars({"A": [100, 90, 80], "B": [10, 11, 12, 13, 14]})
    grid = price_grid(table, calendar="24/7", interval="1d")
    done = pd.DataFrame({"entity_key": ["A", "B", "C"], "kind": "delisting", "delisting_return": [-0.5, -0.9, -1.0]})
    settled = settle_delistings(grid, done)
    np.testing.assert_array_equal(settled.close_TN[:, 0], [100, 90, 80, 40, np.nan])
    np.testing.assert_array_equal(settled.open_TN[:, 0], [100, 90, 80, 40, np.nan])
    np.testing.assert_array_equal(settled.close_TN[:, 1], grid.close_TN[:, 1])
    assert np.isnan(grid.close_TN[3, 0]), "the grid given is left alone"
    assert settle_delistings(grid, done.drop(columns="delisting_return")) is grid
