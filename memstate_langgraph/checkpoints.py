"""LangGraph's checkpoints and pending writes as stored rows: what a put, a read, a deletion, a prune does.

Plans like those of facts: they can share a transaction with them, do no I/O and may begin again from the top.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import starmap
from typing import Any, NamedTuple, Protocol

import ormsgpack

from memstate_langgraph.checkpoint_ops import (
    Ancestors,
    CheckpointRow,
    ChunkRow,
    CopyThread,
    DropCheckpoints,
    DropChunks,
    DropThread,
    DropValues,
    FindCheckpoints,
    FindChunks,
    FindRuns,
    FindValues,
    FindWrites,
    Holds,
    JoinPool,
    NewPool,
    Place,
    Pool,
    PoolChunks,
    PoolPieces,
    SaveCheckpoint,
    SaveChunks,
    SaveStep,
    SaveWrites,
    Stands,
    ValueKey,
    ValueRow,
    ValueSpaces,
    WriteRow,
)
from memstate_langgraph.chunks import (
    POOL_BYTES,
    Codec,
    Damaged,
    Head,
    Latest,
    Recent,
    Spot,
    Stored,
    chunk_ids,
    cut,
    in_chunks,
    join,
    pack_pieces,
    unpack_pieces,
)
from memstate_langgraph.errors import ConflictError, DamagedCheckpoint, ValidationFailed
from memstate_langgraph.facts import Fact, Query
from memstate_langgraph.ops import Plan, Together, reads, unchanging, writes
from memstate_langgraph.packing import unpack_typed
from memstate_langgraph.rules import CHECKPOINT_TYPE, WRITE_TYPE, fits

EPOCH = datetime.fromtimestamp(0, UTC)
EMPTY = Stored("", b"", (), pack_pieces(()), b"")
"""What an empty channel was stored as, before it had no row."""

Versions = Mapping[str, str]
"""Channel names and their versions as text."""


class Lens(Protocol):
    """What plans need to know of a checkpoint, whose body only the saver's serializer can read."""

    def body(self, row: CheckpointRow) -> dict[str, Any]: ...

    def versions(self, row: CheckpointRow) -> Versions: ...

    def texts(self, versions: Mapping[str, Any]) -> Versions: ...

    def stamp(self, row: CheckpointRow) -> str:
        """When it was made, ISO 8601."""
        ...

    def deltas(self, row: CheckpointRow) -> frozenset[str]:
        """Its channels that are stored as writes since a snapshot."""
        ...


class NewValue(NamedTuple):
    """A channel's value to store; `kind` is empty for an empty channel."""

    key: ValueKey
    kind: str
    data: bytes


@unchanging
class Loaded:
    """A checkpoint as read: its row, its channels' values, its pending writes in LangGraph's order."""

    row: CheckpointRow
    body: dict[str, Any]
    versions: Versions
    values: dict[str, Stored]
    writes: list[WriteRow]
    large: dict[bytes, bytes]
    """The bytes of large writes, by their pieces."""
    fresh: list[Latest] | None
    """Values that were fetched with it, for `Recent`, of it, or of others that were read with it; None if it is as it
    was known.
    """

    def small(self) -> list[ValueRow]:
        """Its values that are in no chunks, as they are stored."""
        return [
            ValueRow(ValueKey(channel, self.versions[channel]), value.kind, value.packed)
            for channel, value in self.values.items()
            if not value.pool
        ]


# --- writing


def put(
    row: CheckpointRow, whole: Sequence[ValueRow], large: Sequence[NewValue], recent: Recent, codec: Codec
) -> Plan[list[Latest]]:
    """Store a checkpoint and the values that are new with it, the large ones in chunks; those, for `Recent`."""
    if not large:
        yield SaveStep(row, tuple(whole))
        return []
    pool, chunks, stored = yield from _in_chunks(row.place, large, recent, codec)
    yield SaveStep(row, (*whole, *[one.row for one in stored]), pool, chunks)
    return stored


