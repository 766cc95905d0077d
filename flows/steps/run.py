"""What every step of one cycle shares."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

import psycopg

from feature_repo.database import connect, migrate
from feature_repo.market.schema import Market
from flows.cycle import CycleConfig
from flows.postgres import Databases
from flows.settings import Settings
from training.artifacts import code_fingerprint, code_version
from training.models.spec import Device

Item = TypeVar("Item")
Log: TypeAlias = "logging.Logger | logging.LoggerAdapter[Any]"

DECIDING: Final = ("feature_repo", "training")
"""The packages whose source decides what a fit gives."""
_NIGHTLY: Final = "nightly"


class RunError(RuntimeError):
    """A run that can't go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One cycle: its question, its names, its clock and its places.

    ``code`` is the fingerprint of the source that decides results, ``git_sha`` its commit, ``device`` what networks are
    trained on. The folders: ``features`` of the market's feature tables, ``panels``, ``fits`` of finished fits,
    ``signals`` of the market's signal store, ``reports`` of this cycle.
    """

    config: CycleConfig
    cycle_id: str
    market: str
    now: datetime
    code: str
    git_sha: str
    features: Path
    panels: Path
    fits: Path
    signals: Path
    reports: Path
    device: Device = "auto"


def name_run(settings: Settings, config: CycleConfig, market: Market, now: datetime) -> Run:
    """The run of this question on this market, named by its newest bar and all that decides its outcome."""
    code = code_fingerprint(DECIDING)
    name = market.info.name
    last_bar = f"{market.bars(config.interval)['event_time'].max():%Y%m%d}"
    cycle_id = config.cycle_id(last_bar=last_bar, market_fingerprint=market.fingerprint, code=code)
    return Run(
        config=config,
        cycle_id=cycle_id,
        market=name,
        now=now,
        code=code,
        git_sha=code_version(Path(__file__).parent),
        features=settings.features / name / config.interval,
        panels=settings.panels,
        fits=settings.cycles / "fits",
        signals=settings.signals / name,
        reports=settings.reports / name / cycle_id,
        device=settings.device,
    )


def run_apart(name: str, config: CycleConfig, market: Market, now: datetime, folder: Path) -> Run:
    """A run in a folder of its own, so that the market's tables, fits and signals stay as they are."""
    return Run(
        config=config,
        cycle_id=name,
        market=market.info.name,
        now=now,
        code=name,
        git_sha=name,
        features=folder / "features",
        panels=folder / "panels",
        fits=folder / "fits",
        signals=folder / "signals",
        reports=folder,
    )


def remember(settings: Settings, run: Run) -> None:
    """Keep how a cycle was asked for, so that it can be run again every night; one as of a past day is not."""
    config = run.config
    if config.as_of is not None:
        return
    catalogue = str(Path(config.catalogue).absolute()) if config.catalogue else ""
    asked = {**asdict(config), "market": place(config.market), "catalogue": catalogue}
    folder = settings.cycles / _NIGHTLY
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}"
    partial.write_text(json.dumps(asked, indent=1), encoding="utf-8")
    partial.replace(folder / f"{run.market}-{config.interval}-{config.horizon}.json")


def remembered(settings: Settings) -> dict[str, CycleConfig]:
    """The newest cycle of each market, interval and horizon, as it was asked for, by a name that says all three."""
    files = sorted((settings.cycles / _NIGHTLY).glob("*.json"))
    return {file.stem: CycleConfig(**json.loads(file.read_text(encoding="utf-8"))) for file in files}


def place(market: str) -> str:
    """A market's folder so that it is found from anywhere; a name as it is."""
    folder = Path(market).expanduser()
    return str(folder.absolute()) if folder.is_dir() else market


def one_by_one(
    items: Mapping[str, Item],
    work: Callable[[Item], int],
    log: Log,
    *,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Do ``work`` for each of the named items and add up what it gives; one that fails holds up no other.

    It is told of in the log, and in the end a ``RunError`` names those that did, with those that had ``failed`` before.
    """
    total, failures = 0, dict(failed)
    for name, item in items.items():
        try:
            total += work(item)
        except Exception as error:  # whatever it was, the next one is not to blame
            log.exception("%s failed", name)
            failures[name] = str(error) or type(error).__name__
    if failures:
        told = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise RunError(f"{len(failures)} of {len(items) + len(failed)} failed; {told}")
    return total


@contextmanager
def alone(databases: Databases, market: str) -> Iterator[psycopg.Connection]:
    """The platform's tables, brought up to date, and the right to be a market's only run.

    The lock ends with the connection, however the process ends.
    """
    for package in ("feature_repo", "training", "monitoring"):
        migrate(databases.dsn("perennial"), package)
    with connect(databases.dsn("perennial")) as connection:
        connection.autocommit = True
        row = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [f"cycle {market}"]).fetchone()
        if row is None or not row[0]:
            raise RunError(
                f"another run on market {market!r} is running; wait for it, or stop it, then run this one again"
            )
        yield connection
