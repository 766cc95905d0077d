"""Bar columns from trades and quotes against brute force at every moment, and on real ticks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.attach import aggregates, attach
from feature_repo.aggregates.order_flow import AGGREGATE, NUM_BUCKETS, OF_TABLE, versions
from feature_repo.kernels.order_flow import vpin_python
from feature_repo.market.assembly import known_at
from feature_repo.market.directory import read_market_directory
from feature_repo.market.schema import Market, MarketError, MarketInfo
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import pipeline

SHARED = Path(__file__).resolve().parents[3] / "../shared/data"
CRYPTO, STOCK = SHARED / "crypto_ticks_20240809", SHARED / "us_equity_ticks_201310"
NOW = datetime(2024, 9, 1, tzinfo=UTC)
ORIGIN = pd.Timestamp("2024-01-01", tz="UTC")
KEYS = ["entity_key", "event_time", "ingest_time"]
LENGTH = 10  # seconds a bar
INTERVAL = "10s"
COLUMNS = list(AGGREGATE.columns)


def times(seconds: np.ndarray | list[float]) -> pd.Series:
    return pd.Series(ORIGIN + pd.to_timedelta(np.asarray(seconds, dtype=float), unit="s")).astype("datetime64[us, UTC]")


def market_of(**tables: pd.DataFrame) -> Market:
    nothing = pd.DataFrame()
    whole = {
        name: table.sort_values(KEYS, kind="stable", ignore_index=True) for name, table in tables.items() if len(table)
    }
    return Market(
        info=MarketInfo(name="toy", benchmark="index"), tables=whole, quarantine=nothing, flags=nothing, fingerprint=""
    )


def table(entity: object, event: object, ingest: object, **columns: object) -> pd.DataFrame:
    return pd.DataFrame({"entity_key": entity, "event_time": times(event), "ingest_time": times(ingest)} | columns)


def lags(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.where(rng.random(num) < 0.3, rng.integers(0, 40, num), rng.integers(-1, 2, num))


def random_market(rng: np.random.Generator) -> Market:
    """Five bars of two assets, their ticks at whole seconds, many known late, some corrected, some odd."""
    bars, trades, quotes = [], [], []
    for entity in ("A", "B"):
        end = np.append(np.arange(1, 6), rng.integers(1, 6, 2)) * LENGTH
        bars.append(table(entity, end, end + rng.integers(0, 6, 7), close=1.0))
        num = 40
        event = rng.integers(-2 * LENGTH, 5 * LENGTH + 5, num)
        event[num // 2 :] = np.where(rng.random(num // 2) < 0.3, event[: num // 2], event[num // 2 :])
        name = np.array([f"t{n % (num // 2)}" for n in range(num)], dtype=object)
        name[rng.random(num) < 0.2] = None
        size = np.where(rng.random(num) < 0.15, np.nan, rng.integers(0, 5, num))
        price = rng.integers(98, 103, num).astype(float)
        side = rng.choice(np.array(["buy", "sell", None], dtype=object), num, p=[0.2, 0.2, 0.6])
        trades.append(
            table(
                entity, event, event + lags(rng, num), price=price, size=size, side=side, trade_id=name
            ).drop_duplicates([*KEYS, "trade_id"])
        )
        event = rng.integers(-2 * LENGTH, 5 * LENGTH + 5, num)
        quote = {"bid": rng.integers(97, 102, num).astype(float), "ask": rng.integers(100, 104, num).astype(float)}
        quote["bid"][rng.random(num) < 0.1] = np.nan
        sizes = {f"{of}_size": rng.integers(0, 6, num).astype(float) for of in quote}
        quotes.append(table(entity, event, event + lags(rng, num), **quote, **sizes))
    return market_of(bars_10s=pd.concat(bars), trades=pd.concat(trades), quotes=pd.concat(quotes))


def known(rows: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """The last known row of each bar, by (entity, event time)."""
    rows = rows[(rows["event_time"] <= moment) & (rows["ingest_time"] <= moment)]
    rows = rows.sort_values("ingest_time", kind="stable").drop_duplicates(KEYS[:2], keep="last")
    return rows.set_index(KEYS[:2]).drop(columns="ingest_time").sort_index()


def told(rows: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """The ticks known at the moment, of each trade what was said of it last, their times in seconds."""
    rows = rows[(rows["event_time"] <= moment) & (rows["ingest_time"] <= moment)]
    if "trade_id" in rows:
        again = rows["trade_id"].notna() & rows.duplicated([*KEYS[:2], "trade_id"], keep="last")
        rows = rows[~again]
        rows = rows[rows["size"] > 0]
    return rows.assign(at=((rows["event_time"] - ORIGIN) / pd.Timedelta("1s")).astype(int))


def sign(at: int, trades: list[dict], quotes: list[dict]) -> float:
    trade = trades[at]
    if trade["side"] is not None:
        return 1.0 if trade["side"] == "buy" else -1.0
    before = [quote for quote in quotes if quote["at"] < trade["at"]][-1:]
    for quote in before:
        mid = (quote["bid"] + quote["ask"]) / 2
        if quote["bid"] <= quote["ask"] and trade["price"] != mid:
            return float(np.sign(trade["price"] - mid))
    for earlier in reversed(trades[:at]):
        if earlier["price"] != trade["price"]:
            return float(np.sign(trade["price"] - earlier["price"]))
    return 0.0


def of_trades(trades: list[dict], quotes: list[dict], start: int) -> list[float]:
    own = [(trade["size"], sign(at, trades, quotes)) for at, trade in enumerate(trades) if trade["at"] > start]
    if not any(side for _, side in own):
        return [np.nan, np.nan, float(len(own)) if own else np.nan, np.nan]
    buy, sell = (np.array([size * (1 + way * side) / 2 for size, side in own]) for way in (1, -1))
    return [buy.sum(), sell.sum(), float(len(own)), vpin_python(buy, sell, NUM_BUCKETS)]


def event_flow(before: dict, after: dict) -> float:
    """Cont, Kukanov and Stoikov's e_n, side by side of the book."""

    def side(old: float, old_size: float, new: float, new_size: float, worst: float) -> float:
        old, old_size = (worst, 0.0) if np.isnan(old) else (old, old_size)
        new, new_size = (worst, 0.0) if np.isnan(new) else (new, new_size)
        if new == old:
            return new_size - old_size
        return new_size if (new > old) == (worst < 0) else -old_size

    demand = side(before["bid"], before["bid_size"], after["bid"], after["bid_size"], -np.inf)
    return demand - side(before["ask"], before["ask_size"], after["ask"], after["ask_size"], np.inf)


