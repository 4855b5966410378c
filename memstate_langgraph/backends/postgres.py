"""PostgreSQL: for several workers on several machines. The two doors; the rules are in `postgres_engine`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Hashable
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from memstate_langgraph.backends.postgres_engine import (
    Borrow,
    Exchange,
    GiveBack,
    Pause,
    PostgresEngine,
    Step,
    named,
)
from memstate_langgraph.backends.statements import Batch, Row, Statement
from memstate_langgraph.backends.threads import Threads, to_its_end
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.ops import Work
from memstate_langgraph.run import Progress, adrive, drive

R = TypeVar("R")
AnyPool = ConnectionPool[Any] | AsyncConnectionPool[Any]

CONNECT_TIMEOUT = 10
"""Seconds; a URL may say otherwise."""


class _Server:
    """How to reach the server: what both doors of a storage share besides the rules."""

    def __init__(
        self,
        source: str | AnyPool,
        pool_size: int,
        schema: str,
        prefix: str,
        busy_timeout: float,
        must_exist: bool,
    ) -> None:
        if isinstance(source, str):
            self.given: AnyPool | None = None
            conninfo, kwargs, self.pool_size = source, {}, pool_size
        elif isinstance(source, ConnectionPool | AsyncConnectionPool):
            self.given = source
            if callable(source.conninfo) or callable(source.kwargs):
                raise ValidationFailed("pool: conninfo and kwargs must be values, not callables")
            conninfo, kwargs, self.pool_size = source.conninfo, dict(source.kwargs or {}), source.max_size
        else:
            raise ValidationFailed(f"url: must be a URL, a ConnectionPool or an AsyncConnectionPool, not {source!r}")
        if pool_size < 1:
            raise ValidationFailed(f"pool_size: must be at least 1, not {pool_size!r}")
        self.engine = PostgresEngine(named(conninfo), schema, prefix, busy_timeout, must_exist)
        self.conninfo = conninfo
        self.autocommit = self.given is None or bool(kwargs.get("autocommit"))
        self.kwargs = {"connect_timeout": CONNECT_TIMEOUT, **kwargs, "autocommit": True}
        if "connect_timeout" in psycopg.conninfo.conninfo_to_dict(conninfo):
            del self.kwargs["connect_timeout"]
        self._opening = threading.Lock()
        self._pool: ConnectionPool[Any] | None = None
        self.threads = Threads(max(32, 2 * self.pool_size), "memstate-postgres")
        self._process = os.getpid()
        self._parents: list[Any] = []

    def _leave_to_parent(self) -> None:
        """After a fork, connections are the parent's; ours are made when they are needed."""
        if self._process != os.getpid():
            self._parents.append(self._pool)  # kept, so that nothing tidies it up here
            self._pool, self._process = None, os.getpid()

    def pool(self) -> ConnectionPool[Any]:
        if isinstance(self.given, ConnectionPool):
            return self.given
        with self._opening:
            self._leave_to_parent()
            if self._pool is None:
                self._pool = ConnectionPool(
                    self.conninfo, kwargs=self.kwargs, min_size=1, max_size=self.pool_size, open=True
                )
            return self._pool

    def close(self) -> None:
        self.engine.closed = True
        with self._opening:
            self._leave_to_parent()
            if self._pool is not None:
                self._pool.close()
        self.threads.close()


def _cursor(wire: Any) -> Any:
    cursor = wire.cursor(row_factory=tuple_row)
    cursor.adapters.register_loader("json", TextLoader)  # payloads are parsed where all dialects' are
    return cursor


def _parts(statement: Statement) -> list[Any]:
    """The parameters of each execution."""
    return list(statement.rows) if isinstance(statement, Batch) else [statement.parameters or None]


def _is_idle(wire: Any) -> bool:
    return bool(wire.info.transaction_status == TransactionStatus.IDLE)


