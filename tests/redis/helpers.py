"""Stores on a Redis server, and a look at what they send it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memstate_langgraph import (
    Constraint,
    MemoryStore,
    RedisStorage,
)
from memstate_langgraph.backends.redis_engine import Exchange
from tests.models import Note, Preference
from tests.servers import schema_of


def open_store(url: Any, folder: Path, *hooks: object, **options: Any) -> MemoryStore:
    memory = MemoryStore(RedisStorage(url, **{"prefix": schema_of(folder), **options}), hooks)
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return memory


def spy(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, around: Callable[[Any, Exchange, Any], Any]) -> None:
    """Put something around every exchange of a store with its server."""
    original = RedisStorage._answer

    def answer(self: RedisStorage, step: Any) -> Any:
        if isinstance(step, Exchange) and self._server is memory.storage._server:  # type: ignore[attr-defined]
            return around(self, step, lambda: original(self, step))
        return original(self, step)

    monkeypatch.setattr(RedisStorage, "_answer", answer)


def commits(memory: MemoryStore, step: Exchange) -> bool:
    return step.commands[-1][:2] == ("EVALSHA", memory.storage.engine._commit.sha)  # type: ignore[attr-defined]
