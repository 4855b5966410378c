"""Graphs behave as with `InMemorySaver`."""

from __future__ import annotations

import operator
import time
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from memstate_langgraph import MemStateCheckpointer, chunks
from tests.saver.helpers import Saver, chat, config, forgetful


class Wish(BaseModel):
    text: str


@dataclass
class Point:
    x: int


class State(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]
    wish: Wish
    point: Point
    asked: str


def fan_out(state: State) -> list[Send]:
    return [Send("worker", {"items": [i]}) for i in range(3)]


def build(saver: Saver) -> Any:
    inner = StateGraph(State)
    inner.add_node("deep", lambda state: {"items": ["deep"], "wish": Wish(text="w"), "point": Point(3)})
    inner.add_edge(START, "deep")

    def ask(state: State) -> State:
        return {"asked": interrupt("what?"), "items": ["asked"]}

    graph = StateGraph(State)
    graph.add_node("first", lambda state: {"items": ["first"]})
    graph.add_node("worker", lambda state: {"items": [state["items"][0] * 10]})
    graph.add_node("sub", inner.compile())
    graph.add_node("ask", ask)
    graph.add_edge(START, "first")
    graph.add_conditional_edges("first", fan_out, ["worker"])
    graph.add_edge("worker", "sub")
    graph.add_edge("sub", "ask")
    graph.add_edge("ask", END)
    return graph.compile(checkpointer=saver)


def seen(app: Any, at: RunnableConfig) -> list[Any]:
    return [
        (snapshot.values, snapshot.next, snapshot.metadata["step"], [task.name for task in snapshot.tasks])
        for snapshot in app.get_state_history(at)
    ]


def story(saver: Saver) -> list[Any]:
    app, at = build(saver), config()
    told: list[Any] = [app.invoke({"items": ["in"]}, at), seen(app, at)]
    told.append(app.invoke(Command(resume="that"), at))
    app.update_state(at, {"items": ["by hand"]})
    told += [seen(app, at), app.get_state(at).values]
    past = next(snapshot for snapshot in app.get_state_history(at) if snapshot.next == ("ask",))
    told.append(app.invoke(Command(resume="otherwise"), past.config)["asked"])  # a fork from the past
    told += [seen(app, at), [one.metadata["source"] for one in saver.list(at)]]
    saver.copy_thread("t", "copy") if not isinstance(saver, InMemorySaver) else None
    return told


def plain(told: list[Any]) -> str:
    import re

    return re.sub(r"id='[0-9a-f]{32}'|'[0-9a-f-]{36}'", "id", str(told))


@pytest.mark.parametrize("whole", [chunks.WHOLE, 64, 1], ids=lambda whole: f"chunks from {whole} bytes")
def test_a_graph_with_everything_behaves_as_in_memory(
    saver: MemStateCheckpointer, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "WHOLE", whole)
    ours = plain(story(saver))
    assert ours == plain(story(InMemorySaver()))
    copied = seen(build(saver), config("copy"))
    assert copied == seen(build(saver), config())


async def test_the_same_through_ainvoke_and_astream(saver: MemStateCheckpointer) -> None:
    app, theirs = build(saver), build(InMemorySaver())
    for graph in (app, theirs):
        async for _ in graph.astream({"items": ["in"]}, config()):
            pass
        await graph.ainvoke(Command(resume="that"), config())
    ours_now, theirs_now = await app.aget_state(config()), await theirs.aget_state(config())
    assert ours_now.values == theirs_now.values
    assert isinstance(ours_now.values["wish"], Wish)
    assert isinstance(ours_now.values["point"], Point)


def test_a_failed_step_keeps_what_its_other_tasks_wrote(saver: MemStateCheckpointer) -> None:
    ran: list[str] = []
    broken = True

    def fine(state: State) -> State:
        ran.append("fine")
        return {"items": ["fine"]}

    def fails(state: State) -> State:
        if broken:
            time.sleep(0.3)  # so that what the other task wrote is stored
            raise RuntimeError("boom")
        return {"items": ["mended"]}

    graph = StateGraph(State)
    graph.add_node("fine", fine)
    graph.add_node("fails", fails)
    graph.add_edge(START, "fine")
    graph.add_edge(START, "fails")
    app = graph.compile(checkpointer=saver)
    with pytest.raises(RuntimeError):
        app.invoke({"items": []}, config(), durability="sync")
    broken = False
    assert sorted(app.invoke(None, config())["items"]) == ["fine", "mended"]
    assert ran == ["fine"]


def test_messages_come_back_as_messages_also_when_edited_and_removed(saver: MemStateCheckpointer) -> None:
    app = chat(saver)
    for i in range(30):
        app.invoke({"messages": [HumanMessage(f"question {i}", id=f"h{i}")]}, config())
    app.update_state(config(), {"messages": [HumanMessage("edited", id="h3")]})
    assert chat(forgetful(saver)).get_state(config()).values["messages"][6].text == "edited"
    app.update_state(config(), {"messages": [HumanMessage("and again", id="h3"), RemoveMessage(id="h5")]})
    messages = app.get_state(config()).values["messages"]
    assert len(messages) == 59
    assert isinstance(messages[0], HumanMessage)
    assert isinstance(messages[1], AIMessage)
    assert messages[6].text == "and again"
    assert "h5" not in [message.id for message in messages]
    assert chat(forgetful(saver)).get_state(config()).values["messages"] == messages
    lengths = [len(one.values.get("messages", ())) for one in app.get_state_history(config())]
    assert lengths[:3] == [59, 60, 60]
