"""Bars and trades through real ccxt code against a stub of Binance's and Kraken's public endpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from feature_repo.connectors.base import ConnectorError, Landed
from feature_repo.connectors.exchange import ExchangeBars, ExchangeTrades, find_gaps, open_exchange
from feature_repo.connectors.landing import read_landed
from feature_repo.market.directory import read_market_directory

START = datetime(2024, 1, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
HOUR_MS = 3_600_000
KLINES, AGG_TRADES = "/api/v3/klines", "/api/v3/aggTrades"


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


@dataclass
class Binance:
    """``bars`` by the start of each, with a page of at most ``page``; ``trades`` as (id, ms, price)."""

    bars: dict[int, float] = field(default_factory=dict)
    trades: list[tuple[int, int, float]] = field(default_factory=list)
    page: int = 10

    def info(self, query):
        symbol = {"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT", "filters": []}
        return {"timezone": "UTC", "serverTime": 0, "symbols": [{**symbol, "isSpotTradingAllowed": True}]}

    def klines(self, query):
        starts = sorted(start for start in self.bars if start >= int(query["startTime"]))
        return [self.kline(start) for start in starts[: min(self.page, int(query["limit"]))]]

    def kline(self, start: int):
        price = self.bars[start]
        cells = [f"{price:.8f}", f"{price + 2:.8f}", f"{price - 2:.8f}", f"{price + 1:.8f}", "22.19000000"]
        return [start, *cells, start + HOUR_MS - 1, "0.55490906", 40, "10.92900000", "0.27336462", "0"]

    def agg_trades(self, query):
        if "fromId" in query:
            found = [trade for trade in self.trades if trade[0] >= int(query["fromId"])]
        else:
            found = [t for t in self.trades if int(query["startTime"]) <= t[1] <= int(query["endTime"])]
        return [
            {"a": i, "p": f"{p:.8f}", "q": "4.70443515", "f": i, "l": i, "T": at, "m": i % 2 == 0, "M": True}
            for i, at, p in found[: self.page]
        ]


@pytest.fixture
def binance(stub) -> Binance:
    exchange = Binance()
    stub.routes["/api/v3/exchangeInfo"] = lambda query: stub.json(exchange.info(query))
    stub.routes[KLINES] = lambda query: stub.json(exchange.klines(query))
    stub.routes[AGG_TRADES] = lambda query: stub.json(exchange.agg_trades(query))
    return exchange


def hours(num: int) -> dict[int, float]:
    return {ms(START + at * HOUR): 100.0 + at for at in range(num)}


def settings(stub) -> dict:
    return {
        "urls": {"api": {"public": f"{stub.url}/api/v3"}},
        "options": {"fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False},
    }


def hourly(stub, **more) -> ExchangeBars:
    plan = {"since": START, **more}
    return ExchangeBars(exchange="binance", symbols={"BTC/USDT": "BTC"}, interval="1h", settings=settings(stub), **plan)


def run(connector, folder, world, **policy):
    (outcome,) = connector.ingest(folder, runtime=world.runtime(**policy))
    return outcome


def closes(folder) -> dict[int, float]:
    """Close by the hour in which the bar began, of all rows in the table."""
    table = read_landed(folder / "bars_1h.parquet", "bars_1h")
    return {(row.event_time - START) // HOUR - 1: row.close for row in table.itertuples()}


NOW_BARS = 60  # closed at the fixture's time: 2024-01-10 12:30:20


def test_bars_are_landed_page_by_page_when_closed(stub, binance, world, tmp_path):
    binance.bars, binance.page = hours(NOW_BARS + 1), 25
    outcome = run(hourly(stub), tmp_path, world)
    assert outcome.landed == Landed(num_new=60)
    assert (outcome.num_unclosed, outcome.gaps) == (1, ())
    market = read_market_directory(tmp_path, now=world.now)
    assert market.quarantine.empty
    bars = market.bars("1h")
    assert bars["event_time"].tolist() == [START + (at + 1) * HOUR for at in range(60)]
    assert bars[["open", "high", "low", "close", "volume"]].iloc[3].tolist() == [103.0, 105.0, 101.0, 104.0, 22.19]
    assert (bars["entity_key"] == "BTC").all()
    assert (bars["ingest_time"] <= world.now).all()
    assert (bars["ingest_time"] >= datetime(2024, 1, 10, 12, 30, 20, tzinfo=UTC)).all()
    assert bars["ingest_time"].nunique() > 1  # each page has its own arrival


def test_the_same_again_lands_nothing_and_later_only_what_is_new(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS + 1)
    run(hourly(stub), tmp_path, world)
    assert run(hourly(stub), tmp_path, world).landed == Landed(num_known=60)
    num_asked = len(stub.asked)
    world.now += HOUR
    outcome = run(hourly(stub, since=None), tmp_path, world)
    assert outcome.landed == Landed(num_new=1, num_known=1)
    assert [query["startTime"] for path, query in stub.asked[num_asked:] if path == KLINES] == [
        str(ms(START + 59 * HOUR))
    ]


def test_a_restatement_lands_one_row_and_keeps_the_old_one(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    run(hourly(stub), tmp_path, world)
    binance.bars[ms(START + 59 * HOUR)] += 0.5  # corrected by a late trade
    world.now += timedelta(minutes=5)
    outcome = run(hourly(stub, since=None), tmp_path, world)
    assert outcome.landed == Landed(num_restated=1)
    table = read_market_directory(tmp_path, now=world.now).bars("1h")
    versions = table[table["event_time"] == START + 60 * HOUR]
    assert versions["close"].tolist() == [160.0, 160.5]
    assert versions["ingest_time"].is_monotonic_increasing


def test_a_bar_that_closes_while_it_is_asked_for_is_asked_for_again(stub, binance, world, tmp_path):
    """What was said of it was said before it was over."""
    binance.bars, binance.page = hours(NOW_BARS), 1000
    world.now = START + 60 * HOUR - timedelta(milliseconds=200)

    def slow(query):
        answer = binance.klines(query)
        if stub.num_asked(KLINES) == 1:
            answer[-1][4] = "159.25"  # the close so far
        world.now += timedelta(milliseconds=400)
        return stub.json(answer)

    stub.routes[KLINES] = slow
    assert run(hourly(stub), tmp_path, world).landed == Landed(num_new=60)
    assert closes(tmp_path)[59] == 160.0


def test_429_then_success_honours_retry_after(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    stub.faults[(KLINES, 2)] = stub.text("slow down", status=429, headers={"Retry-After": "17"})
    assert run(hourly(stub), tmp_path, world).landed.num_new == 60
    assert 17.0 in world.sleeps


def test_500s_end_in_an_error_that_says_how_to_go_on(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    for attempt in range(3, 6):
        stub.faults[(KLINES, attempt)] = stub.text("<html>oops</html>", status=502)
    with pytest.raises(ConnectorError) as failed:
        run(hourly(stub), tmp_path, world, num_attempts=3)
    message = str(failed.value)
    assert message.startswith("binance BTC/USDT 1h: ")
    assert "502" in message
    assert "gave up after 3 attempts. 20 rows of it were landed before that; run the same again" in message
    assert sorted(closes(tmp_path)) == list(range(20))
    assert run(hourly(stub, since=None), tmp_path, world).landed == Landed(num_new=40, num_known=1)


def test_403_is_not_asked_again(stub, binance, world, tmp_path):
    stub.faults[(KLINES, 1)] = stub.text("blocked", status=403)
    with pytest.raises(ConnectorError, match="403"):
        run(hourly(stub), tmp_path, world)
    assert stub.num_asked(KLINES) == 1


def test_nobody_there(stub, world, tmp_path):
    plan = hourly(stub)
    gone = {**plan.settings, "urls": {"api": {"public": "http://127.0.0.1:9/api/v3"}}}
    with pytest.raises(ConnectorError, match=r"BTC/USDT 1h: .*gave up after 2 attempts. 0 rows"):
        run(replace(plan, settings=gone), tmp_path, world, num_attempts=2)


def test_ccxt_alone_takes_a_page_cut_off_for_an_empty_one(stub, kraken):
    import ccxt

    whole = stub.routes["/0/public/OHLC"]({"since": str(int(START.timestamp()))})
    stub.faults[("/0/public/OHLC", 1)] = replace(whole, body=whole.body[: len(whole.body) // 2])
    exchange = ccxt.kraken({**kraken["settings"], "rateLimit": 1})
    assert exchange.fetch_ohlcv("BTC/USD", "1h", ms(START)) == []
    exchange.close()


@pytest.mark.parametrize("fault", ["cut off body", "cut off transfer"])
def test_a_truncated_page_is_asked_again(stub, binance, world, tmp_path, fault):
    binance.bars = hours(NOW_BARS)
    whole = stub.json(binance.klines({"startTime": str(ms(START + 10 * HOUR)), "limit": "10"}))
    if fault == "cut off body":
        whole.body = whole.body[: len(whole.body) // 2]
    else:
        whole.cut_to = len(whole.body) // 2
    stub.faults[(KLINES, 2)] = whole
    outcome = run(hourly(stub), tmp_path, world)
    assert (outcome.landed, outcome.gaps) == (Landed(num_new=60), ())
    assert len(closes(tmp_path)) == 60


def test_a_duplicate_page_lands_once_and_its_gap_is_repaired(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    stub.faults[(KLINES, 3)] = stub.json(binance.klines({"startTime": str(ms(START)), "limit": "10"}))
    outcome = run(hourly(stub), tmp_path, world)
    assert outcome.landed.num_new == 60
    assert outcome.gaps == ()


def test_a_gap_is_reported_and_repaired_when_the_bars_come(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    lost = {start: binance.bars.pop(start) for start in [ms(START + at * HOUR) for at in (20, 21, 22, 40)]}
    outcome = run(hourly(stub), tmp_path, world)
    assert outcome.landed.num_new == 56
    assert [(gap.first, gap.last, gap.num_bars) for gap in outcome.gaps] == [
        (START + 21 * HOUR, START + 23 * HOUR, 3),
        (START + 41 * HOUR, START + 41 * HOUR, 1),
    ]
    assert not set(closes(tmp_path)) & {20, 21, 22, 40}  # nothing is filled in
    binance.bars |= lost
    world.now += timedelta(minutes=1)
    outcome = run(hourly(stub, since=None), tmp_path, world)
    assert (outcome.landed.num_new, len(outcome.gaps)) == (0, 2)  # told, but the old ones are not asked for each time
    num_asked = stub.num_asked(KLINES)
    outcome = run(hourly(stub, since=None, repair=True), tmp_path, world)
    assert (outcome.landed.num_new, outcome.gaps) == (4, ())
    assert stub.num_asked(KLINES) - num_asked == 3  # the newest bar, and a page for each gap
    market = read_market_directory(tmp_path, now=world.now)
    assert market.quarantine.empty
    assert len(market.bars("1h")) == 60
    assert market.bars("1h")["ingest_time"].max() >= datetime(2024, 1, 10, 12, 31, tzinfo=UTC)  # known since the repair


def test_a_gap_seen_in_this_run_is_asked_for_again_at_once(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    page = binance.klines({"startTime": str(ms(START + 10 * HOUR)), "limit": "10"})
    stub.faults[(KLINES, 2)] = stub.json([bar for at, bar in enumerate(page) if at not in (3, 4)])
    outcome = run(hourly(stub), tmp_path, world)
    assert (outcome.landed.num_new, outcome.gaps) == (60, ())


def test_find_gaps_counts_what_lies_between():
    ends = np.array([1, 2, 3, 7, 8, 10]) * HOUR_MS
    assert [gap.num_bars for gap in find_gaps(ends, HOUR_MS)] == [3, 1]
    assert find_gaps(ends[:3], HOUR_MS) == ()
    assert find_gaps(ends[:0], HOUR_MS) == ()


@pytest.mark.parametrize("at_request", [1, 2, 4, 6])
def test_an_interruption_anywhere_then_a_rerun_equals_an_undisturbed_run(stub, binance, world, tmp_path, at_request):
    binance.bars = hours(NOW_BARS)

    def clock():
        if stub.num_asked(KLINES) == at_request:
            raise KeyboardInterrupt
        return world.now

    runtime = replace(world.runtime(), clock=clock)
    with pytest.raises(KeyboardInterrupt):
        list(hourly(stub).ingest(tmp_path / "a", runtime=runtime))
    landed = closes(tmp_path / "a") if (tmp_path / "a").exists() else {}
    assert len(landed) == 10 * (at_request - 1)  # what had come is landed
    again = hourly(stub, since=None) if landed else hourly(stub)
    run(again, tmp_path / "a", world)
    run(hourly(stub), tmp_path / "b", world)
    values = ["entity_key", "interval", "event_time", "open", "high", "low", "close", "volume"]
    first, second = (read_landed(tmp_path / name / "bars_1h.parquet", "bars_1h")[values] for name in "ab")
    pd.testing.assert_frame_equal(first, second)


KILLED = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
import numpy as np
from feature_repo.connectors.base import Runtime
from feature_repo.connectors.exchange import ExchangeBars
folder, url = sys.argv[1:]
plan = ExchangeBars(
    exchange="binance", symbols={"BTC/USDT": "BTC"}, interval="1h", since=datetime(2024, 1, 8, tzinfo=UTC),
    settings={"urls": {"api": {"public": url + "/api/v3"}},
              "options": {"fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False}},
    num_rows_held=10,
)
clock = lambda: datetime(2024, 1, 10, 12, 30, tzinfo=UTC)
list(plan.ingest(Path(folder), runtime=Runtime(clock=clock, sleep=lambda s: None, rng=np.random.default_rng(0))))
"""


