"""Threads, tasks and processes at once: nothing is lost, torn, doubled or stuck."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    ConflictError,
    Fact,
    FactNotFound,
    HookError,
    LeaseLost,
    MemoryStore,
    SQLiteStorage,
    StorageClosed,
    VectorStoreSyncHook,
)
from memstate_langgraph.ops import LastSeq, Plan, reads
from memstate_langgraph.vectors import Hits
from tests.children import PATIENCE
from tests.models import note, preference, register
from tests.stores import Place, Unreliable, assert_in_step, awaited, collect, found, hook_over, live, places, texts


def at_once(count: int, job: Callable[[int], object]) -> list[BaseException]:
    """Run a job in threads that start together; what they raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(count)

    def run(i: int) -> None:
        start.wait()
        try:
            job(i)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def change_at_random(memory: MemoryStore, i: int) -> None:
    dice = random.Random(i)
    for n in range(12):
        fact_id = f"f{dice.randrange(6)}"
        try:
            match dice.randrange(6):
                case 0 | 1:
                    memory.commit(note(f"{i} says {n}", fact_id), session_id=f"s{i}")
                case 2:
                    memory.commit(preference(f"r{dice.randrange(3)}", f"{i} prefers {n}"), session_id=f"s{i}")
                case 3:
                    memory.delete(fact_id, session_id=f"s{i}")
                case 4:
                    memory.rollback(1, session_id=f"s{i}")
                case 5:
                    with memory.transaction(session_id=f"s{i}") as tx:
                        tx.commit(note(f"{i} says {n}"))
                        tx.update(fact_id, {"content": f"{i} changed {n}"})
        except (ConflictError, FactNotFound):
            pass
        found(memory)


@places(awaited=False)
def test_eight_threads_on_one_store(place: Place, tmp_path: Path) -> None:
    with MemoryStore(place.storage(tmp_path), [hook_over(Unreliable())]) as memory:
        register(memory)
        assert at_once(8, lambda i: change_at_random(memory, i)) == []
        assert_in_step(memory)


@places(awaited=False)
def test_one_singleton_from_many_threads(place: Place, tmp_path: Path) -> None:
    with MemoryStore(place.storage(tmp_path), [hook_over(Unreliable())]) as memory:
        register(memory)
        assert at_once(8, lambda i: memory.commit(preference("food", f"by {i}"))) == []
        (fact,) = memory.query("preference")
        assert fact.version == 8
        assert_in_step(memory)


@places(awaited=False)
def test_one_idempotency_key_from_many_threads(place: Place, tmp_path: Path) -> None:
    with MemoryStore(place.storage(tmp_path), [hook_over(Unreliable())]) as memory:
        ids: list[str] = []
        assert at_once(8, lambda i: ids.append(memory.commit(note(f"by {i}"), idempotency_key="k"))) == []
        assert len(memory.query()) == len(set(ids)) == len(memory.log()) == 1
        assert_in_step(memory)


@places(awaited=True)
async def test_fifty_tasks_on_one_async_store(place: Place, tmp_path: Path) -> None:
    memory = AsyncMemoryStore(place.storage(tmp_path), [hook_over(Unreliable())])
    register(memory)

    async def work(i: int) -> None:
        fact_id = await memory.commit(note(f"by {i}"), session_id=f"s{i}")
        await memory.commit(preference("food", f"by {i}"), session_id=f"s{i}")
        async with memory.transaction(session_id=f"s{i}") as tx:
            await tx.update(fact_id, {"content": f"changed by {i}"})
            await tx.commit(note(f"more by {i}"))
            seen = await memory.query(filters={"payload.content": f"more by {i}"})
            assert len(seen) == 1, "each task is in its own transaction"
        assert len(await memory.search(f"more by {i}", limit=3)) == 3
        await memory.rollback(1, session_id=f"s{i}")

    await asyncio.gather(*(work(i) for i in range(50)))
    facts = {fact.id: fact for fact in await memory.query()}
    assert sorted(fact.payload["content"] for fact in facts.values() if fact.type == "note") == sorted(
        f"by {i}" for i in range(50)
    )
    assert len(facts) == 51
    assert {hit.fact.id: hit.fact for hit in await memory.search("by", limit=None)} == facts
    assert (await memory.verify()).ok
    await memory.close()


