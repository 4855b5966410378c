"""Code of an attempt that failed may go on, as a tool does beside one that raised: it changes nothing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest

from memstate_langgraph import MemoryStore
from tests.children import PATIENCE
from tests.graphs import AGAIN, CONFIG, DURABILITIES, Durability, State, contents, line, say, views
from tests.stores import Unreliable, assert_in_step


@pytest.fixture
def memory(graphs_memory: MemoryStore) -> MemoryStore:
    return graphs_memory


class Straggler:
    """A thread in the context of the task that starts it, which does something when it is told."""

    def __init__(self, does: Callable[[], object]) -> None:
        self._told = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._when_told, does))
        self._thread.start()

    def _when_told(self, does: Callable[[], object]) -> None:
        assert self._told.wait(PATIENCE)
        does()

    def begin(self) -> None:
        self._told.set()

    def come(self) -> None:
        self.begin()
        self._thread.join()


def look(memory: MemoryStore, end: State) -> None:
    """What was said is what was seen inside and is remembered."""
    assert end["seen"] == [end["said"]]
    assert contents(memory) == end["said"]
    assert_in_step(memory)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_it_comes_when_the_next_attempt_has_written(memory: MemoryStore, durability: Durability) -> None:
    late: list[Straggler] = []

    def writes(state: State) -> State:
        if not late:
            late.append(Straggler(lambda: say(memory, "late")))
            raise ValueError("again")
        said = [say(memory, "kept")]
        late[0].come()
        return {"said": [*said, say(memory, "kept too")], "seen": [contents(memory)]}

    end = line(memory, writes, retry_policy=AGAIN).invoke({}, CONFIG, durability=durability)
    look(memory, end)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_it_comes_when_the_next_attempt_is_done(memory: MemoryStore, durability: Durability) -> None:
    late: list[Straggler] = []

    def writes(state: State) -> State:
        if not late:
            late.append(Straggler(lambda: say(memory, "late")))
            raise ValueError("again")
        return {"said": [say(memory, "kept")]}

    def after(state: State) -> State:
        late[0].come()
        return {"said": [say(memory, "after")], "seen": [contents(memory)]}

    end = line(memory, writes, after, retry_policy=AGAIN).invoke({}, CONFIG, durability=durability)
    look(memory, end)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_the_next_attempt_only_reads(memory: MemoryStore, durability: Durability) -> None:
    tries: list[Any] = []

    def reads(state: State) -> State:
        tries.append(contents(memory))
        if len(tries) == 1:
            say(memory, "in vain")
            raise ValueError("again")
        return {"seen": tries}

    app = line(memory, reads, lambda state: {"said": [say(memory, "after")]}, retry_policy=AGAIN)
    end = app.invoke({}, CONFIG, durability=durability)
    assert end["seen"] == [[], []]
    assert contents(memory) == end["said"]
    assert_in_step(memory)


def test_an_attempt_is_over_in_all_stores(memory: MemoryStore) -> None:
    other, tries = MemoryStore(memory.storage), itertools.count()

    def writes(state: State) -> State:
        if next(tries) == 0:
            say(other, "in vain")
            raise ValueError("again")
        return {"said": [say(memory, "kept")]}

    said = line(memory, writes, retry_policy=AGAIN).invoke({}, CONFIG)["said"]
    assert contents(memory) == said


@pytest.mark.parametrize("durability", ["sync", "async"])
def test_it_comes_in_the_next_run(memory: MemoryStore, durability: Durability) -> None:
    late: list[Straggler] = []

    def writes(state: State) -> State:
        said = say(memory, "kept")
        if not late:
            late.append(Straggler(lambda: say(memory, "late")))
            raise RuntimeError("boom")
        late[0].come()
        return {"said": [said], "seen": [contents(memory)]}

    app = line(memory, writes)
    with pytest.raises(RuntimeError):
        app.invoke({"said": []}, CONFIG, durability=durability)
    end = app.invoke(None, CONFIG, durability=durability)
    look(memory, end)


def test_the_vectors_that_it_was_preparing_are_removed(memory: MemoryStore, vectors: Unreliable) -> None:
    late: list[Straggler] = []
    preparing, replaced = threading.Event(), threading.Event()
    add = vectors.add_documents

    def slow(documents: Any, *args: Any, **options: Any) -> Any:
        if "late" in documents[0].page_content:
            preparing.set()
            assert replaced.wait(PATIENCE)
        return add(documents, *args, **options)

    vectors.add_documents = slow  # type: ignore[method-assign]

    def writes(state: State) -> State:
        if not late:
            late.append(Straggler(lambda: say(memory, "late")))
            late[0].begin()
            assert preparing.wait(PATIENCE)
            raise ValueError("again")
        said = say(memory, "kept")
        replaced.set()
        late[0].come()
        return {"said": [said]}

    said = line(memory, writes, retry_policy=AGAIN).invoke({}, CONFIG)["said"]
    assert views(memory) == (said, said)
    memory.repair()
    assert len(vectors.store) == 1
