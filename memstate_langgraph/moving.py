"""Moving: all that one storage holds into another one, and LangGraph's own checkpoints into ours.

Both can be stopped at any moment and called again: what has arrived is not sent twice, and what has arrived is
compared with what was sent before the call returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from memstate_langgraph.checkpoint_ops import (
    CheckpointRow,
    FindCheckpoints,
    FindChunks,
    FindValues,
    FindWrites,
    JoinPool,
    Pool,
    PoolChunks,
    SaveCheckpoint,
    SaveChunks,
    SaveValues,
    SaveWrites,
    ThreadIds,
    ValueRow,
    ValueSpaces,
    WriteRow,
)
from memstate_langgraph.errors import ConflictError, StorageError
from memstate_langgraph.facts import Entry, Fact, Query, Vector
from memstate_langgraph.ops import (
    Append,
    Expunge,
    Find,
    Intend,
    LastSeq,
    Plan,
    ReadLog,
    ReadVectors,
    Work,
    reads,
    writes,
)
from memstate_langgraph.reading import log_position
from memstate_langgraph.run import Call, Flow, Progress, aperform, check_progress, perform, tell

PAGE = 500


@dataclass(frozen=True, slots=True)
class Moved:
    """What the target holds of the source now, all of it compared."""

    entries: int
    facts: int
    threads: int
    vectors: int


class _Side:
    """A storage as something that a flow calls: two of them cannot both be the one that a flow runs in."""

    def __init__(self, storage: Any) -> None:
        self.storage = getattr(storage, "storage", storage)

    def ask(self, work: Work[Any]) -> Any:
        return self.storage.run(work)

    async def aask(self, work: Work[Any]) -> Any:
        return await self.storage.run(work)

    def __call__(self, work: Work[Any]) -> Flow[Any]:
        return (yield Call(self, "ask", (work,)))


def copy(source: Any, target: Any, *, vectors: Iterable[str] = (), progress: Progress | None = None) -> Moved:
    """Move facts, log and checkpoints into another storage, exactly: same seqs, versions and times.

    Takes storages or memory stores. `vectors` names the hooks whose vector stores stay in use: their books move
    along. Without it a vector store of the target is filled by `repair()`, which embeds what is missing. Nobody
    should write to either side meanwhile; who writes to the target is told so with `ConflictError`.
    """
    return perform(_copying(_Side(source), _Side(target), tuple(vectors), _checked(progress)), source)


async def acopy(source: Any, target: Any, *, vectors: Iterable[str] = (), progress: Progress | None = None) -> Moved:
    """`copy` through the async door: both sides are async."""
    return await aperform(_copying(_Side(source), _Side(target), tuple(vectors), _checked(progress)), source)


def _checked(progress: Progress | None) -> Progress:
    check_progress(progress)
    return partial(tell, progress)


def _copying(source: _Side, target: _Side, names: tuple[str, ...], report: Progress) -> Flow[Moved]:
    total: int = yield from source(log_position())
    done: int = yield from target(log_position())
    if done:
        ours, theirs = (yield from target(_entries((done,)))), (yield from source(_entries((done,))))
        if ours != theirs:
            raise ConflictError("copy: the target has a history of its own; give it an empty storage")
    while done < total:
        transactions: list[Append] = yield from source(_transactions(done))
        yield from target(_append(tuple(transactions), done))
        done = transactions[-1].entries[-1].seq
        report("facts and log", done, total)
    moved = 0
    for name in names:
        after = ""
        while rows := (yield from source(_vectors(name, after))):
            yield from target(_keep_vectors(tuple(rows)))
            after, moved = rows[-1].id, moved + len(rows)
            report(f"books of {name}", moved, moved)
    threads = yield from _copy_threads(source, target, report)
    entries = yield from _compare(source, target, total, report)
    facts: list[Fact] = yield from source(_facts())
    if facts != (yield from target(_facts())):
        raise StorageError("copy: the facts of the two sides differ; was the source written to meanwhile? copy again")
    return Moved(entries, len(facts), threads, moved)


def _compare(source: _Side, target: _Side, total: int, report: Progress) -> Flow[int]:
    count = 0
    for start in range(0, total, PAGE):
        sent: list[Entry] = yield from source(_span(start))
        if sent != (yield from target(_span(start))):
            raise StorageError(f"copy: the logs differ between entries {start + 1} and {start + PAGE}")
        count += len(sent)
        report("comparing", min(start + PAGE, total), total)
    return count


# --- facts and log


@reads
def _entries(seqs: tuple[int, ...]) -> Plan[list[Entry]]:
    return (yield from ReadLog(seqs=seqs))


@reads
def _span(after: int) -> Plan[list[Entry]]:
    return (yield from ReadLog(after=after, until=after + PAGE))


@reads
def _facts() -> Plan[list[Fact]]:
    return (yield from Find(Query()))


@reads
def _transactions(after: int) -> Plan[list[Append]]:
    """Whole transactions after a position, as they were appended."""
    entries: list[Entry] = []
    until = after
    while not entries:
        until += PAGE
        entries = yield from ReadLog(after=after, until=until)
    entries.reverse()
    last = entries[-1].tx
    entries = [entry for entry in entries if entry.tx != last] + [*reversed((yield from ReadLog(tx=last)))]
    undone = tuple(entry.undoes for entry in entries if entry.undoes is not None)
    tx_of = {entry.seq: entry.tx for entry in (yield from ReadLog(seqs=undone))} if undone else {}
    made = []
    for _, group in groupby(entries, key=lambda entry: entry.tx):
        own = tuple(group)
        back = dict.fromkeys(tx_of[entry.undoes] for entry in own if entry.undoes is not None)
        made.append(Append(own, step=any(entry.counts for entry in own), undone=tuple(back)))
    return made


@writes
def _append(transactions: tuple[Append, ...], after: int) -> Plan[None]:
    if (yield from LastSeq()) != after:
        raise ConflictError("copy: somebody else wrote to the target meanwhile")
    for transaction in transactions:
        yield from transaction


@reads
def _vectors(name: str, after: str) -> Plan[list[Vector]]:
    return (yield from ReadVectors(name, after, PAGE))


@writes
def _keep_vectors(rows: tuple[Vector, ...]) -> Plan[None]:
    yield from Expunge(tuple(row.id for row in rows))
    yield from Intend(rows)


# --- checkpoints


@dataclass(frozen=True, slots=True)
class _Thread:
    pool: bytes | None
    checkpoints: tuple[CheckpointRow, ...]
    values: tuple[tuple[str, tuple[ValueRow, ...]], ...]
    writes: tuple[WriteRow, ...]


def _copy_threads(source: _Side, target: _Side, report: Progress) -> Flow[int]:
    count, after = 0, ""
    while names := (yield from source(_thread_ids(after))):
        for name in names:
            thread: _Thread = yield from source(_thread(name))
            if thread != (yield from target(_thread(name))):
                yield from _copy_thread(source, target, name, thread)
            elif thread.pool is not None:
                yield from _copy_chunks(source, target, thread.pool)
            count += 1
            report("threads", count, count)
        after = names[-1]
    return count


def _copy_thread(source: _Side, target: _Side, name: str, thread: _Thread) -> Flow[None]:
    if thread.pool is not None:
        yield from _copy_chunks(source, target, thread.pool)
    yield from target(_save_thread(name, thread))
    if thread != (yield from target(_thread(name))):
        raise StorageError(f"copy: thread {name!r} differs; does the target have a thread of that name already?")


def _copy_chunks(source: _Side, target: _Side, pool: bytes) -> Flow[None]:
    held = set((yield from target(_chunk_ids(pool))))
    missing = [chunk for chunk in (yield from source(_chunk_ids(pool))) if chunk not in held]
    for start in range(0, len(missing), PAGE):
        rows = yield from source(_chunks(pool, tuple(missing[start : start + PAGE])))
        yield from target(_save_chunks(pool, tuple(rows)))


@reads
def _thread_ids(after: str) -> Plan[list[str]]:
    return (yield from ThreadIds(after, PAGE))


@reads
def _thread(name: str) -> Plan[_Thread]:
    pool = yield from Pool(name)
    rows = yield from FindCheckpoints(name)
    values: dict[str, tuple[ValueRow, ...]] = {}
    for space in sorted((yield from ValueSpaces(name))):
        values[space] = tuple(sorted((yield from FindValues(name, space))))
    found = yield from FindWrites(name)
    return _Thread(
        pool, tuple(sorted(rows, key=lambda row: row.place)), tuple(values.items()), tuple(sorted(found, key=_key))
    )


def _key(row: WriteRow) -> tuple[Any, ...]:
    return row.place, row.task_id, row.idx


@writes
def _save_thread(name: str, thread: _Thread) -> Plan[None]:
    held = yield from Pool(name)
    stored = yield from FindCheckpoints(name)
    if (held is not None and held != thread.pool) or not set(stored) <= set(thread.checkpoints):
        raise ConflictError(f"copy: the target has a thread {name!r} of its own; delete it first")
    if held is None and thread.pool is not None:
        yield from JoinPool(name, thread.pool)
    for space, rows in thread.values:
        yield from SaveValues(name, space, rows)
    for row in thread.checkpoints:
        yield from SaveCheckpoint(row)
    if thread.writes:
        yield from SaveWrites(thread.writes)


@reads
def _chunk_ids(pool: bytes) -> Plan[list[bytes]]:
    return (yield from PoolChunks(pool))


@reads
def _chunks(pool: bytes, ids: tuple[bytes, ...]) -> Plan[Any]:
    return (yield from FindChunks(pool, ids))


@writes
def _save_chunks(pool: bytes, rows: tuple[Any, ...]) -> Plan[None]:
    yield from SaveChunks(pool, rows)


# --- from other savers


class _Listing:
    """A saver's checkpoints, oldest first; only where they are, so that a long history fits."""

    def __init__(self, saver: Any) -> None:
        self.saver = saver

    def configs(self, config: Any) -> list[Any]:
        return _oldest_first(found.config for found in self.saver.list(config))

    async def aconfigs(self, config: Any) -> list[Any]:
        return _oldest_first([found.config async for found in self.saver.alist(config)])


