"""A backend of one's own: memory and conversations in a SQLite file that is encrypted at rest, with SQLCipher.

Run it with `python examples/encrypted.py` after `pip install sqlcipher3-binary`. It keeps to the whole contract for
storages: see `tests/test_custom_backend.py` and the page "Write a storage backend" in `docs/`.
"""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import sqlcipher3.dbapi2
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import AsyncSQLiteStorage, Fact, MemoryStore, MemStateCheckpointer, SQLiteStorage, StorageError
from memstate_langgraph.backends.sqlite import SQLiteDriver


def sqlcipher(key: bytes) -> SQLiteDriver:
    """SQLCipher with a key of 32 random bytes: no passphrase, so nothing to derive when a connection is opened."""
    if len(key) != 32:
        raise ValueError(f"key: must have 32 bytes, not {len(key)}")
    return SQLiteDriver(sqlcipher3.dbapi2, (f"PRAGMA key = \"x'{key.hex()}'\"", "PRAGMA cipher_log_level = NONE"))


class EncryptedStorage(SQLiteStorage):
    def __init__(self, path: str | Path, key: bytes, **options: Any) -> None:
        super().__init__(path, driver=sqlcipher(key), **options)


class AsyncEncryptedStorage(AsyncSQLiteStorage):
    def __init__(self, path: str | Path, key: bytes, **options: Any) -> None:
        super().__init__(path, driver=sqlcipher(key), **options)


def main(folder: Path) -> None:
    path, key = folder / "state.db", secrets.token_bytes(32)  # keep the key where you keep your other secrets
    with MemoryStore(EncryptedStorage(path, key)) as memory:
        graph = StateGraph(MessagesState)
        graph.add_node("agent", lambda _: {"messages": [AIMessage("Noted.")]})
        graph.add_edge(START, "agent")
        app: Any = graph.compile(checkpointer=MemStateCheckpointer(memory))
        app.invoke({"messages": [("user", "My PIN is 4711")]}, {"configurable": {"thread_id": "chat-1"}})
        memory.commit(Fact(type="note", payload={"content": "the PIN is 4711"}), session_id="chat-1")

    stored = b"".join(file.read_bytes() for file in folder.iterdir())
    print("'4711' in the bytes on disk:", b"4711" in stored)
    try:
        sqlite3.connect(path).execute("SELECT * FROM facts")
    except sqlite3.DatabaseError as error:
        print("sqlite3 without the key:", error)
    try:
        EncryptedStorage(path, secrets.token_bytes(32))
    except StorageError as error:
        print("another key:", str(error).removeprefix(f"{path}: "))
    with MemoryStore(EncryptedStorage(path, key)) as memory:
        print("with the key:", memory.query("note")[0].payload["content"])
        print("verify():", str(memory.verify()).splitlines()[0])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
