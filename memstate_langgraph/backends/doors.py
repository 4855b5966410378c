"""The two doors of a storage on a server, over one engine that does no I/O: what does not depend on which server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Hashable
from typing import Any, ClassVar, Self, TypeVar

from memstate_langgraph.backends.threads import Threads, to_its_end
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.ops import Work
from memstate_langgraph.run import adrive, drive

R = TypeVar("R")


class Server:
    """How to reach a server: what both doors of a storage share besides the engine. Safe from several threads."""

    engine: Any

    def __init__(self, name: str, pool_size: int, given_size: int | None = None) -> None:
        if pool_size < 1:
            raise ValidationFailed(f"pool_size: must be at least 1, not {pool_size!r}")
        self.pool_size = pool_size if given_size is None else given_size
        self.threads = Threads(max(32, 2 * self.pool_size), name)
        self._opening = threading.Lock()
        self._pool: Any = None
        self._process = os.getpid()
        self._parents: list[Any] = []

    def made(self) -> Any:
        """A pool of connections for threads."""
        raise NotImplementedError

    def end(self, pool: Any) -> None:
        raise NotImplementedError

    def own_pool(self) -> Any:
        """Made when it is first needed, and again in a forked process, whose parent's connections it must not use."""
        with self._opening:
            self._leave_to_parent()
            if self._pool is None:
                self._pool = self.made()
            return self._pool

    def _leave_to_parent(self) -> None:
        if self._process != os.getpid():
            self._parents.append(self._pool)  # kept, so that nothing tidies it up here
            self._pool, self._process = None, os.getpid()

    def close(self) -> None:
        self.engine.closed = True
        with self._opening:
            self._leave_to_parent()
            if self._pool is not None:
                self.end(self._pool)
        self.threads.close()


class _Door:
    engine: Any

    @classmethod
    def over(cls, server: Any) -> Self:
        """A door to a server that is known already, over the same connections."""
        storage = cls.__new__(cls)
        storage._face(server)
        return storage

    def _face(self, server: Any) -> None:
        self._server = server
        self.engine = server.engine

    @property
    def identity(self) -> Hashable:
        """The server and where on it: stores over the same one hold the same data."""
        found: Hashable = self.engine.where
        return found


class SyncDoor(_Door):
    def run(self, work: Work[R]) -> R:
        """Run a plan in one transaction, and again from the top if others were in its way."""
        ended: R = drive(self.engine.running(work), self._answer)
        return ended

    def _answer(self, step: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Close the connections that this storage opened; a pool or client that was passed in stays open."""
        self._server.close()


class AsyncDoor(_Door):
    """A pool of an event loop that was passed in is used there; else a plan runs as a whole in a thread."""

    POOL: ClassVar[type]

    def _face(self, server: Any) -> None:
        super()._face(server)
        self._pool: Any = server.given if isinstance(server.given, self.POOL) else None

    async def run(self, work: Work[R]) -> R:
        """Run a plan in one transaction, and again from the top if others were in its way."""
        if self._pool is None:
            result: R = await to_its_end(self._server.threads.submit(self.sync().run, work))
            return result
        ended: R = await to_its_end(asyncio.ensure_future(adrive(self.engine.running(work), self._answer)))
        return ended

    async def _answer(self, step: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connections that this storage opened; a pool or client that was passed in stays open."""
        await asyncio.to_thread(self._server.close)

    def sync(self) -> Any:
        """The same data through the sync door."""
        raise NotImplementedError
