"""Settings of the server and of the store, clients, connections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from memstate_langgraph import (
    MemoryStore,
    MemStateCheckpointer,
    RedisStorage,
    StorageBusy,
    StorageClosed,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.backends.urls import storage_from
from tests.models import note, preference
from tests.redis.helpers import open_store
from tests.servers import RedisServer, schema_of
from tests.stores import Unreliable, assert_in_step, hook_over
from tests.workers import ask


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"appendonly": "no"}, ["appendonly is off"]),
        ({"appendfsync": "everysec"}, ["appendfsync everysec"]),
        ({"appendfsync": "no"}, ["appendfsync no"]),
        ({"appendfsync": "always"}, []),
        ({"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}, ["maxmemory-policy allkeys-lru"]),
        ({"maxmemory": "1gb", "maxmemory-policy": "noeviction"}, []),
    ],
    ids=str,
)
def test_verify_tells_what_the_server_promises(
    server: RedisServer, tmp_path: Path, settings: dict[str, str], said: list[str]
) -> None:
    with server.client() as admin:
        for name, value in settings.items():
            admin.config_set(name, value)
    with open_store(server.url, tmp_path) as memory:
        report = memory.verify()
    assert report.ok
    assert len(report.warnings) == len(said)
    for warning, words in zip(report.warnings, said, strict=True):
        assert words in warning


@pytest.mark.parametrize("name", ["", "a{b}", "}", "x" * 101, "a\0b", None, 1])
def test_prefixes_are_checked(url: str, name: Any) -> None:
    with pytest.raises(ValidationFailed, match="prefix: must be"):
        RedisStorage(url, prefix=name)


def test_prefixes_share_a_server(url: str, tmp_path: Path) -> None:
    with open_store(url, tmp_path / "a") as one, open_store(url, tmp_path / "b") as other:
        one.commit(note("in a"))
        assert [fact.payload["content"] for fact in one.query()] == ["in a"]
        assert (other.query(), other.log()) == ([], [])
        assert one.storage.identity != other.storage.identity


def test_newer_layouts_are_refused(memory: MemoryStore, url: str, tmp_path: Path, admin: Any) -> None:
    admin.hset(f"{{{schema_of(tmp_path)}}}:meta", "version", "99")
    with pytest.raises(StorageError, match="99"):
        open_store(url, tmp_path)


def test_a_storage_by_its_url(url: str, tmp_path: Path) -> None:
    named = f"{url}?prefix={schema_of(tmp_path)}"
    with pytest.raises(StorageError, match="there is no such storage"):
        storage_from(named, must_exist=True)
    with MemoryStore(storage_from(named)) as memory:
        memory.commit(note("x"))
    with MemoryStore(storage_from(named, must_exist=True)) as memory:
        assert len(memory.query()) == 1
    with MemStateCheckpointer.from_conn_string(named) as saver:
        assert "__interrupt__" in ask(saver, "t", "hello")


# --- clients and connections


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 2}, {"protocol": 3}], ids=str)
def test_a_client_is_used_as_it_is_and_left_as_it_was(url: str, tmp_path: Path, options: dict[str, Any]) -> None:
    with redis.Redis.from_url(url, **options) as client:
        with open_store(client, tmp_path, hook_over(Unreliable())) as memory:
            memory.commit(preference("food", "Käse"))
            memory.commit(preference("food", "fish"))
            memory.rollback(1)
            assert_in_step(memory)
            ask(MemStateCheckpointer(memory=memory), "t", "hello")
            assert memory.storage._server._pool is None, "no other connections were opened"  # type: ignore[attr-defined]
        with pytest.raises(StorageClosed):
            memory.query()
        assert client.ping()


def test_an_exhausted_pool_is_reported_and_usable_afterwards(url: str, tmp_path: Path) -> None:
    with open_store(url, tmp_path, pool_size=1, busy_timeout=0.3) as memory:
        pool = memory.storage._server.pool()  # type: ignore[attr-defined]
        wire = pool.get_connection()
        with pytest.raises(StorageBusy, match="all connections"):
            memory.commit(note("x"))
        pool.release(wire)
        memory.commit(note("x"))
        assert len(memory.log()) == 1
