"""PostgreSQL: vectors in the same database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from memstate_langgraph import StorageError
from memstate_langgraph.backends.postgres_engine import Exchange
from tests.models import note
from tests.postgres.helpers import open_store
from tests.servers import schema_of
from tests.stores import Words, assert_in_step, collect, hook_over
from tests.wire import spy


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
