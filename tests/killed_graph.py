"""A graph whose model never says the same twice, killed at random moments and resumed until it finishes."""

from __future__ import annotations

import json
import operator
import os
import random
import sqlite3
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy, Send

from memstate_langgraph import Fact, MemoryStore, MemStateCheckpointer, SQLiteStorage
from tests.faults import FaultyStorage, Points, kill

Durability = Literal["sync", "async", "exit"]
DURABILITIES: list[Durability] = ["sync", "async", "exit"]
CONFIG: RunnableConfig = {"configurable": {"thread_id": "t"}}
ROUNDS = 2


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    round: int


Make = Callable[[Path, MemoryStore], BaseCheckpointSaver[Any]]


def ours(folder: Path, memory: MemoryStore) -> BaseCheckpointSaver[Any]:
    return MemStateCheckpointer(memory)


def theirs(folder: Path, memory: MemoryStore) -> BaseCheckpointSaver[Any]:
    """LangGraph's own, with memory written as the nodes run."""
    return SqliteSaver(sqlite3.connect(folder / "checkpoints.db", check_same_thread=False))


def graph(memory: MemoryStore, saver: BaseCheckpointSaver[Any]) -> Any:
    def say(who: str) -> str:
        content = f"{who} {uuid.uuid4().hex}"
        memory.commit(Fact(type="note", payload={"content": content}))
        return content

    def node(who: str) -> Any:
        return lambda state: {"said": [say(who), say(who)]}

    def tool(state: Any) -> State:
        return {"said": [say(f"tool {state['number']}")]}

    def flaky(state: State) -> State:
        said = say("flaky")
        if random.random() < 0.5:
            raise ValueError("again")
        return {"said": [said], "round": state.get("round", 0) + 1}

    inner = StateGraph(State)
    inner.add_node("one", node("inner one"))
    inner.add_node("two", node("inner two"))
    inner.add_edge(START, "one")
    inner.add_edge("one", "two")
    inner.add_edge("two", END)

    def call(state: State) -> State:
        """A subgraph with a state of its own, called from a node."""
        return {"said": inner_app.invoke({"said": []})["said"]}

    inner_app = inner.compile()
    outer = StateGraph(State)
    outer.add_node("plan", node("plan"))
    outer.add_node("tool", tool)
    outer.add_node("call", call)
    outer.add_node(
        "flaky", flaky, retry_policy=RetryPolicy(initial_interval=0.001, max_attempts=50, retry_on=ValueError)
    )
    outer.add_edge(START, "plan")
    outer.add_conditional_edges("plan", lambda _: [Send("tool", {"number": i}) for i in range(3)], ["tool"])
    outer.add_edge("tool", "call")
    outer.add_edge("call", "flaky")
    outer.add_conditional_edges("flaky", lambda state: "plan" if state["round"] < ROUNDS else END, ["plan", END])
    return outer.compile(checkpointer=saver)


def run(folder: Path, durability: Durability, make: Make, at: int) -> dict[str, Any]:
    """Begin or go on; be killed at the step of storage numbered `at`, if it comes to that."""
    points = Points(at=at, fault=kill)
    memory = MemoryStore(FaultyStorage(SQLiteStorage(folder / "state.db", synchronous="OFF"), points))
    app = graph(memory, make(folder, memory))
    points.armed = True
    before = app.get_state(CONFIG)
    if not before.created_at:
        app.invoke({"said": []}, CONFIG, durability=durability)
    elif before.next:
        app.invoke(None, CONFIG, durability=durability)
    points.armed = False
    return {
        "steps": len(points.labels),
        "said": sorted(app.get_state(CONFIG).values["said"]),
        "live": sorted(fact.payload["content"] for fact in memory.query("note")),
    }


def in_child(job: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What the job answers in a process of its own, or None if it was killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        random.seed()
        try:
            answer = job()
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    answered: dict[str, Any] | None = json.loads(text) if text else None
    return answered


def trial(folder: Path, durability: Durability, make: Make, chance: random.Random, most: int) -> tuple[int, str | None]:
    """Kill and resume until the graph finishes; how many kills it took, and what is wrong afterwards."""
    folder.mkdir()
    kills = 0
    while True:
        at = chance.randint(1, most) if kills < 3 else 0
        told = in_child(lambda at=at: run(folder, durability, make, at))  # type: ignore[misc]
        if told is None:
            kills += 1
            continue
        if "error" in told:
            return kills, told["error"]
        if told["said"] != told["live"]:
            twice = sorted(set(told["live"]) - set(told["said"]))
            missing = sorted(set(told["said"]) - set(told["live"]))
            return kills, f"remembered but not in the history: {twice}; in the history but not remembered: {missing}"
        return kills, None
