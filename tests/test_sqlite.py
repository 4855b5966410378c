"""SQLite: several processes on one file, foreign files, the append-only log, and what statements cost."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import ChannelVersions

from memstate_langgraph import (
    MemoryStore,
    MemStateCheckpointer,
    SQLiteStorage,
    StorageBusy,
    StorageClosed,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.checkpoint_ops import (
    CheckpointRow,
    FindCheckpoints,
    FindWrites,
    JoinPool,
    Place,
    SaveCheckpoint,
)
from memstate_langgraph.ops import LastSeq, Plan, Together, reads, writes
from tests.models import note, preference, register
from tests.saver.helpers import META, checkpoint, config


def open_store(path: Path, **options: Any) -> MemoryStore:
    memory = MemoryStore(SQLiteStorage(path, **options))
    register(memory)
    return memory


def commit_all(path: Path, worker: int, start: Any) -> None:
    start.wait()
    with open_store(path) as memory:  # all open the new file at once
        for i in range(100):
            memory.commit(preference(f"topic {i}", f"by {worker}"), session_id=str(worker))


def test_four_processes_and_one_hundred_singletons(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    workers = [context.Process(target=commit_all, args=(path, i, start)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    memory = open_store(path)
    facts = memory.query("preference")
    assert len(facts) == len({fact.payload["topic"] for fact in facts}) == 100
    assert [fact.version for fact in facts] == [4] * 100
    seqs = [entry.seq for entry in reversed(memory.log())]
    assert seqs == sorted(set(seqs))
    assert len(seqs) == 400
    assert memory.verify().ok


def test_threads_lose_no_update(tmp_path: Path) -> None:
    memory = open_store(tmp_path / "state.db")
    fact_id = memory.commit(note("counter"))
    lost: list[BaseException] = []

    def count() -> None:
        from memstate_langgraph import ConflictError

        done = 0
        while done < 25:
            fact = memory.get(fact_id)
            assert fact is not None
            try:
                memory.update(fact_id, {"stars": fact.payload["stars"] + 1}, expected_version=fact.version)
                done += 1
            except ConflictError:
                pass
            except BaseException as error:
                lost.append(error)
                return

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert memory.get(fact_id).payload["stars"] == 200  # type: ignore[union-attr]


def test_the_log_refuses_to_be_changed(tmp_path: Path) -> None:
    memory = open_store(tmp_path / "state.db")
    memory.commit(note("x"))
    with sqlite3.connect(tmp_path / "state.db") as raw:
        for statement in ("UPDATE log SET reason = 'x'", "DELETE FROM log"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)
        with pytest.raises(sqlite3.IntegrityError):
            raw.execute(
                "INSERT INTO facts (id, type, namespace, ts, version, ephemeral, singleton, payload, seq) "
                "SELECT j.value, facts.type, namespace, ts, version, ephemeral, '\"k\"', payload, seq "
                'FROM facts, json_each(\'["other", "another"]\') AS j'
            )


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as raw:
        raw.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StorageError, match="did not make"):
        SQLiteStorage(foreign)
    text = tmp_path / "text.db"
    text.write_text("this is not a database, whatever its name says" * 20)
    with pytest.raises(StorageError, match=r"text\.db"):
        SQLiteStorage(text)
    with pytest.raises(StorageError):
        SQLiteStorage(tmp_path / "no such folder" / "state.db")
    newer = tmp_path / "newer.db"
    SQLiteStorage(newer).close()
    with sqlite3.connect(newer) as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="99"):
        SQLiteStorage(newer)
    with pytest.raises(ValidationFailed, match="synchronous"):
        SQLiteStorage(tmp_path / "x.db", synchronous="SOMETIMES")  # type: ignore[arg-type]


def test_a_held_file_is_reported_and_usable_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    memory = open_store(path, busy_timeout=0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageBusy, match="nothing was written"):
        memory.commit(note("x"))
    assert memory.query() == []  # readers do not wait
    holder.execute("ROLLBACK")
    memory.commit(note("x"))
    assert len(memory.query()) == 1


def test_synchronous_is_full_unless_told(tmp_path: Path) -> None:
    for options, expected in (({}, 2), ({"synchronous": "NORMAL"}, 1)):
        storage = SQLiteStorage(tmp_path / f"{expected}.db", **options)  # type: ignore[arg-type]
        assert storage.engine.writer.execute("PRAGMA synchronous").fetchone() == (expected,)
        assert storage.engine.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    memory = open_store(tmp_path / "state.db")
    memory.close()
    memory.close()
    with pytest.raises(StorageClosed):
        memory.query()


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    with open_store(tmp_path / "state.db") as memory:
        kept = memory.commit(note("kept"), session_id="s")
        memory.update(kept, {"content": "changed"})
        facts, log = memory.query(), memory.log()
    with open_store(tmp_path / "state.db") as memory:
        assert (memory.query(), memory.log()) == (facts, log)
        memory.rollback(1, session_id="s")
        assert memory.get(kept).payload["content"] == "kept"  # type: ignore[union-attr]


LIGHT = """
import sys
import memstate_langgraph
from memstate_langgraph import Fact, MemoryStore, ValidationFailed
names = {"chromadb", "langchain_chroma", "wordllama", "numpy", "langgraph.pregel", "psycopg", "redis"}
heavy = names & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_write_plan_holds_the_file_from_its_first_question(tmp_path: Path) -> None:
    """What it reads is what it changes, so nobody may write in between."""
    path = tmp_path / "state.db"
    storage = SQLiteStorage(path)
    other = sqlite3.connect(path, timeout=0.0, isolation_level=None)

    @writes
    def plan() -> Plan[int]:
        last = yield from LastSeq()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        return last

    assert storage.run(plan()) == 0
    other.execute("BEGIN IMMEDIATE")
    other.close()
    storage.close()


