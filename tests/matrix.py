"""The fault matrix: operations, faults, and what must hold after each, over a real storage and Chroma files.

`Matrix.trial` lets one fault happen at one point of one operation in a process of its own. Then, and in the next
process before any recovery, a reader sees the state before the operation or the state after it, never a part, and
search agrees with the facts; after one repair the vector store holds exactly the live vectors. What checkpoints
must look like is what LangGraph's `InMemorySaver` makes of the same calls.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from memstate_langgraph import AsyncMemoryStore, MemoryStore, MemStateCheckpointer, SQLiteStorage
from tests.children import in_child
from tests.faults import BUSY_TIMEOUT, FAULTS, AsyncFaultyStorage, FaultyHook, FaultyStorage, Locker, Points
from tests.models import note, preference, register
from tests.servers import forget_postgres, forget_redis
from tests.stores import POSTGRES, REDIS, Place, awaited, collect, found, live, replayed, settle

State = dict[str, Any]

DOORS = ["sync", "async"]

IN_A_FILE = Place("sqlite", lambda folder: SQLiteStorage(folder / "state.db", busy_timeout=BUSY_TIMEOUT), durable=True)

FORGET: dict[str, Callable[[Path], None]] = {POSTGRES.name: forget_postgres, REDIS.name: forget_redis}
"""How what is kept on a server for a folder is removed."""

OF_FILES = {"disk full", "locked", "locked for long"}
"""Faults that a server's client does not meet."""


@dataclass
class World:
    """A store and a checkpointer over the faulty parts."""

    memory: MemoryStore
    saver: BaseCheckpointSaver[str]
    hook: FaultyHook
    storage: Any
    door: str

    def save(self, method: str, *args: Any) -> None:
        if self.door == "sync":
            getattr(self.saver, method)(*args)
        else:
            face: Any = self.memory
            face._runner.run(getattr(self.saver, f"a{method}")(*args))


def open_world(place: Place, folder: Path, points: Points, door: str = "sync", late: float = 0.0) -> World:
    vectors = Chroma("notes", DeterministicFakeEmbedding(size=8), persist_directory=str(folder / "chroma"))
    hook = FaultyHook(points, vectors, text_field="content", lease=0.0, grace=0.0, late=late)
    storage = place.storage(folder)
    memory: Any
    if door == "sync":
        memory = MemoryStore(FaultyStorage(storage, points), [hook])
        saver = MemStateCheckpointer(memory)
    else:
        store = AsyncMemoryStore(AsyncFaultyStorage(storage.aio(), points), [hook])
        memory, saver = awaited(store), MemStateCheckpointer(store)
    register(memory)
    return World(memory, saver, hook, storage, door)


# --- operations


def transact(world: World) -> None:
    with world.memory.transaction(session_id="s") as tx:
        for i in range(4):
            tx.commit(note(f"one of several {i}", f"t{i}"))
        tx.update("a", {"content": "changed with the others"})
        tx.delete("b")


