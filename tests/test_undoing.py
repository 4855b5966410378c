"""Taking back from inside a graph: what a run, a tool call or a task did, shown first, and agreed to by a human."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from memstate_langgraph import (
    ConflictError,
    InMemoryStorage,
    MemoryStore,
    MemStateCheckpointer,
    Operation,
    RollbackNode,
    ScopeError,
    ValidationFailed,
    create_memory_tools,
)
from memstate_langgraph.changes import By, Rollback
from memstate_langgraph.protocol import Rehearsed, rehearse
from tests.models import note, register
from tests.stores import PLACES, Unreliable, assert_in_step, hook_over, live, texts

ANA, BOB = ("memories", "ana"), ("memories", "bob")


class State(MessagesState, total=False):
    done: Annotated[list[Any], operator.add]
    undo: bool
    what: Any


class Killed(BaseException):
    """Ends a run in the middle of a step."""


class Desk:
    """A conversation in which each turn remembers what was said, and then perhaps takes back."""

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.store: Any = getattr(memory, "_store", memory)
        self.runner = getattr(memory, "_runner", None)
        self.saver: Any = MemStateCheckpointer(self.store)

    def graph(self, node: Any) -> Any:
        def remember(state: State) -> Any:
            said = state["messages"][-1].text
            return self.store.commit(note(said, said, namespace=ANA), session_id="t")

        async def aremember(state: State) -> None:
            await remember(state)

        graph = StateGraph(State)
        graph.add_node("remember", (lambda state: remember(state) and {}) if self.runner is None else aremember)
        graph.add_node("undo", node)
        graph.add_edge(START, "remember")
        graph.add_conditional_edges("remember", lambda state: "undo" if state.get("undo") else "__end__")
        return graph.compile(checkpointer=self.saver)

    def run(self, app: Any, given: Any, **config: Any) -> Any:
        configurable = {"thread_id": "t", "user_id": "ana", **config.pop("configurable", {})}
        whole: RunnableConfig = {"configurable": configurable, **config}  # type: ignore[typeddict-item]
        if self.runner is None:
            return app.invoke(given, whole)
        return self.runner.run(app.ainvoke(given, whole))

    def say(self, app: Any, text: str, **given: Any) -> Any:
        return self.run(app, {"messages": [("user", text)], "undo": False, **given})

    def head(self) -> RunnableConfig:
        """The newest checkpoint."""
        (fact,) = self.memory.query("langgraph.checkpoint", session_id="t")[-1:]
        return {"configurable": {"thread_id": "t", "checkpoint_id": fact.payload["checkpoint_id"]}}


@pytest.fixture(params=PLACES, ids=[place.name for place in PLACES])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    memory = request.param.open(tmp_path, [hook_over(Unreliable(), grace=0.0, late=0.0)])
    register(memory)
    yield Desk(memory)
    assert_in_step(memory)
    memory.close()


# --- what can be taken back


def test_a_node_takes_back_what_a_run_did(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, revert=lambda state: state["what"], into="done"))
    desk.run(app, {"messages": [("user", "one")]}, configurable={"run_id": "1"})
    desk.say(app, "two")
    assert desk.say(app, "three", undo=True, what={"run_id": "1"})["done"] == ["one"]
    assert sorted(texts(desk.memory)) == ["three", "two"]


def test_a_node_takes_back_what_its_own_run_did_so_far(desk: Desk) -> None:
    """Some of which has not landed yet."""
    app = desk.graph(RollbackNode(desk.store, revert="run", into="done"))
    desk.say(app, "one")
    given = {"messages": [("user", "two")], "undo": True}
    assert desk.run(app, given, configurable={"run_id": "2"})["done"] == ["two"]
    assert sorted(texts(desk.memory)) == ["one"]
    with pytest.raises(ScopeError, match="run_id"):
        desk.say(app, "three", undo=True)


def test_a_node_takes_back_the_memory_since_a_checkpoint_and_the_caller_the_state(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, revert=lambda state: {"since": state["what"]}, into="done"))
    desk.say(app, "one")
    first = desk.head()
    desk.say(app, "two")
    done = desk.say(app, "three", undo=True, what=first)["done"]
    assert sorted(done) == ["three", "two"]
    assert sorted(texts(desk.memory)) == ["one"]


def test_all_that_a_thread_did_and_nothing_of_another(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, revert={}, into="done"))
    desk.run(app, {"messages": [("user", "theirs")]}, configurable={"thread_id": "u"})
    desk.say(app, "one")
    assert sorted(desk.say(app, "two", undo=True)["done"]) == ["one", "two"]
    assert sorted(texts(desk.memory)) == ["theirs"]


@pytest.mark.parametrize("what", [{"thread_id": "u"}, {"session_id": "u"}, "everything", ["run_id"], 7])
def test_a_scope_is_not_widened(desk: Desk, what: Any) -> None:
    app = desk.graph(RollbackNode(desk.store, revert=what))
    with pytest.raises(ValidationFailed, match="revert: must be"):
        desk.say(app, "one", undo=True)


def test_what_lies_outside_the_namespace_stays(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, revert={}))
    desk.say(app, "one")
    with pytest.raises(ConflictError, match="scope"):
        desk.run(app, {"messages": [("user", "two")], "undo": True}, configurable={"user_id": "bob"})
    assert "one" in texts(desk.memory)


# --- looking first


def test_a_dry_run_says_what_would_change(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, revert={}, into="what", dry_run=True))
    desk.say(app, "one")
    state = desk.run(app, {"messages": [("user", "two")], "undo": True})
    assert state["what"].splitlines() == [
        "2 facts would change",
        "- note two  content: 'two', stars: 0",
        "- note one  content: 'one', stars: 0",
    ]
    assert sorted(texts(desk.memory)) == ["one", "two"]


# --- asking a human


def asked(state: Any) -> Any:
    (question,) = state["__interrupt__"]
    return question.value


def test_what_was_agreed_to_is_done_and_a_no_changes_nothing(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, into="done", approve=True))
    desk.say(app, "one")
    question = asked(desk.say(app, "two", undo=True))
    assert question["preview"].splitlines()[1:] == ["- note two  content: 'two', stars: 0"]
    assert [(one["what"], one["fact_id"]) for one in question["changes"]] == [("-", "two")]
    assert sorted(texts(desk.memory)) == ["one", "two"], "nothing is done before the answer"
    assert desk.run(app, Command(resume=False))["done"] == []
    assert sorted(texts(desk.memory)) == ["one", "two"]
    question = asked(desk.say(app, "three", undo=True))
    assert desk.run(app, Command(resume=question["approve"]))["done"] == ["three"]
    assert sorted(texts(desk.memory)) == ["one", "two"]


def test_what_changed_meanwhile_is_asked_about_anew(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, into="done", approve=True))
    question = asked(desk.say(app, "one", undo=True))
    desk.memory.update("one", {"stars": 5}, session_id="t")
    second = asked(desk.run(app, Command(resume=question["approve"])))
    assert "changed since" in second["note"]
    assert second["preview"].splitlines()[1:] == ["~ note one  stars: 5 -> 0"]
    assert desk.memory.get("one").payload["stars"] == 5  # type: ignore[union-attr]
    third = asked(desk.run(app, Command(resume=True)))  # a yes to what?
    assert "value of 'approve'" in third["note"]
    assert desk.run(app, Command(resume=third["approve"]))["done"] == ["one"]
    assert desk.memory.get("one").payload["stars"] == 0  # type: ignore[union-attr]


def test_however_late_something_changes_nothing_else_is_done(desk: Desk) -> None:
    """Here while the vetoes are asked, after the answer was found to be about what is there."""
    app = desk.graph(RollbackNode(desk.store, approve=True))
    question = asked(desk.say(app, "one", undo=True))
    meddled: list[Any] = []

    def meddle(operation: Operation, *_: Any) -> Any:
        if operation is not Operation.ROLLBACK or meddled:
            return None
        meddled.append(operation)
        return desk.store.update("one", {"stars": 5}, session_id="t", immediate=True)

    async def ameddle(*arguments: Any) -> None:
        if (update := meddle(*arguments)) is not None:
            await update

    desk.store.add_hook(ameddle if desk.runner else lambda *arguments: meddle(*arguments) and None)
    with pytest.raises(ConflictError, match=r"agreed to.* fact one"):
        desk.run(app, Command(resume=question["approve"]))
    assert meddled
    assert desk.memory.get("one").payload["stars"] == 5  # type: ignore[union-attr]


def test_there_is_no_question_about_nothing(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store, revert={"run_id": "unknown"}, into="done", approve=True))
    assert desk.say(app, "one", undo=True)["done"] == []


def test_a_task_that_dies_after_it_was_agreed_to_does_nothing_twice(desk: Desk) -> None:
    """On another checkpointer, where memory is changed at once."""
    dying = True

    def perhaps(update: Any) -> Any:
        if dying:
            raise Killed
        return update

    desk.saver = InMemorySaver()
    app = desk.graph(RollbackNode(desk.store, into="done", approve=True) | perhaps)
    desk.say(app, "one")
    question = asked(desk.say(app, "two", undo=True))
    with pytest.raises(Killed):
        desk.run(app, Command(resume=question["approve"]))
    dying = False
    assert desk.run(app, None)["done"] == ["two"]
    assert sorted(texts(desk.memory)) == ["one"]


# --- the tool


def calling(desk: Desk, **options: Any) -> Any:
    """A graph in which each user's message is a tool call, as JSON-like arguments in the state."""

    def agent(state: State) -> dict[str, Any]:
        name, arguments, call_id = state["what"]
        return {"messages": [AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": call_id}])]}

    graph = StateGraph(State)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode(create_memory_tools(desk.store, types=["note"], **options)))
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "tools")
    return graph.compile(checkpointer=desk.saver)


