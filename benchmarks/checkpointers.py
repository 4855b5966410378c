"""Checkpointers side by side: `python -m benchmarks.checkpointers [--turns 25 100 400 1000]`.

All savers run in the same process, on files in one temporary folder, with the same `synchronous` setting. A turn is one
`invoke` of a graph with plain `add_messages`: a question and an answer of about 250 characters each. What is short is
over before the machine has warmed to it, so it is done in several rounds, the savers in turns, and medians are told;
those of ratios are of the ratios within each round, since a machine is slower at some times than at others. The rounds
are spread over several processes, one after the other, as where things happen to lie in memory makes one process differ
from the next by some hundredths.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import operator
import os
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send
from rich.console import Console
from rich.table import Table

from memstate_langgraph import AsyncMemoryStore, AsyncSQLiteStorage, MemoryStore, MemStateCheckpointer, SQLiteStorage

SYNCHRONOUS = "NORMAL"
ROUNDS_OF = 1500
"""Turns in all the rounds of one chat; a longer one is held once."""
PROCESSES = 10
"""In which these rounds are held, if there are enough of them."""
READS = 5
"""How often a thread is read, each time by a saver that has read nothing yet."""
CONFIG: Any = {"configurable": {"thread_id": "t"}}


# --- the contestants: each a context manager that gives a saver on a path


@contextmanager
def ours(path: Path) -> Iterator[Any]:
    with MemoryStore(SQLiteStorage(path, synchronous="NORMAL")) as memory:
        yield MemStateCheckpointer(memory=memory)


@contextmanager
def in_memory(path: Path) -> Iterator[Any]:  # noqa: ARG001 -- the same signature as the others
    yield InMemorySaver()


@contextmanager
def sqlite_saver(path: Path) -> Iterator[Any]:
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection)
    saver.setup()
    connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
    yield saver
    connection.close()


SAVERS: dict[str, Callable[[Path], Any]] = {"ours": ours, "InMemorySaver": in_memory, "SqliteSaver": sqlite_saver}


def text(i: int) -> str:
    return f"{i} " + os.urandom(120).hex()


def chat(saver: Any) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [AIMessage(text(len(state["messages"])))]})
    graph.add_edge(START, "agent")
    return graph.compile(checkpointer=saver)


def bytes_of(path: Path) -> int:
    """Bytes on disk after the write-ahead log is folded in."""
    if not path.exists():
        return 0
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


class Clock:
    def __init__(self) -> None:
        gc.collect()
        self._began = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._began


def chat_run(make: Callable[[Path], Any], path: Path, turns: int) -> dict[str, float]:
    with make(path) as saver:
        app = chat(saver)
        clock = Clock()
        for i in range(turns):
            app.invoke({"messages": [HumanMessage(text(i))]}, CONFIG)
        wall = clock()
        size = bytes_of(path)
        if isinstance(saver, InMemorySaver):
            reads = [timed_reads(app) for _ in range(READS)]
    if not isinstance(saver, InMemorySaver):
        reads = []
        for _ in range(READS):
            with make(path) as saver:  # as a new process would, nothing is cached
                reads.append(timed_reads(chat(saver)))
    resume, history = map(statistics.median, zip(*reads, strict=True))
    return {"wall ms/turn": wall / turns * 1e3, "resume ms": resume * 1e3, "history of 20 ms": history * 1e3,
            "bytes/turn": size / turns}  # fmt: skip


Runs = dict[str, Callable[[Path], dict[str, float]]]
Results = dict[str, dict[str, float]]
"""By saver, then by measure."""


def in_rounds(rounds: int, runs: Runs) -> list[Results]:
    """What each round measured; they are held in several processes."""
    processes = max(1, min(PROCESSES, rounds // 2))
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        return [*chain(*pool.map(rounds_of, [rounds // processes] * processes, [runs] * processes))]


def rounds_of(count: int, runs: Runs) -> list[Results]:
    """As in one process; each round in the other order, so that no saver is always the first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for make in SAVERS.values():
            chat_run(make, folder / f"warm {make.__name__}.db", 3)
        return [
            {saver: runs[saver](folder / f"{saver} {i}.db") for saver in sorted(runs, reverse=i % 2 == 1)}
            for i in range(count)
        ]


def median_of(rounds: list[Results], saver: str, measure: str, peer: str = "") -> float:
    """Of a measure; or of its ratio to the peer's, 0 if that is nothing."""
    return statistics.median(
        one[saver][measure] / (one[peer][measure] or math.inf) if peer else one[saver][measure] for one in rounds
    )


def timed_reads(app: Any) -> tuple[float, float]:
    clock = Clock()
    app.get_state(CONFIG)
    resume = clock()
    clock = Clock()
    list(app.get_state_history(CONFIG, limit=20))
    return resume, clock()


