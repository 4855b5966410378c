"""Commits with vectors beside the plain calls they are made of: `python -m benchmarks.commits [--sizes 1000 200000]`.

All in one process, on files in one temporary folder, Chroma persistent, `synchronous` the same for both sides, and a
fixed embedding that costs next to nothing, so that what is compared is the work around it. Medians of interleaved
rounds: a shared machine changes its pace, and so for both sides.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import chromadb
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track
from rich.table import Table

from memstate_langgraph import ChromaSyncHook, Constraint, Fact, MemoryStore, SQLiteStorage, VectorStoreSyncHook
from memstate_langgraph.run import Storage

SYNCHRONOUS: Any = "FULL"
DIMENSIONS = 256
BATCH = 1000


class Note(BaseModel):
    content: str
    topic: str = ""


class Fixed(Embeddings):
    """The same vector for the same text, at the price of a checksum."""

    def embed_query(self, text: str) -> list[float]:
        seed = zlib.crc32(text.encode()) or 1
        return [((seed >> i % 24) & 255) / 255.0 + i / 1000 for i in range(DIMENSIONS)]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def note(content: str, **fields: Any) -> Fact:
    return Fact(type="note", payload={"content": content, "topic": ""}, **fields)


def registered(memory: MemoryStore) -> MemoryStore:
    memory.register_schema("note", Note)
    memory.register_schema("single", Note, Constraint(singleton_key="topic"))
    return memory


class Plain:
    """What one would write by hand: an upsert into Chroma and a row in SQLite, with nothing that ties them."""

    def __init__(self, folder: Path, client: Any) -> None:
        self.collection = client.create_collection(
            "plain", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
        self.connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        self.connection.execute("CREATE TABLE facts (id TEXT PRIMARY KEY, type TEXT, payload TEXT)")

    def upsert(self, texts: Sequence[str]) -> None:
        ids = [str(uuid.uuid4()) for _ in texts]
        # as much metadata as ours
        told = [{"fact_id": i, "type": "note", "namespace": "[]", "memstate_vector_id": i} for i in ids]
        self.collection.upsert(ids, Fixed().embed_documents(list(texts)), told, list(texts))

    def commit(self, text: str) -> None:
        self.upsert([text])
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("INSERT INTO facts VALUES (?, ?, ?)", (str(uuid.uuid4()), "note", text))
        self.connection.execute("COMMIT")


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def medians(rounds: int, calls: dict[str, Callable[[int], object]], *, tidy: bool = False) -> dict[str, float]:
    """Milliseconds of each call; in turn, so that all meet the same weather.

    `tidy` collects garbage before each, so that none pays for another's.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name, call in calls.items():
            if tidy:
                gc.collect()
            taken[name].append(timed(lambda call=call, i=i: call(i)))  # type: ignore[misc]
    return {name: statistics.median(times) for name, times in taken.items()}


def ratios(folder: Path, rounds: int) -> list[tuple[str, float, float, float]]:
    """What, ours in ms, the plain calls in ms, and how many times as much is allowed."""
    client = chromadb.PersistentClient(str(folder / "chroma"))
    plain = Plain(folder, client)
    # both sides put as many vectors into a collection: its own growth is Chroma's
    hooks = [ChromaSyncHook(client, name, "content", embedding=Fixed()) for name in ("ours", "block", "steps")]
    stores = [
        registered(MemoryStore(SQLiteStorage(folder / f"{hook.name[7:]}.db", synchronous=SYNCHRONOUS), [hook]))
        for hook in hooks
    ]
    memory, blocks, steps = stores
    with memory, blocks, steps:
        memory.commit(note("warm"))
        plain.commit("warm")
        one = medians(
            rounds * 40,
            {"ours": lambda i: memory.commit(note(f"text {i}")), "plain": lambda i: plain.commit(f"text {i}")},
        )

        def transaction(i: int) -> None:
            with blocks.transaction() as tx:
                for k in range(BATCH):
                    tx.commit(note(f"text {i} {k}"))

        def undo(_: int) -> None:
            steps.rollback(BATCH)

        def redo(i: int) -> None:
            with_none = registered(MemoryStore(steps.storage))  # as if by a process without the hook, to save time
            for k in range(BATCH):  # a step each, all of them updates: the rollback embeds every text again
                with_none.update(f"u{k}", {"content": f"new {i} {k}"})

        upserts: dict[str, Callable[[int], object]] = {
            "many": lambda i: memory.commit_many([note(f"many {i} {k}") for k in range(BATCH)]),
            "block": transaction,
            "upsert": lambda i: plain.upsert([f"text {i} {k}" for k in range(BATCH)]),
        }
        batch = medians(rounds, upserts, tidy=True)
        steps.commit_many([note(f"old {k}", id=f"u{k}") for k in range(BATCH)])
        back = medians(rounds, {"redo": redo, "rollback": undo, "upsert": upserts["upsert"]}, tidy=True)
    return [
        ("a commit with its vector", one["ours"], one["plain"], 1.25),
        (f"commit_many of {BATCH:,} facts", batch["many"], batch["upsert"], 1.25),
        (f"a transaction block of {BATCH:,} commits", batch["block"], batch["upsert"], 1.25),
        (f"rollback({BATCH}) with vectors", back["rollback"], back["upsert"], 2.0),
    ]


