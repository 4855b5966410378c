"""Vectors commit with their facts, or not at all, and search shows nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from memstate_langgraph import (
    AsyncChromaSyncHook,
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    ChromaSyncHook,
    Fact,
    HookError,
    LeaseLost,
    LocalEmbeddings,
    MemoryStore,
    SQLiteStorage,
    ValidationFailed,
    VectorStoreSyncHook,
)
from tests.models import Note, note, preference
from tests.stores import awaited

Open = Callable[..., MemoryStore]


class Plug(InMemoryVectorStore):
    """A vector store that can fail in each way that one can fail, and counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(LocalEmbeddings())
        self.fault: Callable[[Callable[[], Any]], Any] | None = None
        self.before_search: Callable[[], object] | None = None
        self.upserts: list[int] = []
        self.asked: list[int] = []

    def add_documents(self, documents: list[Document], ids: list[str] | None = None, **options: Any) -> list[str]:
        self.upserts.append(len(documents))

        def really() -> list[str]:
            return InMemoryVectorStore.add_documents(self, documents, ids=ids, **options)

        return self.fault(really) if self.fault else really()

    async def aadd_documents(
        self, documents: list[Document], ids: list[str] | None = None, **options: Any
    ) -> list[str]:
        return self.add_documents(documents, ids, **options)

    def similarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> list[tuple[Document, float]]:
        self.asked.append(k)
        if self.before_search:
            interrupt, self.before_search = self.before_search, None
            interrupt()
        return super().similarity_search_with_score(query, k, **options)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        return self.similarity_search_with_score(query, k, **options)


def hook_over(store: Any, **options: Any) -> VectorStoreSyncHook:
    return VectorStoreSyncHook(store, text_field="content", **{"grace": 0.0, "late": 0.0, **options})


def found(memory: MemoryStore, query: str = "x", **options: Any) -> set[str]:
    return {hit.fact.payload["content"] for hit in memory.search(query, limit=None, **options)}


def stored(memory: MemoryStore) -> set[str]:
    return {fact.payload["content"] for fact in memory.query() if fact.payload.get("content")}


@pytest.fixture
def plug() -> Plug:
    return Plug()


def down(really: Callable[[], Any]) -> Any:
    raise ConnectionError("down")


def late(really: Callable[[], Any]) -> Any:
    really()
    raise TimeoutError("applied, but nobody heard")


# --- all or nothing


@pytest.mark.parametrize("fault", [down, late])
def test_a_failing_vector_store_leaves_nothing(open_store: Open, plug: Plug, fault: Any) -> None:
    memory = open_store(hook_over(plug))
    kept = memory.commit(note("kept"), session_id="s")
    plug.fault = fault
    changes = (
        lambda: memory.commit(note("new")),
        lambda: memory.update(kept, {"content": "changed"}),
        lambda: memory.commit_many([note("a"), note("b")]),
    )
    for change in changes:
        with pytest.raises(HookError):
            change()
        assert found(memory) == stored(memory) == {"kept"}
    plug.fault = None
    for change in changes:
        change()
    assert found(memory) == stored(memory) == {"changed", "new", "a", "b"}
    assert memory.repair().ok
    assert len(plug.store) == 4


def test_a_failed_rollback_changes_nothing(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug))
    fact_id = memory.commit(note("one"))
    memory.update(fact_id, {"content": "two"})
    plug.fault = down
    with pytest.raises(HookError):
        memory.rollback(1)
    assert found(memory) == stored(memory) == {"two"}
    plug.fault = None
    memory.rollback(1)
    assert found(memory) == stored(memory) == {"one"}


def test_a_write_that_arrives_late_is_removed_again(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug, late=0.2))
    arriving: list[Callable[[], Any]] = []

    def lose(really: Callable[[], Any]) -> Any:
        arriving.append(really)
        raise TimeoutError

    plug.fault = lose
    with pytest.raises(HookError):
        memory.commit(note("late"))
    plug.fault = None
    memory.repair()  # removes the id, which is not there yet
    arriving[0]()
    assert len(plug.store) == 1
    assert found(memory) == set()
    time.sleep(0.25)
    memory.repair()
    assert len(plug.store) == 0


def test_a_writer_whose_lease_ended_commits_nothing(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug, lease=0.05, late=0.3))

    def slowly(really: Callable[[], Any]) -> Any:
        time.sleep(0.1)
        plug.fault = None
        memory.repair()  # somebody reaps the expired lease meanwhile
        return really()

    if not isinstance(memory, MemoryStore):
        pytest.skip("repair inside the call would wait for its own loop")
    plug.fault = slowly
    with pytest.raises(LeaseLost):
        memory.commit(note("too late"))
    assert memory.query() == []
    assert memory.log() == []
    assert found(memory) == set()
    time.sleep(0.35)
    memory.repair()
    assert len(plug.store) == 0


