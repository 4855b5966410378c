"""Redis: faults of a server, outcomes, several workers, turns, and which commands are sent."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import redis
from langgraph.types import Command
from redis import asyncio as aredis

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncRedisStorage,
    ConflictError,
    Constraint,
    MemoryStore,
    MemStateCheckpointer,
    OutcomeUnknown,
    RedisStorage,
    StorageBusy,
    StorageClosed,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.backends.redis_engine import ANSWERS, FEW, READS_BEFORE_TURN, Exchange
from memstate_langgraph.backends.redis_facts import purge
from memstate_langgraph.backends.urls import storage_from
from memstate_langgraph.checkpoint_ops import (
    CheckpointRow,
    FindCheckpoints,
    JoinPool,
    Place,
    Pool,
    SaveCheckpoint,
    SaveWrites,
    WriteRow,
)
from memstate_langgraph.ops import Count, LastSeq, Plan, Purge, Reserve, Work, reads, writes
from tests.models import Note, Preference, note, preference
from tests.postgres.helpers import ask, wait_until
from tests.servers import RedisServer, redis_url, schema_of
from tests.stores import Unreliable, assert_in_step, collect, hook_over


def open_store(url: Any, folder: Path, *hooks: object, **options: Any) -> MemoryStore:
    memory = MemoryStore(RedisStorage(url, **{"prefix": schema_of(folder), **options}), hooks)
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return memory


@pytest.fixture
def url() -> str:
    return redis_url()


@pytest.fixture
def memory(url: str, tmp_path: Path) -> Iterator[MemoryStore]:
    with open_store(url, tmp_path) as memory:
        yield memory


@pytest.fixture
def admin(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may hurt."""
    if "MEMSTATE_REDIS_URL" in os.environ:
        pytest.skip("hurts a server")
    with tempfile.TemporaryDirectory(prefix="memstate-") as folder:  # a socket's path must be short
        server = RedisServer(Path(folder), "--appendonly", "yes", "--appendfsync", "always")
        yield server
        server.kill()


@pytest.fixture
def clustered(tmp_path: Path) -> Iterator[RedisServer]:
    """A node of a cluster, without slots yet."""
    with tempfile.TemporaryDirectory(prefix="memstate-") as folder:
        server = RedisServer(Path(folder), "--cluster-enabled", "yes")
        yield server
        server.kill()


# --- faults


def spy(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, around: Callable[[Any, Exchange, Any], Any]) -> None:
    """Put something around every exchange of a store with its server."""
    original = RedisStorage._answer

    def answer(self: RedisStorage, step: Any) -> Any:
        if isinstance(step, Exchange) and self._server is memory.storage._server:  # type: ignore[attr-defined]
            return around(self, step, lambda: original(self, step))
        return original(self, step)

    monkeypatch.setattr(RedisStorage, "_answer", answer)


def commits(memory: MemoryStore, step: Exchange) -> bool:
    return step.commands[-1][:2] == ("EVALSHA", memory.storage.engine._commit.sha)  # type: ignore[attr-defined]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_killed_at_every_moment(
    memory: MemoryStore, admin: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    memory.commit(preference("food", "fish"), idempotency_key="first")
    exchanges = hurt_at = 0

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        nonlocal exchanges
        exchanges += 1
        if exchanges != hurt_at:
            return go()
        (number,) = storage._exchange(step.wire, [("CLIENT", "ID")])
        if moment == "after":
            go()  # done, but we shall not hear of it
        admin.execute_command("CLIENT", "KILL", "ID", number)
        if moment == "after":
            raise redis.ConnectionError("killed")
        return go()

    spy(memory, monkeypatch, around)
    expected = 1
    for hurt_at in range(1, 30):
        exchanges = 0
        memory.commit(preference("food", f"on {hurt_at}"), session_id="s")
        expected += 1
        if exchanges < hurt_at:
            break
        exchanges = 100
        (fact,) = memory.query()
        assert fact.version == expected, f"hurt {moment} exchange {hurt_at}: neither lost nor repeated"
    assert hurt_at > 3
    exchanges = 100
    assert len(memory.log()) == expected
    assert_in_step(memory)


