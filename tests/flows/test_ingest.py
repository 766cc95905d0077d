"""`perennial ingest`: options become connectors, and what landed is shown."""

from __future__ import annotations

import datetime as dt
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from feature_repo.connectors.base import ConnectorError, Gap, Landed, Outcome
from feature_repo.connectors.coin_metrics import CoinMetrics
from feature_repo.connectors.equities import Equities
from feature_repo.connectors.exchange import ExchangeBars, ExchangeTrades
from feature_repo.connectors.fear_greed import URL, FearGreed
from flows import ingest


def run(*arguments: object) -> Result:
    return CliRunner().invoke(ingest.app, [str(argument) for argument in arguments])


@pytest.fixture
def asked(monkeypatch) -> list:
    """The connectors that commands make, in place of running them."""
    seen: list = []
    monkeypatch.setattr(ingest, "show", lambda connector, into, as_json: seen.append(connector))
    return seen


@pytest.mark.parametrize(
    ("command", "connector"),
    [
        (
            "bars kraken BTC/USD=BTC ETH/USD --into m --interval 1h --since 2024-01-02 --repair --published-after 5min",
            ExchangeBars(
                exchange="kraken",
                symbols={"BTC/USD": "BTC", "ETH/USD": "ETH/USD"},
                interval="1h",
                since=datetime(2024, 1, 2, tzinfo=UTC),
                repair=True,
                lag=timedelta(minutes=5),
            ),
        ),
        ("trades binance BTC/USDT --into m", ExchangeTrades(exchange="binance", symbols={"BTC/USDT": "BTC/USDT"})),
        (
            "equities a.csv b.csv --into m --symbol X --column close=Last --ignore Foo --close 17:30 --zone Asia/Tokyo",
            Equities(
                where=("a.csv", "b.csv"),
                entity_key="X",
                columns={"close": "Last"},
                ignore=("Foo",),
                close=dt.time(17, 30),
                zone="Asia/Tokyo",
            ),
        ),
        (
            "coin-metrics btc.csv --into m --metric TxCnt --published-after 13h",
            CoinMetrics(where=("btc.csv",), metrics=("TxCnt",), lag=timedelta(hours=13)),
        ),
        ("coin-metrics btc.csv --into m --whole", CoinMetrics(where=("btc.csv",), whole=True)),
        ("fear-greed --into m", FearGreed(where=URL)),
        ("fear-greed --into m --source fng.json", FearGreed(where="fng.json")),
    ],
)
def test_options_become_a_connector(asked, command, connector):
    assert run(*command.split()).exit_code == 0
    assert asked == [connector]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fear-greed --into m --published-after soon", "'soon' is no duration"),
        ("fear-greed --into m --published-after 13", "'13' is no duration"),
        ("fear-greed --into m --published-after -1h", "not negative"),
        ("equities a.csv --into m --close late", "'late' is no time of day"),
        ("equities a.csv --into m --column close", r"\['close'\] are no pairs"),
    ],
)
def test_options_that_do_not_read_are_said(command, said):
    with pytest.raises(ingest.IngestError, match=said):
        raise run(*command.split()).exception


def test_what_landed_is_shown(tmp_path: Path):
    (tmp_path / "x.csv").write_text("Date,Close\n2024-01-02,1\n2024-01-03,-1\n")
    command = ("equities", tmp_path / "x.csv", "--into", tmp_path / "m", "--symbol", "X")
    shown = run(*command)
    assert shown.exit_code == 0
    assert "bars_1d: 1 rows in quarantine: close is not positive" in shown.stdout
    said = json.loads(run(*command, "--json").stdout)
    assert said["outcomes"][0]["landed"] == {
        "num_new": 0, "num_restated": 0, "num_withdrawn": 0, "num_known": 2, "num_contradicted": 0
    }  # fmt: skip
    assert said["quarantined"] == [{"table": "bars_1d", "reason": "close is not positive", "num_rows": 1}]


def test_gaps_and_notes_are_told():
    day = datetime(2024, 1, 2, tzinfo=UTC)
    gaps = tuple(Gap(first=day, last=day + timedelta(days=1), num_bars=2) for _ in range(7))
    outcome = Outcome(source="kraken BTC/USD 1d", table="bars_1d", landed=Landed(), gaps=gaps, notes=("mind this",))
    lines = ingest.notes([outcome], [])
    assert lines[0] == "kraken BTC/USD 1d: mind this"
    assert lines[1].startswith("kraken BTC/USD 1d: 2 bars missing, ends 2024-01-02")
    assert lines[-1] == "kraken BTC/USD 1d: 7 gaps in all; --repair asks for them again"
    assert len(lines) == 1 + 5 + 1


def test_an_unknown_exchange_is_one_clear_error(tmp_path: Path):
    failed = run("bars", "krakn", "BTC/USD", "--into", tmp_path, "--since", "2024-01-01").exception
    assert isinstance(failed, ConnectorError)
    assert "ccxt knows no exchange 'krakn'; it has ['kraken'" in str(failed)
