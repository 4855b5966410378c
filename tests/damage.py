"""What could happen to stored checkpoints: bytes that are not what was stored, or gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from memstate_langgraph import checkpoint_ops as ops
from memstate_langgraph.ops import Plan, writes

Row = TypeVar("Row")

GARBAGE = bytes(10_000)
"""Long enough for whatever is read of it."""


@writes
def _stored_again(
    thread_id: str,
    checkpoint: Callable[[ops.CheckpointRow], ops.CheckpointRow],
    write: Callable[[ops.WriteRow], ops.WriteRow],
    chunk: Callable[[ops.ChunkRow], ops.ChunkRow | None],
    value: Callable[[ops.ValueRow], ops.ValueRow],
) -> Plan[None]:
    pool = yield from ops.Pool(thread_id)
    assert pool is not None
    checkpoints = yield from ops.FindCheckpoints(thread_id)
    pending = yield from ops.FindWrites(thread_id)
    values = yield from ops.FindValues(thread_id, "")
    ids = tuple((yield from ops.PoolChunks(pool)))
    chunks = yield from ops.FindChunks(pool, ids)
    assert all((checkpoints, pending, chunks, values)), "there is something to damage"
    yield from ops.DropCheckpoints(tuple(row.place for row in checkpoints))
    yield from ops.DropChunks(pool, ids)
    for row in checkpoints:
        yield from ops.SaveCheckpoint(checkpoint(row))
    yield from ops.SaveWrites(tuple(map(write, pending)))
    yield from ops.SaveValues(thread_id, "", tuple(map(value, values)))
    yield from ops.SaveChunks(pool, tuple(row for row in map(chunk, chunks) if row is not None))


def _same(row: Row) -> Row:
    return row


def _lost(row: object) -> None:
    return None


DAMAGES: dict[str, dict[str, Any]] = {
    "a pending write": {"write": lambda row: row._replace(value=GARBAGE)},
    "a chunk": {"chunk": lambda row: row._replace(data=GARBAGE, packed=False)},
    "a packed chunk": {"chunk": lambda row: row._replace(data=GARBAGE, packed=True)},
    "no chunk": {"chunk": _lost},
    "a small value": {"value": lambda row: row._replace(pieces=row.pieces.replace(b"hello", b"hallo"))},
    "a checkpoint": {"checkpoint": lambda row: row._replace(body=GARBAGE)},
}
"""What is damaged of a thread, and how."""


def damage(storage: Any, thread_id: str, what: str) -> None:
    """Damage what is stored of a thread and of those that share with it, on any storage."""
    change = {"checkpoint": _same, "write": _same, "chunk": _same, "value": _same, **DAMAGES[what]}
    storage.run(_stored_again(thread_id, **change))
