from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memstate_langgraph import Constraint, MemoryStore
from tests.models import Note, Preference, Rule
from tests.stores import STORES


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., MemoryStore]]:
    """Opens a store of each kind, with the types of the tests registered; closes it afterwards."""
    opened: list[MemoryStore] = []

    def open_one(*hooks: object) -> MemoryStore:
        memory = STORES[request.param](tmp_path, hooks)
        memory.register_schema("note", Note)
        memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
        memory.register_schema("rule", Rule, Constraint(singleton_key="name", immutable=True))
        opened.append(memory)
        return memory

    yield open_one
    for memory in opened:
        memory.close()


@pytest.fixture
def memory(open_store: Callable[..., MemoryStore]) -> MemoryStore:
    return open_store()
