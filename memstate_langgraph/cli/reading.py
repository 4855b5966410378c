"""Commands that look and change nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from memstate_langgraph.cli.opening import (
    JsonOption,
    NamespaceOption,
    SessionOption,
    StorageArgument,
    Vectors,
    moment_of,
    opened,
    with_vectors,
)
from memstate_langgraph.cli.printing import (
    changed,
    note,
    operation,
    payload,
    print_changes,
    print_json,
    print_table,
    safe,
    when,
    working,
)
from memstate_langgraph.errors import FactNotFound, ValidationFailed
from memstate_langgraph.facts import Entry, Fact
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.ops import ReadLog
from memstate_langgraph.overview import overview, time_of
from memstate_langgraph.reading import read_log
from memstate_langgraph.rules import CHECKPOINT_TYPE, FIELDS, MAX_COUNT

_CONDITION = re.compile(r"([^=<>!]+)(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_OPERATORS = {"=": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}

MomentArgument = Annotated[str, typer.Argument(metavar="MOMENT", help="Such as 17, '2026-01-31 12:00', chat-1/1f0c...")]
LimitOption = Annotated[int | None, typer.Option("--limit", "-l", min=1, max=MAX_COUNT, help="How many at most.")]


def log(
    storage: StorageArgument,
    session: SessionOption = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=MAX_COUNT, help="How many at most.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """The newest changes, newest first."""
    with opened(storage) as memory:
        _print_entries(memory.log(session, limit), as_json)


def show(
    storage: StorageArgument,
    thing: Annotated[str, typer.Argument(metavar="ID", help="A fact's id, an entry's seq, or a transaction's id.")],
    as_json: JsonOption = False,
) -> None:
    """A fact with its history, an entry of the log, or a transaction."""
    with opened(storage) as memory:
        entries = _about(memory, thing)
        if entries is None:
            fact = memory.get(thing)
            history = memory.history(thing)
            if not history:
                raise FactNotFound(f"there is no fact, entry or transaction {thing!r}; `memstate log` lists them")
            if as_json:
                print_json({"fact": fact, "history": history})
                return
            _print_facts([fact] if fact else [], empty=f"{safe(thing)}: deleted, or rolled back; what it was:")
            _print_entries(history, as_json)
            return
        _print_entries(entries, as_json, causes=True)


def diff(
    storage: StorageArgument,
    start: MomentArgument,
    end: Annotated[str | None, typer.Argument(metavar="[MOMENT]", help="The later one; now, if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What changed between two moments: positions of the log, times (UTC), or checkpoints as THREAD/CHECKPOINT."""
    with opened(storage) as memory:
        found = memory.diff(moment_of(start), None if end is None else moment_of(end))
    print_changes(found, as_json, empty="nothing changed")
    if not as_json and found:
        note(found.heading())


def _about(memory: MemoryStore, thing: str) -> list[Entry] | None:
    """The entry of a seq, or those of a transaction."""
    if thing.isdecimal() and int(thing) <= MAX_COUNT and (found := _entries(memory, ReadLog(seqs=(int(thing),)))):
        return found
    return _entries(memory, ReadLog(tx=thing)) or None


def _entries(memory: MemoryStore, question: ReadLog) -> list[Entry]:
    return memory.storage.run(read_log(question))


def query(
    storage: StorageArgument,
    typename: Annotated[str | None, typer.Argument(metavar="[TYPE]", help="Only facts of this type.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", "-w", help="A condition such as topic=food or 'age>=18'; all must hold."),
    ] = None,
    session: SessionOption = None,
    namespace: NamespaceOption = None,
    limit: LimitOption = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="MOMENT", help="As they were then; see diff for moments.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Live facts, in the order of their last change."""
    moment = None if as_of is None else moment_of(as_of)
    with opened(storage) as memory:
        found = memory.query(typename, _filters(where), session, _namespace(namespace), limit, moment)
    if as_json:
        print_json(found)
    else:
        _print_facts(found, empty="no fact answers this")


@with_vectors
def search(
    storage: StorageArgument,
    words: Annotated[str, typer.Argument(metavar="WORDS", help="What to look for.")],
    typename: Annotated[str | None, typer.Option("--type", "-t", help="Only facts of this type.")] = None,
    where: Annotated[list[str] | None, typer.Option("--where", "-w", help="As for query.")] = None,
    session: SessionOption = None,
    namespace: NamespaceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=MAX_COUNT, help="How many at most.")] = 5,
    as_json: JsonOption = False,
    *,
    vectors: Vectors,
) -> None:
    """Live facts nearest in meaning, best first. It needs the vectors: --chroma ..., or --hook."""
    vectors.require("search looks through vectors")
    with opened(storage, vectors) as memory, working("searching"):
        found = memory.search(words, limit, _filters(where), None, typename, _namespace(namespace), session)
    if as_json:
        print_json([{"score": hit.score, "fact": hit.fact} for hit in found])
        return
    rows = [(f"{hit.score:.3f}", hit.fact.type, payload(hit.fact), hit.fact.id) for hit in found]
    print_table(("score", "type", "payload", "id"), rows, empty="nothing is near this")


