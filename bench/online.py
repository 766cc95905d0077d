"""Online reads: the packed read beside Feast's own SQLite and Redis stores, 50 entities x 30 features a read.

Every contender serves the same rows, alone in a process, and must return the same values. The peers are timed through
``FeatureStore.get_online_features`` up to its response, which a user would still convert; the packed read ends with an
array of numbers and has checked checksums, times and ttl. All Redis contenders share one server over TCP on the
loopback; Feast's are given names as columns and its default, unversioned layout, which is its quickest here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import Report, Row, alone, at_least, at_most, options, peak_mb, progress, publish, ratio
from feature_repo.store.online_embedded import EmbeddedBackend
from feature_repo.store.online_redis import connect_redis
from feature_repo.store.online_values import Backend, OnlineValues, OnlineView

NUM_ENTITIES, NUM_FEATURES = 50, 30
NUM_BLOCKS = 5
ENTITIES = [f"E{at:05d}" for at in range(NUM_ENTITIES)]
FEATURES = tuple(f"f{at:02d}" for at in range(NUM_FEATURES))
TTL = timedelta(days=10)
VIEW = OnlineView(name="view", features=FEATURES, ttl=TTL)
OURS = "feature_repo.store.online.BitemporalOnlineStore"

PACKED_EMBEDDED, PACKED_REDIS = "Perennial embedded, packed read", "Perennial Redis, packed read"
THROUGH_EMBEDDED, THROUGH_REDIS = "Perennial embedded, through Feast", "Perennial Redis, through Feast"
FEAST_SQLITE, FEAST_REDIS = "Feast SQLite", "Feast Redis"

# A contender prepares what is not timed and returns a read, and what turns its result into values (entities, features).
Prepared = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values with some missing, and both times within the ttl."""
    rng = np.random.default_rng(0)
    values_NF = rng.normal(size=(NUM_ENTITIES, NUM_FEATURES))
    values_NF[rng.random(values_NF.shape) < 0.01] = np.nan
    hour_ago = np.datetime64(datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1), "us")
    event_N = np.full(NUM_ENTITIES, hour_ago)
    return values_NF, event_N, event_N + np.timedelta64(1, "s")


def packed(kind: str, folder: Path, port: int) -> Prepared:
    """``OnlineValues.read_features``, without Feast."""
    backend: Backend = EmbeddedBackend(folder) if kind == "embedded" else connect_redis(f"redis://127.0.0.1:{port}")
    values = OnlineValues(backend, project="packed")
    values_NF, event_N, ingest_N = rows()
    values.write_features(
        VIEW, ENTITIES, event_N=event_N, ingest_N=ingest_N, values_NF=values_NF, now=datetime.now(UTC)
    )
    return lambda: values.read_features(VIEW, ENTITIES, now=datetime.now(UTC)), lambda found: found.values_NF


