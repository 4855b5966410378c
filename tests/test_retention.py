"""Times to live: honoured by every read and write at once, made good by `sweep`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    ConflictError,
    Constraint,
    Fact,
    FactNotFound,
    InMemoryStorage,
    MemoryStore,
    MemStateCheckpointer,
    MemStateStore,
    SQLiteStorage,
    Swept,
    ValidationFailed,
    retention,
)
from memstate_langgraph.backends.sql import find_statement
from memstate_langgraph.backends.sqlite_transaction import _DIALECT
from memstate_langgraph.facts import Query
from memstate_langgraph.run import perform
from tests.children import in_child
from tests.conftest import Clock, Opener
from tests.models import Note, Preference, note, preference, register
from tests.stores import Unreliable, assert_in_step, collect, hook_over, replayed

MINUTE = 60.0


def at(clock: Clock, content: str, fact_id: str | None = None, **fields: Any) -> Fact:
    return note(content, fact_id, ts=clock(), **fields)


def test_what_has_expired_is_gone_for_every_reader(memory: MemoryStore, vectors: Unreliable, clock: Clock) -> None:
    memory.add_hook(hook_over(vectors))
    memory.commit(at(clock, "short", "short"), ttl=10 * MINUTE)
    memory.commit(at(clock, "long", "long", ttl=20 * MINUTE))
    memory.commit(at(clock, "for good", "good"))
    clock.minutes = 9.99
    assert memory.get("short")
    clock.minutes = 10
    assert memory.get("short") is None
    assert [fact.id for fact in memory.query("note")] == ["long", "good"]
    assert [fact.id for fact in memory.query("note", limit=1)] == ["long"]
    assert {hit.fact.id for hit in memory.search("short", limit=3)} == {"long", "good"}
    assert len(memory.history("short")) == 1  # the log tells what was
    with pytest.raises(FactNotFound):
        memory.update("short", {"stars": 1})
    with pytest.raises(FactNotFound):
        memory.delete("short")
    assert len(memory.log()) == 3  # nobody wrote anything
    assert memory.get("short", as_of=memory.log(limit=1)[0].seq)  # it was there then


def test_the_past_knows_what_had_expired_then(memory: MemoryStore, clock: Clock) -> None:
    memory.commit(at(clock, "short", "short"), ttl=10 * MINUTE)
    clock.minutes = 20
    memory.commit(at(clock, "later", "later"))
    assert [fact.id for fact in memory.query(as_of=1)] == ["short"]
    assert [fact.id for fact in memory.query(as_of=2)] == ["later"]
    clock.minutes = 5
    assert [fact.id for fact in memory.query(as_of=clock())] == ["short"]
    clock.minutes = 15  # nothing happened then, but that
    assert memory.query(as_of=clock()) == []
    assert memory.get("short", as_of=clock()) is None


def test_a_change_begins_the_time_anew(memory: MemoryStore, clock: Clock) -> None:
    memory.commit(at(clock, "x", "x"), ttl=timedelta(minutes=10), session_id="s")
    clock.minutes = 9
    memory.update("x", {"stars": 1}, session_id="s")
    clock.minutes = 18
    assert memory.get("x")
    memory.rollback(1, session_id="s")  # exactly as it was: expired
    assert memory.get("x") is None
    assert memory.sweep().facts == {"note": 1}
    memory.rollback(1, session_id="s")
    assert_in_step(memory)


def test_a_type_has_a_default_and_a_fact_its_own(memory: MemoryStore, clock: Clock) -> None:
    clock.start = datetime.now(UTC)  # what is made of a model is of now
    memory.commit(at(clock, "before"))
    memory.register_schema("note", Note, ttl=timedelta(minutes=10))
    memory.commit(at(clock, "by type"))
    memory.commit_model(Note(content="by call"), ttl=20 * MINUTE)
    memory.commit_many([at(clock, "by fact", ttl=30 * MINUTE)])
    found = {fact.payload["content"]: fact.ttl for fact in memory.query()}
    assert found == {"before": None, "by type": 600.0, "by call": 1200.0, "by fact": 1800.0}


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True, "1", 1e300])
def test_a_time_to_live_is_checked(memory: MemoryStore, ttl: Any) -> None:
    with pytest.raises(ValidationFailed, match="ttl"):
        memory.commit(note("x"), ttl=ttl)
    assert memory.log() == []


def test_a_singleton_that_expired_makes_room(memory: MemoryStore, clock: Clock) -> None:
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"), ttl=10 * MINUTE)
    first = memory.commit(preference("food", "fish", ts=clock()), session_id="s")
    clock.minutes = 11
    second = memory.commit(preference("food", "tofu", ts=clock()), session_id="t", expected_version=0)
    assert [entry.op.value for entry in memory.history(second)] == ["COMMIT", "EXPIRE", "COMMIT"]
    assert second == first  # the id follows from the key
    assert [fact.payload["content"] for fact in memory.query()] == ["tofu"]
    memory.rollback(1, session_id="t")
    assert memory.query() == []  # what had expired does not come back
    assert_in_step(memory)


def test_immutable_facts_expire_too(memory: MemoryStore, clock: Clock) -> None:
    memory.commit(Fact(type="rule", payload={"name": "n", "text": "t"}, ts=clock(), ttl=MINUTE))
    clock.minutes = 2
    assert memory.sweep().facts == {"rule": 1}


def test_a_sweep_deletes_and_says_so(memory: MemoryStore, vectors: Unreliable, clock: Clock) -> None:
    memory.add_hook(hook_over(vectors, grace=0.0))
    memory.commit(at(clock, "short", "a"), ttl=10 * MINUTE, session_id="s")
    memory.commit(at(clock, "other", "b"), ttl=10 * MINUTE, session_id="t")
    MemStateStore(getattr(memory, "_store", memory))
    memory.commit(at(clock, "stays", "c"), session_id="s")
    clock.minutes = 11
    swept = memory.sweep()
    assert swept == Swept({"note": 2})
    assert str(swept) == "swept\n  2 expired facts of type note"
    assert "<td>2</td>" in swept._repr_html_()
    assert bool(swept)
    entries = [entry for entry in memory.log() if entry.op == "EXPIRE"]
    assert {(entry.actor, entry.reason, entry.session_id) for entry in entries} == {
        ("expiry", "its time to live has passed", session) for session in "st"
    }
    collect(memory)
    assert len(vectors.store) == 1
    again = memory.sweep()
    assert not again
    assert str(again) == "swept\n  0 things to delete"
    assert replayed(memory).keys() == {"c"}
    assert_in_step(memory)


def test_rollback_neither_counts_nor_meets_a_sweep(memory: MemoryStore, clock: Clock) -> None:
    memory.commit(at(clock, "stays", "c"), session_id="s")
    memory.commit(at(clock, "short", "a"), ttl=10 * MINUTE, session_id="s")
    clock.minutes = 11
    memory.sweep()
    memory.rollback(1, session_id="s")  # the commit of what has expired
    assert [fact.id for fact in memory.query()] == ["c"]
    memory.rollback(1, session_id="s")
    assert memory.query() == []
    assert_in_step(memory)


@settings(max_examples=40)
@given(
    lives=st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(1, 5), st.booleans()), max_size=12),
    now=st.integers(0, 10),
    limit=st.none() | st.integers(0, 5),
)
def test_sweeping_changes_nothing_that_anybody_sees(
    lives: list[tuple[int, int | None, bool]], now: int, limit: int | None
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memstate_langgraph.flows.utcnow", clock)
        memory = MemoryStore(InMemoryStorage(), [hook_over(Unreliable())])
        register(memory)
        for i, (start, ttl, changed) in enumerate(lives):
            clock.minutes = start
            memory.commit(at(clock, f"n{i}", f"n{i}"), ttl=ttl and ttl * MINUTE)
            if changed:
                memory.update(f"n{i}", {"stars": 1})
        clock.minutes = now
        # the last change was at `start`, whatever else happened
        wanted = [f"n{i}" for i, (start, ttl, _) in enumerate(lives) if ttl is None or start + ttl > now]
        assert [fact.id for fact in memory.query(limit=limit)] == wanted[:limit]
        assert {hit.fact.id for hit in memory.search("n", limit=None)} == set(wanted)
        assert sum(memory.sweep().facts.values()) == len(lives) - len(wanted)
        assert [fact.id for fact in memory.query(limit=limit)] == wanted[:limit]
        assert {hit.fact.id for hit in memory.search("n", limit=None)} == set(wanted)
        assert replayed(memory).keys() == set(wanted)


def test_a_sweep_leaves_what_is_changed_meanwhile(reopen: Opener, clock: Clock) -> None:
    memory, other = reopen(), reopen()
    memory.commit(at(clock, "x", "x"), ttl=MINUTE)
    clock.minutes = 2
    done: list[str] = []

    def veto(operation: str, fact_id: str, fact: Any) -> None:
        if not done:
            done.append(operation)
            other.commit(at(clock, "y", "x"), ttl=MINUTE)

    memory.add_hook(veto)
    assert memory.sweep().facts == {}
    assert done == ["EXPIRE"]
    assert memory.get("x").payload["content"] == "y"  # type: ignore[union-attr]


def test_a_sweep_that_is_killed_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAGE", 10)
    path = tmp_path / "state.db"

    def job() -> None:
        memory = MemoryStore(SQLiteStorage(path))
        register(memory)
        memory.commit_many([note(f"n{i}", f"n{i}", ttl=0.001) for i in range(35)], session_id="s")
        time.sleep(0.01)
        memory.sweep(lambda stage, done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 20 else None)

    killed, _ = in_child(job)
    assert killed == signal.SIGKILL
    memory = MemoryStore(SQLiteStorage(path))
    assert len(replayed(memory)) == 15
    assert memory.query() == []
    assert memory.sweep().facts == {"note": 15}
    assert len({entry.tx for entry in memory.log() if entry.op == "EXPIRE"}) == 4
    assert memory.verify().ok


def test_what_a_sweep_reads_follows_what_has_expired(tmp_path: Path) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    register(memory)
    memory.commit_many([note(f"n{i}", ttl=1e6) for i in range(2000)])
    question = find_statement(Query(ended=datetime.now(UTC)), None, 10, _DIALECT)
    writer = memory.storage.engine.writer  # type: ignore[attr-defined]
    plan = writer.execute(f"EXPLAIN QUERY PLAN {question.text}", question.parameters).fetchall()
    assert "facts_ends" in str(plan)


# --- threads


def talk(memory: Any, thread: str, turns: int = 1) -> MemStateCheckpointer:
    graph = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [("ai", "yes")]})
    graph.add_edge(START, "answer")
    saver = MemStateCheckpointer(memory)
    app = graph.compile(checkpointer=saver)
    for _ in range(turns):
        app.invoke({"messages": [HumanMessage("hello")]}, config_of(thread))
    return saver


def config_of(thread: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}}


@pytest.mark.parametrize("door", ["sync", "async"])
def test_idle_threads_and_old_checkpoints_go(door: str, tmp_path: Path, clock: Clock) -> None:
    clock.start = datetime.now(UTC)
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    register(memory)
    memory.commit(at(clock, "x"), ttl=MINUTE)
    saver = talk(memory, "old", 2)

    def sweep(**options: Any) -> Swept:
        return asyncio.run(saver.asweep(**options)) if door == "async" else saver.sweep(**options)

    assert sweep(idle=timedelta(minutes=1), keep_last=100) == Swept()
    clock.minutes = 60
    told: list[str] = []
    swept = sweep(keep_last=2, progress=lambda stage, done, total: told.append(stage))
    assert swept == Swept({"note": 1}, (), 4)
    assert told == ["sweeping facts", "sweeping threads"]
    assert len(list(saver.list(config_of("old")))) == 2
    swept = sweep(idle=timedelta(minutes=30))
    assert swept == Swept({}, ("old",), 2)
    assert str(swept) == "swept\n  1 idle threads\n  2 checkpoints"
    assert saver.get_tuple(config_of("old")) is None
    clock.minutes = 0
    talk(memory, "young")
    assert not sweep(idle=timedelta(minutes=30))
    assert memory.storage.engine.writer.execute("SELECT count(DISTINCT thread_id) FROM checkpoints").fetchone() == (1,)  # type: ignore[attr-defined]


def test_a_thread_that_goes_on_meanwhile_is_not_idle(tmp_path: Path, clock: Clock) -> None:
    """What a sweep saw of a thread is looked at again when it is deleted."""
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    saver = talk(memory, "t")
    clock.minutes = 60  # 2030: everything is long ago
    lens: Any = _Newer()
    swept = perform(retention.sweep_threads(memory._core, lens, 60.0, None, None), memory.storage)
    assert swept == Swept()
    assert saver.get_tuple(config_of("t"))
    with pytest.raises(ValidationFailed, match="idle"):
        saver.sweep(idle=0)
    with pytest.raises(ValidationFailed, match="keep_last"):
        saver.sweep(keep_last=0)


class _Newer:
    def stamp(self, row: Any) -> str:
        return "2031-01-01T00:00:00+00:00"


def test_in_a_graph_an_expired_fact_makes_room_with_the_tasks_result(tmp_path: Path, clock: Clock) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    register(memory)
    memory.commit(at(clock, "old", "x"), ttl=MINUTE)
    clock.minutes = 2

    def answer(state: MessagesState) -> dict[str, Any]:
        assert memory.get("x") is None
        memory.commit(at(clock, "new", "x"), expected_version=0)
        assert memory.get("x").payload["content"] == "new"  # type: ignore[union-attr]
        assert MemoryStore(SQLiteStorage(tmp_path / "state.db")).query() == []
        return {}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.compile(checkpointer=MemStateCheckpointer(memory)).invoke({"messages": []}, config_of("t"))
    assert [entry.op.value for entry in memory.history("x")] == ["COMMIT", "EXPIRE", "COMMIT"]
    assert_in_step(memory)


def test_the_async_door() -> None:
    async def main() -> None:
        memory = AsyncMemoryStore(AsyncInMemoryStorage())
        await memory.commit(note("x", "x"), ttl=0.01)
        await asyncio.sleep(0.02)
        assert await memory.get("x") is None
        assert (await memory.sweep()).facts == {"note": 1}
        with pytest.raises(ConflictError):
            await memory.commit(note("x", "x"), expected_version=1)

    asyncio.run(main())
