"""A seam for faults that costs nothing in production: storages and hooks that count every step they take.

Each crossing of a point (before, inside and after a transaction; before, in the middle of and after a vector
call) has a number. A clean run tells how many there are, so that a test can place a fault at each of them.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from memstate_langgraph import SQLiteStorage, VectorStoreSyncHook
from memstate_langgraph.ops import Op, Plan, Work
from memstate_langgraph.run import AsyncStorage, Progress
from memstate_langgraph.vectors import Text

R = TypeVar("R")


class Injected(Exception):
    """The fault."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise Injected("injected")


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_disk() -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


FAULTS: dict[str, Callable[[], None]] = {"kill": kill, "fail": fail, "interrupt": interrupt, "disk full": fill_disk}


@dataclass
class Points:
    """Counts crossings from `armed` on and lets the fault happen at the one numbered `at`."""

    at: int = 0
    fault: Callable[[], None] = fail
    armed: bool = False
    labels: list[str] = field(default_factory=list)

    def cross(self, label: str) -> None:
        if self.armed:
            self.labels.append(label)
            if len(self.labels) == self.at:
                self.fault()


class FaultyStorage:
    """A SQLite storage that crosses a point before, inside (at each question) and after each transaction."""

    def __init__(self, inner: SQLiteStorage, points: Points) -> None:
        self.inner, self.points = inner, points
        self.engine = inner.engine

    @property
    def identity(self) -> Hashable:
        return self.inner.identity

    def run(self, work: Work[R]) -> R:
        kind = "write" if work.write else "read"
        self.points.cross(f"before a {kind}")
        result = self.inner.run(Work(lambda: self._watched(work.start()), work.write, work.durable))
        self.points.cross(f"after a {kind}, before it is acknowledged")
        return result

    def _watched(self, plan: Plan[R]) -> Plan[R]:
        answer: Any = None
        try:
            op: Op[Any] = next(plan)
            while True:
                self.points.cross(f"inside, at {type(op).__name__}")
                answer = yield op
                op = plan.send(answer)
        except StopIteration as done:
            result: R = done.value
        self.points.cross("inside, before COMMIT")
        return result

    def vacuum(self, progress: Progress | None = None) -> int:
        return self.inner.vacuum(progress)

    def close(self) -> None:
        self.inner.close()

    def aio(self) -> AsyncStorage:
        return self.inner.aio()


class FaultyHook(VectorStoreSyncHook):
    """A hook that crosses points around its calls, and in the middle of a batch."""

    points = Points()

    def upsert(self, items: Sequence[tuple[str, Text]]) -> None:
        self.points.cross("before an upsert")
        half = len(items) // 2
        if half:
            super().upsert(items[:half])
            self.points.cross("in the middle of a batch")
        super().upsert(items[half:])
        self.points.cross("after an upsert that was applied")

    def delete(self, ids: Sequence[str]) -> None:
        self.points.cross("before a removal")
        super().delete(ids)
        self.points.cross("after a removal")