async def achat_run(path: Path, turns: int, which: str) -> dict[str, float]:
    async def run(saver: Any) -> float:
        app = chat(saver)
        clock = Clock()
        for i in range(turns):
            await app.ainvoke({"messages": [HumanMessage(text(i))]}, CONFIG)
        return clock()

    if which == "ours":
        async with AsyncMemoryStore(AsyncSQLiteStorage(path, synchronous="NORMAL")) as memory:
            wall = await run(MemStateCheckpointer(memory=memory))
    else:
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            await saver.setup()
            await saver.conn.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            wall = await run(saver)
    return {"wall ms/turn": wall / turns * 1e3, "bytes/turn": bytes_of(path) / turns}


def ainvoked(path: Path, which: str, turns: int) -> dict[str, float]:
    return asyncio.run(achat_run(path, turns, which))


class State(TypedDict, total=False):
    found: Annotated[list[int], operator.add]
    document: dict[str, str]
    note: str


def fan_out(saver: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("plan", lambda _: {})
    graph.add_node("work", lambda state: {"found": [state["note"]]})
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda _: [Send("work", {"note": i}) for i in range(100)], ["work"])
    return graph.compile(checkpointer=saver)


def touched(state: State) -> State:
    document = dict(state["document"])
    document[f"part {len(state['note']) % 100}"] += "."
    return {"document": document, "note": state["note"] + "x"}


def large(saver: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("touch", touched)
    graph.add_edge(START, "touch")
    return graph.compile(checkpointer=saver)


def fan_out_run(make: Callable[[Path], Any], path: Path) -> dict[str, float]:
    with make(path) as saver:
        app = fan_out(saver)
        clock = Clock()
        for _ in range(5):
            app.invoke({"note": ""}, CONFIG)
        return {"wall ms": clock() / 5 * 1e3, "KB": bytes_of(path) / 5 / 1e3}


def large_run(make: Callable[[Path], Any], path: Path) -> dict[str, float]:
    with make(path) as saver:
        app = large(saver)
        app.update_state(CONFIG, {"document": {f"part {i}": os.urandom(50_000).hex() for i in range(100)}, "note": ""})
        clock = Clock()
        for _ in range(100):
            app.invoke({"note": os.urandom(4).hex()}, CONFIG)
        return {"wall ms": clock() / 100 * 1e3, "KB": bytes_of(path) / 1e3}


def threads_run(make: Callable[[Path], Any], path: Path) -> dict[str, float]:
    with make(path) as saver:
        app = chat(saver)

        def talk(name: int) -> None:
            for i in range(25):
                app.invoke({"messages": [HumanMessage(text(i))]}, {"configurable": {"thread_id": str(name)}})

        threads = [threading.Thread(target=talk, args=(name,)) for name in range(8)]
        clock = Clock()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"wall ms": clock() / 200 * 1e3, "KB": bytes_of(path) / 1e3}


def show(console: Console, title: str, rounds: list[Results], peer: str) -> None:
    measures = list(rounds[0][peer])
    table = Table("saver", *(name for measure in measures for name in (measure, f"/ {peer}")), title=title)
    for saver in rounds[0]:
        cells = []
        for measure in measures:
            cells += [f"{median_of(rounds, saver, measure):,.1f}", f"{median_of(rounds, saver, measure, peer):.3f}"]
        table.add_row(saver, *cells)
    console.print(table)


def picture(path: Path, chats: dict[int, list[Results]]) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, measure in zip(axes, ("wall ms/turn", "bytes/turn"), strict=True):
        for saver in SAVERS:
            found = [(turns, median_of(rounds, saver, measure)) for turns, rounds in chats.items()]
            if any(value for _, value in found):
                axis.plot(*zip(*found, strict=True), marker="o", label=saver)
        axis.set(xlabel="turns", title=measure, xscale="log", yscale="log")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, nargs="+", default=[25, 100, 400, 1000])
    parser.add_argument("--picture", type=Path, default=Path("benchmarks/checkpointers.svg"))
    options = parser.parse_args()
    console = Console(width=130)
    console.print(f"synchronous = {SYNCHRONOUS} for all")
    chats: dict[int, list[Results]] = {}
    doors = ("ours", "AsyncSqliteSaver")
    for turns in options.turns:
        rounds = max(1, ROUNDS_OF // turns)
        invoke: Runs = {saver: partial(chat_run, make, turns=turns) for saver, make in SAVERS.items()}
        chats[turns] = in_rounds(rounds, invoke)
        show(console, f"chat of {turns} turns", chats[turns], "SqliteSaver")
        ainvoke: Runs = {door: partial(ainvoked, which=door, turns=turns) for door in doors}
        show(console, f"chat of {turns} turns, ainvoke", in_rounds(rounds, ainvoke), "AsyncSqliteSaver")
    for title, run, rounds in (
        ("fan-out of 100 Sends, per run", fan_out_run, 10),
        ("10 MB document touched 100 times: per touch, and in all", large_run, 1),
        ("8 threads at once, 25 turns each: per turn, and in all", threads_run, 10),
    ):
        results = in_rounds(rounds, {saver: partial(run, make) for saver, make in SAVERS.items()})
        show(console, title, results, "SqliteSaver")
    picture(options.picture, chats)


if __name__ == "__main__":
    main()