def test_one_transaction_is_one_upsert(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug))
    with memory.transaction() as tx:
        for i in range(100):
            tx.commit(note(f"n{i}"))
    memory.commit_many([note(f"m{i}") for i in range(1000)])
    memory.rollback(2)
    memory.rollback(1)
    assert plug.upserts == [100, 1000]
    assert found(memory) == set()


# --- no ghosts


def test_vectors_follow_every_change(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug))
    a = memory.commit(note("a"), session_id="s")
    b = memory.commit(note("b"), session_id="s", ephemeral=True)
    food = memory.commit(preference("food", "soup"), session_id="s")
    assert memory.commit(preference("food", "salad"), session_id="s") == food
    assert found(memory) == {"a", "b", "salad"}
    memory.update(a, {"content": ""})  # a fact whose text became empty is not found by it
    assert found(memory) == {"b", "salad"}
    memory.rollback(1)
    memory.discard_session("s")
    assert found(memory) == {"a", "salad"}
    memory.rollback(1)
    memory.promote("s", [b])
    memory.delete(food)
    assert found(memory) == stored(memory) == {"a", "b"}
    assert memory.repair().ok
    assert len(plug.store) == 2


def test_a_replaced_vector_stays_for_the_grace_time(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug, grace=60.0))
    fact_id = memory.commit(note("one"))
    memory.update(fact_id, {"content": "two"})
    memory.repair()
    assert len(plug.store) == 2
    assert found(memory) == {"two"}
    report = memory.verify()
    assert report.ok
    assert report.leftovers == 1


def test_search_sees_one_moment(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug, grace=60.0))
    if not isinstance(memory, MemoryStore):
        pytest.skip("a change inside the call would wait for its own loop")
    fact_id = memory.commit(note("one"))
    plug.before_search = lambda: memory.update(fact_id, {"content": "two"})
    assert found(memory) == {"one"}  # true when the search began, although its vector is replaced by now
    plug.before_search = lambda: memory.commit(note("three"))
    assert found(memory) == {"two"}


def test_search_widens_until_enough_live_facts_are_found(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug, grace=600.0))
    fact_id = memory.commit(note("version 0"))
    for i in range(60):  # 60 ghosts that are nearer than most facts
        memory.update(fact_id, {"content": f"version {i + 1}"})
    others = {memory.commit(note(f"something else {i}")) for i in range(8)}
    hits = memory.search("version", limit=5)
    assert len(hits) == 5
    assert hits[0].fact.id == fact_id
    assert {hit.fact.id for hit in memory.search("version", limit=None)} == others | {fact_id}


def test_filters_hold_whatever_the_store_returns(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug))
    for i in range(30):
        memory.commit(note(f"secret {i}", namespace=("bob",)))
    mine = memory.commit(note("not so secret", namespace=("ana",)), session_id="s")
    assert [hit.fact.id for hit in memory.search("secret", limit=3, namespace=("ana",))] == [mine]
    assert found(memory, namespace=("ana",), typename="preference") == set()
    assert found(memory, session_id="s") == {"not so secret"}
    assert found(memory, filters={"payload.content": "secret 3"}) == {"secret 3"}
    for bad in ("", "   "):
        with pytest.raises(ValidationFailed):
            memory.search(bad)
    assert memory.search("x", limit=0) == []


def test_threshold_and_order(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug))
    for text in ("cats purr and sleep", "dogs bark", "the stock market fell"):
        memory.commit(note(text))
    hits = memory.search("a sleeping cat", limit=None)
    assert hits[0].fact.payload["content"] == "cats purr and sleep"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    between = (hits[0].score + hits[1].score) / 2
    assert len(memory.search("a sleeping cat", score_threshold=between)) == 1


def test_types_fields_and_formatters(open_store: Open) -> None:
    first, second = Plug(), Plug()
    memory = open_store(
        VectorStoreSyncHook(first, text_field="content", metadata_fields=["stars"], target_types=["note"], name="1"),
        VectorStoreSyncHook(second, text_formatter=lambda fact: f"{fact.type}!", name="2"),
    )
    memory.commit(note("x"))
    memory.commit(preference("a", "b"))
    assert len(first.store) == 1
    assert len(second.store) == 2
    (document,) = first.store.values()
    assert document["metadata"]["stars"] == 0
    assert {"fact_id", "type", "namespace"} <= document["metadata"].keys()
    with pytest.raises(ValidationFailed, match="taken"):
        memory.add_hook(VectorStoreSyncHook(first, text_field="content", name="1"))


