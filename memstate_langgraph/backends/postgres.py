"""PostgreSQL: for several workers on several machines. The two doors; the rules are in `postgres_engine`."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from memstate_langgraph.backends.doors import AsyncDoor, Server, SyncDoor
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
from memstate_langgraph.run import Progress, adrive, drive

R = TypeVar("R")
AnyPool = ConnectionPool[Any] | AsyncConnectionPool[Any]

CONNECT_TIMEOUT = 10
"""Seconds; a URL may say otherwise."""


class _Pool(ConnectionPool[Any]):
    def __del__(self) -> None:
        """If nobody closed it, one of its own threads may be the last to hold it, and cannot wait for itself to end."""
        with suppress(RuntimeError):  # they were all told to end before that
            super().__del__()


class _Server(Server):
    """How to reach the server: what both doors of a storage share besides the rules."""

    engine: PostgresEngine

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
            conninfo, kwargs = source, {}
        elif isinstance(source, ConnectionPool | AsyncConnectionPool):
            self.given = source
            if callable(source.conninfo) or callable(source.kwargs):
                raise ValidationFailed("pool: conninfo and kwargs must be values, not callables")
            conninfo, kwargs = source.conninfo, dict(source.kwargs or {})
        else:
            raise ValidationFailed(f"url: must be a URL, a ConnectionPool or an AsyncConnectionPool, not {source!r}")
        super().__init__("memstate-postgres", pool_size, None if self.given is None else self.given.max_size)
        self.engine = PostgresEngine(named(conninfo), schema, prefix, busy_timeout, must_exist)
        self.conninfo = conninfo
        self.autocommit = self.given is None or bool(kwargs.get("autocommit"))
        self.kwargs = {"connect_timeout": CONNECT_TIMEOUT, **kwargs, "autocommit": True}
        if "connect_timeout" in psycopg.conninfo.conninfo_to_dict(conninfo):
            del self.kwargs["connect_timeout"]

    def pool(self) -> ConnectionPool[Any]:
        if isinstance(self.given, ConnectionPool):
            return self.given
        pool: ConnectionPool[Any] = self.own_pool()
        return pool

    def made(self) -> ConnectionPool[Any]:
        return _Pool(self.conninfo, kwargs=self.kwargs, min_size=1, max_size=self.pool_size, open=True)

    def end(self, pool: ConnectionPool[Any]) -> None:
        pool.close()


_ADAPTERS = AdaptersMap(psycopg.adapters)
_ADAPTERS.register_loader("json", TextLoader)  # payloads are parsed where all dialects' are


class _Ours:
    """A cursor that does not make adapters of its own, and does not mind those of a pool that was passed in."""

    adapters = _ADAPTERS


class _Cursor(_Ours, psycopg.Cursor[Row]):
    pass


class _AsyncCursor(_Ours, psycopg.AsyncCursor[Row]):
    pass


def _rows(cursor: Any) -> bool:
    """Whether a statement answered with rows; psycopg's description of them would be made to be thrown away."""
    return bool(cursor.pgresult is not None and cursor.pgresult.nfields)


def _parts(statement: Statement) -> list[Any]:
    """The parameters of each execution."""
    return [row or None for row in (statement.rows if isinstance(statement, Batch) else [statement.parameters])]


def _is_idle(wire: Any) -> bool:
    return bool(wire.info.transaction_status == TransactionStatus.IDLE)


class PostgresStorage(SyncDoor):
    """Facts, log, vectors' journal and checkpoints in one schema of a PostgreSQL database.

    Takes the URL of a PostgreSQL 13 or newer, or a `psycopg_pool` that you already have. Makes its tables when it is
    first opened; from then on a role with USAGE on the schema and SELECT, INSERT, UPDATE, DELETE on its tables
    (SELECT, INSERT on `log`) is enough. `busy_timeout` is for how many seconds a call waits for locks, connections
    and a server that is away before it raises `StorageBusy` or `StorageError`. With `must_exist` tables that are not
    there are a `StorageError`. Leave autovacuum on, or `ANALYZE` the tables as they grow: without counts PostgreSQL may
    keep plans with which a singleton's commit reads all facts of its type.
    """

    engine: PostgresEngine

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
        if not isinstance(self._server.given, AsyncConnectionPool):
            self._server.pool()  # connects in the meantime

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
        silent = _Cursor(wire, row_factory=tuple_row)  # for all whose answer nobody waits for

        def execute(statement: Statement) -> Any:
            cursor = silent if isinstance(statement, Batch) else _Cursor(wire, row_factory=tuple_row)
            for parameters in _parts(statement):
                cursor.execute(self.engine.text(statement.text), parameters)
            return cursor

        if len(statements) == 1:
            cursors = [execute(statements[0])]
        else:
            with wire.pipeline():
                cursors = [execute(statement) for statement in statements]
        return [cursor.fetchall() if cursor is not silent and _rows(cursor) else [] for cursor in cursors]

    def aio(self) -> AsyncPostgresStorage:
        """The same data through the async door."""
        return AsyncPostgresStorage.over(self._server)


class AsyncPostgresStorage(AsyncDoor):
    """The async door of `PostgresStorage`; connects, and makes its tables, at its first use.

    An `AsyncConnectionPool` that you pass in is used in its event loop. Without one, a plan runs as a whole in a
    thread, so any number of event loops may use the storage, and one that ends without `close()` hangs nothing.
    A cancelled call leaves no transaction open: its plan never began, or runs to its end before the call returns.
    """

    POOL = AsyncConnectionPool
    engine: PostgresEngine

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
        silent = _AsyncCursor(wire, row_factory=tuple_row)  # for all whose answer nobody waits for

        async def execute(statement: Statement) -> Any:
            cursor = silent if isinstance(statement, Batch) else _AsyncCursor(wire, row_factory=tuple_row)
            for parameters in _parts(statement):
                await cursor.execute(self.engine.text(statement.text), parameters)
            return cursor

        if len(statements) == 1:
            cursors = [await execute(statements[0])]
        else:
            async with wire.pipeline():
                cursors = [await execute(statement) for statement in statements]
        return [await cursor.fetchall() if cursor is not silent and _rows(cursor) else [] for cursor in cursors]

    def sync(self) -> PostgresStorage:
        """The same data through the sync door."""
        return PostgresStorage.over(self._server)


__all__ = ["AsyncPostgresStorage", "PostgresStorage"]
