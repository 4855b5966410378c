"""LangGraph's conformance suite for checkpointers, and what a task of a graph writes to memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from memstate_langgraph import MemoryStore, MemStateCheckpointer
from memstate_langgraph.testing.models import note
from memstate_langgraph.testing.places import Opener, Place, assert_in_step, texts

CONFIG: Any = {"configurable": {"thread_id": "t"}}


def test_all_eight_capabilities(place: Place, tmp_path: Path) -> None:
    opened: list[Any] = []

    @checkpointer_test(name=place.name)
    async def made() -> Any:
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        storage = place.storage(folder)
        opened.append(place.store_on(storage))
        yield MemStateCheckpointer(opened[-1])

    async def validated() -> Any:
        report = await validate(made)
        for store in opened:
            await MemStateCheckpointer(store).__aexit__(None, None, None)
        return report

    report = asyncio.run(validated())
    assert {name: result.failures for name, result in report.results.items() if not result.passed} == {}
    assert len(report.results) == 8


def talk(memory: MemoryStore, *, fails: bool = False) -> Any:
    def remember(state: MessagesState) -> None:
        memory.commit(note("before the question", "a"))
        answer = interrupt("may I?")
        memory.commit(note(f"the answer was {answer}", "b"))
        if fails:
            raise RuntimeError

    graph = StateGraph(MessagesState)
    graph.add_node("remember", remember)
    graph.add_edge(START, "remember")
    return graph.compile(checkpointer=MemStateCheckpointer(memory))


def test_what_a_task_writes_lands_with_its_result_and_once(graphs_memory: MemoryStore) -> None:
    memory = graphs_memory
    talk(memory).invoke({"messages": [("user", "hello")]}, CONFIG)
    assert memory.query() == []
    with pytest.raises(RuntimeError):
        talk(memory, fails=True).invoke(Command(resume="yes"), CONFIG)
    assert memory.query() == []
    talk(memory).invoke(Command(resume="yes"), CONFIG)
    assert texts(memory) == {"a": "before the question", "b": "the answer was yes"}
    assert len(memory.log()) == 2
    assert_in_step(memory)


def test_another_process_goes_on_with_a_thread(reopen: Opener, graphs_memory: MemoryStore) -> None:
    talk(graphs_memory).invoke({"messages": [("user", "hello")]}, CONFIG)
    other = reopen()
    assert "__interrupt__" not in talk(other).invoke(Command(resume="yes"), CONFIG)
    assert texts(graphs_memory)["b"] == "the answer was yes"
