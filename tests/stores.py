"""Our storages, on which all that must hold for any storage is tested. To add one, add a line to `PLACES`."""

from __future__ import annotations

import pytest

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncPostgresStorage,
    AsyncRedisStorage,
    AsyncSQLiteStorage,
    InMemoryStorage,
    MemoryStore,
    PostgresStorage,
    RedisStorage,
    SQLiteStorage,
)
from memstate_langgraph.ops import LastSeq, Plan, writes
from memstate_langgraph.testing.places import (
    Died as Died,
    Outage as Outage,
    Place as Place,
    Unreliable as Unreliable,
    Words as Words,
    assert_in_step as assert_in_step,
    awaited as awaited,
    collect as collect,
    found as found,
    hook_over as hook_over,
    live as live,
    replayed as replayed,
    texts as texts,
)
from tests.servers import postgres_url, redis_url, schema_of

SQLITE = Place("sqlite", lambda folder: SQLiteStorage(folder / "state.db"), durable=True)
POSTGRES = Place("postgres", lambda folder: PostgresStorage(postgres_url(), schema=schema_of(folder)), durable=True)
REDIS = Place("redis", lambda folder: RedisStorage(redis_url(), prefix=schema_of(folder)), durable=True)

PLACES = [
    Place("memory", lambda _: InMemoryStorage()),
    Place("memory, async", lambda _: AsyncInMemoryStorage(), awaited=True),
    SQLITE,
    Place("sqlite, async", lambda folder: AsyncSQLiteStorage(folder / "state.db"), durable=True, awaited=True),
    POSTGRES,
    Place(
        "postgres, async",
        lambda folder: AsyncPostgresStorage(postgres_url(), schema=schema_of(folder)),
        durable=True,
        awaited=True,
    ),
    REDIS,
    Place(
        "redis, async",
        lambda folder: AsyncRedisStorage(redis_url(), prefix=schema_of(folder)),
        durable=True,
        awaited=True,
    ),
]
"""Every storage through each of its doors. All tests that hold for any storage take their places from here."""


def chosen(*, awaited: bool | None = None, durable: bool | None = None) -> list[Place]:
    """The places of one kind."""
    return [place for place in PLACES if awaited in (None, place.awaited) and durable in (None, place.durable)]


def places(*, awaited: bool | None = None, durable: bool | None = None) -> pytest.MarkDecorator:
    """The places of one kind, for tests that need the storage itself: as a mark that gives each as `place`."""
    these = chosen(awaited=awaited, durable=durable)
    return pytest.mark.parametrize("place", these, ids=[place.name for place in these])


@writes
def _in_turn() -> Plan[int]:
    return (yield from LastSeq())


def settle(memory: MemoryStore) -> None:
    """Wait until a server is done with what clients had sent before they died."""
    memory.storage.run(_in_turn())