def call(desk: Desk, app: Any, name: str, arguments: Any, call_id: str, **config: Any) -> Any:
    return desk.run(app, {"messages": [("user", "please")], "what": (name, arguments, call_id)}, **config)


def remember(content: str) -> dict[str, Any]:
    return {"fact": {"type": "note", "content": content}}


def test_the_tool_takes_back_what_a_call_did_and_says_so_first(desk: Desk) -> None:
    app = calling(desk)
    for content in ("one", "two", "three"):
        call(desk, app, "remember", remember(content), f"call {content}")
    shown = call(desk, app, "undo", {"call": "call two", "dry_run": True}, "a")["messages"][-1].text
    assert "content: 'two'" in shown
    assert len(live(desk.memory)) == 3
    assert "Taken back" in call(desk, app, "undo", {"call": "call two"}, "b")["messages"][-1].text
    assert sorted(texts(desk.memory).values()) == ["one", "three"]
    told = call(desk, app, "undo", {"call": "call one"}, "c", configurable={"thread_id": "u"})["messages"][-1].text
    assert told == "There was nothing to take back."
    told = call(desk, app, "undo", {"call": "call one"}, "d", configurable={"user_id": "bob"})["messages"][-1].text
    assert "not undone" in told
    assert sorted(texts(desk.memory).values()) == ["one", "three"]