def threads(
    storage: StorageArgument,
    thread_id: Annotated[str | None, typer.Argument(metavar="[THREAD]", help="List its checkpoints.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The threads that have checkpoints, or the checkpoints of one thread."""
    with opened(storage) as memory:
        if thread_id is not None:
            _print_thread(memory, thread_id, as_json)
            return
        found = memory.storage.run(overview()).threads
    if as_json:
        print_json([{**row._asdict(), "first": time_of(row.first), "last": time_of(row.last)} for row in found])
        return
    rows = [(row.thread_id, row.checkpoints, when(time_of(row.first)), when(time_of(row.last))) for row in found]
    print_table(("thread", "checkpoints", "first", "last (UTC)"), rows, empty="no thread has checkpoints")


def _print_thread(memory: MemoryStore, thread_id: str, as_json: bool) -> None:
    found = memory.query(CHECKPOINT_TYPE, session_id=thread_id)
    if not found:
        raise FactNotFound(f"there are no checkpoints of thread {thread_id!r}")
    if as_json:
        print_json([fact.payload for fact in found])
        return
    rows = []
    for fact in found:
        told: dict[str, Any] = fact.payload
        metadata = told["metadata"]
        place = (told["checkpoint_id"], told["parent_checkpoint_id"], told["checkpoint_ns"])
        rows.append((metadata.get("step"), metadata.get("source"), when(fact.ts), *place))
    print_table(("step", "source", "time (UTC)", "checkpoint", "parent", "namespace"), rows, empty="")


def stats(storage: StorageArgument, as_json: JsonOption = False) -> None:
    """How much there is."""
    with opened(storage) as memory, working("counting"):
        found = memory.storage.run(overview())
        path = Path(str(getattr(getattr(memory.storage, "engine", None), "path", "")))
        size = path.stat().st_size if path.is_file() else None
    counts = found.counts
    checkpoints = sum(row.checkpoints for row in found.threads)
    if as_json:
        vectors = [{"collection": c, "state": s, "number": n} for (c, s), n in counts.vectors.items()]
        told = {"facts": counts.facts, "log_entries": counts.entries, "transactions_in_force": counts.steps}
        print_json(
            {**told, "vectors": vectors, "threads": len(found.threads), "checkpoints": checkpoints, "bytes": size}
        )
        return
    rows: list[tuple[str, object]] = [(f"live facts of type {kind}", number) for kind, number in counts.facts.items()]
    rows += [("log entries", counts.entries), ("transactions that rollback can undo", counts.steps)]
    rows += [(f"vectors in {name}, {state}", number) for (name, state), number in counts.vectors.items()]
    rows += [("threads", len(found.threads)), ("checkpoints", checkpoints)]
    rows += [] if size is None else [("bytes in the file", f"{size:,}")]
    print_table(("what", "number"), rows, empty="")


# --- shared


def _print_facts(facts: list[Fact], *, empty: str) -> None:
    rows = [
        (fact.type, payload(fact), "/".join(fact.namespace), fact.session_id, fact.version, when(fact.ts), fact.id)
        for fact in facts
    ]
    columns = ("type", "payload", "namespace", "session", "version", "changed (UTC)", "id")
    print_table(columns, rows, empty=empty)


def _print_entries(entries: list[Entry], as_json: bool, *, causes: bool = False) -> None:
    if as_json:
        print_json(entries)
        return
    rows = [
        (
            entry.seq,
            when(entry.ts),
            operation(entry),
            entry.type,
            changed(entry.before, entry.after),
            entry.session_id,
            " ".join(part for part in (entry.actor, entry.reason) if part),
            entry.fact_id,
        )
        for entry in entries
    ]
    columns = ("seq", "time (UTC)", "change", "type", "payload", "session", "by", "fact")
    print_table(columns, rows, empty="no change is logged")
    if causes:
        for entry in entries:
            told = {name: value for name, value in entry.cause.model_dump().items() if value is not None}
            note(f"entry {entry.seq}: transaction {entry.tx}, version {entry.version}")
            if told:
                note(f"  caused by {safe(', '.join(f'{name} {value}' for name, value in told.items()))}")


def _namespace(parts: list[str] | None) -> tuple[str, ...] | None:
    return tuple(parts) if parts else None


def _filters(conditions: list[str] | None) -> dict[str, Any]:
    filters: dict[str, dict[str, Any]] = {}
    for condition in conditions or ():
        read = _CONDITION.fullmatch(condition)
        if read is None:
            raise ValidationFailed(f"--where: {condition!r} is no condition; write field=value, != > >= < or <=")
        name, sign, text = read[1].strip(), read[2], read[3].strip()
        key = name if name in FIELDS or name.startswith("payload.") else f"payload.{name}"
        if _OPERATORS[sign] in filters.setdefault(key, {}):
            raise ValidationFailed(f"--where: there are two conditions {name}{sign}...; all must hold")
        filters[key][_OPERATORS[sign]] = _value(text)
    return dict(filters)


def _value(text: str) -> Any:
    """A number, true, false, null or other JSON as what it is; anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
