"""The nodes, in graphs as people build them, on every storage and both doors."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import (
    ConflictError,
    Fact,
    MemoryStore,
    RecallNode,
    RememberNode,
    RollbackNode,
    ScopeError,
    ValidationFailed,
)
from tests.models import Note, Preference, note
from tests.stores import PLACES, Unreliable, assert_in_step, hook_over, texts


class State(MessagesState, total=False):
    memories: list[dict[str, Any]]
    found: list[Any]
    ids: Annotated[list[str], operator.add]
    wrong: bool


class Killed(BaseException):
    """Ends a run in the middle of a step."""


class Bench:
    """Runs a node in a graph over a memory."""

    def __init__(self, memory: MemoryStore, *, awaits: bool) -> None:
        self.memory = memory
        self.store: Any = getattr(memory, "_store", memory)
        self._runner = getattr(memory, "_runner", None)
        self.awaits = awaits or self._runner is not None

    def run(self, app: Any, given: Any, **configurable: Any) -> Any:
        config: RunnableConfig = {"configurable": {"thread_id": "t", "user_id": "ana", **configurable}}
        if not self.awaits:
            return app.invoke(given, config)
        return self._runner.run(app.ainvoke(given, config)) if self._runner else asyncio.run(app.ainvoke(given, config))

    def step(self, node: Any, given: Any, **configurable: Any) -> Any:
        """What one node makes of a state."""
        graph = StateGraph(State)
        graph.add_node(node)
        graph.add_edge(START, type(node).__name__)
        return self.run(graph.compile(), {"messages": [], **given}, **configurable)

    def killed_and_resumed(self, node: Any, given: Any) -> Any:
        """The node runs, the process dies before the graph hears of it, and the run goes on."""
        dying = True

        def perhaps(update: Any) -> Any:
            if dying:
                raise Killed
            return update

        graph = StateGraph(State)
        graph.add_node("node", node | perhaps)
        graph.add_edge(START, "node")
        app = graph.compile(checkpointer=InMemorySaver())
        with pytest.raises(Killed):
            self.run(app, {"messages": [], **given})
        dying = False
        return self.run(app, None)


DOORS = [(place, False) for place in PLACES] + [(place, True) for place in PLACES if "async" not in place.name]


@pytest.fixture(params=DOORS, ids=[place.name + (", ainvoke" if awaits else "") for place, awaits in DOORS])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    place, awaits = request.param
    memory = place.open(tmp_path, [hook_over(Unreliable())])
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference)
    yield Bench(memory, awaits=awaits)
    assert_in_step(memory)
    memory.close()


ANA, BOB = ("memories", "ana"), ("memories", "bob")


# --- recall


def test_recall_puts_the_facts_nearest_to_the_last_human_message_into_the_state(bench: Bench) -> None:
    bench.memory.commit(note("tea is green", "a", namespace=ANA))
    bench.memory.commit(note("cats sleep", "b", namespace=ANA))
    bench.memory.commit(note("tea is red", "c", namespace=BOB))
    messages = [HumanMessage("cats"), HumanMessage("tea is green"), AIMessage("cats")]
    state = bench.step(RecallNode(bench.store, limit=1), {"messages": messages})
    (fact,) = state["memories"]
    assert (fact["id"], fact["type"], fact["payload"]["content"]) == ("a", "note", "tea is green")
    assert fact["score"] == pytest.approx(1.0, abs=0.01)
    everything = bench.step(RecallNode(bench.store, limit=50), {"messages": messages})["memories"]
    assert {fact["id"] for fact in everything} == {"a", "b"}


def test_recall_as_a_message_replaces_its_earlier_one(bench: Bench) -> None:
    bench.memory.commit(note("tea is green", namespace=ANA))
    node = RecallNode(bench.store, as_message=True)
    state = bench.step(node, {"messages": [HumanMessage("tea")]})
    assert "tea is green" in state["messages"][-1].content
    state = bench.step(node, {"messages": [*state["messages"], HumanMessage("more tea")]})
    assert [message.type for message in state["messages"]].count("system") == 1


def test_recall_takes_a_query_and_types(bench: Bench) -> None:
    bench.memory.commit(note("tea", "a", namespace=ANA))
    preference = Fact(id="b", type="preference", payload={"content": "tea", "topic": "x"}, namespace=ANA)
    bench.memory.commit(preference)
    node = RecallNode(bench.store, query=lambda _: "tea", types=["preference"])
    assert [fact["id"] for fact in bench.step(node, {})["memories"]] == ["b"]


@pytest.mark.parametrize("messages", [[], [AIMessage("tea")], [HumanMessage("  ")]])
def test_without_a_query_nothing_is_recalled(bench: Bench, messages: list[Any]) -> None:
    bench.memory.commit(note("tea", namespace=ANA))
    assert bench.step(RecallNode(bench.store), {"messages": messages})["memories"] == []


# --- remember


def test_facts_found_in_the_state_are_one_transaction(bench: Bench) -> None:
    found = [
        Note(content="a model"),
        note("a fact", session_id="someone else's", namespace=BOB),
        {"type": "preference", "payload": {"content": "a dict", "topic": "x"}, "source": "chat"},
    ]
    state = bench.step(RememberNode(bench.store, "found", into="ids"), {"found": found})
    facts = {fact.id: fact for fact in bench.memory.query()}
    assert list(facts) == state["ids"]
    assert [fact.payload["content"] for fact in facts.values()] == ["a model", "a fact", "a dict"]
    assert {(fact.namespace, fact.session_id) for fact in facts.values()} == {(ANA, "t")}
    assert len({entry.tx for entry in bench.memory.log()}) == 1
    assert {entry.cause.node for entry in bench.memory.log()} == {"RememberNode"}


def test_remember_takes_a_callable_and_nothing_to_remember(bench: Bench) -> None:
    node = RememberNode(bench.store, lambda state: [Note(content=m.text) for m in state["messages"]])
    bench.step(node, {"messages": [HumanMessage("tea")]})
    assert list(texts(bench.memory).values()) == ["tea"]
    bench.step(node, {"messages": []})
    bench.step(RememberNode(bench.store, "found"), {})
    assert len(bench.memory.log()) == 1


def test_a_remember_task_that_runs_again_writes_once(bench: Bench) -> None:
    node = RememberNode(bench.store, lambda _: [Note(content="tea"), Note(content="tea")], into="ids")
    state = bench.killed_and_resumed(node, {})
    assert list(texts(bench.memory)) == state["ids"]
    assert len(state["ids"]) == 2


@pytest.mark.parametrize(
    "found",
    [
        "tea",
        {"content": "tea"},
        {"type": "note", "payload": "tea"},
        {"type": "note", "payload": {"stars": 1}},
        {"type": 7, "payload": {}},
        {"type": "note", "payload": {"content": "tea"}, "namespace": ["memories", "bob"]},
        {"type": "note", "payload": {"content": "tea"}, "id": "a"},
        {"type": "preference", "payload": {"content": "tea", "topic": "x"}},
    ],
)
def test_what_cannot_be_remembered_is_named_and_nothing_is_written(bench: Bench, found: Any) -> None:
    node = RememberNode(bench.store, "found", types=["note"])
    with pytest.raises(ValidationFailed):
        bench.step(node, {"found": [Note(content="good"), found]})
    assert bench.memory.log() == []


def test_remember_cannot_take_over_a_neighbours_fact(bench: Bench) -> None:
    bench.memory.commit(note("bob's", "a", namespace=BOB))
    with pytest.raises(ConflictError):
        bench.step(RememberNode(bench.store, "found"), {"found": [note("ana's", "a")]})
    assert texts(bench.memory) == {"a": "bob's"}


# --- rollback


def test_rollback_undoes_the_last_steps_of_this_thread_on_a_condition(bench: Bench) -> None:
    for fact_id, thread in (("a", "t"), ("b", "t"), ("c", "u")):
        bench.memory.commit(note(fact_id, fact_id, namespace=ANA), session_id=thread)
    node = RollbackNode(bench.store, when=lambda state: state["wrong"], into="ids")
    assert bench.step(node, {"wrong": False})["ids"] == []
    assert bench.step(node, {"wrong": True})["ids"] == ["b"]
    assert sorted(texts(bench.memory)) == ["a", "c"]
    bench.step(RollbackNode(bench.store, steps=lambda state: len(state["found"])), {"found": [1, 2, 3]})
    assert sorted(texts(bench.memory)) == ["c"]


def test_a_rollback_task_that_runs_again_undoes_no_further_step(bench: Bench) -> None:
    for fact_id in ("a", "b"):
        bench.memory.commit(note(fact_id, fact_id, namespace=ANA), session_id="t")
    bench.killed_and_resumed(RollbackNode(bench.store), {})
    assert sorted(texts(bench.memory)) == ["a"]


def test_rollback_does_not_reach_out_of_its_namespace_or_types(bench: Bench) -> None:
    bench.memory.commit(note("bob's", "b", namespace=BOB), session_id="t")
    with pytest.raises(ConflictError, match="scope"):
        bench.step(RollbackNode(bench.store), {})
    with pytest.raises(ConflictError, match="scope"):
        bench.step(RollbackNode(bench.store, types=["preference"]), {}, user_id="bob")
    assert texts(bench.memory) == {"b": "bob's"}
    bench.step(RollbackNode(bench.store, types=["note"]), {}, user_id="bob")
    assert bench.memory.query() == []


# --- all of them


def test_without_a_user_every_node_fails_closed(bench: Bench) -> None:
    bench.memory.commit(note("tea", namespace=()), session_id="t")
    given = {"messages": [HumanMessage("tea")], "found": [Note(content="x")]}
    for node in (RecallNode(bench.store), RememberNode(bench.store, "found"), RollbackNode(bench.store)):
        for user_id in (None, ""):
            with pytest.raises(ScopeError, match="user_id"):
                bench.step(node, given, user_id=user_id)
    for node in (RememberNode(bench.store, "found"), RollbackNode(bench.store)):
        with pytest.raises(ScopeError, match="thread_id"):
            bench.step(node, given, thread_id=None)
    assert len(bench.memory.log()) == 1


def test_a_whole_turn_in_one_graph(bench: Bench) -> None:
    graph = StateGraph(State)
    graph.add_node("recall", RecallNode(bench.store))
    graph.add_node("answer", lambda state: {"messages": [AIMessage(f"I know {len(state['memories'])}")]})
    graph.add_node("remember", RememberNode(bench.store, lambda state: [Note(content=state["messages"][0].text)]))
    graph.add_edge(START, "recall")
    graph.add_edge("recall", "answer")
    graph.add_edge("answer", "remember")
    app = graph.compile()
    for known in (0, 1):
        assert bench.run(app, {"messages": [HumanMessage("tea")]})["messages"][-1].content == f"I know {known}"


def test_a_node_called_by_a_nodes_own_code_finds_the_scope_itself(tmp_path: Path) -> None:
    memory = PLACES[0].open(tmp_path, [hook_over(Unreliable())])
    memory.register_schema("note", Note)
    remember = RememberNode(memory, "found")
    graph = StateGraph(State)
    graph.add_node("mine", lambda state: remember.invoke({"found": [Note(content="tea")]}))
    graph.add_edge(START, "mine")
    Bench(memory, awaits=False).run(graph.compile(), {"messages": []})
    assert [fact.namespace for fact in memory.query()] == [ANA]


def test_the_state_may_be_a_dataclass(tmp_path: Path) -> None:
    @dataclass
    class Plain:
        messages: list[Any]
        memories: list[Any]

    memory = PLACES[0].open(tmp_path, [hook_over(Unreliable())])
    memory.commit(note("tea", "a", namespace=ANA))
    graph = StateGraph(Plain)
    graph.add_node("recall", RecallNode(memory))
    graph.add_edge(START, "recall")
    state = Bench(memory, awaits=False).run(graph.compile(), Plain([HumanMessage("tea")], []))
    assert [fact["id"] for fact in state["memories"]] == ["a"]


def test_types_are_a_list_and_not_a_string(tmp_path: Path) -> None:
    memory = PLACES[0].open(tmp_path)
    with pytest.raises(ValidationFailed, match="types"):
        RecallNode(memory, types="note")
