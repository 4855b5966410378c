"""A PostgreSQL server, a store on it, and a connection of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memstate_langgraph import MemoryStore
from tests.postgres.helpers import open_store
from tests.servers import postgres_url


@pytest.fixture
def url() -> str:
    return postgres_url()


@pytest.fixture
def memory(url: str, tmp_path: Path) -> Iterator[MemoryStore]:
    with open_store(url, tmp_path) as memory:
        yield memory


@pytest.fixture
def admin(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as wire:
        yield wire
