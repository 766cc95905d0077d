"""What every connector shares: its shape, its errors, the clock that dates arrivals and the one retry policy.

Errors::

    ConnectorError            what was asked, what came, what to do next
    ├── MalformedError        a payload that is no answer: cut off, no JSON, no table
    └── TransientError        worth asking again: no connection, 408, 425, 429, 5xx
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")
Clock: TypeAlias = Callable[[], datetime]
Sleep: TypeAlias = Callable[[float], None]

TRANSIENT_STATUSES: Final = frozenset({408, 418, 425, 429})  # 418 is what Binance says to a client it has banned


class ConnectorError(RuntimeError):
    """A source that can't be ingested; the message says what was asked, what came and the next step."""


class MalformedError(ConnectorError):
    """A payload that is cut off or of another shape than the source's."""


class TransientError(ConnectorError):
    """A failure that may pass; ``retry_after_s`` is how long the source asks to be left alone."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often to ask again, and how long to wait in between.

    The wait before attempt ``n + 1`` is ``first_wait_s * 2**(n - 1)``, at most ``max_wait_s``, less a random part of
    its half so that many clients do not come back at once. A ``Retry-After`` is a floor; one beyond
    ``max_retry_after_s`` ends the run instead, for a later run resumes anyway.
    """

    num_attempts: int = 6
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0
    max_retry_after_s: float = 600.0

    def wait_s(self, attempt: int, rng: np.random.Generator) -> float:
        """Seconds to wait after the ``attempt``-th failure, counted from 1."""
        ceiling_s = min(self.max_wait_s, self.first_wait_s * 2.0 ** (attempt - 1))
        return ceiling_s * (1.0 - 0.5 * float(rng.random()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """The clock (aware) that dates arrivals, how to sleep (seconds), the generator of jitter and the retry policy."""

    clock: Clock
    sleep: Sleep
    rng: np.random.Generator
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, kw_only=True, slots=True)
class Landed:
    """Counts of rows: written as new, restated or withdrawn, known already, and ticks that contradict a landed id."""

    num_new: int = 0
    num_restated: int = 0
    num_withdrawn: int = 0
    num_known: int = 0
    num_contradicted: int = 0

    def __add__(self, other: Landed) -> Landed:
        return Landed(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def num_written(self) -> int:
        """Rows added to the table."""
        return self.num_new + self.num_restated + self.num_withdrawn


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """A run of missing bars: the ends of its first and last one, and how many they are."""

    first: datetime
    last: datetime
    num_bars: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one ingestion did.

    ``num_unclosed`` rows were left for later because what they describe is not over. ``gaps`` are the bars still
    missing between the first and the last landed one; nothing is filled in for them. ``notes`` are for a person.
    """

    source: str
    table: str
    landed: Landed
    num_unclosed: int = 0
    gaps: tuple[Gap, ...] = ()
    notes: tuple[str, ...] = ()


class Connector(Protocol):
    """Lands what a source has and a market directory lacks."""

    def ingest(self, into: Path, *, runtime: Runtime) -> Iterator[Outcome]:
        """Land the source's rows in the market directory ``into``; an outcome for each series, as it is done."""
        ...


def ask_patiently(ask: Callable[[], T], runtime: Runtime) -> T:
    """What ``ask`` returns, asking again after every :class:`TransientError` as the policy says."""
    policy = runtime.retry
    attempt = 1
    while True:
        try:
            return ask()
        except TransientError as error:
            wait_s = max(policy.wait_s(attempt, runtime.rng), error.retry_after_s or 0.0)
            if wait_s > policy.max_retry_after_s:
                raise ConnectorError(f"{error}; it asks to wait {wait_s:.0f} s: run again after that") from error
            if attempt == policy.num_attempts:
                raise ConnectorError(f"{error}; gave up after {attempt} attempts") from error
        runtime.sleep(wait_s)
        attempt += 1


def retry_after_s(header: str | None, *, now: datetime) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110: whole seconds or a date); ``None`` without one."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - now).total_seconds())


def is_transient(status: int) -> bool:
    """Whether an answer with this HTTP status is worth asking for again."""
    return status in TRANSIENT_STATUSES or status >= 500
