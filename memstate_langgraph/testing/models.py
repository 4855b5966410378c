"""What the tests store."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from memstate_langgraph import AsyncMemoryStore, Constraint, Fact, MemoryStore


class Note(BaseModel):
    """Something worth keeping."""

    content: str
    stars: int = 0


class Preference(BaseModel):
    """Something the user likes; one per topic."""

    topic: str
    content: str
    weight: int = 1


class Rule(BaseModel):
    name: str
    text: str


def register(memory: MemoryStore | AsyncMemoryStore) -> None:
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    memory.register_schema("rule", Rule, Constraint(singleton_key="name", immutable=True))


def note(content: str, fact_id: str | None = None, **fields: Any) -> Fact:
    """A note, whose text is searchable."""
    if fact_id is not None:
        fields["id"] = fact_id
    return Fact(type="note", payload={"content": content}, **fields)


def preference(topic: str, content: str, **fields: Any) -> Fact:
    return Fact(type="preference", payload={"topic": topic, "content": content}, **fields)
