"""The packed value: bit for bit what was packed, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.store.join import NEVER
from feature_repo.store.packed import OnlineStoreError, Packing, packing_of, times_of

MICROS = st.integers(NEVER, 2**63 - 1)
NAMES = ("a", "b", "c")
PACKING = Packing(NAMES)
WITH_TAILS = Packing(NAMES, ("text",))


def pack_one(packing: Packing, event: int, ingest: int, values: list[float], tail: bytes = b"") -> bytes:
    return packing.pack(np.array([event]), np.array([ingest]), np.array([values]), [tail])[0]


@given(st.lists(st.tuples(MICROS, MICROS, st.lists(st.floats(), min_size=3, max_size=3)), max_size=5))
def test_what_was_packed_comes_back_bit_for_bit(rows: list[tuple[int, int, list[float]]]) -> None:
    event, ingest = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    values = np.array([row[2] for row in rows]).reshape(-1, 3)
    packed = PACKING.pack(event, ingest, values)
    found = PACKING.unpack(packed, range(len(rows)))
    assert found.values_NF.tobytes() == values.tobytes()
    assert found.event_N.astype(np.int64).tolist() == event.tolist()
    assert found.ingest_N.astype(np.int64).tolist() == ingest.tolist()
    assert [times_of(value) for value in packed] == [row[:2] for row in rows]


def test_the_format_is_pinned() -> None:
    """Values outlive the program that wrote them: other bytes need another ``FORMAT`` and key prefix."""
    packed = pack_one(Packing(("x",)), 1, -2, [1.5])
    assert packed.hex() == "504e4c311f08ea460100000000000000feffffffffffffff000000000000f83fb20d5e46"


def test_an_entity_without_a_value_is_nan_and_nat() -> None:
    found = PACKING.unpack([None, pack_one(PACKING, 1, 2, [1.0, 2.0, 3.0])], ["A", "B"])
    assert np.isnan(found.values_NF[0]).all()
    assert np.isnat([found.event_N[0], found.ingest_N[0]]).all()
    assert found.values_NF[1].tolist() == [1.0, 2.0, 3.0]


def test_nothing_asked_is_nothing_found() -> None:
    assert PACKING.unpack([], []).values_NF.shape == (0, 3)


def test_tails_travel_beside_the_numbers() -> None:
    times, values_NF = np.array([1, 2, 3]), np.arange(9.0).reshape(3, 3)
    none, some, long = WITH_TAILS.pack(times, times, values_NF, [b"", b"any bytes", bytes(300)])
    found = WITH_TAILS.unpack([some, None, none, long], "ABCD")
    assert found.tails == (b"any bytes", b"", b"", bytes(300))
    assert found.event_N.astype(np.int64).tolist() == [2, NEVER, 1, 3]
    assert np.array_equal(found.values_NF[[0, 2, 3]], values_NF[[1, 0, 2]])


EACH_PACKING = pytest.mark.parametrize("packing", [PACKING, WITH_TAILS], ids=["numbers", "with tails"])


def flip(packed: bytes, at: int, bits: int = 0x10) -> bytes:
    return packed[:at] + bytes([packed[at] ^ bits]) + packed[at + 1 :]


@EACH_PACKING
def test_any_altered_byte_is_seen_in_any_place(packing: Packing) -> None:
    packed = pack_one(packing, 1, 2, [1.0, 2.0, 3.0], b"tail")
    for at in range(len(packed)):
        for place, name in enumerate("ABC"):
            whole: list[bytes | None] = [packed, None, packed]
            whole[place] = flip(packed, at)
            with pytest.raises(OnlineStoreError, match=f"of {name} fail their checksum"):
                packing.unpack(whole, "ABC")


@EACH_PACKING
def test_the_same_byte_altered_in_several_values_is_seen(packing: Packing) -> None:
    """Values are checked together, where one error must not hide another."""
    packed = pack_one(packing, 1, 2, [1.0, 2.0, 3.0], b"tail")
    for at in range(len(packed)):
        for bits in (0x01, 0x80, 0xFF):
            altered = flip(packed, at, bits)
            with pytest.raises(OnlineStoreError, match="of A, B fail their checksum"):
                packing.unpack([altered, altered], "AB")
            with pytest.raises(OnlineStoreError, match="of A, B, D fail their checksum"):
                packing.unpack([altered, altered, packed, altered], "ABCD")


@EACH_PACKING
def test_a_value_cut_short_is_seen(packing: Packing) -> None:
    packed = pack_one(packing, 1, 2, [1.0, 2.0, 3.0], b"tail")
    for size in range(len(packed)):
        with pytest.raises(OnlineStoreError, match="of A fail their checksum"):
            packing.unpack([packed[:size]], ["A"])
        with pytest.raises(OnlineStoreError, match="of B, C fail their checksum"):
            packing.unpack([packed, packed[:size], packed + bytes(len(packed) - size)], "ABC")


@pytest.mark.parametrize(
    ("features", "others"),
    [(("a", "b"), ()), (("a", "b", "c", "d"), ()), (("a", "c", "b"), ()), (("a", "b", "x"), ()), (("a", "b"), ("c",))],
    ids=["fewer", "more", "reordered", "renamed", "of another type"],
)
def test_another_schema_is_seen(features: tuple[str, ...], others: tuple[str, ...]) -> None:
    foreign = pack_one(Packing(features, others), 1, 2, [0.0] * len(features))
    with pytest.raises(OnlineStoreError, match="of B were written with another schema"):
        PACKING.unpack([pack_one(PACKING, 1, 2, [0.0] * 3), foreign], ["A", "B"])


def test_a_message_names_a_few_of_many() -> None:
    with pytest.raises(OnlineStoreError, match=r"of 0, 1, 2, 3, 4 … \(9 in all\) fail"):
        PACKING.unpack([b"rubbish"] * 9, range(9))


def test_a_packing_is_made_once() -> None:
    assert packing_of(NAMES) is packing_of(NAMES)
