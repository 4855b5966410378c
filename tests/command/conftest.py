"""A storage to run the command on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import Constraint, Fact, MemStateCheckpointer
from tests.command.helpers import store
from tests.models import Preference


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with facts, vectors and a conversation; the commands run in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    with store(vectors=True) as memory:
        memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
        memory.commit_model(Preference(topic="food", content="Ana is vegetarian"), session_id="chat-1")
        memory.commit_model(Preference(topic="food", content="Ana eats fish again"), session_id="chat-1")
        memory.commit(Fact(id="train", type="note", payload={"content": "trains", "stars": 4}), session_id="chat-2")
        graph = StateGraph(MessagesState)
        graph.add_node("agent", lambda _: {"messages": [("ai", "Hello")]})
        graph.add_edge(START, "agent")
        talk: Any = graph.compile(checkpointer=MemStateCheckpointer(memory))
        for thread in ("chat-1", "chat-2"):
            talk.invoke({"messages": [("user", "Hi")]}, {"configurable": {"thread_id": thread}})
    return tmp_path
