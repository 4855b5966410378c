"""One contract for every vector store, on every storage and through both doors that the two have."""

from __future__ import annotations

import asyncio
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromadb
import pytest
from langchain_core.vectorstores import InMemoryVectorStore

from memstate_langgraph import AsyncChromaSyncHook, ChromaSyncHook, MemoryStore, VectorStoreSyncHook
from tests.models import note, register
from tests.stores import PLACES, Words, assert_in_step, found, hook_over, live


@dataclass(frozen=True)
class Site:
    """Where a vector store can put its files, and where a Chroma server listens."""

    folder: Path
    request: pytest.FixtureRequest

    @property
    def port(self) -> int:
        port: int = self.request.getfixturevalue("chroma_server")
        return port


Make = Callable[..., VectorStoreSyncHook]


def in_memory(_: Site, **options: Any) -> VectorStoreSyncHook:
    return hook_over(InMemoryVectorStore(Words()), **options)


def langchain_chroma(site: Site, **options: Any) -> VectorStoreSyncHook:
    from langchain_chroma import Chroma

    return hook_over(Chroma(uuid.uuid4().hex, Words(), persist_directory=str(site.folder / "chroma")), **options)


def chroma_over(client: Any, **options: Any) -> VectorStoreSyncHook:
    return ChromaSyncHook(client, uuid.uuid4().hex, "content", ["stars"], Words(), **options)


def chroma_in_process(_: Site, **options: Any) -> VectorStoreSyncHook:
    return chroma_over(chromadb.EphemeralClient(), **options)


def chroma_persistent(site: Site, **options: Any) -> VectorStoreSyncHook:
    return chroma_over(chromadb.PersistentClient(str(site.folder / "chroma")), **options)


def chroma_server(site: Site, **options: Any) -> VectorStoreSyncHook:
    return chroma_over(chromadb.HttpClient(port=site.port), **options)


def chroma_async_client(site: Site, **options: Any) -> VectorStoreSyncHook:
    client = asyncio.run(chromadb.AsyncHttpClient(port=site.port))
    return AsyncChromaSyncHook(client, uuid.uuid4().hex, "content", ["stars"], Words(), **options)


def qdrant(_: Site, **options: Any) -> VectorStoreSyncHook:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    how = models.VectorParams(size=Words.size, distance=models.Distance.COSINE)
    client.create_collection("notes", how)
    return hook_over(QdrantVectorStore(client, "notes", Words()), **options)


def faiss(_: Site, **options: Any) -> VectorStoreSyncHook:
    from faiss import IndexFlatL2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from langchain_community.docstore import InMemoryDocstore
        from langchain_community.vectorstores import FAISS

    return hook_over(FAISS(Words(), IndexFlatL2(Words.size), InMemoryDocstore(), {}), **options)


KINDS: list[Make] = [
    in_memory,
    langchain_chroma,
    chroma_in_process,
    chroma_persistent,
    chroma_server,
    chroma_async_client,
    qdrant,
    faiss,
]
PAIRS = [
    pytest.param((kind, place), id=f"{kind.__name__}, {place.name}")
    for kind in KINDS
    for place in PLACES
    if kind is not chroma_async_client or "async" in place.name
]


@pytest.fixture(params=PAIRS)
def open_with(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., MemoryStore]]:
    """Opens a store with one hook, made with the given options."""
    kind, place = request.param
    opened: list[MemoryStore] = []

    def open_one(**options: Any) -> MemoryStore:
        opened.append(place.open(tmp_path, [kind(Site(tmp_path, request), **options)]))
        register(opened[-1])
        return opened[-1]

    yield open_one
    for memory in opened:
        memory.close()


def asked(memory: Any, method: str, *args: Any) -> Any:
    """What the hook of a store answers, through the store's own door."""
    hook = memory._core.vectors[0]
    if isinstance(memory, MemoryStore):
        return getattr(hook, method)(*args)
    return memory._runner.run(getattr(hook, "a" + method)(*args))


def held(memory: MemoryStore) -> int | None:
    """How many vectors there are, if the vector store can say."""
    ids = asked(memory, "ids")
    return None if ids is None else len(ids)


def test_vectors_follow_facts(open_with: Callable[..., MemoryStore]) -> None:
    memory = open_with(grace=0.0, late=0.0)
    memory.commit(note("red apples and pears", "a", namespace=("ana",)))
    # few, since an approximate index such as Chroma's may lose an outlier among more near-duplicates than it links
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(12)])
    memory.commit(note("", "silent"))
    (best, *_) = memory.search("red apples")
    assert (best.fact, best.fact.id) == (memory.get("a"), "a")
    memory.update("a", {"content": "blue bridges"})
    with memory.transaction() as tx:
        tx.delete("n0")
        tx.update("n1", {"content": "number changed"})
    assert [hit.fact.id for hit in memory.search("blue bridges", limit=1)] == ["a"]
    assert [hit.fact.id for hit in memory.search("number", limit=3, namespace=("ana",))] == ["a"]
    assert memory.search("number", namespace=("bob",)) == []
    assert_in_step(memory)
    memory.rollback(2)
    assert live(memory)["a"].payload["content"] == "red apples and pears"
    assert_in_step(memory)
    memory.rollback(2)
    assert list(found(memory)) == ["a"]
    assert memory.repair().ok
    assert held(memory) in (1, None)
    assert memory.verify().leftovers == 0


def test_scores_fall_and_thresholds_cut(open_with: Callable[..., MemoryStore]) -> None:
    memory = open_with()
    for i, words in enumerate(["one two three four", "one two three", "one two", "one", "else"]):
        memory.commit(note(words, f"n{i}"))
    hits = memory.search("one two three four", limit=None)
    assert [hit.fact.id for hit in hits] == ["n0", "n1", "n2", "n3", "n4"]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    cut = (scores[1] + scores[2]) / 2
    assert [hit.fact.id for hit in memory.search("one two three four", score_threshold=cut)] == ["n0", "n1"]


def test_a_collection_that_was_lost_is_embedded_again(open_with: Callable[..., MemoryStore]) -> None:
    memory = open_with(grace=0.0, late=0.0)
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(5)])
    asked(memory, "delete", asked(memory, "ids")[:3])
    assert not memory.verify().ok
    stages: list[str] = []
    assert memory.repair(lambda stage, done, total: stages.append(f"{stage} {done}/{total}")).ok
    assert any(stage.endswith("3/3") for stage in stages)
    assert_in_step(memory)
    assert held(memory) == 5


def test_filters_never_leak_another_namespace(open_with: Callable[..., MemoryStore]) -> None:
    """Namespaces that look alike in one encoding or another."""
    memory = open_with()
    alike = [(), ("a",), ("a", "b"), ("a/b",), ('a","b',), ("a,b",), ("A",), ("a ",), ("á",), ("a\u0301",), ("[]",)]
    memory.commit_many([note(f"secret of {i}", f"n{i}", namespace=space) for i, space in enumerate(alike)])
    for i, space in enumerate(alike):
        for limit in (1, None):
            hits = memory.search("secret", limit=limit, namespace=space)
            assert [hit.fact.id for hit in hits] == [f"n{i}"], space
    assert memory.search("secret", namespace=("nobody",), limit=None) == []
    assert memory.search("secret", namespace=("a",), filters={"namespace": ["A"]}) == [], "a filter only narrows"