class Slow(Unreliable):
    """Answers after a while, as a server does."""

    async def aadd_documents(self, documents: Any, ids: Any = None, **options: Any) -> list[str]:
        await asyncio.sleep(0.002)
        done = self.add_documents(documents, ids, **options)
        await asyncio.sleep(0.002)
        return done


@places(awaited=True)
async def test_a_cancelled_call_is_all_or_nothing(place: Place, tmp_path: Path) -> None:
    vectors = Slow()
    memory = AsyncMemoryStore(place.storage(tmp_path), [hook_over(vectors, lease=0.0, grace=0.0, late=0.0)])
    outcomes = set()
    for i in range(60):
        before = {fact.id for fact in await memory.query()}
        many = [note(f"one of {i}", f"a{i}"), note(f"two of {i}", f"b{i}")]
        task = asyncio.create_task(memory.commit_many(many))
        await asyncio.sleep(0.0003 * (i % 40))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        new = {fact.id for fact in await memory.query()} - before
        assert new in (set(), {f"a{i}", f"b{i}"})
        outcomes.add(len(new))
        assert {hit.fact.id for hit in await memory.search("of", limit=None)} == before | new
    assert outcomes == {0, 2}, "some were too early and some too late to be stopped"
    await memory.commit(note("usable", "last"))
    report = await memory.repair()
    assert report.ok, str(report)
    assert len(vectors.store) == len(await memory.query())
    await memory.close()


@places(awaited=True, durable=True)
async def test_a_cancelled_call_has_ended_when_it_returns(place: Place, tmp_path: Path) -> None:
    storage, began, go_on = place.storage(tmp_path), threading.Event(), threading.Event()

    @reads
    def slow() -> Plan[int]:
        began.set()
        assert go_on.wait(PATIENCE)
        return (yield from LastSeq())

    call = asyncio.create_task(storage.run(slow()))
    assert await asyncio.to_thread(began.wait, PATIENCE)
    call.cancel()
    await asyncio.wait([call], timeout=0.05)
    assert not call.done(), "its plan still runs"
    go_on.set()
    await asyncio.wait([call], timeout=PATIENCE)
    assert call.cancelled()
    await storage.close()


def test_a_storage_outlives_event_loops(tmp_path: Path) -> None:
    """A loop that is closed with a call under way must not take the storage's thread with it."""
    memory = AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "state.db"))

    async def leave() -> None:
        for i in range(20):
            asyncio.ensure_future(memory.commit(note(f"left {i}")))  # noqa: RUF006 -- is left alone
        await asyncio.sleep(0)

    for _ in range(5):
        asyncio.run(leave())

    async def stay() -> int:
        async with asyncio.timeout(20):
            await memory.commit(note("stayed"))
            return len(await memory.query())

    assert asyncio.run(stay()) >= 1
    asyncio.run(memory.close())


def test_both_doors_of_one_storage(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "state.db")
    sync, other = MemoryStore(storage), awaited(AsyncMemoryStore(storage.aio()))
    for i in range(5):
        sync.commit(note(f"sync {i}", "a"))
        other.commit(note(f"async {i}", "a"))
    assert texts(sync) == texts(other) == {"a": "async 4"}
    other.rollback(1)
    assert texts(sync) == {"a": "sync 4"}
    other.close()
    with pytest.raises(StorageClosed):
        sync.commit(note("too late"))


def test_closing_while_others_work(tmp_path: Path) -> None:
    for i in range(5):
        memory = MemoryStore(SQLiteStorage(tmp_path / f"{i}.db", synchronous="OFF"))

        def work(j: int, memory: MemoryStore = memory) -> None:
            if j == 0:
                time.sleep(0.02)
                memory.close()
            while True:
                memory.commit(note(f"by {j}"))
                memory.query()

        raised = at_once(6, work)
        assert {type(error) for error in raised} == {StorageClosed}, raised
        with MemoryStore(SQLiteStorage(tmp_path / f"{i}.db")) as again:
            assert_in_step(again)


