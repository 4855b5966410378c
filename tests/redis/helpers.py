"""Stores on a Redis server, and which exchange with it is the commit."""

from __future__ import annotations

from memstate_langgraph import MemoryStore, RedisStorage
from memstate_langgraph.backends.redis_engine import Exchange
from tests.wire import opener

open_store = opener(RedisStorage, "prefix")


def commits(memory: MemoryStore, step: Exchange) -> bool:
    return step.commands[-1][:2] == ("EVALSHA", memory.storage.engine._commit.sha)  # type: ignore[attr-defined]
