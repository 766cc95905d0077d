"""The packed value: all that the online store keeps of one entity in one view, as one run of bytes.

====== =========== ================================================================================
offset type        content
====== =========== ================================================================================
0      4 bytes     format, ``PNL1``
4      uint32      schema: CRC-32 of the features' names
8      int64       event time, microseconds since 1970 UTC
16     int64       ingest time, the same
24     float64 [F] the features, NaN for missing
...    bytes       the tail: values that are no float64, in a form of their owner's; mostly empty
last 4 uint32      CRC-32 of all before
====== =========== ================================================================================

Everything is little-endian. Reading takes no step per feature: the fixed parts are laid end to end and read as one
array. Array suffixes: N entities, F features.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from feature_repo.store.join import NEVER

FloatArray: TypeAlias = NDArray[np.float64]
TimeArray: TypeAlias = NDArray[np.datetime64]

FORMAT: Final = b"PNL1"
TIMES_AT: Final = 8
_TIMES: Final = struct.Struct("<qq")
_CHECKSUM: Final = struct.Struct("<I")
_INTACT: Final = 0x2144DF1C  # the CRC-32 of any bytes that end in their own CRC-32


class OnlineStoreError(RuntimeError):
    """An online value that can't be served or stored; the message says what, got, allowed and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """Values of N entities: ``values_NF``, and both times, NaN and NaT for an entity without a value.

    ``tails`` has the N tails where the packing has one.
    """

    values_NF: FloatArray
    event_N: TimeArray
    ingest_N: TimeArray
    tails: tuple[bytes, ...] = ()


class Packing:
    """How one view's values are packed: ``features`` as float64; ``others`` are named for what is in the tail."""

    def __init__(self, features: tuple[str, ...], others: tuple[str, ...] = ()) -> None:
        names = "\n".join((*features, "", *others))
        self._features = features
        self._others = others
        self._head = FORMAT + _CHECKSUM.pack(crc32(names.encode()))
        self._fixed = np.dtype(
            [
                ("head", "V8"),
                ("event", "<M8[us]"),
                ("ingest", "<M8[us]"),
                ("values", "<f8", (len(features),)),
                ("after", "V4"),  # the checksum, or what the tail starts with
            ]
        )
        self._tail_at = self._fixed.itemsize - _CHECKSUM.size
        never = np.array([NEVER])
        self._missing = self.pack(never, never, np.full((1, len(features)), np.nan))[0]

    def pack(
        self,
        event_N: NDArray[np.int64],
        ingest_N: NDArray[np.int64],
        values_NF: FloatArray,
        tails: Sequence[bytes] = (),
    ) -> list[bytes]:
        """One packed value an entity; times are in microseconds."""
        fixed_N = np.empty(len(event_N), self._fixed)
        fixed_N["head"] = np.void(self._head)
        fixed_N["event"], fixed_N["ingest"], fixed_N["values"] = event_N, ingest_N, values_NF
        whole, size = fixed_N.tobytes(), self._fixed.itemsize
        bodies = [whole[at : at + self._tail_at] for at in range(0, len(whole), size)]
        if self._others and tails:
            bodies = [body + tail for body, tail in zip(bodies, tails, strict=True)]
        return [body + _CHECKSUM.pack(crc32(body)) for body in bodies]

    def unpack(self, packed: Sequence[bytes | None], names: Sequence[object]) -> Unpacked:
        """Values of packed bytes, ``None`` being an entity without one; ``names`` are for messages.

        Raises
        ------
        OnlineStoreError
            Bytes that were altered, or were packed by another schema.
        """
        whole = [self._missing if value is None else value for value in packed]
        size = self._fixed.itemsize
        joined = b"".join([value[:size] for value in whole] if self._others else whole)
        if len(joined) != size * len(whole) or not self._are_intact(whole, joined):
            raise OnlineStoreError(self._refusal(whole, names))
        fixed_N = np.frombuffer(joined, self._fixed)
        if fixed_N["head"].tobytes() != self._head * len(whole):
            raise OnlineStoreError(self._refusal(whole, names))
        return Unpacked(
            values_NF=fixed_N["values"].copy(),
            event_N=fixed_N["event"].copy(),
            ingest_N=fixed_N["ingest"].copy(),
            tails=tuple(value[self._tail_at : -_CHECKSUM.size] for value in whole) if self._others else (),
        )

    def _are_intact(self, whole: Sequence[bytes], joined: bytes) -> bool:
        """Whether every value ends in its own checksum; ``joined`` is all of them where none has a tail."""
        if self._others:
            return set(map(crc32, whole)) <= {_INTACT}
        return crc32(joined) == _crc32_of_many(self._missing, len(whole))

    def _refusal(self, whole: Sequence[bytes], names: Sequence[object]) -> str:
        altered = [name for name, value in zip(names, whole, strict=True) if crc32(value) != _INTACT]
        if altered:
            return (
                f"the stored values of {_few(altered)} fail their checksum, so they were altered or cut short: "
                "drop them and materialize again"
            )
        foreign = [name for name, value in zip(names, whole, strict=True) if not value.startswith(self._head)]
        return (
            f"the stored values of {_few(foreign)} were written with another schema than the one asked for, which is "
            f"{_few((*self._features, *self._others))}: materialize again, or raise the pipeline's version when its "
            "features change"
        )


@lru_cache(maxsize=256)
def _crc32_of_many(intact: bytes, num: int) -> int:
    """The CRC-32 of ``num`` intact values of the size of ``intact``, end to end.

    It is the same whatever they hold: an intact value takes the CRC's register from any state to the same next one as
    another of its size does. A single altered one takes it elsewhere, which no later one undoes, so it is found as
    surely as by its own checksum; several might hide one another by a chance of 1 in 2**32.
    """
    return crc32(intact * num)


@lru_cache(maxsize=256)
def packing_of(features: tuple[str, ...], others: tuple[str, ...] = ()) -> Packing:
    """The packing of these features, made once."""
    return Packing(features, others)


def times_of(value: bytes) -> tuple[int, int]:
    """Event and ingest time of a packed value, in microseconds."""
    event, ingest = _TIMES.unpack_from(value, TIMES_AT)
    return event, ingest


def _few(names: Sequence[object]) -> str:
    """The first names, and how many there are."""
    shown = ", ".join(str(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} … ({len(names)} in all)"
