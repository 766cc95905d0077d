"""The audit log: every change of stage as a row whose hash covers the row and the hash before it.

The chain shows an edited row. A tail that was cut off leaves a chain that is whole, so the log's head is kept outside
the database too, in a file of Perennial's home. It holds the number of rows and the last one's hash, and is written
before a row (then it announces that row's hash) and after it. So at any moment, whatever was killed, either

- the log's last row is the head, with or without an announced row that never came, or
- the log has just one row more, and it is the announced one.

Anything else is refused: fewer rows were cut, other rows were not written here. Whoever may write the file and the
database both can forge both. A home and a database belong together: two homes would each refuse the other's rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.types.json import Json

GENESIS: Final = "0" * 64
NOTHING: Final = "*"
"""The market and the variant of a row that is about the log itself."""
_LOCK: Final = "audit log"
_COLUMNS: Final = (
    "seq, time, market, variant, version, from_stage, to_stage, allocation, actor, reason, evidence, change, "
    "previous, hash"
)
_INSERT: Final = f"INSERT INTO audit_log ({_COLUMNS}) VALUES ({', '.join(['%s'] * 14)})"  # noqa: S608
_SELECT: Final = f"SELECT {_COLUMNS} FROM audit_log"  # noqa: S608


class AuditError(RuntimeError):
    """The log can't be written or trusted as it is; the message says why and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What happened: who moved which variant from where to where, when and why.

    ``change`` identifies the change: of one market and variant the log has it once, however often it is appended. In
    ``evidence`` a number that isn't finite becomes None, for which JSON has a word.
    """

    time: datetime
    market: str
    variant: str
    version: int
    from_: str
    to: str
    allocation: float
    actor: str
    reason: str
    change: str
    evidence: Mapping[str, str | float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise AuditError(f"the time of a change must know its zone, got {self.time}: datetime.now(UTC)")
        for what in ("actor", "reason"):
            _check_text(what, getattr(self, what))


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditRow:
    """An entry in its place: ``seq`` counts from 1 without a gap, ``previous`` is the hash of the row before."""

    seq: int
    entry: Entry
    previous: str
    hash: str

    def computed(self) -> str:
        """The hash that this content has."""
        content = {**asdict(self.entry), "time": self.entry.time.astimezone(UTC).isoformat()}
        return hashlib.sha256(_canonical({**content, "seq": self.seq, "previous": self.previous}).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """Whether the log is whole; if not, ``first_bad`` is the first row that is wrong or gone, and ``why`` says how."""

    num_rows: int
    first_bad: int | None
    why: str

    @property
    def ok(self) -> bool:
        """Whether every row and the head agree."""
        return self.first_bad is None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """How many rows there are and the last one's hash; ``announced`` is the hash of the row being written, if any."""

    count: int = 0
    hash: str = GENESIS
    announced: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditLog:
    """The log in a database that has the package's migrations, and the file that keeps its head.

    The connection commits by itself; it belongs to one thread, since its locks do.
    """

    connection: psycopg.Connection
    head_file: Path

    def __post_init__(self) -> None:
        if not self.connection.autocommit:
            raise AuditError("the audit log's connection must commit by itself: connect(dsn, autocommit=True)")

    # ---- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Hold a lock of this name, which one connection has at a time; it ends with the process, however that ends."""
        self.connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [what])
        try:
            yield
        finally:
            if not self.connection.closed:
                self.connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [what])

    def check(self) -> None:
        """Raise an ``AuditError`` unless a row can be appended: the log must end as its head says."""
        with self.alone(_LOCK):
            self._end()

    def append(self, entry: Entry) -> AuditRow | None:
        """Append a row and make it durable, the head too; None where its change is in the log already."""
        with self.alone(_LOCK):
            last = self._end()
            if self._has(entry):
                return None
            return self._write(entry, last)

    def accept(self, *, by: str, reason: str, now: datetime) -> AuditRow:
        """Go on from the end of the log as it is, whatever the head says; a row of the log tells who accepted it.

        For a database restored from a backup or a lost home. An edited row stays one that ``verify`` finds.
        """
        with self.alone(_LOCK):
            last, known = self._last_row(), self._known()
            return self._write(
                Entry(
                    time=now,
                    market=NOTHING,
                    variant=NOTHING,
                    version=0,
                    from_="None",
                    to="None",
                    allocation=0.0,
                    actor=by,
                    reason=reason,
                    change=f"accept {last.hash if last else GENESIS}",
                    evidence={"head": known, "num_rows": last.seq if last else 0},
                ),
                last,
            )

    def _write(self, entry: Entry, last: AuditRow | None) -> AuditRow:
        row = _follow(last, entry)
        before = _Head(count=last.seq, hash=last.hash) if last else _Head()
        self._write_head(replace(before, announced=row.hash))
        self._insert(row)
        self._write_head(_Head(count=row.seq, hash=row.hash))
        return row

    def _insert(self, row: AuditRow) -> None:
        each = row.entry
        self.connection.execute(
            _INSERT,
            [
                row.seq,
                each.time,
                each.market,
                each.variant,
                each.version,
                each.from_,
                each.to,
                each.allocation,
                each.actor,
                each.reason,
                Json(each.evidence, dumps=_canonical),
                each.change,
                row.previous,
                row.hash,
            ],
        )

    def _end(self) -> AuditRow | None:
        """The last row, after checking that it is what the head says; an announced one becomes the head."""
        last, head = self._last_row(), self._head()
        fault = _row_fault(last, last.seq, last.previous) if last else ""
        fault = fault or _end_fault(head, last)
        if fault:
            raise AuditError(
                f"no stage is changed while the audit log can't be trusted: {fault}. See `perennial audit verify`; "
                "after finding out why, `perennial audit accept --by NAME --reason TEXT` goes on from here"
            )
        if last and last.seq > head.count:
            self._write_head(_Head(count=last.seq, hash=last.hash))
        return last

    # ---- the head ----------------------------------------------------------------------------------------------------

    def _head(self) -> _Head:
        try:
            return _Head(**json.loads(self.head_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return _Head()
        except (TypeError, ValueError) as error:
            raise AuditError(f"the audit log's head {self.head_file} can't be read ({error})") from error

    def _known(self) -> str:
        """What the head file holds, for the record."""
        try:
            return self.head_file.read_text(encoding="utf-8", errors="replace").replace("\0", "")
        except FileNotFoundError:
            return "no file"

    def _write_head(self, head: _Head) -> None:
        self.head_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.head_file.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(_canonical(asdict(head)))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.head_file)
        folder = os.open(self.head_file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def rows(self, market: str | None = None, variant: str | None = None) -> list[AuditRow]:
        """The rows, oldest first, of all markets and variants unless named."""
        asked = {"market": market, "variant": variant}
        where = f"{_SELECT} WHERE market = coalesce(%(market)s, market) AND variant = coalesce(%(variant)s, variant)"
        return [_read(row) for row in self.connection.execute(f"{where} ORDER BY seq", asked)]

    def last(self, market: str, variant: str) -> AuditRow | None:
        """A variant's newest row."""
        where = f"{_SELECT} WHERE market = %s AND variant = %s ORDER BY seq DESC LIMIT 1"
        found = self.connection.execute(where, [market, variant]).fetchone()
        return _read(found) if found else None

    def _last_row(self) -> AuditRow | None:
        found = self.connection.execute(f"{_SELECT} ORDER BY seq DESC LIMIT 1").fetchone()
        return _read(found) if found else None

    def _has(self, entry: Entry) -> bool:
        where = "SELECT 1 FROM audit_log WHERE market = %s AND variant = %s AND change = %s"
        return self.connection.execute(where, [entry.market, entry.variant, entry.change]).fetchone() is not None

    def verify(self) -> AuditReport:
        """Check every row, the chain and the head; nobody appends meanwhile."""
        with self.alone(_LOCK), self.connection.transaction(), self.connection.cursor("audit_rows") as cursor:
            last: AuditRow | None = None
            for found in cursor.execute(f"{_SELECT} ORDER BY seq"):
                row = _read(found)
                seq, previous = (last.seq + 1, last.hash) if last else (1, GENESIS)
                if fault := _row_fault(row, seq, previous):
                    return AuditReport(num_rows=seq - 1, first_bad=seq, why=fault)
                last = row
        return self._end_report(last)

    def _end_report(self, last: AuditRow | None) -> AuditReport:
        num_rows = last.seq if last else 0
        try:
            head = self._head()
        except AuditError as error:
            return AuditReport(num_rows=num_rows, first_bad=num_rows + 1, why=f"{error}")
        fault = _end_fault(head, last)
        first_bad = (min(num_rows, head.count) + 1 if num_rows != head.count else num_rows) if fault else None
        return AuditReport(num_rows=num_rows, first_bad=first_bad, why=fault or "every row and the head agree")


# ---- the pure part ---------------------------------------------------------------------------------------------------


def _follow(last: AuditRow | None, entry: Entry) -> AuditRow:
    evidence = {name: _finite(value) for name, value in entry.evidence.items()}
    stored = replace(entry, allocation=float(entry.allocation), evidence=evidence)  # as it will be read back
    seq, previous = (last.seq + 1, last.hash) if last else (1, GENESIS)
    row = AuditRow(seq=seq, entry=stored, previous=previous, hash="")
    return replace(row, hash=row.computed())


def _finite(value: str | float | None) -> str | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row_fault(row: AuditRow, seq: int, previous: str) -> str:
    """What is wrong with the row that should have this place and follow this hash; empty where nothing is."""
    if row.seq != seq:
        return f"row {seq} is gone: the next one is {row.seq}"
    if row.previous != previous:
        return f"row {seq} doesn't follow the row before it"
    if row.hash != row.computed():
        return f"row {seq} was changed: its content doesn't have its hash"
    return ""


def _end_fault(head: _Head, last: AuditRow | None) -> str:
    """What is wrong with the end of the log; empty where it is the head, or the announced row after it."""
    count, found = (last.seq, last.hash) if last else (0, GENESIS)
    if count < head.count:
        return f"the tail was cut: rows {count + 1} to {head.count} are gone"
    if count == head.count:
        return "" if found == head.hash else f"row {count} isn't the one that the head names: the chain was rewritten"
    if last and count == head.count + 1 and found == head.announced and last.previous == head.hash:
        return ""
    return f"rows {head.count + 1} to {count} were not written here: the head names {head.count or 'no'} rows"


def _read(found: tuple[Any, ...]) -> AuditRow:
    seq, time, *facts, evidence, change, previous, digest = found
    names = ("market", "variant", "version", "from_", "to", "allocation", "actor", "reason")
    entry = Entry(time=time.astimezone(UTC), **dict(zip(names, facts, strict=True)), evidence=evidence, change=change)
    return AuditRow(seq=seq, entry=entry, previous=previous, hash=digest)


def _canonical(content: object) -> str:
    """The one text of this content: sorted keys, no spaces, shortest floats that read back as they were."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = ""
    if not text.strip() or "\0" in text:
        raise AuditError(f"the {what} of a change must be readable text that isn't empty, got {text!r}")
