"""What became of facts: between two positions of the log, or as an undo would leave them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from memstate_langgraph.facts import Entry, Fact
from memstate_langgraph.tables import table


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of one fact: None before if it is new, after if it is gone."""

    fact_id: str
    before: Fact | None
    after: Fact | None

    @property
    def sign(self) -> str:
        return "+" if self.before is None else "-" if self.after is None else "~"

    @property
    def fact(self) -> Fact:
        """As it is afterwards, or was before it went."""
        fact = self.after or self.before
        assert fact is not None
        return fact

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
class Changes:
    """Differences, in the order of the last change. They print well; true if there are any."""

    changes: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def heading(self) -> str:
        """The line above the changes."""
        raise NotImplementedError

    @property
    def _facts(self) -> str:
        return "1 fact" if len(self.changes) == 1 else f"{len(self.changes)} facts"

    def __str__(self) -> str:
        lines = [self.heading()]
        lines += [f"{one.sign} {one.fact.type} {one.fact_id}  {', '.join(one.fields())}" for one in self.changes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table, where a notebook shows it."""
        rows = [(one.sign, one.fact.type, one.fact_id, ", ".join(one.fields())) for one in self.changes]
        return table(("", "type", "fact", "payload"), rows, self.heading())


@dataclass(frozen=True, slots=True)
class Diff(Changes):
    """What changed between two positions of the log. Prints well; true if anything did."""

    start: int
    end: int

    def heading(self) -> str:
        return f"log {self.start} -> {self.end}: {self._facts} changed"


@dataclass(frozen=True, slots=True)
class Preview(Changes):
    """What an undo would change now. Prints well; true if it would change anything."""

    def heading(self) -> str:
        return f"{self._facts} would change"

    @property
    def token(self) -> str:
        """Names exactly these changes: another one as soon as any of the facts is not what it was."""
        told = repr([(one.fact_id, _told(one.before), _told(one.after)) for one in self.changes])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def differences(entries: Iterable[Entry]) -> tuple[Difference, ...]:
    """What entries, oldest first, did together; a fact that is again what it was is not among it."""
    before: dict[str, Fact | None] = {}
    after: dict[str, Fact | None] = {}
    for entry in entries:
        before.setdefault(entry.fact_id, entry.before)
        after.pop(entry.fact_id, None)
        after[entry.fact_id] = entry.after
    changes = (Difference(fact_id, before[fact_id], fact) for fact_id, fact in after.items())
    return tuple(one for one in changes if _content(one.before) != _content(one.after))


def _content(fact: Fact | None) -> Any:
    return None if fact is None else fact.model_dump(exclude={"version"})


def _told(fact: Fact | None) -> str:
    return "" if fact is None else fact.model_dump_json()
