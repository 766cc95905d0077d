"""A writer in a process of its own: ``python -m tests.feature_repo.store.online_writer WHERE SEED NUM``.

It writes NUM rows in random order, one write each, to eight entities, and prints the number of each row once written.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from feature_repo.store.online_embedded import EmbeddedBackend
from feature_repo.store.online_redis import connect_redis
from feature_repo.store.online_values import Backend, OnlineValues, OnlineView

NOW = datetime(2024, 1, 1, tzinfo=UTC)
VIEW = OnlineView(name="view_v1", features=("event", "ingest", "entity"))
ENTITIES = [f"E{at}" for at in range(8)]


def open_values(where: str) -> OnlineValues:
    """The values at a Redis url or in a folder."""
    backend: Backend = connect_redis(where) if "://" in where else EmbeddedBackend(Path(where))
    return OnlineValues(backend, project="two_writers")


def rows_of(seed: int, num_rows: int) -> np.ndarray:
    """(event, ingest, entity) rows, all different between even and odd seeds."""
    rng = np.random.default_rng(seed)
    event, ingest, entity = (
        rng.integers(0, 40, num_rows),
        rng.integers(0, 10**6, num_rows),
        rng.integers(0, 8, num_rows),
    )
    return np.stack([event, 2 * ingest + seed % 2, entity], axis=1)


def write(values: OnlineValues, seed: int, num_rows: int, *, aloud: bool = False) -> None:
    for at, row in enumerate(rows_of(seed, num_rows)):
        event, ingest = row[:1].astype("datetime64[us]"), row[1:2].astype("datetime64[us]")
        one = {"event_N": event, "ingest_N": ingest, "values_NF": row[None].astype(float)}
        values.write_features(VIEW, [ENTITIES[row[2]]], **one, now=NOW)
        if aloud:
            print(at, flush=True)  # noqa: T201


if __name__ == "__main__":
    write(open_values(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), aloud=True)
