"""A seam for faults that costs nothing in production: storages and hooks that count every step they take.

Each crossing of a point (before, inside and after a transaction; before, in the middle of and after a vector
call) has a number. A clean run tells how many there are, so that a test can place a fault at each of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from memstate_langgraph import VectorStoreSyncHook
from memstate_langgraph.ops import Op, Plan, Work
from memstate_langgraph.run import AsyncStorage, Progress, Storage
from memstate_langgraph.vectors import Text

R = TypeVar("R")


class Injected(Exception):
    """The fault. After an upsert that was applied it is what a timeout looks like."""


class Late(Injected):
    """The call fails now and is applied later, when `FaultyHook.arrive` says so."""


@dataclass
class Points:
    """Counts crossings from `armed` on and lets the fault happen at the one numbered `at`."""

    at: int = 0
    fault: Callable[[Points], None] = lambda _: None
    armed: bool = False
    labels: list[str] = field(default_factory=list)
    task: asyncio.Task[Any] | None = None
    locker: Locker | None = None

    def cross(self, label: str) -> None:
        if self.armed:
            self.labels.append(label)
            if len(self.labels) == self.at:
                self.fault(self)

    async def across(self, label: str) -> None:
        """Through the async door, where a cancellation arrives at the next wait."""
        self.task = asyncio.current_task()
        self.cross(label)
        await asyncio.sleep(0)


# --- faults


def kill(_: Points) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: Points) -> None:
    raise Injected("injected")


def arrive_late(_: Points) -> None:
    raise Late("not yet")


def interrupt(_: Points) -> None:
    raise KeyboardInterrupt


def fill_disk(_: Points) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def cancel(points: Points) -> None:
    assert points.task is not None
    loop = points.task.get_loop()
    if threading.current_thread() is threading.main_thread():
        points.task.cancel()
    else:  # inside a transaction, which runs in a thread of its own
        loop.call_soon_threadsafe(points.task.cancel)
        time.sleep(0.005)


def lock_briefly(points: Points) -> None:
    assert points.locker is not None
    points.locker.hold(0.1)


def lock_for_long(points: Points) -> None:
    assert points.locker is not None
    points.locker.hold(1.8)


BUSY_TIMEOUT = 0.3
"""Of the storages under test. SQLite itself waits a second before that is looked at."""

FAULTS: dict[str, Callable[[Points], None]] = {
    "kill": kill,
    "fail": fail,
    "late": arrive_late,
    "interrupt": interrupt,
    "disk full": fill_disk,
    "cancel": cancel,
    "locked": lock_briefly,
    "locked for long": lock_for_long,
}


class Locker:
    """Another process that locks the file when it is told to."""

    def __init__(self, path: Path) -> None:
        asks, self._asked = os.pipe()
        self._told, tells = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._asked)
            self._serve(path, asks, tells)
            os._exit(0)
        os.close(asks)
        os.close(tells)

    def _serve(self, path: Path, asks: int, tells: int) -> None:
        while seconds := os.read(asks, 16):
            connection = sqlite3.connect(path, timeout=0.0, isolation_level=None)
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:  # the one under test holds it
                os.write(tells, b"0")
            else:
                os.write(tells, b"1")
                time.sleep(float(seconds))
            connection.close()

    def hold(self, seconds: float) -> None:
        os.write(self._asked, str(seconds).encode())
        os.read(self._told, 1)

    def stop(self) -> None:
        os.close(self._asked)
        os.waitpid(self.pid, 0)


# --- the parts under test


def watched(points: Points, work: Work[R]) -> Work[R]:
    def plan() -> Plan[R]:
        inner, answer = work.start(), None
        try:
            op: Op[Any] = next(inner)
            while True:
                points.cross(f"inside, at {type(op).__name__}")
                answer = yield op
                op = inner.send(answer)
        except StopIteration as done:
            result: R = done.value
        points.cross("inside, before COMMIT")
        return result

    return Work(plan, work.write, work.durable)


def named(work: Work[Any]) -> tuple[str, str]:
    kind = "write" if work.write else "read"
    return f"before a {kind}", f"after a {kind}, before it is acknowledged"


class FaultyStorage:
    """A storage that crosses a point before, inside (at each question) and after each transaction."""

    def __init__(self, inner: Storage, points: Points) -> None:
        self.inner, self.points = inner, points

    @property
    def identity(self) -> Hashable:
        return self.inner.identity

    def run(self, work: Work[R]) -> R:
        before, after = named(work)
        self.points.cross(before)
        result = self.inner.run(watched(self.points, work))
        self.points.cross(after)
        return result

    def vacuum(self, progress: Progress | None = None) -> int:
        return self.inner.vacuum(progress)

    def close(self) -> None:
        self.inner.close()

    def aio(self) -> AsyncFaultyStorage:
        return AsyncFaultyStorage(self.inner.aio(), self.points)


class AsyncFaultyStorage:
    """The async door of `FaultyStorage`."""

    def __init__(self, inner: AsyncStorage, points: Points) -> None:
        self.inner, self.points = inner, points

    @property
    def identity(self) -> Hashable:
        return self.inner.identity

    async def run(self, work: Work[R]) -> R:
        before, after = named(work)
        await self.points.across(before)
        result = await self.inner.run(watched(self.points, work))
        await self.points.across(after)
        return result

    async def vacuum(self, progress: Progress | None = None) -> int:
        return await self.inner.vacuum(progress)

    async def close(self) -> None:
        await self.inner.close()

    def sync(self) -> FaultyStorage:
        return FaultyStorage(self.inner.sync(), self.points)


class FaultyHook(VectorStoreSyncHook):
    """A hook that crosses points around its calls, and in the middle of a batch."""

    def __init__(self, points: Points, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.points = points
        self._pending: list[Sequence[tuple[str, Text]]] = []

    def arrive(self) -> None:
        """What failed as `Late` reaches the vector store after all."""
        while self._pending:
            super().upsert(self._pending.pop())

    def upsert(self, items: Sequence[tuple[str, Text]]) -> None:
        half = len(items) // 2
        parts = [("before an upsert", items[:half]), ("in the middle of a batch", items[half:])]
        for label, part in parts if half else [("before an upsert", items)]:
            try:
                self.points.cross(label)
            except Late:
                self._pending.append(part)
                raise
            super().upsert(part)
        self.points.cross("after an upsert that was applied")

    async def aupsert(self, items: Sequence[tuple[str, Text]]) -> None:
        await self.points.across("before an upsert")
        await super().aupsert(items)
        await self.points.across("after an upsert that was applied")

    def delete(self, ids: Sequence[str]) -> None:
        self.points.cross("before a removal")
        super().delete(ids)
        self.points.cross("after a removal")

    async def adelete(self, ids: Sequence[str]) -> None:
        await self.points.across("before a removal")
        await super().adelete(ids)
        await self.points.across("after a removal")
