"""A node is a transaction: an agent that is killed again and again remembers each step once.

    python examples/exactly_once.py

A child process runs a graph whose "model" never says the same twice. Whatever it says, it says in its answer and
commits to memory. The parent kills it (SIGKILL) at random moments and starts it again until the graph is done;
once with the checkpointer of this package, once with LangGraph's own beside the same memory (it needs
`langgraph-checkpoint-sqlite`).
"""

import operator
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

from memstate_langgraph import Fact, MemoryStore, MemStateCheckpointer, SQLiteStorage

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def build(memory: MemoryStore, saver: BaseCheckpointSaver[Any]) -> Any:
    def think(state: State) -> State:
        thought = f"thought {len(state['said'])} {uuid.uuid4().hex[:6]}"
        memory.commit(Fact(type="thought", payload={"content": thought}))
        time.sleep(0.02)  # the rest of the node's work
        return {"said": [thought]}

    graph = StateGraph(State)
    graph.add_node("think", think)
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", lambda state: END if len(state["said"]) >= 60 else "think")
    return graph.compile(checkpointer=saver)


def open_app(folder: Path, whose: str) -> tuple[MemoryStore, Any]:
    memory = MemoryStore(SQLiteStorage(folder / "state.db"))
    if whose == "ours":
        return memory, build(memory, MemStateCheckpointer(memory))
    return memory, build(memory, SqliteSaver(sqlite3.connect(folder / "theirs.db", check_same_thread=False)))


def work(folder: Path, whose: str) -> None:
    _, app = open_app(folder, whose)
    begun = app.get_state(CONFIG).created_at
    print("ready", flush=True)
    app.invoke(None if begun else {"said": []}, {**CONFIG, "recursion_limit": 100})


def watch(folder: Path, whose: str) -> None:
    kills = 0
    while True:
        child = subprocess.Popen([sys.executable, __file__, str(folder), whose], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        try:
            child.wait(timeout=random.uniform(0.02, 0.3) if kills < 8 else None)
            break
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
    memory, app = open_app(folder, whose)
    said = app.get_state(CONFIG).values["said"]
    known = [fact.payload["content"] for fact in memory.query("thought")]
    strays = sorted(set(known) - set(said))
    print(f"{whose:6} killed {kills} times: {len(said)} thoughts in the history, {len(known)} in memory,")
    print(f"       of which never happened: {', '.join(strays) or 'none'}; forgotten: {len(set(said) - set(known))}")
    assert whose == "theirs" or sorted(said) == sorted(known)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(Path(sys.argv[1]), sys.argv[2])
    else:
        for whose in ("ours", "theirs"):
            with tempfile.TemporaryDirectory() as name:
                watch(Path(name), whose)
