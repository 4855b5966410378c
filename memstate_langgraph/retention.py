"""Retention: what is deleted because its time has passed, and what is erased because somebody asks for it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from memstate_langgraph import ops
from memstate_langgraph.changes import By, Expire, Purge
from memstate_langgraph.checkpoint_ops import FindCheckpoints, ListThreads, ThreadRow
from memstate_langgraph.errors import HookError, ValidationFailed
from memstate_langgraph.facts import Entry, Fact, Namespace, Operation, Query
from memstate_langgraph.flows import Core
from memstate_langgraph.item_ops import WasRead
from memstate_langgraph.ops import Plan, ReadLog, notes, reads, writes
from memstate_langgraph.overview import time_of
from memstate_langgraph.protocol import ATTEMPTS, contended
from memstate_langgraph.reading import find, log_position, read_log
from memstate_langgraph.rules import ITEM_TYPE, MAX_COUNT, check_count, check_namespace, check_text
from memstate_langgraph.run import Flow, Progress, check_progress, tell
from memstate_langgraph.schemas import seconds_of
from memstate_langgraph.staging import STAGES, drafts_of
from memstate_langgraph.tables import table

if TYPE_CHECKING:
    from memstate_langgraph.checkpoints import Lens

logger = logging.getLogger("memstate_langgraph")

PAGE = 500
"""How many facts are deleted in one transaction."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep deleted: facts by type, whole threads, checkpoints (those of whole threads among them)."""

    facts: Mapping[str, int] = field(default_factory=dict)
    threads: tuple[str, ...] = ()
    checkpoints: int = 0

    def _rows(self) -> list[tuple[str, int]]:
        rows = [(f"expired facts of type {typename}", count) for typename, count in self.facts.items()]
        if self.threads:
            rows.append(("idle threads", len(self.threads)))
        if self.checkpoints:
            rows.append(("checkpoints", self.checkpoints))
        return rows

    def __bool__(self) -> bool:
        return bool(self._rows())

    def __str__(self) -> str:
        return "\n".join(["swept", *(f"  {count} {what}" for what, count in self._rows() or [("things to delete", 0)])])

    def _repr_html_(self) -> str:
        return table(("swept", "number"), self._rows())


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge erased. `seqs` are the entries of the log that say so, one for each fact.

    `waiting` says why a vector store could not yet be cleared; whoever writes next tries again, and `repair` does.
    """

    scope: str
    fact_ids: tuple[str, ...]
    seqs: tuple[int, ...]
    entries: int
    threads: tuple[str, ...] = ()
    waiting: str = ""

    def __bool__(self) -> bool:
        return bool(self.fact_ids or self.threads)

    def _rows(self) -> list[tuple[str, int]]:
        return [
            ("facts", len(self.fact_ids)),
            ("log entries emptied", self.entries),
            ("threads deleted", len(self.threads)),
        ]

    def __str__(self) -> str:
        lines = [f"purged {self.scope}", *(f"  {count} {what}" for what, count in self._rows())]
        return "\n".join(lines + ([f"  vectors are still to be removed: {self.waiting}"] if self.waiting else []))

    def _repr_html_(self) -> str:
        rows = [*self._rows(), *([("vectors still to be removed", self.waiting)] if self.waiting else [])]
        return table(("what", "number"), rows, f"purged {self.scope}")


# --- what has expired


def sweep(core: Core, progress: Progress | None, typename: str | None = None) -> Flow[Swept]:
    """Delete expired facts, a page in each transaction; the plan of the deletion decides what has expired."""
    check_progress(progress)
    counts: Counter[str] = Counter()
    looked_at: set[str] = set()
    now = core.now()
    while True:
        query = Query(typename, limit=PAGE, ended=now, where=lambda fact: fact.id not in looked_at)
        page: list[Fact] = yield find(query)
        if not page:
            return Swept(dict(sorted(counts.items())))
        types = {fact.id: fact.type for fact in page}
        looked_at.update(types)
        draft, _ = yield from core.write([Expire(tuple(types))])
        gone = draft.results[0]
        counts.update(types[fact_id] for fact_id in gone)
        items = tuple(fact_id for fact_id in gone if types[fact_id] == ITEM_TYPE)
        if items:
            yield forget_reads(items)
        tell(progress, "sweeping facts", counts.total(), counts.total())


@notes
def forget_reads(ids: tuple[str, ...]) -> Plan[None]:
    yield from WasRead(ids, None)


def sweep_threads(
    core: Core, lens: Lens, idle: float | timedelta | None, keep_last: int | None, progress: Progress | None
) -> Flow[Swept]:
    """`sweep`, then the threads to which nothing was added for so long, then all but the last checkpoints of others."""
    from memstate_langgraph.checkpoints import Keep, prune  # loads LangGraph, which facts alone do not need

    age = seconds_of(idle, "idle")
    if keep_last is not None:
        check_count(keep_last, "keep_last", 1)
    swept = yield from sweep(core, progress)
    before = None if age is None else core.now() - timedelta(seconds=age)
    threads: list[ThreadRow] = yield list_threads()
    gone: list[str] = []
    checkpoints = 0
    for done, row in enumerate(threads, 1):
        old = before is not None and ((last := time_of(row.last)) is None or last < before)
        if before is not None and old and (yield delete_idle(row.thread_id, before.isoformat(), lens)):
            gone.append(row.thread_id)
            checkpoints += row.checkpoints
        elif keep_last is not None and row.checkpoints > keep_last:
            checkpoints += yield prune(row.thread_id, Keep(keep_last), lens)
        tell(progress, "sweeping threads", done, len(threads))
    return Swept(swept.facts, tuple(gone), checkpoints)


@reads
def list_threads() -> Plan[list[ThreadRow]]:
    return (yield from ListThreads())


# --- what somebody wants erased


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose facts are meant; exactly one is given."""

    fact_id: str | None = None
    session_id: str | None = None
    namespace: Namespace | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.fact_id, self.session_id, self.namespace)) != 1:
            raise ValidationFailed("purge: say what, with exactly one of fact_id, session_id and namespace")
        if self.namespace is not None:
            check_namespace(self.namespace)
            if not self.namespace:
                raise ValidationFailed("purge: the namespace () holds everything; name one below it, or a session")
        for name in ("fact_id", "session_id"):
            if (text := getattr(self, name)) is not None:
                check_text(text, name)

    def __str__(self) -> str:
        if self.namespace is not None:
            return f"namespace {'/'.join(self.namespace)}"
        return f"fact {self.fact_id}" if self.session_id is None else f"session {self.session_id}"

    def covers(self, entry: Entry) -> bool:
        """Whether an entry tells of a fact that is meant."""
        if self.fact_id is not None:
            return entry.fact_id == self.fact_id
        facts = [fact for fact in (entry.before, entry.after) if fact is not None]
        if self.session_id is not None:
            return entry.session_id == self.session_id or any(fact.session_id == self.session_id for fact in facts)
        assert self.namespace is not None
        return any(fact.namespace[: len(self.namespace)] == self.namespace for fact in facts)

    def question(self, after: int, until: int) -> ReadLog:
        """What of a span of the log may be covered."""
        return ReadLog(session_id=self.session_id, fact_id=self.fact_id, after=after, until=until)