def test_kill_9_between_pages_then_a_rerun_lands_the_rest(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    process: list[subprocess.Popen] = []

    def deadly(query):
        if stub.num_asked(KLINES) == 4:
            while not process:
                time.sleep(0.01)
            os.kill(process[0].pid, signal.SIGKILL)
        return stub.json(binance.klines(query))

    stub.routes[KLINES] = deadly
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), stub.url]
    process.append(subprocess.Popen(arguments, stderr=subprocess.DEVNULL))
    assert process[0].wait(60) == -signal.SIGKILL
    assert sorted(closes(tmp_path)) == list(range(30))
    assert run(hourly(stub, since=None), tmp_path, world).landed == Landed(num_new=30, num_known=1)
    assert read_market_directory(tmp_path, now=world.now).quarantine.empty


def test_a_hole_longer_than_a_page_does_not_end_the_walk(stub, binance, world, tmp_path):
    binance.bars = hours(20)
    world.now = START + 3000 * HOUR
    binance.bars |= {ms(START + at * HOUR): 1000.0 + at for at in range(2990, 3000)}
    stub.routes[KLINES] = lambda query: stub.json(
        [bar for bar in binance.klines(query) if bar[0] < int(query["startTime"]) + 1000 * HOUR_MS]
    )
    outcome = run(hourly(stub), tmp_path, world)
    assert outcome.landed.num_new == 30
    assert [gap.num_bars for gap in outcome.gaps] == [2970]


