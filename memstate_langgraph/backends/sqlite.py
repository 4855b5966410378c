"""SQLite: the embedded default. One file (or `:memory:`), one writer connection per process, many readers.

Write plans run under BEGIN IMMEDIATE from their first question on, so what they read is what they change; other
processes wait their turn. Read plans see one snapshot (write-ahead log) and never wait for writers.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast

import aiosqlite

from memstate_langgraph.backends.sqlite_at_once import compile_all, prepare as prepare_at_once
from memstate_langgraph.backends.sqlite_transaction import Transaction, WrongGuess, first_questions
from memstate_langgraph.backends.threads import to_its_end
from memstate_langgraph.errors import StorageBusy, StorageClosed, StorageError, ValidationFailed
from memstate_langgraph.ops import Work
from memstate_langgraph.run import Progress, check_progress, pauses, tell

R = TypeVar("R")
Synchronous = Literal["OFF", "NORMAL", "FULL", "EXTRA"]

APPLICATION_ID = 0x4D656D53  # "MemS" in the file's header says that the file is ours
SCHEMA_VERSION = 2
MEMORY = ":memory:"
PAGES_AT_ONCE = 256
"""How many pages a step of `vacuum` moves; other writers come in between steps."""


@dataclass(frozen=True, slots=True)
class SQLiteDriver:
    """Another build of SQLite behind the interface of Python's `sqlite3`, such as SQLCipher: its module, and the
    statements with which each connection begins.
    """

    module: Any = sqlite3
    first: tuple[str, ...] = field(default=(), repr=False)  # may hold a key


class _Contention(Exception):
    """Another writer was there; the plan may begin again."""


class SQLiteEngine:
    """The connections to one file and the rules for using them; both doors share it, from any thread."""

    def __init__(
        self,
        path: str | Path,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 30.0,
        driver: SQLiteDriver | None = None,
    ) -> None:
        if synchronous not in ("OFF", "NORMAL", "FULL", "EXTRA"):
            raise ValidationFailed(f"synchronous: must be OFF, NORMAL, FULL or EXTRA, not {synchronous!r}")
        if busy_timeout <= 0:
            raise ValidationFailed(f"busy_timeout: must be more than 0 seconds, not {busy_timeout!r}")
        self.path = str(path)
        if not self.path or "\x00" in self.path:
            raise ValidationFailed(f"path: must name a file, or {MEMORY!r}, not {path!r}")
        self.in_memory = self.path == MEMORY
        self.identity: Hashable = self if self.in_memory else os.path.realpath(self.path)
        self.busy_timeout = busy_timeout
        self._synchronous = synchronous
        self._can_relax = synchronous in ("FULL", "EXTRA") and not self.in_memory
        self._driver = driver or SQLiteDriver()
        self._lock = threading.Lock()
        self._pool = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        self.writer = self._open(writes=True)
        if not self.in_memory:
            self._readers.append(self._open())
            compile_all(self._readers[0], first_questions(), self._driver.module.Error)

    # --- opening

    def _open(self, *, writes: bool = False) -> sqlite3.Connection:
        deadline = time.monotonic() + self.busy_timeout
        for pause in pauses():
            try:
                return self._connect(writes)
            except _Contention as error:
                # two processes that open a new file may both try to make it; one of them waits
                if time.monotonic() > deadline:
                    raise StorageBusy(f"{self.path}: still locked after {self.busy_timeout} s") from error
                time.sleep(pause)
        raise AssertionError

    def _connect(self, writes: bool) -> sqlite3.Connection:
        try:
            connection: sqlite3.Connection = self._driver.module.connect(
                self.path, timeout=1.0, isolation_level=None, check_same_thread=False, cached_statements=512
            )
            try:
                for statement in self._driver.first:
                    connection.execute(statement)
                self._prepare(connection)
                if writes:
                    prepare_at_once(connection, self._driver.module.Error)
            except BaseException:
                connection.close()
                raise
        except self._driver.module.Error as error:
            raise self._ours(error) from error
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        def pragma(name: str) -> int:
            return int(connection.execute(f"PRAGMA {name}").fetchone()[0])

        if pragma("application_id") != APPLICATION_ID:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and pragma("application_id") != APPLICATION_ID:
                raise StorageError(
                    f"{self.path}: a SQLite file that memstate_langgraph did not make; give it a path of its own"
                )
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only a file without tables can still choose
            if not self.in_memory:
                connection.execute("PRAGMA journal_mode = WAL")
            self._create(connection)
        version = pragma("user_version")
        if version < SCHEMA_VERSION:
            self._migrate(connection)
            version = pragma("user_version")
        if version != SCHEMA_VERSION:
            raise StorageError(
                f"{self.path}: has schema version {version}, this release of memstate_langgraph reads "
                f"{SCHEMA_VERSION}; open it with the release that wrote it"
            )
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA temp_store = MEMORY")
        # What is deleted is overwritten with zeros where that costs no write of its own; `vacuum` sees to the rest.
        connection.execute("PRAGMA secure_delete = FAST")

    def _create(self, connection: sqlite3.Connection) -> None:
        with _exclusively(connection):
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                _execute_script(connection, "sqlite.sql")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with _exclusively(connection):
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])  # another process may have been here
            for version in range(found + 1, SCHEMA_VERSION + 1):
                _execute_script(connection, f"sqlite_{version}.sql")
            connection.execute(f"PRAGMA user_version = {max(found, SCHEMA_VERSION)}")

    # --- running

    def attempt(self, work: Work[R]) -> R:
        """Run a plan once in a transaction; `_Contention` if another writer was in the way."""
        if self._closed:
            raise self._is_closed()
        if work.write or self.in_memory:
            if self._can_relax and not work.durable:
                return self._relaxed(work)
            return self._transact(self.writer, self._lock, work)
        connection = self._reader()
        try:
            return self._transact(connection, threading.Lock(), work)  # nobody else wants a turn there
        finally:
            self._give_back(connection)

    def _is_closed(self) -> StorageClosed:
        return StorageClosed(f"{self.path}: the storage was closed")

    def _relaxed(self, work: Work[R]) -> R:
        with self._lock:
            try:
                self.writer.execute("PRAGMA synchronous = NORMAL")
                try:
                    return self._transact(self.writer, threading.Lock(), work)
                finally:
                    self.writer.execute(f"PRAGMA synchronous = {self._synchronous}")
            except self._driver.module.Error as error:
                raise self._ours(error) from error

    def _transact(self, connection: sqlite3.Connection, turn: threading.Lock, work: Work[R]) -> R:
        try:
            try:
                return cast("R", Transaction(connection, work, True).run(turn))
            except WrongGuess:
                return cast("R", Transaction(connection, work, False).run(turn))
        except self._driver.module.Error as error:
            raise self._ours(error) from error

    def _reader(self) -> sqlite3.Connection:
        with self._pool:
            if self._readers:
                return self._readers.pop()
        return self._open()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool:
            if self._closed:  # whoever closed the storage left this one to us
                connection.close()
            else:
                self._readers.append(connection)

    def _ours(self, error: Exception) -> Exception:
        """The driver's errors as ours, in this one place."""
        if self._closed:  # while it waited for its turn
            return self._is_closed()
        code = getattr(error, "sqlite_errorcode", 0)  # the driver's own complaints have none
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return _Contention(str(error))
        return StorageError(f"{self.path}: {error}")

    # --- closing and care

    def close(self) -> None:
        """Close the file; transactions under way end first, or close their own connection when they end."""
        with self._lock, self._pool:
            self._closed = True
            for connection in (self.writer, *self._readers):
                connection.close()
            self._readers.clear()

    def vacuum(self, progress: Progress | None) -> int:
        check_progress(progress)

        def pragma(text: str) -> int:
            with self._lock:
                if self._closed:
                    raise self._is_closed()
                try:
                    rows = self.writer.execute(f"PRAGMA {text}").fetchall()
                except self._driver.module.Error as error:
                    raise self._ours(error) from error
            return int(rows[0][0]) if rows else 0

        before = self.patiently(lambda: pragma("page_count"))
        free = total = self.patiently(lambda: pragma("freelist_count"))
        while free:
            self.patiently(lambda: pragma(f"incremental_vacuum({PAGES_AT_ONCE})"))
            free = self.patiently(lambda: pragma("freelist_count"))
            tell(progress, "giving space back", max(0, total - free), total)
        if not self.in_memory:
            self.patiently(lambda: pragma("wal_checkpoint(TRUNCATE)"))
        return (before - self.patiently(lambda: pragma("page_count"))) * pragma("page_size")

    def patiently(self, call: Callable[[], R]) -> R:
        """Try until it is not in another writer's way, or for `busy_timeout`."""
        try:
            return call()
        except _Contention:
            deadline = time.monotonic() + self.busy_timeout
        for pause in pauses():
            time.sleep(pause)
            try:
                return call()
            except _Contention as error:
                if time.monotonic() > deadline:
                    raise busy(self) from error
        raise AssertionError

    def warnings(self) -> list[str]:
        """What about this SQLite deserves a word in `verify()`."""
        if self.in_memory or self._driver.module.sqlite_version_info >= (3, 51, 3):
            return []
        return [
            f"SQLite {self._driver.module.sqlite_version} is older than 3.51.3, in which a rare race between two "
            "connections resetting the write-ahead log was repaired"
        ]


