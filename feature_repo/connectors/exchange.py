"""Bars and trades of crypto exchanges, through ``ccxt``.

Bars are asked for from the newest landed one on (it too, so that a late correction of it is seen), and only bars whose
end had passed when they were asked for are landed. Missing bars inside what a run has asked for are asked for once
again; what is missing then is reported, never filled in.

Trades are asked for by id or by the exchange's own cursor where it has one (Binance, Kraken), else from the newest
landed time on, that time included; trades that come twice are recognised by their id, or without ids by their values.

Every request goes through the exchange's own rate limiter and the one retry policy.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.connectors.base import (
    ConnectorError,
    Gap,
    Outcome,
    Runtime,
    TransientError,
    ask_patiently,
    is_transient,
    retry_after_s,
)
from feature_repo.connectors.landing import NUM_ROWS_HELD, Arrival, Lander, landed_rows
from feature_repo.market.layout import interval_length

# Tensor suffix: B bars.

IntArray: TypeAlias = NDArray[np.int64]

TRADES_PER_PAGE: Final = 1000
BARS_PER_PAGE: Final = 500  # where ccxt does not know the exchange's own limit
WINDOW: Final = timedelta(hours=1)  # what a request for trades since a time covers at least
_SHOWN: Final = 300  # characters of an answer that an error quotes
_MS: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeBars:
    """Lands bars of an exchange's markets in ``bars_<interval>``.

    Parameters
    ----------
    exchange
        Its name in ccxt.
    symbols
        The ``entity_key`` of each ccxt symbol, such as ``{"BTC/USD": "BTC"}``.
    interval
        Such as ``1h``; one the exchange offers.
    since
        Where a history begins. Given on a later run it asks for all again from there, which shows restatements.
    repair
        Ask again for every bar missing in all that is landed, not only in what this run asks for.
    lag
        Dates a history (see :func:`feature_repo.connectors.landing.land`).
    settings
        Passed to ccxt's constructor.
    num_rows_held
        Rows that a kill may cost, which then are asked for again (see :class:`feature_repo.connectors.landing.Lander`).
    """

    exchange: str
    symbols: Mapping[str, str]
    interval: str
    since: datetime | None = None
    repair: bool = False
    lag: timedelta | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_rows_held: int = NUM_ROWS_HELD

    def ingest(self, into: Path, *, runtime: Runtime) -> Iterator[Outcome]:
        """Land each symbol's bars; when the exchange gives up, what came until then is landed."""
        exchange = open_exchange(self.exchange, self.settings, runtime)
        if self.interval not in exchange.timeframes:
            raise ConnectorError(
                f"{self.exchange} has no bars of {self.interval!r}; it has {', '.join(exchange.timeframes)}: choose one"
            )
        table = f"bars_{self.interval}"
        for symbol, entity in self.symbols.items():
            lander = Lander(into, table, lag=self.lag, num_rows_held=self.num_rows_held)
            with _telling(f"{self.exchange} {symbol} {self.interval}", lander):
                outcome = self._ingest_one(exchange, symbol, entity, lander, into, runtime)
            yield outcome

    def _ingest_one(
        self, exchange: Any, symbol: str, entity: str, lander: Lander, into: Path, runtime: Runtime
    ) -> Outcome:
        table, length_ms = f"bars_{self.interval}", interval_length(self.interval) // _MS
        start_ms = self._start_ms(_ends_ms(into, table, entity), symbol, length_ms)
        pages = _Pages(exchange=exchange, symbol=symbol, entity=entity, interval=self.interval, runtime=runtime)
        for arrival in pages.walk(start_ms):
            lander.add(arrival)
        lander.flush()
        asked_from_ms = 0 if self.repair else start_ms
        for arrival in pages.fill(_ends_ms(into, table, entity), asked_from_ms):
            lander.add(arrival)
        lander.flush()
        return Outcome(
            source=f"{self.exchange} {symbol} {self.interval}",
            table=table,
            landed=lander.landed,
            num_unclosed=pages.num_unclosed,
            gaps=find_gaps(_ends_ms(into, table, entity), length_ms),
        )

    def _start_ms(self, end_ms_B: IntArray, symbol: str, length_ms: int) -> int:
        """When the first bar to ask for began."""
        if self.since is not None:
            return _to_ms(self.since)
        if len(end_ms_B):
            return int(end_ms_B[-1]) - length_ms
        raise ConnectorError(f"no bar of {symbol} is landed yet, so say since when to ask {self.exchange} for them")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeTrades:
    """Lands an exchange's trades in ``trades``: price, size, ``side`` (1 the buyer took, -1 the seller), ``trade_id``.

    The parameters are those of :class:`ExchangeBars`.
    """

    exchange: str
    symbols: Mapping[str, str]
    since: datetime | None = None
    lag: timedelta | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_rows_held: int = NUM_ROWS_HELD

    def ingest(self, into: Path, *, runtime: Runtime) -> Iterator[Outcome]:
        """Land each symbol's trades; when the exchange gives up, what came until then is landed."""
        exchange = open_exchange(self.exchange, self.settings, runtime)
        for symbol, entity in self.symbols.items():
            source, first = f"{self.exchange} {symbol} trades", None
            lander = Lander(into, "trades", lag=self.lag, num_rows_held=self.num_rows_held)
            with _telling(source, lander):
                cursor, asked = self._start(into, symbol, entity)
                for arrival in _walk_trades(exchange, symbol, entity, cursor, runtime):
                    first = first or arrival.rows["event_time"].min()
                    lander.add(arrival)
                lander.flush()
            late = first is not None and first - asked > WINDOW
            note = f"asked since {asked}, but its first trade is of {first}: older ones may no longer be given"
            yield Outcome(source=source, table="trades", landed=lander.landed, notes=(note,) if late else ())

    def _start(self, into: Path, symbol: str, entity: str) -> tuple[Cursor, datetime]:
        """Where to begin asking, and the time of the first trade that may come."""
        if self.since is not None:
            return _since(self.exchange, _to_ms(self.since)), self.since
        landed = landed_rows(into, "trades", entity)
        landed = landed[landed["event_time"].notna()]
        if landed.empty:
            raise ConnectorError(f"no trade of {symbol} is landed, so say since when to ask {self.exchange} for them")
        newest = landed.iloc[-1]
        moment, from_id = newest["event_time"].to_pydatetime(), _FROM_ID.get(self.exchange)
        if from_id and newest.get("trade_id") is not None:
            return from_id(newest["trade_id"]), moment
        return _since(self.exchange, _to_ms(moment)), moment


