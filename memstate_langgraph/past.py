"""The past: positions of the log, the facts as they were then, and what changed between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, cast

from memstate_langgraph.checkpoint_ops import FindCheckpoints
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Fact
from memstate_langgraph.ops import FactsAt, LastSeq, Plan, PositionAt, ReadLog, reads
from memstate_langgraph.rules import check_characters, check_count
from memstate_langgraph.views import expired

Moment = int | datetime | Mapping[str, Any]
"""A position of the log, a time, or the config of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of one fact: None before if it is new, after if it is gone."""

    fact_id: str
    before: Fact | None
    after: Fact | None

    @property
    def sign(self) -> str:
        return "+" if self.before is None else "-" if self.after is None else "~"

    def fields(self) -> list[str]:
        """The payload's fields that differ, as `name: old -> new`."""
        old = {} if self.before is None else self.before.payload
        new = {} if self.after is None else self.after.payload
        told = []
        for name in dict.fromkeys([*old, *new]):
            if name not in old:
                told.append(f"{name}: {new[name]!r}")
            elif name not in new:
                told.append(f"{name}: {old[name]!r}" + ("" if self.after is None else " -> nothing"))
            elif old[name] != new[name]:
                told.append(f"{name}: {old[name]!r} -> {new[name]!r}")
        return told


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed between two positions of the log. Prints well; true if anything did."""

    start: int
    end: int
    changes: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        lines = [f"log {self.start} -> {self.end}: {len(self.changes)} facts changed"]
        for change in self.changes:
            fact = change.after or change.before
            assert fact is not None
            lines.append(f"{change.sign} {fact.type} {fact.id}  " + ", ".join(change.fields()))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table, where a notebook shows it."""
        rows = ""
        for change in self.changes:
            fact = change.after or change.before
            assert fact is not None
            cells = (change.sign, fact.type, fact.id, "\n".join(change.fields()))
            rows += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        head = "<tr><th></th><th>type</th><th>fact</th><th>payload</th></tr>"
        return f"<table><caption>log {self.start} to {self.end}</caption>{head}{rows}</table>"


def position_of(moment: Moment, name: str) -> Plan[int]:
    """Raises `ValidationFailed`, naming the argument, for what is no moment, or no stored checkpoint."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValidationFailed(f"{name}: a time needs a time zone, such as datetime.now(UTC), not {moment!r}")
        return (yield from PositionAt(moment))
    if isinstance(moment, Mapping):
        place = moment.get("configurable")
        thread_id = place.get("thread_id") if isinstance(place, Mapping) else None
        if not isinstance(place, Mapping) or not thread_id:
            raise ValidationFailed(f"{name}: the config of a checkpoint has a thread_id, this has none")
        checkpoint_ns, checkpoint_id = place.get("checkpoint_ns") or "", place.get("checkpoint_id")
        for part, text in (
            ("thread_id", thread_id),
            ("checkpoint_ns", checkpoint_ns),
            ("checkpoint_id", checkpoint_id),
        ):
            if text is not None:
                check_characters(str(text), f"{name}: {part}")
        asked = None if checkpoint_id is None else str(checkpoint_id)
        rows = yield from FindCheckpoints(str(thread_id), str(checkpoint_ns), asked, limit=1)
        if not rows:
            raise ValidationFailed(f"{name}: there is no checkpoint {checkpoint_id!r} of thread {thread_id!r}")
        return rows[0].position or 0
    if isinstance(cast("object", moment), bool) or not isinstance(cast("object", moment), int):
        raise ValidationFailed(
            f"{name}: must be a position of the log, a time or a checkpoint's config, not {moment!r}"
        )
    check_count(moment, name)
    return moment


@reads
def position(moment: Moment, name: str = "as_of") -> Plan[int]:
    return (yield from position_of(moment, name))


@reads
def facts_at(moment: Moment, fact_id: str | None = None) -> Plan[list[Fact]]:
    at = yield from position_of(moment, "as_of")
    facts = yield from FactsAt(at, fact_id)
    if all(fact.ttl is None for fact in facts):
        return facts
    (newest,) = yield from ReadLog(until=at, limit=1)
    gone = yield from expired(facts, moment if isinstance(moment, datetime) else newest.ts)
    return [fact for fact in facts if fact.id not in gone]


@reads
def diff(start: Moment, end: Moment | None) -> Plan[Diff]:
    first = yield from position_of(start, "start")
    last = (yield from LastSeq()) if end is None else (yield from position_of(end, "end"))
    if last < first:
        raise ValidationFailed(f"diff: goes forward in time, but {last} comes before {first}; swap them")
    before: dict[str, Fact | None] = {}
    after: dict[str, Fact | None] = {}
    for entry in reversed((yield from ReadLog(after=first, until=last))):
        before.setdefault(entry.fact_id, entry.before)
        after.pop(entry.fact_id, None)
        after[entry.fact_id] = entry.after
    changes = [Difference(fact_id, before[fact_id], fact) for fact_id, fact in after.items()]
    return Diff(first, last, tuple(change for change in changes if _content(change.before) != _content(change.after)))


def _content(fact: Fact | None) -> Any:
    return None if fact is None else fact.model_dump(exclude={"version"})
