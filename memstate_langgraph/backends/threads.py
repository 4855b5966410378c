"""Plans of an async door that run as a whole in a thread, so that any number of event loops may use a storage."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """Made when they are first needed, and again in a forked process, whose parent's threads it does not have."""

    def __init__(self, number: int, name: str) -> None:
        self._number, self._name = number, name
        self._opening = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._parents: list[Any] = []

    def submit(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        with self._opening:
            if self._process != os.getpid():
                self._parents.append(self._pool)  # kept, so that nothing tidies it up here
                self._pool, self._process = None, os.getpid()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._number, self._name)
            return self._pool.submit(call, *args, **kwargs)

    def close(self) -> None:
        with self._opening:
            if self._pool is not None and self._process == os.getpid():
                self._pool.shutdown(wait=False)


async def to_its_end(work: Future[R] | asyncio.Future[R]) -> R:
    """A cancelled call's work never began, or has ended when the call returns."""
    done = asyncio.wrap_future(work) if isinstance(work, Future) else work
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        if not (isinstance(work, Future) and work.cancel()):
            await asyncio.wait([done])
            done.exception()
        raise