# --- processes


def transfer(path: Path, worker: int, start: Any, stop: Any) -> None:
    """Move amounts between accounts, and look whether they ever do not add up."""
    memory = MemoryStore(SQLiteStorage(path, synchronous="OFF"))
    dice = random.Random(worker)
    start.wait()
    while not stop.is_set():
        accounts = {fact.id: fact for fact in memory.query("account")}
        if sum(fact.payload["amount"] for fact in accounts.values()) != 400:
            os._exit(3)  # a torn read
        a, b = (accounts[f"account {i}"] for i in dice.sample(range(4), 2))
        try:
            with memory.transaction(session_id=str(worker)) as tx:
                tx.update(a.id, {"amount": a.payload["amount"] - 1}, expected_version=a.version)
                tx.update(b.id, {"amount": b.payload["amount"] + 1}, expected_version=b.version)
        except ConflictError:
            continue
        if dice.random() < 0.1:
            try:
                memory.rollback(1, session_id=str(worker))
            except ConflictError:
                continue
    os._exit(0)


def test_four_processes_never_see_a_half_nor_lose_an_update(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    memory = MemoryStore(SQLiteStorage(path))
    memory.commit_many([Fact(id=f"account {i}", type="account", payload={"amount": 100}) for i in range(4)])
    context = multiprocessing.get_context("fork")
    start, stop = context.Barrier(4), context.Event()
    workers = [context.Process(target=transfer, args=(path, i, start, stop)) for i in range(4)]
    memory.close()
    for worker in workers:
        worker.start()
    time.sleep(1.0)
    killed = workers[0].pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    time.sleep(1.0)
    stop.set()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [-9, 0, 0, 0]
    with MemoryStore(SQLiteStorage(path)) as memory:
        assert sum(fact.payload["amount"] for fact in memory.query("account")) == 400
        entries = list(reversed(memory.log()))
        assert len(entries) > 100
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        versions: dict[str, int] = {}
        for entry in entries:  # each change was made to what the one before it left
            assert entry.version == versions.get(entry.fact_id, 0) + 1
            versions[entry.fact_id] = entry.version
        assert_in_step(memory)


def embed_slowly(path: Path, began: Any) -> None:
    class Glacial(Unreliable):
        def add_documents(self, documents: Any, ids: Any = None, **options: Any) -> list[str]:
            began.set()
            time.sleep(3)
            return super().add_documents(documents, ids, **options)

    MemoryStore(SQLiteStorage(path), [hook_over(Glacial())]).commit(note("slow"))
    os._exit(0)


def test_no_process_waits_for_the_embedding_of_another(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    memory = MemoryStore(SQLiteStorage(path), [hook_over(Unreliable())])
    memory.commit(note("first"))
    context = multiprocessing.get_context("fork")
    began = context.Event()
    worker = context.Process(target=embed_slowly, args=(path, began))
    worker.start()
    assert began.wait(20)
    for i in range(5):
        memory.commit(note(f"quick {i}"))
    assert worker.is_alive()
    assert len(memory.query()) == 6
    worker.join(20)
    assert worker.exitcode == 0
    assert len(memory.query()) == 7
    memory.close()


# --- between the steps of the protocol, through the async door


class Interrupted(VectorStoreSyncHook):
    """Lets something else happen in the middle of a call."""

    during_upsert: Callable[[], Any] | None = None
    during_search: Callable[[], Any] | None = None

    async def aupsert(self, items: Any) -> None:
        if self.during_upsert is not None:
            happens, self.during_upsert = self.during_upsert, None
            await happens()
        await super().aupsert(items)

    async def asearch(self, *args: Any) -> Hits:
        if self.during_search is not None:
            happens, self.during_search = self.during_search, None
            await happens()
        return await super().asearch(*args)


async def test_an_async_writer_whose_lease_ended_commits_nothing(tmp_path: Path) -> None:
    vectors = Unreliable()
    hook = Interrupted(vectors, "content", lease=0.01, grace=0.0, late=0.2)
    memory = AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "state.db"), [hook])

    async def reaped() -> None:
        await asyncio.sleep(0.03)
        await memory.repair()

    hook.during_upsert = reaped
    with pytest.raises(LeaseLost):
        await memory.commit(note("too late"))
    assert await memory.query() == []
    assert await memory.log() == []
    assert len(vectors.store) == 1
    assert await memory.search("late", limit=None) == []
    await asyncio.sleep(0.25)
    await memory.repair()
    assert len(vectors.store) == 0, "what arrived late is removed again"
    await memory.close()


