"""A graph whose model never says the same twice, killed at random moments and resumed until it finishes.

What it says it commits to memory and puts into its state. Each process that goes on looks first, before anything is
recovered: search shows the live facts. In the end the live facts are what the final state says, and after a repair
the vector store holds their vectors and no others.
"""

from __future__ import annotations

import asyncio
import operator
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_chroma import Chroma
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from memstate_langgraph import MemoryStore, MemStateCheckpointer
from tests.children import in_child
from tests.faults import FaultyHook, FaultyStorage, Points, kill
from tests.graphs import AGAIN, CONFIG, Durability, say as remember
from tests.stores import SQLITE, Place, Words, found, live

ROUNDS = 2

KILLS_EACH = 3
"""How often a graph is killed before it may finish."""


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    round: int


Make = Callable[[Path, MemoryStore], BaseCheckpointSaver[Any]]


def ours(folder: Path, memory: MemoryStore) -> BaseCheckpointSaver[Any]:
    return MemStateCheckpointer(memory)


def theirs(folder: Path, memory: MemoryStore) -> BaseCheckpointSaver[Any]:
    """LangGraph's own, with memory written as the nodes run."""
    return SqliteSaver(sqlite3.connect(folder / "checkpoints.db", check_same_thread=False))


@dataclass(frozen=True)
class Setting:
    """Under which circumstances the graph runs."""

    durability: Durability
    place: Place = SQLITE
    saver: Make = ours
    vectors: bool = False
    awaited: bool = False

    def open(self, folder: Path, points: Points) -> MemoryStore:
        storage: Any = FaultyStorage(self.place.storage(folder), points)
        if not self.vectors:
            return MemoryStore(storage)
        vectors = Chroma("notes", Words(), persist_directory=str(folder / "chroma"))
        hook = FaultyHook(points, vectors, text_field="content", lease=0.0, grace=0.0, late=0.0)
        return MemoryStore(storage, [hook])


def graph(memory: MemoryStore, saver: BaseCheckpointSaver[Any]) -> Any:
    def say(who: str) -> str:
        return remember(memory, who)

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
    outer.add_node("flaky", flaky, retry_policy=AGAIN)
    outer.add_edge(START, "plan")
    outer.add_conditional_edges("plan", lambda _: [Send("tool", {"number": i}) for i in range(3)], ["tool"])
    outer.add_edge("tool", "call")
    outer.add_edge("call", "flaky")
    outer.add_conditional_edges("flaky", lambda state: "plan" if state["round"] < ROUNDS else END, ["plan", END])
    return outer.compile(checkpointer=saver)


def run(folder: Path, setting: Setting, at: int) -> dict[str, Any]:
    """Begin or go on; be killed at the step of storage or vector store numbered `at`, if it comes to that."""
    random.seed()  # a forked child would repeat its parent's choices
    points = Points(at=at, fault=kill)
    memory = setting.open(folder, points)
    problems = agree(memory, "before recovery")
    app = graph(memory, setting.saver(folder, memory))
    points.armed = True
    before = app.get_state(CONFIG)
    given: State | None = None if before.created_at else {"said": []}
    if before.next or given is not None:
        if setting.awaited:
            asyncio.run(app.ainvoke(given, CONFIG, durability=setting.durability))
        else:
            app.invoke(given, CONFIG, durability=setting.durability)
    points.armed = False
    problems += agree(memory, "at the end")
    said = sorted(app.get_state(CONFIG).values["said"])
    remembered = sorted(fact.payload["content"] for fact in memory.query("note"))
    if strays := sorted(set(remembered) - set(said)):
        problems.append(f"remembered but not in the history: {strays}")
    if said != remembered and (lost := sorted(set(said) - set(remembered))):
        problems.append(f"in the history but not remembered: {lost}")
    if len(remembered) != len(set(remembered)):
        problems.append(f"remembered twice: {remembered}")
    if setting.vectors:
        repaired = memory.repair()
        held = len(memory._core.vectors[0].ids() or ())
        if not repaired.ok or held != len(remembered):
            problems.append(f"after repair: {held} vectors of {len(remembered)} facts: {repaired}")
    memory.close()
    return {"steps": len(points.labels), "problems": problems}


def agree(memory: MemoryStore, when: str) -> list[str]:
    """Whether search shows what is live, and nothing else."""
    if not memory._core.vectors or (hits := found(memory)) == (facts := live(memory)):
        return []
    return [f"{when}: search shows {sorted(hits)}, the facts are {sorted(facts)}"]


def steps(folder: Path, setting: Setting) -> int:
    """How many steps a graph takes that nobody kills."""
    folder.mkdir(exist_ok=True)
    setting.place.storage(folder).close()  # here, so that the server that it may need outlives the children
    _, told = in_child(lambda: run(folder, setting, 0))
    assert "error" not in told, told["error"]
    count: int = told["steps"]
    return count


def trial(folder: Path, setting: Setting, chance: random.Random, most: int) -> tuple[int, list[str]]:
    """Kill and resume until the graph finishes; how many kills it took, and what is wrong."""
    folder.mkdir()
    kills = 0
    while True:
        at = chance.randint(1, max(1, most >> kills)) if kills < KILLS_EACH else 0  # there is ever less left to do
        killed, told = in_child(lambda at=at: run(folder, setting, at))  # type: ignore[misc]
        if killed == 9:
            kills += 1
        elif killed or "error" in told:
            return kills, [f"ended by signal {killed}" if killed else told["error"]]
        else:
            return kills, told["problems"]


@dataclass(frozen=True)
class Outcome:
    """What came of graphs that were killed."""

    kills: int
    graphs: int
    violations: int
    problems: list[str]


def kill_often(folder: Path, setting: Setting, wanted: int, seed: int) -> Outcome:
    """Kill one graph after the other until there were so many kills."""
    chance = random.Random(seed)
    most = steps(folder / "clean", setting)
    kills = graphs = violations = 0
    problems: list[str] = []
    while kills < wanted:
        graphs += 1
        more, wrong = trial(folder / str(graphs), setting, chance, most)
        kills += more
        violations += bool(wrong)
        problems += [f"{setting}, seed {seed}, graph {graphs}, after {more} kills: {problem}" for problem in wrong]
    return Outcome(kills, graphs, violations, problems)