def test_a_commit_that_arrives_late_changes_nothing(
    memory: MemoryStore, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        if commits(memory, step) and not held:
            held.append(step.commands[-1])
            raise redis.TimeoutError("nobody knows")
        return go()

    spy(memory, monkeypatch, around)
    fact_id = memory.commit(note("once"))
    assert admin.execute_command(*held[0]) == [b"given up"]
    saver = MemStateCheckpointer(memory=memory)
    held.clear()
    saver.delete_thread("nothing is read back here")
    assert [fact.id for fact in memory.query()] == [fact_id]
    assert len(memory.log()) == 1
    assert_in_step(memory)


def test_an_outcome_that_nobody_can_tell_is_called_so(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(url, tmp_path, busy_timeout=0.5) as memory:
        lost = False

        def around(storage: Any, step: Exchange, go: Any) -> Any:
            nonlocal lost
            if lost or commits(memory, step):
                if not lost:
                    go()
                lost = True
                raise redis.ConnectionError("the network is gone")
            return go()

        spy(memory, monkeypatch, around)
        with pytest.raises(OutcomeUnknown, match="look before trying again"):
            memory.commit(note("x"))
        monkeypatch.undo()
        assert len(memory.query()) == len(memory.log()) == 1, "here it had taken place"


def test_a_server_that_is_slow_to_answer(server: RedisServer, tmp_path: Path) -> None:
    with open_store(f"{server.url}?socket_timeout=0.1", tmp_path) as memory, server.client() as admin:
        memory.commit(note("before"))
        for _ in range(3):
            admin.execute_command("CLIENT", "PAUSE", "500", "WRITE")
            memory.commit(note("during"))
        assert len(memory.query()) == len(memory.log()) == 4
        assert_in_step(memory)


def test_a_server_that_is_not_there() -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match="cannot connect") as raised:
        RedisStorage("redis://me:secret@127.0.0.1:1/0")
    assert "secret" not in str(raised.value)
    assert time.monotonic() - began < 5
    for wrong in ("http://localhost", "redis://localhost:port", "redis://localhost/?nonsense=1", 5, None):
        with pytest.raises(ValidationFailed, match="url"):
            RedisStorage(wrong)  # type: ignore[arg-type]


def test_a_wrong_password_is_no_matter_of_patience(server: RedisServer, tmp_path: Path) -> None:
    with open_store(server.url, tmp_path) as memory, server.client() as admin:
        admin.config_set("requirepass", "secret")
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"(?i)auth"):
            RedisStorage(server.url)
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(StorageError, match=r"(?i)auth"):
            memory.commit(note("x"))
        assert time.monotonic() - began < 5
        admin.config_set("requirepass", "")
        memory.commit(note("x"))


def test_a_server_killed_and_started_under_writers(server: RedisServer, tmp_path: Path) -> None:
    memory = open_store(server.url, tmp_path)
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
    for _ in range(3):
        known = len(acknowledged)
        wait_until(lambda known=known: len(acknowledged) > known + 20 or failed != [])  # type: ignore[misc]
        server.kill()
        server.start()
    known = len(acknowledged)
    wait_until(lambda: len(acknowledged) > known + 20 or failed != [])
    stop.set()
    for writer in writers:
        writer.join(30)
    assert failed == []
    assert {fact.id for fact in memory.query()} == set(acknowledged)
    assert len(memory.log()) == len(acknowledged)
    assert_in_step(memory)
    assert memory.verify().warnings == ()
    memory.close()


