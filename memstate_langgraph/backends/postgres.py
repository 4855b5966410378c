"""PostgreSQL: for several workers on several machines. The two doors; the rules are in `postgres_engine`."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
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
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.ops import Work
from memstate_langgraph.run import adrive, drive

R = TypeVar("R")
AnyPool = ConnectionPool[Any] | AsyncConnectionPool[Any]

CONNECT_TIMEOUT = 10
"""Seconds; a URL may say otherwise."""


class _Server:
    """How to reach the server: what both doors of a storage share besides the rules."""

    def __init__(self, source: str | AnyPool, pool_size: int, schema: str, prefix: str, busy_timeout: float) -> None:
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
        self.engine = PostgresEngine(named(conninfo), schema, prefix, busy_timeout)
        self.conninfo = conninfo
        self.kwargs = {"connect_timeout": CONNECT_TIMEOUT, **kwargs, "autocommit": True}
        if "connect_timeout" in psycopg.conninfo.conninfo_to_dict(conninfo):
            del self.kwargs["connect_timeout"]
        self.lock = threading.Lock()
        self.pool: ConnectionPool[Any] | None = None
        self.pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnectionPool[Any]]
        self.pools = weakref.WeakKeyDictionary()
        self.wires: weakref.WeakSet[psycopg.AsyncConnection[Any]] = weakref.WeakSet()

    def options(self) -> dict[str, Any]:
        return {"min_size": 1, "max_size": self.pool_size, "open": False, "kwargs": self.kwargs}

    def sync_pool(self) -> ConnectionPool[Any]:
        if isinstance(self.given, ConnectionPool):
            return self.given
        with self.lock:
            if self.pool is None:
                self.pool = ConnectionPool(self.conninfo, **self.options())
                self.pool.open()
            return self.pool

    async def async_pool(self) -> AsyncConnectionPool[Any]:
        """The given one, or one of this event loop: connections cannot change loops."""
        if isinstance(self.given, AsyncConnectionPool):
            return self.given
        loop = asyncio.get_running_loop()
        pool = self.pools.get(loop)
        if pool is None:
            pool = self.pools[loop] = AsyncConnectionPool(self.conninfo, configure=self._note, **self.options())
            await pool.open()
        return pool

    async def _note(self, wire: psycopg.AsyncConnection[Any]) -> None:
        self.wires.add(wire)

    def hang_up(self) -> None:
        """Close what we opened in event loops that may be gone; their pools can no longer be asked."""
        for wire in list(self.wires):
            wire.pgconn.finish()


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

    Takes a URL, or a `psycopg_pool` that you already have. Makes its tables when it is first opened; from then on a
    role with USAGE on the schema and SELECT, INSERT, UPDATE, DELETE on its tables (SELECT, INSERT on `log`) is
    enough. `busy_timeout` is for how many seconds a call waits for locks, connections and a server that is away
    before it raises `StorageBusy` or `StorageError`.
    """

    def __init__(
        self,
        url: str | AnyPool,
        *,
        schema: str = "memstate",
        prefix: str = "",
        pool_size: int = 10,
        busy_timeout: float = 30.0,
    ) -> None:
        self._face(_Server(url, pool_size, schema, prefix, busy_timeout))
        drive(self.engine.preparing(), self._answer)

    @classmethod
    def over(cls, server: _Server) -> PostgresStorage:
        storage = cls.__new__(cls)
        storage._face(server)
        return storage

    def _face(self, server: _Server) -> None:
        self._server = server
        self.engine = server.engine

    def run(self, work: Work[R]) -> R:
        return drive(self.engine.running(work), self._answer)

    def _answer(self, step: Step) -> Any:
        match step:
            case Borrow(seconds, alone):
                if alone:
                    return psycopg.connect(self._server.conninfo, **self._server.kwargs)
                wire = self._server.sync_pool().getconn(seconds)
                if not wire.autocommit:
                    wire.autocommit = True
                return wire
            case GiveBack(wire, alone):
                self._give_back(wire, alone=alone)
            case Exchange(wire, statements):
                return self._exchange(wire, statements)
            case Pause(seconds):
                time.sleep(seconds)
        return None

    def _give_back(self, wire: Any, *, alone: bool) -> None:
        if alone or not _is_idle(wire):
            wire.close()
        elif self._server.given is not None:
            wire.autocommit = bool((self._server.given.kwargs or {}).get("autocommit", False))  # type: ignore[union-attr]
        if not alone:
            self._server.sync_pool().putconn(wire)

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
        self.engine.closed = True
        if self._server.pool is not None:
            self._server.pool.close()
        self._server.hang_up()

    def aio(self) -> AsyncPostgresStorage:
        return AsyncPostgresStorage.over(self._server)


class AsyncPostgresStorage:
    """The async door of `PostgresStorage`; connects, and makes its tables, at its first use.

    A cancelled call leaves no transaction open: its plan runs to its end before the call returns.
    """

    def __init__(
        self,
        url: str | AnyPool,
        *,
        schema: str = "memstate",
        prefix: str = "",
        pool_size: int = 10,
        busy_timeout: float = 30.0,
    ) -> None:
        self._face(_Server(url, pool_size, schema, prefix, busy_timeout))

    @classmethod
    def over(cls, server: _Server) -> AsyncPostgresStorage:
        storage = cls.__new__(cls)
        storage._face(server)
        return storage

    def _face(self, server: _Server) -> None:
        self._server = server
        self.engine = server.engine

    async def run(self, work: Work[R]) -> R:
        running = asyncio.ensure_future(adrive(self.engine.running(work), self._answer))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    async def _answer(self, step: Step) -> Any:
        match step:
            case Borrow(seconds, alone):
                if alone:
                    return await psycopg.AsyncConnection.connect(self._server.conninfo, **self._server.kwargs)
                wire = await (await self._server.async_pool()).getconn(seconds)
                if not wire.autocommit:
                    await wire.set_autocommit(True)
                return wire
            case GiveBack(wire, alone):
                await self._give_back(wire, alone=alone)
            case Exchange(wire, statements):
                return await self._exchange(wire, statements)
            case Pause(seconds):
                await asyncio.sleep(seconds)
        return None

    async def _give_back(self, wire: Any, *, alone: bool) -> None:
        if alone or not _is_idle(wire):
            await wire.close()
        elif self._server.given is not None:
            await wire.set_autocommit(bool((self._server.given.kwargs or {}).get("autocommit", False)))  # type: ignore[union-attr]
        if not alone:
            await (await self._server.async_pool()).putconn(wire)

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
        self.engine.closed = True
        pool = self._server.pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()
        await asyncio.to_thread(PostgresStorage.over(self._server).close)

    def sync(self) -> PostgresStorage:
        return PostgresStorage.over(self._server)


__all__ = ["AsyncPostgresStorage", "PostgresStorage"]
