"""The drivers: the only place where sync and async differ.

`drive` answers what a plan asks inside one transaction. `perform` runs a flow: what happens between
transactions, where vector stores and hooks are called.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from memstate_langgraph.ops import Work

Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")


def drive(plan: Generator[Q, Any, R], answer: Callable[[Q], Any]) -> R:
    """Answer what a generator asks until it is done; what an answer raises is raised where it was asked."""
    try:
        question = next(plan)
        while True:
            try:
                result = answer(question)
            except BaseException as error:
                question = plan.throw(error)
            else:
                question = plan.send(result)
    except StopIteration as done:
        value: R = done.value
        return value


async def adrive(plan: Generator[Q, Any, R], answer: Callable[[Q], Awaitable[Any]]) -> R:
    try:
        question = next(plan)
        while True:
            try:
                result = await answer(question)
            except BaseException as error:
                question = plan.throw(error)
            else:
                question = plan.send(result)
    except StopIteration as done:
        value: R = done.value
        return value


def relay(plan: Generator[Q, Any, R], answer: Callable[[Q], Generator[S, Any, Any]]) -> Generator[S, Any, R]:
    """Answer what a generator asks by asking further out: for rules about I/O that are the same through both doors."""
    try:
        question = next(plan)
        while True:
            try:
                result = yield from answer(question)
            except BaseException as error:
                question = plan.throw(error)
            else:
                question = plan.send(result)
    except StopIteration as done:
        value: R = done.value
        return value


def pauses() -> Iterator[float]:
    """Seconds to wait between attempts: short at first, longer later, never in step with the other one."""
    longest = 0.001
    while True:
        yield random.uniform(0.0005, longest)
        longest = min(longest * 2, 0.1)


class Storage(Protocol):
    """Runs plans, each in a transaction of its own: all of it or nothing, again from the top on contention."""

    def run(self, work: Work[R]) -> R: ...

    def close(self) -> None: ...

    def aio(self) -> AsyncStorage:
        """The same data through the async door."""
        ...


class AsyncStorage(Protocol):
    """A `Storage` whose calls are awaited."""

    async def run(self, work: Work[R]) -> R: ...

    async def close(self) -> None: ...

    def sync(self) -> Storage:
        """The same data through the sync door, for threads that run no event loop."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """A call out of the store, never inside a transaction: `method` through the sync door, `amethod` async."""

    target: Any
    method: str
    args: tuple[Any, ...]


Step = Work[Any] | Call
Flow = Generator[Step, Any, R]
"""Yields transactions and calls, is sent their results, and has what they raise thrown in."""


def perform(flow: Flow[R], storage: Storage) -> R:
    def answer(step: Step) -> Any:
        if isinstance(step, Work):
            return storage.run(step)
        return getattr(step.target, step.method)(*step.args)

    return drive(flow, answer)


async def aperform(flow: Flow[R], storage: AsyncStorage) -> R:
    async def answer(step: Step) -> Any:
        if isinstance(step, Work):
            return await storage.run(step)
        return await getattr(step.target, "a" + step.method)(*step.args)

    return await adrive(flow, answer)


async def acall(function: Callable[..., Any], *args: Any) -> Any:
    """Call a hook of either kind from the async door; a sync one runs in a thread."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004 -- asks what calling it gives, not whether it can be called
        return await function(*args)
    result = await asyncio.to_thread(function, *args)
    return await result if inspect.isawaitable(result) else result
