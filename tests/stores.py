"""The storages that the contract is tested on, and one way to call them all.

A test written against `MemoryStore` runs on every storage and through both doors. To add a storage, add a line
to `PLACES`.
"""

from __future__ import annotations

import asyncio
import inspect
import zlib
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    AsyncPostgresStorage,
    AsyncRedisStorage,
    AsyncSQLiteStorage,
    Fact,
    InMemoryStorage,
    MemoryStore,
    PostgresStorage,
    RedisStorage,
    SQLiteStorage,
    VectorStoreSyncHook,
)
from memstate_langgraph.run import perform
from tests.servers import postgres_url, redis_url, schema_of


@dataclass(frozen=True)
class Place:
    """Where facts can be kept. What is `durable` can be opened again, and by several at once."""

    name: str
    storage: Callable[[Path], Any]
    durable: bool = False

    def open(self, folder: Path, hooks: Iterable[object] = (), *, strict: bool = False) -> MemoryStore:
        storage = self.storage(folder)
        if hasattr(storage, "aio"):
            return MemoryStore(storage, hooks, strict=strict)
        return awaited(AsyncMemoryStore(storage, hooks, strict=strict))


SQLITE = Place("sqlite", lambda folder: SQLiteStorage(folder / "state.db"), durable=True)
POSTGRES = Place("postgres", lambda folder: PostgresStorage(postgres_url(), schema=schema_of(folder)), durable=True)
REDIS = Place("redis", lambda folder: RedisStorage(redis_url(), prefix=schema_of(folder)), durable=True)

PLACES = [
    Place("memory", lambda _: InMemoryStorage()),
    Place("memory, async", lambda _: AsyncInMemoryStorage()),
    SQLITE,
    Place("sqlite, async", lambda folder: AsyncSQLiteStorage(folder / "state.db"), durable=True),
    POSTGRES,
    Place(
        "postgres, async", lambda folder: AsyncPostgresStorage(postgres_url(), schema=schema_of(folder)), durable=True
    ),
    REDIS,
    Place("redis, async", lambda folder: AsyncRedisStorage(redis_url(), prefix=schema_of(folder)), durable=True),
]
"""Every storage through each of its doors. All tests that hold for any storage take their places from here."""


def places(*, awaited: bool | None = None, durable: bool | None = None) -> pytest.MarkDecorator:
    """The places of one kind, for tests that need the storage itself: as a mark that gives each as `place`."""
    chosen = [
        place
        for place in PLACES
        if awaited in (None, place.name.endswith("async")) and durable in (None, place.durable)
    ]
    return pytest.mark.parametrize("place", chosen, ids=[place.name for place in chosen])


