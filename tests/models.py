from __future__ import annotations

from pydantic import BaseModel

from memstate_langgraph import Fact


class Note(BaseModel):
    """Something worth keeping."""

    content: str
    stars: int = 0


class Preference(BaseModel):
    """Something the user likes; one per topic."""

    topic: str
    content: str


class Rule(BaseModel):
    name: str
    text: str


def note(content: str, **fields: object) -> Fact:
    return Fact.model_validate({"type": "note", "payload": {"content": content}, **fields})


def preference(topic: str, content: str, **fields: object) -> Fact:
    return Fact.model_validate({"type": "preference", "payload": {"topic": topic, "content": content}, **fields})
