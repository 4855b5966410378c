"""PostgreSQL: in which order others see what was committed; a saver from a URL."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from memstate_langgraph import MemStateCheckpointer
from tests.models import note
from tests.postgres.helpers import open_store
from tests.servers import schema_of
from tests.workers import ask


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


def test_a_saver_from_a_url(url: str, tmp_path: Path, admin: psycopg.Connection[Any]) -> None:
    database = schema_of(tmp_path)
    admin.execute(f"CREATE DATABASE {database}")
    parts: dict[str, Any] = {**psycopg.conninfo.conninfo_to_dict(url), "dbname": database}
    query = "&".join(f"{name}={value}" for name, value in parts.items())
    with MemStateCheckpointer.from_conn_string(f"postgresql://?{query}") as saver:
        assert "__interrupt__" in ask(saver, "t", "hello")
        assert len(list(saver.list({"configurable": {"thread_id": "t"}}))) == 2
