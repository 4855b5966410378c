"""The store in real graphs, and under the real langmem and deepagents, with scripted models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedStore, ToolNode
from langgraph.store.base import BaseStore

from memstate_langgraph import ItemSyncHook, MemoryStore, MemStateCheckpointer, MemStateStore, SQLiteStorage
from tests.stores import Words


class Scripted(GenericFakeChatModel):
    """Says its messages one after the other and takes any tools."""

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self


def calls(*named: tuple[str, dict[str, Any]]) -> AIMessage:
    return AIMessage(
        "", tool_calls=[{"name": name, "args": args, "id": f"call-{name}-{i}"} for i, (name, args) in enumerate(named)]
    )


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    memory = MemoryStore(
        SQLiteStorage(tmp_path / "state.db"), [ItemSyncHook(InMemoryVectorStore(Words()), ["content"], grace=0)]
    )
    yield memory
    memory.close()


def ask(thread: str, user: str, **more: str) -> Any:
    return {"configurable": {"thread_id": thread, "user_id": user, "langgraph_user_id": user, **more}}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_graph_shares_one_history_and_rollback_undoes_what_a_tool_put(
    memory: MemoryStore, asynchronous: bool
) -> None:
    def save(text: str, store: Annotated[BaseStore, InjectedStore()]) -> str:
        """Save a text."""
        store.put(("texts",), "only", {"content": text})
        return "saved"

    async def asave(text: str, store: Annotated[BaseStore, InjectedStore()]) -> str:
        """Save a text."""
        await store.aput(("texts",), "only", {"content": text})
        return "saved"

    def call(state: MessagesState) -> Any:
        return {"messages": [calls(("asave" if asynchronous else "save", {"text": state["messages"][-1].text}))]}

    builder = StateGraph(MessagesState)
    builder.add_node("call", call)
    builder.add_node("tools", ToolNode([asave if asynchronous else save]))
    builder.add_edge(START, "call")
    builder.add_edge("call", "tools")
    store = MemStateStore(memory)
    app = builder.compile(checkpointer=MemStateCheckpointer(memory=memory), store=store)
    for text in ("first", "second"):
        config = ask("t", "u")
        given: Any = {"messages": [("user", text)]}
        _ = await app.ainvoke(given, config) if asynchronous else app.invoke(given, config)
    (fact,) = memory.query("langgraph.item")
    assert fact.payload["value"] == {"content": "second"}
    assert fact.session_id == "t"
    assert memory.history(fact.id)[0].cause.node == "tools"
    assert memory.query("langgraph.checkpoint", session_id="t")
    memory.rollback(1, session_id="t")
    found = store.search(("texts",), query="first")
    assert [(item.value, item.score is not None) for item in found] == [({"content": "first"}, True)]
    assert_in_step_of_items(memory)


def assert_in_step_of_items(memory: MemoryStore) -> None:
    assert not memory.verify().findings, str(memory.verify())


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_langmem_manages_and_searches(memory: MemoryStore, asynchronous: bool) -> None:
    langmem = pytest.importorskip("langmem")
    from langchain.agents import create_agent

    namespace = ("memories", "{langgraph_user_id}")
    tools = [langmem.create_manage_memory_tool(namespace), langmem.create_search_memory_tool(namespace)]
    store = MemStateStore(memory)

    async def run(user: str, *said: AIMessage) -> list[str]:
        model = Scripted(messages=iter([*said, AIMessage("done")]))
        app: Any = create_agent(model, tools, store=store, checkpointer=MemStateCheckpointer(memory=memory))
        given = {"messages": [("user", "go")]}
        config = ask(f"thread of {user} {len(memory.log())}", user)
        state = await app.ainvoke(given, config) if asynchronous else app.invoke(given, config)
        return [message.text for message in state["messages"] if message.type == "tool"]

    (created,) = await run("ana", calls(("manage_memory", {"content": "Ana likes green tea", "action": "create"})))
    await run("ana", calls(("manage_memory", {"content": "Ana has a cat", "action": "create"})))
    key = created.removeprefix("created memory ")
    (found,) = await run("ana", calls(("search_memory", {"query": "green tea", "limit": 1})))
    assert [item["value"]["content"] for item in json.loads(found)] == ["Ana likes green tea"]
    assert json.loads((await run("bob", calls(("search_memory", {"query": "green tea"}))))[0]) == []
    await run("ana", calls(("manage_memory", {"content": "Ana likes coffee", "action": "update", "id": key})))
    assert [item.value["content"] for item in store.search(("memories", "ana"), query="coffee", limit=1)] == [
        "Ana likes coffee"
    ]
    memory.rollback(1)
    assert store.search(("memories", "ana"), query="green tea", limit=1)[0].value["content"] == "Ana likes green tea"
    await run("ana", calls(("manage_memory", {"action": "delete", "id": key})))
    assert store.get(("memories", "ana"), key) is None
    assert_in_step_of_items(memory)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_deepagents_keeps_its_files(memory: MemoryStore, asynchronous: bool) -> None:
    deepagents = pytest.importorskip("deepagents")
    from deepagents.backends import CompositeBackend, StateBackend, StoreBackend

    backend = CompositeBackend(
        default=StateBackend(), routes={"/memories/": StoreBackend(namespace=lambda _: ("files", "ana"))}
    )
    store = MemStateStore(memory)

    async def run(thread: str, *said: AIMessage) -> list[str]:
        model = Scripted(messages=iter([*said, AIMessage("done")]))
        app: Any = deepagents.create_deep_agent(
            model, backend=backend, store=store, checkpointer=MemStateCheckpointer(memory=memory)
        )
        given = {"messages": [("user", "go")]}
        state = await app.ainvoke(given, ask(thread, "ana")) if asynchronous else app.invoke(given, ask(thread, "ana"))
        return [message.text for message in state["messages"] if message.type == "tool"]

    path = "/memories/likes.md"
    await run("one", calls(("write_file", {"file_path": path, "content": "green tea\n"})))
    (read,) = await run("two", calls(("read_file", {"file_path": path})))
    assert "green tea" in read
    await run("two", calls(("edit_file", {"file_path": path, "old_string": "green", "new_string": "black"})))
    (read,) = await run("three", calls(("read_file", {"file_path": path})))
    assert "black tea" in read
    *_, found = await run("three", calls(("ls", {"path": "/memories/"})))
    assert path in found
    memory.rollback(1, session_id="two")
    (read,) = await run("four", calls(("read_file", {"file_path": path})))
    assert "green tea" in read
    assert [item.namespace for item in store.search(())] == [("files", "ana")]
    assert_in_step_of_items(memory)
