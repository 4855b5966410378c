"""The nodes in plain graphs, through both doors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    ConflictError,
    Constraint,
    Fact,
    LocalEmbeddings,
    MemoryStore,
    MemStateCheckpointer,
    RecallNode,
    RememberNode,
    RollbackNode,
    ScopeError,
    SQLiteStorage,
    ValidationFailed,
    VectorStoreSyncHook,
)
from tests.models import Note, Preference, note, preference

ANA = ("memories", "ana")


class State(MessagesState, total=False):
    memories: list[dict[str, Any]]
    found: list[Any]
    ids: list[str]
    wrong: bool


def config(user: str = "ana", thread: str = "t") -> Any:
    return {"configurable": {"user_id": user, "thread_id": thread}}


def prepare(memory: Any) -> Any:
    memory.add_hook(VectorStoreSyncHook(InMemoryVectorStore(LocalEmbeddings()), text_field="content"))
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return memory


@pytest.fixture
def memory(tmp_path: Path) -> MemoryStore:
    made: MemoryStore = prepare(MemoryStore(SQLiteStorage(tmp_path / "state.db")))
    return made


def line(*nodes: Any, saver: Any = None) -> Any:
    graph = StateGraph(State)
    previous = START
    for i, node in enumerate(nodes):
        graph.add_node(f"n{i}", node)
        graph.add_edge(previous, f"n{i}")
        previous = f"n{i}"
    return graph.compile(checkpointer=saver)


def test_recall_puts_the_nearest_facts_into_the_state(memory: MemoryStore) -> None:
    memory.commit(preference("food", "Ana is a vegetarian", namespace=ANA))
    memory.commit(note("Ana's cat is called Miez", namespace=ANA))
    memory.commit(note("Bob eats meat", namespace=("memories", "bob")))
    app = line(RecallNode(memory, limit=1))
    result = app.invoke({"messages": [HumanMessage("what is the name of the cat?"), AIMessage("hm")]}, config())
    assert [found["payload"]["content"] for found in result["memories"]] == ["Ana's cat is called Miez"]
    everything = line(RecallNode(memory, limit=9, query=lambda state: "meat")).invoke({"messages": []}, config())
    assert len(everything["memories"]) == 2
    assert line(RecallNode(memory)).invoke({"messages": []}, config())["memories"] == []
    told = line(RecallNode(memory, as_message=True, types=["note"])).invoke(
        {"messages": [HumanMessage("cat")]}, config()
    )
    assert "Miez" in told["messages"][-1].text
    assert "vegetarian" not in told["messages"][-1].text


def test_remember_commits_what_the_state_holds_as_one_transaction(memory: MemoryStore) -> None:
    found = [Note(content="a"), {"type": "preference", "payload": {"topic": "t", "content": "b"}}, note("c", id="c")]
    result = line(RememberNode(memory, "found", into="ids")).invoke({"messages": [], "found": found}, config())
    assert len(result["ids"]) == 3
    assert len({entry.tx for entry in memory.log()}) == 1
    assert {stored.namespace for stored in memory.query()} == {ANA}
    assert {stored.session_id for stored in memory.query()} == {"t"}
    stranger = Fact(type="note", payload={"content": "x"}, namespace=("memories", "bob"), session_id="other")
    line(RememberNode(memory, lambda state: [stranger])).invoke({"messages": []}, config())
    assert memory.query(namespace=("memories", "bob")) == []
    for bad in (["text"], [{"type": "note"}], [{"type": "note", "payload": {}, "namespace": ["x"]}], [5]):
        with pytest.raises(ValidationFailed):
            line(RememberNode(memory, "found")).invoke({"messages": [], "found": bad}, config())
    with pytest.raises(ValidationFailed, match="among"):
        line(RememberNode(memory, "found", types=["preference"])).invoke({"messages": [], "found": found}, config())
    assert len(memory.query()) == 4


def test_remember_is_once_when_its_task_runs_again(memory: MemoryStore) -> None:
    dying = True
    remember = RememberNode(memory, lambda state: [Note(content="a"), Note(content="b")])

    def run(state: State, config: RunnableConfig) -> Any:
        update = remember.invoke(state, config)
        if dying:
            raise SystemExit
        return update

    app = line(run, saver=MemStateCheckpointer(memory=memory))
    with pytest.raises(SystemExit):
        app.invoke({"messages": []}, config(), durability="sync")
    dying = False
    app.invoke(None, config())
    assert len(memory.query()) == 2
    app.invoke({"messages": []}, config())  # another run remembers anew
    assert len(memory.query()) == 4


def test_rollback_undoes_when_it_should(memory: MemoryStore) -> None:
    app = line(RollbackNode(memory, when=lambda state: state["wrong"], steps=2, into="ids"))
    for i in range(3):
        memory.commit(note(str(i), namespace=ANA), session_id="t")
    assert app.invoke({"messages": [], "wrong": False}, config())["ids"] == []
    assert len(app.invoke({"messages": [], "wrong": True}, config())["ids"]) == 2
    assert [stored.payload["content"] for stored in memory.query()] == ["0"]
    memory.commit(note("bob's", namespace=("memories", "bob")), session_id="t")
    with pytest.raises(ConflictError, match="scope"):
        app.invoke({"messages": [], "wrong": True}, config())
    assert len(memory.query()) == 2


@pytest.mark.parametrize("node", [RecallNode, lambda memory: RememberNode(memory, "found"), RollbackNode])
def test_without_a_user_nothing_happens(memory: MemoryStore, node: Any) -> None:
    memory.commit(note("x"), session_id="t")
    state = {"messages": [HumanMessage("x")], "found": [Note(content="y")]}
    with pytest.raises(ScopeError, match="user_id"):
        line(node(memory)).invoke(state, {"configurable": {"thread_id": "t"}})
    assert len(memory.log()) == 1


async def test_the_async_doors(memory: MemoryStore, tmp_path: Path) -> None:
    other = prepare(AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "other.db")))
    for store in (memory, other):
        app = line(
            RememberNode(store, lambda state: [Note(content="the cat is called Miez")], into="ids"),
            RecallNode(store),
            RollbackNode(store),
        )
        result = await app.ainvoke({"messages": [HumanMessage("the cat")]}, config())
        assert len(result["memories"]) == len(result["ids"]) == 1
    with pytest.raises(ValidationFailed, match="ainvoke"):
        line(RecallNode(other)).invoke({"messages": [HumanMessage("x")]}, config())
    await other.close()


class Plain(TypedDict):
    note: str


def test_a_state_without_messages(memory: MemoryStore) -> None:
    graph = StateGraph(Plain)
    graph.add_node("keep", RememberNode(memory, lambda state: [Note(content=state["note"])]))
    graph.add_edge(START, "keep")
    graph.compile().invoke({"note": "hello"}, config())
    assert memory.query()[0].payload["content"] == "hello"
