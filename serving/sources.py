"""Where the answers come from: the model registry, read anew every few seconds, and the store of live signals."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeAlias

import pandas as pd

from training.rating.promotion import Assignment, assignments
from training.signals import SignalStore
from training.tracking import connect, markets

if TYPE_CHECKING:
    from mlflow import MlflowClient

Clock: TypeAlias = Callable[[], datetime]
Registered: TypeAlias = Mapping[str, Mapping[str, Assignment]]

HOME: Final = "PERENNIAL_HOME"
MLFLOW_URI: Final = "PERENNIAL_MLFLOW_URI"
MAX_AGE_DAYS: Final = "PERENNIAL_SIGNAL_MAX_AGE_DAYS"
_REASON_CHARS: Final = 300


class ServingError(RuntimeError):
    """Base of what serving raises; the message says what, got, allowed and the next step."""


class ConfigError(ServingError):
    """The process was started without what it needs."""


class RegistryError(ServingError):
    """The registry can't be read."""


class NoSignalsError(ServingError):
    """A model has no signals that can be served."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """What the signal API reads, and how long it trusts it.

    ``home`` is Perennial's data folder. A signal is stale ``max_age`` after its bar's end: the default bridges a
    long weekend of daily bars. The registry is read again when the last reading is ``cache`` old.
    """

    home: Path
    mlflow_uri: str
    max_age: timedelta = timedelta(days=4)
    cache: timedelta = timedelta(seconds=5)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ServingConfig:
        """The configuration of this process, from ``PERENNIAL_...`` variables."""
        environ = os.environ if environ is None else environ
        missing = [name for name in (HOME, MLFLOW_URI) if not environ.get(name)]
        if missing:
            raise ConfigError(
                f"the signal API needs {' and '.join(missing)} in its environment: start it with 'perennial up', or "
                f"set {HOME} to the data folder and {MLFLOW_URI} to MLflow's tracking URI"
            )
        return cls(
            home=Path(environ[HOME]), mlflow_uri=environ[MLFLOW_URI], max_age=_max_age(environ.get(MAX_AGE_DAYS, "4"))
        )


def _max_age(days: str) -> timedelta:
    try:
        age = timedelta(days=float(days))
    except (ValueError, OverflowError):
        age = timedelta(0)
    if age <= timedelta(0):
        raise ConfigError(f"{MAX_AGE_DAYS} is {days!r}; it has to be a positive number of days, such as 4")
    return age


class Registry:
    """The registered variants by market; ``read`` asks MLflow when what it knows is older than ``keep``.

    It never answers with an old reading when a new one fails: that raises ``RegistryError``.
    """

    def __init__(self, uri: str, *, clock: Clock, keep: timedelta) -> None:
        self._uri, self._clock, self._keep = uri, clock, keep
        self._lock = Lock()  # requests run in threads: one of them reads, the others wait for its answer
        self._client: MlflowClient | None = None
        self._known: tuple[datetime, Registered] | None = None

    def read(self) -> Registered:
        """Every registered variant's assignment, by market and variant."""
        with self._lock:
            now = self._clock()
            if self._known and timedelta(0) <= now - self._known[0] < self._keep:
                return self._known[1]
            self._known = None
            try:
                self._client = self._client or _reach(self._uri)
                registered = {market: assignments(self._client, market) for market in markets(self._client)}
            except Exception as error:  # whatever fails, nothing is served
                raise RegistryError(_first_line(error)) from error
            self._known = now, registered
            return registered


def _reach(uri: str) -> MlflowClient:
    """A client of a store that answers; MLflow itself would retry for a minute before it says that it doesn't."""
    from sqlalchemy import NullPool, create_engine

    if "://" in uri and not uri.startswith(("http:", "https:")):
        create_engine(uri, poolclass=NullPool).connect().close()
    return connect(uri)


def _first_line(error: Exception) -> str:
    """What went wrong, without the SQL that libraries append."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_REASON_CHARS]


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSignals:
    """The live signals of all markets, at ``<root>/<market>/<variant>/<training key>-live.parquet``."""

    root: Path

    def newest(self, market: str, held: Assignment, *, as_of: datetime) -> pd.DataFrame:
        """The newest signal of each entity by the version that holds the variant's stage, known at ``as_of``.

        One row an entity, in the columns of ``training.signals.SCHEMA``. Raises ``NoSignalsError`` where there is none:
        another version's signals, or out-of-sample ones, are never taken instead.
        """
        frame = self._read(market, held)
        known = frame[(frame["event_time"] <= as_of) & (frame["made_at"] <= as_of)]
        if known.empty:
            raise NoSignalsError(f"its {len(frame)} live signals hold none known at {as_of.isoformat()}; run a cycle")
        ordered = known.sort_values(["entity_key", "event_time", "made_at"])
        return ordered.drop_duplicates("entity_key", keep="last").reset_index(drop=True)

    def _read(self, market: str, held: Assignment) -> pd.DataFrame:
        if not held.training_key:
            raise NoSignalsError(
                f"version {held.version} has no tag 'training_key', which names its signals; register it by a cycle"
            )
        store = SignalStore(root=self.root / market)
        try:
            return store.read(held.variant, model_versions=[held.training_key], kind="live")
        except FileNotFoundError as error:
            raise NoSignalsError(f"no live signals by {held.training_key} are stored; run a cycle") from error
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise NoSignalsError(
                f"its live signals by {held.training_key} can't be read ({_first_line(error)}); run a cycle"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """All that the routes ask: the registry, the live signals, the time."""

    registry: Registry
    signals: LiveSignals
    clock: Clock
    max_age: timedelta


def open_sources(config: ServingConfig, clock: Clock) -> Sources:
    """The sources of this configuration; nothing is read yet."""
    return Sources(
        registry=Registry(config.mlflow_uri, clock=clock, keep=config.cache),
        signals=LiveSignals(root=config.home / "signals"),
        clock=clock,
        max_age=config.max_age,
    )


def utc_now() -> datetime:
    """The real clock."""
    return datetime.now(UTC)
