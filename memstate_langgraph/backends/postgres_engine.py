"""PostgreSQL: what a transaction is, when it runs again, what an error means. Once, for both doors.

A writing plan takes the lock of what it asks about before it asks, and keeps it until it has committed: one lock
for facts and log, one per thread and one per pool of chunks for checkpoints. It runs READ COMMITTED, so each
question sees all that was committed before its lock was granted, and nothing that it saw changes meanwhile.
SERIALIZABLE would give the same by aborting whoever read a page that another one wrote: on small tables all do.
That `seq` rises in commit order needs one queue of writers anyway. Reading plans see one snapshot and no lock.

Whoever appends to the log gives its lock up before the disk, or a standby, has the transaction, and waits for that
afterwards, so that several workers wait at once and the server writes for all of them. A call returns when it is
durable. Others may see it a moment before; what they then commit is durable only after it.

What is here does no I/O: generators say what to exchange with the server, and the doors in `postgres` do it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Generic, NoReturn, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout

from memstate_langgraph import checkpoint_ops, ops
from memstate_langgraph.backends.scopes import LOG, Lock, asked_about
from memstate_langgraph.backends.sql import ANSWERS
from memstate_langgraph.backends.statements import AT_ONCE, Batch, Row, Sql, Statement, Statements, as_asking, insert_of
from memstate_langgraph.errors import OutcomeUnknown, StorageBusy, StorageClosed, StorageError, ValidationFailed
from memstate_langgraph.ops import Op, Work
from memstate_langgraph.run import Progress, abreast, check_progress, in_turn, pauses, relay, tell

R = TypeVar("R")
Wire = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

SCHEMA_VERSION = 2
FLUSH = Batch("SELECT pg_logical_emit_message(true, 'memstate'::text, ''::text)", [()])
"""The shortest transaction of which the server says that it is on disk, and all before it."""
NAME = re.compile(r"[a-z_][a-z0-9_]{0,29}")
TABLE_WORDS = re.compile(r"\b(FROM|JOIN|INTO|UPDATE) ([a-z_]+)\b")


# --- what a door is asked to do


@dataclass(frozen=True, slots=True)
class Borrow:
    """A connection from the pool, or a new one that is nobody else's."""

    seconds: float
    alone: bool = False


