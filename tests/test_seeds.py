"""Programs in the words of MemState, the system before this one, run with nothing but their imports changed."""

from __future__ import annotations

from pathlib import Path

import chromadb
import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    Constraint,
    Fact,
    HookError,
    InMemoryStorage,
    MemoryStore,
    SQLiteStorage,
)
from memstate_langgraph.integrations.chroma import AsyncChromaSyncHook, ChromaSyncHook
from memstate_langgraph.integrations.langgraph import MemStateCheckpointer


class UserPref(BaseModel):
    content: str
    role: str


def test_commit_and_roll_back_with_chroma(tmp_path: Path) -> None:
    client = chromadb.Client()
    hook = ChromaSyncHook(client=client, collection_name="seed_memory", text_field="content", metadata_fields=["role"])
    mem = MemoryStore(SQLiteStorage(str(tmp_path / "state.db")))
    mem.add_hook(hook)
    payload = {"content": "User prefers vegetarian", "role": "preference"}
    mem.commit(Fact(type="profile_update", payload=payload))
    assert [found.fact.payload for found in mem.search("what does the user eat")] == [payload]
    mem.rollback(1)
    assert mem.query() == []
    assert mem.search("what does the user eat") == []

    workflow = StateGraph(MessagesState)
    workflow.add_node("say", lambda state: {"messages": ["hello"]})
    workflow.add_edge(START, "say")
    app = workflow.compile(checkpointer=MemStateCheckpointer(memory=mem))
    app.invoke({"messages": [HumanMessage("hi")]}, {"configurable": {"thread_id": "1"}})
    assert len(mem.query("langgraph.checkpoint", session_id="1")) == 3


def test_a_registered_singleton(tmp_path: Path) -> None:
    store = MemoryStore(storage=InMemoryStorage())
    store.register_schema(
        typename="preference", model=UserPref, constraint=Constraint(singleton_key="role", immutable=False)
    )
    fact_id = store.commit_model(model=UserPref(content="I am vegetarian", role="preference"), session_id="session_1")
    assert (
        store.commit_model(model=UserPref(content="I am vegan", role="preference"), session_id="session_1") == fact_id
    )
    store.rollback(steps=1, session_id="session_1")
    assert store.get(fact_id).payload["content"] == "I am vegetarian"  # type: ignore[union-attr]


async def test_the_async_forms() -> None:
    hook = AsyncChromaSyncHook(
        client=chromadb.Client(), collection_name="seed_async", text_field="content", metadata_fields=["role"]
    )
    store = AsyncMemoryStore(storage=AsyncInMemoryStorage(), hooks=[hook])
    store.register_schema(typename="preference", model=UserPref, constraint=Constraint(singleton_key="role"))
    try:
        await store.commit_model(model=UserPref(content="I am vegetarian", role="preference"), session_id="session_1")
    except HookError as error:
        pytest.fail(str(error))
    assert len(await store.search("vegetarian")) == 1
    await store.rollback(steps=1, session_id="session_1")
    assert await store.search("vegetarian") == []
