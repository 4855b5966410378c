"""Graphs whose nodes write to memory, and what is seen of it."""

from __future__ import annotations

import operator
import threading
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy

from memstate_langgraph import Fact, MemoryStore, MemStateCheckpointer

R = TypeVar("R")
Durability = Literal["sync", "async", "exit"]
DURABILITIES: list[Durability] = ["sync", "async", "exit"]
CONFIG: RunnableConfig = {"configurable": {"thread_id": "t"}}
AGAIN = RetryPolicy(initial_interval=0.001, jitter=False, max_attempts=50, retry_on=ValueError)


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    seen: Annotated[list[Any], operator.add]


def line(memory: MemoryStore, *nodes: Any, saver: MemStateCheckpointer | None = None, **options: Any) -> Any:
    """A graph of nodes one after another."""
    graph = StateGraph(State)
    before = START
    for i, node in enumerate(nodes):
        graph.add_node(f"n{i}", node, **options)
        graph.add_edge(before, f"n{i}")
        before = f"n{i}"
    return graph.compile(checkpointer=saver or MemStateCheckpointer(memory))


def nested(inner: StateGraph[State], saver: MemStateCheckpointer) -> Any:
    """A graph whose only node is another one."""
    graph = StateGraph(State)
    graph.add_node("sub", inner.compile())
    graph.add_edge(START, "sub")
    return graph.compile(checkpointer=saver)


def say(memory: MemoryStore, name: str) -> str:
    """Remember something that was never said before."""
    content = f"{name} {uuid.uuid4().hex}"
    memory.commit(Fact(type="note", payload={"content": content}))
    return content


def outside(call: Callable[[], R]) -> R:
    """What somebody else sees: the context of a task does not reach a thread that it starts."""
    answers: list[R] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    thread.join()
    return answers[0]


def contents(memory: MemoryStore, **options: Any) -> list[str]:
    return [fact.payload["content"] for fact in memory.query("note", **options)]


def found(memory: MemoryStore) -> list[str]:
    return sorted(hit.fact.payload["content"] for hit in memory.search("x", limit=None))


def views(memory: MemoryStore) -> tuple[list[str], list[str]]:
    return contents(memory), found(memory)
