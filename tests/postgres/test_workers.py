"""PostgreSQL: several processes at once, some of them killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from langgraph.types import Command

from memstate_langgraph import ConflictError, MemStateCheckpointer
from tests.models import note, preference
from tests.postgres.helpers import ask, open_store, wait_until
from tests.servers import schema_of
from tests.stores import assert_in_step


def test_seq_rises_in_commit_order_for_whoever_reads(url: str, tmp_path: Path) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []
    with open_store(url, tmp_path) as memory, open_store(url, tmp_path) as reader:

        def write(i: int) -> None:
            try:
                while not stop.is_set():
                    with memory.transaction(session_id=f"s{i}") as tx:
                        for n in range(3):
                            tx.commit(note(f"{i} {n}"))
            except BaseException as error:
                failed.append(error)

        writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for writer in writers:
            writer.start()
        seen: list[int] = []
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            # everything up to the newest must be there when the newest is
            newest = reader.log(limit=1)
            if newest:
                seen = [entry.seq for entry in reversed(reader.log())]
                assert seen == list(range(1, len(seen) + 1))
                assert seen[-1] >= newest[0].seq
        stop.set()
        for writer in writers:
            writer.join(30)
        assert failed == []
        assert len(seen) > 50


def contest(url: str, folder: Path, worker: int) -> None:
    memory = open_store(url, folder)
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


def test_eight_processes_contest_and_some_are_killed(url: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=contest, args=(url, tmp_path, i), daemon=True) for i in range(8)]
    try:
        for worker in workers:
            worker.start()
        memory = open_store(url, tmp_path)
        wait_until(lambda: len(memory.log(limit=200)) == 200)
        for victim in range(4):
            os.kill(workers[victim].pid or 0, signal.SIGKILL)
            at = memory.log(limit=1)[0].seq
            wait_until(lambda at=at: memory.log(limit=1)[0].seq > at + 40)  # type: ignore[misc]
        assert [worker.is_alive() for worker in workers] == [False] * 4 + [True] * 4
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10)
    facts = memory.query("preference")
    assert len(facts) == len({fact.payload["topic"] for fact in facts}) <= 3
    assert_in_step(memory)
    by_tx: dict[str, int] = {}
    for entry in memory.log():
        by_tx[entry.tx] = by_tx.get(entry.tx, 0) + 1
    assert set(by_tx.values()) <= {1, 2}
    memory.commit(preference("topic 0", "still works"))
    memory.close()


def ask_and_die(url: str, folder: Path) -> None:
    ask(MemStateCheckpointer(memory=open_store(url, folder)), "t", "hello")
    os.kill(os.getpid(), signal.SIGKILL)


def test_another_process_resumes_an_interrupt(url: str, tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=ask_and_die, args=(url, tmp_path))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    with open_store(url, tmp_path) as memory:
        result = ask(MemStateCheckpointer(memory=memory), "t", Command(resume="yes"))
    assert [message.content for message in result["messages"]] == ["hello", "you said yes"]


def test_a_saver_from_a_url(url: str, tmp_path: Path, admin: psycopg.Connection[Any]) -> None:
    database = schema_of(tmp_path)
    admin.execute(f"CREATE DATABASE {database}")
    parts: dict[str, Any] = {**psycopg.conninfo.conninfo_to_dict(url), "dbname": database}
    query = "&".join(f"{name}={value}" for name, value in parts.items())
    with MemStateCheckpointer.from_conn_string(f"postgresql://?{query}") as saver:
        assert "__interrupt__" in ask(saver, "t", "hello")
        assert len(list(saver.list({"configurable": {"thread_id": "t"}}))) == 2
