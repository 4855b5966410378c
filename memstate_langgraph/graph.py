"""What the running LangGraph task says of itself to code that it calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from langchain_core.runnables.config import var_child_runnable_config

from memstate_langgraph.facts import NO_CAUSE, Cause

SEPARATOR = "|"
"""Between the graphs of a checkpoint namespace, the outermost first."""


def current_cause() -> Cause:
    """The cause to record with a change made now: empty outside a graph."""
    config = var_child_runnable_config.get()
    return NO_CAUSE if config is None else cause_of(config)


def cause_of(config: Mapping[str, Any], tool_call_id: str | None = None) -> Cause:
    configurable = config.get("configurable") or {}
    metadata = config.get("metadata") or {}
    level = levels_of(configurable)[-1:]
    return Cause(
        thread_id=_text(configurable.get("thread_id")),
        checkpoint_ns=level[0].checkpoint_ns if level else _text(configurable.get("checkpoint_ns")),
        checkpoint_id=level[0].checkpoint_id if level else _text(configurable.get("checkpoint_id")),
        task_id=_text(configurable.get("__pregel_task_id")),
        tool_call_id=tool_call_id,
        run_id=_text(config.get("run_id") or metadata.get("run_id")),
        node=_text(metadata.get("langgraph_node")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class Level(NamedTuple):
    """A task and the checkpoint that it runs on. A task of a subgraph has a level for each graph around it."""

    checkpoint_ns: str
    checkpoint_id: str
    task_id: str


class Attempt(NamedTuple):
    """At a task: of two, the later one is the greater, also when it is made in another run."""

    began: float
    """When the first attempt in its run began, in seconds since the epoch."""
    number: int


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at a running task, outermost graph first."""

    thread_id: str
    levels: tuple[Level, ...]
    run: object
    """The same for all tasks of a run, those of its subgraphs included."""
    attempt: Attempt
    exits: bool
    """Whether the run stores only its last checkpoint (durability `exit`)."""
    checkpointer: object


def running_task() -> Task | None:
    """The task that the calling code runs in, None where there is none.

    The context reaches tools, called functions and asyncio tasks, not the threads that a node starts itself.
    """
    config = var_child_runnable_config.get()
    configurable = {} if config is None else config.get("configurable") or {}
    checkpointer, thread_id = configurable.get("__pregel_checkpointer"), configurable.get("thread_id")
    if checkpointer is None or thread_id is None:
        return None
    levels = levels_of(configurable)
    if not levels:
        return None
    runtime = configurable.get("__pregel_runtime")
    info = getattr(runtime, "execution_info", None)
    return Task(
        thread_id=str(thread_id),
        levels=levels,
        run=run_of(configurable),
        attempt=Attempt(getattr(info, "node_first_attempt_time", None) or 0.0, getattr(info, "node_attempt", 1)),
        exits=exits(configurable),
        checkpointer=checkpointer,
    )


def exits(configurable: Mapping[str, Any]) -> bool:
    """Whether a run stores only its last checkpoint."""
    return bool(configurable.get("__pregel_durability") == "exit")


def run_of(configurable: Mapping[str, Any]) -> object:
    return getattr(configurable.get("__pregel_runtime"), "control", None)


def levels_of(configurable: Mapping[str, Any]) -> tuple[Level, ...]:
    """The namespace of a task is a path of `node:task id`; the map tells the checkpoint of each graph on it."""
    checkpoints: Mapping[str, str] = configurable.get("checkpoint_map") or {}
    parts = str(configurable.get("checkpoint_ns") or "").split(SEPARATOR)
    levels: list[Level] = []
    for i, part in enumerate(parts):
        _, colon, task_id = part.rpartition(":")
        checkpoint_ns = SEPARATOR.join(parts[:i])
        # a subgraph with a memory of its own (checkpointer=True) has a namespace without task ids
        bare = SEPARATOR.join(piece.partition(":")[0] for piece in parts[:i] if not piece.isdigit())
        for known in (checkpoint_ns, bare):
            if colon and known in checkpoints:
                # a @task is called: it runs on its caller's checkpoint
                called = bool(levels) and levels[-1].checkpoint_id == checkpoints[known]
                levels.append(Level(levels[-1].checkpoint_ns if called else known, checkpoints[known], task_id))
                break
    return tuple(levels)