@dataclass(frozen=True, slots=True)
class GiveBack:
    wire: Wire
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send statements in one go; the answer has the rows of each."""

    wire: Wire
    statements: list[Statement]


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Step = Borrow | GiveBack | Exchange | Pause
Steps = Generator[Step, Any, R]


class Dialect:
    def among(self, column: str) -> str:
        return f"{column} = ANY(?)"

    def rows(self, alias: str) -> str:
        return f"unnest(?::text[]) AS {alias}(value)"

    def listed(self, values: Iterable[Any]) -> list[Any]:
        return list(values)


_DIALECT = Dialect()


# --- errors


class _Again(Exception):
    """Nothing was written and it may go better next time; `final` is what to say when there is no next time."""

    def __init__(self, final: StorageError) -> None:
        self.final = final


class _InDoubt(Exception, Generic[R]):
    """The connection was lost after COMMIT was sent, or there was an error after COMMIT."""

    def __init__(self, transaction: Transaction, result: R, error: psycopg.Error) -> None:
        self.transaction, self.result, self.error = transaction, result, error


IDLE = TransactionStatus.IDLE
_LOST = ("57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "53300")


@dataclass
class Transaction:
    """One attempt at a plan: how it begins, what it holds, and what was not sent yet."""

    wire: Wire
    begin: str
    first: list[Sql]
    """What it selects when it begins: its number if it writes, its settings, its locks."""
    queue: list[Statement] = field(default_factory=list)
    held: dict[str, bool] = field(default_factory=dict)
    locking: bool = False
    """Whether a lock among what it holds was not sent yet."""
    begun: bool = False
    xid: str | None = None
    tx: str | None = None
    """What the log will call it, if it appends to the log."""

    def select(self, calls: Iterable[Sql]) -> None:
        """Select something for its effect, before whatever is asked next."""
        if self.begun:
            self.queue.append(_selected(calls))
        else:
            self.first += calls

    def send(self) -> Steps[list[list[Row]]]:
        """Send what has gathered. Statements without an answer wait for one that has, to save a round trip."""
        statements, self.queue = merged(self.queue), []
        self.locking = False
        if self.begun:
            results: list[list[Row]] = yield Exchange(self.wire, statements)
            return results
        results = yield Exchange(self.wire, [_bare(self.begin), _selected(self.first), *statements])
        self.begun, self.xid = True, results[1][0][0]
        return results


@cache
def _tables_in(text: str) -> frozenset[str]:
    return frozenset(table for _, table in TABLE_WORDS.findall(text))


def merged(statements: Iterable[Statement]) -> list[Statement]:
    """Rows that are inserted one after the other, each into a table that no other of them mentions, as one statement.

    Each statement costs a client more than its row costs the server.
    """
    result: list[Statement] = []
    run: list[Batch] = []
    written: set[str] = set()

    def end() -> None:
        if run:
            head = ", ".join(f"row_{i} AS ({batch.text})" for i, batch in enumerate(run[:-1]))
            text = f"WITH {head} {run[-1].text}" if head else run[-1].text
            result.append(Batch(text, [[parameter for batch in run for parameter in batch.rows[0]]]))
        run.clear()
        written.clear()

    for statement in map(_as_one, statements):
        tables = _tables_in(statement.text)
        if not written.isdisjoint(tables):
            end()
        if isinstance(statement, Batch) and len(statement.rows) == 1 and statement.text.startswith("INSERT INTO "):
            run.append(statement)
            written.update(tables)
        else:
            end()
            result.append(statement)
    end()
    return result


def _as_one(statement: Statement) -> Statement:
    if not (isinstance(statement, Batch) and statement.distinct and len(statement.rows) <= AT_ONCE):
        return statement
    rows = statement.rows
    return Batch(insert_of(statement.text, len(rows)), [[part for row in rows for part in row]])


def _bare(text: str) -> Batch:
    return Batch(text, [()])


def _selected(calls: Iterable[Sql]) -> Sql:
    """All in one statement; they are computed from left to right."""
    calls = list(calls)
    text = ", ".join(call.text for call in calls)
    return Sql(f"SELECT {text}", [parameter for call in calls for parameter in call.parameters])


def _set(name: str, value: str) -> Sql:
    return Sql("set_config(?, ?, true)", (name, value))


class PostgresEngine:
    """The rules for using one schema of one database; both doors share it."""

    def __init__(self, where: str, schema: str, prefix: str, busy_timeout: float, must_exist: bool = False) -> None:
        for name, text in (("schema", schema), ("prefix", "_" if prefix == "" else prefix)):
            if not (isinstance(cast("object", text), str) and NAME.fullmatch(text)):
                raise ValidationFailed(
                    f"{name}: must be at most 30 small letters, digits and underscores, not {text!r}"
                )
        if busy_timeout <= 0:
            raise ValidationFailed(f"busy_timeout: must be more than 0 seconds, not {busy_timeout!r}")
        self.where = f"{where}, schema {schema!r}" + (f", prefix {prefix!r}" if prefix else "")
        self.schema, self.prefix, self.busy_timeout, self.must_exist = schema, prefix, busy_timeout, must_exist
        self.closed = False
        self._prepared = False
        self._may_flush = False
        self._tables = frozenset(re.findall(r"^CREATE TABLE \{prefix\}(\w+)", _script("postgres.sql"), re.MULTILINE))
        self._texts: dict[str, str] = {}

    # --- statements

    def text(self, text: str) -> str:
        """A statement as psycopg wants it, about the tables of our schema."""
        known = self._texts.get(text)
        if known is None:
            known = TABLE_WORDS.sub(self._qualified, text.replace("%", "%%").replace("?", "%s"))
            self._texts[text] = known
        return known

    def _qualified(self, found: re.Match[str]) -> str:
        word, table = found.groups()
        return f"{word} {self.schema}.{self.prefix}{table}" if table in self._tables else found[0]

    def lock(self, lock: Lock) -> Sql:
        """To be selected."""
        name = f"{self.schema}.{self.prefix} {lock.of}".encode()
        key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)
        return Sql(f"pg_advisory_xact_lock{'_shared' if lock.shared else ''}(?)", (key,))

    def _transaction(self, wire: Wire, work: Work[Any], seconds: float) -> Transaction:
        # No plan depends on what the tables looked like when a statement was first planned: an index is used
        # from the first row on.
        settings = {"enable_seqscan": "off", "jit": "off"}
        if not work.write:
            begin, xid = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", Sql("NULL")
        else:
            begin, xid = "BEGIN ISOLATION LEVEL READ COMMITTED", Sql("pg_current_xact_id()::text")
            # If this machine vanishes, the server must not keep our locks until TCP notices.
            settings["idle_in_transaction_session_timeout"] = f"{self.busy_timeout:.3f}s"
            settings["lock_timeout"] = f"{seconds:.3f}s"
            if not work.durable:
                settings["synchronous_commit"] = "off"
        return Transaction(wire, begin, [xid, *(_set(name, value) for name, value in settings.items())])

    # --- running

    def running(self, work: Work[R]) -> Steps[R]:
        """Run a plan in a transaction, again from the top as long as that may help."""
        deadline = time.monotonic() + self.busy_timeout
        for pause in pauses():
            try:
                yield from self.preparing()
                return (yield from self._attempt(work, max(0.001, deadline - time.monotonic())))
            except _InDoubt as doubt:
                if (yield from self._took_place(doubt.transaction, deadline)):
                    result: R = doubt.result
                    return result
                if time.monotonic() > deadline:
                    raise busy(self.where, doubt.error) from doubt.error
            except _Again as again:
                if time.monotonic() > deadline:
                    raise again.final from again.__cause__
            yield Pause(pause)
        raise AssertionError

    def _attempt(self, work: Work[R], seconds: float) -> Steps[R]:
        wire = yield from self._borrow(seconds)
        try:
            return (yield from self._transact(wire, work, seconds))
        except psycopg.Error as error:
            self._raise_as_ours(error, wire)
        finally:
            yield from self._give_back(wire)

    def _transact(self, wire: Wire, work: Work[R], seconds: float) -> Steps[R]:
        transaction = self._transaction(wire, work, seconds)
        flushes = work.durable and self._may_flush

        def execute(statement: Statement) -> Steps[Any]:
            transaction.queue.append(statement)
            if isinstance(statement, Batch):
                return None
            return (yield from transaction.send())[-1]

        def execute_all(statements: list[Statement]) -> Steps[list[Any]]:
            transaction.queue += statements
            return (yield from transaction.send())[-len(statements) :]

        def answer(op: Op[Any]) -> Steps[Any]:
            if isinstance(op, ops.Together):
                return (yield from abreast([begun(question) for question in op.questions], execute_all))
            if isinstance(op, ops.Several):
                return (yield from in_turn(op.questions, answer))
            result = yield from relay(begun(op), execute)
            if isinstance(op, checkpoint_ops.SaveCheckpoint) and transaction.locking:
                # from here on the plan sees what other writers of the thread stored: see `landing`
                yield from transaction.send()
            return result

        def begun(op: Op[Any]) -> Statements[Any]:
            if work.write:
                for lock in asked_about(op):
                    held_shared = transaction.held.get(lock.of)
                    if held_shared is None or (held_shared and not lock.shared):
                        relaxed = [_set("synchronous_commit", "off")] if flushes and lock == LOG else []
                        transaction.select([*relaxed, self.lock(lock)])
                        transaction.held[lock.of] = lock.shared
                        transaction.locking = True
            if isinstance(op, ops.Append):
                transaction.tx = op.entries[0].tx
            return as_asking(ANSWERS[type(op)](op, _DIALECT))

        result = yield from relay(work.start(), answer)
        if not transaction.begun and transaction.tx is not None:
            yield from transaction.send()  # before COMMIT we must know whom to ask about afterwards
        flushes = flushes and LOG.of in transaction.held
        transaction.queue += [_bare("COMMIT"), *([FLUSH] if flushes else [])]
        try:
            yield from transaction.send()
        except psycopg.Error as error:
            if work.write and (is_lost(error, wire) or (flushes and wire.info.transaction_status == IDLE)):
                raise _InDoubt(transaction, result, error) from error
            raise  # before COMMIT: the transaction is there still, and in error
        return result

    def _took_place(self, transaction: Transaction, deadline: float) -> Steps[bool]:
        """Whether a transaction is in the log, once it has ended.

        Not what PostgreSQL says of its number: after a crash a number that never reached the disk is given out
        again, and somebody else's commit would be taken for ours. A transaction that did not append to the log
        says what is (a checkpoint, an intent, a deletion), so it may simply run again.
        """
        if transaction.tx is None:
            return False
        failure: BaseException | None = None
        for pause in pauses():
            try:
                if (yield from self._has_ended(transaction, deadline)):
                    tx = transaction.tx
                    found = yield from self._asking(deadline, Sql("SELECT 1 FROM log WHERE tx = ? LIMIT 1", (tx,)))
                    if found and self._may_flush:
                        yield from self._asking(deadline, FLUSH)
                    return bool(found)
            except (psycopg.Error, StorageError) as error:
                failure = error
            if time.monotonic() > deadline:
                raise OutcomeUnknown(
                    f"{self.where}: the connection was lost during COMMIT and the server did not say within "
                    f"{self.busy_timeout} s whether transaction {transaction.xid} took place; look before trying again"
                ) from failure
            yield Pause(pause)
        raise AssertionError

    def _has_ended(self, transaction: Transaction, deadline: float) -> Steps[bool]:
        try:
            status = yield from self._asking(deadline, Sql("SELECT pg_xact_status(?::xid8)", (transaction.xid,)))
        except psycopg.errors.InvalidParameterValue:
            return True  # a number of the future: another server took over, and it never heard of ours
        return bool(status != [("in progress",)])

    def _asking(self, deadline: float, question: Statement) -> Steps[list[Row]]:
        """The rows of one statement, on a connection that may turn out to be lost as well."""
        wire = yield from self._borrow(max(0.001, deadline - time.monotonic()))
        try:
            rows: list[Row] = (yield Exchange(wire, [question]))[0]
            return rows
        finally:
            yield from self._give_back(wire)

    # --- connections

    def _borrow(self, seconds: float, *, alone: bool = False) -> Steps[Wire]:
        if self.closed:
            raise StorageClosed(f"{self.where}: the storage was closed")
        try:
            wire: Wire = yield Borrow(seconds, alone)
        except PoolTimeout as error:
            yield from self._give_back((yield from self._borrow(seconds, alone=True)), alone=True)  # is there a server?
            raise StorageBusy(
                f"{self.where}: all connections of the pool were in use for {seconds:.3g} s; nothing was written, "
                "try again, or allow more connections"
            ) from error
        except PoolClosed as error:
            raise StorageClosed(f"{self.where}: the pool of connections was closed") from error
        except psycopg.Error as error:
            raise StorageError(f"{self.where}: cannot connect: {said(error)}") from error
        return wire

    def _give_back(self, wire: Wire, *, alone: bool = False) -> Steps[None]:
        try:
            if wire.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                yield Exchange(wire, [Sql("ROLLBACK")])
        except psycopg.Error:
            pass  # the connection is lost, and its transaction with it
        finally:
            yield GiveBack(wire, alone)

    def _raise_as_ours(self, error: psycopg.Error, wire: Wire) -> NoReturn:
        """The driver's errors are understood here and nowhere else."""
        state = error.sqlstate or ""
        if state == "25006":
            # After a failover our connections may lead to what is a standby now; a new one finds the primary.
            wire.pgconn.finish()
            raise _Again(StorageError(f"{self.where}: the server is read-only: {said(error)}")) from error
        if state == "26000":
            # What a failed pipeline was to prepare, the driver takes for prepared; a new connection knows nothing.
            wire.pgconn.finish()
            raise _Again(busy(self.where, error)) from error
        if is_lost(error, wire):
            raise _Again(
                StorageError(f"{self.where}: the connection was lost: {said(error)}; nothing was written")
            ) from error
        if state in ("40001", "40P01"):
            raise _Again(busy(self.where, error)) from error
        if state in ("55P03", "57014"):  # waited for a lock, or for the statement, as long as was allowed
            raise busy(self.where, error) from error
        if isinstance(error, psycopg.DataError) or state == "54000":
            raise ValidationFailed(f"{self.where}: PostgreSQL cannot store this: {said(error)}") from error
        raise StorageError(f"{self.where}: {said(error)}") from error

    # --- set-up and care

    def _patiently(self, attempt: Callable[[], Steps[R]]) -> Steps[R]:
        """Try what writes no facts, again as long as that may help."""
        deadline = time.monotonic() + self.busy_timeout
        for pause in pauses():
            try:
                return (yield from attempt())
            except _Again as again:
                if time.monotonic() > deadline:
                    raise again.final from again.__cause__
            yield Pause(pause)
        raise AssertionError

    def opening(self) -> Steps[None]:
        return (yield from self._patiently(self.preparing))

    def vacuuming(self, progress: Progress | None) -> Steps[int]:
        """VACUUM table by table. What a role may not vacuum the server skips, with a warning."""
        check_progress(progress)
        yield from self._patiently(self.preparing)
        freed, tables = 0, sorted(self._tables)
        for done, table in enumerate(tables, 1):
            name = f"{self.schema}.{self.prefix}{table}"
            freed += yield from self._patiently(lambda name=name: self._vacuum(name))  # type: ignore[misc]
            tell(progress, "giving space back", done, len(tables))
        return max(0, freed)

    def _vacuum(self, table: str) -> Steps[int]:
        wire = yield from self._borrow(self.busy_timeout, alone=True)  # its settings are not the pool's
        size = Sql("SELECT pg_total_relation_size(?::regclass)", (table,))
        try:
            yield Exchange(wire, [Sql("SELECT set_config('lock_timeout', ?, false)", (f"{self.busy_timeout:.3f}s",))])
            ((before,),) = (yield Exchange(wire, [size]))[0]
            yield Exchange(wire, [Sql(f"VACUUM {table}")])
            ((after,),) = (yield Exchange(wire, [size]))[0]
        except psycopg.Error as error:
            self._raise_as_ours(error, wire)
        finally:
            yield from self._give_back(wire, alone=True)
        return int(before - after)

    def preparing(self) -> Steps[None]:
        """Make the tables if they are not there. Any number of processes may do this at once."""
        if self._prepared:
            return
        wire = yield from self._borrow(self.busy_timeout, alone=True)
        try:
            found = yield from self._found_version(wire)
            if self.must_exist and found == 0:
                raise StorageError(f"{self.where}: there is no such storage")
            if found < SCHEMA_VERSION:
                yield from self._set_up(wire)
            self._may_flush = yield from self._can_flush(wire)
        except psycopg.errors.InsufficientPrivilege as error:
            raise StorageError(
                f"{self.where}: the tables are not there, or are an earlier release's, and this role may not make them "
                f"({said(error)}); open the storage once with a role that may"
            ) from error
        except psycopg.errors.DuplicateObject as error:
            raise self._taken(error) from error
        except psycopg.Error as error:
            self._raise_as_ours(error, wire)
        finally:
            yield from self._give_back(wire, alone=True)
        self._prepared = True

    def _can_flush(self, wire: Wire) -> Steps[bool]:
        """Tried, because a role may not be allowed to, and not everything that speaks like PostgreSQL can."""
        try:
            yield Exchange(wire, [FLUSH])
        except psycopg.Error as error:
            if is_lost(error, wire):
                raise
            return False
        return True

    def _taken(self, error: psycopg.Error) -> StorageError:
        return StorageError(
            f"{self.where}: has tables that memstate_langgraph did not make ({said(error)}); give it a schema or "
            "prefix of its own"
        )

    def _found_version(self, wire: Wire) -> Steps[int]:
        """Of the schema; 0 if the tables are not there."""
        # asked as a query and not with to_regclass, which may answer from a cache older than the lock we hold
        asked = Sql(
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = ? AND tablename = ?), "
            "current_setting('server_encoding')",
            (self.schema, f"{self.prefix}memstate"),
        )
        ((there, encoding),) = (yield Exchange(wire, [asked]))[0]
        if encoding != "UTF8":
            raise StorageError(f"{self.where}: the database's encoding is {encoding}; it must be UTF8")
        if not there:
            return 0
        ((version,),) = (yield Exchange(wire, [Sql("SELECT version FROM memstate")]))[0]
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"{self.where}: has schema version {version}, this release of memstate_langgraph reads "
                f"{SCHEMA_VERSION}; open it with the release that wrote it"
            )
        return int(version)

    def _set_up(self, wire: Wire) -> Steps[None]:
        yield Exchange(wire, [Sql("BEGIN ISOLATION LEVEL READ COMMITTED")])
        yield Exchange(wire, [_selected([self.lock(Lock("schema"))])])
        found = yield from self._found_version(wire)
        if not found:
            # asked first, because a role that may make tables in a schema need not be one that may make schemas
            rows = (yield Exchange(wire, [Sql("SELECT 1 FROM pg_namespace WHERE nspname = ?", (self.schema,))]))[0]
            if not rows:
                yield Exchange(wire, [Sql(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")])
        yield Exchange(wire, [Sql(f"SET LOCAL search_path = {self.schema}, pg_temp")])
        if not found:
            try:
                yield Exchange(wire, [self._made_of("postgres.sql")])
            except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateFunction) as error:
                raise self._taken(error) from error
            yield Exchange(wire, [Sql("INSERT INTO memstate (version) VALUES (?)", (SCHEMA_VERSION,))])
        elif found < SCHEMA_VERSION:  # else another process was here meanwhile
            for version in range(found + 1, SCHEMA_VERSION + 1):
                yield Exchange(wire, [self._made_of(f"postgres_{version}.sql")])
            yield Exchange(wire, [Sql("UPDATE memstate SET version = ?", (SCHEMA_VERSION,))])
        yield Exchange(wire, [Sql("COMMIT")])

    def _made_of(self, script: str) -> Sql:
        return Sql(_script(script).replace("{prefix}", self.prefix))


def _script(name: str) -> str:
    return resources.files(__package__).joinpath("schema", name).read_text("utf-8")


def is_lost(error: psycopg.Error, wire: Wire) -> bool:
    """Whether an error says that the connection is of no use any more; if so, it is closed."""
    state = error.sqlstate or ""
    ours = isinstance(error, psycopg.OperationalError) and not state  # the driver's own, such as a broken pipeline
    if wire.closed or ours or state in _LOST or state.startswith("08"):
        wire.pgconn.finish()
        return True
    return False


def said(error: BaseException) -> str:
    return " ".join(str(error).split())


def busy(where: str, error: psycopg.Error) -> StorageBusy:
    return StorageBusy(f"{where}: other writers were in the way ({said(error)}); nothing was written, try again")


def named(conninfo: str) -> str:
    """Which server and database, without the password."""
    try:
        parts = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise ValidationFailed(f"url: is not a PostgreSQL URL or connection string: {said(error)}") from None
    host, port, database = parts.get("host", "localhost"), parts.get("port", 5432), parts.get("dbname", "")
    return f"postgresql://{host}:{port}/{database}"
