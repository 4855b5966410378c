"""Moving between storages, and from LangGraph's own savers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from psycopg.conninfo import make_conninfo

from memstate_langgraph import (
    AsyncInMemoryStorage,
    ConflictError,
    InMemoryStorage,
    MemoryStore,
    MemStateCheckpointer,
    PostgresStorage,
    SQLiteStorage,
    ValidationFailed,
    acopy,
    aimport_checkpoints,
    copy,
    import_checkpoints,
)
from tests.damage import damage
from tests.models import note
from tests.servers import postgres_url, schema_of
from tests.stores import POSTGRES, SQLITE, Unreliable, assert_in_step, chosen, hook_over


def app_on(saver: BaseCheckpointSaver[Any]) -> Any:
    def agent(state: MessagesState) -> dict[str, Any]:
        said = interrupt("may I?") if state["messages"][-1].content == "ask" else "yes"
        return {"messages": [AIMessage(f"{said} " * 50)]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_edge(START, "agent")
    return graph.compile(checkpointer=saver)


def at(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def lived_in(memory: MemoryStore) -> None:
    """A bit of everything: updates, rollbacks, deletions, ephemeral facts, threads that share, one that waits."""
    for i in range(40):
        memory.commit(note(f"number {i}", f"n{i}"), session_id=f"s{i % 3}", idempotency_key=f"k{i}")
    memory.update("n1", {"content": "changed"}, session_id="s1")
    memory.rollback(2, session_id="s1")
    memory.delete("n2", session_id="s2")
    memory.commit(note("for now", "e1"), session_id="s9", ephemeral=True)
    with memory.transaction(session_id="s4") as tx:
        for i in range(30):
            tx.commit(note(f"together {i}"))
    saver = MemStateCheckpointer(memory=memory)
    app = app_on(saver)
    for i in range(4):
        app.invoke({"messages": [HumanMessage(f"{i} says hello " * 20)]}, at("long"))
    app.invoke({"messages": [HumanMessage("ask")]}, at("waits"))
    saver.copy_thread("long", "copied")


def said_by(memory: MemoryStore) -> Any:
    saver = MemStateCheckpointer(memory=memory)
    threads = {name: list(saver.list(at(name))) for name in ("long", "waits", "copied")}
    return memory.query(), memory.log(), threads


ROUND = chosen(awaited=False)
WAYS = [*zip(ROUND, [*ROUND[1:], ROUND[0]], strict=True), (POSTGRES, SQLITE)]
"""Every storage as a source and as a target."""


@pytest.fixture(params=WAYS, ids=lambda way: " to ".join(place.name for place in way))
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[MemoryStore, MemoryStore]]:
    source, target = (MemoryStore(place.storage(tmp_path)) for place in request.param)
    yield source, target
    source.close()
    target.close()


def test_a_copy_is_exact_and_lives_on(sides: tuple[MemoryStore, MemoryStore]) -> None:
    source, target = sides
    lived_in(source)
    stages: list[str] = []
    moved = copy(source, target, progress=lambda stage, done, total: stages.append(stage))
    assert said_by(target) == said_by(source)
    assert (moved.entries, moved.facts, moved.threads) == (len(source.log()), len(source.query()), 3)
    assert {"facts and log", "threads", "comparing"} <= set(stages)
    for memory in sides:  # what comes next is the same on both sides
        memory.rollback(1, session_id="s4")
        memory.commit(note("again"), idempotency_key="k3")
        app_on(MemStateCheckpointer(memory=memory)).invoke(Command(resume="sure"), at("waits"))
        MemStateCheckpointer(memory=memory).delete_thread("long")
        assert_in_step(memory)
    assert {f.id: f.payload for f in source.query()} == {f.id: f.payload for f in target.query()}
    assert len(said_by(target)[2]["copied"]) == len(said_by(source)[2]["copied"]) > 5


def test_a_copy_can_be_stopped_anywhere(sides: tuple[MemoryStore, MemoryStore], monkeypatch: Any) -> None:
    source, target = sides
    lived_in(source)
    monkeypatch.setattr("memstate_langgraph.moving.PAGE", 7)
    calls = stop_at = 0
    original = target.storage.run

    def run(work: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return original(work)

    monkeypatch.setattr(target.storage, "run", run)
    for stop_at in range(3, 60, 5):  # noqa: B007 -- read by `run`
        calls = 0
        try:
            copy(source, target)
            break
        except KeyboardInterrupt:
            pass
    assert stop_at > 10
    monkeypatch.undo()
    copy(source, target)
    assert said_by(target) == said_by(source)


def test_a_target_with_a_history_of_its_own_is_refused(sides: tuple[MemoryStore, MemoryStore]) -> None:
    source, target = sides
    lived_in(source)
    theirs = target.commit(note("theirs"))
    with pytest.raises(ConflictError, match="history of its own"):
        copy(source, target)
    assert [fact.id for fact in target.query()] == [theirs]
    with pytest.raises(ValidationFailed, match="progress"):
        copy(source, target, progress=1)  # type: ignore[arg-type]


def test_lost_chunks_are_sent_again(sides: tuple[MemoryStore, MemoryStore]) -> None:
    source, target = sides
    lived_in(source)
    copy(source, target)
    damage(target.storage, "long", "no chunk")
    copy(source, target)
    assert said_by(target) == said_by(source)


def test_vectors_stay_in_use_or_are_embedded_anew(tmp_path: Path) -> None:
    vectors = Unreliable()
    source = MemoryStore(InMemoryStorage(), [hook_over(vectors, name="notes")])
    fact_id = source.commit(note("fish is good"))
    source.commit(note("rain tomorrow"))
    source.update(fact_id, {"content": "meat is good"})
    kept = MemoryStore(InMemoryStorage(), [hook_over(vectors, name="notes")])
    assert copy(source, kept, vectors=["notes"]).vectors == 3
    assert vectors.upserts == 3, "nothing was embedded again"
    assert kept.search("meat", limit=1)[0].fact.id == fact_id
    assert_in_step(kept)
    fresh = MemoryStore(InMemoryStorage(), [hook_over(Unreliable(), name="notes")])
    copy(source, fresh)
    assert fresh.repair().ok
    assert fresh.search("meat", limit=1)[0].fact.id == fact_id


async def test_through_the_async_door() -> None:
    source, target = AsyncInMemoryStorage(), AsyncInMemoryStorage()
    lived_in(MemoryStore(source.sync()))
    await acopy(source, target)
    assert said_by(MemoryStore(target.sync())) == said_by(MemoryStore(source.sync()))


# --- from LangGraph's own savers


@pytest.fixture(params=["InMemorySaver", "SqliteSaver", "PostgresSaver"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "InMemorySaver":
        yield InMemorySaver()
    elif request.param == "SqliteSaver":
        with sqlite3.connect(tmp_path / "theirs.db", check_same_thread=False) as wire:
            yield SqliteSaver(wire)
    else:
        schema = schema_of(tmp_path)
        PostgresStorage(postgres_url(), schema=schema, prefix="ours_").close()
        with PostgresSaver.from_conn_string(make_conninfo(postgres_url(), options=f"-c search_path={schema}")) as saver:
            saver.setup()
            yield saver


def test_threads_come_over_with_their_history(saver: Any, tmp_path: Path) -> None:
    theirs = app_on(saver)
    for i in range(4):
        theirs.invoke({"messages": [HumanMessage(f"{i} says hello " * 20)]}, at("long"))
    theirs.invoke({"messages": [HumanMessage("ask")]}, at("waits"))
    fork = list(theirs.get_state_history(at("long")))[4].config
    theirs.update_state(fork, {"messages": [HumanMessage("otherwise")]})
    with MemoryStore(SQLiteStorage(tmp_path / "ours.db")) as memory:
        ours_saver = MemStateCheckpointer(memory=memory)
        count = import_checkpoints(saver, ours_saver)
        assert count == import_checkpoints(saver, ours_saver) == len(list(saver.list(None)))
        ours = app_on(ours_saver)
        for thread in ("long", "waits"):
            told, asked = (list(app.get_state_history(at(thread))) for app in (ours, theirs))
            assert told == asked
        results = [app.invoke(Command(resume="sure"), at("waits")) for app in (ours, theirs)]
        assert [m.content for m in results[0]["messages"]] == [m.content for m in results[1]["messages"]]


def test_one_thread_through_the_async_door(tmp_path: Path) -> None:
    saver = InMemorySaver()
    for thread in ("a", "b"):
        app_on(saver).invoke({"messages": [HumanMessage("hello")]}, at(thread))
    memory = MemoryStore(InMemoryStorage())
    ours = MemStateCheckpointer(memory=memory)
    asyncio.run(aimport_checkpoints(saver, ours, thread_id="a"))
    assert list(app_on(ours).get_state_history(at("a"))) == list(app_on(saver).get_state_history(at("a")))
    assert list(ours.list(at("b"))) == []
