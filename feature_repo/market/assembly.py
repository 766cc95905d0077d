"""From validated tables to a market with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd

from feature_repo.market.layout import TableKind, table_kind
from feature_repo.market.records import COLUMNS
from feature_repo.market.schema import Market, MarketError, MarketInfo
from feature_repo.market.validation import Validated


def assemble(info: MarketInfo, validated: Mapping[str, Validated], *, ignored: tuple[str, ...] = ()) -> Market:
    """A market of validated tables; one without an accepted row is left out, its rows stay in the quarantine."""
    tables = {
        name: canonical(table_kind(name), table.accepted)
        for name, table in sorted(validated.items())
        if len(table.accepted)
    }
    _require_benchmark(info, tables)
    return Market(
        info=info,
        tables=tables,
        quarantine=_stack([table.quarantine for _, table in sorted(validated.items())]),
        flags=_stack([table.flags for _, table in sorted(validated.items())]),
        fingerprint=fingerprint(tables),
        ignored=ignored,
    )


def known_at(market: Market, as_of: datetime) -> Market:
    """The market as it was known at ``as_of``: without the rows that happened or became known later."""
    if as_of.tzinfo is None:
        raise MarketError(f"the as-of time {as_of} has no time zone; give an aware time, such as one in UTC")
    tables = {}
    for name, table in market.tables.items():
        kind = table_kind(name)
        # What is announced ahead (a membership, a split) is known from its ingest time on.
        times = ["ingest_time"] if kind.announced else [kind.event, "ingest_time"]
        known = table[(table[times] <= as_of).all(axis=1)].reset_index(drop=True)
        if len(known):
            tables[name] = known
    return replace(market, tables=tables, fingerprint=fingerprint(tables))


def canonical(kind: TableKind, accepted: pd.DataFrame) -> pd.DataFrame:
    """Rows by key, event time and ingest time; exact ties, which only ticks have, keep the file's order."""
    names = list(dict.fromkeys([*kind.key, kind.event, "ingest_time"]))
    return accepted.sort_values(names, kind="stable", ignore_index=True)


def fingerprint(tables: Mapping[str, pd.DataFrame]) -> str:
    """SHA-256 over canonical tables, whatever their file format, column order or kind of integer."""
    digest = hashlib.sha256()
    for name in sorted(tables):
        table = tables[name]
        digest.update(json.dumps([name, len(table), sorted(table.columns)]).encode())
        for column in sorted(table.columns):
            digest.update(_content(table[column]))
    return digest.hexdigest()


def _content(column: pd.Series) -> bytes:
    """A column's values as bytes: times in microseconds, numbers in float64 with one NaN and one zero, else texts."""
    if column.dtype.kind == "M":
        return column.to_numpy(dtype="datetime64[us]").astype("<i8").tobytes()
    if column.dtype.kind in "iufb":
        numbers = column.to_numpy(dtype="<f8", na_value=np.nan) + 0.0  # turns -0.0 into 0.0
        return np.where(np.isnan(numbers), np.nan, numbers).tobytes()
    codes, texts = pd.factorize(column)
    return codes.astype("<i8").tobytes() + json.dumps(list(texts)).encode()


def _require_benchmark(info: MarketInfo, tables: Mapping[str, pd.DataFrame]) -> None:
    entities = {entity for name, table in tables.items() if name.startswith("bars_") for entity in table["entity_key"]}
    if info.benchmark is not None and info.benchmark not in entities:
        raise MarketError(
            f"the benchmark {info.benchmark!r} of market {info.name!r} has no bars; {len(entities)} entities have, "
            f"such as {sorted(entities)[:5]}: name one of them as `benchmark:`, or leave it out for their average"
        )


def _stack(parts: list[pd.DataFrame]) -> pd.DataFrame:
    full = [part for part in parts if len(part)]
    if not full:
        return pd.DataFrame({name: pd.Series(dtype="int64" if name == "row" else object) for name in COLUMNS})
    return pd.concat(full, ignore_index=True)
