"""What it costs that a node is a transaction: `python -m benchmarks.landing [--tasks 400]`.

A task that commits one fact and whose writes are then stored, as LangGraph does it: with the fact staged and landing
with the writes, beside the two bare calls, `put_writes` and a commit outside a graph, on the same files in one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.base import empty_checkpoint
from rich.console import Console
from rich.table import Table

from memstate_langgraph import Fact, MemoryStore, MemStateCheckpointer, SQLiteStorage, VectorStoreSyncHook

Commit = Callable[[MemoryStore], str]


def one_fact(memory: MemoryStore) -> str:
    return memory.commit(Fact(type="note", payload={"content": uuid.uuid4().hex}))


def bare(memory: MemoryStore, saver: MemStateCheckpointer, stored: Any, task_id: str) -> None:
    one_fact(memory)
    saver.put_writes(stored, [("said", ["something"])], task_id)


def in_a_task(memory: MemoryStore, saver: MemStateCheckpointer, stored: Any, task_id: str) -> None:
    place = stored["configurable"]
    configurable = {
        "thread_id": place["thread_id"],
        "checkpoint_ns": f"node:{task_id}",
        "checkpoint_map": {"": place["checkpoint_id"]},
        "__pregel_task_id": task_id,
        "__pregel_checkpointer": saver,
        "__pregel_runtime": SimpleNamespace(control=object()),
    }
    token = var_child_runnable_config.set({"configurable": configurable})
    one_fact(memory)
    var_child_runnable_config.reset(token)
    saver.put_writes(stored, [("said", ["something"])], task_id)


def measured(folder: Path, vectors: bool, tasks: int) -> tuple[float, float]:
    """Median milliseconds of a task: bare, and with its fact landing. Taken in turns, so that noise meets both."""
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))
    hooks = [VectorStoreSyncHook(store, text_field="content")] if vectors else []
    times: dict[Any, list[float]] = {bare: [], in_a_task: []}
    with MemoryStore(SQLiteStorage(folder / f"{vectors}.db", synchronous="NORMAL"), hooks) as memory:
        saver = MemStateCheckpointer(memory)
        place: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        stored = saver.put(place, empty_checkpoint(), {"source": "loop", "step": 0, "parents": {}}, {})
        for i in range(2 * tasks):
            way = (bare, in_a_task)[i % 2]
            began = time.perf_counter()
            way(memory, saver, stored, str(uuid.uuid4()))
            times[way].append(time.perf_counter() - began)
        assert len(memory.query("note")) == 2 * tasks
    return tuple(sorted(each)[tasks // 2] * 1e3 for each in times.values())  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=400)
    options = parser.parse_args()
    table = Table("a task with one fact", "bare calls, ms", "landing, ms", "ratio", title="synchronous = NORMAL")
    with tempfile.TemporaryDirectory() as name:
        for label, vectors in (("without vectors", False), ("with a vector", True)):
            plain, landing = measured(Path(name), vectors, options.tasks)
            table.add_row(label, f"{plain:.2f}", f"{landing:.2f}", f"{landing / plain:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
