"""One tenant tries to reach another's memory through everything that a graph or a model can be given."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import InMemoryVectorStore

from memstate_langgraph import (
    Cause,
    ConflictError,
    ItemSyncHook,
    MemoryStore,
    MemoryStoreError,
    MemStateStore,
    RecallHook,
    RecallNode,
    RememberNode,
    RollbackNode,
    ValidationFailed,
    create_memory_tools,
)
from tests.conftest import Opener
from tests.models import Note, note
from tests.stores import Words, hook_over, live

BOBS: list[dict[str, Any]] = [
    {"run_id": "run of bob"},
    {"task_id": "task of bob"},
    {"tool_call_id": "call of bob"},
    {"since": 0},
    {},
]
"""What a node could be told to take back that bob did."""
SECRET = "the secret code is 1234"
STRANGERS = ["ana", "bo", "bobby", "BOB", "*", "%", "b_b", 'bob"', '","bob', "bob\\", "memories", "{user_id}", "bob "]
"""What a tenant may be called who is not bob."""


@pytest.fixture
def memory(open_store: Opener) -> MemoryStore:
    vectors = InMemoryVectorStore(Words())
    memory = open_store(hook_over(vectors, name="facts"), ItemSyncHook(InMemoryVectorStore(Words()), ["content"]))
    memory.register_schema("note", Note)
    cause = Cause(thread_id="thread of bob", tool_call_id="call of bob", run_id="run of bob", task_id="task of bob")
    memory.commit(note(SECRET, "bobs", namespace=("memories", "bob"), session_id="thread of bob"), cause=cause)
    MemStateStore(plain(memory)).put(("memories", "bob"), "bobs", {"content": SECRET})
    return memory


def plain(memory: Any) -> Any:
    """The memory itself, which tools and nodes ask for, behind the door that a test calls."""
    return getattr(memory, "_store", memory)


def config(user: str) -> Any:
    return {"configurable": {"user_id": user, "thread_id": f"thread of {user}"}}


class Door:
    """Invokes tools and nodes through whichever door the memory has."""

    def __init__(self, memory: Any) -> None:
        self.runner = getattr(memory, "_runner", None)

    def __call__(self, thing: Any, given: Any, user: str) -> str:
        return self.under(thing, given, config(user))

    def under(self, thing: Any, given: Any, configured: Any) -> str:
        if self.runner is None:
            return str(thing.invoke(given, configured))
        return str(self.runner.run(thing.ainvoke(given, configured)))


@pytest.fixture
def invoke(memory: MemoryStore) -> Door:
    return Door(memory)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_no_tool_reaches_a_neighbour(memory: MemoryStore, invoke: Door, stranger: str) -> None:
    tools: dict[str, BaseTool] = {tool.name: tool for tool in create_memory_tools(plain(memory))}
    item = memory.query("langgraph.item")[0].id
    before = live(memory)
    answers = [invoke(tools["recall"], {"query": SECRET, "limit": 20}, stranger)]
    for fact_id in ("bobs", item):
        answers.append(invoke(tools["update"], {"fact_id": fact_id, "changes": {"content": "mine"}}, stranger))
        answers.append(invoke(tools["forget"], {"fact_id": fact_id}, stranger))
    undoing = ({"steps": 20}, {"call": "call of bob"}, {"this_turn": True}, {"steps": 20, "dry_run": True})
    answers += [invoke(tools["undo"], arguments, stranger) for arguments in undoing]
    forged: list[dict[str, Any]] = [
        {"namespace": ["memories", "bob"]},
        {"user_id": "bob"},
        {"filters": {"type": "note"}},
    ]
    answers += [invoke(tools["recall"], {"query": SECRET, **more}, stranger) for more in forged]
    assert live(memory) == before
    assert not any("1234" in answer for answer in answers)
    assert "1234" in invoke(tools["recall"], {"query": SECRET}, "bob")  # so there was something to find
    assert "Forgot" in invoke(tools["forget"], {"fact_id": "bobs"}, "bob")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_no_node_reaches_a_neighbour(memory: MemoryStore, invoke: Door, stranger: str) -> None:
    state = {"messages": [HumanMessage(SECRET)], "found": [{"type": "note", "payload": {"content": "mine"}}]}
    taken = note("mine", "bobs", namespace=("memories", "bob"), session_id="thread of bob")
    store = plain(memory)
    asked = SECRET
    for node in (RecallNode(store), RecallNode(store, as_message=True), RecallHook(store)):
        told = invoke(node, state, stranger)
        assert told.count("1234") == (1 if isinstance(node, RecallHook) else 0), asked  # what the human said is there
        assert invoke(node, state, "bob").count("1234") > told.count("1234")
    before = live(memory)
    invoke(RollbackNode(store, steps=20), state, stranger)
    for revert in BOBS:
        invoke(RollbackNode(store, revert=revert), state, stranger)
        assert "1234" not in invoke(RollbackNode(store, revert=revert, dry_run=True, into="told"), state, stranger)
    with pytest.raises(ValidationFailed):
        invoke(RollbackNode(store, revert={"thread_id": "thread of bob"}), state, stranger)
    with pytest.raises(ConflictError):
        invoke(RememberNode(store, lambda _: [taken]), state, stranger)
    assert live(memory) == before
    invoke(RememberNode(store, "found"), state, stranger)
    assert [fact.payload["content"] for fact in memory.query("note", namespace=("memories", "bob"))] == [SECRET]


def test_a_thread_that_two_share_does_not_open_their_memories(memory: MemoryStore, invoke: Door) -> None:
    """The thread is bob's, whoever is let into it: his namespace is not."""
    before = live(memory)
    into_bobs: Any = {"configurable": {"user_id": "ana", "thread_id": "thread of bob"}}
    store = plain(memory)
    tools: dict[str, BaseTool] = {tool.name: tool for tool in create_memory_tools(store)}
    for arguments in ({}, {"call": "call of bob"}, {"call": "call of bob", "dry_run": True}):
        told = invoke.under(tools["undo"], arguments, into_bobs)
        assert "not undone" in told
        assert "1234" not in told
    undoing: list[dict[str, Any]] = [{}, *({"revert": revert} for revert in BOBS), {"dry_run": True}]
    for options in undoing:
        with pytest.raises(ConflictError, match="outside the given scope"):
            invoke.under(RollbackNode(store, **options), {"messages": []}, into_bobs)
    assert live(memory) == before


