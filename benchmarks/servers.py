"""On servers, side by side: `python -m benchmarks.servers [postgres redis] [--turns 25 100 400] [--sizes 1000 200000]`.

Checkpoints: our saver and LangGraph's for the same server, one after the other. PostgreSQL with `fsync` and
`synchronous_commit` on for both; Redis with `appendonly yes` and `appendfsync everysec`, and RedisSaver only where the
server has the modules that it needs. Facts: how many commits a second by 1, 2, 4 and 8 processes, each on topics of
its own and all on the same ten, and how many cores of this machine were busy. Growth: what single calls cost at growing
numbers of facts. MEMSTATE_POSTGRES_URL and MEMSTATE_REDIS_URL name the servers; without them they are started.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import redis
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.conninfo import make_conninfo
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from benchmarks.checkpointers import CONFIG, Clock, chat, text, timed_reads
from benchmarks.commits import growth, growth_table
from memstate_langgraph import (
    Constraint,
    Fact,
    MemoryStore,
    MemStateCheckpointer,
    PostgresStorage,
    RedisStorage,
)
from tests.servers import postgres, postgres_url, redis_server, redis_url

SECONDS = 5.0
STAT = Path("/proc/stat")


class Server(Protocol):
    """A server, and the rooms in it in which one run after the other takes place."""

    peer: str
    lacks: str
    """Why the peer cannot run here, if it cannot."""

    def storage(self, room: str) -> Any: ...

    def theirs(self, room: str) -> Any:
        """The peer's saver, as a context manager."""
        ...

    def bytes_of(self, room: str) -> int: ...

    def clear(self, room: str) -> None: ...


