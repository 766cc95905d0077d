"""On-chain metrics in the column layout of Coin Metrics' community files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from feature_repo.connectors.base import ConnectorError, Landed
from feature_repo.connectors.coin_metrics import CoinMetrics
from feature_repo.connectors.landing import read_landed
from feature_repo.market.directory import read_market_directory

ALL = """asset,time,AdrActCnt,CapMrktCurUSD,principal_market_usd
btc,2024-01-07,800123,850000000000.5,coinbase-btc-usd-spot
btc,2024-01-08,812345,,coinbase-btc-usd-spot
btc,2024-01-09,799999,860000000000.25,coinbase-btc-usd-spot
btc,2024-01-10,,861000000000,coinbase-btc-usd-spot
eth,2024-01-09,500000,270000000000,coinbase-eth-usd-spot
"""
VINTAGES = Path(__file__).resolve().parents[3] / "../shared/data/onchain_vintages_2018/onchain_vintages.parquet"


def run(folder, world, *where, **more) -> list:
    plan = CoinMetrics(where=tuple(str(one) for one in where), **more)
    return list(plan.ingest(folder, runtime=world.runtime()))


def test_one_file_for_all(tmp_path, world):
    (tmp_path / "all.csv").write_text(ALL)
    (outcome,) = run(tmp_path / "m", world, tmp_path / "all.csv")
    assert (outcome.landed, outcome.num_unclosed) == (Landed(num_new=4), 1)  # the 10th is not over
    market = read_market_directory(tmp_path / "m", now=world.now)
    assert market.quarantine.empty
    table = market.tables["onchain_1d"]
    assert table["entity_key"].tolist() == ["BTC", "BTC", "BTC", "ETH"]
    assert table["event_time"].tolist()[0] == datetime(2024, 1, 8, tzinfo=UTC)  # the END of the 7th
    assert (table["ingest_time"] == world.now).all()
    assert list(table.columns) == ["entity_key", "event_time", "ingest_time", "AdrActCnt", "CapMrktCurUSD"]
    assert table["CapMrktCurUSD"].isna().tolist() == [False, True, False, False]


def test_one_file_an_asset_by_address_and_the_older_name_of_the_day(stub, tmp_path, world):
    stub.routes["/csv/btc.csv"] = lambda query: stub.text("time,TxCnt\n2024-01-08T00:00:00.000000000Z,5\n")
    (tmp_path / "eth.csv").write_text("date,TxCnt\n2024-01-08,7\n")
    outcomes = run(tmp_path / "m", world, f"{stub.url}/csv/btc.csv", tmp_path / "eth.csv")
    assert [outcome.landed.num_new for outcome in outcomes] == [1, 1]
    table = read_landed(tmp_path / "m" / "onchain_1d.parquet", "onchain_1d")
    assert table[["entity_key", "TxCnt"]].to_numpy().tolist() == [["BTC", 5.0], ["ETH", 7.0]]
    assert (table["event_time"] == datetime(2024, 1, 9, tzinfo=UTC)).all()


def test_again_restated_and_withdrawn(tmp_path, world):
    file = tmp_path / "btc.csv"
    file.write_text("time,TxCnt,Fees\n2024-01-05,1,10\n2024-01-06,2,20\n2024-01-07,3,30\n")
    run(tmp_path / "m", world, file)
    world.now += timedelta(hours=1)
    assert run(tmp_path / "m", world, file)[0].landed == Landed(num_known=3)
    file.write_text("time,TxCnt,Fees\n2024-01-05,1,11\n2024-01-07,,30\n")
    (outcome,) = run(tmp_path / "m", world, file)
    assert outcome.landed == Landed(num_restated=2, num_withdrawn=1)
    table = read_landed(tmp_path / "m" / "onchain_1d.parquet", "onchain_1d").fillna(-1)
    assert table[["TxCnt", "Fees"]].to_numpy().tolist() == [[1, 10], [1, 11], [2, 20], [-1, -1], [3, 30], [-1, 30]]
    assert len(read_market_directory(tmp_path / "m", now=world.now).tables["onchain_1d"]) == 6


def test_a_column_that_is_gone_is_told_and_withdrawn_when_the_file_is_whole(tmp_path, world):
    file = tmp_path / "btc.csv"
    file.write_text("time,TxCnt,Fees\n2024-01-05,1,10\n2024-01-06,2,20\n")
    run(tmp_path / "m", world, file)
    file.write_text("time,TxCnt\n2024-01-06,2\n")
    world.now += timedelta(hours=1)
    (outcome,) = run(tmp_path / "m", world, file)
    assert outcome.landed == Landed(num_known=1)
    assert "landed before but not in this file: ['Fees']" in outcome.notes[0]
    (outcome,) = run(tmp_path / "m", world, file, whole=True)
    assert (outcome.landed, outcome.notes) == (Landed(num_restated=1, num_withdrawn=1), ())


def test_chosen_metrics_and_a_lag(tmp_path, world):
    (tmp_path / "all.csv").write_text(ALL)
    run(tmp_path / "m", world, tmp_path / "all.csv", metrics=("AdrActCnt",), lag=timedelta(hours=13))
    table = read_landed(tmp_path / "m" / "onchain_1d.parquet", "onchain_1d")
    assert list(table.columns) == ["entity_key", "event_time", "ingest_time", "AdrActCnt"]
    early = table["event_time"] < datetime(2024, 1, 10, tzinfo=UTC)
    assert (table["ingest_time"] - table["event_time"])[early].tolist() == [timedelta(hours=13)] * 2
    assert (table["ingest_time"] <= world.now).all()


def test_a_cell_that_is_no_number_costs_one_row(tmp_path, world):
    (tmp_path / "btc.csv").write_text("time,TxCnt\n2024-01-05,1\n2024-01-06,two\n2024-01-07,inf\n2024-01-08,4\n")
    assert run(tmp_path / "m", world, tmp_path / "btc.csv")[0].landed.num_new == 4
    market = read_market_directory(tmp_path / "m", now=world.now)
    assert sorted(market.quarantine["reason"]) == ["TxCnt is not a number", "TxCnt is not finite"]
    assert market.tables["onchain_1d"]["TxCnt"].tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("time,TxCnt\n2024-01-05,1\n2024-01", r"1 lines, such as line 3, have not the 2 fields"),
        ('time,TxCnt\n2024-01-05,"1\n', "cut off"),
        ("time,TxCnt,TxCnt\n", r"\['TxCnt'\] more than once"),
        ("TxCnt\n1\n", "no column of days"),
    ],
)
def test_files_that_are_none_are_refused_whole(tmp_path, world, content, said):
    (tmp_path / "btc.csv").write_text(content)
    with pytest.raises(ConnectorError, match=said):
        run(tmp_path / "m", world, tmp_path / "btc.csv")
    assert not (tmp_path / "m").exists()


def test_what_is_asked_wrongly_is_said(tmp_path, world):
    with pytest.raises(ConnectorError, match="does not open"):
        run(tmp_path, world, tmp_path / "no.csv")
    (tmp_path / "btc.csv").write_text("time,TxCnt\n2024-01-05,1\n")
    with pytest.raises(ConnectorError, match=r"no metric \['Txs'\]; it has \['TxCnt'\]"):
        run(tmp_path, world, tmp_path / "btc.csv", metrics=("Txs",))
    with pytest.raises(ConnectorError, match="not the whole"):
        CoinMetrics(where=(), metrics=("TxCnt",), whole=True)


def test_a_document_cut_off_on_its_way_is_asked_for_again(stub, tmp_path, world):
    stub.routes["/btc.csv"] = lambda query: stub.text("time,TxCnt,Fees\n2024-01-05,1,2\n2024-01-06,2,3\n")
    stub.faults[("/btc.csv", 1)] = stub.text("time,TxCnt,Fees\n2024-01-05,1,2\n2024-01", headers={"X": "cut"})
    whole = stub.routes["/btc.csv"]({})
    whole.cut_to = 30
    stub.faults[("/btc.csv", 2)] = whole
    stub.faults[("/btc.csv", 3)] = stub.text("busy", status=429, headers={"Retry-After": "20"})
    assert run(tmp_path, world, f"{stub.url}/btc.csv")[0].landed.num_new == 2
    assert stub.num_asked("/btc.csv") == 4
    assert 20.0 in world.sleeps
    with pytest.raises(ConnectorError, match="answers 404"):
        run(tmp_path, world, f"{stub.url}/eth.csv")
    assert stub.num_asked("/eth.csv") == 1


@pytest.mark.skipif(not VINTAGES.exists(), reason="the real vintages of 2018 are not on this machine")
@pytest.mark.parametrize(("entity", "num_days_withdrawn"), [("BTG", 1031), ("ETH", 0), ("XLM", 0)])
def test_four_real_publications_are_known_as_they_were_published(tmp_path, world, entity, num_days_withdrawn):
    """Values restated, days withdrawn and, of ETH's fees, a whole column."""
    told = pd.read_parquet(VINTAGES)
    told = told[told["entity_key"] == entity]
    num_withdrawn = 0
    publications = {}
    for published in sorted(told["ingest_time"].unique()):
        known = told[told["ingest_time"] <= published].sort_values("ingest_time", kind="stable")
        known = known.drop_duplicates(["event_time", "name"], keep="last")
        wide = known[~known["withdrawn"]].pivot(index="event_time", columns="name", values="value")
        file = tmp_path / f"{entity.lower()}.csv"
        said = wide.set_axis((wide.index - timedelta(days=1)).strftime("%Y-%m-%d").rename("time"))
        said.to_csv(file)
        world.now = published.to_pydatetime()
        (outcome,) = run(tmp_path / "m", world, file, whole=True)
        publications[published] = wide
        num_withdrawn += outcome.landed.num_withdrawn
        assert run(tmp_path / "m", world, file, whole=True)[0].landed.num_written == 0
    table = read_market_directory(tmp_path / "m", now=world.now).tables["onchain_1d"]
    for published, wide in publications.items():
        known = table[table["ingest_time"] <= published].drop_duplicates("event_time", keep="last")
        got = known.set_index("event_time").drop(columns=["entity_key", "ingest_time"])
        got = got.dropna(how="all").dropna(axis=1, how="all").sort_index(axis=1)
        pd.testing.assert_frame_equal(got, wide.sort_index(axis=1), check_names=False, check_freq=False)
    assert len(publications) == 4
    assert num_withdrawn == num_days_withdrawn
