"""kill -9 at random moments, over real SQLite and Chroma files; each next process looks before any recovery."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
from langchain_chroma import Chroma

from memstate_langgraph import ConflictError, Constraint, Fact, FactNotFound, MemoryStore, SQLiteStorage
from tests.models import Preference, note
from tests.stores import Words, found, hook_over, live, replayed

Report = dict[str, Any]


def open_store(folder: Path) -> MemoryStore:
    vectors: Any = Chroma("notes", Words(), persist_directory=str(folder / "chroma"))
    memory = MemoryStore(SQLiteStorage(folder / "state.db"), [hook_over(vectors, lease=0.0, grace=0.0, late=0.0)])
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return memory


def examine(memory: MemoryStore) -> Report:
    """What a reader sees."""
    facts = live(memory)
    findings = [finding for finding in memory.verify().findings if "invisible" not in finding.problem]
    return {
        "replay": replayed(memory) == facts,
        "search": found(memory) == facts,
        "findings": [str(finding) for finding in findings],
        "log": [[entry.seq, entry.tx] for entry in memory.log()],
    }


def work(memory: MemoryStore, dice: random.Random, say: Callable[[Any], None]) -> None:
    """Change things at random, and acknowledge what was done."""
    memory._core._collected = -1e9  # collecting is part of it from the start

    def some_note() -> Fact:
        return note(f"words {dice.random()}", f"f{dice.randrange(8)}")

    def transact() -> None:
        with memory.transaction(session_id="s") as tx:
            for _ in range(dice.randrange(1, 6)):
                tx.commit(some_note())

    def prefer() -> None:
        payload = {"content": f"prefers {dice.random()}", "topic": f"r{dice.randrange(3)}"}
        memory.commit(Fact(type="preference", payload=payload), session_id="t")

    operations: list[Callable[[], object]] = [
        lambda: memory.commit(some_note(), session_id="s"),
        lambda: memory.commit(some_note(), session_id="t", ephemeral=True),
        prefer,
        transact,
        lambda: memory.update(f"f{dice.randrange(8)}", {"content": f"changed {dice.random()}"}),
        lambda: memory.delete(f"f{dice.randrange(8)}"),
        lambda: memory.rollback(dice.randrange(1, 4)),
        lambda: memory.rollback(1, session_id=dice.choice("st")),
        lambda: memory.discard_session("t"),
        lambda: memory.promote("t"),
    ]
    while True:
        with suppress(FactNotFound, ConflictError):
            dice.choice(operations)()
        for newest in memory.log(limit=1):
            say([newest.seq, newest.tx])
        if dice.random() < 0.1:
            memory._core._collected = -1e9


def in_child(job: Callable[[Callable[[Any], None]], None]) -> tuple[int, IO[bytes]]:
    """A forked process, so that Chroma's threads and locks die with it; it speaks in lines of JSON."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)

        def say(what: Any) -> None:
            os.write(writer, json.dumps(what).encode() + b"\n")

        try:
            job(say)
        except BaseException:
            say({"error": traceback.format_exc()})
        os._exit(0)
    os.close(writer)
    return pid, os.fdopen(reader, "rb")


def kill_and_look(folder: Path, kills: int, seed: int) -> tuple[int, list[list[Any]]]:
    """How many operations were acknowledged in all, and what the first look after each kill saw."""
    dice = random.Random(seed)
    acknowledged: list[Any] = []
    for round_ in range(kills + 1):

        def job(say: Callable[[Any], None], round_: int = round_) -> None:
            memory = open_store(folder)
            say(examine(memory))
            if round_ == kills:
                report = memory.repair()
                ids = memory._core.vectors[0].ids() or []
                say({"repaired": report.ok, "held": len(ids), "live": len(memory.query())})
            else:
                work(memory, random.Random(seed * 1000 + round_), say)

        pid, pipe = in_child(job)
        where = f"seed {seed}, after kill {round_}"
        with pipe:
            report = json.loads(pipe.readline())
            assert "error" not in report, f"{where}\n{report['error']}"
            assert report["replay"], where
            assert report["search"], where
            assert report["findings"] == [], where
            seqs = [seq for seq, _ in report["log"]]
            assert seqs == sorted(set(seqs), reverse=True), where
            lost = [ack for ack in acknowledged if ack not in report["log"]]
            assert lost == [], f"{where}: lost {lost}"
            if round_ == kills:
                end = json.loads(pipe.readline())
                assert end["repaired"], where
                assert end["held"] == end["live"], where
            else:
                deadline = time.monotonic() + dice.uniform(0.02, 0.4)
                while (left := deadline - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
                    line = json.loads(pipe.readline())
                    assert "error" not in line, f"{where}\n{line['error']}"
                    acknowledged.append(line)
                os.kill(pid, signal.SIGKILL)
                # what it said before it died, it had done
                acknowledged += [json.loads(line) for line in pipe.read().splitlines() if line.endswith(b"]")]
        os.waitpid(pid, 0)
    return len(acknowledged), acknowledged


def test_thirty_kills(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    done, _ = kill_and_look(tmp_path, 30, seed)
    assert done > 30, f"seed {seed}: too little happened to prove anything"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_hundreds_of_kills(tmp_path: Path, seed: int) -> None:
    kill_and_look(tmp_path, 50, seed)
