"""What is in a storage, for people who look: the command line and notebooks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from memstate_langgraph.checkpoint_ops import ListThreads, ThreadRow
from memstate_langgraph.errors import MemoryStoreError
from memstate_langgraph.facts import Entry
from memstate_langgraph.ops import Count, Counts, Plan, ReadLog, Work, reads
from memstate_langgraph.tables import table

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


def store_html(name: str, storage: Any, seen: Callable[[Work[Overview]], Work[Overview]]) -> str:
    """A store in a notebook, `seen` as its types are; through the sync door, since a cell is shown at once."""
    door = storage.sync() if hasattr(storage, "sync") else storage
    about = f"{name} on {type(storage).__name__}"
    try:
        found: Overview = door.run(seen(overview(5)))
    except MemoryStoreError as error:
        return table((about,), [(str(error),)])
    counts = found.counts
    live = sum(number for (_, state), number in counts.vectors.items() if state == "live")
    rows: list[tuple[str, int]] = [(f"live facts of type {kind}", number) for kind, number in counts.facts.items()]
    rows += [("live vectors", live), ("log entries", counts.entries), ("threads", len(found.threads))]
    rows += [("checkpoints", sum(row.checkpoints for row in found.threads))]
    head = table(("what", "number"), rows, about)
    last = table(Entry.COLUMNS, (entry.cells() for entry in found.last), "last changes")
    return head + last if found.last else head