def _in_chunks(
    place: Place, values: Sequence[NewValue], recent: Recent, codec: Codec
) -> Plan[tuple[bytes, tuple[ChunkRow, ...], list[Latest]]]:
    """The chunks that are new with these values, of which pool, and the values as lists of pieces; to be stored."""
    pool, bases = yield from _bases(place, values, recent)
    name_chunk, inline = codec.name_chunk(pool), not codec.encrypts
    stored: list[Latest] = []
    chunks: dict[bytes, bytes] = {}
    for key, kind, data in values:
        pieces, new = cut(data, bases.get(key.channel), name_chunk, inline=inline)
        chunks.update(new)
        packed = pack_pieces(pieces)
        spot = Spot(place.thread_id, place.checkpoint_ns, key.channel)
        stored.append(Latest(spot, ValueRow(key, kind, packed), Stored(kind, data, pieces, packed, pool)))
    return pool, codec.seal(chunks), stored


def _pool(thread_id: str, likely_new: bool) -> Plan[bytes]:
    """The pool of a thread; a new thread gets one of its own."""
    pool = yield from (NewPool(thread_id) if likely_new else Pool(thread_id))
    if pool is None:
        pool = os.urandom(POOL_BYTES)
        yield from JoinPool(thread_id, pool)
    return pool


def _bases(place: Place, values: Sequence[NewValue], recent: Recent) -> Plan[tuple[bytes, dict[str, Stored]]]:
    """The thread's pool, and earlier versions that storage still holds as we know them, by channel."""
    known: dict[str, Latest] = {}
    for value in values:
        found = recent.like(Spot(place.thread_id, place.checkpoint_ns, value.key.channel), len(value.data))
        if found is not None:
            known[value.key.channel] = found
    if known:
        held = [(found.spot.checkpoint_ns, found.row) for found in known.values()]
        if not (yield Holds(place.thread_id, tuple(dict.fromkeys(held)))):
            known.clear()
    # Names of chunks are keyed with their pool, so a version that still has the same ones is in the pool we know.
    pool = None
    for found in known.values():
        if in_chunks(found.value.pieces):
            pool = found.value.pool
            break
    if pool is None:
        pool = yield from _pool(place.thread_id, recent.knows_nothing_of(place))
    # a thread that was deleted and began again has another pool
    return pool, {channel: found.value for channel, found in known.items() if found.value.pool == pool}


def put_writes(rows: Sequence[WriteRow], large: Mapping[int, NewValue], recent: Recent, codec: Codec) -> Plan[None]:
    """Store pending writes; `large` has the values of those rows, by position, that go into chunks."""
    if large:
        rows = list(rows)
        pool, chunks, stored = yield from _in_chunks(rows[0].place, list(large.values()), recent, codec)
        if chunks:
            yield SaveChunks(pool, chunks)
        for position, of in zip(large, stored, strict=True):
            rows[position] = rows[position]._replace(kind=of.row.kind, value=b"", pieces=of.row.pieces)
    yield SaveWrites(tuple(rows))


# --- reading


@reads
def find(question: FindCheckpoints, lens: Lens, recent: Recent, codec: Codec) -> Plan[list[Loaded]]:
    """Checkpoints with all that belongs to them; what they share is fetched once."""
    head = None
    if question.limit == 1 and question.before is None and question.after is None:
        head = recent.head(question.thread_id, question.checkpoint_ns)
    if head is not None and question.checkpoint_id in (None, head.row.place.checkpoint_id):
        return (yield from _load_head(question, head, lens, recent, codec))
    rows = yield from question
    return (yield from _load(rows, lens, recent, codec))


def _load_head(question: FindCheckpoints, head: Head, lens: Lens, recent: Recent, codec: Codec) -> Plan[list[Loaded]]:
    """A checkpoint that is likely the one we know: all that belongs to that one is asked for with it."""
    versions = lens.texts(head.versions)
    if not head.pending and (as_known := (yield from _as_known(head, versions, lens, recent, codec))) is not None:
        return [as_known]
    thread_id, checkpoint_ns, checkpoint_id = head.row.place
    values = FindValues(thread_id, checkpoint_ns, frozenset(starmap(ValueKey, versions.items())))
    pending = FindWrites(thread_id, checkpoint_ns, (checkpoint_id,))
    rows, *belongings = yield from Together((question, values, pending), final=True)
    if not rows:
        return []
    (row,) = rows
    is_known = row.place == head.row.place and lens.versions(row) == versions
    return (yield from _load_namespace(rows, lens, recent, codec, None, belongings if is_known else None))