def through_feast(kind: str, folder: Path, port: int) -> Prepared:
    """``FeatureStore.get_online_features`` with an online store of this kind."""
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float64, String

    online: dict[str, dict[str, Any]] = {
        "sqlite": {"type": "sqlite", "path": str(folder / "sqlite.db")},
        "feast redis": {"type": "redis", "connection_string": f"127.0.0.1:{port}"},
        "embedded": {"type": OURS, "backend": "embedded", "path": str(folder)},
        "redis": {"type": OURS, "backend": "redis", "url": f"redis://127.0.0.1:{port}"},
    }
    config = RepoConfig(
        project=f"bench_{kind.replace(' ', '_')}",
        registry=str(folder / "registry.db"),
        provider="local",
        online_store=online[kind],
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    feast = FeatureStore(config=config)
    entity = Entity(name="entity", join_keys=["entity_key"], value_type=ValueType.STRING)
    source = FileSource(path="rows.parquet", timestamp_field="event_time", created_timestamp_column="ingest_time")
    schema = [Field(name="entity_key", dtype=String), *(Field(name=name, dtype=Float64) for name in FEATURES)]
    feast.apply([entity, FeatureView(name="view", entities=[entity], ttl=TTL, schema=schema, source=source)])
    values_NF, event_N, ingest_N = rows()
    frame = pd.DataFrame(values_NF, columns=list(FEATURES)).assign(
        entity_key=ENTITIES,
        event_time=pd.DatetimeIndex(event_N).tz_localize("UTC"),
        ingest_time=pd.DatetimeIndex(ingest_N).tz_localize("UTC"),
    )
    feast.write_to_online_store("view", frame)
    refs = [f"view:{name}" for name in FEATURES]
    return (
        lambda: feast.get_online_features(refs, {"entity_key": ENTITIES}),
        lambda response: response.to_df()[list(FEATURES)].to_numpy(np.float64),
    )


CONTENDERS: dict[str, Callable[[Path, int], Prepared]] = {
    PACKED_EMBEDDED: partial(packed, "embedded"),
    PACKED_REDIS: partial(packed, "redis"),
    THROUGH_EMBEDDED: partial(through_feast, "embedded"),
    THROUGH_REDIS: partial(through_feast, "redis"),
    FEAST_SQLITE: partial(through_feast, "sqlite"),
    FEAST_REDIS: partial(through_feast, "feast redis"),
}


def contend(name: str, num_reads: int, port: int) -> dict[str, Any]:
    """One contender's times over ``num_reads`` reads, after a tenth as many that aren't timed."""
    with tempfile.TemporaryDirectory() as folder:
        read, values_of = CONTENDERS[name](Path(folder), port)
        for _ in range(num_reads // 10):
            read()
        seconds = np.empty(num_reads)
        for at in range(num_reads):
            start = time.perf_counter()
            found = read()
            seconds[at] = time.perf_counter() - start
        peak = peak_mb()
        values_NF = values_of(found)
    p99 = float(np.median([np.percentile(block, 99) for block in np.array_split(seconds, NUM_BLOCKS)]))
    p50, p99_of_all = np.percentile(seconds, [50, 99])
    same_nan = np.ascontiguousarray(np.where(np.isnan(values_NF), np.nan, values_NF))
    checksum = hashlib.sha256(same_nan.tobytes()).hexdigest()[:16]
    return {"p50": p50, "p99": p99, "p99_of_all": p99_of_all, "peak_mb": peak, "checksum": checksum}


@contextmanager
def redis_server() -> Iterator[int]:
    """The port of a server that keeps nothing on disk."""
    server = shutil.which("redis-server")
    if server is None:
        raise SystemExit("this bench needs redis-server; install it (apt-get install redis-server)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        keeping_nothing = ["--save", "", "--appendonly", "no", "--dir", folder]
        command = [server, "--bind", "127.0.0.1", "--port", str(port), *keeping_nothing]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield port
        finally:
            running.terminate()
            running.wait()


def _wait_for(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise SystemExit(f"redis-server did not start on port {port}")


def compare(*, num_reads: int, num_feast_reads: int) -> Report:
    """Run each contender alone, against one Redis."""
    figures: dict[str, dict[str, Any]] = {}
    with redis_server() as port:
        for name in CONTENDERS:
            progress(f"running {name}")
            reads = num_reads if name in (PACKED_EMBEDDED, PACKED_REDIS) else num_feast_reads
            figures[name] = alone("bench.online", "--contender", name, "--reads", str(reads), "--port", str(port)) | {
                "reads": reads
            }
    return judge(figures)


def judge(figures: dict[str, dict[str, Any]]) -> Report:
    """Rows and bars; contenders that disagree are an error, not a slow result."""
    if len({figure["checksum"] for figure in figures.values()}) != 1:
        raise SystemExit(f"the contenders disagree, so their times mean nothing: {figures}")
    p99 = {name: figure["p99"] for name, figure in figures.items()}
    bars = []
    for name in (PACKED_EMBEDDED, PACKED_REDIS):
        bars += [
            at_least(f"{name}: times lower p99 than Feast Redis", ratio(p99[FEAST_REDIS], p99[name]), 20),
            at_most(f"{name}: p99 in ms", 1000 * p99[name], 1),
        ]
    parser = "with hiredis" if find_spec("hiredis") else "without hiredis, whose parser would serve all Redis rows"
    return Report(
        bench="online",
        rows=[_row(name, figure) for name, figure in figures.items()],
        bars=bars,
        facts=[
            f"{NUM_ENTITIES} entities x {NUM_FEATURES} features a read, one view; seconds are the median read",
            f"p99 is the median over {NUM_BLOCKS} blocks of reads of each block's p99, so that one stall counts once",
            f"redis-py {parser}; same values from all",
            f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; above that, p99 is the scheduler's",
        ],
    )


def _row(name: str, figure: dict[str, Any]) -> Row:
    more = {
        "p50 ms": 1000 * figure["p50"],
        "p99 ms": 1000 * figure["p99"],
        "p99 of all": 1000 * figure["p99_of_all"],
        "reads": figure["reads"],
        "checksum": figure["checksum"],
    }
    return Row(name=name, seconds=figure["p50"], peak_mb=figure["peak_mb"], more=more)


def main() -> int:
    """Run the bench, or one contender of it."""
    parser = options(__doc__)
    parser.add_argument("--contender", choices=list(CONTENDERS), help="run one alone on a Redis that is there")
    parser.add_argument("--reads", type=int, default=100)
    parser.add_argument("--port", type=int, default=6379)
    chosen = parser.parse_args()
    if chosen.contender:
        print(json.dumps(contend(chosen.contender, chosen.reads, chosen.port)))
        return 0
    size = (
        {"num_reads": 3000, "num_feast_reads": 200} if chosen.quick else {"num_reads": 30_000, "num_feast_reads": 1500}
    )
    return publish(compare(**size), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
