"""Redis: for teams that run it. The two doors; the rules are in `redis_engine`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Hashable
from typing import Any, TypeVar

import redis
from redis import asyncio as aredis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from memstate_langgraph.backends.redis_engine import Borrow, Exchange, GiveBack, Pause, RedisEngine, Step, said
from memstate_langgraph.backends.threads import Threads, to_its_end
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.ops import Work
from memstate_langgraph.run import Progress, adrive, drive

R = TypeVar("R")
Client = redis.Redis | aredis.Redis

TIMEOUTS = {"socket_connect_timeout": 10.0, "socket_timeout": 10.0}
"""Seconds; a URL may say otherwise."""
_TOLD = (exceptions.ResponseError, exceptions.BusyLoadingError, exceptions.AuthenticationError)
"""What the server answered; any other error is the connection's."""


_Pool: Any = redis.BlockingConnectionPool  # redis-py has no types for it


class _Server:
    """How to reach the server: what both doors of a storage share besides the rules."""

    def __init__(
        self, source: str | Client, pool_size: int, prefix: str, busy_timeout: float, must_exist: bool
    ) -> None:
        if pool_size < 1:
            raise ValidationFailed(f"pool_size: must be at least 1, not {pool_size!r}")
        self.source, self.pool_size, self.busy_timeout = source, pool_size, busy_timeout
        self.given: Any = None
        if isinstance(source, str):
            reached = self._made()
        elif isinstance(source, Client):
            reached = self.given = source.connection_pool
        else:
            raise ValidationFailed(
                f"url: must be a URL, a redis.Redis or a redis.asyncio.Redis, not {type(source).__name__}; "
                "for a cluster, give the URL of the node that has the keys"
            )
        self.engine = RedisEngine(_named(reached), prefix, busy_timeout, must_exist)
        self.threads = Threads(max(32, 2 * pool_size), "memstate-redis")
        self._opening = threading.Lock()
        self._pool: Any = reached if self.given is None else None
        self._process = os.getpid()
        self._parents: list[Any] = []

    def _made(self) -> Any:
        options = {
            "max_connections": self.pool_size,
            "timeout": self.busy_timeout,
            "retry": Retry(NoBackoff(), 0),  # what may be tried again is decided by the engine
            **TIMEOUTS,
        }
        if self.given is not None:  # threads cannot use the connections of an event loop
            theirs = self.given.connection_kwargs
            kept = {name: value for name, value in theirs.items() if name in _KEPT or name.startswith("ssl_")}
            kept["connection_class"] = _SYNC_CLASS[self.given.connection_class]
            return _Pool(**options, **kept)
        try:
            pool = _Pool.from_url(self.source, **options)
            pool.connection_class(**pool.connection_kwargs)  # checks what the URL sets, and connects to nothing
            return pool
        except (ValueError, TypeError) as error:
            raise ValidationFailed(f"url: is not a Redis URL: {said(error)}") from None

    def pool(self) -> Any:
        """Connections for the sync door and for threads."""
        if isinstance(self.given, redis.ConnectionPool):
            return self.given
        with self._opening:
            if self._process != os.getpid():  # a forked process makes connections of its own
                self._parents.append(self._pool)
                self._pool, self._process = None, os.getpid()
            if self._pool is None:
                self._pool = self._made()
            return self._pool

    def close(self) -> None:
        self.engine.closed = True
        self.threads.close()
        if self._pool is not None and self._process == os.getpid():
            self._pool.disconnect()


_KEPT = ("host", "port", "path", "db", "username", "password", "credential_provider", "protocol", "client_name")
_SYNC_CLASS = {
    aredis.Connection: redis.Connection,
    aredis.SSLConnection: redis.SSLConnection,
    aredis.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}


def _named(pool: Any) -> str:
    """Which server and database, without the password."""
    settings = pool.connection_kwargs
    if hasattr(pool, "service_name"):
        return f"redis-sentinel://{pool.service_name}/{settings.get('db', 0)}"
    if "path" in settings:
        return f"unix://{settings['path']}, database {settings.get('db', 0)}"
    return f"redis://{settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db', 0)}"


