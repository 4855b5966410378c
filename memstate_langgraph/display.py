"""For notebooks: lists of facts and entries as tables, a thread's checkpoints and the lives of facts as pictures.

Facts, entries, reports and stores show themselves. What `query`, `search` and `log` return are plain lists; after
`%load_ext memstate_langgraph.display` a notebook shows these as tables too, or one at a time with `table(...)`.
Pictures are SVG, drawn without any further package: `checkpoint_tree(...)`, `timeline(...)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from memstate_langgraph.async_memory import AsyncMemoryStore
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Entry, Fact, ScoredFact
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.ops import ReadLog
from memstate_langgraph.pictures import Picture, Point, draw_timeline, draw_tree
from memstate_langgraph.reading import read_log
from memstate_langgraph.rules import check_count, check_text
from memstate_langgraph.saver import MemStateCheckpointer
from memstate_langgraph.tables import Html, fields, short, table as html_table

COLUMNS = 6
"""With more fields than this, payloads stay in one column."""

Shown = Fact | ScoredFact | Entry


def table(things: Iterable[Shown], caption: str = "") -> Html:
    """Facts, hits or log entries as a table."""
    listed = list(things)
    for thing in listed:
        if not isinstance(cast("object", thing), Fact | ScoredFact | Entry):
            raise ValidationFailed(f"table: takes facts, hits of a search or log entries, not {thing!r}")
    entries = [thing for thing in listed if isinstance(thing, Entry)]
    if entries:
        html = html_table(Entry.COLUMNS, (entry.cells() for entry in entries), caption)
    else:
        html = _facts([thing for thing in listed if not isinstance(thing, Entry)], caption)
    return Html(html, f"<{len(listed)} rows>")


def _facts(hits: Sequence[Fact | ScoredFact], caption: str) -> str:
    facts = [hit.fact if isinstance(hit, ScoredFact) else hit for hit in hits]
    scores = [hit.score if isinstance(hit, ScoredFact) else None for hit in hits]
    keys = list(dict.fromkeys(key for fact in facts for key in fact.payload))
    columns: dict[str, list[object]] = {"type": [fact.type for fact in facts]}
    if len(keys) <= COLUMNS:
        columns |= {f"{key}": [fact.payload.get(key) for fact in facts] for key in keys if key not in columns}
        columns |= {f"payload.{key}": [fact.payload.get(key) for fact in facts] for key in keys if key == "type"}
    else:
        columns["payload"] = [fields(fact.payload) for fact in facts]
    columns["namespace "] = ["/".join(fact.namespace) for fact in facts]
    columns["session "] = [fact.session_id for fact in facts]
    columns["version "] = [fact.version for fact in facts]
    columns["score "] = list(scores)
    shown = {name: values for name, values in columns.items() if any(value not in (None, "") for value in values)}
    return html_table([name.strip() for name in shown], zip(*shown.values(), strict=True), caption)


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext memstate_langgraph.display`: lists of facts, hits and entries show as tables."""
    shell.display_formatter.formatters["text/html"].for_type(list, _list_html)


def unload_ipython_extension(shell: Any) -> None:
    shell.display_formatter.formatters["text/html"].pop(list, None)


def _list_html(listed: list[Any]) -> str | None:
    """None leaves a list of anything else to the notebook."""
    if not listed or not all(isinstance(thing, Fact | ScoredFact | Entry) for thing in listed):
        return None
    return table(listed).html


# --- pictures


def checkpoint_tree(saver: MemStateCheckpointer, thread_id: str, *, limit: int = 100, width: int = 900) -> Picture:
    """A thread's checkpoints, oldest above, each fork a branch, with what they say and the facts changed from them.

    A fact stands beside the checkpoint that the changing task ran on. `limit` takes the newest so many.
    """
    if not isinstance(cast("object", saver), MemStateCheckpointer):
        raise ValidationFailed(f"checkpoint_tree: takes a MemStateCheckpointer, not {saver!r}")
    check_text(thread_id, "thread_id")
    check_count(limit, "limit", 1)
    storage = _sync(saver.memory)
    reader = MemStateCheckpointer(MemoryStore(storage), serde=saver.serde)
    found = list(reader.list({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}, limit=limit))
    changes: dict[str | None, list[Entry]] = {}
    for entry in reversed(storage.run(saver.memory._core.seen(read_log(ReadLog(session_id=thread_id))))):
        if entry.cause.thread_id == thread_id:
            changes.setdefault(entry.cause.checkpoint_id, []).append(entry)
    points = []
    for one in reversed(found):
        checkpoint_id = one.config["configurable"]["checkpoint_id"]
        parent = one.parent_config["configurable"]["checkpoint_id"] if one.parent_config else None
        points.append(
            Point(
                checkpoint_id,
                parent,
                f"{one.metadata.get('step', '')} {one.metadata.get('source', '')}".strip(),
                _said(one.checkpoint["channel_values"]),
                tuple(_told(entry) for entry in changes.get(checkpoint_id, ())),
            )
        )
    return draw_tree(points, f"thread {thread_id}", width)


def _said(values: Mapping[str, Any]) -> str:
    """The last message of a state, or its values."""
    messages = values.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        calls = ", ".join(call["name"] for call in getattr(last, "tool_calls", None) or ())
        text = getattr(last, "text", None)
        return f"{getattr(last, 'type', '')}: {text or (f'calls {calls}' if calls else '')}"
    kept = {key: value for key, value in values.items() if not key.startswith(("__", "branch:"))}
    return ", ".join(f"{key}: {short(_plain(value), 40)}" for key, value in kept.items())


def _plain(value: object) -> object:
    """A value as itself, a list by its last item, anything else by what it is."""
    if isinstance(value, list) and value:
        return _plain(value[-1])
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def _told(entry: Entry) -> tuple[str, str]:
    fact = entry.after or entry.before
    return entry.op.value, "" if fact is None else f"{fact.type}: {short(_gist(fact), 50)}"


def _gist(fact: Fact) -> str:
    """The words of a payload, which say most about a fact."""
    words = [value for value in fact.payload.values() if isinstance(value, str)]
    return max(words, key=len) if words else fields(fact.payload)


def timeline(
    memory: MemoryStore | AsyncMemoryStore,
    session_id: str | None = None,
    *,
    limit: int = 200,
    facts: int = 30,
    width: int = 900,
) -> Picture:
    """The lives of facts over the transactions of the log, oldest left; of the newest `limit` entries."""
    if not isinstance(cast("object", memory), MemoryStore | AsyncMemoryStore):
        raise ValidationFailed(f"timeline: takes a MemoryStore or AsyncMemoryStore, not {memory!r}")
    check_count(limit, "limit", 1)
    check_count(facts, "facts", 1)
    entries = _sync(memory).run(memory._core.seen(read_log(ReadLog(session_id=session_id, limit=limit))))
    names: dict[str, str] = {}
    for entry in entries:  # newest first, so that a fact is called by what it was last
        fact = entry.after or entry.before
        if fact is not None:
            names.setdefault(entry.fact_id, f"{fact.type}: {short(_gist(fact), 34)}")
    chosen = set(list(names)[:facts])
    listed = [entry for entry in reversed(entries) if entry.fact_id in chosen]
    return draw_timeline(listed, names, "facts over the log" if session_id is None else f"session {session_id}", width)


def _sync(memory: MemoryStore | AsyncMemoryStore) -> Any:
    """Pictures are drawn in a cell, where nothing waits for them."""
    return memory.storage if isinstance(memory, MemoryStore) else memory.storage.sync()