def growth(storage: Storage, sizes: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of single calls at growing numbers of facts. Without vectors: Chroma's own growth is Chroma's."""
    found: dict[str, list[float]] = {}
    with registered(MemoryStore(storage)) as memory:
        done = 0
        for size in sizes:
            for start in range(done, size, BATCH):
                memory.commit_many(
                    [
                        Fact(type=("note", "single")[k % 2], payload={"content": f"text {k}", "topic": str(k)})
                        for k in range(start, min(size, start + BATCH))
                    ]
                )
            done = size

            def single(i: int, done: int = done) -> None:
                topic = str((i * 7919 % done) | 1)
                memory.commit(Fact(type="single", payload={"content": f"again {i}", "topic": topic}))

            wanted = memory.commit(note("wanted"))

            def lookup(_: int, wanted: str = wanted) -> None:
                assert memory.get(wanted)

            calls: dict[str, Callable[[int], object]] = {
                "commit": lambda i: memory.commit(note(f"new {i}")),
                "singleton commit": single,
                "lookup": lookup,
                "rollback(1)": lambda _: memory.rollback(1),
            }
            for name, milliseconds in medians(rounds * 40, calls).items():
                found.setdefault(name, []).append(milliseconds)
    return found


class SlowEmbedding(Fixed):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        time.sleep(0.5)
        return super().embed_documents(texts)


def writer(path: Path, count: int, results: Any) -> None:
    """One of several processes: commits with slow embeddings, and between them commits that need none."""
    hook = VectorStoreSyncHook(InMemoryVectorStore(SlowEmbedding()), "content", target_types=["note"])
    errors, slow, quick = [], [], []
    with registered(MemoryStore(SQLiteStorage(path, synchronous=SYNCHRONOUS), [hook])) as memory:
        for i in range(count):
            try:
                slow.append(timed(lambda i=i: memory.commit(note(f"text {i}"))))  # type: ignore[misc]
                quick += [timed(lambda: memory.commit(Fact(type="plain", payload={}))) for _ in range(10)]
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
    results.put((errors, slow, quick))


def crowd(folder: Path, processes: int = 4, count: int = 10) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=writer, args=(folder / "crowd.db", count, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    errors, slow, quick = ([item for answer in answers for item in answer[i]] for i in range(3))
    return {"errors": errors, "slow": slow, "quick": quick}


def table_of(title: str, columns: Sequence[str], rows: Iterator[Sequence[str]]) -> Table:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def verdict(good: bool) -> str:
    return "[green]yes[/green]" if good else "[red]no[/red]"


def growth_table(title: str, sizes: Sequence[int], found: dict[str, list[float]]) -> Table:
    return table_of(
        f"{title}; flat within 1.5",
        ("what", *(f"{size:,}" for size in sizes), "last / first", "reached"),
        (
            (what, *(f"{t:.2f}" for t in times), f"{times[-1] / times[0]:.2f}", verdict(times[-1] <= 1.5 * times[0]))
            for what, times in found.items()
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 50_000, 200_000])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    console = Console(width=110)
    console.print(f"synchronous = {SYNCHRONOUS} on both sides, embeddings of {DIMENSIONS} numbers that cost nothing")
    found: dict[str, Any] = {}

    def grown(folder: Path) -> dict[str, list[float]]:
        return growth(SQLiteStorage(folder / "growth.db", synchronous="OFF"), options.sizes, options.rounds)

    jobs: list[tuple[str, Callable[[Path], Any]]] = [
        ("ratios", lambda folder: ratios(folder, options.rounds)),
        ("growth", grown),
        ("crowd", crowd),
    ]
    for name, job in track(jobs, "measuring", console=console):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found[name] = job(Path(folder))
    console.print(
        table_of(
            "beside the plain calls",
            ("what", "ours ms", "plain ms", "ratio", "allowed", "reached"),
            (
                (
                    what,
                    f"{ours:,.1f}",
                    f"{plain:,.1f}",
                    f"{ours / plain:.2f}",
                    f"{limit}",
                    verdict(ours <= limit * plain),
                )
                for what, ours, plain, limit in found["ratios"]
            ),
        ),
        growth_table("milliseconds of one call at a number of facts", options.sizes, found["growth"]),
    )
    slow, quick, errors = (found["crowd"][name] for name in ("slow", "quick", "errors"))
    console.print(
        table_of(
            "four processes on one file, an embedding takes 500 ms",
            ("what", "result", "reached"),
            iter(
                [
                    ("errors", str(errors or 0), verdict(not errors)),
                    ("slowest commit with its embedding, ms", f"{max(slow):,.0f}", verdict(max(slow) < 1000)),
                    ("slowest commit that needs none, ms", f"{max(quick):,.0f}", verdict(max(quick) < 500)),
                ]
            ),
        )
    )


if __name__ == "__main__":
    main()