class Postgres:
    peer, lacks = "PostgresSaver", ""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or postgres_url()
        if url is None and "MEMSTATE_POSTGRES_URL" not in os.environ:
            for setting in ("fsync", "autovacuum"):  # as everybody has them
                postgres().psql(f"ALTER SYSTEM RESET {setting}")
            postgres().psql("SELECT pg_reload_conf()")

    def storage(self, room: str) -> PostgresStorage:
        return PostgresStorage(self.url, schema=room)

    @contextmanager
    def theirs(self, room: str) -> Iterator[Any]:
        with psycopg.connect(self.url, autocommit=True) as wire:
            wire.execute(f"CREATE SCHEMA IF NOT EXISTS {room}")
        with PostgresSaver.from_conn_string(make_conninfo(self.url, options=f"-c search_path={room}")) as saver:
            saver.setup()
            yield saver

    def bytes_of(self, room: str) -> int:
        with psycopg.connect(self.url) as wire:
            found: Any = wire.execute(
                "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n "
                "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relkind = 'r'",
                (room,),
            ).fetchone()
            return int(found[0])

    def clear(self, room: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as wire:
            wire.execute(f"DROP SCHEMA {room} CASCADE")


class Redis:
    peer = "RedisSaver"

    def __init__(self, url: str | None = None) -> None:
        self.url = url or redis_url()
        self.client: Any = redis.Redis.from_url(self.url)
        if url is None and "MEMSTATE_REDIS_URL" not in os.environ:
            redis_server().client().config_set("appendonly", "yes")
        modules = {str(module[b"name"], "utf-8").lower() for module in self.client.module_list()}
        missing = {"rejson", "search"} - modules
        self.lacks = f"the server has no {' and no '.join(sorted(missing))} module" if missing else ""

    def storage(self, room: str) -> RedisStorage:
        return RedisStorage(self.url, prefix=room)

    @contextmanager
    def theirs(self, room: str) -> Iterator[Any]:
        from langgraph.checkpoint.redis import RedisSaver  # type: ignore[import-not-found, unused-ignore]

        prefixes = {"checkpoint_prefix": f"{room}c", "checkpoint_write_prefix": f"{room}w"}
        with RedisSaver.from_conn_string(self.url, **prefixes) as saver:
            saver.setup()
            yield saver

    def _keys(self, room: str) -> list[bytes]:
        return list(self.client.scan_iter(f"*{room}*"))

    def bytes_of(self, room: str) -> int:
        """In memory."""
        return sum(self.client.memory_usage(key, samples=0) or 0 for key in self._keys(room))

    def clear(self, room: str) -> None:
        self.client.delete(*self._keys(room))


SERVERS: dict[str, Any] = {"postgres": Postgres, "redis": Redis}


@contextmanager
def ours(server: Server, room: str) -> Iterator[Any]:
    with MemoryStore(server.storage(room)) as memory:
        yield MemStateCheckpointer(memory=memory)


def chat_run(server: Server, peer: bool, turns: int) -> dict[str, float]:
    room = f"bench_{uuid.uuid4().hex[:12]}"

    def opened() -> Any:
        return server.theirs(room) if peer else ours(server, room)

    with opened() as saver:
        app = chat(saver)
        empty = server.bytes_of(room)
        clock = Clock()
        for i in range(turns):
            app.invoke({"messages": [HumanMessage(text(i))]}, CONFIG)
        wall = clock()
    with opened() as saver:  # as another process would
        resume, history = timed_reads(chat(saver))
    size = server.bytes_of(room) - empty
    server.clear(room)
    return {"wall ms/turn": wall / turns * 1e3, "bytes/turn": size / turns, "resume ms": resume * 1e3,
            "history of 20 ms": history * 1e3}  # fmt: skip


class Topic(BaseModel):
    name: str
    content: str


def work(kind: str, url: str, room: str, worker: int, contested: bool, start: Any, done: Any) -> None:
    with MemoryStore(SERVERS[kind](url).storage(room)) as memory:
        memory.register_schema("topic", Topic, Constraint(singleton_key="name"))
        start.wait()
        clock, busy = Clock(), busy_seconds()
        count = 0
        while clock() < SECONDS:
            name = f"{count % 10}" if contested else f"{worker} {count % 10}"
            memory.commit(Fact(type="topic", payload={"name": name, "content": f"{worker} {count}"}))
            count += 1
        done.put((count, (busy_seconds() - busy) / clock()))


def busy_seconds() -> float:
    """Of all cores since the machine began; only Linux says so."""
    if not STAT.exists():
        return math.nan
    user, nice, system, _, _, irq, softirq, *_ = map(int, STAT.read_text().split()[1:10])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def facts_run(kind: str, server: Any, workers: int, contested: bool) -> tuple[float, float]:
    """Commits per second, and how many cores were busy."""
    room = f"bench_{uuid.uuid4().hex[:12]}"
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=work, args=(kind, server.url, room, i, contested, start, done)) for i in range(workers)
    ]
    for process in processes:
        process.start()
    counts, busy = zip(*(done.get(timeout=120) for _ in processes), strict=True)
    for process in processes:
        process.join()
    server.clear(room)
    return sum(counts) / SECONDS, sum(busy) / workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="*", default=list(SERVERS), help=" or ".join(SERVERS))
    parser.add_argument("--turns", type=int, nargs="+", default=[25, 100, 400])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 50_000, 200_000])
    given = parser.parse_args()
    console = Console()
    for kind in given.servers:
        server = SERVERS[kind]()
        if server.lacks:
            console.print(f"{server.peer} cannot run here: {server.lacks}")
        peers = [False] if server.lacks else [False, True]
        for turns in given.turns:
            names = [server.peer if peer else "ours" for peer in peers]
            table = Table("", *names, title=f"{kind}: a chat of {turns} turns")
            runs = [chat_run(server, peer, turns) for peer in peers]
            for measure in runs[0]:
                table.add_row(measure, *(f"{run[measure]:,.1f}" for run in runs))
            console.print(table)
        table = Table("workers", "commits/s, topics of their own", "commits/s, ten contested topics", title=kind)
        for workers in given.workers:
            rates = [facts_run(kind, server, workers, contested) for contested in (False, True)]
            table.add_row(str(workers), *(f"{rate:,.0f} ({busy:.1f} cores busy)" for rate, busy in rates))
        console.print(table)
        room = f"bench_{uuid.uuid4().hex[:12]}"
        grown = growth(server.storage(room), given.sizes, 3)
        console.print(growth_table(f"{kind}: milliseconds of one call at a number of facts", given.sizes, grown))
        server.clear(room)


if __name__ == "__main__":
    main()