async def test_an_async_search_sees_one_moment(tmp_path: Path) -> None:
    hook = Interrupted(Unreliable(), "content", grace=60.0)
    memory = AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "state.db"), [hook])
    await memory.commit_many([note("cat one", "a"), note("dog one", "b")])

    async def replaced() -> None:
        await memory.commit_many([note("cat two", "a"), note("dog two", "b")])

    hook.during_search = replaced
    hits = await memory.search("cat", limit=None)
    assert {hit.fact.payload["content"] for hit in hits} == {"cat one", "dog one"}
    hits = await memory.search("cat", limit=None)
    assert {hit.fact.payload["content"] for hit in hits} == {"cat two", "dog two"}
    await memory.close()


def test_a_search_slower_than_the_grace_time_does_not_answer_wrongly(tmp_path: Path) -> None:
    """Vectors of its snapshot may have been removed meanwhile, so it begins again."""

    class Late(VectorStoreSyncHook):
        slow = 1

        def search(self, *args: Any) -> Hits:
            if self.slow:
                self.slow -= 1
                memory.commit(note("two", "a"))
                time.sleep(0.06)
                memory.repair()
            return super().search(*args)

    hook = Late(Unreliable(), "content", grace=0.05)
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook])
    memory.commit(note("one", "a"))
    assert {hit.fact.payload["content"] for hit in memory.search("x", limit=None)} == {"two"}


def test_two_who_collect_at_once_keep_the_tombstone(tmp_path: Path) -> None:
    class Meeting(VectorStoreSyncHook):
        meets = False

        def delete(self, ids: Any) -> None:
            if self.meets:
                self.meets = False
                collect(memory)
            super().delete(ids)

    vectors = Unreliable()
    hook = Meeting(vectors, "content", grace=0.0, late=0.2)
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook])
    vectors.mood = "late"
    with pytest.raises(HookError):
        memory.commit(note("one"))
    vectors.mood, hook.meets = "ok", True
    collect(memory)
    vectors.arrive()
    assert len(vectors.store) == 1
    time.sleep(0.25)
    collect(memory)
    assert len(vectors.store) == 0


def test_an_outage_during_repair_is_a_hook_error(tmp_path: Path) -> None:
    vectors = Unreliable()
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(vectors)])
    memory.commit(note("one"))
    vectors.store.clear()
    for mood in ("down", "refused"):
        vectors.mood = mood
        with pytest.raises(HookError):
            memory.repair()
    vectors.mood = "ok"
    assert memory.repair().ok
    assert_in_step(memory)


def test_a_replaced_text_is_embedded_again_when_the_race_is_lost(tmp_path: Path) -> None:
    """What was prepared belongs to what was read; if others changed it meanwhile, it is prepared again."""

    class Racing(VectorStoreSyncHook):
        race = True

        def upsert(self, items: Any) -> None:
            if self.race:
                self.race = False
                other.update("a", {"content": "theirs"})
            super().upsert(items)

    vectors = Unreliable()
    memory = MemoryStore(
        SQLiteStorage(tmp_path / "state.db"),
        [Racing(vectors, text_formatter=lambda fact: f"{fact.payload['content']} {fact.payload['topic']}")],
    )
    other = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    other.commit(note("mine", "a"))
    memory.update("a", {"topic": "both"})
    assert live(memory)["a"].payload == {"content": "theirs", "topic": "both"}
    assert found(memory) == live(memory)
    assert [text for text in _texts_in(vectors) if "both" in text][-1:] == ["theirs both"]


def _texts_in(vectors: Unreliable) -> list[str]:
    return [document["text"] for document in vectors.store.values()]