def test_a_step_of_a_graph_is_one_statement(tmp_path: Path) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    saver = MemStateCheckpointer(memory=memory)
    told: list[str] = []

    def is_one(call: Callable[..., Any], *args: Any) -> bool:
        told.clear()
        call(*args)
        return "BEGIN" not in [text.split()[0] for text in told] and told[0].startswith("INSERT")

    def put(version: str, **values: Any) -> bool:
        versions: ChannelVersions = dict.fromkeys(values, version)
        return is_one(saver.put, config(), checkpoint(values, versions), META, versions)

    memory.storage.engine.writer.set_trace_callback(told.append)  # type: ignore[attr-defined]
    assert put("1", small=1, another=2)
    assert put("1", text="long " * 200), "the first of its thread in chunks"
    assert put("2", text="long " * 200 + "and longer " * 100, small=2)
    assert not put("3", **{f"channel {i}": i for i in range(10)})
    at = saver.get_tuple(config()).config  # type: ignore[union-attr]
    assert is_one(saver.put_writes, at, [("a", 1), ("b", 2)], "task")
    MemStateCheckpointer(memory=memory).delete_thread("t")
    longer = "long " * 200 + "and longer " * 100 + "yet " * 300
    assert not put("4", text=longer), "its base was taken to be there"
    another = MemStateCheckpointer(memory=memory)
    found = another.get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"text": longer}
    saver = MemStateCheckpointer(memory=memory)
    assert not put("5", more=longer), "its thread was taken to have no chunks"
    found = another.get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"more": longer}
    memory.close()


def test_going_on_with_a_thread_is_one_question(tmp_path: Path) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    saver, another = MemStateCheckpointer(memory=memory), MemStateCheckpointer(memory=memory)
    told: list[str] = []
    memory.storage.engine._readers[0].set_trace_callback(told.append)  # type: ignore[attr-defined]

    def put(by: MemStateCheckpointer, version: str, **values: Any) -> None:
        versions: ChannelVersions = dict.fromkeys(values, version)
        by.put(config(), checkpoint(values, versions), META, versions)

    def got() -> tuple[dict[str, Any], int]:
        told.clear()
        found = saver.get_tuple(config())
        assert found is not None
        return found.checkpoint["channel_values"], len(told)

    held: dict[str, Any] = {"text": "long " * 200, **{f"channel {i}": i for i in range(10)}}
    put(saver, "1", **held)
    assert got() == (held, 1)
    for version in ("2", "3"):
        held["text"] += "and longer " * 100
        put(another, version, **held)
        values, asked = got()
        assert (values, asked > 1) == (held, True), "it is another's, so more is asked"
        assert got() == (held, 1)
    put(saver, "4", small=1)
    assert got() == ({"small": 1}, 1)
    found = saver.get_tuple(config())
    assert found is not None
    another.put_writes(found.config, [("small", 2)], "task")
    assert got() == ({"small": 1}, 2), "whether it is as it was, then all that belongs to it"
    assert got() == ({"small": 1}, 1), "it has pending writes, which may become more"
    memory.close()


def test_what_is_asked_without_a_transaction_is_of_one_moment(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "state.db")
    begun = 0

    @reads
    def twice() -> Plan[tuple[list[str], list[str]]]:
        nonlocal begun
        begun += 1
        first, _ = yield from Together((FindCheckpoints("t", ""), FindWrites("t", "")), final=True)
        storage.run(save())
        second = yield from FindCheckpoints("t", "")
        return [row.place.checkpoint_id for row in first], [row.place.checkpoint_id for row in second]

    @writes
    def save() -> Plan[None]:
        yield from SaveCheckpoint(CheckpointRow(Place("t", "", str(begun)), None, None, "", b"", "", b""))

    assert storage.run(twice()) == (["1"], ["1"])
    assert storage.run(twice()) == (["3", "2", "1"], ["3", "2", "1"])
    storage.close()


def test_what_asks_nothing_is_one_transaction_too(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "state.db")
    told: list[str] = []
    storage.engine.writer.set_trace_callback(told.append)

    @writes
    def join(*threads: str) -> Plan[None]:
        for name in threads:
            yield from JoinPool(name, b"pool")

    storage.run(join("a"))
    assert [text.split()[0] for text in told] == ["INSERT"], "one row needs no BEGIN and no COMMIT"
    with pytest.raises(StorageError, match="UNIQUE"):
        storage.run(join("b", "c", "b"))
    storage.run(join("c"))
    assert storage.engine.writer.execute("SELECT thread_id FROM threads").fetchall() == [("a",), ("c",)]
    storage.close()