def test_bad_bars_are_landed_for_the_quarantine_to_count(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    page = binance.klines({"startTime": str(ms(START + 10 * HOUR)), "limit": "10"})
    page[0][4] = "-5"
    page[1][4] = "not a number"
    page[2][2], page[2][3] = page[2][3], page[2][2]
    stub.faults[(KLINES, 2)] = stub.json(page)
    assert run(hourly(stub), tmp_path, world).landed.num_new == 60
    market = read_market_directory(tmp_path, now=world.now)
    assert sorted(market.quarantine["reason"]) == ["close is not positive", "close is null", "high is below low"]
    assert len(market.bars("1h")) == 57


def test_the_exchanges_own_rate_limit_is_kept(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    plan = hourly(stub)
    slow = replace(plan, settings={**plan.settings, "rateLimit": 2500})
    times = []
    route = stub.routes[KLINES]
    stub.routes[KLINES] = lambda query: times.append(world.now) or route(query)
    run(slow, tmp_path, world)
    assert [later - earlier for earlier, later in pairwise(times)] == [timedelta(seconds=1)] * 5  # of weight 0.4 each


def test_bars_may_be_dated_by_a_lag(stub, binance, world, tmp_path):
    binance.bars = hours(NOW_BARS)
    run(hourly(stub, lag=timedelta(minutes=1)), tmp_path, world)
    table = read_landed(tmp_path / "bars_1h.parquet", "bars_1h")
    assert ((table["ingest_time"] - table["event_time"])[:-1] == timedelta(minutes=1)).all()


def test_what_is_asked_wrongly_is_said(stub, binance, world, tmp_path):
    with pytest.raises(ConnectorError, match=r"no exchange 'binanse'; it has \['binance"):
        open_exchange("binanse", {}, world.runtime())
    with pytest.raises(ConnectorError, match=r"no bars of '7h'; it has 1s, 1m"):
        run(replace(hourly(stub), interval="7h"), tmp_path, world)
    with pytest.raises(ConnectorError, match="say since when"):
        run(hourly(stub, since=None), tmp_path, world)
    with pytest.raises(ConnectorError, match="has no zone"):
        run(hourly(stub, since=datetime(2024, 1, 1)), tmp_path, world)  # noqa: DTZ001
    with pytest.raises(ConnectorError, match="XYZ/USDT"):
        run(replace(hourly(stub), symbols={"XYZ/USDT": "X"}), tmp_path, world)


# ---- trades ----------------------------------------------------------------------------------------------------------


def trading(stub, **more) -> ExchangeTrades:
    plan = {"since": START, **more}
    return ExchangeTrades(exchange="binance", symbols={"BTC/USDT": "BTC"}, settings=settings(stub), **plan)


def trade_ids(folder) -> list[int]:
    return [int(trade_id) for trade_id in read_landed(folder / "trades.parquet", "trades")["trade_id"]]


def some_trades(num: int, *, first_ms: int) -> list[tuple[int, int, float]]:
    """Ids from 988 on, five trades in each millisecond, so that one holds 999 and 1000."""
    return [(988 + at, first_ms + at // 5, 100.0 + at) for at in range(num)]


def test_trades_are_paged_by_id_and_kept_once(stub, binance, world, tmp_path):
    binance.trades = some_trades(47, first_ms=ms(START + 3 * HOUR))  # nothing in the first three windows
    outcome = run(trading(stub), tmp_path, world)
    assert outcome.landed.num_new == 47
    assert trade_ids(tmp_path) == list(range(988, 1035))
    assert len(outcome.notes) == 1
    assert "its first trade is of 2024-01-08 03:00" in outcome.notes[0]
    market = read_market_directory(tmp_path, now=world.now)
    assert market.quarantine.empty
    assert market.flags.empty
    first = market.tables["trades"].iloc[0]
    assert (first["price"], first["size"], first["side"]) == (100.0, 4.70443515, -1)  # the buyer was the maker
    assert market.tables["trades"]["side"].tolist()[1] == 1
    assert run(trading(stub, since=None), tmp_path, world).landed == Landed(num_known=1)
    binance.trades += [(1035, ms(START + 5 * HOUR), 7.0)]
    assert run(trading(stub, since=None), tmp_path, world).landed == Landed(num_new=1, num_known=2)


def test_an_interrupted_history_of_trades_is_resumed(stub, binance, world, tmp_path):
    binance.trades = some_trades(47, first_ms=ms(START))
    for attempt in (3, 4):
        stub.faults[(AGG_TRADES, attempt)] = stub.text("", status=503)
    with pytest.raises(ConnectorError, match=r"binance BTC/USDT trades: .*\. 19 rows of it were landed"):
        run(trading(stub), tmp_path, world, num_attempts=2)
    run(trading(stub, since=None), tmp_path, world)
    assert trade_ids(tmp_path) == list(range(988, 1035))


def test_a_truncated_page_of_trades_is_asked_again(stub, kraken, world, tmp_path):
    whole = stub.routes["/0/public/Trades"]({"since": str(ms(START) * 10**6 + 10**8)})
    stub.faults[("/0/public/Trades", 3)] = replace(whole, body=whole.body[: len(whole.body) // 2])
    assert run(ExchangeTrades(since=START, **kraken), tmp_path, world).landed.num_new == 40
    assert any(wait > 0.5 for wait in world.sleeps)


def test_no_trade_is_landed_yet(stub, binance, world, tmp_path):
    with pytest.raises(ConnectorError, match="no trade of BTC/USDT is landed"):
        run(trading(stub, since=None), tmp_path, world)


# ---- Kraken ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kraken(stub):
    """Trades as (seconds, id), two pages a second; bars as Kraken's newest 720 would be."""
    pair = {"altname": "XBTUSD", "wsname": "XBT/USD", "base": "XXBT", "quote": "ZUSD", "pair_decimals": 1}
    pair |= {"lot_decimals": 8, "fees": [[0, 0.26]], "fees_maker": [[0, 0.16]], "ordermin": "1", "status": "online"}
    asset = {"aclass": "currency", "decimals": 10, "display_decimals": 5, "status": "enabled"}
    assets = {"XXBT": {**asset, "altname": "XBT"}, "ZUSD": {**asset, "altname": "USD"}}
    trades = [(ms(START) * 10**6 + at * 10**7, at) for at in range(40)]  # 100 in a second

    def recent_trades(query):
        page = [(at, i) for at, i in trades if at > int(query["since"])][:7]
        rows = [[f"{100 + i}.1", "0.5", at / 10**9, "bs"[i % 2], "l", "", i] for at, i in page]
        last = str(page[-1][0]) if page else query["since"]
        return stub.json({"error": [], "result": {"XXBTZUSD": rows, "last": last}})

    def bars(query):
        starts = [int(START.timestamp()) + 3600 * at for at in range(61)]
        rows = [[at, "1.0", "2.0", "0.5", "1.5", "1.2", "9.1", 5] for at in starts if at > int(query["since"])]
        return stub.json({"error": [], "result": {"XXBTZUSD": rows, "last": starts[-1]}})

    stub.routes["/0/public/Assets"] = lambda query: stub.json({"error": [], "result": assets})
    stub.routes["/0/public/AssetPairs"] = lambda query: stub.json({"error": [], "result": {"XXBTZUSD": pair}})
    stub.routes["/0/public/Trades"] = recent_trades
    stub.routes["/0/public/OHLC"] = bars
    return {"exchange": "kraken", "symbols": {"BTC/USD": "BTC"}, "settings": {"urls": {"api": {"public": stub.url}}}}


def test_kraken_trades_are_paged_by_its_cursor(stub, kraken, world, tmp_path):
    """By time, which ccxt cuts to seconds, no page but the first of a second could be reached."""
    outcome = run(ExchangeTrades(since=START, **kraken), tmp_path, world)
    assert outcome.landed.num_new == 40
    assert trade_ids(tmp_path) == list(range(40))
    assert run(ExchangeTrades(**kraken), tmp_path, world).landed == Landed(num_known=1)
    assert read_market_directory(tmp_path, now=world.now).quarantine.empty


def test_kraken_bars_and_its_errors_of_status_200(stub, kraken, world, tmp_path):
    stub.faults[("/0/public/OHLC", 1)] = stub.json({"error": ["EAPI:Rate limit exceeded"]})
    outcome = run(ExchangeBars(since=START, interval="1h", **kraken), tmp_path, world)
    assert outcome.landed.num_new == 60
    stub.faults[("/0/public/OHLC", stub.num_asked("/0/public/OHLC") + 1)] = stub.json({"error": ["EQuery:Unknown"]})
    with pytest.raises(ConnectorError, match="EQuery:Unknown"):
        run(ExchangeBars(interval="1h", **kraken), tmp_path, world)