@contextmanager
def _exclusively(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _execute_script(connection: sqlite3.Connection, name: str) -> None:
    for statement in statements_of(resources.files(__package__).joinpath("schema", name).read_text("utf-8")):
        connection.execute(statement)


def statements_of(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit the transaction around it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


class _Door:
    engine: SQLiteEngine

    def __init__(
        self,
        path: str | Path,
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 30.0,
        driver: SQLiteDriver | None = None,
    ) -> None:
        self._face(SQLiteEngine(path, synchronous, busy_timeout, driver))

    @classmethod
    def over(cls, engine: SQLiteEngine) -> Self:
        """A door to a file that is open already."""
        storage = cls.__new__(cls)
        storage._face(engine)
        return storage

    def _face(self, engine: SQLiteEngine) -> None:
        self.engine = engine

    @property
    def identity(self) -> Hashable:
        """The file: stores over the same one hold the same data."""
        return self.engine.identity


class SQLiteStorage(_Door):
    """Facts, log, vectors' journal and checkpoints in one SQLite file.

    `synchronous` is SQLite's: FULL loses nothing that was acknowledged even when the machine loses power;
    NORMAL may then lose the last transactions, never tear one. `busy_timeout` is how many seconds a write
    waits for other processes before `StorageBusy`.
    """

    def run(self, work: Work[R]) -> R:
        """Run a plan in one transaction, and again from the top if another process was in its way."""
        try:
            return self.engine.attempt(work)
        except _Contention:
            return self.engine.patiently(lambda: self.engine.attempt(work))

    def vacuum(self, progress: Progress | None = None) -> int:
        """Give unused space back to the file system, in short steps; how many bytes."""
        return self.engine.vacuum(progress)

    def close(self) -> None:
        """Close the file; transactions under way end first."""
        self.engine.close()

    def aio(self) -> AsyncSQLiteStorage:
        """The async door to the same open file; closing either closes both."""
        return AsyncSQLiteStorage.over(self.engine)


class AsyncSQLiteStorage(_Door):
    """The async door of `SQLiteStorage`; opened at its first use.

    A plan runs as a whole in aiosqlite's thread, one hop per transaction. So a cancelled call leaves no
    transaction open: its plan never began, or ran to its end before the call returned.
    """

    def _face(self, engine: SQLiteEngine) -> None:
        super()._face(engine)
        self._workers: dict[bool, _Worker] = {}
        self._opening = threading.Lock()

    async def run(self, work: Work[R]) -> R:
        """Run a plan in one transaction, in a thread; when it is cancelled it has not begun, or has ended."""
        if self.engine.in_memory:
            return SQLiteStorage.over(self.engine).run(work)  # nothing in it waits for a disk
        with self._opening:
            worker = self._workers.get(work.write) or self._workers.setdefault(work.write, _Worker(self.engine))
        deadline = time.monotonic() + self.engine.busy_timeout
        for pause in pauses():
            try:
                return await worker.attempt(work)
            except _Contention as error:
                if time.monotonic() > deadline:
                    raise busy(self.engine) from error
                await asyncio.sleep(pause)
        raise AssertionError

    async def vacuum(self, progress: Progress | None = None) -> int:
        """See `SQLiteStorage.vacuum`."""
        return await asyncio.to_thread(self.engine.vacuum, progress)

    async def close(self) -> None:
        """Close the file and end the threads; transactions under way end first."""
        self.engine.close()
        with self._opening:
            workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            await worker.stop()

    def sync(self) -> SQLiteStorage:
        """The sync door to the same open file; closing either closes both."""
        return SQLiteStorage.over(self.engine)


class _Thread(aiosqlite.Connection):
    def __del__(self) -> None:
        """Nothing to close: the connection is the engine's. aiosqlite would warn, and need a running loop."""


class _Worker:
    """An aiosqlite thread that runs whole plans.

    aiosqlite's public calls are single statements, each a hop between threads. The primitive below them,
    `run this in your thread`, serves any number of event loops, but is private: this class is the only
    place that touches it, and the dependency is bounded to releases that have it.
    """

    def __init__(self, engine: SQLiteEngine) -> None:
        self._engine = engine
        self._connection = _Thread(lambda: engine.writer, iter_chunk_size=64)
        self._connection._connection = engine.writer
        self._connection._thread.daemon = True  # a forgotten close() must not keep the process alive
        self._connection._thread.start()

    async def attempt(self, work: Work[R]) -> R:
        job: Future[R] = Future()

        def run() -> None:
            if not job.set_running_or_notify_cancel():
                return
            try:
                job.set_result(self._engine.attempt(work))
            except BaseException as error:
                job.set_exception(error)

        self._connection._tx.put_nowait((None, run))
        return await to_its_end(job)

    async def stop(self) -> None:
        self._connection._connection = None  # the engine closes its own connections
        stopped = self._connection.stop()
        if stopped is not None:
            await stopped


def busy(engine: SQLiteEngine) -> StorageBusy:
    return StorageBusy(
        f"{engine.path}: other writers held the file for {engine.busy_timeout} s; nothing was written, try again"
    )


class InMemoryStorage(SQLiteStorage):
    """Everything in this process's memory, gone when it ends: SQLite without a file, so with the same rules."""

    def __init__(self) -> None:
        super().__init__(MEMORY)


class AsyncInMemoryStorage(AsyncSQLiteStorage):
    """The async door of `InMemoryStorage`."""

    def __init__(self) -> None:
        super().__init__(MEMORY)


__all__ = [
    "AsyncInMemoryStorage",
    "AsyncSQLiteStorage",
    "InMemoryStorage",
    "SQLiteDriver",
    "SQLiteEngine",
    "SQLiteStorage",
]
