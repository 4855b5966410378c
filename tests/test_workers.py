"""Several processes on one store: contests with kills among them, an agent that fails over, forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from langgraph.types import Command

from memstate_langgraph import ConflictError, MemoryStore, MemStateCheckpointer
from tests.models import note, preference, register
from tests.stores import POSTGRES, REDIS, Place, assert_in_step
from tests.workers import ask, wait_until

FORK = multiprocessing.get_context("fork")


def opened(place: Place, folder: Path) -> MemoryStore:
    memory = place.open(folder)
    register(memory)
    return memory


def contest(place: Place, folder: Path, worker: int) -> None:
    memory = opened(place, folder)
    for n in range(1_000_000):
        try:
            match n % 4:
                case 0 | 1:
                    memory.commit(preference(f"topic {n % 3}", f"{worker} {n}"), session_id=f"w{worker}")
                case 2:
                    with memory.transaction(session_id=f"w{worker}") as tx:
                        tx.commit(note(f"{worker} {n}", id=f"note {worker} {n}"))
                        tx.commit(preference(f"topic {n % 3}", f"{worker} {n}"))
                case 3:
                    memory.rollback(1, session_id=f"w{worker}")
        except ConflictError:
            pass  # somebody else changed the topic after us


def test_eight_processes_contest_and_some_are_killed(durable: Place, tmp_path: Path) -> None:
    opened(durable, tmp_path).close()  # one server for all of them
    workers = [FORK.Process(target=contest, args=(durable, tmp_path, i), daemon=True) for i in range(8)]
    try:
        for worker in workers:
            worker.start()
        memory = opened(durable, tmp_path)
        wait_until(lambda: len(memory.log(limit=200)) == 200)
        for victim in range(4):
            workers[victim].kill()
            workers[victim].join(30)
            at = memory.log(limit=1)[0].seq
            wait_until(lambda at=at: memory.log(limit=1)[0].seq > at + 40)  # type: ignore[misc]
            assert memory.verify().ok, "a long reading ends while others write"
        assert [worker.is_alive() for worker in workers] == [False] * 4 + [True] * 4
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10)
    facts = memory.query("preference")
    assert len(facts) == len({fact.payload["topic"] for fact in facts}) <= 3
    assert_in_step(memory)
    entries = memory.log()
    assert [entry.seq for entry in reversed(entries)] == list(range(1, len(entries) + 1))
    assert set(Counter(entry.tx for entry in entries).values()) <= {1, 2}
    memory.commit(preference("topic 0", "still works"))
    memory.close()


def ask_and_die(place: Place, folder: Path) -> None:
    ask(MemStateCheckpointer(memory=opened(place, folder)), "t", "hello")
    os.kill(os.getpid(), signal.SIGKILL)


def test_another_process_resumes_an_interrupt(durable: Place, tmp_path: Path) -> None:
    opened(durable, tmp_path).close()
    worker = FORK.Process(target=ask_and_die, args=(durable, tmp_path))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    with opened(durable, tmp_path) as memory:
        result = ask(MemStateCheckpointer(memory=memory), "t", Command(resume="yes"))
    assert [message.content for message in result["messages"]] == ["hello", "you said yes"]


@pytest.mark.parametrize("place", [POSTGRES, REDIS], ids=lambda place: place.name)
def test_a_forked_process_makes_connections_of_its_own(place: Place, tmp_path: Path) -> None:
    memory = opened(place, tmp_path)
    memory.commit(note("by the parent"))

    def write() -> None:
        for i in range(20):
            memory.commit(note(f"by a child {i}"))
        memory.close()

    children = [FORK.Process(target=write) for _ in range(3)]
    for child in children:
        child.start()
    for i in range(20):
        memory.commit(note(f"by the parent {i}"))
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 3
    assert len(memory.query()) == len(memory.log()) == 81
    memory.close()