def of_quotes(quotes: list[dict], start: int, end: int) -> list[float]:
    first = next((at for at, quote in enumerate(quotes) if quote["at"] > start), None)
    if first is None:
        return [np.nan] * 4
    flows = [event_flow(quotes[at - 1], quotes[at]) for at in range(max(first, 1), len(quotes))]
    held = []
    for second in range(start, end):
        for quote in [quote for quote in quotes if quote["at"] <= second][-1:]:
            both = quote["bid_size"] + quote["ask_size"]
            if quote["bid"] <= quote["ask"]:
                spread = 2 * (quote["ask"] - quote["bid"]) / (quote["ask"] + quote["bid"])
                lean = (quote["bid_size"] - quote["ask_size"]) / both if both else np.nan
                held.append((both / 2, spread, lean))
    means = [[x for x in values if x == x] for values in zip(*held, strict=True)] or [[]] * 3
    return [sum(flows) if flows else np.nan, *(np.mean(of) if of else np.nan for of in means)]


def computed(market: Market, moment: pd.Timestamp) -> pd.DataFrame:
    """The columns of all bars known at the moment, afresh from the ticks known then."""
    ticks = [told(market.tables[name], moment).to_dict("records") for name in OF_TABLE]
    rows = {}
    for entity, event_time in known(market.tables["bars_10s"], moment).index:
        end = int((event_time - ORIGIN) / pd.Timedelta("1s"))
        trades, quotes = (
            [tick for tick in of_table if tick["entity_key"] == entity and end - 2 * LENGTH < tick["at"] <= end]
            for of_table in ticks
        )
        rows[entity, event_time] = of_trades(trades, quotes, end - LENGTH) + of_quotes(quotes, end - LENGTH, end)
    index = pd.MultiIndex.from_tuples(rows, names=KEYS[:2])
    return pd.DataFrame(list(rows.values()), index=index, columns=COLUMNS).sort_index()