class RedisStorage:
    """Facts, log, vectors' journal and checkpoints under one prefix of a Redis 6.2 or newer.

    Takes a URL (`redis://`, `rediss://`, `unix://`), or a client of redis-py that you already have. What an
    acknowledged commit survives is decided by the server's settings, and `verify()` reports them: with `appendonly yes`
    and `appendfsync always` the power going, with `everysec` (the default) the end of the server process, without
    `appendonly` nothing but what the last snapshot has. What is lost is lost from the end, whole transactions at a
    time; a replica that takes over may lack the last ones. `busy_timeout` is for how many seconds a call waits for
    others and for a server that is away before it raises `StorageBusy` or `StorageError`. With `must_exist` keys that
    are not there are a `StorageError`.
    """

    def __init__(
        self,
        url: str | Client,
        *,
        prefix: str = "memstate",
        pool_size: int = 10,
        busy_timeout: float = 30.0,
        must_exist: bool = False,
    ) -> None:
        self._face(_Server(url, pool_size, prefix, busy_timeout, must_exist))
        if isinstance(self._server.given, aredis.ConnectionPool):
            raise ValidationFailed("url: a redis.asyncio client is for AsyncRedisStorage; pass a URL or a redis.Redis")
        drive(self.engine.at_first(), self._answer)

    @classmethod
    def over(cls, server: _Server) -> RedisStorage:
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
        """Nothing to do: Redis gives space back by itself."""
        return self.engine.vacuum(progress)

    def _answer(self, step: Step) -> Any:
        match step:
            case Borrow():
                return self._server.pool().get_connection()
            case GiveBack(wire, broken):
                if broken:
                    wire.disconnect()
                self._server.pool().release(wire)
            case Exchange(wire, commands):
                return self._exchange(wire, commands)
            case Pause(seconds):
                time.sleep(seconds)
        return None

    def _exchange(self, wire: Any, commands: Any) -> list[Any]:
        wire.send_packed_command(wire.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(wire.read_response(disable_decoding=True))
            except _TOLD as error:
                answers.append(error)
        return answers

    def close(self) -> None:
        """Close the connections that this storage opened; a client that was passed in stays as it is."""
        self._server.close()

    def aio(self) -> AsyncRedisStorage:
        return AsyncRedisStorage.over(self._server)


class AsyncRedisStorage:
    """The async door of `RedisStorage`; connects at its first use.

    A `redis.asyncio.Redis` that you pass in is used in its event loop. Without one, a plan runs as a whole in a thread,
    so any number of event loops may use the storage. A cancelled call leaves nothing behind: its plan never began, or
    runs to its end before the call returns.
    """

    def __init__(
        self,
        url: str | Client,
        *,
        prefix: str = "memstate",
        pool_size: int = 10,
        busy_timeout: float = 30.0,
        must_exist: bool = False,
    ) -> None:
        self._face(_Server(url, pool_size, prefix, busy_timeout, must_exist))

    @classmethod
    def over(cls, server: _Server) -> AsyncRedisStorage:
        storage = cls.__new__(cls)
        storage._face(server)
        return storage

    def _face(self, server: _Server) -> None:
        self._server = server
        self._pool: Any = server.given if isinstance(server.given, aredis.ConnectionPool) else None
        self.engine = server.engine

    @property
    def identity(self) -> Hashable:
        return self.engine.where

    async def run(self, work: Work[R]) -> R:
        if self._pool is None:
            return await to_its_end(self._server.threads.submit(RedisStorage.over(self._server).run, work))
        return await to_its_end(asyncio.ensure_future(adrive(self.engine.running(work), self._answer)))

    async def vacuum(self, progress: Progress | None = None) -> int:
        """See `RedisStorage.vacuum`."""
        return self.engine.vacuum(progress)

    async def _answer(self, step: Step) -> Any:
        assert self._pool is not None
        match step:
            case Borrow():
                return await self._pool.get_connection()
            case GiveBack(wire, broken):
                if broken:
                    await wire.disconnect()
                await self._pool.release(wire)
            case Exchange(wire, commands):
                return await self._exchange(wire, commands)
            case Pause(seconds):
                await asyncio.sleep(seconds)
        return None

    async def _exchange(self, wire: Any, commands: Any) -> list[Any]:
        await wire.send_packed_command(wire.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await wire.read_response(disable_decoding=True))
            except _TOLD as error:
                answers.append(error)
        return answers

    async def close(self) -> None:
        await asyncio.to_thread(self._server.close)

    def sync(self) -> RedisStorage:
        return RedisStorage.over(self._server)


__all__ = ["AsyncRedisStorage", "RedisStorage"]
