"""Connections: lost at every moment, brought along, never closed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg_pool import AsyncConnectionPool
from redis import asyncio as aredis

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncPostgresStorage,
    AsyncRedisStorage,
    ConflictError,
    Constraint,
    MemoryStore,
    MemStateCheckpointer,
    PostgresStorage,
    RedisStorage,
    ValidationFailed,
)
from tests.models import Preference, preference, register
from tests.saver.helpers import META, checkpoint, config
from tests.servers import postgres_url, redis_url, schema_of
from tests.stores import POSTGRES, REDIS, Place, assert_in_step
from tests.wire import spy


def terminate(storage: Any, wire: Any) -> None:
    with psycopg.connect(postgres_url(), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (wire.info.backend_pid,))


def kill(storage: Any, wire: Any) -> None:
    (number,) = storage._exchange(wire, [("CLIENT", "ID")])
    with redis.Redis.from_url(redis_url()) as admin:
        admin.execute_command("CLIENT", "KILL", "ID", number)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("place", "end", "steps"),
    [pytest.param(POSTGRES, terminate, 2, id="postgres"), pytest.param(REDIS, kill, 5, id="redis")],
)
def test_a_connection_lost_at_every_moment(
    place: Place,
    end: Callable[[Any, Any], None],
    steps: int,
    moment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = place.open(tmp_path)
    register(memory)
    memory.commit(preference("food", "fish"), idempotency_key="first")
    exchanges = hurt_at = 0

    def around(storage: Any, step: Any, go: Any) -> Any:
        nonlocal exchanges
        exchanges += 1
        if exchanges != hurt_at:
            return go()
        if moment == "after":
            go()  # done, but we shall not hear of it
        end(storage, step.wire)
        go()
        pytest.fail("the connection is still there")

    spy(memory, monkeypatch, around)
    expected = 1
    for hurt_at in range(1, 30):
        exchanges = 0
        memory.commit(preference("food", f"on {hurt_at}"), session_id="s")
        expected += 1
        if exchanges < hurt_at:
            break
        (fact,) = memory.query()
        assert fact.version == expected, f"hurt {moment} exchange {hurt_at}: neither lost nor repeated"
    assert exchanges == hurt_at - 1 == steps, "questions, then the commit: each was hurt"
    monkeypatch.undo()
    assert len(memory.log()) == expected
    assert_in_step(memory)
    memory.close()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("place", "end"), [(POSTGRES, terminate), (REDIS, kill)], ids=["postgres", "redis"])
def test_a_checkpoint_whose_connection_was_lost_is_there(
    place: Place, end: Callable[[Any, Any], None], moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = place.open(tmp_path)
    saver = MemStateCheckpointer(memory)
    exchanges = hurt_at = 0

    def around(storage: Any, step: Any, go: Any) -> Any:
        nonlocal exchanges
        exchanges += 1
        if exchanges == hurt_at:
            if moment == "after":
                go()
            end(storage, step.wire)
        return go()

    spy(memory, monkeypatch, around)
    hurt, at = True, config()
    while hurt:
        hurt_at, exchanges = hurt_at + 1, 0
        made = checkpoint({"text": f"words {hurt_at}" * 20}, {"text": f"{hurt_at:05}"})
        at = saver.put(at, made, META, made["channel_versions"])
        saver.put_writes(at, [("text", hurt_at)], "task")
        hurt, hurt_at_last = exchanges >= hurt_at, hurt_at
        hurt_at = 0  # looking is not hurt
        found = saver.get_tuple(at)
        assert found is not None
        assert found.checkpoint == made
        assert found.pending_writes == [("task", "text", hurt_at_last)]
        hurt_at = hurt_at_last
    assert hurt_at > 2
    monkeypatch.undo()
    assert len(list(saver.list(config()))) == hurt_at
    memory.close()


@asynccontextmanager
async def with_a_pool(folder: Path) -> AsyncIterator[AsyncPostgresStorage]:
    async with AsyncConnectionPool(postgres_url(), min_size=1, max_size=2, open=False) as pool:
        yield AsyncPostgresStorage(pool, schema=schema_of(folder))
        async with pool.connection() as wire:
            assert wire.autocommit is False


@asynccontextmanager
async def with_a_client(folder: Path) -> AsyncIterator[AsyncRedisStorage]:
    async with aredis.Redis.from_url(redis_url(), decode_responses=True) as client:
        yield AsyncRedisStorage(client, prefix=schema_of(folder))
        assert await client.ping()
        with pytest.raises(ValidationFailed, match="AsyncRedisStorage"):
            RedisStorage(client)


@pytest.mark.parametrize("brought", [with_a_pool, with_a_client])
async def test_what_an_application_brings_is_used_in_its_loop(
    brought: Callable[[Path], AbstractAsyncContextManager[Any]], tmp_path: Path
) -> None:
    async with brought(tmp_path) as storage:
        memory = AsyncMemoryStore(storage)
        memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
        await asyncio.gather(*(memory.commit(preference("food", f"by {i}")) for i in range(20)))
        (fact,) = await memory.query()
        assert fact.version == 20
        with pytest.raises(ConflictError):
            await memory.update(fact.id, {"content": "x"}, expected_version=1)
        call = asyncio.ensure_future(memory.commit(preference("food", "cancelled")))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await memory.get(fact.id)).version in (20, 21)  # type: ignore[union-attr]
        assert (await memory.verify()).ok
        assert storage._server._pool is None, "no other connections were opened"
        assert (await asyncio.to_thread(MemoryStore(storage.sync()).query))[0].id == fact.id
        await memory.close()


FORGOTTEN = """
import asyncio
from memstate_langgraph import Async{storage}, AsyncMemoryStore, Fact, MemoryStore, {storage}

async def main():
    store = AsyncMemoryStore(Async{storage}({where}))
    await store.commit(Fact(type="x", payload={{}}))

asyncio.run(main())
MemoryStore({storage}({where})).commit(Fact(type="x", payload={{}}))
"""


@pytest.mark.parametrize(
    ("storage", "where"),
    [
        pytest.param("SQLiteStorage", lambda folder: f"{str(folder / 's.db')!r}", id="sqlite"),
        pytest.param(
            "PostgresStorage", lambda folder: f"{postgres_url()!r}, schema={schema_of(folder)!r}", id="postgres"
        ),
        pytest.param("RedisStorage", lambda folder: f"{redis_url()!r}, prefix={schema_of(folder)!r}", id="redis"),
    ],
)
def test_a_forgotten_close_neither_hangs_nor_shouts(storage: str, where: Callable[[Path], str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGOTTEN.format(storage=storage, where=where(tmp_path))],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forgotten_pool_may_end_in_a_thread_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shouts: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", shouts.append)
    storage = PostgresStorage(postgres_url(), schema=schema_of(tmp_path))
    pool = storage._server.pool()
    threads = [*pool._workers, pool._sched_runner]
    forgotten = threading.Event()

    class Passing:
        """Holds the pool for a while, as the pool's own tasks do."""

        def __init__(self, pool: object) -> None:
            self.pool = pool

        def run(self) -> None:
            forgotten.wait(30)
            del self.pool

    pool.run_task(Passing(pool))
    del storage, pool
    forgotten.set()
    for thread in threads:
        assert thread is not None
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads if thread)
    assert not shouts
