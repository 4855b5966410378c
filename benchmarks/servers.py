"""On a server, side by side: `python -m benchmarks.servers [--turns 25 100 400]`.

Checkpoints: our saver and `PostgresSaver` in schemas of one database, `fsync` and `synchronous_commit` on for both.
Facts: how many commits a second by 1, 2, 4 and 8 processes, each on topics of its own and all on the same ten.
MEMSTATE_POSTGRES_URL names the server; without it one is started.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.conninfo import make_conninfo
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from benchmarks.checkpointers import CONFIG, Clock, chat, text, timed_reads
from memstate_langgraph import Constraint, Fact, MemoryStore, MemStateCheckpointer, PostgresStorage
from tests.servers import postgres, postgres_url

SECONDS = 5.0


@contextmanager
def ours(url: str, schema: str) -> Iterator[Any]:
    with MemoryStore(PostgresStorage(url, schema=schema)) as memory:
        yield MemStateCheckpointer(memory=memory)


@contextmanager
def theirs(url: str, schema: str) -> Iterator[Any]:
    with psycopg.connect(url, autocommit=True) as wire:
        wire.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    with PostgresSaver.from_conn_string(make_conninfo(url, options=f"-c search_path={schema}")) as saver:
        saver.setup()
        yield saver


SAVERS: dict[str, Callable[[str, str], Any]] = {"ours": ours, "PostgresSaver": theirs}


def bytes_of(url: str, schema: str) -> int:
    with psycopg.connect(url) as wire:
        found: Any = wire.execute(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relkind = 'r'",
            (schema,),
        ).fetchone()
        return int(found[0])


def chat_run(make: Callable[[str, str], Any], url: str, turns: int) -> dict[str, float]:
    schema = f"bench_{uuid.uuid4().hex[:12]}"
    with make(url, schema) as saver:
        app = chat(saver)
        empty = bytes_of(url, schema)
        clock = Clock()
        for i in range(turns):
            app.invoke({"messages": [HumanMessage(text(i))]}, CONFIG)
        wall = clock()
    with make(url, schema) as saver:  # as another process would
        resume, history = timed_reads(chat(saver))
    size = bytes_of(url, schema) - empty
    with psycopg.connect(url, autocommit=True) as wire:
        wire.execute(f"DROP SCHEMA {schema} CASCADE")
    return {"wall ms/turn": wall / turns * 1e3, "bytes/turn": size / turns, "resume ms": resume * 1e3,
            "history of 20 ms": history * 1e3}  # fmt: skip


class Topic(BaseModel):
    name: str
    content: str


def work(url: str, schema: str, worker: int, contested: bool, start: Any, done: Any) -> None:
    with MemoryStore(PostgresStorage(url, schema=schema)) as memory:
        memory.register_schema("topic", Topic, Constraint(singleton_key="name"))
        start.wait()
        clock = Clock()
        count = 0
        while clock() < SECONDS:
            name = f"{count % 10}" if contested else f"{worker} {count % 10}"
            memory.commit(Fact(type="topic", payload={"name": name, "content": f"{worker} {count}"}))
            count += 1
        done.put(count)


def facts_run(url: str, workers: int, contested: bool) -> float:
    schema = f"bench_{uuid.uuid4().hex[:12]}"
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=work, args=(url, schema, i, contested, start, done)) for i in range(workers)]
    for process in processes:
        process.start()
    total: int = sum(done.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    with psycopg.connect(url, autocommit=True) as wire:
        wire.execute(f"DROP SCHEMA {schema} CASCADE")
    return total / SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, nargs="+", default=[25, 100, 400])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    given = parser.parse_args()
    url = postgres_url()
    if "MEMSTATE_POSTGRES_URL" not in os.environ:
        postgres().psql("ALTER SYSTEM RESET fsync")
        postgres().psql("SELECT pg_reload_conf()")
    console = Console()
    for turns in given.turns:
        table = Table("", *SAVERS, title=f"a chat of {turns} turns")
        runs = {name: chat_run(make, url, turns) for name, make in SAVERS.items()}
        for measure in runs["ours"]:
            table.add_row(measure, *(f"{runs[name][measure]:,.1f}" for name in SAVERS))
        console.print(table)
    table = Table("workers", "commits/s, topics of their own", "commits/s, ten contested topics")
    for workers in given.workers:
        table.add_row(str(workers), *(f"{facts_run(url, workers, contested):,.0f}" for contested in (False, True)))
    console.print(table)


if __name__ == "__main__":
    main()
