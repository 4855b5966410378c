"""Cost follows the change, not the history: counted in steps of SQLite's virtual machine, not in seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from langgraph.checkpoint.base import ChannelVersions
from langgraph.store.base import PutOp

from memstate_langgraph import MemoryStore, MemStateCheckpointer, MemStateStore, SQLiteStorage
from tests.models import note, preference, register
from tests.saver.helpers import META, checkpoint, config
from tests.stores import Unreliable, collect, hook_over


def filled(path: Path, size: int) -> MemoryStore:
    memory = MemoryStore(SQLiteStorage(path, synchronous="OFF"), [hook_over(Unreliable(), grace=3600.0)])
    register(memory)
    memory.commit(note("the first", "first"), session_id="long ago")
    store = MemStateStore(memory)
    store.batch([PutOp(("small",), str(i), {"n": i}) for i in range(10)])
    store.batch([PutOp(("large",), str(i), {"n": i}) for i in range(size // 4)])
    for start in range(0, size, 500):
        batch = range(start, min(start + 500, size))
        memory.commit_many([note(f"number {i}", f"n{i}") for i in batch], session_id="s")
        memory.commit_many([preference(f"r{i}", "on a topic") for i in batch], session_id="t")
    for i in range(size // 4):
        memory.update("n0", {"content": f"again {i}"}, session_id="s")
    return memory


def connections_of(memory: MemoryStore) -> list[sqlite3.Connection]:
    engine = memory.storage.engine  # type: ignore[attr-defined]
    return [engine.writer, *engine._readers]


def steps(memory: MemoryStore, action: Callable[[], object]) -> int:
    """Virtual machine steps of all statements of an action, in tens."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    connections = connections_of(memory)
    for connection in connections:
        connection.set_progress_handler(tick, 10)
    action()
    for connection in connections:
        connection.set_progress_handler(None, 0)
    return count


ACTIONS: dict[str, Callable[[MemoryStore], object]] = {
    "commit": lambda m: m.commit(note("new")),
    "commit with a key": lambda m: m.commit(note("new"), idempotency_key="k"),
    "new singleton": lambda m: m.commit(preference("new", "on a topic")),
    "known singleton": lambda m: m.commit(preference("r1", "on a topic"), session_id="t"),
    "new item": lambda m: MemStateStore(m).put(("large",), "new", {}),
    "known item": lambda m: MemStateStore(m).put(("large",), "1", {}),
    "an item": lambda m: MemStateStore(m).get(("large",), "1"),
    "newest items": lambda m: MemStateStore(m).search(()),
    "all items of a small tenant": lambda m: MemStateStore(m).search(("small",), limit=20),
    "namespaces of a small tenant": lambda m: MemStateStore(m).list_namespaces(prefix=("small",)),
    "update": lambda m: m.update("n1", {"content": "changed"}),
    "update of what changed often": lambda m: m.update("n0", {"content": "changed"}),
    "delete": lambda m: m.delete("n2"),
    "ephemeral": lambda m: m.commit(note("new"), session_id="e", ephemeral=True),
    "promote": lambda m: m.promote("e"),
    "discard": lambda m: m.discard_session("s"),
    "rollback": lambda m: m.rollback(1),
    "rollback of a session": lambda m: m.rollback(1, session_id="s"),
    "rollback of a session silent since": lambda m: m.rollback(1, session_id="long ago"),
    "transaction": lambda m: m.commit_many([note("one"), note("two")]),
    "get": lambda m: m.get("n3"),
    "log": lambda m: m.log(limit=5),
    "log of a session": lambda m: m.log(session_id="t", limit=5),
    "history": lambda m: m.history("n3"),
    "query": lambda m: m.query("note", limit=5),
    "query in a namespace": lambda m: m.query("note", namespace=(), limit=5),
    "query by ids": lambda m: m.query("note", filters={"id": {"$in": ["n3", "n4"]}}),
    "query by id": lambda m: m.query(filters={"id": "n3"}),
    "search": lambda m: m.search("number", limit=5),
    "collect": collect,
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryStore, MemoryStore]:
    folder = tmp_path_factory.mktemp("costs")
    small, large = filled(folder / "small.db", 100), filled(folder / "large.db", 2000)
    for memory in (small, large):
        memory.query(limit=1)  # a reading connection exists now
    return small, large


@pytest.mark.parametrize("action", ACTIONS)
def test_cost_does_not_grow(stores: tuple[MemoryStore, MemoryStore], action: str) -> None:
    small, large = (steps(memory, lambda memory=memory: ACTIONS[action](memory)) for memory in stores)  # type: ignore[misc]
    assert large <= small * 1.5 + 5, f"{action}: {small * 10} steps with 200 facts, {large * 10} with 4,000"


@pytest.mark.parametrize("knows", [True, False], ids=["known", "unknown"])
def test_going_on_with_a_thread_does_not_cost_its_history(tmp_path: Path, knows: bool) -> None:
    def counted(turns: int) -> int:
        with MemStateCheckpointer.from_conn_string(tmp_path / f"{turns}.db") as saver:
            for i in range(turns):
                held = {"messages": f"message {i} " * 20, "count": i}
                versions: ChannelVersions = dict.fromkeys(held, f"{i:06}")
                saver.put(config(), checkpoint(held, versions), META, versions)
            memory = saver.memory
            assert isinstance(memory, MemoryStore)
            reader = saver if knows else MemStateCheckpointer(memory)
            return steps(memory, lambda: reader.get_tuple(config()))

    assert counted(200) <= counted(5) * 1.5 + 5


def test_query_plans_use_indexes(stores: tuple[MemoryStore, MemoryStore]) -> None:
    memory, _ = stores
    engine = memory.storage.engine  # type: ignore[attr-defined]
    statements: list[str] = []
    for connection in connections_of(memory):
        connection.set_trace_callback(statements.append)
    for action in ACTIONS.values():
        action(memory)
    for connection in connections_of(memory):
        connection.set_trace_callback(None)
    asked = {text for text in statements if text.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")}
    assert len(asked) > 40
    for statement in asked:
        for *_, plan in engine.writer.execute("EXPLAIN QUERY PLAN " + statement):
            # A scan in the order of an index that a LIMIT stops early is what reads the newest of all.
            limited = "LIMIT" in statement or plan == "SCAN facts USING INDEX facts_seq" or "max(seq)" in statement
            free = plan.startswith(("SCAN json_each", "SCAN wanted VIRTUAL", "SCAN CONSTANT"))
            assert free or limited or not plan.startswith("SCAN"), f"{plan}\n{statement}"
            few = "namespace BETWEEN" in statement or "id IN" in statement  # they are sorted
            assert few or "TEMP B-TREE" not in plan, f"{plan}\n{statement}"