def moments() -> list[pd.Timestamp]:
    return [ORIGIN + pd.Timedelta(seconds=float(at)) for at in np.arange(LENGTH - 1, 100, 3)]


def disagrees(market: Market, said: pd.DataFrame) -> bool:
    """Whether at any moment the versions, read by the rule, are not the columns computed afresh."""
    for moment in moments():
        if not len(known(market.tables["bars_10s"], moment)):
            continue
        want = computed(market, moment)
        got = known(said, moment).reindex(want.index)
        if not np.allclose(got[COLUMNS], want[COLUMNS], rtol=1e-9, atol=1e-12, equal_nan=True):
            return True
    return False


@pytest.mark.parametrize("seed", range(5))
def test_at_every_moment_the_columns_are_those_of_the_ticks_known_then(seed: int) -> None:
    market = random_market(np.random.default_rng(seed))
    said = versions(market, INTERVAL)
    assert said is not None
    assert list(said) == [*KEYS, *COLUMNS]
    assert said["ingest_time"].nunique() > 15
    assert not disagrees(market, said)


def shifted(market: Market, names: tuple[str, ...], change: Callable[[pd.DataFrame], pd.DataFrame]) -> Market:
    return replace(market, tables=market.tables | {name: change(market.tables[name]) for name in names})


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda ticks: ticks.assign(ingest_time=ticks["event_time"]), id="known when it happened"),
        pytest.param(lambda ticks: ticks.drop_duplicates(KEYS[:2], keep="last"), id="one tick a time"),
        pytest.param(lambda ticks: ticks.assign(event_time=ticks["event_time"] + pd.Timedelta("1us")), id="wrong edge"),
    ],
)
def test_a_broken_variant_disagrees(broken: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    market = random_market(np.random.default_rng(0))
    assert disagrees(market, versions(shifted(market, ("trades", "quotes"), broken), INTERVAL))


def test_ignoring_corrections_disagrees() -> None:
    market = random_market(np.random.default_rng(0))
    broken = shifted(market, ("trades",), lambda trades: trades.drop(columns="trade_id"))
    assert disagrees(market, versions(broken, INTERVAL))


def test_deleting_what_became_known_later_changes_nothing() -> None:
    market = random_market(np.random.default_rng(3))
    everything = versions(market, INTERVAL)
    for moment in moments()[3::4]:
        past = versions(known_at(market, moment), INTERVAL)
        want = everything[everything["ingest_time"] <= moment].reset_index(drop=True)
        pd.testing.assert_frame_equal(past, want, check_exact=True)


def test_no_version_repeats_the_one_before_and_each_has_its_moment() -> None:
    market = random_market(np.random.default_rng(5))
    said = versions(market, INTERVAL)
    assert not said.duplicated(KEYS).any()
    before = said.groupby(KEYS[:2])[COLUMNS].shift()
    assert not ((said[COLUMNS] == before) | (said[COLUMNS].isna() & before.isna())).all(axis=1).any()
    arrivals = pd.concat([of["ingest_time"] for of in market.tables.values()])
    first = said.groupby(KEYS[:2])["ingest_time"].transform("min")
    assert said.loc[said["ingest_time"] > first, "ingest_time"].isin(arrivals).all()


def test_attached_rows_hold_the_columns_from_the_bars_first_moment_on() -> None:
    market = random_market(np.random.default_rng(6))
    said = versions(market, INTERVAL)
    attached = attach(market.traded_bars(INTERVAL), [said])
    for moment in moments():
        want = known(said, moment).reindex(known(attached, moment).index)
        pd.testing.assert_frame_equal(known(attached, moment)[COLUMNS], want[COLUMNS])


def simple(**columns: object) -> Market:
    """One bar that ends at 10 s, known at 11 s, and five trades of it."""
    trades = table("A", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], price=[5.0, 6, 6, 5, 5], size=[1, 2, 3, 4, 5], **columns)
    return market_of(bars_10s=table("A", [10], [11], close=5.0), trades=trades)


