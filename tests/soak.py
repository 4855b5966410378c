"""kill -9 at random moments, over a real storage and Chroma files; each next process looks before any recovery."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from langchain_chroma import Chroma

from memstate_langgraph import ConflictError, FactNotFound, MemoryStore
from tests.children import Say, fork, in_child
from tests.models import note, preference, register
from tests.stores import SQLITE, Place, Words, found, hook_over, live, replayed, settle

Report = dict[str, Any]


def open_store(place: Place, folder: Path) -> MemoryStore:
    # Chroma writes its index this often: by default every thousand vectors, and each write until then costs more
    often: Any = {"hnsw": {"sync_threshold": 50, "batch_size": 10}}
    vectors: Any = Chroma("notes", Words(), persist_directory=str(folder / "chroma"), collection_configuration=often)
    memory = place.open(folder, [hook_over(vectors, lease=0.0, grace=0.0, late=0.0)])
    register(memory)
    return memory


def torn(memory: MemoryStore) -> str:
    """What to do about an index that Chroma tore, since it was killed while it wrote it; empty if it did not."""
    (hook,) = memory._core.vectors
    try:
        hook.ids()
    except Exception as error:
        if advice := hook.adapter.advice(error):
            return advice
        raise
    return ""


def embed_again(place: Place, folder: Path) -> None:
    """What is to be done then: facts and log are whole, and the vectors can be made from them."""
    shutil.rmtree(folder / "chroma")

    def job() -> bool:
        with open_store(place, folder) as memory:
            return memory.repair().ok

    assert in_child(job) == (0, True)


def examine(memory: MemoryStore) -> Report:
    """What a reader sees."""
    settle(memory)
    facts = live(memory)
    findings = [finding for finding in memory.verify().findings if "invisible" not in finding.problem]
    return {
        "replay": replayed(memory) == facts,
        "search": found(memory) == facts,
        "findings": [str(finding) for finding in findings],
        "log": [[entry.seq, entry.tx] for entry in memory.log()],
    }


def work(memory: MemoryStore, dice: random.Random, say: Say) -> None:
    """Change things at random, and acknowledge what was done."""
    memory._core._collected = -1e9  # collecting is part of it from the start

    def some_id() -> str:
        return f"f{dice.randrange(8)}"

    def transact() -> None:
        with memory.transaction(session_id="s") as tx:
            for _ in range(dice.randrange(1, 6)):
                tx.commit(note(f"words {dice.random()}", some_id()))

    operations: list[Callable[[], object]] = [
        lambda: memory.commit(note(f"words {dice.random()}", some_id()), session_id="s"),
        lambda: memory.commit(note(f"words {dice.random()}", some_id()), session_id="t", ephemeral=True),
        lambda: memory.commit(preference(f"r{dice.randrange(3)}", f"prefers {dice.random()}"), session_id="t"),
        transact,
        lambda: memory.update(some_id(), {"content": f"changed {dice.random()}"}),
        lambda: memory.delete(some_id()),
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


def kill_and_look(folder: Path, kills: int, seed: int, longest: float = 0.4, place: Place = SQLITE) -> int:
    """Kill as often after up to `longest` seconds of work; how many operations were acknowledged in all."""
    place.storage(folder).close()  # here, so that the server that it may need outlives the children
    dice = random.Random(seed)
    acknowledged: list[Any] = []
    for round_ in range(kills + 1):

        def job(say: Say, round_: int = round_) -> None:
            memory = open_store(place, folder)
            if why := torn(memory):
                say({"torn": why})
                return
            say(examine(memory))
            if round_ == kills:
                report = memory.repair()
                ids = memory._core.vectors[0].ids() or []
                say({"repaired": report.ok, "held": len(ids), "live": len(memory.query())})
            else:
                work(memory, random.Random(seed * 1000 + round_), say)

        where = f"{place.name}, seed {seed}, after kill {round_}"
        pid, pipe, report = begun(job, where)
        if "torn" in report:
            pipe.close()
            ended(pid)
            embed_again(place, folder)
            pid, pipe, report = begun(job, where)
        try:
            with pipe:
                look(report, acknowledged, where)
                if round_ == kills:
                    end = heard(pipe, pid, where)
                    assert end["repaired"], where
                    assert end["held"] == end["live"], where
                else:
                    wait = dice.uniform(0.02, longest)
                    acknowledged += listen(pipe.fileno(), wait, pid, where)
        finally:
            ended(pid)
    return len(acknowledged)


def begun(job: Callable[[Say], None], where: str) -> tuple[int, IO[bytes], Report]:
    """A child and the first that it says."""
    pid, pipe = fork(job)
    try:
        return pid, pipe, heard(pipe, pid, where)
    except BaseException:
        pipe.close()
        ended(pid)
        raise


def ended(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def heard(pipe: IO[bytes], pid: int, where: str) -> Report:
    line = pipe.readline()
    if not line:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        raise AssertionError(f"{where}: said nothing, and ended with status or signal {ended and ended.si_status}")
    report: Report = json.loads(line)
    assert "error" not in report, f"{where}\n{report['error']}"
    return report


def look(report: Report, acknowledged: list[Any], where: str) -> None:
    assert report["replay"], f"{where}: drift: the log tells other facts"
    assert report["search"], f"{where}: drift: search shows other facts"
    assert report["findings"] == [], f"{where}: drift: {report['findings']}"
    seqs = [seq for seq, _ in report["log"]]
    assert seqs == sorted(set(seqs), reverse=True), f"{where}: seqs do not rise"
    logged = set(map(tuple, report["log"]))
    lost = [ack for ack in acknowledged if tuple(ack) not in logged]
    assert lost == [], f"{where}: lost {lost}"


def listen(pipe: int, seconds: float, pid: int, where: str) -> list[Any]:
    """What the child acknowledges until it is killed; what it said before it died, it had done."""
    deadline, said, killed = time.monotonic() + seconds, b"", False
    while True:
        left = max(0.0, deadline - time.monotonic())
        if not killed and not select.select([pipe], [], [], left)[0]:
            os.kill(pid, signal.SIGKILL)
            killed = True
        if not (part := os.read(pipe, 1 << 16)):
            break
        said += part
        if not killed and time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            killed = True
    assert killed, f"{where}: ended by itself\n{said.decode()[-2000:]}"
    return [json.loads(line) for line in said.splitlines() if line.endswith(b"]")]
