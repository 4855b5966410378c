"""Whose memory a tool or node works on: decided by the application's config, never by a model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from memstate_langgraph.async_memory import AsyncMemoryStore
from memstate_langgraph.errors import ScopeError, ValidationFailed
from memstate_langgraph.facts import Cause, Namespace
from memstate_langgraph.graph import cause_of
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.rules import check_characters
from memstate_langgraph.run import adrive, drive

R = TypeVar("R")
Store = MemoryStore | AsyncMemoryStore
_SLOT = re.compile(r"\{(\w+)\}")


class Template:
    """A namespace with slots such as `("memories", "{user_id}")`, filled from the config or the runtime context."""

    def __init__(self, parts: Sequence[str]) -> None:
        if isinstance(parts, str) or not all(isinstance(cast("object", part), str) and part for part in parts):
            raise ValidationFailed(f"namespace: must be a tuple of non-empty strings, not {parts!r}")
        for part in parts:
            if not set("{}").isdisjoint(_SLOT.sub("", part)):
                raise ValidationFailed(f"namespace: {part!r} has a brace that belongs to no slot such as '{{user_id}}'")
            if len(_SLOT.findall(part)) > 1:  # 'a-b' and 'c' would meet 'a' and 'b-c'
                raise ValidationFailed(f"namespace: {part!r} has two slots; give each a part of its own")
        self.parts = tuple(parts)

    def fill(self, values: Callable[[str], object]) -> Namespace:
        # each slot is filled once, inside its own part: a value with braces or slashes stays one value
        return tuple(_SLOT.sub(lambda slot: _filled(slot[1], values(slot[1])), part) for part in self.parts)


def _filled(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | UUID) or not str(value).strip():
        raise ScopeError(
            f"the application did not say whose memory this is: it must pass config['configurable'][{name!r}], "
            "which is missing or empty; nothing was read or written"
        )
    text = str(value)
    try:
        check_characters(text, name)
    except ValidationFailed as error:
        raise ScopeError(str(error)) from error
    return text


@dataclass(frozen=True, slots=True)
class Scope:
    """The namespace and session of a running task, and what is recorded with its changes."""

    namespace: Namespace
    cause: Cause

    @classmethod
    def of(cls, template: Template, config: RunnableConfig | None, tool_call_id: str | None = None) -> Scope:
        running = ensure_config(config)  # a node's own code may leave the config out
        configurable = running.get("configurable") or {}
        context = getattr(configurable.get("__pregel_runtime"), "context", None)

        def value(name: str) -> object:
            if configurable.get(name) is not None:
                return configurable[name]
            return context.get(name) if isinstance(context, Mapping) else getattr(context, name, None)

        return cls(template.fill(value), cause_of(running, tool_call_id))

    @property
    def session_id(self) -> str:
        """The thread, which owns every change made in it; so that none is made without one."""
        return _filled("thread_id", self.cause.thread_id)

    def key(self, *parts: object) -> str | None:
        """An idempotency key for something this task does, the same when the task runs again; None outside one."""
        if self.cause.task_id is None:
            return None
        told = [self.cause.thread_id, self.cause.checkpoint_ns, self.namespace, self.cause.task_id, *parts]
        return "task:" + hashlib.sha256(json.dumps(told).encode()).hexdigest()[:40]


class Ask(NamedTuple):
    """A call of the memory store, whichever door it has."""

    method: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    def on(self, memory: Store) -> Any:
        return getattr(memory, self.method)(*self.args, **self.options)


Script = Generator[Ask, Any, R]
"""What a tool or node does, written once for both doors."""


def ask(method: str, *args: Any, **options: Any) -> Script[Any]:
    answer = yield Ask(method, args, options)
    return answer


def act(script: Script[R], memory: Store) -> R:
    if isinstance(memory, AsyncMemoryStore):
        raise ValidationFailed(
            "this graph runs through the sync door but its memory is an AsyncMemoryStore: "
            "call ainvoke or astream, or build the tools and nodes on a MemoryStore"
        )
    return drive(script, lambda question: question.on(memory))


async def aact(script: Script[R], memory: Store) -> R:
    if isinstance(memory, MemoryStore):
        return await asyncio.to_thread(act, script, memory)  # its disk and vector store must not block the loop
    return await adrive(script, lambda question: question.on(memory))
