"""Histories of four processes on one storage, checked for what isolation forbids.

Workers raise counters under `expected_version`, move pairs that must stay equal, write what they abort or
overwrite within a transaction, use the same idempotency keys and singletons, and note down what they read and what
was acknowledged. The checker knows only these notes and the log.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memstate_langgraph import ConflictError, Entry, Fact, MemoryStore, SQLiteStorage
from tests.children import Say, fork
from tests.models import preference, register
from tests.stores import Place, live, replayed, settle

WORKERS = 4
STEPS = 60
COUNTERS = ["c0", "c1"]
PAIR = ["left", "right"]


class Abort(Exception):
    pass


def counter(name: str, value: int) -> Fact:
    return Fact(id=name, type="counter", payload={"value": value})


IN_A_HURRY = Place("sqlite", lambda folder: SQLiteStorage(folder / "state.db", synchronous="OFF"), durable=True)


def open_store(place: Place, folder: Path) -> MemoryStore:
    memory = place.open(folder)
    register(memory)
    return memory


def act(memory: MemoryStore, worker: int, seed: int, say: Say) -> None:
    dice = random.Random(f"{seed} {worker}")
    session = f"w{worker}"

    def increment() -> None:
        name = dice.choice(COUNTERS)
        fact = memory.get(name)
        assert fact is not None
        memory.update(name, {"value": fact.payload["value"] + 1}, expected_version=fact.version, session_id=session)
        say({"increment": name})

    def move_pair() -> None:
        value = dice.randrange(10**9)
        with memory.transaction(session_id=session) as tx:
            for name in PAIR:
                tx.update(name, {"value": -1})  # seen by nobody else
                tx.update(name, {"value": value})
        say({"moved": value})

    def abort() -> None:
        with memory.transaction(session_id=session) as tx:
            for name in (*PAIR, *COUNTERS):
                tx.update(name, {"value": -2})
            raise Abort

    def once() -> None:
        key = f"key {dice.randrange(20)}"
        fact_id = memory.commit(counter(f"{session} {dice.random()}", 0), session_id=session, idempotency_key=key)
        say({"key": key, "id": fact_id})

    def prefer() -> None:
        topic = f"t{dice.randrange(3)}"
        say({"topic": topic, "id": memory.commit(preference(topic, f"{dice.random()}"), session_id=session)})

    def undo() -> None:
        memory.commit(counter(f"{session} undone", 0), session_id=session)
        memory.rollback(1, session_id=session)
        say({"undone": session})

    def read() -> None:
        seen = {fact.id: fact.payload["value"] for fact in memory.query("counter")}
        say({"read": {name: seen[name] for name in (*PAIR, *COUNTERS)}})

    for _ in range(STEPS):
        with suppress(ConflictError, Abort):
            dice.choice([increment, increment, move_pair, abort, once, prefer, undo, read, read])()
        say({"seq": memory.log(limit=1)[0].seq})
    say({"done": worker})


@dataclass
class History:
    """What each worker noted, and what the log and the facts say at the end."""

    notes: list[list[dict[str, Any]]]
    entries: list[Entry]
    facts: dict[str, Fact]
    replayed: dict[str, Fact]
    killed: bool = False
    errors: list[str] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        return sum(not {"seq", "read", "done", "error"} & note.keys() for notes in self.notes for note in notes)

    def copy(self) -> History:
        return copy.deepcopy(self)

    def anomalies(self) -> list[str]:
        problems = [note["error"] for notes in self.notes for note in notes if "error" in note]
        finished = sum("done" in notes[-1] for notes in self.notes if notes)
        if finished != WORKERS - self.killed:
            problems.append(f"{finished} workers finished")
        if self.replayed != self.facts:
            problems.append("drift: the log tells other facts")
        return problems + self._counters() + self._reads() + self._duplicates() + self._order()

    def _counters(self) -> list[str]:
        counted = Counter(note["increment"] for notes in self.notes for note in notes if "increment" in note)
        problems = []
        for name in COUNTERS:
            value, slack = self.facts[name].payload["value"], int(self.killed)  # its last may be done, and not said
            if not counted[name] <= value <= counted[name] + slack:
                problems.append(f"lost update: {name} is {value} after {counted[name]} increments")
        return problems

    def _reads(self) -> list[str]:
        problems = []
        committed = {entry.after.payload["value"] for entry in self.entries if entry.after and entry.fact_id in PAIR}
        for notes in self.notes:
            counters = dict.fromkeys(COUNTERS, 0)
            for read in (note["read"] for note in notes if "read" in note):
                if -2 in read.values():
                    problems.append(f"aborted read: {read}")
                if -1 in read.values() or read[PAIR[0]] not in committed:
                    problems.append(f"intermediate read: {read}")
                if read[PAIR[0]] != read[PAIR[1]]:
                    problems.append(f"torn read: {read}")
                for name, value in counters.items():
                    if read[name] < value:
                        problems.append(f"went back: {name} from {value} to {read[name]}")
                    counters[name] = read[name]
        return problems

    def _duplicates(self) -> list[str]:
        problems = []
        used = Counter(entry.idempotency_key for entry in self.entries if entry.idempotency_key)
        problems += [f"duplicate: {key} was used {count} times" for key, count in used.items() if count > 1]
        owners: dict[str, str] = {}
        for note in (note for notes in self.notes for note in notes):
            name = note.get("key") or note.get("topic")
            if name and owners.setdefault(name, note["id"]) != note["id"]:
                problems.append(f"duplicate: {name} is {owners[name]} and {note['id']}")
            if name and note["id"] not in self.facts:
                problems.append(f"lost acknowledgement: {note}")
        topics = Counter(fact.payload["topic"] for fact in self.facts.values() if fact.type == "preference")
        problems += [f"duplicate: {count} facts for {topic}" for topic, count in topics.items() if count > 1]
        moved = {entry.after.payload["value"] for entry in self.entries if entry.after and entry.fact_id in PAIR}
        said = {note["moved"] for notes in self.notes for note in notes if "moved" in note}
        problems += [f"lost acknowledgement: {value}" for value in said - moved]
        return problems

    def _order(self) -> list[str]:
        problems = []
        seqs = [entry.seq for entry in self.entries]
        if seqs != sorted(set(seqs)):
            problems.append("non-monotonic seq in the log")
        for notes in self.notes:
            seen = [note["seq"] for note in notes if "seq" in note]
            if seen != sorted(seen):
                problems.append("non-monotonic seq for one reader")
        versions: dict[str, int] = {}
        for entry in self.entries:
            if entry.version != versions.get(entry.fact_id, 0) + 1:
                problems.append(f"lost update: version {entry.version} of {entry.fact_id}")
            versions[entry.fact_id] = entry.version
        return problems


def record(folder: Path, seed: int, *, killing: bool = False, place: Place = IN_A_HURRY) -> History:
    """Let four processes work at once, and kill one of them if asked to."""
    memory = open_store(place, folder)
    memory.commit_many([counter(name, 0) for name in (*COUNTERS, *PAIR)])
    memory.close()
    go, start = os.pipe()

    def job(worker: int) -> Callable[[Say], None]:
        def work(say: Say) -> None:
            os.close(start)
            store = open_store(place, folder)
            os.read(go, 1)  # ends when the parent closes it
            act(store, worker, seed, say)

        return work

    workers = [fork(job(worker)) for worker in range(WORKERS)]
    os.close(go)
    os.close(start)
    if killing:
        time.sleep(random.Random(seed).uniform(0.05, 0.3))
        os.kill(workers[0][0], signal.SIGKILL)
    notes = []
    for pid, pipe in workers:
        with pipe:
            notes.append([json.loads(line) for line in pipe if line.endswith(b"}\n")])
        os.waitpid(pid, 0)
    memory = open_store(place, folder)
    settle(memory)
    killed = killing and not any("done" in note for note in notes[0])
    history = History(notes, list(reversed(memory.log())), live(memory), replayed(memory), killed)
    memory.close()
    return history


# --- what the checker must find


def _drop_version(history: History) -> None:
    del history.entries[next(i for i, entry in enumerate(history.entries) if entry.version == 2)]


def _note(history: History, key: str) -> dict[str, Any]:
    return next(note for notes in history.notes for note in notes if key in note)


def _key_twice(history: History) -> None:
    entry = next(entry for entry in history.entries if entry.idempotency_key)
    history.entries.append(entry.model_copy(update={"seq": entry.seq + 10**6, "fact_id": "other", "version": 1}))


DAMAGES: list[tuple[Callable[[History], object], str]] = [
    (lambda h: h.notes[0].insert(0, {"increment": "c0"}), "lost update"),
    (_drop_version, "lost update"),
    (lambda h: _note(h, "read")["read"].update(left=-2), "aborted read"),
    (lambda h: _note(h, "read")["read"].update(left=-1, right=-1), "intermediate read"),
    (lambda h: _note(h, "read")["read"].update(left=5), "torn read"),
    (lambda h: _note(h, "read")["read"].update(c0=10**6), "went back"),
    (_key_twice, "duplicate"),
    (lambda h: _note(h, "topic").update(id="another"), "duplicate"),
    (lambda h: h.notes[0].insert(0, {"key": "k", "id": "never stored"}), "lost acknowledgement"),
    (lambda h: h.notes[0].insert(0, {"moved": -5}), "lost acknowledgement"),
    (lambda h: h.entries.reverse(), "non-monotonic seq"),
    (lambda h: h.notes[0].insert(0, {"seq": 10**9}), "non-monotonic seq"),
    (lambda h: h.facts.update(c0=counter("c0", 1)), "drift"),
    (lambda h: h.notes[0].pop(), "workers finished"),
]
"""Each damages a history; the name of what the checker must say."""
