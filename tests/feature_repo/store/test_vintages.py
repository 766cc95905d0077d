"""Real restatements: whatever is asked as of a time is what four real publications had said by then.

The data are daily blockchain metrics as they were published in June and July 2018: values restated, and withdrawn. A
publication is turned into complete rows, one an entity and day; the raw file, read metric by metric, is the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.repo_config import RepoConfig
from feast.types import Float64

from feature_repo.aggregates.attach import pipeline_bars
from feature_repo.aggregates.levels import micros
from feature_repo.market.assembly import assemble
from feature_repo.market.schema import Market, MarketInfo
from feature_repo.market.validation import validate
from feature_repo.store.join import NO_ROW, find_answers

FOLDER = Path(__file__).resolve().parents[3] / "../shared/data/onchain_vintages_2018"
SAMPLE = ["BTG", "ETH", "XLM"]  # all three have withdrawals and restatements
KEYS = ["entity_key", "event_time"]
TICK = pd.Timedelta("1us")
COLUMNS = {
    "activeAddresses": "AdrActCnt",
    "txCount": "TxCnt",
    "marketcap(USD)": "CapMrktCurUSD",
    "adjustedTxVolume(USD)": "TxTfrValAdjUSD",
    "price(USD)": "PriceUSD",
    "fees": "FeeTotNtv",
    "generatedCoins": "IssTotNtv",
}
Judge = Callable[[pd.DataFrame, pd.Timestamp], pd.DataFrame]


def read_raw() -> pd.DataFrame:
    path = FOLDER / "onchain_vintages.parquet"
    if not path.exists():
        pytest.skip(f"the real vintages are not here: no {path}")
    return pd.read_parquet(path)


@pytest.fixture(scope="module")
def raw() -> pd.DataFrame:
    everything = read_raw()
    return everything[everything["entity_key"].isin(SAMPLE)].reset_index(drop=True)


def moments(raw: pd.DataFrame) -> list[pd.Timestamp]:
    """Before, at, just before and between the publications, and after them."""
    published = sorted(raw["ingest_time"].unique())
    around = [moment for time in published for moment in (time - TICK, time, time + pd.Timedelta(days=2))]
    return [pd.Timestamp("2017-01-01", tz="UTC"), *around, pd.Timestamp("2020-01-01", tz="UTC")]


def published(raw: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """The judge: each metric of each (entity, day) as last published by ``moment``, null where withdrawn."""
    said = raw[(raw["ingest_time"] <= moment) & (raw["event_time"] <= moment)].sort_values("ingest_time", kind="stable")
    last = said.drop_duplicates([*KEYS, "name"], keep="last")
    table = last.set_index([*KEYS, "name"])["value"].unstack("name")
    return table.reindex(columns=sorted(raw["name"].unique()))


def published_in_the_end(raw: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """A broken judge: by event time only."""
    return published(raw.assign(ingest_time=raw["event_time"]), moment)


def never_withdrawn(raw: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """A broken judge: a withdrawal is passed over."""
    return published(raw[~raw["withdrawn"]], moment)


def complete_rows(raw: pd.DataFrame) -> pd.DataFrame:
    """A row for each (entity, day) and publication that changed it, with every metric as known then."""
    withdrawn = np.inf  # so that carrying values on does not pass over a null
    said = raw.assign(value=raw["value"].fillna(withdrawn)).set_index([*KEYS, "ingest_time", "name"])["value"]
    carried = said.unstack("name").sort_index().groupby(level=KEYS).ffill()
    return carried.replace(withdrawn, np.nan).reset_index()


def answers_by_day(rows: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """The store's rule, an (entity, day) as its entity, asked of all of them at ``moment``."""
    code, days = pd.factorize(pd.MultiIndex.from_frame(rows[KEYS]))
    found = find_answers(code, micros(rows["event_time"]), micros(rows["ingest_time"]), len(days))
    row = found.at(micros(pd.Series([moment]))[0])
    return rows.iloc[row[row != NO_ROW]].set_index(KEYS).drop(columns="ingest_time").sort_index()


def differences(raw: pd.DataFrame, judge: Judge) -> tuple[int, int]:
    """Answers that differ from the judge's, and all that were asked."""
    rows, days = complete_rows(raw), raw[KEYS].drop_duplicates()
    index = pd.MultiIndex.from_frame(days).sort_values()
    wrong = asked = 0
    for moment in moments(raw):
        got = answers_by_day(rows, moment).reindex(index)
        want = judge(raw, moment).reindex(index)
        same = (got == want) | (got.isna() & want.isna())
        wrong, asked = wrong + int((~same).to_numpy().sum()), asked + same.size
    return wrong, asked


def test_every_as_of_query_returns_what_was_published_then(raw: pd.DataFrame) -> None:
    wrong, asked = differences(raw, published)
    assert wrong == 0
    assert asked > 500_000
    assert raw["withdrawn"].sum() > 4_000


@pytest.mark.parametrize("broken", [published_in_the_end, never_withdrawn])
def test_a_broken_reading_is_told_apart(raw: pd.DataFrame, broken: Judge) -> None:
    assert differences(raw, broken)[0] > 4_000


