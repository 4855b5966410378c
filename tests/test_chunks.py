"""Values as pieces of chunks: whatever is done to a value, its pieces are its bytes, and stay few."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings, strategies as st

from memstate_langgraph.chunks import (
    CHUNK,
    PIECES,
    Damaged,
    Piece,
    Stored,
    cut,
    join,
    pack_pieces,
    pack_whole,
    unpack_pieces,
)

edits = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "insert", "remove", "replace", "shorten"]),
        st.integers(0, 2**16),
        st.sampled_from([1, 20, 40, 300, 700, 5_000, 70_000]),
    ),
    max_size=60,
)


def name(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=12).digest()


def edited(data: bytes, what: str, place: int, size: int) -> bytes:
    new, at = random.Random(f"{place} {size}").randbytes(size), place % (len(data) + 1)
    match what:
        case "append":
            return data + new
        case "insert":
            return data[:at] + new + data[at:]
        case "remove":
            return data[:at] + data[at + size :]
        case "replace":
            return data[:at] + new + data[at + size :]
        case _:
            return data[: max(1, len(data) - size)]


@given(edits, st.booleans(), st.booleans())
@settings(deadline=None)
def test_pieces_are_the_value(steps: list[tuple[str, int, int]], counted: bool, inline: bool) -> None:
    """`counted` values begin with how many edits there were, as lists begin with their length."""
    held: dict[bytes, bytes] = {}
    data, base = b"begin", None
    for number, step in enumerate(steps):
        data = edited(data, *step)
        value = number.to_bytes(2) + data if counted else data
        pieces, new = cut(value, base, name, inline=inline)
        held.update(new)
        packed = pack_pieces(pieces)
        assert join(unpack_pieces(packed), held) == value
        assert all(text == held[chunk] and 0 < len(text) <= CHUNK for chunk, text in new.items())
        assert len(pieces) <= PIECES + len(value) // (CHUNK // 4)
        base = Stored("", value, pieces, packed, b"pool")


def test_what_is_appended_costs_itself() -> None:
    held: dict[bytes, bytes] = {}
    data, base, stored = b"", None, 0
    for number in range(400):
        data += random.Random(number).randbytes(300)
        value = number.to_bytes(2) + data
        pieces, new = cut(value, base, name, inline=True)
        held.update(new)
        packed = pack_pieces(pieces)
        stored += len(packed) + sum(map(len, new.values()))
        assert join(pieces, held) == value
        base = Stored("", value, pieces, packed, b"pool")
    assert stored < 400 * 300 * 7  # its bytes about three times, and a list of pieces a version


def test_pieces_are_stored_and_read_also_when_some_are_the_same() -> None:
    same, other = Piece(None, 0, 2, b"ab"), Piece(b"chunk", 3, 4)
    for pieces in ((same, other, same), (same, same), (other, same, other, same, same), (other,), ()):
        assert unpack_pieces(pack_pieces(pieces)) == pieces


def test_a_bit_of_what_a_list_keeps_is_missed() -> None:
    packed = pack_whole(b"of few bytes")
    assert join(unpack_pieces(packed), {}) == b"of few bytes"
    with pytest.raises(Damaged, match="not what was stored"):
        unpack_pieces(packed.replace(b"few", b"fex"))
    assert unpack_pieces(pack_whole(b"")) == ()
