"""Databases that an earlier release made open, and are then what a new one would be."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memstate_langgraph import MemoryStore, MemStateStore, PostgresStorage, SQLiteStorage
from memstate_langgraph.backends.sqlite import APPLICATION_ID, statements_of
from memstate_langgraph.items import item_id
from tests.models import register
from tests.servers import postgres_url, schema_of
from tests.stores import assert_in_step

OLD = Path(__file__).parent / "version_1"
TS = "2026-01-02T03:04:05.123456+00:00"
NOTE = '{"content":"from before"}'
ITEM = '{"key":"k","value":{"n":1},"created_at":"' + TS + '","ttl":2.5}'


def rows() -> list[str]:
    """What a store of version 1 wrote: a note, and an item of a LangGraph store with a time to live in minutes."""
    statements = []
    for seq, (fact_id, kind, namespace, payload) in enumerate(
        [("n", "note", "[]", NOTE), (item_id(("a",), "k"), "langgraph.item", '["a"]', ITEM)], 1
    ):
        after = f'{{"id":"{fact_id}","type":"{kind}","namespace":{json.dumps(namespace)},"session_id":"s","ts":"{TS}",'
        after += f'"version":1,"ephemeral":false,"payload":{payload}}}'
        statements += [
            "INSERT INTO facts (id, type, namespace, session_id, ts, version, ephemeral, payload, seq) "
            f"VALUES ('{fact_id}', '{kind}', '{namespace}', 's', '{TS}', 1, FALSE, '{payload}', {seq})",
            "INSERT INTO log (seq, tx, op, fact_id, version, after, session_id, ts) "
            f"VALUES ({seq}, 'tx{seq}', 'COMMIT', '{fact_id}', 1, '{after}', 's', '{TS}')",
            f"INSERT INTO steps (seq, tx, session_id) VALUES ({seq}, 'tx{seq}', 's')",
        ]
    return statements


def look(memory: MemoryStore) -> None:
    register(memory)
    found = memory.get("n")
    assert found is not None
    assert (found.payload, found.schema_version, found.ttl) == ({"content": "from before"}, 1, None)
    (written,) = memory.history(item_id(("a",), "k"))
    assert written.after is not None
    assert written.after.ttl == 150.0  # seconds, where version 1 had minutes
    assert MemStateStore(memory).get(("a",), "k") is None
    assert memory.verify().ok
    assert memory.sweep().facts == {"langgraph.item": 1}
    memory.update("n", {"stars": 1}, session_id="s")
    assert_in_step(memory)
    memory.rollback(1, session_id="s")
    assert memory.purge(session_id="s").entries == 5
    assert_in_step(memory)


def old_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        for statement in [*statements_of((OLD / "sqlite.sql").read_text("utf-8")), *rows()]:
            raw.execute(statement)
        raw.execute("PRAGMA user_version = 1")
        raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    raw.close()


def shape(path: Path) -> Any:
    """Tables with their columns, indexes, triggers; without the white space of their text."""
    with sqlite3.connect(path) as raw:
        found = raw.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        columns = {
            name: raw.execute(f"PRAGMA table_info({name})").fetchall() for kind, name, _ in found if kind == "table"
        }
    return columns, {(kind, name, " ".join(sql.split())) for kind, name, sql in found if kind != "table"}


def test_a_file_of_version_1_opens(tmp_path: Path) -> None:
    old_sqlite(tmp_path / "old.db")
    with MemoryStore(SQLiteStorage(tmp_path / "old.db")) as memory:
        look(memory)
    SQLiteStorage(tmp_path / "new.db").close()
    assert shape(tmp_path / "old.db") == shape(tmp_path / "new.db")


def test_many_open_a_file_of_version_1_at_once(tmp_path: Path) -> None:
    old_sqlite(tmp_path / "old.db")
    raised: list[BaseException] = []
    together(lambda: SQLiteStorage(tmp_path / "old.db").close(), raised)
    assert raised == []
    with MemoryStore(SQLiteStorage(tmp_path / "old.db")) as memory:
        look(memory)


def together(job: Callable[[], Any], raised: list[BaseException]) -> None:
    start = threading.Barrier(5)

    def run() -> None:
        start.wait()
        try:
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def old_postgres(schema: str, prefix: str) -> None:
    with psycopg.connect(postgres_url(), autocommit=True) as raw:
        raw.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}; SET search_path = {schema}")
        raw.execute((OLD / "postgres.sql").read_text("utf-8").replace("{prefix}", prefix))
        raw.execute(f"INSERT INTO {prefix}memstate VALUES (1)")
        for statement in rows():
            raw.execute(re.sub(r"INTO (\w+)", rf"INTO {prefix}\1", statement))


def postgres_shape(schema: str, prefix: str) -> Any:
    with psycopg.connect(postgres_url()) as raw:
        columns = raw.execute(
            "SELECT table_name, column_name, data_type, column_default, is_nullable, collation_name, ordinal_position "
            "FROM information_schema.columns WHERE table_schema = %s ORDER BY 1, 7",
            (schema,),
        ).fetchall()
        indexes = raw.execute("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %s ORDER BY 1", (schema,))
        function = raw.execute(
            "SELECT prosrc FROM pg_proc WHERE proname = %s AND pronamespace = %s::regnamespace",
            (f"{prefix}log_keeps", schema),
        )
        triggers = raw.execute(
            "SELECT tgname, tgenabled FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid "
            "WHERE relnamespace = %s::regnamespace AND NOT tgisinternal ORDER BY 1",
            (schema,),
        )
        texts = [[text.replace(schema, "") for text in row] for row in indexes.fetchall()]
        return columns, texts, function.fetchall(), triggers.fetchall()


@pytest.mark.parametrize("prefix", ["", "our_"])
def test_a_postgres_schema_of_version_1_opens(tmp_path: Path, prefix: str) -> None:
    schema = schema_of(tmp_path)
    old_postgres(schema, prefix)
    raised: list[BaseException] = []
    together(lambda: PostgresStorage(postgres_url(), schema=schema, prefix=prefix).close(), raised)
    assert raised == []
    with MemoryStore(PostgresStorage(postgres_url(), schema=schema, prefix=prefix)) as memory:
        look(memory)
    fresh = schema_of(tmp_path / "fresh")
    with MemoryStore(PostgresStorage(postgres_url(), schema=fresh, prefix=prefix)) as memory:
        assert memory.query() == []
    assert postgres_shape(schema, prefix) == postgres_shape(fresh, prefix)
