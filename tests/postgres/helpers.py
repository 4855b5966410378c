"""Stores on a PostgreSQL server, what goes over the wire, and a graph that asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from memstate_langgraph import Constraint, MemoryStore, MemStateCheckpointer, PostgresStorage
from memstate_langgraph.backends.postgres_engine import Exchange
from tests.models import Note, Preference
from tests.servers import schema_of


def open_store(url: Any, folder: Path, *hooks: object, **options: Any) -> MemoryStore:
    memory = MemoryStore(PostgresStorage(url, **{"schema": schema_of(folder), **options}), hooks)
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return memory


def with_options(url: str, options: str) -> str:
    return psycopg.conninfo.make_conninfo(url, options=options)


def spy(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, around: Callable[[Any, Exchange, Any], Any]) -> None:
    """Put something around every exchange of a store with its server."""
    original = PostgresStorage._answer

    def answer(self: PostgresStorage, step: Any) -> Any:
        if isinstance(step, Exchange) and self._server is memory.storage._server:  # type: ignore[attr-defined]
            return around(self, step, lambda: original(self, step))
        return original(self, step)

    monkeypatch.setattr(PostgresStorage, "_answer", answer)


def commits(step: Exchange) -> bool:
    return step.statements[-1].text == "COMMIT"


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(saver: MemStateCheckpointer, thread: str, text: str | Command[Any]) -> dict[str, Any]:
    def agent(state: MessagesState) -> dict[str, Any]:
        answer = interrupt("may I?")
        return {"messages": [AIMessage(f"you said {answer}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_edge(START, "agent")
    app: Any = graph.compile(checkpointer=saver)
    given = text if isinstance(text, Command) else {"messages": [HumanMessage(text)]}
    result: dict[str, Any] = app.invoke(given, {"configurable": {"thread_id": thread}})
    return result
