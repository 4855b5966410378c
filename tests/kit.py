"""Every storage behind both doors, so that a contract is stated once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    AsyncPostgresStorage,
    AsyncSQLiteStorage,
    Constraint,
    InMemoryStorage,
    MemoryStore,
    PostgresStorage,
    SQLiteStorage,
)
from tests.models import Note, Preference, Rule
from tests.servers import postgres_url, schema_of


class Blocking:
    """An `AsyncMemoryStore` with the sync store's calls, each run on one event loop in a thread of its own."""

    def __init__(self, store: AsyncMemoryStore) -> None:
        self.store = store
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.store, name)
        if not asyncio.iscoroutinefunction(member):
            return member
        return lambda *args, **options: self.wait(member(*args, **options))

    def wait(self, call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(60)

    @contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[Blocking]:
        # the block runs in this thread and the calls in the loop's, so the bound store carries the transaction
        manager = self.store.transaction(*args, **options)
        bound = Blocking.__new__(Blocking)
        entered: Any = None

        async def enter() -> None:
            nonlocal entered
            entered = asyncio.current_task()
            bound.store = await manager.__aenter__()

        self.wait(enter())
        bound._loop = self._loop
        try:
            yield bound
        except BaseException as error:
            self.wait(_leave(manager, error))
            raise
        self.wait(_leave(manager, None))

    def close(self) -> None:
        self.wait(self.store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


async def _leave(manager: Any, error: BaseException | None) -> None:
    try:
        await manager.__aexit__(None if error is None else type(error), error, None)
    except BaseException as raised:
        if raised is not error:
            raise


Hooks = Iterable[object]
Maker = Callable[[Path, Hooks], MemoryStore]


def _blocking(store: AsyncMemoryStore) -> MemoryStore:
    return cast("MemoryStore", Blocking(store))


STORES: dict[str, Maker] = {
    "memory": lambda path, hooks: MemoryStore(InMemoryStorage(), hooks),
    "sqlite": lambda path, hooks: MemoryStore(SQLiteStorage(path / "state.db"), hooks),
    "async memory": lambda path, hooks: _blocking(AsyncMemoryStore(AsyncInMemoryStorage(), hooks)),
    "async sqlite": lambda path, hooks: _blocking(AsyncMemoryStore(AsyncSQLiteStorage(path / "state.db"), hooks)),
    "postgres": lambda path, hooks: MemoryStore(PostgresStorage(postgres_url(), schema=schema_of(path)), hooks),
    "async postgres": lambda path, hooks: _blocking(
        AsyncMemoryStore(AsyncPostgresStorage(postgres_url(), schema=schema_of(path)), hooks)
    ),
}


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