def _oldest_first(configs: Iterable[Any]) -> list[Any]:
    return sorted(configs, key=lambda config: config["configurable"]["checkpoint_id"])


def import_checkpoints(
    saver: Any, target: Any, *, thread_id: str | None = None, progress: Progress | None = None
) -> int:
    """Bring the threads of any LangGraph saver, or one of them, into ours, history and pending writes included.

    Checkpoints keep their ids, so whoever resumes a thread finds it where it was. Answers how many there are.
    """
    return perform(_importing(saver, target, thread_id, _checked(progress)), target)


async def aimport_checkpoints(
    saver: Any, target: Any, *, thread_id: str | None = None, progress: Progress | None = None
) -> int:
    """`import_checkpoints` through the async door: both savers are asked with their async methods."""
    return await aperform(_importing(saver, target, thread_id, _checked(progress)), target)


def _importing(saver: Any, target: Any, thread_id: str | None, report: Progress) -> Flow[int]:
    asked = None if thread_id is None else {"configurable": {"thread_id": thread_id}}
    configs: list[Any] = yield Call(_Listing(saver), "configs", (asked,))
    versions: dict[tuple[str, str, str], dict[str, Any]] = {}
    for done, config in enumerate(configs, 1):
        found = yield Call(saver, "get_tuple", (config,))
        place = config["configurable"]
        here = (place["thread_id"], place.get("checkpoint_ns", ""))
        parent = (found.parent_config or {"configurable": {}})["configurable"].get("checkpoint_id")
        now = found.checkpoint["channel_versions"]
        versions[*here, place["checkpoint_id"]] = now
        if (yield Call(target, "get_tuple", (config,))) is None:
            before = versions.get((*here, parent), {})
            under = {"thread_id": here[0], "checkpoint_ns": here[1]}
            if parent is not None:
                under["checkpoint_id"] = parent
            new = {channel: version for channel, version in now.items() if before.get(channel) != version}
            yield Call(target, "put", ({"configurable": under}, found.checkpoint, found.metadata, new))
        yield from _import_writes(target, config, found.pending_writes or ())
        report("checkpoints", done, len(configs))
    return len(configs)


def _import_writes(target: Any, config: Any, pending: Sequence[tuple[str, str, Any]]) -> Flow[None]:
    """Savers do not tell the path of a task, only the order: it is kept by numbering the tasks."""
    tasks: dict[str, list[tuple[str, Any]]] = {}
    for task_id, channel, value in pending:
        tasks.setdefault(task_id, []).append((channel, value))
    for number, (task_id, found) in enumerate(tasks.items()):
        yield Call(target, "put_writes", (config, found, task_id, f"imported {number:06}"))
