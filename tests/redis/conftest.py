"""Redis servers, and a store on one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from memstate_langgraph import (
    MemoryStore,
)
from tests.redis.helpers import open_store
from tests.servers import RedisServer, redis_url


@pytest.fixture
def url() -> str:
    return redis_url()


@pytest.fixture
def memory(url: str, tmp_path: Path) -> Iterator[MemoryStore]:
    with open_store(url, tmp_path) as memory:
        yield memory


@pytest.fixture
def admin(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may hurt."""
    if "MEMSTATE_REDIS_URL" in os.environ:
        pytest.skip("hurts a server")
    with tempfile.TemporaryDirectory(prefix="memstate-") as folder:  # a socket's path must be short
        server = RedisServer(Path(folder), "--appendonly", "yes", "--appendfsync", "always")
        yield server
        server.kill()


@pytest.fixture
def clustered(tmp_path: Path) -> Iterator[RedisServer]:
    """A node of a cluster, without slots yet."""
    with tempfile.TemporaryDirectory(prefix="memstate-") as folder:
        server = RedisServer(Path(folder), "--cluster-enabled", "yes")
        yield server
        server.kill()
