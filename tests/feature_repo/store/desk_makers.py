"""Random tables and questions, the rule by brute force, and a feature store to ask: what tests of the store share."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float64, Int64, String

ZERO = pd.Timestamp("2024-01-01", tz="UTC")
BIG = 2**53 + 1  # a float can't hold it
TICKERS = ["A", "B", "C"]
TTL = timedelta(hours=4)
BARS = ["price", "size", "halted", "tier", "levels"]
QUOTES = ["bid", "depth"]
REFS = [f"bars:{name}" for name in BARS] + [f"quotes:{name}" for name in QUOTES]


def hours(values: Sequence[float | None]) -> pd.Series:
    """Hours since ``ZERO`` as aware times; None is null."""
    return pd.Series(ZERO.as_unit("us") + pd.to_timedelta(pd.Series(values, dtype=float), unit="h"))


def stored(times: pd.Series, kind: str) -> pa.Array:
    """Times as different writers leave them: with or without zone, in different units."""
    unit, _, zone = kind.partition(" ")
    naive = times.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[us]")
    return pa.array(naive, pa.timestamp("us")).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone or None))


TIME_KINDS = ["us UTC", "us", "ns UTC", "ms"]


def write_bars(folder: Path, bars: pd.DataFrame, kind: str = "us UTC") -> None:
    table = pa.table(
        {
            "entity_key": pa.array(bars["entity_key"], pa.string()),
            "event_time": stored(bars["event_time"], kind),
            "ingest_time": stored(bars["ingest_time"], kind),
            "event_again": stored(bars["event_time"], kind),
            "price": pa.array(bars["price"], pa.float64()),
            "size": pa.array(bars["size"].tolist(), pa.int64()),
            "halted": pa.array(bars["halted"].tolist(), pa.bool_()),
            "tier": pa.array(bars["tier"].tolist(), pa.string()),
            "levels": pa.array(bars["levels"].tolist(), pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, folder / "bars.parquet", row_group_size=7)


def write_quotes(folder: Path, quotes: pd.DataFrame, kind: str = "us UTC", parts: int = 1, hive: bool = False) -> None:
    """A directory of parts, flat or hive, whose columns have names of their own."""
    shutil.rmtree(folder / "quotes", ignore_errors=True)
    for part, rows in enumerate(np.array_split(np.arange(len(quotes)), parts)):
        chunk = quotes.iloc[rows]
        table = pa.table(
            {
                "entity_key": pa.array(chunk["entity_key"], pa.string()),
                "venue_id": pa.array(chunk["venue"].tolist(), pa.int32()),
                "made": stored(chunk["event_time"], kind),
                "seen": stored(chunk["ingest_time"], kind),
                "bid_px": pa.array(chunk["bid"], pa.float64()),
                "depth": pa.array(chunk["depth"].tolist(), pa.int64()),
            }
        )
        path = folder / "quotes" / (f"batch={part}/rows.parquet" if hive else f"part-{part}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def random_times(rng: np.random.Generator, num_rows: int) -> dict[str, pd.Series]:
    """Few distinct hours: ties, restatements, late and early rows, and nulls."""
    event = rng.integers(0, 10, num_rows)
    ingest = event + rng.choice([-1, 0, 0, 1, 2, 6], num_rows)
    blank = [rng.random(num_rows) < 0.06 for _ in range(2)]
    return {
        "event_time": hours([None if gone else hour for hour, gone in zip(event, blank[0], strict=True)]),
        "ingest_time": hours([None if gone else hour for hour, gone in zip(ingest, blank[1], strict=True)]),
    }


def sometimes(rng: np.random.Generator, values: Sequence[Any]) -> pd.Series:
    """The values as objects, some of them null."""
    return pd.Series([None if rng.random() < 0.15 else value for value in values], dtype=object)


def random_bars(rng: np.random.Generator) -> pd.DataFrame:
    n = int(rng.integers(0, 25))
    return pd.DataFrame(
        {
            "entity_key": sometimes(rng, rng.choice(TICKERS, n).tolist()),
            **random_times(rng, n),
            "price": sometimes(rng, rng.normal(size=n).tolist()),
            "size": sometimes(rng, [BIG + 2 * at for at in range(n)]),
            "halted": sometimes(rng, (rng.random(n) < 0.5).tolist()),
            "tier": sometimes(rng, [f"tier {at}" for at in range(n)]),
            "levels": sometimes(rng, [[float(at)] * (at % 3) for at in range(n)]),
        }
    )


def random_quotes(rng: np.random.Generator) -> pd.DataFrame:
    n = int(rng.integers(1, 30))
    return pd.DataFrame(
        {
            "entity_key": sometimes(rng, rng.choice(TICKERS, n).tolist()),
            "venue": sometimes(rng, rng.choice([1, 11, 111], n).tolist()),
            **random_times(rng, n),
            "bid": sometimes(rng, rng.normal(size=n).tolist()),
            "depth": sometimes(rng, [BIG + 2 * at for at in range(n)]),
        }
    )


def random_questions(rng: np.random.Generator) -> pd.DataFrame:
    n = int(rng.integers(1, 8))
    questions = pd.DataFrame(
        {
            "note": [f"row {at}" for at in range(n)],
            "venue": pd.array(rng.choice([1, 11, 111, 7], n), dtype="Int64"),
            "event_timestamp": hours(rng.integers(-1, 16, n).tolist()),
            "entity_key": sometimes(rng, rng.choice([*TICKERS, "absent"], n).tolist()),
        }
    )
    return questions.iloc[rng.integers(0, n, n)].reset_index(drop=True)  # rows come twice, in any order


def rule(table: pd.DataFrame, keys: dict[str, Any], as_of: pd.Timestamp, ttl: timedelta | None) -> pd.Series | None:
    """The plain statement of the rule, by brute force."""
    rows = table[(table["event_time"] <= as_of) & (table["ingest_time"] <= as_of)]
    for key, value in keys.items():
        rows = rows[np.array([not pd.isna(value) and own == value for own in rows[key]], bool)]
    if ttl is not None:
        rows = rows[rows["event_time"] >= as_of - ttl]
    return None if rows.empty else rows.sort_values(["event_time", "ingest_time"], kind="stable").iloc[-1]


def expected(
    table: pd.DataFrame, questions: pd.DataFrame, keys: list[str], columns: list[str], ttl: timedelta | None
) -> list[tuple[Any, ...]]:
    answers = [
        rule(table, {key: question[key] for key in keys}, question["event_timestamp"], ttl)
        for _, question in questions.iterrows()
    ]
    return [tuple(None if row is None else row[name] for name in columns) for row in answers]


def got(table: pa.Table, columns: list[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


@dataclass(frozen=True)
class Desk:
    """A feature store and the folder its files are in."""

    feast: FeatureStore
    folder: Path

    def ask(self, entity_df: pd.DataFrame | str | None, refs: Any, **options: Any) -> pa.Table:
        return self.feast.get_historical_features(entity_df, refs, **options).to_arrow()


def file_source(path: str, event: str = "event_time", ingest: str = "ingest_time", **options: Any) -> FileSource:
    return FileSource(path=path, timestamp_field=event, created_timestamp_column=ingest, **options)


def definitions() -> list[Any]:
    ticker = Entity(name="ticker", join_keys=["entity_key"], value_type=ValueType.STRING)
    venue = Entity(name="venue", join_keys=["venue"], value_type=ValueType.INT64)
    bar_fields = [
        Field(name=name, dtype=dtype)
        for name, dtype in zip(BARS, [Float64, Int64, Bool, String, Array(Float64)], strict=True)
    ]
    bars = FeatureView(name="bars", entities=[ticker], schema=bar_fields, source=file_source("bars.parquet"))
    blind = FeatureView(
        name="blind",
        entities=[ticker],
        schema=bar_fields,
        source=file_source("bars.parquet", ingest="event_again", name="blind"),
    )
    undated = FeatureView(
        name="undated",
        entities=[ticker],
        schema=bar_fields,
        source=file_source("bars.parquet", ingest="", name="undated"),
    )
    quotes = FeatureView(
        name="quotes",
        entities=[ticker, venue],
        ttl=TTL,
        schema=[Field(name="bid", dtype=Float64), Field(name="depth", dtype=Int64)],
        source=file_source("quotes", "made", "seen", field_mapping={"bid_px": "bid", "venue_id": "venue"}),
    )
    world = FeatureView(
        name="world", entities=[], schema=[Field(name="price", dtype=Float64)], source=file_source("bars.parquet")
    )

    @on_demand_feature_view(
        sources=[bars, RequestSource(name="order", schema=[Field(name="lots", dtype=Float64)])],
        schema=[Field(name="notional", dtype=Float64)],
        mode="pandas",
    )
    def order_value(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"notional": inputs["price"] * inputs["lots"]})

    pair = FeatureService(
        name="pair",
        features=[
            bars[["size"]].with_name("left").with_join_key_map({"entity_key": "left_key"}),
            bars[["size"]].with_name("right").with_join_key_map({"entity_key": "right_key"}),
        ],
    )
    return [ticker, venue, bars, blind, undated, quotes, world, order_value, pair]


def as_asked(rng: np.random.Generator, questions: pd.DataFrame, folder: Path) -> pd.DataFrame | str:
    """The same questions in one of the forms that users send."""
    times = questions["event_timestamp"]
    match rng.integers(0, 6):
        case 0:
            return questions
        case 1:
            return questions.assign(event_timestamp=times.dt.tz_localize(None).astype("datetime64[ns]"))
        case 2:
            return questions.assign(event_timestamp=times.dt.tz_convert("America/New_York"))
        case 3:
            return questions.assign(event_timestamp=[time.isoformat() for time in times])
        case 4:
            return questions.assign(
                venue=questions["venue"].astype(float), entity_key=questions["entity_key"].astype("category")
            )
    questions.to_parquet(folder / "questions.parquet")
    return "SELECT note, venue, event_timestamp, entity_key FROM 'questions.parquet'"


def simple_bars(rows: list[tuple[str, float, float, int]]) -> pd.DataFrame:
    """(ticker, event hour, ingest hour, size)."""
    key, event, ingest, size = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "entity_key": key,
            "event_time": hours(event),
            "ingest_time": hours(ingest),
            "price": np.array(size, float),
            "size": pd.Series(size, dtype=object),
            "halted": True,
            "tier": "one",
            "levels": [[1.0]] * len(rows),
        }
    )


def ask_at(ticker: str, *at: float) -> pd.DataFrame:
    return pd.DataFrame({"entity_key": ticker, "event_timestamp": hours(at)})