def _as_known(head: Head, versions: Versions, lens: Lens, recent: Recent, codec: Codec) -> Plan[Loaded | None]:
    """A checkpoint of which nothing is read, if storage says that it is still the last and as we know it."""
    known, small, empty = recent.at(head, versions)
    rows = (*[one.row for one in known.values()], *small)
    if not (yield Stands(head.row, rows, tuple(empty))):
        return None
    held = {channel: one.value for channel, one in known.items()}
    if small:
        more, _ = yield from _values(head.row.place, small, recent, codec)
        held.update({key.channel: value for key, value in more.items() if value.kind})
    return Loaded(head.row, lens.body(head.row), versions, held, [], {}, None)


def _load(
    rows: Sequence[CheckpointRow], lens: Lens, recent: Recent, codec: Codec, only: frozenset[str] | None = None
) -> Plan[list[Loaded]]:
    groups: dict[tuple[str, str], list[CheckpointRow]] = defaultdict(list)
    for row in rows:
        groups[row.place[:2]].append(row)
    loaded: dict[Place, Loaded] = {}
    for members in groups.values():
        for one in (yield from _load_namespace(members, lens, recent, codec, only)):
            loaded[one.row.place] = one
    return [loaded[row.place] for row in rows]


def _load_namespace(
    rows: Sequence[CheckpointRow],
    lens: Lens,
    recent: Recent,
    codec: Codec,
    only: frozenset[str] | None,
    belongings: Sequence[Any] | None = None,
) -> Plan[list[Loaded]]:
    """`belongings` are the rows of values and writes if they are known already."""
    place = rows[0].place
    versions = [
        of if only is None else {channel: version for channel, version in of.items() if channel in only}
        for of in map(lens.versions, rows)
    ]
    if belongings is None:
        keys = frozenset([ValueKey(*item) for of in versions for item in of.items()])
        ids = tuple([row.place.checkpoint_id for row in rows])
        values_of = FindValues(place.thread_id, place.checkpoint_ns, keys)
        belongings = yield from Together((values_of, FindWrites(place.thread_id, place.checkpoint_ns, ids)))
    stored, found = belongings
    values, fresh = yield from _values(place, stored, recent, codec)
    packed = {write.pieces for write in found if write.pieces is not None}
    large = (yield from _joined(place, packed, codec))[1] if packed else {}
    pending: dict[Place, list[WriteRow]] = defaultdict(list)
    for write in found:
        pending[write.place].append(write)
    loaded = []
    for row, of in zip(rows, versions, strict=True):
        held = {
            channel: value
            for channel, version in of.items()
            if (value := values.get(ValueKey(channel, version))) is not None and value.kind
        }
        loaded.append(Loaded(row, lens.body(row), of, held, in_order(pending[row.place]), large, fresh))
    return loaded


def in_order(found: Iterable[WriteRow]) -> list[WriteRow]:
    """As LangGraph applies them: by path of the task, task, and index."""
    return sorted(found, key=lambda write: (write.task_path, write.task_id, write.idx))


def _values(
    place: Place, rows: Sequence[ValueRow], recent: Recent, codec: Codec
) -> Plan[tuple[dict[ValueKey, Stored], list[Latest]]]:
    """The values of rows, and those of them that we did not know."""
    values: dict[ValueKey, Stored] = {}
    fresh: list[Latest] = []
    missing: dict[ValueKey, ValueRow] = {}
    for row in rows:
        if not row.kind:
            values[row.key] = EMPTY
            continue
        known = recent.get(Spot(place.thread_id, place.checkpoint_ns, row.key.channel))
        if known is not None and known.row == row:
            values[row.key] = known.value
        else:
            missing[row.key] = row
    if missing:
        pool, texts = yield from _joined(place, {row.pieces for row in missing.values()}, codec)
        for key, row in missing.items():
            values[key] = Stored(row.kind, texts[row.pieces], unpack_pieces(row.pieces), row.pieces, pool)
            if pool:
                fresh.append(Latest(Spot(place.thread_id, place.checkpoint_ns, key.channel), row, values[key]))
    return values, fresh


def _joined(place: Place, packed: set[bytes], codec: Codec) -> Plan[tuple[bytes, dict[bytes, bytes]]]:
    """The bytes that lists of pieces stand for, and the pool of their chunks; what they share is fetched once."""
    try:
        pieces = {one: unpack_pieces(one) for one in packed}
        wanted = chunk_ids(piece for of in pieces.values() for piece in of)
        pool, chunks = b"", dict[bytes, bytes]()
        if wanted:
            pool = (yield from Pool(place.thread_id)) or b""
            if not pool:
                raise Damaged("its thread has no pool of chunks")
            chunks = codec.open((yield from FindChunks(pool, tuple(wanted))), pool)
        return pool, {one: join(of, chunks) for one, of in pieces.items()}
    except Damaged as error:
        raise DamagedCheckpoint(
            f"thread {place.thread_id!r}, namespace {place.checkpoint_ns!r}, "
            f"checkpoint {place.checkpoint_id!r} or one near it: {error}"
        ) from error


