"""Values as pieces of chunks: what a new version of a value shares with the one before is not stored again.

The bytes of a value are compared with those of its previous version at the speed of memcmp. What is the same
becomes references to stored chunks, the rest new chunks: an appended message costs its own bytes, whatever holds
the list and whichever serializer made the bytes. Small pieces in a row are rewritten as one, as the levels of a
log-structured merge tree are: the list of pieces stays short however long the history, and each byte is written
about three times at most.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from operator import itemgetter
from typing import Any, NamedTuple

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from memstate_langgraph.checkpoint_ops import CheckpointRow, ChunkRow, Place, ValueKey, ValueRow
from memstate_langgraph.graph import SEPARATOR
from memstate_langgraph.packing import pack, unpack

CHUNK = 65536
"""The largest chunk, in bytes."""
INLINE = 24
"""New bytes up to this many are kept in the list of pieces itself."""
WHOLE = 512
"""A value of fewer bytes is kept there as a whole, and so is what was appended to one, until there is more of it: a
chunk costs more than to store so few bytes again.
"""
RUN = 16
"""So many small pieces in a row, or medium ones, are rewritten as one."""
SMALL = CHUNK // 16
MEDIUM = CHUNK * 3 // 4
PIECES = 4 * RUN
"""How many pieces a value may have whatever was done to it; large ones may have one more per quarter of a chunk."""
WINDOW = 65536
"""How far ahead a stored piece is looked for behind inserted bytes."""
SHORTEST = 32
"""Common bytes below this many are not worth a piece of their own."""
LARGE = 4096
"""From this many bytes on it is worth looking further for something like a value."""
ID_BYTES = 12
POOL_BYTES = 16


class Piece(NamedTuple):
    """Bytes of a value: a part of a chunk, or, where `chunk` is None, the bytes themselves."""

    chunk: bytes | None
    start: int
    size: int
    inline: bytes = b""


Pieces = tuple[Piece, ...]


class Stored(NamedTuple):
    """A value as it is stored: its serialized bytes and where in which pool they are."""

    kind: str
    data: bytes
    pieces: Pieces
    packed: bytes
    """The pieces as stored."""
    pool: bytes


class Damaged(Exception):
    """A chunk is missing or is not what it was; whoever knows the checkpoint says which."""


# --- the list of pieces as bytes


def pack_pieces(pieces: Pieces) -> bytes:
    """The list as stored; behind what it keeps itself comes a checksum of that, as nobody else would miss a bit."""
    items: list[Any] = [*map(_reference_of, pieces)]
    at = -1
    for piece in filterfalse(_chunk_of, pieces):  # one or two, of many
        at = pieces.index(piece, at + 1)
        items[at] = piece.inline
    kept = b"".join(map(_inline_of, pieces))
    if kept:
        items.append(zlib.crc32(kept))
    return ormsgpack.packb(items)


_reference_of, _chunk_of, _inline_of = itemgetter(0, 1, 2), itemgetter(0), itemgetter(3)


def pack_whole(data: bytes) -> bytes:
    """The list of a value that is one piece, kept in the list itself."""
    return ormsgpack.packb([data, zlib.crc32(data)] if data else [])


def unpack_pieces(packed: bytes) -> Pieces:
    try:
        items = ormsgpack.unpackb(packed)
        checksum = items.pop() if items and isinstance(items[-1], int) else None
        pieces = tuple(
            [
                Piece(None, 0, len(item), item) if isinstance(item, bytes) else Piece(item[0], item[1], item[2])
                for item in items
            ]
        )
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise Damaged(f"its list of pieces cannot be read ({error})") from error
    if checksum is not None and checksum != zlib.crc32(b"".join([piece.inline for piece in pieces])):
        raise Damaged("what its list of pieces keeps is not what was stored")
    return pieces


# --- cutting


@dataclass(slots=True)
class _Span:
    start: int
    end: int
    piece: Piece | None

    @property
    def size(self) -> int:
        return self.end - self.start


def cut(
    data: bytes, base: Stored | None, name_chunk: Callable[[bytes], bytes], *, inline: bool
) -> tuple[Pieces, dict[bytes, bytes]]:
    """The pieces of a value that replaces `base`, and the chunks among them that are new."""
    chunks: dict[bytes, bytes] = {}
    if base is not None and _is_grown(data, base):
        pieces = _grown(data, base, name_chunk, chunks)
        if not _crowded(pieces, len(data)):
            return pieces, chunks
        chunks.clear()
    if base is None and inline and data:
        # A head by itself is what counts the items of most values that grow, and will differ when this one has.
        return (Piece(None, 0, 1, data[:1]), *_chunked(data[1:], name_chunk, chunks)), chunks
    cut_up: list[Piece] = []
    for span in _merge(_match(data, base), len(data)):
        if span.piece is not None:
            cut_up.append(span.piece)
        elif inline and span.size <= INLINE:
            cut_up.append(Piece(None, 0, span.size, data[span.start : span.end]))
        else:
            cut_up += _chunked(data[span.start : span.end], name_chunk, chunks)
    return tuple(cut_up), chunks


def _chunked(text: bytes, name_chunk: Callable[[bytes], bytes], chunks: dict[bytes, bytes]) -> list[Piece]:
    pieces = []
    for start in range(0, len(text), CHUNK):
        part = text[start : start + CHUNK]
        name = name_chunk(part)
        chunks[name] = part
        pieces.append(Piece(name, 0, len(part)))
    return pieces


def _is_grown(data: bytes, base: Stored) -> bool:
    """Whether a value changed as most do: something was appended, and a short head, which counts it, may differ."""
    head = base.pieces[0] if base.pieces else None
    return (
        head is not None
        and head.chunk is None
        and len(data) > len(base.data)
        and data.startswith(base.data[head.size :], head.size)
    )


def _grown(data: bytes, base: Stored, name_chunk: Callable[[bytes], bytes], chunks: dict[bytes, bytes]) -> Pieces:
    head, *same = base.pieces
    start = len(base.data)
    if same and same[-1].chunk is None:
        start -= same.pop().size
    # the end waits in the list itself until there is enough of it for a chunk
    end = data[start:]
    more = [Piece(None, 0, len(end), end)] if len(end) < WHOLE else _chunked(end, name_chunk, chunks)
    return (Piece(None, 0, head.size, data[: head.size]), *same, *more)


def _match(data: bytes, base: Stored | None) -> list[_Span]:
    """Cover the data with spans: pieces of the base where they occur in order, new bytes between them."""
    spans: list[_Span] = []
    done = 0

    def new_until(end: int) -> None:
        if end > done:
            spans.append(_Span(done, end, None))

    offset, whole = 0, True
    for i, piece in enumerate(() if base is None else base.pieces):
        assert base is not None
        text = base.data[offset : offset + piece.size]
        if piece.chunk is None or piece.size < SHORTEST:
            offset += piece.size
            continue  # too small to be looked for; what stays of it is new again
        at = _find(text, data, done)
        if at >= 0 and whole:
            # most values are appended to: then all that follows is where it was
            whole = data.startswith(base.data[offset:], at)
            if whole:
                new_until(at)
                for rest in base.pieces[i:]:
                    spans.append(_Span(at, at + rest.size, rest))
                    at += rest.size
                done = at
                break
        offset += piece.size
        if at >= 0:
            new_until(at)
            done = at + piece.size
            spans.append(_Span(at, done, piece))
            continue
        head = _common_prefix(text, data, done)
        if head >= SHORTEST:
            spans.append(_Span(done, done + head, piece._replace(size=head)))
            done += head
        else:
            head = 0
        tail, at = _tail(text[head:], data, done)
        if tail >= SHORTEST:
            new_until(at)
            done = at + tail
            spans.append(_Span(at, done, piece._replace(start=piece.start + piece.size - tail, size=tail)))
    new_until(len(data))
    return spans


def _find(text: bytes, data: bytes, at: int) -> int:
    """Where a stored piece occurs ahead; -1 if it does not."""
    if data.startswith(text, at):
        return at
    # By a few bytes of its middle, since preparing to search for a long text costs more than most searches; the
    # head of a message would be found in every message.
    middle = len(text) // 2
    found = data.find(text[middle : middle + SHORTEST], at + middle, at + len(text) + WINDOW)
    if found < 0:
        return -1
    begin = found - middle
    return begin if data.startswith(text, begin) else data.find(text, at, at + len(text) + WINDOW)


def _common_prefix(text: bytes, data: bytes, at: int) -> int:
    low, high = 0, min(len(text), len(data) - at)
    while low < high:  # each step compares and halves: twice the length in all
        middle = (low + high + 1) // 2
        if text[low:middle] == data[at + low : at + middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _tail(text: bytes, data: bytes, at: int) -> tuple[int, int]:
    """How much of the end of a text occurs ahead in the data, and where."""
    if len(text) < SHORTEST:
        return 0, at
    anchor = text[-SHORTEST:]
    found = data.find(anchor, at, at + len(text) + WINDOW)
    if found < 0:
        return 0, at
    end = found + SHORTEST
    low, high = SHORTEST, min(len(text), end - at)
    while low < high:
        middle = (low + high + 1) // 2
        if text[len(text) - middle : len(text) - low] == data[end - middle : end - low]:
            low = middle
        else:
            high = middle - 1
    return low, end - low


def _merge(spans: list[_Span], size: int) -> list[_Span]:
    """Rewrite neighbours as one until there are few enough pieces."""
    spans = _joined(spans)
    if not _crowded(spans, size):
        return spans
    spans = _rewrite_runs(_rewrite_runs(spans, 0, SMALL), SMALL, MEDIUM)
    while len(spans) > _most(size):  # large and small in turns
        i = min(range(len(spans) - 1), key=lambda i: spans[i].size + spans[i + 1].size)
        spans[i : i + 2] = [_Span(spans[i].start, spans[i + 1].end, None)]
        spans = _joined(spans)
    return spans


def _most(size: int) -> int:
    return PIECES + size // (CHUNK // 4)


def _crowded(pieces: Sequence[Piece | _Span], size: int) -> bool:
    """Whether there may be so many that some have to be rewritten as fewer."""
    if len(pieces) < RUN:
        return False
    small = medium = 0
    for piece in pieces:
        if piece.size < SMALL:
            small += 1
        elif piece.size < MEDIUM:
            medium += 1
    return small >= RUN or medium >= RUN or len(pieces) > _most(size)


def _rewrite_runs(spans: list[_Span], least: int, most: int) -> list[_Span]:
    """Rewrite neighbours below `most` bytes as one where enough of them have `least`."""
    result: list[_Span] = []
    start = 0
    while start < len(spans):
        end, count = start, 0
        while end < len(spans) and spans[end].size < most:
            count += spans[end].size >= least
            end += 1
        if count >= RUN:
            result.append(_Span(spans[start].start, spans[end - 1].end, None))
        else:
            result += spans[start:end]
        result += spans[end : end + 1]
        start = end + 1
    return _joined(result)


def _joined(spans: list[_Span]) -> list[_Span]:
    """Neighbours that are both new become one."""
    joined: list[_Span] = []
    for span in spans:
        if joined and span.piece is None and joined[-1].piece is None:
            joined[-1] = _Span(joined[-1].start, span.end, None)
        else:
            joined.append(span)
    return joined


def join(pieces: Pieces, chunks: dict[bytes, bytes]) -> bytes:
    parts = []
    for piece in pieces:
        if piece.chunk is None:
            parts.append(piece.inline)
            continue
        chunk = chunks.get(piece.chunk)
        if chunk is None:
            raise Damaged(f"chunk {piece.chunk.hex()} is missing")
        if piece.start + piece.size > len(chunk):
            raise Damaged(f"chunk {piece.chunk.hex()} is too short")
        parts.append(chunk if piece.size == len(chunk) else chunk[piece.start : piece.start + piece.size])
    return b"".join(parts)


def in_chunks(pieces: Pieces) -> bool:
    """Whether any of the bytes are in chunks."""
    return any(map(_chunk_of, pieces))


def chunk_ids(pieces: Iterable[Piece]) -> set[bytes]:
    return {piece.chunk for piece in pieces if piece.chunk is not None}


# --- serializer and cipher


class Codec:
    """A saver's serializer, taken apart where it encrypts: differences are found before encryption.

    Chunks are then encrypted one by one, under random names, so that nothing stored tells of their content.
    """

    def __init__(self, serde: SerializerProtocol) -> None:
        self.serde = serde
        self._cipher = serde.cipher if isinstance(serde, EncryptedSerializer) else None
        self.encrypts = self._cipher is not None
        self.values: SerializerProtocol = serde.serde if isinstance(serde, EncryptedSerializer) else serde

    def keeps_whole(self, data: bytes) -> bool:
        """Whether a value is stored in its list of pieces, which nothing encrypts, and needs no chunks."""
        return not data or (len(data) < WHOLE and not self.encrypts)

    def dumps(self, value: Any) -> tuple[str, bytes]:
        return self.values.dumps_typed(value)

    def loads(self, kind: str, data: bytes) -> Any:
        return self.values.loads_typed((kind, data))

    def name_chunk(self, pool: bytes) -> Callable[[bytes], bytes]:
        """Names by content, keyed with the pool so that nobody can make two contents of one name."""
        if self._cipher is not None:
            return lambda _: os.urandom(ID_BYTES)
        return lambda text: hashlib.blake2b(text, digest_size=ID_BYTES, key=pool).digest()

    def seal(self, chunks: dict[bytes, bytes]) -> tuple[ChunkRow, ...]:
        rows = []
        for chunk, text in chunks.items():
            packed = pack(text)
            data, cipher = text if packed is None else packed, None
            if self._cipher is not None:
                cipher, data = self._cipher.encrypt(data)
            rows.append(ChunkRow(chunk, cipher, packed is not None, data))
        return tuple(rows)

    def open(self, rows: Sequence[ChunkRow], pool: bytes) -> dict[bytes, bytes]:
        """The chunks' bytes, each checked to be what was stored."""
        chunks = {}
        for row in rows:
            data = row.data
            if row.cipher is not None:
                if self._cipher is None:
                    raise Damaged("it is encrypted: give the saver the EncryptedSerializer that wrote it")
                try:
                    data = self._cipher.decrypt(row.cipher, data)
                except ValueError as error:
                    raise Damaged(f"chunk {row.id.hex()} cannot be decrypted ({error})") from error
            try:
                text = unpack(data) if row.packed else data
            except zlib.error as error:
                raise Damaged(f"chunk {row.id.hex()} cannot be unpacked ({error})") from error
            if row.cipher is None and hashlib.blake2b(text, digest_size=ID_BYTES, key=pool).digest() != row.id:
                raise Damaged(f"chunk {row.id.hex()} is not what was stored")
            chunks[row.id] = text
        return chunks