def test_a_server_out_of_memory(server: RedisServer, tmp_path: Path) -> None:
    with open_store(server.url, tmp_path) as memory, server.client() as admin:
        fact_id = memory.commit(note("before"))
        saver = MemStateCheckpointer(memory=memory)
        ask(saver, "t", "hello")
        entries = len(memory.log())
        admin.config_set("maxmemory", 1)
        for refused in (
            lambda: memory.commit(note("refused")),
            lambda: memory.update(fact_id, {"content": "refused"}),
            lambda: memory.rollback(1),
            lambda: ask(saver, "u", "refused"),
        ):
            with pytest.raises(StorageError, match="out of memory"):
                refused()
        assert [fact.payload["content"] for fact in memory.query()] == ["before"]
        assert len(memory.log()) == entries
        assert_in_step(memory)
        assert len(list(saver.list({"configurable": {"thread_id": "t"}}))) == 2
        saver.delete_thread("t")
        assert list(saver.list(None)) == []
        admin.config_set("maxmemory", 0)
        memory.commit(note("after"))
        assert len(memory.query()) == 2


def test_a_server_that_became_a_replica(server: RedisServer, tmp_path: Path) -> None:
    with open_store(server.url, tmp_path, busy_timeout=1.0) as memory, server.client() as admin:
        memory.commit(note("before"))
        admin.config_set("replica-serve-stale-data", "yes")
        admin.replicaof("127.0.0.1", "1")
        with pytest.raises(StorageError, match="read-only"):
            memory.commit(note("refused"))
        assert len(memory.query()) == len(memory.log()) == 1
        assert memory.verify().ok, "what is only read, also in several questions, needs no primary"
        threading.Timer(0.3, lambda: admin.replicaof("NO", "ONE")).start()
        memory.commit(note("after"))
        assert len(memory.query()) == len(memory.log()) == 2


def test_the_scripts_of_a_server_may_be_forgotten(memory: MemoryStore, admin: Any) -> None:
    memory.commit(note("x"))
    admin.script_flush()
    assert len(memory.query()) == 1
    admin.script_flush()
    memory.commit(note("y"))
    assert len(memory.log()) == 2