GENERATIONS = 64
"""How many ancestors are read at once."""


@reads
def ancestry(place: Place, channels: Sequence[str], lens: Lens, recent: Recent, codec: Codec) -> Plan[list[Loaded]]:
    """The ancestors of a checkpoint, nearest first, until each of the channels was met with a value."""
    line: list[Loaded] = []
    missing = set(channels)
    while True:
        rows = yield from Ancestors(place, GENERATIONS)
        loaded = yield from _load(rows, lens, recent, codec, frozenset(missing))
        for ancestor in loaded:
            line.append(ancestor)
            missing -= ancestor.values.keys()
            if not missing:
                return line
        if len(rows) < GENERATIONS:
            return line
        place = rows[-1].place


# --- rewinding


@reads
def row_at(place: Place) -> Plan[CheckpointRow | None]:
    return next(iter((yield from FindCheckpoints(*place, limit=1))), None)


def rewound(place: Place, fresh: str, body: tuple[str, bytes], metadata: tuple[str, bytes]) -> Plan[Place]:
    """Make a checkpoint the head of its thread again: a new one with its values, made from it."""
    rows = yield from FindCheckpoints(*place)
    if not rows:
        raise ValidationFailed(f"rewind: there is no checkpoint {place.checkpoint_id!r} of thread {place.thread_id!r}")
    head = place._replace(checkpoint_id=fresh)
    yield from SaveCheckpoint(CheckpointRow(head, place.checkpoint_id, None, *body, *metadata))
    return head


# --- removing


@writes
def delete_thread(thread_id: str) -> Plan[None]:
    pool = yield from Pool(thread_id)
    yield from DropThread(thread_id)
    if pool is not None:
        yield from _collect(pool)


@writes
def delete_runs(run_ids: tuple[str, ...], lens: Lens) -> Plan[None]:
    places = yield from FindRuns(run_ids)
    yield from DropCheckpoints(tuple(places))
    for thread_id in dict.fromkeys(place.thread_id for place in places):
        yield from _sweep(thread_id, lens)


