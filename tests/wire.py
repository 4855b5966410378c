"""What goes over the wire between a store and its server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memstate_langgraph import MemoryStore
from memstate_langgraph.backends import postgres_engine, redis_engine
from tests.models import register
from tests.servers import schema_of


def opener(storage: Callable[..., Any], room: str) -> Callable[..., MemoryStore]:
    """Opens stores on a server, in a room of the test's own: `open_store(url, folder, *hooks, **options)`."""

    def open_store(url: Any, folder: Path, *hooks: object, **options: Any) -> MemoryStore:
        memory = MemoryStore(storage(url, **{room: schema_of(folder), **options}), hooks)
        register(memory)
        return memory

    return open_store


def spy(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, around: Callable[[Any, Any, Any], Any]) -> None:
    """Put something around every exchange of a store with its server."""
    door: Any = type(memory.storage)
    original = door._answer

    def answer(self: Any, step: Any) -> Any:
        exchanges = isinstance(step, postgres_engine.Exchange | redis_engine.Exchange)
        if exchanges and self._server is memory.storage._server:  # type: ignore[attr-defined]
            return around(self, step, lambda: original(self, step))
        return original(self, step)

    monkeypatch.setattr(door, "_answer", answer)
