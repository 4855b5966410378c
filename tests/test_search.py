"""Search under load: it ends at its deadline, widens within it, and never shows what is not the reader's."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from memstate_langgraph import Fact, HookError, MemoryStore
from tests.conftest import Opener
from tests.models import note
from tests.stores import Words, found, hook_over


class Slow(InMemoryVectorStore):
    """A vector store that takes its time, may never answer, and scores as it is told; through either door."""

    def __init__(self) -> None:
        super().__init__(Words())
        self.takes = 0.0
        self.let_go = threading.Event()
        self.score: float | None = None
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def similarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> list[tuple[Document, float]]:
        self.asked.append(k)
        self.threads.add(threading.current_thread().name)
        self.let_go.wait(self.takes)
        hits = super().similarity_search_with_score(query, k, **options)
        return hits if self.score is None else [(document, self.score) for document, _ in hits]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        import asyncio

        return await asyncio.to_thread(self.similarity_search_with_score, query, k, **options)


@pytest.fixture
def slow() -> Iterator[Slow]:
    store = Slow()
    yield store
    store.let_go.set()


def test_a_search_that_hangs_ends_at_its_deadline(open_store: Opener, slow: Slow) -> None:
    memory = open_store(hook_over(slow, timeout=0.2, name="slow"))
    memory.commit(note("one"))
    slow.takes = 20.0
    began = time.monotonic()
    with pytest.raises(HookError, match=r"'slow': search took longer than its timeout of 0.2 s") as error:
        memory.search("one")
    assert 0.2 <= time.monotonic() - began < 2.0
    assert isinstance(error.value.__cause__, TimeoutError)
    slow.takes = 0.0
    assert len(memory.search("one")) == 1, "the next search is not held up by the one that hangs"


def test_widening_shares_one_deadline(open_store: Opener, slow: Slow) -> None:
    memory = open_store(hook_over(slow, timeout=0.5))
    memory.commit_many([note(f"secret {i}", namespace=("bob",)) for i in range(200)])
    slow.takes = 0.2  # each call alone is well within the deadline
    began = time.monotonic()
    with pytest.raises(HookError, match="timeout"):
        memory.search("secret", limit=1, namespace=("ana",))
    assert time.monotonic() - began < 1.5
    assert slow.asked in ([6, 24], [6, 24, 96]), "it widened, and gave up in the middle"


def test_what_the_store_itself_gives_up_is_told_as_it_is(open_store: Opener, slow: Slow) -> None:
    def give_up(*_: Any, **__: Any) -> Any:
        raise TimeoutError("the server did not answer")

    memory = open_store(hook_over(slow))
    slow.similarity_search_with_score = give_up  # type: ignore[method-assign]
    with pytest.raises(HookError, match="the server did not answer"):
        memory.search("x")


def test_without_a_timeout_the_store_is_called_in_the_callers_thread(open_store: Opener, slow: Slow) -> None:
    memory = open_store(hook_over(slow, timeout=None))
    memory.commit(note("one"))
    assert len(memory.search("one")) == 1
    if isinstance(memory, MemoryStore):
        assert slow.threads == {threading.current_thread().name}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_rank_last_and_pass_no_threshold(
    open_store: Opener, slow: Slow, score: float
) -> None:
    memory = open_store(hook_over(slow))
    memory.commit(note("one"))
    slow.score = score
    assert [hit.score for hit in memory.search("one")] == [-math.inf]
    assert memory.search("one", score_threshold=0.0) == []


def test_a_fact_whose_text_became_empty_is_not_found_until_it_has_one_again(open_store: Opener, slow: Slow) -> None:
    memory = open_store(hook_over(slow))
    for empty in ("", " \t\n", None):
        fact = Fact(id="a", type="free", payload={"content": "once"})
        memory.commit(fact)
        assert list(found(memory)) == ["a"]
        if empty is None:
            memory.commit(fact.model_copy(update={"payload": {"topic": ""}}))  # the field is gone altogether
        else:
            memory.update("a", {"content": empty})
        assert memory.get("a") is not None
        assert memory.search("once", limit=None) == []
        assert memory.verify().ok
        memory.rollback(1)
        assert found(memory)["a"].payload["content"] == "once"
        memory.delete("a")


def test_a_process_ends_although_a_search_hangs_and_searches_after_a_fork(tmp_path: Path) -> None:
    """The threads that searches run in neither keep the process nor are missed by its children."""
    program = """
import os, sys
from memstate_langgraph import HookError, InMemoryStorage, MemoryStore
from tests.models import note
from tests.stores import hook_over
from tests.test_search import Slow
slow = Slow()
memory = MemoryStore(InMemoryStorage(), [hook_over(slow, timeout=2.0)])
memory.commit(note("one"))
assert len(memory.search("one")) == 1
pid = os.fork()
if pid == 0:
    os._exit(6 + len(memory.search("one")))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
slow.takes = 20.0
try:
    memory.search("one")
except HookError:
    print("gave up")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "gave up\n", done.stderr[-2000:]
    assert done.returncode == 0
