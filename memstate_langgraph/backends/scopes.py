"""What a writing plan relies on while it runs: facts and log as one, each thread, each pool of chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from memstate_langgraph import checkpoint_ops, ops
from memstate_langgraph.ops import Op


class Lock(NamedTuple):
    of: str
    shared: bool = False


LOG = Lock("log")

_LOG = (
    ops.Load,
    ops.Holders,
    ops.Find,
    ops.Append,
    ops.ReadLog,
    ops.Steps,
    ops.LastSeq,
    ops.Hydrate,
    ops.Purge,
)
_KEEPS_CHUNKS = (checkpoint_ops.FindChunks, checkpoint_ops.SaveChunks, checkpoint_ops.JoinPool)


def asked_about(op: Op[Any]) -> Iterator[Lock]:
    """What a writing plan must hold while it relies on the answer to an op."""
    if isinstance(op, _LOG):
        yield LOG
    # tasks of one step save their writes at once; only who deletes them is in the way
    shared = isinstance(op, checkpoint_ops.SaveWrites)
    rows = [*getattr(op, "rows", ()), *([op.row] if isinstance(op, checkpoint_ops.SaveCheckpoint) else [])]
    places = [*getattr(op, "places", ()), *(row.place for row in rows if hasattr(row, "place"))]
    if isinstance(op, checkpoint_ops.Ancestors | checkpoint_ops.WroteTo):
        places.append(op.place)
    threads = [getattr(op, name, None) for name in ("thread_id", "source", "target")]
    for thread_id in sorted({place.thread_id for place in places} | {name for name in threads if name is not None}):
        yield thread(thread_id, shared)
    pool = getattr(op, "pool", None)
    if pool is not None:
        yield Lock(f"pool {pool.hex()}", isinstance(op, _KEEPS_CHUNKS))


def thread(thread_id: str, shared: bool = False) -> Lock:
    return Lock(f"thread {thread_id}", shared)