@writes
def copy_thread(source: str, target: str) -> Plan[None]:
    """The copy refers to the same chunks, so it costs rows, not values."""
    if source == target:
        return
    if (yield from FindCheckpoints(target, limit=1)) or (yield from FindWrites(target)):
        raise ConflictError(f"copy_thread: thread {target!r} already has checkpoints; delete it first")
    pool = yield from Pool(source)
    if pool is not None:
        yield from JoinPool(target, pool)
    yield from CopyThread(source, target)


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints of a namespace stay, newest first: the last `count`, and those not older than `since`."""

    count: int = 1
    since: str | None = None

    def chosen(self, rows: Sequence[CheckpointRow], lens: Lens) -> list[CheckpointRow]:
        return [
            row
            for i, row in enumerate(rows)
            if i < self.count or (self.since is not None and lens.stamp(row) >= self.since)
        ]


@writes
def prune(thread_id: str, keep: Keep, lens: Lens) -> Plan[int]:
    """Delete checkpoints that nothing kept needs; how many."""
    rows = yield from FindCheckpoints(thread_id)
    spaces: dict[str, list[CheckpointRow]] = defaultdict(list)
    for row in rows:
        spaces[row.place.checkpoint_ns].append(row)
    doomed: list[Place] = []
    for checkpoint_ns, members in spaces.items():
        stored = yield from FindValues(thread_id, checkpoint_ns)
        full = {row.key for row in stored if row.kind}
        kept = {row.place for row in keep.chosen(members, lens)}
        deltas = frozenset().union(*(lens.deltas(row) for row in members))
        by_id = {row.place.checkpoint_id: row for row in members}
        for row in [row for row in members if row.place in kept]:
            # A delta channel without a value is rebuilt from its ancestors' writes, back to a value.
            versions = lens.versions(row)
            wanted = {c for c in deltas if c in versions and ValueKey(c, versions[c]) not in full}
            current: CheckpointRow | None = row
            while wanted and current is not None and current.parent_id is not None:
                current = by_id.get(current.parent_id)
                if current is not None:
                    kept.add(current.place)
                    held = lens.versions(current)
                    wanted = {c for c in wanted if c not in held or ValueKey(c, held[c]) not in full}
        doomed += [row.place for row in members if row.place not in kept]
    if doomed:
        yield from DropCheckpoints(tuple(doomed))
        yield from _sweep(thread_id, lens)
    return len(doomed)


def _sweep(thread_id: str, lens: Lens) -> Plan[None]:
    """Drop the values that no checkpoint of the thread refers to any more, then their chunks."""
    rows = yield from FindCheckpoints(thread_id)
    pool = yield from Pool(thread_id)
    if not rows:
        yield from DropThread(thread_id)
    else:
        used: dict[str, set[ValueKey]] = defaultdict(set)
        for row in rows:
            used[row.place.checkpoint_ns].update(ValueKey(*item) for item in lens.versions(row).items())
        for checkpoint_ns in (yield from ValueSpaces(thread_id)):
            stored = yield from FindValues(thread_id, checkpoint_ns)
            keys = used[checkpoint_ns]
            yield from DropValues(thread_id, checkpoint_ns, tuple(v.key for v in stored if v.key not in keys))
    if pool is not None:
        yield from _collect(pool)


def _collect(pool: bytes) -> Plan[None]:
    """Drop the chunks of a pool that no value of any thread refers to."""
    packed = yield from PoolPieces(pool)
    used = chunk_ids(piece for pieces in packed for piece in unpack_pieces(pieces))
    held = yield from PoolChunks(pool)
    unused = tuple(chunk for chunk in held if chunk not in used)
    if unused:
        yield from DropChunks(pool, unused)


# --- as facts


@reads
def as_facts(query: Query) -> Plan[list[Fact]]:
    """Checkpoints or pending writes as facts, newest last; `query.filters` are already checked.

    The payload tells everything but the values. Encrypted metadata is left out.
    """
    found: list[Fact] = []
    if query.namespace:
        return found
    if query.type == CHECKPOINT_TYPE:
        rows = yield from FindCheckpoints(query.session_id)
        made = (checkpoint_fact(row) for row in reversed(rows))
    else:
        writes = yield from FindWrites(query.session_id)
        made = (write_fact(row) for row in sorted(writes, key=lambda w: (w.place, w.task_path, w.task_id, w.idx)))
    for fact in made:
        if query.limit is not None and len(found) >= query.limit:
            break
        if fits(fact, query):
            found.append(fact)
    return found


def checkpoint_fact(row: CheckpointRow) -> Fact:
    body, metadata = _readable(row.kind, row.body), _readable(row.metadata_kind, row.metadata)
    ts = body.get("ts")
    return Fact.model_construct(
        id="/".join((CHECKPOINT_TYPE, *row.place)),
        type=CHECKPOINT_TYPE,
        payload={
            **row.place._asdict(),
            "parent_checkpoint_id": row.parent_id,
            "ts": ts,
            "channel_versions": dict(body.get("channel_versions") or {}),
            "metadata": metadata,
        },
        session_id=row.place.thread_id,
        source=None,
        ts=datetime.fromisoformat(ts) if isinstance(ts, str) else EPOCH,
        namespace=(),
        version=1,
        ephemeral=False,
        singleton=None,
    )


def write_fact(row: WriteRow) -> Fact:
    return Fact.model_construct(
        id="/".join((WRITE_TYPE, *row.place, row.task_id, str(row.idx))),
        type=WRITE_TYPE,
        payload={
            **row.place._asdict(),
            "task_id": row.task_id,
            "task_path": row.task_path,
            "idx": row.idx,
            "channel": row.channel,
        },
        session_id=row.place.thread_id,
        source=None,
        ts=EPOCH,
        namespace=(),
        version=1,
        ephemeral=False,
        singleton=None,
    )


def _readable(kind: str, data: bytes) -> dict[str, Any]:
    """A mapping that was serialized without encryption, else nothing; never more than plain values."""
    kind, data = unpack_typed(kind, data)
    if kind != "msgpack":
        return {}
    found = ormsgpack.unpackb(data, ext_hook=lambda code, _: f"<object {code}>", option=ormsgpack.OPT_NON_STR_KEYS)
    return found if isinstance(found, dict) else {}
