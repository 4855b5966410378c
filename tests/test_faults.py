"""Every operation with a fault at every point of it, over real SQLite and Chroma files.

After the fault, and before any recovery, a reader sees the state before the operation or the state after it,
never a part; and search agrees with the facts.
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_chroma import Chroma
from langchain_core.embeddings import DeterministicFakeEmbedding
from pydantic import BaseModel

from memstate_langgraph import Constraint, Fact, MemoryStore, SQLiteStorage
from memstate_langgraph.flows import COLLECT_EVERY
from memstate_langgraph.run import perform
from tests.faults import FAULTS, FaultyHook, FaultyStorage, Points

State = dict[str, Any]


class Note(BaseModel):
    content: str
    topic: str = ""


def note(fact_id: str, content: str) -> Fact:
    return Fact(id=fact_id, type="note", payload={"content": content, "topic": fact_id})


def transact(memory: MemoryStore) -> None:
    with memory.transaction(session_id="s") as tx:
        for i in range(4):
            tx.commit(note(f"t{i}", f"one of several {i}"))
        tx.update("a", {"content": "changed with the others"})
        tx.delete("b")


def collect(memory: MemoryStore) -> None:
    perform(memory._core.collect(), memory.storage)


OPERATIONS: dict[str, Callable[[MemoryStore], object]] = {
    "commit": lambda m: m.commit(note("new", "a new fact"), session_id="s"),
    "singleton": lambda m: m.commit(note("x", "again").model_copy(update={"type": "single"}), session_id="s"),
    "update": lambda m: m.update("a", {"content": "another text"}),
    "delete": lambda m: m.delete("a"),
    "transaction": transact,
    "rollback": lambda m: m.rollback(3, session_id="s"),
    "promote": lambda m: m.promote("s"),
    "discard": lambda m: m.discard_session("s"),
    "collect": collect,
    "rebuild": lambda m: m.repair(rebuild=True),
}


def open_store(folder: Path, points: Points) -> MemoryStore:
    vectors = Chroma("notes", DeterministicFakeEmbedding(size=8), persist_directory=str(folder / "chroma"))
    hook = FaultyHook(vectors, text_field="content", lease=0.0, grace=0.0, late=0.0)
    hook.points = points
    memory = MemoryStore(FaultyStorage(SQLiteStorage(folder / "state.db"), points), hooks=[hook])
    memory.register_schema("note", Note)
    memory.register_schema("single", Note, Constraint(singleton_key="topic"))
    return memory


def seed(folder: Path) -> None:
    memory = open_store(folder, Points())
    memory._core._collected = COLLECT_EVERY * 10**9  # leave the replaced vectors for the tests to collect
    for fact_id in "abcd":
        memory.commit(note(fact_id, f"the first text of {fact_id}"), session_id="s")
    memory.commit(note("x", "once").model_copy(update={"type": "single"}), session_id="s")
    memory.update("c", {"content": "the second text of c"})
    memory.update("d", {"content": "the second text of d"})
    memory.commit(note("e", "for a while"), session_id="s", ephemeral=True)
    memory.close()


def state(memory: MemoryStore) -> State:
    return {fact.id: [fact.payload["content"], fact.ephemeral] for fact in memory.query()}


def in_child(job: Callable[[], Any]) -> tuple[int, Any]:
    """Run in a forked process: Chroma's threads and locks stay out of this one. Exit signal and answer."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = job()
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, json.loads(text) if text else None


def run(folder: Path, operation: str, at: int, fault: str) -> State:
    points = Points(at=at, fault=FAULTS[fault])
    memory = open_store(folder, points)
    memory._core._collected = 0.0
    points.armed = True
    raised = None
    try:
        OPERATIONS[operation](memory)
    except BaseException as error:
        raised = type(error).__name__
    points.armed = False
    return {"labels": points.labels, "raised": raised, "state": state(memory)}


def examine(folder: Path) -> State:
    """What a new process sees, before any recovery, and what repair leaves."""
    memory = open_store(folder, Points())
    seen = state(memory)
    found = {hit.fact.id: [hit.fact.payload["content"], hit.fact.ephemeral] for hit in memory.search("x", limit=None)}
    before = str(memory.verify())
    repaired = memory.repair()
    hook = memory._core.vectors[0]
    memory.commit(note("afterwards", "the next call works"))
    return {
        "seen": seen,
        "found": found,
        "verify": before,
        "wrong": [f.problem for f in memory.verify().findings],
        "repaired": repaired.ok,
        "held": len(hook.ids() or ()),
        "live": len(memory.query()),
    }


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed")
    in_child(lambda: seed(folder))
    return folder


@pytest.fixture
def folders(seeded: Path, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    made: list[Path] = []

    def new() -> Path:
        folder = tmp_path / str(len(made))
        shutil.copytree(seeded, folder)
        made.append(folder)
        return folder

    yield new
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        pytest.param(operation, fault, marks=() if fault == "kill" and operation != "rebuild" else pytest.mark.long)
        for operation in OPERATIONS
        for fault in FAULTS
    ],
)
def test_a_fault_at_every_point(operation: str, fault: str, folders: Callable[[], Path]) -> None:
    clean = folders()
    _, before = in_child(lambda: examine_state(clean))
    _, whole = in_child(lambda: run(clean, operation, 0, "fail"))
    assert whole["raised"] is None, whole
    after, count = whole["state"], len(whole["labels"])
    assert count > 3
    for at in range(1, count + 1):
        where = f"{operation}, {fault} {whole['labels'][at - 1]} (point {at} of {count})"
        folder = folders()
        signal_number, result = in_child(lambda at=at, folder=folder: run(folder, operation, at, fault))  # type: ignore[misc]
        if fault == "kill":
            assert signal_number == 9, (where, result)
        else:
            assert "error" not in result, (where, result)
            assert result["state"] in (before, after), where
            if result["raised"] is None:
                assert result["state"] == after, where
        _, report = in_child(lambda folder=folder: examine(folder))  # type: ignore[misc]
        assert "error" not in report, (where, report)
        assert report["seen"] in (before, after), where
        assert report["found"] == report["seen"], where
        assert report["wrong"] == [], (where, report)
        assert report["repaired"], (where, report)
        assert report["held"] == report["live"], (where, report)
        shutil.rmtree(folder)


def examine_state(folder: Path) -> State:
    return state(open_store(folder, Points()))