def test_a_node_that_has_the_slot_of_a_store(clustered: RedisServer, tmp_path: Path) -> None:
    with clustered.client() as admin:
        admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        wait_until(lambda: admin.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        with open_store(clustered.url, tmp_path) as memory:
            memory.commit(preference("food", "fish"))
            memory.rollback(1)
            ask(MemStateCheckpointer(memory=memory), "t", "hello")
            assert_in_step(memory)
        slots = {admin.execute_command("CLUSTER", "KEYSLOT", key) for key in admin.scan_iter()}
        assert len(slots) == 1


def test_a_node_that_has_not_the_slot_of_a_store(clustered: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="CLUSTERDOWN"):
        open_store(clustered.url, tmp_path)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            redis.exceptions.MovedError("5 10.0.0.1:7000", status_code="MOVED"),
            "open the storage with the URL of that node",
        ),
        (redis.exceptions.ClusterCrossSlotError("Keys", status_code="CROSSSLOT"), "is a node of a cluster"),
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF"),
        (redis.exceptions.NoPermissionError("this user has no permissions", status_code="NOPERM"), "NOPERM"),
        (redis.ResponseError("WRONGTYPE Operation against a key"), "WRONGTYPE"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_the_server_refuses_is_told(
    memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, answer: Exception, said: str
) -> None:
    spy(memory, monkeypatch, lambda storage, step, go: [answer] * len(step.commands))
    with pytest.raises(StorageError, match=said):
        memory.commit(note("x"))
    monkeypatch.undo()
    memory.commit(note("x"))
    assert len(memory.log()) == 1


def test_a_cluster_client_is_refused() -> None:
    with pytest.raises(ValidationFailed, match="cluster"):
        RedisStorage(object.__new__(redis.RedisCluster))  # type: ignore[arg-type]


# --- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"appendonly": "no"}, ["appendonly is off"]),
        ({"appendfsync": "everysec"}, ["appendfsync everysec"]),
        ({"appendfsync": "no"}, ["appendfsync no"]),
        ({"appendfsync": "always"}, []),
        ({"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}, ["maxmemory-policy allkeys-lru"]),
        ({"maxmemory": "1gb", "maxmemory-policy": "noeviction"}, []),
    ],
    ids=str,
)
def test_verify_tells_what_the_server_promises(
    server: RedisServer, tmp_path: Path, settings: dict[str, str], said: list[str]
) -> None:
    with server.client() as admin:
        for name, value in settings.items():
            admin.config_set(name, value)
    with open_store(server.url, tmp_path) as memory:
        report = memory.verify()
    assert report.ok
    assert len(report.warnings) == len(said)
    for warning, words in zip(report.warnings, said, strict=True):
        assert words in warning


@pytest.mark.parametrize("name", ["", "a{b}", "}", "x" * 101, "a\0b", None, 1])
def test_prefixes_are_checked(url: str, name: Any) -> None:
    with pytest.raises(ValidationFailed, match="prefix: must be"):
        RedisStorage(url, prefix=name)


def test_prefixes_share_a_server(url: str, tmp_path: Path) -> None:
    with open_store(url, tmp_path / "a") as one, open_store(url, tmp_path / "b") as other:
        one.commit(note("in a"))
        assert [fact.payload["content"] for fact in one.query()] == ["in a"]
        assert (other.query(), other.log()) == ([], [])
        assert one.storage.identity != other.storage.identity


def test_newer_layouts_are_refused(memory: MemoryStore, url: str, tmp_path: Path, admin: Any) -> None:
    admin.hset(f"{{{schema_of(tmp_path)}}}:meta", "version", "99")
    with pytest.raises(StorageError, match="99"):
        open_store(url, tmp_path)


def test_a_storage_by_its_url(url: str, tmp_path: Path) -> None:
    named = f"{url}?prefix={schema_of(tmp_path)}"
    with pytest.raises(StorageError, match="there is no such storage"):
        storage_from(named, must_exist=True)
    with MemoryStore(storage_from(named)) as memory:
        memory.commit(note("x"))
    with MemoryStore(storage_from(named, must_exist=True)) as memory:
        assert len(memory.query()) == 1
    with MemStateCheckpointer.from_conn_string(named) as saver:
        assert "__interrupt__" in ask(saver, "t", "hello")


# --- clients and connections


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 2}, {"protocol": 3}], ids=str)
def test_a_client_is_used_as_it_is_and_left_as_it_was(url: str, tmp_path: Path, options: dict[str, Any]) -> None:
    with redis.Redis.from_url(url, **options) as client:
        with open_store(client, tmp_path, hook_over(Unreliable())) as memory:
            memory.commit(preference("food", "Käse"))
            memory.commit(preference("food", "fish"))
            memory.rollback(1)
            assert_in_step(memory)
            ask(MemStateCheckpointer(memory=memory), "t", "hello")
            assert memory.storage._server._pool is None, "no other connections were opened"  # type: ignore[attr-defined]
        with pytest.raises(StorageClosed):
            memory.query()
        assert client.ping()


