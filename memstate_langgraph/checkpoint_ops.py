"""The questions about LangGraph's checkpoints that a storage can answer; see `ops` for facts and log."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

from memstate_langgraph.ops import Likely, Op, Several, unchanging


class Place(NamedTuple):
    """Where a checkpoint stands."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str


class CheckpointRow(NamedTuple):
    """A checkpoint without its channel values; `body` and `metadata` are serialized."""

    place: Place
    parent_id: str | None
    run_id: str | None
    kind: str
    body: bytes
    metadata_kind: str
    metadata: bytes
    position: int | None = None
    """Of the log when the checkpoint is stored; given by storage unless it is known already."""


class WriteRow(NamedTuple):
    """One pending write; `idx` is negative for what overwrites: errors, interrupts, resumes.

    A large value is stored as `pieces` in the thread's pool, and `value` is empty.
    """

    place: Place
    task_id: str
    idx: int
    task_path: str
    channel: str
    kind: str
    value: bytes
    pieces: bytes | None = None


class ValueKey(NamedTuple):
    channel: str
    version: str


class ValueRow(NamedTuple):
    """A channel's value at a version; an empty `kind` says that the channel was empty."""

    key: ValueKey
    kind: str
    pieces: bytes


class ChunkRow(NamedTuple):
    """Stored bytes: compressed if `packed`, encrypted if `cipher` names how."""

    id: bytes
    cipher: str | None
    packed: bool
    data: bytes


@unchanging
class Pool(Op[bytes | None]):
    """The pool of chunks that a thread uses, or None if it has none yet."""

    thread_id: str


@unchanging
class NewPool(Likely[bytes | None]):
    """As `Pool`, of a thread that likely has none."""

    likely = None
    thread_id: str


@unchanging
class JoinPool(Op[None]):
    thread_id: str
    pool: bytes


@unchanging
class SaveCheckpoint(Op[None]):
    row: CheckpointRow


@unchanging
class SaveValues(Op[None]):
    thread_id: str
    checkpoint_ns: str
    rows: tuple[ValueRow, ...]


@unchanging
class SaveChunks(Op[None]):
    """Store chunks that the pool does not hold yet."""

    pool: bytes
    rows: tuple[ChunkRow, ...]


@unchanging
class SaveStep(Several[None]):
    """What a step of a graph adds: a checkpoint, the values that are new with it, and their new chunks.

    `values` are of the checkpoint's thread and namespace.
    """

    row: CheckpointRow
    values: tuple[ValueRow, ...] = ()
    pool: bytes = b""
    chunks: tuple[ChunkRow, ...] = ()

    @property
    def questions(self) -> tuple[Op[Any], ...]:  # type: ignore[override]  # nobody sets it
        thread_id, checkpoint_ns, _ = self.row.place
        return (
            *([SaveChunks(self.pool, self.chunks)] if self.chunks else ()),
            *([SaveValues(thread_id, checkpoint_ns, self.values)] if self.values else ()),
            SaveCheckpoint(self.row),
        )


@unchanging
class SaveWrites(Op[None]):
    """Ordinary writes keep what was stored first, those with a negative `idx` what was stored last."""

    rows: tuple[WriteRow, ...]


@unchanging
class FindCheckpoints(Op[list[CheckpointRow]]):
    """Checkpoints by falling id, namespace and thread; None means any.

    Only those with ids lower than `before`, and those that follow `after` in this order.
    """

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None
    after: Place | None = None
    limit: int | None = None


class ThreadRow(NamedTuple):
    """A thread with checkpoints; `first` and `last` are ids, which rise with time."""

    thread_id: str
    checkpoints: int
    first: str
    last: str


@unchanging
class Stands(Op[bool]):
    """Whether the last checkpoint of a thread and namespace is this one, without pending writes, and its channels have
    just these values; those that are `empty` have none. A storage may say no without looking.
    """

    row: CheckpointRow
    values: tuple[ValueRow, ...]
    empty: tuple[ValueKey, ...]


def says_no(*_: object) -> Generator[Any, Any, bool]:
    """The answer to `Stands` on a server, which would be asked once more to save less than that."""
    return False
    yield


@unchanging
class ListThreads(Op[list[ThreadRow]]):
    """All threads by the id of their last checkpoint."""


@unchanging
class Ancestors(Op[list[CheckpointRow]]):
    """The checkpoint that this one was made from, the one before that, and so on, nearest first."""

    place: Place
    limit: int


@unchanging
class ThreadIds(Op[list[str]]):
    """The threads after one that have checkpoints or pending writes, in order of id."""

    after: str
    limit: int


@unchanging
class FindRuns(Op[list[Place]]):
    """The checkpoints that these runs made."""

    run_ids: tuple[str, ...]


@unchanging
class FindValues(Op[list[ValueRow]]):
    """Values of a thread and namespace; of these keys, or all."""

    thread_id: str
    checkpoint_ns: str
    keys: frozenset[ValueKey] | None = None


@unchanging
class Holds(Likely[bool]):
    """Whether all of these values of a thread, each in its namespace, are stored just so."""

    likely = True
    thread_id: str
    values: tuple[tuple[str, ValueRow], ...]


@unchanging
class ValueSpaces(Op[list[str]]):
    """The namespaces in which a thread has values."""

    thread_id: str


@unchanging
class FindChunks(Op[list[ChunkRow]]):
    pool: bytes
    ids: tuple[bytes, ...]


@unchanging
class FindWrites(Op[list[WriteRow]]):
    """Pending writes of these checkpoints, of a whole thread where there are none, or of all threads."""

    thread_id: str | None
    checkpoint_ns: str | None = None
    checkpoint_ids: tuple[str, ...] | None = None


@unchanging
class WroteTo(Op[list[str]]):
    """The channels that a task has pending writes for."""

    place: Place
    task_id: str


@unchanging
class PoolPieces(Op[list[bytes]]):
    """The `pieces` of all values and writes of all threads that use a pool."""

    pool: bytes


@unchanging
class PoolChunks(Op[list[bytes]]):
    """The ids of all chunks of a pool."""

    pool: bytes


@unchanging
class DropCheckpoints(Op[None]):
    """Delete these checkpoints and their pending writes."""

    places: tuple[Place, ...]


@unchanging
class DropValues(Op[None]):
    thread_id: str
    checkpoint_ns: str
    keys: tuple[ValueKey, ...]


@unchanging
class DropChunks(Op[None]):
    pool: bytes
    ids: tuple[bytes, ...]


@unchanging
class DropThread(Op[None]):
    """Delete all that a thread has but the chunks of its pool."""

    thread_id: str


@unchanging
class CopyThread(Op[None]):
    """Give a thread's checkpoints, writes and values to another one too; the pool must be shared already."""

    source: str
    target: str
