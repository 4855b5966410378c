"""What plans rely on and change on Redis: the scopes whose stamps tell that another writer was there."""

from __future__ import annotations

from typing import Any

from memstate_langgraph import checkpoint_ops, item_ops, ops
from memstate_langgraph.backends.scopes import LOG, asked_about
from memstate_langgraph.ops import Op

GARBAGE = "garbage"
_READS_LOG = (
    ops.PositionAt,
    ops.FactsAt,
    ops.Count,
    ops.ReadVectors,
    ops.Activate,
    ops.Retire,
    ops.Abandon,
    ops.Expunge,
)
CHANGES_ANYWAY = (
    checkpoint_ops.JoinPool,
    checkpoint_ops.SaveChunks,
    checkpoint_ops.SaveValues,
    checkpoint_ops.SaveWrites,
    ops.Intend,
    item_ops.WasRead,
)
"""Say what is, whatever was: right on any state of the store."""
_CHANGES = (
    *CHANGES_ANYWAY,
    checkpoint_ops.SaveCheckpoint,
    ops.Append,
    ops.Purge,
    ops.Activate,
    ops.Retire,
    ops.Abandon,
    ops.Buried,
    ops.Expunge,
    checkpoint_ops.CopyThread,
    checkpoint_ops.DropCheckpoints,
    checkpoint_ops.DropChunks,
    checkpoint_ops.DropThread,
    checkpoint_ops.DropValues,
)


def scopes_of(op: Op[Any]) -> set[str]:
    """What an op reads or changes, as far as others could be in the way."""
    scopes = {lock.of for lock in asked_about(op)}
    if isinstance(op, _READS_LOG):  # what search may show changes with the log
        scopes.add(LOG.of)
    if isinstance(op, ops.Buried | ops.Purge):
        scopes.add(GARBAGE)
    return scopes


def changed_by(op: Op[Any]) -> set[str]:
    if not isinstance(op, _CHANGES):
        return set()
    removed = isinstance(op, ops.Retire | ops.Abandon | ops.Expunge)
    return scopes_of(op) | ({GARBAGE} if removed else set())
