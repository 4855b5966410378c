"""Which commands are sent, and what is left behind."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from langgraph.types import Command

from memstate_langgraph import (
    MemoryStore,
    MemStateCheckpointer,
)
from memstate_langgraph.backends.redis_engine import ANSWERS
from memstate_langgraph.backends.redis_facts import purge
from memstate_langgraph.ops import Purge
from tests.models import note, preference
from tests.redis.helpers import open_store
from tests.servers import schema_of
from tests.stores import Unreliable, collect, hook_over
from tests.workers import ask


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
