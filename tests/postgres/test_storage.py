"""PostgreSQL: set-up by many, and connections: pools, forks, privileges."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from memstate_langgraph import (
    MemoryStore,
    MemStateCheckpointer,
    PostgresStorage,
    StorageBusy,
    StorageClosed,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.backends.urls import storage_from
from tests.models import note, preference
from tests.postgres.helpers import open_store
from tests.servers import behind_its_back, schema_of
from tests.stores import Unreliable, assert_in_step, hook_over
from tests.workers import ask


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


def test_an_exhausted_pool_is_reported_and_usable_afterwards(url: str, tmp_path: Path) -> None:
    with open_store(url, tmp_path, pool_size=1, busy_timeout=0.3) as memory:
        pool = memory.storage._server.pool()  # type: ignore[attr-defined]
        with pool.connection(), pytest.raises(StorageBusy, match="all connections"):
            memory.commit(note("x"))
        memory.commit(note("x"))
        assert len(memory.log()) == 1


def test_a_url_names_schema_and_prefix(url: str, tmp_path: Path) -> None:
    schema = schema_of(tmp_path)
    joined = "&" if "?" in url else "?"
    with open_store(url, tmp_path, prefix="eu_") as memory:
        memory.commit(note("in the eu"))
    for scheme in ("postgresql", "postgres"):
        named = url.replace("postgresql", scheme, 1)
        with MemoryStore(storage_from(f"{named}{joined}schema={schema}&prefix=eu_", must_exist=True)) as memory:
            assert [fact.payload["content"] for fact in memory.query()] == ["in the eu"]
    with MemStateCheckpointer.from_conn_string(f"{url}{joined}schema={schema}&prefix=eu_") as saver:
        assert isinstance(saver.memory, MemoryStore)
        assert len(saver.memory.query("note")) == 1


def test_looking_makes_no_tables(url: str, tmp_path: Path, admin: psycopg.Connection[Any]) -> None:
    schema = schema_of(tmp_path)
    asked = "SELECT count(*) FROM pg_namespace WHERE nspname = %s"
    with pytest.raises(StorageError, match=f"{schema}.*no such storage"):
        storage_from(f"{url}{'&' if '?' in url else '?'}schema={schema}", must_exist=True)
    assert admin.execute(asked, (schema,)).fetchall() == [(0,)]
    admin.execute(f"CREATE SCHEMA {schema}")  # there, and empty
    with pytest.raises(StorageError, match="no such storage"):
        PostgresStorage(url, schema=schema, must_exist=True)
    assert admin.execute("SELECT 1 FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall() == []
