"""One contract for every LangChain vector store; those whose package is not installed are skipped."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.vectorstores import InMemoryVectorStore

from memstate_langgraph import MemoryStore, SQLiteStorage
from tests.conftest import Opener
from tests.models import note
from tests.stores import Words, assert_in_step, found, hook_over, live


def in_memory(_: Path) -> Any:
    return InMemoryVectorStore(Words())


def chroma(folder: Path) -> Any:
    from langchain_chroma import Chroma

    return Chroma(uuid.uuid4().hex, Words(), persist_directory=str(folder / "chroma"))


def qdrant(_: Path) -> Any:
    adapter, library = pytest.importorskip("langchain_qdrant"), pytest.importorskip("qdrant_client")
    client = library.QdrantClient(":memory:")
    how = library.models.VectorParams(size=Words.size, distance=library.models.Distance.COSINE)
    client.create_collection("notes", how)
    return adapter.QdrantVectorStore(client, "notes", Words())


def faiss(_: Path) -> Any:
    library = pytest.importorskip("faiss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        community = pytest.importorskip("langchain_community.vectorstores")
        docstore = pytest.importorskip("langchain_community.docstore")
    return community.FAISS(Words(), library.IndexFlatL2(Words.size), docstore.InMemoryDocstore(), {})


KINDS: list[Callable[[Path], Any]] = [in_memory, chroma, qdrant, faiss]


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.param(tmp_path)


def held(memory: MemoryStore) -> int | None:
    """How many vectors there are, if the vector store can say."""
    ids = memory._core.vectors[0].ids()
    return None if ids is None else len(ids)


def test_vectors_follow_facts(open_store: Opener, store: Any) -> None:
    memory = open_store(hook_over(store, grace=0.0, late=0.0))
    memory.commit(note("red apples and pears", "a", namespace=("ana",)))
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(30)])
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


def test_scores_fall_and_thresholds_cut(open_store: Opener, store: Any) -> None:
    memory = open_store(hook_over(store))
    for i, words in enumerate(["one two three four", "one two three", "one two", "one", "else"]):
        memory.commit(note(words, f"n{i}"))
    hits = memory.search("one two three four", limit=None)
    assert [hit.fact.id for hit in hits] == ["n0", "n1", "n2", "n3", "n4"]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    cut = (scores[1] + scores[2]) / 2
    assert [hit.fact.id for hit in memory.search("one two three four", score_threshold=cut)] == ["n0", "n1"]


def test_a_collection_that_was_lost_is_embedded_again(tmp_path: Path, store: Any) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(store, grace=0.0, late=0.0)])
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(5)])
    hook = memory._core.vectors[0]
    ids = hook.ids()
    if ids is None:
        pytest.skip("cannot say what it holds, so nobody can see what it lost")
    hook.delete(ids[:3])
    assert not memory.verify().ok
    stages: list[str] = []
    assert memory.repair(lambda stage, done, total: stages.append(f"{stage} {done}/{total}")).ok
    assert any(stage.endswith("3/3") for stage in stages)
    assert_in_step(memory)
    assert held(memory) == 5