def said_of(market: Market) -> list[list[float]]:
    return versions(market, INTERVAL)[["buy_volume", "sell_volume", "num_trades"]].to_numpy().tolist()


@pytest.mark.parametrize(
    ("columns", "want"),
    [
        ({}, [5.5, 9.5, 5]),  # the tick rule; nothing tells of the first trade
        ({"side": [1, -1, 1, 1, -1]}, [8, 7, 5]),
        ({"side": ["buy", "SELL", "Buy", "buy", "sell"]}, [8, 7, 5]),
        ({"side": ["buy", None, None, None, None]}, [6, 9, 5]),
        ({"side": [1.0, np.nan, 0.0, np.nan, 0.0]}, [6, 9, 5]),
    ],
)
def test_sides_by_hand(columns: dict[str, object], want: list[float]) -> None:
    assert said_of(simple(**columns)) == [want]


@pytest.mark.parametrize("side", [["b", "s", "b", "s", "b"], [1, 2, 1, 1, 1], [True, False, True, True, True]])
def test_a_side_that_is_not_understood_is_refused(side: list[object]) -> None:
    with pytest.raises(MarketError, match=r"the side of \d trades is not understood, such as .*buy or sell, 1 or -1"):
        versions(simple(side=side), INTERVAL)


def test_a_late_trade_restates_its_bar_when_it_arrives() -> None:
    market = simple(side=[1, 1, 1, 1, -1])
    market.tables["trades"].loc[1, "ingest_time"] = ORIGIN + pd.Timedelta(seconds=20)
    said = versions(market, INTERVAL)
    assert list(said["ingest_time"]) == [ORIGIN + pd.Timedelta(seconds=at) for at in (11, 20)]
    assert said["buy_volume"].tolist() == [8, 10]


def test_a_trade_is_corrected_and_withdrawn_under_its_name() -> None:
    trades = table(
        "A", [2, 3, 3, 3], [2, 3, 15, 25], price=5.0, size=[1, 7, 4, np.nan], side="buy", trade_id=["a", "b", "b", "b"]
    )
    market = market_of(bars_10s=table("A", [10], [11], close=5.0), trades=trades)
    assert said_of(market) == [[8, 0, 2], [5, 0, 2], [1, 0, 1]]
    alone = replace(market, tables=market.tables | {"trades": market.tables["trades"].iloc[1:]})
    last = versions(alone, INTERVAL).iloc[-1]
    assert last["ingest_time"] == ORIGIN + pd.Timedelta(seconds=25)
    assert last[list(OF_TABLE["trades"])].isna().all()


def test_trades_that_nothing_tells_of_are_only_counted() -> None:
    market = market_of(
        bars_10s=table("A", [10], [11], close=5.0), trades=table("A", [1, 2], [1, 2], price=5.0, size=1.0)
    )
    said = versions(market, INTERVAL)
    assert said["num_trades"].tolist() == [2]
    assert said[["buy_volume", "sell_volume", "vpin"]].isna().all(axis=None)


def test_a_bar_has_what_happened_after_its_start_up_to_its_end() -> None:
    trades = table("A", [10, 10.000001, 20, 20.000001], [30] * 4, price=5.0, size=[1, 2, 4, 8], side="buy")
    market = market_of(bars_10s=table("A", [20], [21], close=5.0), trades=trades)
    assert said_of(market) == [[6, 0, 2]]


def test_columns_are_those_of_the_tables_there_are() -> None:
    market = random_market(np.random.default_rng(2))
    for name, other in (("trades", "quotes"), ("quotes", "trades")):
        tables = {of: rows for of, rows in market.tables.items() if of != other}
        assert list(versions(replace(market, tables=tables), INTERVAL)) == [*KEYS, *OF_TABLE[name]]
    bars_only = {"bars_10s": market.tables["bars_10s"]}
    assert versions(replace(market, tables=bars_only), INTERVAL) is None


def test_what_bars_say_themselves_is_left_to_them() -> None:
    market = simple()
    market.tables["bars_10s"]["num_trades"] = 41
    assert "num_trades" not in versions(market, INTERVAL)