# --- what was stored or read lately


class Spot(NamedTuple):
    """A channel of a graph, or of a subgraph, in a thread."""

    thread_id: str
    checkpoint_ns: str
    channel: str

    def lineage(self) -> Iterator[Spot]:
        """The channel, then those of its name in the graphs around it, from which a subgraph takes its state."""
        yield self
        checkpoint_ns = self.checkpoint_ns
        while checkpoint_ns:
            checkpoint_ns = checkpoint_ns.rpartition(SEPARATOR)[0]
            yield self._replace(checkpoint_ns=checkpoint_ns)


class Latest(NamedTuple):
    spot: Spot
    row: ValueRow
    value: Stored


class Head(NamedTuple):
    """The checkpoint that a thread likely goes on from, and the versions of its channels, as they are or as text."""

    row: CheckpointRow
    versions: Mapping[str, Any]
    small: Mapping[str, ValueRow]
    """Of each channel the last value that we know, if it is in no chunks."""
    pending: bool
    """Whether it had pending writes."""


class Recent:
    """The last version of each channel that this process stored or read, bounded in bytes; the last checkpoint of each
    thread and namespace, bounded in number.

    Only a hint: plans check it against storage, so other processes do no harm. Safe from several threads.
    """

    def __init__(self, bound: int = 64 * 1024 * 1024, heads: int = 1024) -> None:
        self._bound = bound
        self._size = 0
        self._lock = threading.Lock()
        self._known: OrderedDict[Spot, Latest] = OrderedDict()
        self._largest: dict[tuple[str, str], Spot] = {}
        self._heads: dict[tuple[str, str], Head] = {}
        self._most_heads = heads

    def head(self, thread_id: str | None, checkpoint_ns: str | None) -> Head | None:
        return None if thread_id is None or checkpoint_ns is None else self._heads.get((thread_id, checkpoint_ns))

    def at(self, head: Head, versions: Mapping[str, str]) -> tuple[dict[str, Latest], list[ValueRow], list[ValueKey]]:
        """The values at these versions that we know: in chunks, and others; and those that we do not."""
        thread_id, checkpoint_ns, _ = head.row.place
        known, small, unknown = dict[str, Latest](), list[ValueRow](), list[ValueKey]()
        with self._lock:
            for key in map(ValueKey._make, versions.items()):
                row = head.small.get(key.channel)
                if row is not None and row.key == key:
                    small.append(row)
                    continue
                latest = self._get(Spot(thread_id, checkpoint_ns, key.channel))
                if latest is not None and latest.row.key == key:
                    known[key.channel] = latest
                else:
                    unknown.append(key)
        return known, small, unknown

    def knows_nothing_of(self, place: Place) -> bool:
        """Whether no value is known of a graph in a thread and of those around it, as of a thread that is new."""
        spots = Spot(place.thread_id, place.checkpoint_ns, "").lineage()
        return self._largest.keys().isdisjoint([spot[:2] for spot in spots])

    def get(self, spot: Spot) -> Latest | None:
        with self._lock:
            return self._get(spot)

    def like(self, spot: Spot, size: int) -> Latest | None:
        """What a new version of so many bytes may share some with: the channel's last version.

        In a new subgraph, that of the graphs around it; or the largest value there, as whole states are sent to
        nodes and subgraphs.
        """
        with self._lock:
            known = self._get(spot)
            if known is not None:
                return known
            for one in spot.lineage():
                known = self._get(one)
                if known is not None and (size < LARGE or len(known.value.data) > size // 2):
                    return known
            for one in spot.lineage() if size >= LARGE else ():
                largest = self._largest.get(one[:2])
                if largest is not None:
                    return self._get(largest)
        return None

    def _get(self, spot: Spot) -> Latest | None:
        known = self._known.get(spot)
        if known is not None:
            self._known.move_to_end(spot)
        return known

    def keep(
        self,
        row: CheckpointRow,
        versions: Mapping[str, Any],
        values: Sequence[Latest],
        small: Sequence[ValueRow] = (),
        *,
        pending: bool = False,
    ) -> None:
        """A checkpoint and values that were new with it, after the transaction that stored or read them.

        `small` are in no chunks. `pending` says whether it has pending writes.
        """
        graph = row.place[:2]
        with self._lock:
            before = self._heads.get(graph)
            if before is None and len(self._heads) >= self._most_heads:
                self._heads.clear()  # each is soon known again
            inline = {} if before is None else before.small
            if small:
                inline = {**inline, **{value.key.channel: value for value in small}}
            self._heads[graph] = Head(row, versions, inline, pending)
            for latest in values:
                spot, size = latest.spot, len(latest.value.data)
                known = self._known.pop(spot, None)
                self._known[spot] = latest
                self._size += size - (0 if known is None else len(known.value.data))
                largest = self._largest.get(graph)
                if largest != spot and (largest is None or size >= len(self._known[largest].value.data)):
                    self._largest[graph] = spot
            while self._size > self._bound and self._known:
                self._drop(next(iter(self._known)))

    def _drop(self, spot: Spot) -> None:
        known = self._known.pop(spot, None)
        if known is not None:
            self._size -= len(known.value.data)
            if self._largest.get(spot[:2]) == spot:
                del self._largest[spot[:2]]