def test_the_tool_takes_back_a_turn(desk: Desk) -> None:
    app = calling(desk)
    run: dict[str, Any] = {"configurable": {"run_id": "3"}}
    call(desk, app, "remember", remember("one"), "1", **run)
    call(desk, app, "remember", remember("two"), "2")
    assert "Taken back" in call(desk, app, "undo", {"this_turn": True}, "3", **run)["messages"][-1].text
    assert list(texts(desk.memory).values()) == ["two"]
    assert "run_id" in call(desk, app, "undo", {"this_turn": True}, "4")["messages"][-1].text


def test_the_tool_asks_a_human_if_the_application_wants_it(desk: Desk) -> None:
    app = calling(desk, approve_undo=True)
    call(desk, app, "remember", remember("one"), "1")
    call(desk, app, "remember", remember("two"), "2")
    question = asked(call(desk, app, "undo", {}, "3"))
    assert "content: 'two'" in question["preview"]
    told = desk.run(app, Command(resume=False))["messages"][-1].text
    assert "Not agreed to" in told
    assert len(live(desk.memory)) == 2
    question = asked(call(desk, app, "undo", {}, "4"))
    assert "Taken back" in desk.run(app, Command(resume=question["approve"]))["messages"][-1].text
    assert list(texts(desk.memory).values()) == ["one"]


# --- rewinding


def test_a_thread_and_its_memory_are_rewound_through_both_doors(desk: Desk) -> None:
    app = desk.graph(RollbackNode(desk.store))
    desk.say(app, "one")
    first = desk.head()
    desk.say(app, "two")
    if desk.runner is None:
        preview = desk.saver.would_rewind(first)
        head = desk.saver.rewind(first, expected=preview)
    else:
        preview = desk.runner.run(desk.saver.awould_rewind(first))
        head = desk.runner.run(desk.saver.arewind(first, expected=preview))
    assert [(one.sign, one.fact_id) for one in preview.changes] == [("-", "two")]
    assert sorted(texts(desk.memory)) == ["one"]
    assert desk.head()["configurable"]["checkpoint_id"] == head["configurable"]["checkpoint_id"]
    assert [message.text for message in desk.say(app, "three")["messages"]] == ["one", "three"]


def test_a_rehearsal_that_begins_again_decides_anew() -> None:
    memory = MemoryStore(InMemoryStorage())
    memory.commit(note("tea", "a"))
    work = rehearse([], [Rollback(1, None, By())], memory._core.new_draft)
    for _ in range(2):  # as a storage does when another writer was in the way
        with pytest.raises(Rehearsed) as rehearsed:
            memory.storage.run(work)
        assert [entry.fact_id for entry in rehearsed.value.draft.entries] == ["a"]