class _Awaited:
    """An `AsyncMemoryStore` that is called like a `MemoryStore`.

    One runner keeps one context for all calls, as one task would: an async transaction is found again.
    """

    def __init__(self, store: Any, runner: asyncio.Runner) -> None:
        self._store, self._runner = store, runner

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._store, name)
        if not inspect.iscoroutinefunction(member):
            return member
        return lambda *args, **kwargs: self._runner.run(member(*args, **kwargs))

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        manager = self._store.transaction(*args, **kwargs)
        inside = self._runner.run(manager.__aenter__())
        try:
            yield _Awaited(inside, self._runner)
        except BaseException as error:
            if not self._runner.run(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self._runner.run(manager.__aexit__(None, None, None))

    def close(self) -> None:
        self._runner.run(self._store.close())
        self._runner.close()


def awaited(store: AsyncMemoryStore | Coroutine[Any, Any, AsyncMemoryStore]) -> MemoryStore:
    runner = asyncio.Runner()
    made = store if isinstance(store, AsyncMemoryStore) else runner.run(store)
    return cast("MemoryStore", _Awaited(made, runner))


# --- vectors


class Words(Embeddings):
    """Texts with the same words are near each other: enough meaning for tests, and no model."""

    size = 64

    def embed_query(self, text: str) -> list[float]:
        vector = [0.01] * self.size
        for word in text.lower().split():
            vector[zlib.crc32(word.encode()) % self.size] += 1.0
        length = sum(number * number for number in vector) ** 0.5
        return [number / length for number in vector]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class Outage(Exception):
    """What a vector store's client raises."""


class Died(BaseException):
    """The process ended here: nothing behind it runs."""


class Unreliable(InMemoryVectorStore):
    """LangChain's vector store, as it is when it is `ok`, and failing in one of the ways that networks fail.

    `refused`: raises, having done nothing. `applied`: raises, having done it. `late`: raises, and does it
    when `arrive()` is called. `down`: raises on everything. `dies`: as if the process ended during an upsert.
    """

    def __init__(self) -> None:
        super().__init__(Words())
        self.mood = "ok"
        self.upserts = 0
        self._pending: list[tuple[list[Document], list[str] | None]] = []

    def _fail(self, documents: list[Document], ids: list[str] | None) -> None:
        self.upserts += 1
        if self.mood == "applied":
            super().add_documents(documents, ids)
        if self.mood == "late":
            self._pending.append((documents, ids))
        if self.mood == "dies":
            super().add_documents(documents[: len(documents) // 2], ids and ids[: len(documents) // 2])
            raise Died
        if self.mood != "ok":
            raise Outage(self.mood)

    def arrive(self) -> None:
        while self._pending:
            super().add_documents(*self._pending.pop())

    def add_documents(self, documents: list[Document], ids: list[str] | None = None, **options: Any) -> list[str]:
        self._fail(documents, ids)
        return super().add_documents(documents, ids, **options)

    async def aadd_documents(
        self, documents: list[Document], ids: list[str] | None = None, **options: Any
    ) -> list[str]:
        return self.add_documents(documents, ids, **options)

    def _answer(self) -> None:
        if self.mood == "down":
            raise Outage(self.mood)

    def delete(self, ids: Any = None, **options: Any) -> None:
        self._answer()
        super().delete(ids, **options)

    async def adelete(self, ids: Any = None, **options: Any) -> None:
        self._answer()
        super().delete(ids, **options)

    def similarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> list[tuple[Document, float]]:
        self._answer()
        return super().similarity_search_with_score(query, k, **options)


def hook_over(vectors: VectorStore, **options: Any) -> VectorStoreSyncHook:
    return VectorStoreSyncHook(vectors, text_field="content", **{"metadata_fields": ["stars"], **options})


# --- what must always hold


def replayed(memory: MemoryStore) -> dict[str, Fact]:
    """The facts as the log tells them."""
    facts: dict[str, Fact] = {}
    for entry in reversed(memory.log()):
        assert (entry.before is None) == (entry.fact_id not in facts)
        assert entry.before is None or entry.before == facts[entry.fact_id]
        if entry.after is None:
            facts.pop(entry.fact_id, None)
        else:
            facts[entry.fact_id] = entry.after
    return facts


def live(memory: MemoryStore) -> dict[str, Fact]:
    return {fact.id: fact for fact in memory.query()}


def texts(memory: MemoryStore) -> dict[str, str]:
    return {fact.id: fact.payload["content"] for fact in memory.query()}


def found(memory: MemoryStore) -> dict[str, Fact]:
    """Everything that search can show."""
    hits = memory.search("anything", limit=None)
    assert len(hits) == len({hit.fact.id for hit in hits})
    return {hit.fact.id: hit.fact for hit in hits}


def assert_in_step(memory: MemoryStore) -> None:
    """Facts, log and, where there are vectors, search agree; looked at before any repair."""
    facts = live(memory)
    assert replayed(memory) == facts
    seqs = [entry.seq for entry in memory.log()]
    assert seqs == sorted(set(seqs), reverse=True)
    if memory._core.vectors:
        assert found(memory) == {key: fact for key, fact in facts.items() if str(fact.payload.get("content")).strip()}
    report = memory.verify()
    assert all("invisible" in finding.problem for finding in report.findings), str(report)


def collect(memory: MemoryStore) -> int:
    """Remove the vectors whose time has come."""
    if isinstance(memory, MemoryStore):
        return perform(memory._core.collect(), memory.storage)
    from memstate_langgraph.run import aperform

    face: Any = memory
    removed: int = face._runner.run(aperform(face._core.collect(), face.storage))
    return removed