@pytest.mark.parametrize("stranger", STRANGERS)
def test_the_past_is_as_closed_as_the_present(memory: MemoryStore, stranger: str) -> None:
    mine = ("memories", stranger)
    position = memory.log(limit=1)[0].seq
    assert memory.query("note", namespace=mine, as_of=position) == []
    assert memory.search(SECRET, None, namespace=mine, as_of=position) == []
    assert not memory.would_undo(20, f"thread of {stranger}", namespace=mine)
    with pytest.raises(ConflictError, match="outside the given scope"):
        memory.would_undo(1, "thread of bob", namespace=mine)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_no_call_of_the_store_reaches_a_neighbour(memory: MemoryStore, stranger: str) -> None:
    store = MemStateStore(plain(memory))
    mine = ("memories", stranger)
    store.put(mine, "mine", {"content": "mine"})
    bobs = store.get(("memories", "bob"), "bobs")
    found = [
        *store.search(mine, limit=100),
        *store.search(mine, query=SECRET, limit=100),
        *store.search(mine, filter={"content": SECRET}),
        *store.search(mine, filter={"content": {"$ne": "mine"}}),
        *store.search((*mine, "bob"), query=SECRET),
    ]
    assert {item.namespace for item in found} == {mine}
    assert store.get(mine, "bobs") is None
    assert store.list_namespaces(prefix=mine) == (
        [mine] if stranger != "*" else [("memories", "*"), ("memories", "bob")]
    )
    store.delete(mine, "bobs")
    store.put(mine, "bobs", {"content": "mine"})
    assert store.get(("memories", "bob"), "bobs") == bobs


@pytest.mark.parametrize("stranger", STRANGERS)
def test_no_query_of_a_namespace_reaches_a_neighbour(memory: MemoryStore, stranger: str) -> None:
    mine = ("memories", stranger)
    for filters in ({}, {"payload.content": SECRET}, {"id": "bobs"}, {"id": {"$in": ["bobs"]}}, {"id": {"$ne": ""}}):
        assert memory.query("note", filters, namespace=mine) == []
        assert memory.search(SECRET, None, filters, namespace=mine) == []
        assert memory.search(SECRET, None, {**filters, "namespace": ["memories", "bob"]}, namespace=mine) == []


@pytest.mark.parametrize("missing", [None, "", " ", True, [], {"user": "bob"}])
def test_nobody_is_no_tenant(memory: MemoryStore, missing: Any, invoke: Door) -> None:
    before = live(memory)
    for thing in (RecallNode(plain(memory)), RecallHook(plain(memory)), RememberNode(plain(memory), "found")):
        with pytest.raises(MemoryStoreError, match="whose memory"):
            invoke(thing, {"messages": [HumanMessage("hello")], "found": []}, missing)
    for tool in create_memory_tools(plain(memory)):
        if tool.name == "recall":
            assert "whose memory" in invoke(tool, {"query": SECRET}, missing)
    assert live(memory) == before
