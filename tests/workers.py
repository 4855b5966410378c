"""Several workers on one store: threads that write all the time, a graph that asks a human, patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from memstate_langgraph import MemoryStore, MemStateCheckpointer
from tests.models import note
from tests.stores import assert_in_step


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(saver: MemStateCheckpointer, thread: str, text: str | Command[Any]) -> dict[str, Any]:
    """Run a graph up to its question, or on with the answer."""

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


class Writers:
    """Three threads that write until the block ends; then no call failed, and what was acknowledged is there."""

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.acknowledged: list[str] = []
        self.failed: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write) for _ in range(3)]

    def _write(self) -> None:
        while not self._stop.is_set():
            try:
                self.acknowledged.append(self.memory.commit(note("x"), session_id="s"))
            except BaseException as error:
                self.failed.append(error)
                return

    def get_on(self, count: int) -> None:
        """Wait until so many more commits were acknowledged."""
        known = len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) > known + count or self.failed != [])

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        if error[0] is None:
            assert self.failed == []
            assert {fact.id for fact in self.memory.query()} == set(self.acknowledged)
            assert len(self.memory.log()) == len(self.acknowledged)
            assert_in_step(self.memory)