async def test_an_async_client_is_used_in_its_loop(url: str, tmp_path: Path) -> None:
    async with aredis.Redis.from_url(url, decode_responses=True) as client:
        storage = AsyncRedisStorage(client, prefix=schema_of(tmp_path))
        memory = AsyncMemoryStore(storage)
        memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
        await asyncio.gather(*(memory.commit(preference("food", f"by {i}")) for i in range(20)))
        (fact,) = await memory.query()
        assert fact.version == 20
        with pytest.raises(ConflictError):
            await memory.update(fact.id, {"content": "x"}, expected_version=1)
        call = asyncio.ensure_future(memory.commit(preference("food", "cancelled")))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await memory.get(fact.id)).version in (20, 21)  # type: ignore[union-attr]
        assert (await memory.verify()).ok
        assert storage._server._pool is None, "no other connections were opened"
        assert (await asyncio.to_thread(MemoryStore(storage.sync()).query))[0].id == fact.id
        await memory.close()
        assert await client.ping()
        with pytest.raises(ValidationFailed, match="AsyncRedisStorage"):
            RedisStorage(client)


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
        wire = pool.get_connection()
        with pytest.raises(StorageBusy, match="all connections"):
            memory.commit(note("x"))
        pool.release(wire)
        memory.commit(note("x"))
        assert len(memory.log()) == 1


