"""The drivers: the only place where sync and async differ.

`drive` answers what a plan asks inside one transaction. `perform` runs a flow: what happens between
transactions, where vector stores and hooks are called.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import threading
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.ops import Work, unchanging

Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")


def drive(plan: Generator[Q, Any, R], answer: Callable[[Q], Any], asked: Q | None = None) -> R:
    """Answer what a generator asks until it is done; what an answer raises is raised where it was asked.

    `asked` is what it has asked already.
    """
    try:
        question = next(plan) if asked is None else asked
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


def refuse(question: object) -> Any:
    """The answer to a generator that is known to ask nothing."""
    raise AssertionError(f"nobody is there to answer {question!r}")


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


Progress = Callable[[str, int, int], None]
"""Called as long work goes on: what is being done, how much of it is done, out of how much."""


def check_progress(progress: object) -> None:
    if progress is not None and not callable(progress):
        raise ValidationFailed(f"progress: must be a callable(stage, done, total), not {progress!r}")


def tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)


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


def in_turn(questions: Iterable[Q], answer: Callable[[Q], Generator[S, Any, Any]]) -> Generator[S, Any, list[Any]]:
    answers = []
    for question in questions:
        answers.append((yield from answer(question)))  # noqa: PERF401 -- a comprehension cannot ask
    return answers


def abreast(
    plans: Sequence[Generator[Q, Any, R]], answer: Callable[[list[Q]], Generator[S, Any, Sequence[Any]]]
) -> Generator[S, Any, list[R]]:
    """`relay` for several generators side by side: what all of them ask is asked in one go."""
    results: dict[int, R] = {}
    given: dict[int, Any] = dict.fromkeys(range(len(plans)))
    while given:
        asked: dict[int, Q] = {}
        for i, value in given.items():
            try:
                asked[i] = plans[i].send(value)
            except StopIteration as done:
                results[i] = done.value
        given = dict(zip(asked, (yield from answer([*asked.values()])), strict=True)) if asked else {}
    return [results[i] for i in range(len(plans))]


def pauses() -> Iterator[float]:
    """Seconds to wait between attempts: short at first, longer later, never in step with the other one."""
    longest = 0.001
    while True:
        yield random.uniform(0.0005, longest)
        longest = min(longest * 2, 0.1)


class Storage(Protocol):
    """Runs plans, each in a transaction of its own: all of it or nothing, again from the top on contention."""

    @property
    def identity(self) -> Hashable:
        """The same for all storages of this process that hold the same data."""
        ...

    def run(self, work: Work[R]) -> R: ...

    def vacuum(self, progress: Progress | None = None) -> int:
        """Give unused space back to the file system, in short steps; how many bytes."""
        ...

    def close(self) -> None: ...

    def aio(self) -> AsyncStorage:
        """The same data through the async door."""
        ...


class AsyncStorage(Protocol):
    """A `Storage` whose calls are awaited."""

    @property
    def identity(self) -> Hashable: ...

    async def run(self, work: Work[R]) -> R: ...

    async def vacuum(self, progress: Progress | None = None) -> int: ...

    async def close(self) -> None: ...

    def sync(self) -> Storage:
        """The same data through the sync door, for threads that run no event loop."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """A call out of the store, never inside a transaction: `method` through the sync door, `amethod` async.

    After `timeout` seconds it is given up and `TimeoutError` is raised; without one nothing interrupts it.
    """

    target: Any
    method: str
    args: tuple[Any, ...]
    timeout: float | None = None


Step = Work[Any] | Call
Flow = Generator[Step, Any, R]
"""Yields transactions and calls, is sent their results, and has what they raise thrown in."""


@unchanging
class Hopeful(Generic[R]):
    """A transaction that nearly always is all there is to do; if it raises `unless`, a flow is performed instead."""

    work: Work[R]
    unless: type[Exception]
    instead: Callable[[], Flow[R]]

    def __iter__(self) -> Flow[R]:
        try:
            result: R = yield self.work
        except self.unless:
            result = yield from self.instead()
        return result


def perform(flow: Flow[R] | Hopeful[R] | Work[R], storage: Storage) -> R:
    if isinstance(flow, Work):
        return storage.run(flow)
    if isinstance(flow, Hopeful):
        try:
            made: R = storage.run(flow.work)
        except flow.unless:
            flow = flow.instead()
        else:
            return made

    def answer(step: Step) -> Any:
        if isinstance(step, Work):
            return storage.run(step)
        call = partial(getattr(step.target, step.method), *step.args)
        return call() if step.timeout is None else within(step.timeout, call)

    return drive(flow, answer)


async def aperform(flow: Flow[R] | Hopeful[R] | Work[R], storage: AsyncStorage) -> R:
    if isinstance(flow, Work):
        return await storage.run(flow)
    if isinstance(flow, Hopeful):
        try:
            made: R = await storage.run(flow.work)
        except flow.unless:
            flow = flow.instead()
        else:
            return made

    async def answer(step: Step) -> Any:
        if isinstance(step, Work):
            return await storage.run(step)
        async with asyncio.timeout(step.timeout):
            return await getattr(step.target, "a" + step.method)(*step.args)

    return await adrive(flow, answer)


def within(seconds: float, call: Callable[[], R]) -> R:
    """Call in another thread and give up on it after so many seconds; it ends by itself, or with the process."""
    done: Future[R] = Future()

    def job() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    try:
        thread = _idle.pop()
    except IndexError:
        thread = _Thread()
    thread.jobs.put(partial(copy_context().run, job))
    return done.result(seconds)


class _Thread(threading.Thread):
    """Runs one call after the other. Unlike an executor's it is a daemon: one that hangs does not keep the process."""

    def __init__(self) -> None:
        super().__init__(name="memstate-call", daemon=True)
        self.jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            self.jobs.get()()
            _idle.append(self)


_idle: list[_Thread] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a fork copies the list, not the threads


def in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def acall(function: Callable[..., Any], *args: Any) -> Any:
    """Call a hook of either kind from the async door; a sync one runs in a thread."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004 -- asks what calling it gives, not whether it can be called
        return await function(*args)
    result = await asyncio.to_thread(function, *args)
    return await result if inspect.isawaitable(result) else result
