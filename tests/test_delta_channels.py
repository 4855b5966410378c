"""Graphs with LangGraph's `DeltaChannel`: state that is kept as writes since a snapshot."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from memstate_langgraph import MemStateCheckpointer
from tests.stores import SQLITE, Place, places

CONFIG: RunnableConfig = {"configurable": {"thread_id": "t"}}
Durability = Literal["sync", "async", "exit"]


def joined(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return reduce(operator.add, writes, state)


class Delta(TypedDict):
    log: Annotated[list[str], DeltaChannel(joined, list, snapshot_frequency=5)]
    turn: int


class Plain(TypedDict):
    log: Annotated[list[str], operator.add]
    turn: int


def graph(saver: BaseCheckpointSaver[Any], schema: Any = Delta) -> Any:
    builder = StateGraph(schema)
    for name, following in (("hear", "think"), ("think", None)):
        builder.add_node(name, lambda state, name=name: {"log": [f"{name} {len(state['log'])}"], "turn": 1})
        if following:
            builder.add_edge(name, following)
    builder.add_edge(START, "hear")
    return builder.compile(checkpointer=saver)


everywhere = places(awaited=False, durable=True)


@pytest.fixture
def saver(place: Place, tmp_path: Path) -> Iterator[MemStateCheckpointer]:
    with MemStateCheckpointer(place.open(tmp_path)) as saver:
        yield saver


def run(app: Any, turns: int, durability: Durability = "async") -> None:
    for i in range(turns):
        app.invoke({"log": [f"said {i}"]}, CONFIG, durability=durability)


def seen(app: Any) -> list[Any]:
    return [(snapshot.values, snapshot.next) for snapshot in app.get_state_history(CONFIG)]


@everywhere
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_delta_channel_reads_as_in_memory(saver: MemStateCheckpointer, durability: Durability) -> None:
    ours, theirs = graph(saver), graph(InMemorySaver())
    for app in (ours, theirs):
        run(app, 14, durability)
    assert seen(ours) == seen(theirs)
    assert len(ours.get_state(CONFIG).values["log"]) == 42
    fork = next(s for s in ours.get_state_history(CONFIG) if len(s.values["log"]) == 30)
    ours.update_state(fork.config, {"log": ["by hand"]})
    assert ours.get_state(CONFIG).values["log"][-2:] == [fork.values["log"][-1], "by hand"]


@everywhere
async def test_a_delta_channel_through_the_async_door(saver: MemStateCheckpointer) -> None:
    ours, theirs = graph(saver), graph(InMemorySaver())
    for app in (ours, theirs):
        for i in range(9):
            await app.ainvoke({"log": [f"said {i}"]}, CONFIG)
    assert (await ours.aget_state(CONFIG)).values == (await theirs.aget_state(CONFIG)).values


@everywhere
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_thread_goes_on_when_its_channel_becomes_a_delta_channel(
    saver: MemStateCheckpointer, durability: Durability
) -> None:
    told = []
    for one in (saver, InMemorySaver()):
        run(graph(one, Plain), 3, durability)
        run(graph(one, Delta), 8, durability)
        told.append(seen(graph(one, Delta)))
    assert told[0] == told[1]
    assert len(told[0][0][0]["log"]) == 33


@everywhere
@pytest.mark.parametrize("keep", [1, 2, 7])
def test_pruning_leaves_what_a_delta_channel_is_made_of(saver: MemStateCheckpointer, keep: int) -> None:
    app = graph(saver)
    run(app, 13)
    before = seen(app)
    saver.prune(["t"], strategy="keep_last", keep_last=keep)
    after = seen(app)
    assert len(after) < len(before)
    assert after[:keep] == before[:keep]
    run(app, 2)
    assert app.get_state(CONFIG).values["log"][: len(before[0][0]["log"])] == before[0][0]["log"]


@pytest.mark.parametrize("place", [SQLITE], ids=["sqlite"])
def test_a_long_line_of_ancestors_is_read_in_few_statements(saver: MemStateCheckpointer) -> None:
    class Rare(TypedDict):
        log: Annotated[list[str], DeltaChannel(joined, list, snapshot_frequency=1000)]
        turn: int

    app = graph(saver, Rare)
    run(app, 60)
    engine: Any = saver.memory.storage.engine  # type: ignore[union-attr]
    statements: list[str] = []
    (reader,) = engine._readers
    reader.set_trace_callback(statements.append)
    assert len(app.get_state(CONFIG).values["log"]) == 180
    assert len([text for text in statements if "FROM" in text]) < 30
