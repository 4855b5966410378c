"""Memory that agents can trust: graph state, typed facts and their vectors in one transactional history.

Importing the package loads neither a vector store nor a database driver: names arrive when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memstate_langgraph.adapters import Capabilities as Capabilities
    from memstate_langgraph.async_memory import AsyncMemoryStore as AsyncMemoryStore
    from memstate_langgraph.backends.postgres import (
        AsyncPostgresStorage as AsyncPostgresStorage,
        PostgresStorage as PostgresStorage,
    )
    from memstate_langgraph.backends.redis import (
        AsyncRedisStorage as AsyncRedisStorage,
        RedisStorage as RedisStorage,
    )
    from memstate_langgraph.backends.sqlite import (
        AsyncInMemoryStorage as AsyncInMemoryStorage,
        AsyncSQLiteStorage as AsyncSQLiteStorage,
        InMemoryStorage as InMemoryStorage,
        SQLiteStorage as SQLiteStorage,
    )
    from memstate_langgraph.care import Report as Report
    from memstate_langgraph.differences import Diff as Diff, Preview as Preview
    from memstate_langgraph.embeddings import LocalEmbeddings as LocalEmbeddings
    from memstate_langgraph.errors import (
        ConflictError as ConflictError,
        DamagedCheckpoint as DamagedCheckpoint,
        FactNotFound as FactNotFound,
        HookError as HookError,
        LeaseLost as LeaseLost,
        MemoryStoreError as MemoryStoreError,
        OutcomeUnknown as OutcomeUnknown,
        ScopeError as ScopeError,
        StorageBusy as StorageBusy,
        StorageClosed as StorageClosed,
        StorageError as StorageError,
        UnfitVectorStore as UnfitVectorStore,
        UpcastFailed as UpcastFailed,
        ValidationFailed as ValidationFailed,
        VectorStoreInUse as VectorStoreInUse,
    )
    from memstate_langgraph.facts import (
        Cause as Cause,
        Entry as Entry,
        Fact as Fact,
        Operation as Operation,
        ScoredFact as ScoredFact,
    )
    from memstate_langgraph.integrations.chroma import (
        AsyncChromaSyncHook as AsyncChromaSyncHook,
        ChromaSyncHook as ChromaSyncHook,
    )
    from memstate_langgraph.items import ItemSyncHook as ItemSyncHook, MemStateStore as MemStateStore
    from memstate_langgraph.memory import MemoryStore as MemoryStore
    from memstate_langgraph.middleware import MemoryMiddleware as MemoryMiddleware
    from memstate_langgraph.moving import (
        Moved as Moved,
        acopy as acopy,
        aimport_checkpoints as aimport_checkpoints,
        copy as copy,
        import_checkpoints as import_checkpoints,
    )
    from memstate_langgraph.nodes import (
        RecallHook as RecallHook,
        RecallNode as RecallNode,
        RememberNode as RememberNode,
        RollbackNode as RollbackNode,
    )
    from memstate_langgraph.retention import Purged as Purged, Swept as Swept
    from memstate_langgraph.rules import Constraint as Constraint
    from memstate_langgraph.saver import MemStateCheckpointer as MemStateCheckpointer
    from memstate_langgraph.tools import create_memory_tools as create_memory_tools
    from memstate_langgraph.vectors import (
        AsyncVectorStoreSyncHook as AsyncVectorStoreSyncHook,
        VectorStoreSyncHook as VectorStoreSyncHook,
    )

_HOMES = {
    "adapters": ("Capabilities",),
    "backends.postgres": ("AsyncPostgresStorage", "PostgresStorage"),
    "backends.redis": ("AsyncRedisStorage", "RedisStorage"),
    "backends.sqlite": ("AsyncInMemoryStorage", "AsyncSQLiteStorage", "InMemoryStorage", "SQLiteStorage"),
    "care": ("Report",),
    "differences": ("Diff", "Preview"),
    "embeddings": ("LocalEmbeddings",),
    "errors": (
        "ConflictError",
        "DamagedCheckpoint",
        "FactNotFound",
        "HookError",
        "LeaseLost",
        "MemoryStoreError",
        "OutcomeUnknown",
        "ScopeError",
        "StorageBusy",
        "StorageClosed",
        "StorageError",
        "UnfitVectorStore",
        "UpcastFailed",
        "ValidationFailed",
        "VectorStoreInUse",
    ),
    "facts": ("Cause", "Entry", "Fact", "Operation", "ScoredFact"),
    "integrations.chroma": ("AsyncChromaSyncHook", "ChromaSyncHook"),
    "items": ("ItemSyncHook", "MemStateStore"),
    "async_memory": ("AsyncMemoryStore",),
    "memory": ("MemoryStore",),
    "middleware": ("MemoryMiddleware",),
    "moving": ("Moved", "acopy", "aimport_checkpoints", "copy", "import_checkpoints"),
    "nodes": ("RecallHook", "RecallNode", "RememberNode", "RollbackNode"),
    "retention": ("Purged", "Swept"),
    "rules": ("Constraint",),
    "saver": ("MemStateCheckpointer",),
    "tools": ("create_memory_tools",),
    "vectors": ("AsyncVectorStoreSyncHook", "VectorStoreSyncHook"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
# MemoryMiddleware needs an extra, and `import *` loads all that is named here
__all__ = sorted(_HOME_OF.keys() - {"MemoryMiddleware"})  # noqa: PLE0605 -- the names are strings, made from the table


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
