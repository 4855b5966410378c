"""What is in a storage, for people who look: the command line and notebooks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from memstate_langgraph.checkpoint_ops import FindCheckpoints, ListThreads, ThreadRow
from memstate_langgraph.checkpoints import checkpoint_fact
from memstate_langgraph.facts import Entry, Fact
from memstate_langgraph.ops import Count, Counts, Plan, ReadLog, reads

_GREGORIAN = datetime(1582, 10, 15, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Overview:
    counts: Counts
    threads: Sequence[ThreadRow]
    last: Sequence[Entry]


@reads
def overview(entries: int = 0) -> Plan[Overview]:
    """Counts, threads and the newest entries, of one moment."""
    counts = yield from Count()
    threads = yield from ListThreads()
    last = (yield from ReadLog(limit=entries)) if entries else []
    return Overview(counts, threads, last)


@reads
def thread(thread_id: str) -> Plan[list[Fact]]:
    """A thread's checkpoints as facts, in the order of their ids, which is that of time."""
    rows = yield from FindCheckpoints(thread_id)
    return sorted((checkpoint_fact(row) for row in rows), key=lambda fact: str(fact.payload["checkpoint_id"]))


@reads
def entries_of(question: ReadLog) -> Plan[list[Entry]]:
    return (yield from question)


def time_of(checkpoint_id: str) -> datetime | None:
    """When a checkpoint was made, as its id tells; None for an id that is no UUID of version 6."""
    try:
        number = uuid.UUID(checkpoint_id)
    except ValueError:
        return None
    if number.version != 6:
        return None
    ticks = (number.int >> 96 << 28) | ((number.int >> 80 & 0xFFFF) << 12) | (number.int >> 64 & 0xFFF)
    return _GREGORIAN + timedelta(microseconds=ticks // 10)
