"""A saver's checkpoints, made by hand or by a chat, and a saver that knows nothing yet."""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import MemStateCheckpointer

Saver = BaseCheckpointSaver[Any]
META: CheckpointMetadata = {"source": "loop", "step": 0, "parents": {}}


def config(thread: str = "t", **more: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def checkpoint(values: dict[str, Any] | None = None, versions: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint(
        v=2, id=str(uuid6()), ts="2026-01-01T00:00:00+00:00", channel_values=values or {},
        channel_versions=versions or {}, versions_seen={}, updated_channels=None,
    )  # fmt: skip


def forgetful(saver: MemStateCheckpointer) -> MemStateCheckpointer:
    """The saver as a new process would have it: nothing is known."""
    fresh = copy.copy(saver)
    fresh._recent, fresh._pristine = type(saver._recent)(), type(saver._pristine)()
    return fresh


def chat(saver: Saver) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [AIMessage(f"answer {len(state['messages'])}", id=None)]})
    graph.add_edge(START, "agent")
    return graph.compile(checkpointer=saver)
