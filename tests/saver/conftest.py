"""A checkpointer on each storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    AsyncPostgresStorage,
    AsyncSQLiteStorage,
    InMemoryStorage,
    MemoryStore,
    MemStateCheckpointer,
    PostgresStorage,
    SQLiteStorage,
)
from tests.servers import postgres_url, schema_of

STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: MemoryStore(InMemoryStorage()),
    "sqlite": lambda path: MemoryStore(SQLiteStorage(path)),
    "async memory": lambda path: AsyncMemoryStore(AsyncInMemoryStorage()),
    "async sqlite": lambda path: AsyncMemoryStore(AsyncSQLiteStorage(path)),
    "postgres": lambda path: MemoryStore(PostgresStorage(postgres_url(), schema=schema_of(path))),
    "async postgres": lambda path: AsyncMemoryStore(AsyncPostgresStorage(postgres_url(), schema=schema_of(path))),
}


@pytest.fixture(params=STORES)
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemStateCheckpointer]:
    saver = MemStateCheckpointer(memory=STORES[request.param](tmp_path / "state.db"))
    yield saver
    saver.close()