# ---- an exchange that waits and asks again ---------------------------------------------------------------------------


def open_exchange(name: str, settings: Mapping[str, Any], runtime: Runtime) -> Any:
    """The ccxt exchange called ``name``, with its rate limiter on our clock and every request retried by our policy."""
    import ccxt  # takes a second

    if name not in ccxt.exchanges:
        near = difflib.get_close_matches(name, ccxt.exchanges)
        raise ConnectorError(
            f"ccxt knows no exchange {name!r}{f'; it has {near}' if near else ''}: see `ccxt.exchanges` for the "
            f"{len(ccxt.exchanges)} it knows"
        )
    return _patient(getattr(ccxt, name), runtime)({"enableRateLimit": True, **settings})


def _patient(exchange: Any, runtime: Runtime) -> Any:
    """A subclass of an exchange's class whose requests are patient."""
    import ccxt

    class Patient(exchange):
        answer_code: int | None = None
        answer_headers: Mapping[str, str] = {}

        def milliseconds(self) -> int:
            return _to_ms(runtime.clock())

        def throttle(self, cost: float | None = None) -> None:
            """As ccxt's own, which would ask the machine's clock and sleep by itself."""
            since_ms = self.milliseconds() - self.lastRestRequestTimestamp
            wait_ms = self.rateLimit * (1 if cost is None else cost) - since_ms
            if wait_ms > 0:
                runtime.sleep(wait_ms / 1000)

        def on_rest_response(self, code: int, *args: Any) -> Any:
            self.answer_code, self.answer_headers = code, args[3]
            return super().on_rest_response(code, *args)

        def fetch2(self, *args: Any, **kwargs: Any) -> Any:
            ask: Callable[..., Any] = super().fetch2
            return ask_patiently(lambda: self.ask_once(ask, *args, **kwargs), runtime)

        def ask_once(self, ask: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.answer_code, self.answer_headers = None, {}
            try:
                answer = ask(*args, **kwargs)
            except ccxt.OperationFailed as error:
                code = self.answer_code
                if code is not None and code >= 400 and not is_transient(code):
                    raise  # ccxt calls 403, 404 and 451 passing too
                wait_s = retry_after_s(self.answer_headers.get("Retry-After"), now=runtime.clock())
                raise TransientError(str(error)[:_SHOWN], retry_after_s=wait_s) from error
            if isinstance(answer, str):  # ccxt hands on what is no JSON, and its parsers take it for an empty page
                raise TransientError(f"the answer is no JSON, or cut off: {answer[:_SHOWN]!r}")
            return answer

    return Patient


@contextmanager
def _telling(source: str, lander: Lander) -> Iterator[None]:
    """Lands what is held when something fails, and says what is landed and how to go on."""
    import ccxt

    try:
        yield
    except BaseException as error:
        lander.flush()
        if not isinstance(error, ConnectorError | ccxt.BaseError):
            raise
        raise ConnectorError(
            f"{source}: {error}. {lander.landed.num_written} rows of it were landed before that; run the same again to "
            "go on from there"
        ) from error


def _read(fetch: Callable[..., list[Any]], *args: Any) -> list[Any]:
    """What a method of ccxt makes of an answer; its parsers stumble over one of another shape."""
    try:
        return fetch(*args)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ConnectorError(f"ccxt can't make sense of the answer ({error!r})") from error


# ---- bars ------------------------------------------------------------------------------------------------------------


class _Pages:
    """Pages of one symbol's bars as arrivals; ``num_unclosed`` counts bars not over, ``reached_ms`` is asked up to."""

    def __init__(self, *, exchange: Any, symbol: str, entity: str, interval: str, runtime: Runtime) -> None:
        self._exchange, self._symbol, self._entity, self._interval = exchange, symbol, entity, interval
        self._length_ms = interval_length(interval) // _MS
        self._runtime = runtime
        exchange.load_markets()
        self._limit = int(exchange.feature_value(symbol, "fetchOHLCV", "limit", BARS_PER_PAGE) or BARS_PER_PAGE)
        self.num_unclosed = 0
        self.reached_ms = 0

    def walk(self, start_ms: int, *, until_ms: int | None = None) -> Iterator[Arrival]:
        """All closed bars that began from ``start_ms`` on, and until ``until_ms`` where given, page by page."""
        while start_ms + self._length_ms <= _to_ms(self._runtime.clock()) and (
            until_ms is None or start_ms <= until_ms
        ):
            arrival, newest_ms = self._page(start_ms)
            if newest_ms is None:  # empty, or not what was asked for: so it is asked for twice
                arrival, newest_ms = self._page(start_ms)
            yield arrival
            # A page empty twice may be a hole that is longer than a page, so the walk goes on behind it.
            start_ms = start_ms + self._limit * self._length_ms if newest_ms is None else newest_ms + self._length_ms
            self.reached_ms = start_ms

    def fill(self, end_ms_B: IntArray, from_ms: int) -> Iterator[Arrival]:
        """Another page for each missing bar that began after ``from_ms``, gaps close together by one page."""
        self.reached_ms = from_ms
        for gap in find_gaps(end_ms_B, self._length_ms):
            first_ms, last_ms = _to_ms(gap.first) - self._length_ms, _to_ms(gap.last) - self._length_ms
            yield from self.walk(max(first_ms, self.reached_ms), until_ms=last_ms)

    def _page(self, start_ms: int) -> tuple[Arrival, int | None]:
        """One page, and when its newest closed bar began."""
        asked_ms = _to_ms(self._runtime.clock())
        bars = _read(self._exchange.fetch_ohlcv, self._symbol, self._interval, start_ms, self._limit)
        arrived = self._runtime.clock()
        closed = [bar for bar in bars if bar[0] is None or bar[0] + self._length_ms <= asked_ms]
        self.num_unclosed = max(self.num_unclosed, len(bars) - len(closed))  # the newest bar, on every page
        begun_ms = [bar[0] for bar in closed if bar[0] is not None and bar[0] >= start_ms]
        return Arrival(rows=self._rows(closed), ingest_time=arrived), max(begun_ms, default=None)

    def _rows(self, bars: list[list[Any]]) -> pd.DataFrame:
        rows = pd.DataFrame(bars, columns=["begun", "open", "high", "low", "close", "volume"], dtype="float64")
        end = pd.to_datetime(rows.pop("begun") + self._length_ms, unit="ms", utc=True).dt.as_unit("us")
        rows.insert(0, "event_time", end)
        rows.insert(0, "interval", self._interval)
        rows.insert(0, "entity_key", self._entity)
        return rows


def find_gaps(end_ms_B: IntArray, length_ms: int) -> tuple[Gap, ...]:
    """The runs of missing bars between the first and the last of ``end_ms_B`` (rising, milliseconds)."""
    gaps = []
    for at in np.flatnonzero(np.diff(end_ms_B) > length_ms):
        before, after = int(end_ms_B[at]), int(end_ms_B[at + 1])
        num_bars = (after - before - 1) // length_ms
        first_ms = before + length_ms
        gaps.append(
            Gap(first=_from_ms(first_ms), last=_from_ms(first_ms + (num_bars - 1) * length_ms), num_bars=num_bars)
        )
    return tuple(gaps)


def _ends_ms(into: Path, table: str, entity: str) -> IntArray:
    """The ends of an entity's landed bars, rising (B,)."""
    ends = landed_rows(into, table, entity)["event_time"].dropna()
    return np.unique(ends.to_numpy(dtype="datetime64[ms]").astype(np.int64))


# ---- trades ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Where to go on asking for trades: a time, or an exchange's own parameter."""

    since_ms: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


def _binance_id(trade_id: str) -> Cursor:
    return Cursor(params={"fromId": trade_id})


def _kraken_nanoseconds(nanoseconds: str) -> Cursor:
    return Cursor(params={"since": nanoseconds})


def _behind_id(trades: Sequence[Mapping[str, Any]]) -> Cursor:
    return _binance_id(str(max(int(trade["id"]) for trade in trades)))


def _behind_cursor(trades: Sequence[Mapping[str, Any]]) -> Cursor:
    """Kraken says where to go on; ccxt appends it to the last trade of the page, then sorts the page by text."""
    return _kraken_nanoseconds(str(max((trade["info"] for trade in trades), key=len)[-1]))


_FROM_ID: Final[Mapping[str, Callable[[str], Cursor]]] = {"binance": _binance_id}
_BEHIND: Final[Mapping[str, Callable[[Sequence[Mapping[str, Any]]], Cursor]]] = {
    "binance": _behind_id,
    "kraken": _behind_cursor,
}


def _since(exchange: str, since_ms: int) -> Cursor:
    # ccxt cuts Kraken's `since` to seconds, of which one may hold more trades than a page
    return _kraken_nanoseconds(str(since_ms * 1_000_000 - 1)) if exchange == "kraken" else Cursor(since_ms=since_ms)


def _walk_trades(exchange: Any, symbol: str, entity: str, cursor: Cursor, runtime: Runtime) -> Iterator[Arrival]:
    """All trades from the cursor on, page by page."""
    exchange.load_markets()
    behind = _BEHIND.get(exchange.id)
    limit = int(exchange.feature_value(symbol, "fetchTrades", "limit", TRADES_PER_PAGE) or TRADES_PER_PAGE)
    while True:
        asked_ms = _to_ms(runtime.clock())
        trades = _read(exchange.fetch_trades, symbol, cursor.since_ms, limit, dict(cursor.params))
        if trades:
            yield Arrival(rows=_trade_rows(trades, entity), ingest_time=runtime.clock())
        if behind and (trades or cursor.params):
            step = behind(trades) if trades else cursor
        else:
            step = _by_time(trades, cursor.since_ms or 0, limit)
        if step == cursor or (step.since_ms is not None and step.since_ms > asked_ms):
            return
        cursor = step


def _by_time(trades: Sequence[Mapping[str, Any]], since_ms: int, limit: int) -> Cursor:
    """From the page's last time on; behind the window a request covers where it brought nothing later."""
    newest_ms = max((trade["timestamp"] for trade in trades if trade["timestamp"] is not None), default=since_ms)
    if newest_ms > since_ms:
        return Cursor(since_ms=newest_ms)
    if len(trades) >= limit:
        raise ConnectorError(
            f"a page of {len(trades)} trades all bear the time {_from_ms(since_ms)}, and this exchange has no cursor "
            "to go on behind them, so trades would be lost: ask for its bars instead, or since a later time"
        )
    return Cursor(since_ms=since_ms + WINDOW // _MS)


def _trade_rows(trades: list[dict[str, Any]], entity: str) -> pd.DataFrame:
    """Trades as rows; ids only where all have one (ccxt gives Kraken's cursor to the last of a page without ids)."""
    ids = [trade["id"] for trade in trades]
    if all(trade_id and trade_id.isdigit() for trade_id in ids):  # ccxt sorts ids as text, 999 behind 1000
        trades = sorted(trades, key=lambda trade: (trade["timestamp"] or 0, int(trade["id"])))
        ids = [trade["id"] for trade in trades]
    side = pd.Series([trade["side"] for trade in trades], dtype=object).map({"buy": 1.0, "sell": -1.0})
    times = pd.Series([trade["timestamp"] for trade in trades], dtype="float64")
    return pd.DataFrame(
        {
            "entity_key": entity,
            "event_time": pd.to_datetime(times, unit="ms", utc=True).dt.as_unit("us"),
            "price": pd.Series([trade["price"] for trade in trades], dtype="float64"),
            "size": pd.Series([trade["amount"] for trade in trades], dtype="float64"),
            "side": side.astype("float64"),
            "trade_id": pd.Series(ids if all(ids) else None, index=times.index, dtype=object),
        }
    )


def _to_ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise ConnectorError(f"the time {moment} has no zone; give an aware time, such as one in UTC")
    return (moment - _EPOCH) // _MS


def _from_ms(milliseconds: int) -> datetime:
    return _EPOCH + milliseconds * _MS
