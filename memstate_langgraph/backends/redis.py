"""Redis: for teams that run it. The two doors; the rules are in `redis_engine`."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

import redis
from redis import asyncio as aredis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from memstate_langgraph.backends.doors import AsyncDoor, Server, SyncDoor
from memstate_langgraph.backends.redis_engine import Borrow, Exchange, GiveBack, Pause, RedisEngine, Step, said
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.run import Progress, drive

R = TypeVar("R")
Client = redis.Redis | aredis.Redis

TIMEOUTS = {"socket_connect_timeout": 10.0, "socket_timeout": 10.0}
"""Seconds; a URL may say otherwise."""
_TOLD = (exceptions.ResponseError, exceptions.BusyLoadingError, exceptions.AuthenticationError)
"""What the server answered; any other error is the connection's."""


_Pool: Any = redis.BlockingConnectionPool  # redis-py has no types for it


class _Server(Server):
    """How to reach the server: what both doors of a storage share besides the rules."""

    engine: RedisEngine

    def __init__(
        self, source: str | Client, pool_size: int, prefix: str, busy_timeout: float, must_exist: bool
    ) -> None:
        super().__init__("memstate-redis", pool_size)
        self.source, self.busy_timeout = source, busy_timeout
        self.given: Any = None
        if isinstance(source, str):
            reached = self._pool = self.made()
        elif isinstance(source, Client):
            reached = self.given = source.connection_pool
        else:
            raise ValidationFailed(
                f"url: must be a URL, a redis.Redis or a redis.asyncio.Redis, not {type(source).__name__}; "
                "for a cluster, give the URL of the node that has the keys"
            )
        self.engine = RedisEngine(_named(reached), prefix, busy_timeout, must_exist)

    def made(self) -> Any:
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
        return self.own_pool()

    def end(self, pool: Any) -> None:
        pool.disconnect()


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


class RedisStorage(SyncDoor):
    """Facts, log, vectors' journal and checkpoints under one prefix of a Redis 6.2 or newer.

    Takes a URL (`redis://`, `rediss://`, `unix://`), or a client of redis-py that you already have. What an
    acknowledged commit survives is decided by the server's settings, and `verify()` reports them: with `appendonly yes`
    and `appendfsync always` the power going, with `everysec` (the default) the end of the server process, without
    `appendonly` nothing but what the last snapshot has. What is lost is lost from the end, whole transactions at a
    time; a replica that takes over may lack the last ones. `busy_timeout` is for how many seconds a call waits for
    others and for a server that is away before it raises `StorageBusy` or `StorageError`. With `must_exist` keys that
    are not there are a `StorageError`.
    """

    engine: RedisEngine

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

    def aio(self) -> AsyncRedisStorage:
        """The same data through the async door."""
        return AsyncRedisStorage.over(self._server)


class AsyncRedisStorage(AsyncDoor):
    """The async door of `RedisStorage`; connects at its first use.

    A `redis.asyncio.Redis` that you pass in is used in its event loop. Without one, a plan runs as a whole in a thread,
    so any number of event loops may use the storage. A cancelled call leaves nothing behind: its plan never began, or
    runs to its end before the call returns.
    """

    POOL = aredis.ConnectionPool
    engine: RedisEngine

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

    def sync(self) -> RedisStorage:
        """The same data through the sync door."""
        return RedisStorage.over(self._server)


__all__ = ["AsyncRedisStorage", "RedisStorage"]