def checkpoint(number: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The arguments of the `put` of one checkpoint in a conversation that grows."""
    version = f"{number:032}.1"
    told = [f"message {i} " + "and much was said " * 40 for i in range(number)]
    body = {
        "v": 4,
        "id": f"checkpoint-{number:04}",
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {"messages": told, "fixed": "never changed"},
        "channel_versions": {"messages": version, "fixed": f"{1:032}.1"},
        "versions_seen": {},
        "updated_channels": None,
    }
    new = {"messages": version, **({"fixed": version} if number == 1 else {})}
    return at_checkpoint(number - 1), body, {"source": "loop", "step": number, "parents": {}}, new


def at_checkpoint(number: int) -> Any:
    where = {"thread_id": "thread", "checkpoint_ns": ""}
    return {"configurable": {**where, "checkpoint_id": f"checkpoint-{number:04}"} if number else where}


WRITES = (at_checkpoint(2), [("messages", "a short answer"), ("messages", "a long answer " * 2000)], "task", "path")

HELD = 3
"""How many checkpoints there are before an operation."""


@dataclass(frozen=True)
class Operation:
    """`expect` makes the same call on a saver that is known to be right."""

    call: Callable[[World], object]
    expect: Callable[[InMemorySaver], object] = lambda _: None
    on_damage: bool = False


OPERATIONS: dict[str, Operation] = {
    "commit": Operation(lambda w: w.memory.commit(note("a new fact", "new"), session_id="s")),
    "singleton": Operation(lambda w: w.memory.commit(preference("x", "again"), session_id="s")),
    "update": Operation(lambda w: w.memory.update("a", {"content": "another text"})),
    "delete": Operation(lambda w: w.memory.delete("a")),
    "transaction": Operation(transact),
    "rollback": Operation(lambda w: w.memory.rollback(3, session_id="s")),
    "promote": Operation(lambda w: w.memory.promote("s")),
    "discard": Operation(lambda w: w.memory.discard_session("s")),
    "collect": Operation(lambda w: collect(w.memory)),
    "repair": Operation(lambda w: w.memory.repair(), on_damage=True),
    "rebuild": Operation(lambda w: w.memory.repair(rebuild=True)),
    "put": Operation(lambda w: w.save("put", *checkpoint(HELD + 1)), lambda s: s.put(*checkpoint(HELD + 1))),
    "put_writes": Operation(lambda w: w.save("put_writes", *WRITES), lambda s: s.put_writes(*WRITES)),
    "delete_thread": Operation(lambda w: w.save("delete_thread", "thread"), lambda s: s.delete_thread("thread")),
}


# --- what there is before


def seed(place: Place, folder: Path) -> None:
    world = open_world(place, folder, Points())
    memory = world.memory
    memory._core._collected = 10**12  # leave the replaced vectors for the tests to collect
    for fact_id in "abcd":
        memory.commit(note(f"the first text of {fact_id}", fact_id), session_id="s")
    memory.commit(preference("x", "once"), session_id="s")
    memory.update("c", {"content": "the second text of c"})
    memory.update("d", {"content": "the second text of d"})
    memory.commit(note("for a while", "e"), session_id="s", ephemeral=True)
    for number in range(1, HELD + 1):
        world.saver.put(*checkpoint(number))
    memory.close()


def damage(place: Place, folder: Path) -> None:
    """Take vectors away and put strange ones in, past the store: what `repair` is for."""
    world = open_world(place, folder, Points())
    vectors: Any = world.hook.vector_store
    vectors.delete((world.hook.ids() or [])[:3])
    vectors.add_documents([Document(id=f"stray {i}", page_content="nobody's") for i in range(3)])
    world.memory.close()


# --- what there is


def rendered(saver: BaseCheckpointSaver[Any]) -> list[Any]:
    tuples = saver.list({"configurable": {"thread_id": "thread"}})
    return [
        [
            dict(found.checkpoint),
            found.metadata,
            None if found.parent_config is None else found.parent_config["configurable"]["checkpoint_id"],
            sorted(map(list, found.pending_writes or [])),
        ]
        for found in tuples
    ]


def state(world: World) -> State:
    facts = {fact.id: [fact.payload["content"], fact.ephemeral] for fact in world.memory.query()}
    # another saver, which has nothing in its memory
    return {"facts": facts, "checkpoints": rendered(MemStateCheckpointer(MemoryStore(world.storage)))}


def run(place: Place, folder: Path, operation: str, door: str, at: int, fault: str) -> State:
    """An operation with a fault at a point; what it was and what is there afterwards. If it was not killed."""
    locker = Locker(folder / "state.db") if fault.startswith("locked") else None
    points = Points(at=at, fault=FAULTS[fault], locker=locker)
    world = open_world(place, folder, points, door, late=0.1 if fault == "late" else 0.0)
    world.memory._core._collected = 0.0
    points.armed = True
    raised = None
    try:
        OPERATIONS[operation].call(world)
    except BaseException as error:
        raised = type(error).__name__
    points.armed = False
    if locker is not None:
        locker.stop()
    problems = [] if fault != "late" else arrival(world)
    return {"labels": points.labels, "raised": raised, "state": state(world), "problems": problems}


def arrival(world: World) -> list[str]:
    """Clean up, then let the writes arrive: nobody sees them, and they are removed without a repair.

    What is shown before need not be all facts: a repair that failed leaves some without a vector.
    """
    collect(world.memory)
    shown = found(world.memory)
    world.hook.arrive()
    problems = [] if found(world.memory) == shown else ["what arrived late is seen"]
    time.sleep(0.11)
    collect(world.memory)
    held = len(world.hook.ids() or ())
    return [*problems, *([] if held == len(shown) else [f"{held} vectors for {len(shown)} after a late arrival"])]


def examine(place: Place, folder: Path, operation: str) -> State:
    """What a new process sees, before any recovery, and what repair leaves."""
    world = open_world(place, folder, Points())
    memory, damaged = world.memory, OPERATIONS[operation].on_damage
    settle(memory)
    seen, facts, hits = state(world), live(memory), found(memory)
    problems = []
    if not (hits.items() <= facts.items() if damaged else hits == facts):
        problems.append(f"search shows {sorted(hits)}, the facts are {sorted(facts)}")
    if replayed(memory) != facts:
        problems.append("the log tells other facts")
    wrong = [str(finding) for finding in memory.verify().findings if "invisible" not in finding.problem]
    if wrong and not damaged:
        problems.append(f"before repair: {wrong}")
    repaired = memory.repair()
    if not repaired.ok:
        problems.append(f"after repair: {repaired}")
    held = len(world.hook.ids() or ())
    if held != len(facts):
        problems.append(f"after repair: {held} vectors of {len(facts)} facts")
    if found(memory) != facts or state(world) != seen:
        problems.append("repair changed what is there")
    memory.commit(note("the next call works", "afterwards"))
    world.saver.put(*checkpoint(HELD + 1))
    if not memory.verify().ok or memory.get("afterwards") is None:
        problems.append(f"after the next call: {memory.verify()}")
    return {"seen": seen, "problems": problems}


# --- the matrix


@dataclass(frozen=True)
class Expected:
    before: State
    after: State
    labels: list[str]


@dataclass(frozen=True, order=True)
class Case:
    operation: str
    door: str
    fault: str
    at: int


@dataclass
class Matrix:
    """All cases over one storage; those in a file begin with a copy of what was seeded, the others are seeded anew."""

    folder: Path
    place: Place = IN_A_FILE
    _expected: dict[tuple[str, str], Expected] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.place is not IN_A_FILE:
            self.place.storage(self.folder).close()  # here, so that the server that it may need outlives the children

    def _seeded(self, folder: Path, damaged: bool) -> Path:
        if self.place is not IN_A_FILE:
            self._seed(folder, damaged)
        else:
            origin = self.folder / f"seed{' damaged' * damaged}"
            if not origin.exists():
                self._seed(origin, damaged)
            shutil.copytree(origin, folder)
        return folder

    def _seed(self, folder: Path, damaged: bool) -> None:
        for prepare in (seed, damage) if damaged else (seed,):
            ended = in_child(partial(prepare, self.place, folder))
            assert ended == (0, None), ended

    @contextmanager
    def _scene(self, operation: str, name: str) -> Iterator[Path]:
        folder = self._seeded(self.folder / name, OPERATIONS[operation].on_damage)
        yield folder
        shutil.rmtree(folder)
        if forget := FORGET.get(self.place.name):
            forget(folder)

    def expected(self, operation: str, door: str) -> Expected:
        """The state before and after, and the points in between, from a run without a fault."""
        if (operation, door) not in self._expected:
            with self._scene(operation, f"clean-{os.getpid()}") as folder:
                _, before = in_child(lambda: state(open_world(self.place, folder, Points())))
                _, whole = in_child(lambda: run(self.place, folder, operation, door, 0, "fail"))
            assert whole["raised"] is None, whole
            for said, calls in ((before, False), (whole["state"], True)):
                right = InMemorySaver()
                for number in range(1, HELD + 1):
                    right.put(*checkpoint(number))
                if calls:
                    OPERATIONS[operation].expect(right)
                assert said["checkpoints"] == rendered(right), operation
            self._expected[operation, door] = Expected(before, whole["state"], whole["labels"])
        return self._expected[operation, door]

    def cases(self, operation: str, door: str, fault: str) -> Iterator[Case]:
        """A fault at each point where it can happen."""
        if fault in OF_FILES and self.place is not IN_A_FILE:
            return
        for at, label in enumerate(self.expected(operation, door).labels, start=1):
            possible = {
                "late": label in ("before an upsert", "in the middle of a batch"),
                "locked": label.startswith("before a write"),
                "locked for long": label.startswith("before a write"),
            }
            if possible.get(fault, True):
                yield Case(operation, door, fault, at)

    def trial(self, case: Case) -> list[str]:
        """What is wrong after the fault; nothing, if the promises hold."""
        expected = self.expected(case.operation, case.door)
        name = f"{case.operation}-{case.door}-{case.fault}-{case.at}-{os.getpid()}"
        with self._scene(case.operation, name) as folder:
            killed, result = in_child(lambda: run(self.place, folder, case.operation, case.door, case.at, case.fault))
            problems = self._judge(case, expected, killed, result)
            _, report = in_child(lambda: examine(self.place, folder, case.operation))
        if "error" in report:
            problems.append(report["error"])
        else:
            problems += report["problems"]
            if report["seen"] not in (expected.before, expected.after):
                problems.append(f"the next process sees a part: {report['seen']}")
        where = f"{self.place.name}, {case} {expected.labels[case.at - 1]!r} of {len(expected.labels)}"
        return [f"{where}: {problem}" for problem in problems]

    def _judge(self, case: Case, expected: Expected, killed: int, result: Any) -> list[str]:
        if case.fault == "kill":
            return [] if killed == 9 else [f"was not killed: {result}"]
        if result is None or "error" in result:
            return [f"ended by signal {killed}: {result}"]
        problems: list[str] = list(result["problems"])
        if result["state"] not in (expected.before, expected.after):
            problems.append(f"a part is seen: {result['state']}")
        if result["raised"] is None and result["state"] != expected.after:
            problems.append("acknowledged, but not done")
        if case.fault == "locked" and result["raised"] is not None:
            problems.append(f"a lock that was soon released raised {result['raised']}")
        return problems