FORGOTTEN = """
import asyncio, sys
from memstate_langgraph import AsyncMemoryStore, AsyncRedisStorage, Fact, MemoryStore, RedisStorage

async def main():
    store = AsyncMemoryStore(AsyncRedisStorage(sys.argv[1], prefix=sys.argv[2]))
    await store.commit(Fact(type="x", payload={}))

asyncio.run(main())
MemoryStore(RedisStorage(sys.argv[1], prefix=sys.argv[2])).commit(Fact(type="x", payload={}))
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


# --- several workers


def test_a_reading_plan_sees_one_state(memory: MemoryStore) -> None:
    seen: list[int] = []

    def plan() -> Plan[tuple[int, int]]:
        seen.append((yield from LastSeq()))
        if len(seen) == 1:
            memory.commit(note("in between"))
        return seen[-1], (yield from Count()).entries

    assert memory.storage.run(Work(plan, write=False)) == (1, 1)
    assert seen == [0, 1]


def test_a_writing_plan_that_was_overtaken_begins_again(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    seen: list[bytes | None] = []

    def join(pool: bytes, before: Callable[[], None]) -> Plan[None]:
        held = yield from Pool("t")
        before()
        if held is None:
            yield from JoinPool("t", pool)

    def overtaken() -> None:
        seen.append(storage.run(reads(lambda: iter(Pool("t")))()))
        if len(seen) == 1:
            storage.run(writes(join)(b"theirs", lambda: None))

    storage.run(writes(join)(b"ours", overtaken))
    assert seen == [None, b"theirs"]


def test_a_plan_over_many_threads_sees_one_state(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    attempts: list[int] = []

    def join(thread: str) -> Plan[None]:
        yield from JoinPool(thread, b"pool")

    def plan() -> Plan[list[bytes | None]]:
        attempts.append(0)
        found = []
        for i in range(2 * FEW):
            if len(attempts) == 1 and i == 2 * FEW - 1:
                storage.run(writes(join)("t 0"))
            found.append((yield from Pool(f"t {i}")))
        return found

    assert storage.run(Work(plan, write=False)) == [b"pool"] + [None] * (2 * FEW - 1)
    assert len(attempts) == 2


def test_what_was_read_in_passing_is_read_anew_when_it_matters(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    row = CheckpointRow(Place("t", "", "1"), None, None, "kind", b"", "kind", b"")

    def plan() -> Plan[int]:
        yield from SaveCheckpoint(row)  # takes note of the log's position, and does not rely on it
        memory.commit(note("in between"))
        return (yield from Reserve(1))

    assert storage.run(Work(plan, write=True)) == 2
    assert storage.run(Work(lambda: iter(FindCheckpoints("t")), write=False))[0].position == 0


def test_a_checkpoint_is_stored_by_who_sees_what_came_before_it(memory: MemoryStore) -> None:
    """What waits for a checkpoint is looked for after it was stored, so nobody may store a result unseen."""
    storage: Any = memory.storage
    row = CheckpointRow(Place("t", "", "1"), None, None, "kind", b"", "kind", b"", position=0)
    result = WriteRow(Place("t", "", "1"), "task", 0, "", "channel", "kind", b"")
    looked: list[int] = []

    def save() -> Plan[None]:
        yield from SaveWrites((result,))

    def plan() -> Plan[None]:
        yield from SaveCheckpoint(row)
        looked.append(len(results))
        if not results:
            storage.run(writes(save)())
            results.append(result)

    results: list[WriteRow] = []
    storage.run(Work(plan, write=True))
    assert looked == [0, 1]


def test_the_threads_of_a_list_are_relied_on(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    saver = MemStateCheckpointer(memory=memory)
    ask(saver, "t", "hello")
    listed: list[int] = []

    def plan() -> Plan[bytes | None]:
        listed.append(len((yield from FindCheckpoints())))
        if len(listed) == 1:
            saver.delete_thread("t")
        return (yield from Pool("t"))

    assert storage.run(Work(plan, write=False)) is None
    assert listed == [2, 0], "never a checkpoint without what belongs to it"


def test_a_turn_taken_before_the_commit_holds_it_up(
    memory: MemoryStore, tmp_path: Path, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = f"{{{schema_of(tmp_path)}}}:turn:log"
    refused = 0

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        nonlocal refused
        if commits(memory, step) and not refused:
            refused += 1
            admin.set(turn, "somebody else", px=200)
            answers = go()
            assert answers[-1][0] == b"taken"
            return answers
        return go()

    spy(memory, monkeypatch, around)
    memory.commit(note("x"))
    assert refused == 1
    assert admin.get(turn) is None
    assert len(memory.log()) == 1


def test_who_has_the_turn_goes_first(url: str, tmp_path: Path, admin: Any) -> None:
    turn = f"{{{schema_of(tmp_path)}}}:turn:log"
    with open_store(url, tmp_path, busy_timeout=0.4) as memory:
        admin.set(turn, "somebody else", px=200)
        memory.commit(note("after the turn had expired"))
        assert admin.get(turn) is None
        admin.set(turn, "somebody else", px=60_000)
        with pytest.raises(StorageBusy, match="nothing was written"):
            memory.commit(note("refused"))
        assert len(memory.query()) == 1, "readers do not wait"
        saver = MemStateCheckpointer(memory=memory)
        assert "__interrupt__" in ask(saver, "t", "hello"), "nor who changes something else"
        admin.delete(turn)
        memory.commit(note("x"))
        assert len(memory.log()) == 2


def test_a_long_reading_ends_while_others_write(url: str, tmp_path: Path) -> None:
    attempts: list[int] = []
    with open_store(url, tmp_path) as memory, open_store(url, tmp_path) as other:

        def plan() -> Plan[int]:
            attempts.append(0)
            for _ in range(20):
                yield from LastSeq()
                if len(attempts) < 3 * READS_BEFORE_TURN:
                    thread = threading.Thread(target=other.commit, args=(note("x"),))
                    thread.start()
                    thread.join(0.02)
                last = (yield from Count()).entries
            return last

        assert memory.storage.run(Work(plan, write=False)) > READS_BEFORE_TURN
        assert len(attempts) == READS_BEFORE_TURN + 2, "the last one had the turn"
        wait_until(lambda: len(other.query()) == READS_BEFORE_TURN + 1 + 20)
        assert_in_step(other)


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
            assert memory.verify().ok, "a long reading ends while others write"
        assert [worker.is_alive() for worker in workers] == [False] * 4 + [True] * 4
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10)
    facts = memory.query("preference")
    assert len(facts) == len({fact.payload["topic"] for fact in facts}) <= 3
    assert_in_step(memory)
    entries = memory.log()
    assert [entry.seq for entry in reversed(entries)] == list(range(1, len(entries) + 1))
    assert set(Counter(entry.tx for entry in entries).values()) <= {1, 2}
    memory.commit(preference("topic 0", "still works"))
    memory.close()


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


# --- which commands are sent


@contextmanager
def watched(admin: Any, prefix: str) -> Iterator[list[list[str]]]:
    """The commands that the server runs on the keys of a prefix, also inside scripts."""
    seen: list[list[str]] = []
    with admin.monitor() as monitor:
        yield seen
        admin.echo("the end")
        for told in monitor.listen():
            if "the end" in told["command"]:
                return
            if prefix in told["command"]:
                seen.append([told["client_type"], *told["command"].split(" ")])


def exercise(memory: MemoryStore, name: str) -> None:
    """Something of everything, on a handful of facts and one thread."""
    memory.commit(preference(name, "fish"), session_id=name, idempotency_key=name)
    fact_id = memory.commit(note("x", id=f"note {name}"), session_id=name)
    memory.update(fact_id, {"content": "y"}, session_id=name)
    memory.query("note", session_id=name, limit=3)
    memory.query("note", limit=3)
    memory.query(filters={"id": fact_id})
    memory.get(fact_id)
    memory.history(fact_id)
    memory.log(session_id=name, limit=3)
    memory.log(limit=3)
    memory.search("y", limit=1)
    memory.rollback(1, session_id=name)
    memory.rollback(1)
    saver = MemStateCheckpointer(memory=memory)
    ask(saver, name, "hello")
    ask(saver, name, Command(resume="yes"))
    fresh = MemStateCheckpointer(memory=memory)
    thread: Any = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
    assert fresh.get_tuple(thread) is not None
    newest, *_ = fresh.list(thread, limit=3)
    list(fresh.list(None, limit=3))
    fresh.get_delta_channel_history(config=newest.config, channels=["messages"])
    fresh.copy_thread(name, f"{name} 2")
    fresh.prune([name], strategy="keep_latest")
    fresh.delete_thread(f"{name} 2")
    collect(memory)


def test_the_log_is_only_added_to_and_nothing_is_scanned(url: str, tmp_path: Path, admin: Any) -> None:
    prefix = schema_of(tmp_path)
    with open_store(url, tmp_path, hook_over(Unreliable(), grace=0.0, late=0.0)) as memory:
        with watched(admin, prefix) as seen:
            exercise(memory, "a")
            memory.verify()
            memory.repair()
            memory.discard_session("a")
            memory.rollback(2)
        names = {command.upper() for _, command, *_ in seen}
        assert {"EVALSHA", "HMGET", "ZRANGE", "HSETNX"} <= names
        assert not names & {"KEYS", "SCAN", "HSCAN", "ZSCAN", "SSCAN", "SMEMBERS", "FLUSHALL", "FLUSHDB", "RENAME"}
        log = f"{{{prefix}}}:log"
        on_log = {command.upper() for _, command, *keys in seen if log in keys[:1]}
        assert on_log - {"HMGET", "HLEN"} == {"HSETNX"}
    for name in ("ask", "commit", "settle"):
        script = resources.files("memstate_langgraph.backends").joinpath(f"lua/{name}.lua").read_text("utf-8")
        assert not re.search(r"'(KEYS|\w*SCAN)'", script)


def test_what_is_deleted_leaves_nothing_behind(url: str, tmp_path: Path, admin: Any) -> None:
    prefix = f"{{{schema_of(tmp_path)}}}:"
    with open_store(url, tmp_path, hook_over(Unreliable(), grace=0.0, late=0.0)) as memory:
        exercise(memory, "a")
        memory.commit(note("x", ephemeral=True), session_id="a")
        for fact in memory.query():
            memory.delete(fact.id)
        saver = MemStateCheckpointer(memory=memory)
        saver.delete_thread("a")
        collect(memory)
    left = {key.decode().removeprefix(prefix).split(":")[0] for key in admin.scan_iter(f"{prefix}*")}
    assert left <= {"meta", "heads", "log", "steps", "stamp", "marker", "baton", "vectors"}
    assert {key.decode() for key in admin.scan_iter(f"{prefix}vectors*")} <= {f"{prefix}vectors:names"}


def held(admin: Any, prefix: str) -> bytes:
    """Every key of a store, and all that it holds."""
    found: list[bytes] = []
    for key in admin.scan_iter(f"{{{prefix}}}:*"):
        found.append(key)
        if admin.type(key) == b"hash":
            found += [part for pair in admin.hgetall(key).items() for part in pair]
        elif admin.type(key) == b"zset":
            found += admin.zrange(key, 0, -1)
    return b"\n".join(found)


def test_what_is_purged_is_in_no_key(url: str, tmp_path: Path, admin: Any) -> None:
    prefix, vectors = schema_of(tmp_path), Unreliable()
    with open_store(url, tmp_path, hook_over(vectors, grace=3600.0)) as memory:
        memory.commit(note("xyzzy", id="a"), session_id="s", reason="xyzzy", idempotency_key="xyzzy", ttl=3600)
        memory.update("a", {"content": "xyzzy again"})
        memory.commit(preference("xyzzy", "xyzzy"), session_id="s")
        ask(MemStateCheckpointer(memory), "s", "xyzzy")
        assert held(admin, prefix).count(b"xyzzy") > 8
        assert len(memory.purge(session_id="s", checkpoints=True).fact_ids) == 2
    assert b"xyzzy" not in held(admin, prefix)
    assert vectors.store == {}


def test_a_purge_that_dies_did_nothing(
    memory: MemoryStore, tmp_path: Path, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.commit(note("xyzzy", id="a"), session_id="s")
    before = held(admin, schema_of(tmp_path))

    def die(op: Any, view: Any) -> Any:
        yield from purge(op, view)
        raise KeyboardInterrupt

    monkeypatch.setitem(ANSWERS, Purge, die)
    with pytest.raises(KeyboardInterrupt):
        memory.purge(fact_id="a")
    assert held(admin, schema_of(tmp_path)) == before
    assert [entry.purged for entry in memory.log()] == [False]


def test_what_has_ended_is_found_without_the_rest(url: str, tmp_path: Path, admin: Any) -> None:
    prefix = schema_of(tmp_path)
    with open_store(url, tmp_path) as memory:
        memory.commit_many([note(f"n{i}", id=f"n{i}") for i in range(300)])
        memory.commit(note("brief", id="brief"), ttl=0.01)
        memory.commit(note("long", id="long"), ttl=3600)
        time.sleep(0.02)
        with watched(admin, prefix) as seen:
            assert memory.sweep().facts == {"note": 1}
        assert sum(len(part) for command in seen for part in command) < 20_000
        assert admin.zrange(f"{{{prefix}}}:facts:ends", 0, -1) == [b"long"]


def test_cost_does_not_follow_how_much_there_is(url: str, tmp_path: Path, admin: Any) -> None:
    prefix = schema_of(tmp_path)

    def cost() -> tuple[int, int]:
        """Commands, and the size of what was sent."""
        with watched(admin, prefix) as seen:
            exercise(memory, f"cost{len(costs)}")
        return len(seen), sum(len(part) for command in seen for part in command)

    costs: list[tuple[int, int]] = []
    with open_store(url, tmp_path, hook_over(Unreliable())) as memory:
        exercise(memory, "first")
        costs.append(cost())
        memory.close()
    with open_store(url, tmp_path) as memory:
        memory.commit_many([note(f"n{i}", id=f"n{i}") for i in range(3000)], session_id="s")
        memory.commit_many([preference(f"t{i}", "x") for i in range(500)], session_id="s")
        for i in range(50):
            ask(MemStateCheckpointer(memory=memory), f"other {i}", "hello")
    with open_store(url, tmp_path, hook_over(Unreliable())) as memory:
        costs.append(cost())
    assert costs[1][0] < costs[0][0] * 1.1
    assert costs[1][1] < costs[0][1] * 1.2
