"""The tools as a model meets them: in a graph, with arguments of every quality, and never beyond its scope."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import Field

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    Constraint,
    Fact,
    InMemoryStorage,
    LocalEmbeddings,
    MemoryStore,
    MemStateCheckpointer,
    SQLiteStorage,
    ValidationFailed,
    VectorStoreSyncHook,
    create_memory_tools,
)
from tests.models import Note, Preference, Rule, note

ANA = ("memories", "ana")


def config(user: str = "ana", thread: str = "t") -> Any:
    return {"configurable": {"user_id": user, "thread_id": thread}}


def register(memory: Any) -> Any:
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    memory.register_schema("rule", Rule, Constraint(singleton_key="name", immutable=True))
    return memory


def hook() -> VectorStoreSyncHook:
    return VectorStoreSyncHook(InMemoryVectorStore(LocalEmbeddings()), text_field="content")


@pytest.fixture
def memory(tmp_path: Path) -> MemoryStore:
    made: MemoryStore = register(MemoryStore(SQLiteStorage(tmp_path / "state.db"), hooks=[hook()]))
    return made


def graph(tools: Sequence[Any], saver: Any = None) -> Any:
    """A graph that runs the tool calls of the last message."""
    made = StateGraph(MessagesState)
    made.add_node("tools", ToolNode(tools))
    made.add_edge(START, "tools")
    return made.compile(checkpointer=saver)


def calls(*made: tuple[str, Any], ids: Sequence[str] | None = None) -> dict[str, Any]:
    named = [
        {"name": name, "args": args, "id": ids[i] if ids else f"call-{i}", "type": "tool_call"}
        for i, (name, args) in enumerate(made)
    ]
    return {"messages": [AIMessage("", tool_calls=named)]}


def replies(result: Any) -> list[ToolMessage]:
    return [message for message in result["messages"] if isinstance(message, ToolMessage)]


def one(app: Any, name: str, args: Any, at: Any = None) -> ToolMessage:
    (reply,) = replies(app.invoke(calls((name, args)), at or config()))
    return reply


def fact(topic: str = "food", text: str = "likes soup") -> dict[str, Any]:
    return {"fact": {"type": "preference", "topic": topic, "content": text}}


def id_in(reply: ToolMessage) -> str:
    return reply.text.split()[-1].rstrip(".")


# --- what each tool does


def test_remember_recall_update_forget_undo(memory: MemoryStore) -> None:
    app = graph(create_memory_tools(memory))
    remembered = one(app, "remember", fact())
    assert remembered.status == "success"
    (stored,) = memory.query()
    assert (stored.id, stored.namespace, stored.session_id) == (id_in(remembered), ANA, "t")
    assert stored.id in one(app, "recall", {"query": "what does she eat"}).text
    one(app, "update", {"fact_id": stored.id, "changes": {"content": "likes bread"}})
    assert "likes bread" in one(app, "recall", {"query": "food", "type": "preference"}).text
    assert one(app, "recall", {"query": "food", "type": "note"}).text == "Nothing is remembered about that."
    one(app, "forget", {"fact_id": stored.id})
    assert memory.query() == []
    assert stored.id in one(app, "undo", {}).text
    assert memory.query()[0].payload["content"] == "likes bread"
    one(app, "undo", {"steps": 2})
    assert memory.query() == []
    assert one(app, "undo", {}).text == "There was nothing to take back."
    entry = memory.log()[-1]
    assert (entry.actor, entry.cause.tool_call_id, entry.cause.thread_id, entry.cause.node) == (
        "model", "call-0", "t", "tools",
    )  # fmt: skip


async def test_the_async_doors(memory: MemoryStore, tmp_path: Path) -> None:
    other = register(AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "other.db"), hooks=[hook()]))
    for store in (memory, other):
        app = graph(create_memory_tools(store))
        (reply,) = replies(await app.ainvoke(calls(("remember", fact())), config()))
        assert reply.status == "success"
        (reply,) = replies(await app.ainvoke(calls(("recall", {"query": "food"})), config()))
        assert "likes soup" in reply.text
    with pytest.raises(ValidationFailed, match="ainvoke"):  # the application's mistake, not the model's
        graph(create_memory_tools(other)).invoke(calls(("recall", {"query": "x"})), config())
    await other.close()


def test_a_model_sees_the_real_fields_and_nothing_else(memory: MemoryStore) -> None:
    tools = {tool.name: convert_to_openai_tool(tool)["function"] for tool in create_memory_tools(memory)}
    assert list(tools) == ["remember", "recall", "update", "forget", "undo"]
    told = json.dumps(tools)
    for word in ("stars", "topic", "preference", "one per topic"):
        assert word in told
    for hidden in ("namespace", "session", "user_id", "thread", "config", "runtime", "tool_call_id", "memory"):
        names = {name for tool in tools.values() for name in tool["parameters"]["properties"]}
        assert hidden not in names
    only = create_memory_tools(memory, types=["note"])
    parameters = convert_to_openai_tool(only[0])["function"]["parameters"]
    assert "topic" not in json.dumps(parameters)


def test_types_are_checked_when_the_tools_are_made(memory: MemoryStore) -> None:
    for types in (["nonsense"], [], "note"):
        with pytest.raises(ValidationFailed, match="types"):
            create_memory_tools(memory, types=types)
    with pytest.raises(ValidationFailed, match="no type"):
        create_memory_tools(MemoryStore(InMemoryStorage()))


# --- what a model gets wrong


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("remember", {}, "fact"),
        ("remember", {"fact": {"type": "preference", "topic": "food"}}, "content: Field required"),
        ("remember", {"fact": {"type": "wish", "text": "x"}}, "type"),
        ("remember", {"fact": "I like soup"}, "fact"),
        ("remember", {"fact": {"type": "note", "content": "x", "stars": "many"}}, "stars"),
        ("remember", {**fact(), "namespace": ["memories", "bob"]}, "namespace"),
        ("recall", {"query": ""}, "query"),
        ("recall", {"query": "x", "limit": 10**9}, "limit"),
        ("update", {"fact_id": "nobody", "changes": {"content": "x"}}, "no live fact"),
        ("update", {"fact_id": 5, "changes": []}, "changes"),
        ("update", {"fact_id": "nobody", "changes": {"colour": "x"}}, "colour"),
        ("forget", {"fact_id": "nobody"}, "no live fact"),
        ("forget", {"fact_id": ""}, "fact_id"),
        ("undo", {"steps": -1}, "steps"),
    ],
)
def test_a_wrong_call_is_told_how_to_be_right(memory: MemoryStore, name: str, args: Any, told: str) -> None:
    reply = one(graph(create_memory_tools(memory)), name, args)
    assert reply.status == "error"
    assert told in reply.text
    assert len(reply.text) < 700
    assert memory.log() == []


def test_conflicts_and_outages_are_told_too(memory: MemoryStore) -> None:
    app = graph(create_memory_tools(memory))
    rule = {"type": "rule", "name": "r", "text": "v1"}
    fact_id = id_in(one(app, "remember", {"fact": rule}))
    for name, args in (
        ("remember", {"fact": {**rule, "text": "v2"}}),
        ("update", {"fact_id": fact_id, "changes": {"text": "v2"}}),
        ("forget", {"fact_id": fact_id}),
    ):
        reply = one(app, name, args)
        assert reply.status == "error"
        assert "mmutable" in reply.text

    def refuse(*_: Any) -> None:
        raise ConnectionError("the vector store is down")

    memory.add_hook(refuse)
    reply = one(app, "remember", fact())
    assert reply.status == "error"
    assert "down" in reply.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(["fact", "type", "topic", "content", "fact_id", "changes", "query", "limit", "steps", "note"])


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["remember", "recall", "update", "forget", "undo"]),
    args=st.dictionaries(WORDS | st.text(max_size=8), JSON, max_size=4),
)
def test_no_arguments_crash_the_graph(name: str, args: dict[str, Any]) -> None:
    memory = register(MemoryStore(InMemoryStorage(), hooks=[hook()]))
    reply = one(graph(create_memory_tools(memory)), name, args)
    assert len(reply.text) < 20_000
    assert memory.verify().ok
    assert all(stored.namespace == ANA for stored in memory.query())


# --- whose memory


def test_without_a_user_nothing_happens(memory: MemoryStore) -> None:
    app = graph(create_memory_tools(memory))
    for bad in ({}, {"user_id": ""}, {"user_id": None}, {"user_id": True}, {"user_id": ["ana"]}, {"user_id": "a\x00"}):
        for name, args in (("remember", fact()), ("recall", {"query": "x"}), ("undo", {})):
            reply = one(app, name, args, {"configurable": {"thread_id": "t", **bad}})
            assert reply.status == "error"
            assert "user_id" in reply.text
    assert memory.log() == []


@pytest.mark.parametrize("user", ["{thread_id}", "ana/../bob", '","bob', "memories", "{user_id}", "*", "%"])
def test_a_users_name_cannot_widen_the_scope(memory: MemoryStore, user: str) -> None:
    memory.commit(note("bob's secret", namespace=("memories", "bob")))
    app = graph(create_memory_tools(memory))
    one(app, "remember", fact(), config(user))
    assert memory.query(namespace=("memories", user))
    assert "secret" not in one(app, "recall", {"query": "secret"}, config(user)).text


def test_a_neighbours_facts_do_not_exist(memory: MemoryStore) -> None:
    app = graph(create_memory_tools(memory))
    theirs = id_in(one(app, "remember", fact("food", "bob's secret soup"), config("bob")))
    before = memory.query()
    assert "secret" not in one(app, "recall", {"query": "bob's secret soup", "limit": 20}).text
    missing = one(app, "forget", {"fact_id": "00000000-0000-0000-0000-000000000000"}).text
    for name, args in (
        ("forget", {"fact_id": theirs}),
        ("update", {"fact_id": theirs, "changes": {"content": "mine"}}),
    ):
        reply = one(app, name, args)
        assert reply.status == "error"
        assert reply.text.replace(theirs, "ID") == missing.replace("00000000-0000-0000-0000-000000000000", "ID")
    assert one(app, "undo", {}).status == "error"  # the thread's last step is in bob's namespace
    one(app, "remember", fact("food", "mine"))  # the same singleton key, another namespace
    assert memory.query(namespace=("memories", "bob")) == before


def test_without_a_conversation_nothing_is_undone(memory: MemoryStore) -> None:
    memory.commit(note("someone's", namespace=ANA))
    app = graph(create_memory_tools(memory))
    assert one(app, "undo", {}, {"configurable": {"user_id": "ana"}}).status == "error"
    assert len(memory.query()) == 1


def test_types_that_were_not_offered_are_out_of_reach(memory: MemoryStore) -> None:
    fact_id = memory.commit(note("a note", namespace=ANA), session_id="t")
    app = graph(create_memory_tools(memory, types=["preference"]))
    assert one(app, "forget", {"fact_id": fact_id}).status == "error"
    assert one(app, "update", {"fact_id": fact_id, "changes": {"content": "x"}}).status == "error"
    assert one(app, "undo", {}).status == "error"
    assert "a note" not in one(app, "recall", {"query": "a note"}).text
    assert memory.get(fact_id) is not None


def test_the_scope_may_come_from_the_runtime_context(memory: MemoryStore) -> None:
    made = StateGraph(MessagesState, context_schema=dict)
    made.add_node("tools", ToolNode(create_memory_tools(memory)))
    made.add_edge(START, "tools")
    made.compile().invoke(calls(("remember", fact())), {"configurable": {"thread_id": "t"}}, context={"user_id": "ana"})
    assert len(memory.query(namespace=ANA)) == 1


# --- once


def test_a_replayed_call_writes_once(memory: MemoryStore) -> None:
    """The step runs again because the process died after the tools and before their checkpoint."""
    tools = create_memory_tools(memory)
    dying = True

    def run(state: MessagesState, config: RunnableConfig) -> Any:
        result = ToolNode(tools).invoke(state, config)
        if dying:
            raise SystemExit("killed")
        return result

    made = StateGraph(MessagesState)
    made.add_node("tools", run)
    made.add_edge(START, "tools")
    app = made.compile(checkpointer=MemStateCheckpointer(memory=memory))
    kept = memory.commit(note("kept", namespace=ANA), session_id="t")
    gone = memory.commit(note("gone", namespace=ANA), session_id="t")
    asked = calls(
        ("remember", {"fact": {"type": "note", "content": "one"}}),
        ("remember", {"fact": {"type": "note", "content": "one"}}),  # two calls of one step are two facts
        ("update", {"fact_id": kept, "changes": {"stars": 1}}),
        ("forget", {"fact_id": gone}),
    )
    with pytest.raises(SystemExit):
        app.invoke(asked, config(), durability="sync")
    log = len(memory.log())
    dying = False
    result = app.invoke(None, config(), durability="sync")
    assert [reply.status for reply in replies(result)] == ["success"] * 4
    assert len(memory.log()) == log == 6
    contents = sorted(stored.payload["content"] for stored in memory.query())
    assert contents == ["kept", "one", "one"]


def test_a_replayed_undo_undoes_once(memory: MemoryStore) -> None:
    tools = create_memory_tools(memory)
    for i in range(3):
        memory.commit(note(str(i), namespace=ANA), session_id="t")
    dying = True

    def run(state: MessagesState, config: RunnableConfig) -> Any:
        result = ToolNode(tools).invoke(state, config)
        if dying:
            raise SystemExit("killed")
        return result

    made = StateGraph(MessagesState)
    made.add_node("tools", run)
    made.add_edge(START, "tools")
    app = made.compile(checkpointer=MemStateCheckpointer(memory=memory))
    with pytest.raises(SystemExit):
        app.invoke(calls(("undo", {})), config(), durability="sync")
    dying = False
    app.invoke(None, config(), durability="sync")
    assert len(memory.query()) == 2


# --- in an agent


class Scripted(BaseChatModel):
    replies: list[AIMessage] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        for tool in tools:
            convert_to_openai_tool(tool)
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.replies.pop(0))])


def test_create_agent_is_corrected_and_remembers(memory: MemoryStore) -> None:
    bad = calls(("remember", {"fact": {"type": "preference", "topic": "food"}}), ids=["1"])["messages"][0]
    good = calls(("remember", fact()), ids=["2"])["messages"][0]
    agent = create_agent(
        Scripted(replies=[bad, good, AIMessage("done")]),
        create_memory_tools(memory),
        checkpointer=MemStateCheckpointer(memory=memory),
    )
    result = agent.invoke({"messages": [HumanMessage("I like soup")]}, config())
    assert [reply.status for reply in replies(result)] == ["error", "success"]
    assert [stored.payload["content"] for stored in memory.query("preference", namespace=ANA)] == ["likes soup"]


def test_a_fact_of_another_type_keeps_its_id_to_itself(memory: MemoryStore) -> None:
    memory.commit(Fact(id="x", type="free", payload={}, namespace=ANA))
    assert one(graph(create_memory_tools(memory)), "forget", {"fact_id": "x"}).status == "error"