def purge(core: Core, scope: Scope, by: By, checkpoints: bool, progress: Progress | None) -> Flow[Purged]:
    """Erase in one transaction. What a reader could see is gone with it; the vector stores follow at once.

    What is written down of retired vectors outlives a crash, so whoever comes next removes them.
    """
    check_progress(progress)
    if core.ambient.get() is not None:
        raise ValidationFailed("purge: cannot be undone, so it is no part of a transaction; leave the block first")
    found: set[str] = set()
    threads = set() if scope.session_id is None else {scope.session_id}
    at, last = 0, (yield log_position())
    while at < last:  # all but the newest of it outside any transaction that others wait for
        until = min(at + PAGE, last) if scope.namespace else last  # of a namespace the log has no index
        page: list[Entry] = yield read_log(scope.question(at, until))
        found |= _meant(scope, page)
        threads |= _threads(scope, page)
        at = until
        tell(progress, "reading the log", at, last)
    return (yield from _erase(core, scope, by, checkpoints, found, threads, last))


def _erase(
    core: Core, scope: Scope, by: By, checkpoints: bool, found: set[str], threads: set[str], last: int
) -> Flow[Purged]:
    emptied, deleted = 0, list[str]()

    def besides() -> Plan[None]:
        nonlocal emptied
        newer = yield from scope.question(last, MAX_COUNT)
        if late := _meant(scope, newer) - found:
            raise _More(late)
        threads.update(_threads(scope, newer))
        ids = tuple(sorted(found))
        emptied = yield from ops.Purge(ids, time.time())
        yield from WasRead(ids, None)
        if checkpoints:
            from memstate_langgraph.checkpoints import delete_thread  # loads LangGraph, which facts do not need

            deleted.clear()
            for thread_id in sorted(threads):
                deleted.extend(row.place.thread_id for row in (yield from FindCheckpoints(thread_id, limit=1)))
                yield from delete_thread(thread_id).start()

    for _ in range(ATTEMPTS):
        try:
            _, entries = yield from core.write([Purge(tuple(sorted(found)), by)], besides)
        except _More as more:  # somebody wrote meanwhile
            found |= more.ids
            continue
        for stage in STAGES.of_storage(core.identity):
            staged = [entry for draft in drafts_of([stage]) for entry in draft.entries]
            if any(entry.fact_id in found or scope.covers(entry) for entry in staged):
                yield from stage.owner.give_up(stage)
        waiting = yield from _remove_vectors(core)
        said = [entry for entry in entries if entry.op is Operation.PURGE]  # some may have expired first
        ids, seqs = tuple(entry.fact_id for entry in said), tuple(entry.seq for entry in said)
        return Purged(str(scope), ids, seqs, emptied, tuple(deleted), waiting)
    raise contended()


class _More(Exception):
    """There are more facts to purge than were known."""

    def __init__(self, ids: set[str]) -> None:
        self.ids = ids


def _meant(scope: Scope, entries: Sequence[Entry]) -> set[str]:
    """The facts that are meant and not purged already."""
    covered = [entry for entry in entries if scope.covers(entry)]
    return {entry.fact_id for entry in covered if not entry.purged and entry.op is not Operation.PURGE}


def _threads(scope: Scope, entries: Sequence[Entry]) -> set[str]:
    """The threads whose tasks wrote what is meant."""
    return {thread_id for entry in entries if scope.covers(entry) and (thread_id := entry.cause.thread_id)}


def _remove_vectors(core: Core) -> Flow[str]:
    """The erasure stands whatever the vector stores say; they are asked again by whoever writes next."""
    try:
        yield from core.collect()
    except HookError as error:
        logger.warning("purge: vectors are still to be removed", exc_info=True)
        return str(error)
    return ""


@writes
def delete_idle(thread_id: str, before: str, lens: Lens) -> Plan[bool]:
    """Delete a thread whose last checkpoint was made before then."""
    from memstate_langgraph.checkpoints import delete_thread  # loads LangGraph, which facts do not need

    newest = yield from FindCheckpoints(thread_id, limit=1)
    if not newest or lens.stamp(newest[0]) >= before:
        return False
    yield from delete_thread(thread_id).start()
    return True