def test_assets_without_bars_and_the_benchmark_are_left_out() -> None:
    bars = table(["A", "index"], [10, 10], [11, 11], close=5.0)
    trades = table(["A", "index", "gone"], [1, 1, 1], [1, 1, 1], price=5.0, size=1.0, side="buy")
    said = versions(market_of(bars_10s=bars, trades=trades), INTERVAL)
    assert said["entity_key"].tolist() == ["A"]
    no_match = market_of(bars_10s=bars, trades=trades.assign(entity_key="gone"))
    assert versions(no_match, INTERVAL) is None


def test_it_is_found_and_declares_what_it_gives() -> None:
    assert aggregates()["order_flow"] is AGGREGATE
    assert tuple(name for names in OF_TABLE.values() for name in names) == AGGREGATE.columns


def with_bars(market: Market, interval: str) -> Market:
    """Bars made of the market's trades, known a second after they end."""
    length = pd.Timedelta(interval)
    trades = market.tables["trades"]
    by_bar = trades.groupby(["entity_key", trades["event_time"].dt.ceil(length).rename("event_time")])
    bars = by_bar.agg(
        close=("price", "last"),
        high=("price", "max"),
        low=("price", "min"),
        volume=("size", "sum"),
        n=("size", "count"),
    ).reset_index()
    bars.insert(2, "ingest_time", bars["event_time"] + pd.Timedelta("1s"))
    return replace(market, tables=market.tables | {f"bars_{interval}": bars})


@pytest.mark.skipif(not CRYPTO.exists(), reason=f"no real ticks in {CRYPTO}")
def test_real_crypto_ticks_give_their_volumes_and_features() -> None:
    read = read_market_directory(CRYPTO, now=NOW)
    market = with_bars(read, "2s")
    said = versions(market, "2s")
    bars = market.bars("2s").merge(said, on=KEYS[:2], how="left", suffixes=("", "_said"))
    np.testing.assert_allclose(bars["buy_volume"] + bars["sell_volume"], bars["volume"], rtol=1e-9)
    np.testing.assert_array_equal(bars["num_trades"], bars["n"])
    trades = read.tables["trades"]
    bought = trades["size"].where(trades["side"] == 1, 0.0).groupby(trades["entity_key"]).sum()
    np.testing.assert_allclose(bars.groupby("entity_key")["buy_volume"].sum(), bought, rtol=1e-9)
    assert bars["vpin"].between(0.0, 1.0 + 1e-12).all()
    assert bars["depth_imbalance"].dropna().between(-1.0, 1.0).all()
    assert 0.0 < bars["quoted_spread"].median() < 1e-3

    futures = bars[bars["entity_key"].str.startswith("usdm")]
    change = np.log(futures["close"]).groupby(futures["entity_key"]).diff()
    assert change.corr(futures["ofi"] / futures["depth"]) > 0.5  # prices follow the flow (Cont et al. 2014)

    attached = attach(market.traded_bars("2s"), [said])
    order_flow = pipeline("order_flow")
    features = build_features(order_flow, attached, producer="test", producer_version="abc", run_id="r", written_at=NOW)
    assert features["entity_key"].nunique() == 6
    shares = features[[feature.name for feature in order_flow.features]].notna().mean()
    assert (shares > 0.5).all()


@pytest.mark.skipif(not STOCK.exists(), reason=f"no real ticks in {STOCK}")
def test_real_stock_ticks_without_side_are_signed_by_the_tick_rule() -> None:
    market = with_bars(read_market_directory(STOCK, now=NOW), "1m")
    said = versions(market, "1m")
    assert list(said) == [*KEYS, *OF_TABLE["trades"]]
    bars = market.bars("1m").merge(said, on=KEYS[:2], how="left", suffixes=("", "_said"))
    np.testing.assert_array_equal(bars["num_trades"], bars["n"])
    signed = bars.dropna(subset="buy_volume")
    assert len(signed) > 0.9 * len(bars)
    np.testing.assert_allclose(signed["buy_volume"] + signed["sell_volume"], signed["volume"], rtol=1e-9)
    regular = signed[signed["event_time"].dt.hour.between(14, 19)]
    balance = (regular["buy_volume"] - regular["sell_volume"]) / regular["volume"]
    assert np.log(regular["close"]).diff().corr(balance) > 0.2