def test_a_lost_vector_is_found_missing_and_embedded_again(open_store: Open, plug: Plug) -> None:
    memory = open_store(hook_over(plug))
    memory.commit_many([note("a"), note("b"), note("c")])
    plug.store.pop(next(iter(plug.store)))
    plug.add_documents([Document("stray", metadata={})], ids=["stray"])
    report = memory.verify()
    assert not report.ok
    assert "NOT in step" in str(report)
    upserts = len(plug.upserts)
    stages: list[str] = []
    assert memory.repair(lambda stage, done, total: stages.append(stage)).ok
    assert plug.upserts[upserts:] == [1]
    assert found(memory) == {"a", "b", "c"}
    assert len(plug.store) == 3
    assert stages


# --- writers do not wait for embeddings


def test_writers_do_not_wait_for_an_embedding(tmp_path: Path, plug: Plug) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), hooks=[hook_over(plug)])
    memory.register_schema("note", Note)
    began, may_end = threading.Event(), threading.Event()

    def slowly(really: Callable[[], Any]) -> Any:
        plug.fault = None
        began.set()
        assert may_end.wait(20)
        return really()

    plug.fault = slowly
    slow = threading.Thread(target=lambda: memory.commit(note("slow")))
    slow.start()
    assert began.wait(20)
    memory.commit(note("quick"))  # with its own embedding
    memory.commit(Fact(type="free", payload={}))  # and without
    assert stored(memory) == {"quick"}
    may_end.set()
    slow.join(20)
    assert stored(memory) == found(memory) == {"quick", "slow"}


# --- vector stores


@pytest.mark.parametrize("kind", ["in process", "persistent", "server"])
def test_chroma(kind: str, open_store: Open, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    client: Any = (
        chromadb.EphemeralClient()
        if kind == "in process"
        else chromadb.PersistentClient(str(tmp_path / "chroma"))
        if kind == "persistent"
        else chromadb.HttpClient(port=request.getfixturevalue("chroma_server"))
    )
    name = f"notes{time.time_ns()}"
    hook = ChromaSyncHook(client, name, "content", ["stars"], grace=0.0, late=0.0)
    exercise(open_store(hook))
    assert client.get_collection(name).count() == 2


def test_chroma_over_the_async_client(chroma_server: int, tmp_path: Path) -> None:
    name = f"notes{time.time_ns()}"

    async def open_memory() -> AsyncMemoryStore:
        client = await chromadb.AsyncHttpClient(port=chroma_server)
        hook = AsyncChromaSyncHook(client, name, "content", ["stars"], grace=0.0, late=0.0)
        memory = AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "state.db"), hooks=[hook])
        memory.register_schema("note", Note)
        return memory

    memory = awaited(open_memory())
    exercise(memory)
    memory.close()
    assert chromadb.HttpClient(port=chroma_server).get_collection(name).count() == 2


def exercise(memory: MemoryStore) -> None:
    a, b = memory.commit_many([note("the cat sleeps", namespace=("x",)), note("the market fell")])
    c = memory.commit(note("to be deleted"))
    memory.update(a, {"content": "the cat purrs"})
    memory.delete(c)
    memory.rollback(1)
    memory.delete(c)
    hits = memory.search("a purring cat", limit=1)
    assert [hit.fact.payload["content"] for hit in hits] == ["the cat purrs"]
    assert 0.0 < hits[0].score <= 1.0
    assert [hit.fact.id for hit in memory.search("cat", typename="note", namespace=())] == [b]
    assert found(memory) == {"the cat purrs", "the market fell"}
    report = memory.repair()
    assert report.ok, report
    assert report.leftovers == 0


def test_hooks_say_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match="text_field"):
        VectorStoreSyncHook(Plug())
    async_only = AsyncChromaSyncHook(object(), "c", "content")
    with pytest.raises(ValidationFailed, match="AsyncMemoryStore"):
        MemoryStore(SQLiteStorage(tmp_path / "s.db"), hooks=[async_only])
    with pytest.raises(ValidationFailed, match="hook"):
        MemoryStore(SQLiteStorage(tmp_path / "s.db"), hooks=["x"])
    vectors = Chroma("notes", DeterministicFakeEmbedding(size=4), persist_directory=str(tmp_path / "c"))
    assert VectorStoreSyncHook(vectors, "content").name == "Chroma:notes"