def store_of(rows: pd.DataFrame, folder: Path) -> tuple[FeatureStore, list[str]]:
    """A feature store with the rows as one view by entity and day, and as one by entity."""
    names = {name: f"metric_{at}" for at, name in enumerate(rows.columns.drop([*KEYS, "ingest_time"]))}
    table = rows.rename(columns=names)
    table.assign(day=table["event_time"].dt.strftime("%Y-%m-%d")).to_parquet(folder / "rows.parquet", index=False)
    config = RepoConfig(
        project="vintages",
        registry=str(folder / "registry.db"),
        provider="local",
        offline_store={"type": "feature_repo.store.offline.BitemporalOfflineStore"},
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    asset = Entity(name="asset", join_keys=["entity_key"], value_type=ValueType.STRING)
    day = Entity(name="day", join_keys=["day"], value_type=ValueType.STRING)
    views = [
        FeatureView(
            name=name,
            entities=entities,
            schema=[Field(name=metric, dtype=Float64) for metric in names.values()],
            source=FileSource(
                name=name,
                path="rows.parquet",
                timestamp_field="event_time",
                created_timestamp_column="ingest_time",
            ),
        )
        for name, entities in (("of_day", [asset, day]), ("newest", [asset]))
    ]
    feast = FeatureStore(config=config)
    feast.apply([asset, day, *views])
    return feast, list(names.values())


def asked_of(store: FeatureStore, view: str, metrics: list[str], entity_df: pd.DataFrame) -> np.ndarray:
    times = pd.to_datetime(entity_df["event_timestamp"], utc=True).dt.as_unit("us")
    job = store.get_historical_features(
        entity_df.assign(event_timestamp=times), [f"{view}:{metric}" for metric in metrics]
    )
    return job.to_df()[metrics].to_numpy(float)


def test_feast_returns_what_was_published_then(raw: pd.DataFrame, tmp_path: Path) -> None:
    """Of every entity and day; and without a day, of the newest day that anything was published of."""
    rows = complete_rows(raw)
    store, metrics = store_of(rows, tmp_path)
    days = rows[KEYS].drop_duplicates().sort_values(KEYS)
    asked = pd.concat([days.assign(event_timestamp=moment) for moment in moments(raw)], ignore_index=True)
    asked["day"] = asked["event_time"].dt.strftime("%Y-%m-%d")
    got = asked_of(store, "of_day", metrics, asked.drop(columns="event_time"))
    index = pd.MultiIndex.from_frame(days)
    want = [published(raw, moment).reindex(index).to_numpy() for moment in moments(raw)]
    np.testing.assert_array_equal(got, np.concatenate(want))

    pairs = [(entity, moment) for entity in SAMPLE for moment in moments(raw)]
    got = asked_of(store, "newest", metrics, pd.DataFrame(pairs, columns=["entity_key", "event_timestamp"]))
    for answer, (entity, moment) in zip(got, pairs, strict=True):
        table = published(raw, moment)
        of_entity = table[table.index.get_level_values("entity_key") == entity]
        newest = of_entity.iloc[-1].to_numpy() if len(of_entity) else np.full(len(metrics), np.nan)
        np.testing.assert_array_equal(answer, newest, err_msg=f"{entity} at {moment}")


def market_of(raw: pd.DataFrame) -> Market:
    """A market of the publications, in Coin Metrics' columns, and of bars of those days."""
    rows = complete_rows(raw).rename(columns=COLUMNS)
    days = raw.loc[raw["name"] == "price(USD)"].drop_duplicates(KEYS)
    bars = days[[*KEYS, "value"]].rename(columns={"value": "close"}).dropna().sort_values(KEYS)
    now = pd.Timestamp("2020-01-01", tz="UTC").to_pydatetime()
    tables = {
        "bars_1d": validate("bars_1d", bars, now=now, lag=pd.Timedelta(minutes=5).to_pytimedelta()),
        "onchain_1d": validate("onchain_1d", rows[[*KEYS, "ingest_time", *COLUMNS.values()]], now=now, lag=None),
    }
    market = assemble(MarketInfo(name="vintages"), tables)
    assert market.quarantine.empty
    return market


def of_the_day_before(raw: pd.DataFrame, bars: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """What was published by ``moment`` of the newest day that is one to four days before each bar."""
    table = published(raw, moment)
    places = pd.DataFrame(index=bars.index, columns=["event_time"], dtype="datetime64[us, UTC]")
    for age in (4, 3, 2, 1):
        day = bars["event_time"] - pd.Timedelta(days=age)
        there = pd.MultiIndex.from_arrays([bars["entity_key"], day]).isin(table.index)
        places["event_time"] = places["event_time"].where(~there, day)
    index = pd.MultiIndex.from_arrays([bars["entity_key"], places["event_time"]])
    return table.reindex(index).reset_index(drop=True)


def test_bars_have_what_was_published_of_the_day_before(raw: pd.DataFrame) -> None:
    attached = pipeline_bars(market_of(raw), "1d")
    for moment in moments(raw):
        visible = attached[(attached["event_time"] <= moment) & (attached["ingest_time"] <= moment)]
        visible = visible.sort_values("ingest_time", kind="stable").drop_duplicates(KEYS, keep="last")
        visible = visible.sort_values(KEYS).reset_index(drop=True)
        table = of_the_day_before(raw, visible, moment)
        cap, transfers, price = (table[name] for name in ("marketcap(USD)", "adjustedTxVolume(USD)", "price(USD)"))
        want = {
            "onchain_active_addresses": table["activeAddresses"],
            "onchain_transactions": table["txCount"],
            "onchain_market_cap_usd": cap,
            "onchain_transfer_value_usd": transfers,
            "onchain_nvt": cap / transfers.where(transfers != 0),
            "onchain_fees_usd": table["fees"] * price,
            "onchain_issuance_usd": table["generatedCoins"] * price,
        }
        for name, values in want.items():
            np.testing.assert_array_equal(visible[name].to_numpy(), values.to_numpy(), err_msg=f"{name} at {moment}")
    last = attached.duplicated(KEYS, keep="last")
    assert last.sum() > 2_000, "restated bars there must be"
