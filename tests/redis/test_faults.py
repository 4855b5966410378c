"""Faults of a Redis server: connections lost, outcomes unknown, restarts, refusals, clusters."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from memstate_langgraph import (
    MemoryStore,
    MemStateCheckpointer,
    OutcomeUnknown,
    RedisStorage,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.backends.redis_engine import Exchange
from tests.models import note, preference
from tests.redis.helpers import commits, open_store
from tests.servers import RedisServer
from tests.stores import assert_in_step
from tests.wire import spy
from tests.workers import Writers, ask, wait_until


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
    with Writers(memory) as writers:
        for _ in range(3):
            writers.get_on(20)
            server.kill()
            server.start()
        writers.get_on(20)
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
