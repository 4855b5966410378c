"""What a vector store can do is found when its hook is made; one process has a Chroma folder at a time."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import chromadb
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from memstate_langgraph import (
    AsyncChromaSyncHook,
    Capabilities,
    ChromaSyncHook,
    MemoryStore,
    SQLiteStorage,
    UnfitVectorStore,
    VectorStoreInUse,
    VectorStoreSyncHook,
)
from memstate_langgraph.folders import hold
from tests.models import note
from tests.stores import Unreliable, Words, assert_in_step, hook_over


class Stranger(VectorStore):
    """A vector store that nobody knows, with nothing but LangChain's interface."""

    def __init__(self) -> None:
        self.inner = InMemoryVectorStore(Words())

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        return self.inner.add_documents(documents, **options)

    def delete(self, ids: list[str] | None = None, **options: Any) -> None:
        self.inner.delete(ids)

    def similarity_search_with_score(self, *args: Any, **options: Any) -> list[tuple[Document, float]]:
        return self.inner.similarity_search_with_score(*args, **options)

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        return self.inner.similarity_search(query, k, **options)

    @classmethod
    def from_texts(cls, *args: Any, **options: Any) -> Stranger:
        raise AssertionError


def test_verify_says_what_the_store_cannot_do(tmp_path: Path) -> None:
    hook = hook_over(Stranger(), name="strange")
    assert hook.capabilities == Capabilities()
    assert str(hook.capabilities) == "filters: no, lists its ids: no, waits for writes: no"
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook])
    memory.commit_many([note(f"number {i}", f"n{i}", namespace=(str(i % 2),)) for i in range(20)])
    memory.delete("n3")
    assert len(memory.search("number", namespace=("1",), limit=None)) == 9
    assert_in_step(memory)
    notes = " ".join(warning for warning in memory.verify().warnings if "'strange'" in warning)
    for lack in ("cannot filter", "cannot list", "not known to wait"):
        assert lack in notes
    assert memory.repair().ok


def test_verify_has_nothing_to_say_of_a_store_that_can_do_all(tmp_path: Path) -> None:
    hook = ChromaSyncHook(chromadb.EphemeralClient(), "able", "content", embedding=Words())
    assert hook.capabilities == Capabilities(filters=True, lists=True, waits=True)
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook])
    assert not [warning for warning in memory.verify().warnings if "able" in warning]


@pytest.mark.parametrize("lacks", ["add_documents", "delete", "similarity_search_with_score"])
def test_a_store_that_cannot_keep_the_promise_is_refused(lacks: str) -> None:
    unfit = type("Unfit", (Stranger,), {lacks: getattr(VectorStore, lacks)})
    with pytest.raises(UnfitVectorStore, match=rf"Unfit has no {lacks}"):
        hook_over(unfit())


def test_what_is_no_vector_store_is_refused() -> None:
    for thing in (None, "chroma", Words(), chromadb.EphemeralClient()):
        with pytest.raises(UnfitVectorStore, match="LangChain VectorStore"):
            VectorStoreSyncHook(thing, text_field="content")  # type: ignore[arg-type]
    assert hook_over(Unreliable()).capabilities.lists


# --- one process per Chroma folder

CHILD = """
import sys, chromadb
from langchain_core.embeddings import DeterministicFakeEmbedding
from memstate_langgraph import ChromaSyncHook, VectorStoreInUse
try:
    client = chromadb.PersistentClient(sys.argv[1])
    hook = ChromaSyncHook(client, "notes-c", "content", embedding=DeterministicFakeEmbedding(size=4))
except VectorStoreInUse as error:
    print("in use:", error, flush=True)
else:
    print("open", flush=True)
    sys.stdin.read()
"""


def child(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that opens a hook on the folder and keeps it; what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, process.stdout.readline()


def open_here(folder: Path) -> list[VectorStoreSyncHook]:
    client = chromadb.PersistentClient(str(folder))
    return [
        ChromaSyncHook(client, "notes-c", "content", embedding=Words()),
        AsyncChromaSyncHook(client, "notes-d", "content", embedding=Words()),
        hook_over(Chroma("notes-e", Words(), persist_directory=str(folder))),
        hook_over(Chroma("notes-f", Words(), persist_directory=os.path.relpath(folder))),
    ]


def test_a_second_process_is_told_what_to_do_until_the_first_dies(tmp_path: Path) -> None:
    folder = tmp_path / "chroma"
    first, said = child(folder)
    try:
        assert said == "open\n"
        with pytest.raises(VectorStoreInUse, match=r"chroma run --path .* chromadb.HttpClient"):
            ChromaSyncHook(chromadb.PersistentClient(str(folder)), "notes-c", "content", embedding=Words())
        with pytest.raises(VectorStoreInUse):
            hook_over(Chroma("notes-c", Words(), persist_directory=os.path.relpath(folder)))
        with pytest.raises(VectorStoreInUse):
            AsyncChromaSyncHook(chromadb.PersistentClient(str(folder)), "notes-c", "content", embedding=Words())
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    hooks = open_here(folder)  # as many as one likes in one process
    refused, said = child(folder)
    refused.communicate()
    assert said.startswith("in use")
    hooks.pop()
    gc.collect()
    refused, said = child(folder)
    refused.communicate()
    assert said.startswith("in use"), "others of this process still have it"
    hooks.clear()
    gc.collect()
    second, said = child(folder)
    second.communicate()
    assert said == "open\n"


def test_a_forked_child_is_another_process(tmp_path: Path) -> None:
    hooks = open_here(tmp_path)
    pid = os.fork()
    if pid == 0:
        try:
            hold(tmp_path.resolve())  # Chroma itself would wait for threads that a fork does not copy
        except VectorStoreInUse:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    stranger, said = child(tmp_path)
    stranger.communicate()
    assert said.startswith("in use"), "the child took the parent's lock away"
    assert len(hooks) == 4