class PostgresStorage:
    """Facts, log, vectors' journal and checkpoints in one schema of a PostgreSQL database.

    Takes the URL of a PostgreSQL 13 or newer, or a `psycopg_pool` that you already have. Makes its tables when it is
    first opened; from then on a role with USAGE on the schema and SELECT, INSERT, UPDATE, DELETE on its tables
    (SELECT, INSERT on `log`) is enough. `busy_timeout` is for how many seconds a call waits for locks, connections
    and a server that is away before it raises `StorageBusy` or `StorageError`. With `must_exist` tables that are not
    there are a `StorageError`.
    """

    def __init__(
        self,
        url: str | AnyPool,
        *,
        schema: str = "memstate",
        prefix: str = "",
        pool_size: int = 10,
        busy_timeout: float = 30.0,
        must_exist: bool = False,
    ) -> None:
        self._face(_Server(url, pool_size, schema, prefix, busy_timeout, must_exist))
        drive(self.engine.opening(), self._answer)

    @classmethod
    def over(cls, server: _Server) -> PostgresStorage:
        storage = cls.__new__(cls)
        storage._face(server)
        return storage

    def _face(self, server: _Server) -> None:
        self._server = server
        self.engine = server.engine

    @property
    def identity(self) -> Hashable:
        return self.engine.where

    def run(self, work: Work[R]) -> R:
        return drive(self.engine.running(work), self._answer)

    def vacuum(self, progress: Progress | None = None) -> int:
        """`VACUUM` of our tables: what was deleted is used again, and free ends of files go back to the system.

        Needs a role that owns the tables, or may MAINTAIN them; for others nothing happens.
        """
        return drive(self.engine.vacuuming(progress), self._answer)

    def _answer(self, step: Step) -> Any:
        match step:
            case Borrow(seconds, alone):
                if alone:
                    return psycopg.connect(self._server.conninfo, **self._server.kwargs)
                wire = self._server.pool().getconn(seconds)
                if not wire.autocommit:
                    wire.autocommit = True
                return wire
            case GiveBack(wire, alone):
                if alone or not _is_idle(wire):
                    wire.close()
                elif not self._server.autocommit:
                    wire.autocommit = False
                if not alone:
                    self._server.pool().putconn(wire)
            case Exchange(wire, statements):
                return self._exchange(wire, statements)
            case Pause(seconds):
                time.sleep(seconds)
        return None

    def _exchange(self, wire: Any, statements: list[Statement]) -> list[list[Row]]:
        def execute(statement: Statement) -> Any:
            cursor = _cursor(wire)
            for parameters in _parts(statement):
                cursor.execute(self.engine.text(statement.text), parameters)
            return cursor

        if len(statements) == 1:
            cursors = [execute(statements[0])]
        else:
            with wire.pipeline():
                cursors = [execute(statement) for statement in statements]
        return [cursor.fetchall() if cursor.description else [] for cursor in cursors]

    def close(self) -> None:
        """Close the connections that this storage opened; a pool that was passed in stays open."""
        self._server.close()

    def aio(self) -> AsyncPostgresStorage:
        return AsyncPostgresStorage.over(self._server)


class AsyncPostgresStorage:
    """The async door of `PostgresStorage`; connects, and makes its tables, at its first use.

    An `AsyncConnectionPool` that you pass in is used in its event loop. Without one, a plan runs as a whole in a
    thread, so any number of event loops may use the storage, and one that ends without `close()` hangs nothing.
    A cancelled call leaves no transaction open: its plan never began, or runs to its end before the call returns.
    """

    def __init__(
        self,
        url: str | AnyPool,
        *,
        schema: str = "memstate",
        prefix: str = "",
        pool_size: int = 10,
        busy_timeout: float = 30.0,
        must_exist: bool = False,
    ) -> None:
        self._face(_Server(url, pool_size, schema, prefix, busy_timeout, must_exist))

    @classmethod
    def over(cls, server: _Server) -> AsyncPostgresStorage:
        storage = cls.__new__(cls)
        storage._face(server)
        return storage

    def _face(self, server: _Server) -> None:
        self._server = server
        self._pool = server.given if isinstance(server.given, AsyncConnectionPool) else None
        self.engine = server.engine

    @property
    def identity(self) -> Hashable:
        return self.engine.where

    async def run(self, work: Work[R]) -> R:
        if self._pool is None:
            return await to_its_end(self._server.threads.submit(PostgresStorage.over(self._server).run, work))
        return await to_its_end(asyncio.ensure_future(adrive(self.engine.running(work), self._answer)))

    async def vacuum(self, progress: Progress | None = None) -> int:
        """See `PostgresStorage.vacuum`."""
        if self._pool is None:
            return await asyncio.to_thread(self.sync().vacuum, progress)
        return await adrive(self.engine.vacuuming(progress), self._answer)

    async def _answer(self, step: Step) -> Any:
        assert self._pool is not None
        match step:
            case Borrow(seconds, alone):
                if alone:
                    return await psycopg.AsyncConnection.connect(self._server.conninfo, **self._server.kwargs)
                wire = await self._pool.getconn(seconds)
                if not wire.autocommit:
                    await wire.set_autocommit(True)
                return wire
            case GiveBack(wire, alone):
                assert isinstance(wire, psycopg.AsyncConnection)
                if alone or not _is_idle(wire):
                    await wire.close()
                elif not self._server.autocommit:
                    await wire.set_autocommit(False)
                if not alone:
                    await self._pool.putconn(wire)
            case Exchange(wire, statements):
                return await self._exchange(wire, statements)
            case Pause(seconds):
                await asyncio.sleep(seconds)
        return None

    async def _exchange(self, wire: Any, statements: list[Statement]) -> list[list[Row]]:
        async def execute(statement: Statement) -> Any:
            cursor = _cursor(wire)
            for parameters in _parts(statement):
                await cursor.execute(self.engine.text(statement.text), parameters)
            return cursor

        if len(statements) == 1:
            cursors = [await execute(statements[0])]
        else:
            async with wire.pipeline():
                cursors = [await execute(statement) for statement in statements]
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]

    async def close(self) -> None:
        await asyncio.to_thread(self._server.close)

    def sync(self) -> PostgresStorage:
        return PostgresStorage.over(self._server)


__all__ = ["AsyncPostgresStorage", "PostgresStorage"]
