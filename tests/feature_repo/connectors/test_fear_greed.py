"""The fear-and-greed index in alternative.me's layout."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from feature_repo.connectors.base import ConnectorError, Landed
from feature_repo.connectors.fear_greed import FearGreed
from feature_repo.connectors.landing import read_landed
from feature_repo.market.directory import read_market_directory

DAY_S = 86_400
FIRST_S = int(datetime(2024, 1, 6, tzinfo=UTC).timestamp())


def index(*values: object) -> dict:
    """Newest first, as it is served."""
    items = [
        {"value": value, "value_classification": "Fear", "timestamp": str(FIRST_S + at * DAY_S)}
        for at, value in enumerate(values)
        if value is not None
    ][::-1]
    items[0]["time_until_update"] = "68499"
    return {"name": "Fear and Greed Index", "data": items, "metadata": {"error": None}}


def run(folder, world, where, **more):
    (outcome,) = FearGreed(where=str(where), **more).ingest(folder, runtime=world.runtime(num_attempts=2))
    return outcome


def test_values_are_landed_market_wide(stub, tmp_path, world):
    stub.routes["/fng/"] = lambda query: stub.json(index("40", "41", "55"))
    outcome = run(tmp_path, world, f"{stub.url}/fng/?limit=0")
    assert outcome.landed == Landed(num_new=3)
    assert stub.asked == [("/fng/", {"limit": "0"})]
    market = read_market_directory(tmp_path, now=world.now)
    table = market.tables["sentiment"]
    assert market.quarantine.empty
    assert table[["entity_key", "name"]].drop_duplicates().to_numpy().tolist() == [["*", "fear_greed"]]
    assert table["value"].tolist() == [40.0, 41.0, 55.0]
    assert table["event_time"].tolist() == [datetime(2024, 1, 6 + at, tzinfo=UTC) for at in range(3)]
    assert (table["ingest_time"] == world.now).all()


def test_again_restated_withdrawn_and_not_yet(tmp_path, world):
    file = tmp_path / "fng.json"
    file.write_text(json.dumps(index("40", "41", "55")))
    run(tmp_path / "m", world, file)
    world.now += timedelta(hours=1)
    assert run(tmp_path / "m", world, file).landed == Landed(num_known=3)
    file.write_text(json.dumps(index("40", None, "56", "57", "58", "59")))  # of the 6th to the 11th
    outcome = run(tmp_path / "m", world, file)
    assert (outcome.landed, outcome.num_unclosed) == (
        Landed(num_new=2, num_restated=1, num_withdrawn=1, num_known=1),
        1,
    )
    table = read_market_directory(tmp_path / "m", now=world.now).tables["sentiment"]
    assert table["value"].fillna(-1).tolist() == [40, 41, -1, 55, 56, 57, 58]


def test_a_shorter_answer_withdraws_nothing(tmp_path, world):
    file = tmp_path / "fng.json"
    file.write_text(json.dumps(index("40", "41", "55")))
    run(tmp_path / "m", world, file)
    file.write_text(json.dumps({"data": index("40", "41", "55")["data"][:1]}))
    assert run(tmp_path / "m", world, file).landed == Landed(num_known=1)


def test_a_lag_dates_the_history(tmp_path, world):
    (tmp_path / "fng.json").write_text(json.dumps(index("40", "41")))
    run(tmp_path / "m", world, tmp_path / "fng.json", lag=timedelta(hours=1))
    table = read_landed(tmp_path / "m" / "sentiment.parquet", "sentiment")
    assert (table["ingest_time"] - table["event_time"]).tolist() == [timedelta(hours=1)] * 2


def test_bad_items_are_landed_for_the_quarantine_to_count(tmp_path, world):
    said = index(40, "n.a.", "55", "56")
    said["data"][0]["timestamp"] = "soon"
    (tmp_path / "fng.json").write_text(json.dumps(said))
    assert run(tmp_path / "m", world, tmp_path / "fng.json").landed.num_new == 4
    assert run(tmp_path / "m", world, tmp_path / "fng.json").landed == Landed(num_known=4)
    market = read_market_directory(tmp_path / "m", now=world.now)
    assert sorted(market.quarantine["reason"]) == ["event_time is not an ISO 8601 time", "value is not a number"]
    assert "soon" in "".join(market.quarantine["record"])
    assert market.tables["sentiment"]["value"].tolist() == [40.0, 55.0]


def test_an_answer_cut_off_is_asked_for_again(stub, tmp_path, world):
    stub.routes["/fng/"] = lambda query: stub.json(index("40", "41"))
    body = json.dumps(index("40", "41"))
    stub.faults[("/fng/", 1)] = stub.text(body[:70])
    assert run(tmp_path, world, f"{stub.url}/fng/").landed.num_new == 2
    assert stub.num_asked("/fng/") == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"data": [', "no JSON, or cut off"),
        ("[]", "no list of values"),
        ('{"data": null, "metadata": {"error": "limit is no number"}}', "error: limit is no number"),
    ],
)
def test_other_documents_are_refused(tmp_path, world, content, said):
    (tmp_path / "fng.json").write_text(content)
    with pytest.raises(ConnectorError, match=said):
        run(tmp_path / "m", world, tmp_path / "fng.json")
