"""The crypto fear-and-greed index, as alternative.me publishes it (who ask to be named as its source).

A value's ``timestamp`` is when its day begins and when it is published, so it is what is known of the days before:
``event_time`` is the timestamp itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pandas as pd

from feature_repo.connectors.base import ConnectorError, MalformedError, Outcome, Runtime
from feature_repo.connectors.documents import land_document, numbers_or_text, read_document, times_or_text
from feature_repo.connectors.web import Web

URL: Final = "https://api.alternative.me/fng/?limit=0"
NAME: Final = "fear_greed"
TABLE: Final = "sentiment"


@dataclass(frozen=True, kw_only=True, slots=True)
class FearGreed:
    """Lands the index in ``sentiment``, market-wide (``*``), named ``fear_greed``.

    ``where`` is a file or an address; ``lag`` dates a history (see :func:`feature_repo.connectors.landing.land`).
    """

    where: str = URL
    lag: timedelta | None = None

    def ingest(self, into: Path, *, runtime: Runtime) -> Iterator[Outcome]:
        """Land every published value; a day that is no longer there between the others was withdrawn."""
        items, arrived = read_document(self.where, _read_items, web=Web(runtime), runtime=runtime)
        landed, num_unclosed = land_document(into, TABLE, _rows(items), arrived=arrived, extent="span", lag=self.lag)
        yield Outcome(source=f"{NAME} {self.where}", table=TABLE, landed=landed, num_unclosed=num_unclosed)


def _read_items(content: bytes) -> list[dict[str, Any]]:
    try:
        said = json.loads(content)
    except ValueError as error:
        raise MalformedError(f"it is no JSON, or cut off: {error}") from error
    if isinstance(said, dict) and (said.get("metadata") or {}).get("error"):
        raise ConnectorError(f"the index's source answers with an error: {said['metadata']['error']}")
    items = said.get("data") if isinstance(said, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise MalformedError(
            'it has no list of values: the layout is {"data": [{"value": "40", "timestamp": "1551157200"}]}'
        )
    return items


def _rows(items: list[dict[str, Any]]) -> pd.DataFrame:
    said = pd.Series([item.get("timestamp") for item in items], dtype=object)
    seconds = pd.to_numeric(said, errors="coerce")
    return pd.DataFrame(
        {
            "entity_key": "*",
            "event_time": times_or_text(pd.to_datetime(seconds, unit="s", utc=True, errors="coerce"), said),
            "name": NAME,
            "value": numbers_or_text(pd.Series([item.get("value") for item in items], dtype=object)),
        }
    )
