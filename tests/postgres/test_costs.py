"""PostgreSQL: what statements cost, and space that is given back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.types import Command
from psycopg_pool import AsyncConnectionPool

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncPostgresStorage,
    MemoryStore,
    MemStateCheckpointer,
    StorageBusy,
    ValidationFailed,
)
from memstate_langgraph.backends.postgres_engine import FLUSH, Exchange, merged
from memstate_langgraph.backends.statements import Batch, Sql, Statement
from tests.models import note, preference
from tests.postgres.helpers import commits, open_store
from tests.servers import behind_its_back, schema_of
from tests.stores import Unreliable, hook_over
from tests.wire import spy
from tests.workers import ask


def nodes(plan: dict[str, Any], limited: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    limited = limited or plan["Node Type"] == "Limit"
    yield plan, limited
    for child in plan.get("Plans", ()):
        yield from nodes(child, limited)


def looks_up(text: str, plan: dict[str, Any]) -> None:
    """Nothing is read that the statement does not need."""
    for node, limited in nodes(plan):
        said = f"{text}\n{json.dumps(node, indent=1)[:800]}"
        assert node["Node Type"] != "Seq Scan", said
        if "Index" in node["Node Type"] and "max(seq)" not in text:
            assert "Index Cond" in node or (limited and "Filter" not in node), said
        # what picks the rows out of many must be in the index, not tried on each row
        assert not re.search(r"\b(session_id|namespace|singleton|thread_id|fact_id|tx)\b", node.get("Filter", "")), said


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
            looks_up(text, found[0][0]["Plan"])
    assert explained > 30
    memory.close()


@pytest.mark.parametrize("facts", [0, 5_000])
def test_plans_that_are_kept_look_up(memory: MemoryStore, tmp_path: Path, facts: int) -> None:
    """A connection keeps the plans that it made: for nothing, or for many facts that autovacuum has counted.

    Several ids joined at once are the exception: what was planned for nothing is bad until there was a count.
    """
    memory.commit_many([preference(f"other {i}", "x") for i in range(facts)])
    if facts:
        behind_its_back(memory.storage, f"ANALYZE {schema_of(tmp_path)}.facts")
    for i in range(12):  # as often as it takes until a plan is kept
        memory.commit(preference("p", f"{i}"), session_id="s")
        memory.commit(note(f"n{i}"), idempotency_key=f"k{i}")
        memory.rollback(1, session_id="s")
        memory.get("p")
    kept = 0
    pool = memory.storage._server.pool()  # type: ignore[attr-defined]
    with pool.connection() as wire, wire.transaction():
        wire.execute("SET LOCAL enable_seqscan = off")
        wire.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        prepared = wire.execute("SELECT name, statement, array_length(parameter_types, 1) FROM pg_prepared_statements")
        for name, text, parameters in prepared.fetchall():
            changes_or_reads = text.split()[0] in ("SELECT", "WITH", "UPDATE", "DELETE")
            if changes_or_reads and parameters and "pg_" not in text and "AS wanted(value) JOIN" not in text:
                kept += 1
                values = ", ".join(["NULL"] * parameters)
                found = wire.execute(f"EXPLAIN (FORMAT JSON) EXECUTE {name} ({values})", prepare=False).fetchone()
                looks_up(text, found[0][0]["Plan"])
    assert kept >= 6


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
        waits: dict[str, bool] = {}
        sent = ""

        def around(storage: Any, step: Exchange, go: Any) -> Any:
            nonlocal sent
            sent += " ".join(f"{statement.text} {statement[1]}" for statement in step.statements)
            if commits(step):
                assert "synchronous_commit" in sent or "READ ONLY" in sent
                table = next((table for table in ("log", "vectors") if f"INTO {table}" in sent), "")
                waits[table], sent = step.statements[-1] == FLUSH, ""
            return go()

        spy(memory, monkeypatch, around)
        memory.commit(note("x"))
        assert waits["vectors"] is False
        assert waits["log"] is True


def test_rows_of_several_tables_are_one_statement() -> None:
    """But never where one of them asks about what another writes."""

    def insert(table: str, *row: Any, more: str = "") -> Batch:
        return Batch(f"INSERT INTO {table} VALUES (?){more}", [row])

    begin, asked = Batch("BEGIN", [()]), Sql("SELECT seq FROM log")
    position = insert("checkpoints", 3, more=" ON CONFLICT DO UPDATE SET x = (SELECT max(seq) FROM log)")
    many = Batch("INSERT INTO facts VALUES (?)", [(4,), (5,)])
    one = insert("facts", 2)
    assert merged([begin, insert("log", 1), one, asked]) == [
        begin,
        Batch("WITH row_0 AS (INSERT INTO log VALUES (?)) INSERT INTO facts VALUES (?)", [[1, 2]]),
        asked,
    ]
    apart: list[list[Statement]] = [[insert("log", 1), position], [one, one], [one, many], [one, asked, position]]
    for statements in apart:
        assert [statement.text for statement in merged(statements)] == [statement.text for statement in statements]
