"""Which thread, checkpoints and pages of them a LangGraph config asks for, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, get_checkpoint_id

from memstate_langgraph.checkpoint_ops import FindCheckpoints, Place
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.rules import check_characters

PAGE = 32
"""How many checkpoints `list` reads in one transaction."""


def whereabouts(config: RunnableConfig) -> tuple[str, str | None, str | None]:
    configurable = config.get("configurable") or {}
    thread_id, checkpoint_ns = configurable.get("thread_id"), configurable.get("checkpoint_ns")
    checkpoint_id = configurable.get("checkpoint_id")
    if thread_id and are_plain(thread_id, checkpoint_ns or "", checkpoint_id or ""):
        return thread_id, checkpoint_ns, checkpoint_id
    if thread_id is None or thread_id == "":
        raise ValidationFailed(
            "the config has no thread_id: pass {'configurable': {'thread_id': '...'}} to say which conversation this is"
        )
    return (
        thread_named(thread_id),
        given(checkpoint_ns, "checkpoint_ns"),
        given(checkpoint_id, "checkpoint_id"),
    )


def thread_named(thread_id: object) -> str:
    return named(thread_id, "thread_id")


def given(value: object, where: str) -> str | None:
    return None if value is None else named(value, where)


def are_plain(*texts: Any) -> bool:
    """Whether these are strings with which nothing is wrong, as nearly all are; of others `named` may still say so."""
    if [*map(type, texts)].count(str) < len(texts):
        return False
    together = "".join(texts)
    return together.isascii() and "\x00" not in together


def named(value: object, where: str) -> str:
    if type(value) is str and value.isascii() and "\x00" not in value:
        return value
    try:
        text = str(value)
    except (RecursionError, ValueError) as error:
        raise ValidationFailed(f"{where}: must be a string ({error})") from error
    check_characters(text, where)
    return text


def config_of(place: Place) -> RunnableConfig:
    thread_id, checkpoint_ns, checkpoint_id = place
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}}


@dataclass(slots=True)
class Listing:
    """Pages of `list`: newest first, filtered by metadata, until there are enough."""

    thread_id: str | None
    checkpoint_ns: str | None
    checkpoint_id: str | None
    filter: Mapping[str, Any]
    before: str | None
    left: int | None
    after: Place | None = None
    done: bool = False

    @classmethod
    def of(
        cls,
        config: RunnableConfig | None,
        filter_: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Listing:
        thread_id, checkpoint_ns, checkpoint_id = (None, None, None) if config is None else whereabouts(config)
        before_id = None if before is None else given(get_checkpoint_id(before), "before: checkpoint_id")
        return cls(thread_id, checkpoint_ns, checkpoint_id, filter_ or {}, before_id, limit)

    def next_page(self) -> FindCheckpoints | None:
        if self.done or (self.left is not None and self.left <= 0):
            return None
        size = PAGE if self.left is None or self.filter else min(PAGE, self.left)
        return FindCheckpoints(self.thread_id, self.checkpoint_ns, self.checkpoint_id, self.before, self.after, size)

    def accept(self, page: Iterator[CheckpointTuple | None]) -> Iterator[CheckpointTuple]:
        count = 0
        for found in page:
            count += 1
            if found is None:
                continue
            yield found
            if self.left is not None:
                self.left -= 1
                if self.left <= 0:
                    return
        self.done = count < PAGE

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return all(metadata.get(key) == wanted for key, wanted in self.filter.items())
