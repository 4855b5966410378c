"""What the running LangGraph task says of itself to code that it calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables.config import var_child_runnable_config

from memstate_langgraph.facts import NO_CAUSE, Cause


def current_cause() -> Cause:
    """The cause to record with a change made now: empty outside a graph."""
    config = var_child_runnable_config.get()
    return NO_CAUSE if config is None else cause_of(config)


def cause_of(config: Mapping[str, Any], tool_call_id: str | None = None) -> Cause:
    configurable = config.get("configurable") or {}
    metadata = config.get("metadata") or {}
    return Cause(
        thread_id=_text(configurable.get("thread_id")),
        checkpoint_ns=_text(configurable.get("checkpoint_ns")),
        checkpoint_id=_text(configurable.get("checkpoint_id")),
        task_id=_text(configurable.get("__pregel_task_id")),
        tool_call_id=tool_call_id,
        run_id=_text(config.get("run_id") or metadata.get("run_id")),
        node=_text(metadata.get("langgraph_node")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
