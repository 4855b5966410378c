"""Purge: what was erased is nowhere any more, and the log says that it was."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    ConflictError,
    Fact,
    HookError,
    MemoryStore,
    MemStateCheckpointer,
    Purged,
    SQLiteStorage,
    ValidationFailed,
    copy,
)
from memstate_langgraph.reading import load
from memstate_langgraph.search import hydrate
from tests.children import in_child
from tests.conftest import Clock, Opener
from tests.models import note, preference, register
from tests.servers import behind_its_back
from tests.stores import POSTGRES, SQLITE, Unreliable, assert_in_step, hook_over, places, replayed

SECRET = "xyzzy-plugh"


def secret(fact_id: str, **fields: Any) -> Fact:
    return note(f"{SECRET} of {fact_id}", fact_id, **fields)


def told(memory: MemoryStore) -> str:
    """Everything that the API says of facts, now and then."""
    last = memory.log(limit=1)[0].seq
    said = [memory.query(), memory.log(), [memory.query(as_of=at) for at in range(last + 1)]]
    return repr([said, memory.diff(0), memory.diff(0)._repr_html_(), [entry._repr_html_() for entry in memory.log()]])


def test_a_purged_fact_is_nowhere(memory: MemoryStore, vectors: Unreliable) -> None:
    memory.add_hook(hook_over(vectors))
    memory.commit(secret("a"), session_id="s", reason=f"because {SECRET}", idempotency_key=SECRET)
    memory.update("a", {"content": f"{SECRET} again"}, session_id="t")
    memory.commit(note("stays", "b"), session_id="s")
    memory.delete("a")
    memory.rollback(1)
    before = memory.log()
    assert SECRET in told(memory)

    purged = memory.purge(fact_id="a", actor="officer", reason="asked for")
    assert isinstance(purged, Purged)
    assert (purged.fact_ids, purged.entries, purged.threads, bool(purged)) == (("a",), 4, (), True)
    assert str(purged) == "purged fact a\n  1 facts\n  4 log entries emptied\n  0 threads deleted"
    assert "log entries emptied" in purged._repr_html_()

    assert SECRET not in told(memory)
    assert memory.get("a") is None
    assert SECRET not in str(list(vectors.store.values()))
    assert [hit.fact.id for hit in memory.search(SECRET, limit=None)] == ["b"]
    assert [hit.fact.id for hit in memory.search(SECRET, limit=None, as_of=before[0].seq)] == ["b"]
    newest = memory.log(limit=1)[0]
    assert (newest.op, newest.fact_id, newest.actor, newest.reason) == ("PURGE", "a", "officer", "asked for")
    assert (newest.seq,) == purged.seqs
    assert (newest.before, newest.after) == (None, None)
    for was, entry in zip(before, memory.log()[1:], strict=True):
        if entry.fact_id == "b":
            assert entry == was
        else:
            assert entry == was.model_copy(
                update={"before": None, "after": None, "reason": None, "idempotency_key": None, "purged": True}
            )
    assert_in_step(memory)
    again = memory.purge(fact_id="a")
    assert not again
    assert len(memory.log()) == len(before) + 1
    assert memory.commit(note("new life", "a"), idempotency_key=SECRET) == "a"
    assert_in_step(memory)
    memory.rollback(1)
    assert memory.purge(fact_id="a").entries == 2
    assert_in_step(memory)


def test_what_had_expired_is_purged_once(memory: MemoryStore, clock: Clock) -> None:
    memory.commit(secret("a", ts=clock()), ttl=60, session_id="s")
    clock.minutes = 2
    assert memory.purge(session_id="s").fact_ids == ("a",)
    assert [(entry.op.value, entry.purged) for entry in memory.history("a")] == [
        ("PURGE", False),
        ("EXPIRE", True),
        ("COMMIT", True),
    ]
    assert SECRET not in told(memory)


def test_rollback_over_a_purged_entry_is_refused(memory: MemoryStore) -> None:
    with memory.transaction(session_id="s") as tx:
        tx.commit(secret("a"))
        tx.commit(note("b", "b"))
    memory.commit(note("c", "c"), session_id="s")
    memory.purge(fact_id="a")
    memory.rollback(1, session_id="s")
    with pytest.raises(ConflictError, match="fact a was purged"):
        memory.rollback(1, session_id="s")
    assert {fact.id for fact in memory.query()} == {"b"}
    assert_in_step(memory)


def test_a_session_is_all_that_it_ever_changed(memory: MemoryStore) -> None:
    memory.commit(secret("own"), session_id="s")
    memory.commit(secret("left"), session_id="s")
    memory.update("left", {"content": f"still {SECRET}"}, session_id="t")
    memory.commit(secret("dead"), session_id="s")
    memory.delete("dead", session_id="t")
    memory.commit(note("of t", "t"), session_id="t")
    memory.commit(secret("draft"), session_id="s", ephemeral=True)
    purged = memory.purge(session_id="s")
    assert sorted(purged.fact_ids) == ["dead", "draft", "left", "own"]
    assert {fact.id for fact in memory.query()} == {"t"}
    assert SECRET not in told(memory)
    assert_in_step(memory)


def test_a_namespace_is_all_below_it(memory: MemoryStore) -> None:
    for fact_id, namespace in (
        ("1", ("u", "ana")),
        ("2", ("u", "ana", "x")),
        ("3", ("u", "anabel")),
        ("4", ("u",)),
        ("5", ()),
    ):
        memory.commit(secret(fact_id, namespace=namespace))
    memory.commit(preference("food", SECRET, namespace=("u", "ana")))
    memory.delete("2")
    purged = memory.purge(namespace=("u", "ana"))
    assert len(purged.fact_ids) == 3
    assert {fact.id for fact in memory.query()} == {"3", "4", "5"}
    assert {entry.fact_id for entry in memory.log() if entry.purged} == set(purged.fact_ids)
    assert_in_step(memory)


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"fact_id": "a", "session_id": "s"},
        {"session_id": "s", "namespace": ("n",)},
        {"namespace": ()},
        {"namespace": "n"},
        {"fact_id": ""},
        {"session_id": 5},
    ],
)
def test_the_scope_must_be_clear(memory: MemoryStore, scope: Any) -> None:
    memory.commit(note("x", "a"))
    with pytest.raises(ValidationFailed):
        memory.purge(**scope)
    assert len(memory.log()) == 1


def test_a_purge_is_no_part_of_a_transaction(memory: MemoryStore) -> None:
    memory.commit(note("x", "a"))
    with memory.transaction() as tx, pytest.raises(ValidationFailed, match="cannot be undone"):
        tx.purge(fact_id="a")
    assert memory.get("a")


def test_a_hook_may_refuse(memory: MemoryStore) -> None:
    memory.commit(note("x", "a"))
    seen: list[str] = []

    def hold(operation: str, fact_id: str, fact: Any) -> None:
        seen.append(operation)
        raise PermissionError("a court wants it")

    memory.add_hook(hold)
    with pytest.raises(HookError, match="a court wants it"):
        memory.purge(fact_id="a")
    assert seen == ["PURGE"]
    assert memory.get("a")


def test_a_vector_store_that_is_down_is_cleared_later(memory: MemoryStore, vectors: Unreliable) -> None:
    memory.add_hook(hook_over(vectors))
    memory.commit(secret("a"))
    vectors.mood = "down"
    purged = memory.purge(fact_id="a")
    assert "down" in purged.waiting
    assert "still to be removed" in str(purged)
    assert "still to be removed" in purged._repr_html_()
    vectors.mood = "ok"
    assert memory.search(SECRET, limit=None) == []
    memory.repair()
    assert vectors.store == {}


@places(awaited=False)
def test_a_search_that_began_before_finds_nothing_of_it(place: Any, tmp_path: Path, vectors: Unreliable) -> None:
    memory = place.open(tmp_path, [hook_over(vectors)])
    memory.commit(secret("a"))
    memory.commit(note("b", "b"))
    at, ids = memory.log(limit=1)[0].seq, tuple(vectors.store)
    assert len(memory.storage.run(hydrate(ids, at))) == 2
    vectors.mood = "down"
    memory.purge(fact_id="a")
    assert [fact.id for fact in memory.storage.run(hydrate(ids, at)).values()] == ["b"]
    memory.close()


def test_replaced_vectors_do_not_wait_for_their_grace(memory: MemoryStore, vectors: Unreliable) -> None:
    memory.add_hook(hook_over(vectors, grace=3600.0))
    memory.commit(secret("a"))
    memory.update("a", {"content": "harmless"})
    memory.commit(note("b", "b"))
    memory.update("b", {"content": "b2"})
    assert len(vectors.store) == 4
    memory.purge(fact_id="a")
    assert len(vectors.store) == 2
    assert SECRET not in str(vectors.store)


def test_what_is_written_meanwhile_is_purged_too(reopen: Opener) -> None:
    memory, other = reopen(), reopen()
    memory.commit(secret("a"), session_id="s")
    done: list[str] = []

    def veto(operation: str, fact_id: str, fact: Any) -> None:
        if not done:
            done.append(operation)
            other.commit(secret("late"), session_id="s")
            other.update("a", {"content": f"newer {SECRET}"})

    memory.add_hook(veto)
    assert sorted(memory.purge(session_id="s").fact_ids) == ["a", "late"]
    assert memory.query() == []
    assert SECRET not in told(memory)
    assert_in_step(memory)


# --- the log keeps everything else


@pytest.mark.parametrize("place", [SQLITE, POSTGRES], ids=lambda place: place.name)
def test_only_a_purge_may_empty_an_entry(place: Any, tmp_path: Path) -> None:
    memory = place.open(tmp_path)
    for fact_id in "ab":
        memory.commit(secret(fact_id))
    memory.purge(fact_id="a")
    memory.commit(note("again", "a"))
    empty = "after = NULL, reason = NULL, idempotency_key = NULL, purged = "
    true, plus = ("1", "1") if place is SQLITE else ("true", "1")
    for statement in (
        f"UPDATE log SET {empty}{true} WHERE fact_id = 'b'",  # not purged
        f"UPDATE log SET {empty}{true} WHERE fact_id = 'a' AND version = 3",  # after the purge
        f"UPDATE log SET {empty}{true}, actor = 'x' WHERE fact_id = 'a' AND version = 1",
        f"UPDATE log SET {empty}{true}, seq = seq + {plus}00 WHERE fact_id = 'a' AND version = 1",
        f"UPDATE log SET {empty}{true}, tx = 'x' WHERE fact_id = 'a' AND version = 1",
        f"UPDATE log SET {empty}{true}, node = 'x' WHERE fact_id = 'a' AND version = 1",
        "UPDATE log SET after = 'x' WHERE fact_id = 'a' AND version = 1",
        "UPDATE log SET reason = 'x' WHERE fact_id = 'a' AND version = 1",
        f"UPDATE log SET purged = NOT purged, {empty.removesuffix(', purged = ')} WHERE fact_id = 'a' AND version = 1",
        "DELETE FROM log WHERE purged",
    ):
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match="append-only"):
            behind_its_back(memory.storage, statement)
    memory.close()


@places(awaited=False)
def test_a_copy_has_the_purge(place: Any, tmp_path: Path) -> None:
    memory = place.open(tmp_path)
    memory.commit(secret("a"), session_id="s")
    memory.commit(note("b", "b"), session_id="s")
    memory.purge(fact_id="a")
    with MemoryStore(SQLiteStorage(tmp_path / "copy.db")) as other:
        copy(memory.storage, other.storage)
        assert other.log() == memory.log()
        assert SECRET not in told(other)
        assert_in_step(other)
        other.rollback(1)
        with pytest.raises(ConflictError, match="purged"):
            other.rollback(1)
    memory.close()


# --- bytes


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("size", [20, 900, 20_000])
def test_the_file_does_not_hold_the_bytes(tmp_path: Path, size: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    memory = MemoryStore(SQLiteStorage(folder / "state.db"))
    text = f"{SECRET} " * (size // len(SECRET))
    for i in range(40):
        memory.commit(note("harmless" * 20, f"h{i}"), session_id="t")
        memory.commit(note(text, f"s{i}"), session_id="s", reason=text[:400], idempotency_key=f"{SECRET}-{i}")
        memory.commit(preference(f"{SECRET} {i}", text), session_id="s")
    for i in range(40):
        memory.update(f"s{i}", {"content": f"{text} {i}" * (1 + i % 3)}, session_id="s")
        memory.commit(note("harmless" * (i * 10 + 1), f"h{i}"), session_id="t")
    talk(memory, "s", text)
    assert bytes_of(folder).count(SECRET.encode()) > 200
    purged = memory.purge(session_id="s", checkpoints=True)
    assert len(purged.fact_ids) == 80
    assert purged.threads == ("s",)
    memory.vacuum()
    assert bytes_of(folder).count(SECRET.encode()) == 0
    assert memory.verify().ok
    memory.close()
    assert bytes_of(folder).count(SECRET.encode()) == 0


def talk(
    memory: MemoryStore, thread: str, text: str, then: Callable[[], object] = lambda: None
) -> MemStateCheckpointer:
    def answer(state: MessagesState) -> dict[str, Any]:
        then()
        return {"messages": [("ai", text)]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    saver = MemStateCheckpointer(memory)
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    graph.compile(checkpointer=saver).invoke({"messages": [HumanMessage(text)]}, config)
    return saver


def threads_of(saver: MemStateCheckpointer) -> set[str]:
    return {found.config["configurable"]["thread_id"] for found in saver.list(None)}


def test_checkpoints_go_where_asked(tmp_path: Path) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    register(memory)
    talk(memory, "one", SECRET, lambda: memory.commit(secret("a", namespace=("ana",))))
    saver = talk(memory, "two", SECRET, lambda: memory.commit(secret("b")))
    assert memory.purge(fact_id="b").threads == ()
    assert threads_of(saver) == {"one", "two"}
    assert memory.purge(namespace=("ana",), checkpoints=True).threads == ("one",)
    assert threads_of(saver) == {"two"}
    assert memory.purge(session_id="two", checkpoints=True).threads == ("two",)
    assert threads_of(saver) == set()
    assert not memory.purge(session_id="two", checkpoints=True)


def test_what_a_task_has_staged_goes_too(tmp_path: Path) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(Unreliable())])
    other = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    register(memory)

    def work() -> None:
        memory.commit(secret("staged"), session_id="t")
        other.purge(session_id="t")

    talk(memory, "t", "hello", work)
    assert memory.query() == []
    assert memory.log() == []
    assert_in_step(memory)


# --- crashes


POINTS = ("before", "in the transaction", "after the commit")


@pytest.mark.parametrize("point", POINTS)
def test_a_purge_that_is_killed_did_all_or_nothing(tmp_path: Path, point: str) -> None:
    path = tmp_path / "state.db"
    with MemoryStore(SQLiteStorage(path)) as memory:
        memory.commit_many([secret(f"a{i}") for i in range(50)], session_id="s")
        talk(memory, "s", SECRET)

    def job() -> None:
        from memstate_langgraph import retention
        from memstate_langgraph.backends import sql
        from memstate_langgraph.ops import Purge

        def die(*_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        memory = MemoryStore(SQLiteStorage(path))
        if point == POINTS[0]:
            memory.purge(session_id="s", checkpoints=True, progress=die)
        elif point == POINTS[1]:
            answer = sql.ANSWERS[Purge]

            def dying(op: Any, d: Any) -> Any:
                yield from answer(op, d)
                die()

            sql.ANSWERS[Purge] = dying
        else:
            retention._remove_vectors = die  # type: ignore[assignment]
        memory.purge(session_id="s", checkpoints=True)

    killed, answer = in_child(job)
    assert killed == signal.SIGKILL, answer
    memory = MemoryStore(SQLiteStorage(path))
    saver = MemStateCheckpointer(memory)
    if point == POINTS[2]:
        assert SECRET not in told(memory)
        assert threads_of(saver) == set()
    else:
        assert len(memory.query("note")) == 50
        assert threads_of(saver) == {"s"}
        assert not any(entry.purged for entry in memory.log())
        assert len(memory.purge(session_id="s", checkpoints=True).fact_ids) == 50
    assert memory.query() == []
    assert_in_step(memory)
    memory.close()


def test_the_async_door() -> None:
    async def main() -> None:
        memory = AsyncMemoryStore(AsyncInMemoryStorage())
        await memory.commit(secret("a"), session_id="s")
        assert (await memory.purge(session_id="s")).fact_ids == ("a",)
        assert await memory.storage.run(load("a")) is None

    asyncio.run(main())


def test_replay_after_a_purge(memory: MemoryStore) -> None:
    memory.commit(secret("a"))
    memory.commit(note("b", "b"))
    memory.purge(fact_id="a")
    assert replayed(memory).keys() == {"b"}
