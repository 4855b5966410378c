"""Redis: what a transaction is, when it runs again, what an error means. Once, for both doors.

A plan runs without holding anything. What it asks is answered by a script that reads all of one question at one
instant, together with the stamps of what the plan relies on: the log, threads, pools of chunks. A stamp that differs
from what it was before means that the plan would see two states of the store, so it begins again. What the plan
writes stays in the process (`redis_view`) until one script checks the stamps once more and writes everything. That
makes plans serializable, `seq` rise in commit order, and nothing of a plan that fails or dies reaches the server.
MULTI/EXEC with WATCH would do the same but for two things: an EXEC that was sent and not answered could still arrive
after it was asked about, and a server that is out of memory would refuse deletions as well.

Who was overtaken takes a turn: a key that expires, while which nobody else's commit of that scope goes through. So
many writers take turns instead of spoiling each other's work, and a long reading ends under any load. Turns are for
fairness only: that nothing is lost rests on the stamps, so it does not matter if one expires early.

What is here does no I/O: generators say what to exchange with the server, and the doors in `redis` do it.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, NoReturn, TypeVar, cast

from redis import exceptions

from memstate_langgraph import checkpoint_ops, ops
from memstate_langgraph.backends.redis_checkpoints import CHECKPOINT_ANSWERS
from memstate_langgraph.backends.redis_facts import FACT_ANSWERS, SEQ, VERSION, Answer
from memstate_langgraph.backends.redis_scopes import CHANGES_ANYWAY, changed_by, scopes_of
from memstate_langgraph.backends.redis_view import Command, View, packed
from memstate_langgraph.backends.scopes import LOG
from memstate_langgraph.errors import (
    MemoryStoreError,
    OutcomeUnknown,
    StorageBusy,
    StorageClosed,
    StorageError,
    ValidationFailed,
)
from memstate_langgraph.ops import Op, Work
from memstate_langgraph.run import Progress, check_progress, in_turn, pauses, relay

R = TypeVar("R")
Wire = Any
"""A connection of redis-py, sync or async."""

LAYOUT_VERSION = 1
MARKER_KEPT = 3_600_000
"""Milliseconds after which no commit that was sent can still arrive."""
TURN = 2_000
"""Milliseconds that a turn lasts after its holder was last heard of."""
WAIT = "0.1"
"""Seconds after which who waits for a turn looks again, in case that its holder died."""
READS_BEFORE_TURN = 5
"""So often a reading plan that was overtaken begins again before it holds writers up."""
FEW = 16
"""So many stamps are watched with every question; beyond that, once more at the end."""

ANSWERS: dict[type[Op[Any]], Answer] = {**FACT_ANSWERS, **CHECKPOINT_ANSWERS}


# --- what a door is asked to do


@dataclass(frozen=True, slots=True)
class Borrow:
    """A connection from the pool."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    wire: Wire
    broken: bool = False
    """What the server says next on it need not be the answer to what we ask next."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send commands in one go; what each answered, an error as the exception."""

    wire: Wire
    commands: Sequence[Command]


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Step = Borrow | GiveBack | Exchange | Pause
Steps = Generator[Step, Any, R]


# --- errors


class _Again(Exception):
    """Nothing was written and it may go better next time; `final` is what to say when there is no next time."""

    def __init__(self, final: StorageError) -> None:
        self.final = final


class _Overtaken(Exception):
    """Somebody else changed these scopes meanwhile, or has their turn."""

    def __init__(self, scopes: set[str]) -> None:
        self.scopes = scopes


class _InDoubt(Exception):
    """The connection was lost after the commit was sent."""

    def __init__(self, transaction: Transaction, result: Any) -> None:
        self.transaction, self.result = transaction, result


LOST = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
_CODE = re.compile(
    r"\b(LOADING|READONLY|MASTERDOWN|NOREPLICAS|BUSY|TRYAGAIN|CLUSTERDOWN|OOM|MISCONF|MOVED|ASK|CROSSSLOT|NOAUTH|NOPERM)\b"
)
_PASSING = {"LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "BUSY", "TRYAGAIN", "CLUSTERDOWN"}


def code_of(error: exceptions.RedisError) -> str:
    """The word that an error of the server begins with, also one that stopped a script."""
    found = _CODE.search(said(error))
    return found[1] if found else ""


@dataclass
class Transaction:
    """One attempt at a plan."""

    wire: Wire
    view: View
    marker: str
    writes: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    seen: dict[str, bytes] = field(default_factory=dict)
    """The stamps of the scopes that the plan relies on, as they were when it first did."""
    changed: set[str] = field(default_factory=set)
    turns: set[str] = field(default_factory=set)
    """Scopes whose turn is ours."""
    exchanges: int = 0
    covered: set[str] = field(default_factory=set)
    """Scopes whose stamps the last exchange looked at."""


class _Script:
    def __init__(self, name: str) -> None:
        self.text = resources.files(__package__).joinpath(f"lua/{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 -- Redis's name for a script

    def call(self, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


class RedisEngine:
    """The rules for using the keys under one prefix; both doors share it."""

    def __init__(self, where: str, prefix: str, busy_timeout: float, must_exist: bool) -> None:
        if not (isinstance(cast("object", prefix), str) and re.fullmatch(r"[^{}\x00]{1,100}", prefix)):
            raise ValidationFailed(f"prefix: must be 1 to 100 characters without braces, not {prefix!r}")
        if busy_timeout <= 0:
            raise ValidationFailed(f"busy_timeout: must be more than 0 seconds, not {busy_timeout!r}")
        self.where = f"{where}, prefix {prefix!r}"
        self.base = f"{{{prefix}}}:"
        self.busy_timeout, self.must_exist = busy_timeout, must_exist
        self.closed = False
        self._ask, self._commit, self._settle = _Script("ask"), _Script("commit"), _Script("settle")
        self._ready = False
        self._warnings: list[str] = []
        self._markers: list[str] = []

    # --- running

    def running(self, work: Work[R]) -> Steps[R]:
        """Run a plan in a transaction, again from the top as long as that may help."""
        deadline = time.monotonic() + self.busy_timeout
        wanted: set[str] = set()
        overtaken = 0
        for pause in pauses():
            try:
                yield from self.opening()
                return (yield from self._attempt(work, wanted))
            except _InDoubt as doubt:
                if (yield from self._took_place(doubt.transaction, deadline)):
                    result: R = doubt.result
                    return result
            except _Overtaken as other:
                overtaken += 1
                if work.write or overtaken > READS_BEFORE_TURN:
                    wanted |= other.scopes
                if time.monotonic() > deadline:
                    raise StorageBusy(
                        f"{self.where}: other writers were in the way for {self.busy_timeout} s; nothing was written, "
                        "try again"
                    ) from None
                continue
            except _Again as again:
                if time.monotonic() > deadline:
                    raise again.final from again.__cause__
            yield Pause(pause)
        raise AssertionError

    def _attempt(self, work: Work[R], wanted: set[str]) -> Steps[R]:
        wire = yield from self._borrow()
        marker = self._marker()
        # after a fork, the child's markers are others than its parent's
        transaction = Transaction(wire, View(self.base), f"{marker}:{os.getpid()}", work.write)
        broken = True
        try:
            yield from self._take_turns(transaction, wanted)
            try:
                result = yield from self._transact(transaction, work)
            except BaseException:
                yield from self._give_up_turns(transaction)
                raise
            broken = False
            return result
        except _InDoubt:
            marker = ""  # it may still arrive, and must find what `settle` leaves
            raise
        except LOST as error:
            self._lost(error)
        except (_Overtaken, MemoryStoreError):
            broken = False
            raise
        finally:
            if marker:
                self._markers.append(marker)
            yield GiveBack(wire, broken)

    def _transact(self, transaction: Transaction, work: Work[R]) -> Steps[R]:
        view = transaction.view

        def answer(op: Op[Any]) -> Steps[Any]:
            if isinstance(op, ops.Several):
                return (yield from in_turn(op.questions, answer))
            scopes = set() if isinstance(op, CHANGES_ANYWAY) else scopes_of(op)
            if not scopes <= transaction.seen.keys():
                view.reread()
            transaction.changed |= changed_by(op)
            if isinstance(op, checkpoint_ops.SaveCheckpoint) and not scopes <= transaction.seen.keys():
                # from here on the plan sees what other writers of the thread stored, or begins again: see `landing`
                yield from self._asking(transaction, scopes, [])
            return (
                yield from relay(
                    ANSWERS[type(op)](op, view), lambda commands: self._asking(transaction, scopes, commands)
                )
            )

        result = yield from relay(work.start(), answer)
        if work.write:
            commands = list(view.commands())
            if commands:
                try:
                    yield from self._commit_with(transaction, self._told(transaction, commands))
                except LOST as error:
                    raise _InDoubt(transaction, result) from error
                return result
        if transaction.turns or (transaction.exchanges > 1 and transaction.seen.keys() - transaction.covered):
            yield from self._commit_with(transaction, [])
        return result

    def _asking(self, transaction: Transaction, scopes: set[str], commands: list[Command]) -> Steps[list[Any]]:
        """Have commands answered together with the stamps of what the plan relies on."""
        view = transaction.view
        view_scopes, view.relied = view.relied, set()
        scopes |= view_scopes
        fresh = scopes - transaction.seen.keys()
        watched = sorted(scopes | transaction.seen.keys() if len(transaction.seen) <= FEW else scopes)
        turns = sorted(fresh - transaction.turns)
        keys = [self._key("stamp", scope) for scope in watched] + [self._key("turn", scope) for scope in turns]
        first = transaction.exchanges == 0 or LOG.of in fresh
        also: list[Command] = [("HGET", self._key("meta"), SEQ)] if first else []
        call = self._ask.call(keys, [packed([*commands, *also])])
        answers: list[Any]
        (held, *answers) = yield from self._scripted(transaction, self._ask, call)
        transaction.exchanges += 1
        transaction.covered = set(watched)
        stamps = dict(zip(watched, (stamp or b"" for stamp in held), strict=False))
        moved = {scope for scope, stamp in stamps.items() if transaction.seen.setdefault(scope, stamp) != stamp}
        taken = {scope for scope, turn in zip(turns, held[len(watched) :], strict=True) if turn is not None}
        if moved:
            raise _Overtaken(moved)
        if taken and transaction.writes:
            raise _Overtaken(taken)
        if first:
            seq = answers.pop()
            view.position = int(seq or 0)
            if LOG.of in fresh:
                view.remember(self._key("meta"), SEQ, seq)
        return answers

    def _told(self, transaction: Transaction, commands: list[Command]) -> list[Command]:
        """The commands of a commit, with those that say that it took place.

        A script that starts when the server is out of memory is refused at its first command if that may need memory,
        and only there. So what could be refused comes first, but where nothing is added, removals do.
        """
        told: list[Command] = [("SET", transaction.marker, transaction.id, "PX", MARKER_KEPT)]
        told += [("SET", self._key("stamp", scope), transaction.id) for scope in sorted(transaction.changed)]
        removing = all(command[0] in ("DEL", "HDEL", "ZREM") for command in commands)
        return [*commands, *told] if removing else [*told, *commands]

    def _commit_with(self, transaction: Transaction, commands: list[Command]) -> Steps[None]:
        checked = sorted(transaction.seen)
        turns = sorted(transaction.changed | transaction.turns)
        keys = [self._key("stamp", scope) for scope in checked] + [self._key("turn", scope) for scope in turns]
        call = self._commit.call(
            [transaction.marker, *keys],
            [transaction.id, len(checked), *(transaction.seen[scope] for scope in checked), packed(commands)],
        )
        answer = yield from self._scripted(transaction, self._commit, call)
        if answer[0] == b"done":
            transaction.turns.clear()
            return
        which = checked if answer[0] == b"moved" else turns
        raise _Overtaken({which[answer[1] - 1]})

    def _scripted(self, transaction: Transaction, script: _Script, call: Command) -> Steps[Any]:
        """What a script answers; a server that does not know it is told."""
        renew: list[Command] = [("PEXPIRE", self._key("turn", scope), TURN) for scope in sorted(transaction.turns)]
        *_, answer = yield Exchange(transaction.wire, [*renew, call])
        if isinstance(answer, exceptions.NoScriptError):
            yield Exchange(transaction.wire, [("SCRIPT", "LOAD", script.text)])
            (answer,) = yield Exchange(transaction.wire, [call])
        if isinstance(answer, exceptions.RedisError):
            self._raise_as_ours(answer)
        return answer

    # --- turns

    def _take_turns(self, transaction: Transaction, wanted: set[str]) -> Steps[None]:
        if not wanted:
            return
        scopes = sorted(wanted)
        answers = yield Exchange(
            transaction.wire,
            [("SET", self._key("turn", scope), transaction.id, "NX", "PX", TURN) for scope in scopes],
        )
        for answer in answers:
            if isinstance(answer, exceptions.RedisError):
                self._raise_as_ours(answer)
        transaction.turns = {scope for scope, answer in zip(scopes, answers, strict=True) if answer is not None}
        if transaction.turns != wanted:
            missing = wanted - transaction.turns
            yield from self._give_up_turns(transaction)
            batons = [self._key("baton", scope) for scope in sorted(missing)]
            yield Exchange(transaction.wire, [("BLPOP", *batons, WAIT)])  # the server serves who waits longest
            raise _Overtaken(missing)

    def _give_up_turns(self, transaction: Transaction) -> Steps[None]:
        """Let the others go on at once; if that fails, the turns expire."""
        if transaction.turns:
            keys = [self._key("turn", scope) for scope in sorted(transaction.turns)]
            call = self._commit.call([transaction.marker, *keys], [transaction.id, 0, packed([])])
            with suppress(*LOST):
                yield Exchange(transaction.wire, [call])
            transaction.turns.clear()

    # --- outcomes

    def _took_place(self, transaction: Transaction, deadline: float) -> Steps[bool]:
        """Whether a commit took place; if not, it never will: the script that asks leaves word for it."""
        failure: BaseException | None = None
        for pause in pauses():
            try:
                wire = yield from self._borrow()
                asking = replace(transaction, wire=wire, turns=set())
                broken = True
                try:
                    call = self._settle.call([transaction.marker], [transaction.id, MARKER_KEPT])
                    answer = yield from self._scripted(asking, self._settle, call)
                    broken = False
                    return bool(answer)
                finally:
                    yield GiveBack(wire, broken)
            except (*LOST, _Again, StorageError) as error:
                failure = error
            if time.monotonic() > deadline:
                raise OutcomeUnknown(
                    f"{self.where}: the connection was lost during a commit and the server did not say within "
                    f"{self.busy_timeout} s whether transaction {transaction.id} took place; look before trying again"
                ) from failure
            yield Pause(pause)
        raise AssertionError

    # --- connections and errors

    def _marker(self) -> str:
        try:
            return self._markers.pop()
        except IndexError:
            return self._key("marker", uuid.uuid4().hex)

    def _key(self, name: str, *parts: str) -> str:
        return self.base + ":".join((name, *parts))

    def _borrow(self) -> Steps[Wire]:
        if self.closed:
            raise StorageClosed(f"{self.where}: the storage was closed")
        try:
            wire: Wire = yield Borrow()
        except exceptions.MaxConnectionsError as error:
            raise self._exhausted() from error
        except LOST as error:
            if "No connection available" in str(error):
                raise self._exhausted() from error
            self._lost(error, "cannot connect")
        return wire

    def _exhausted(self) -> StorageBusy:
        return StorageBusy(
            f"{self.where}: all connections of the pool were in use; nothing was written, try again, or allow more "
            "connections"
        )

    def _lost(self, error: BaseException, what: str = "the connection was lost") -> NoReturn:
        if isinstance(error, _REFUSED):
            raise StorageError(f"{self.where}: {said(error)}") from error
        raise _Again(StorageError(f"{self.where}: {what}: {said(error)}; nothing was written")) from error

    def _raise_as_ours(self, error: exceptions.RedisError) -> NoReturn:
        """The server's errors are understood here and nowhere else. All of them mean that nothing was written."""
        code = code_of(error)
        if isinstance(error, LOST):
            self._lost(error)
        if code == "READONLY":
            raise _Again(StorageError(f"{self.where}: the server is a read-only replica: {said(error)}")) from error
        if code in _PASSING:
            raise _Again(StorageError(f"{self.where}: {said(error)}; nothing was written")) from error
        if code == "OOM":
            raise StorageError(
                f"{self.where}: the server is out of memory ({said(error)}); nothing was written. Raise its maxmemory "
                "or delete threads; deleting still works"
            ) from error
        if code in ("MOVED", "ASK", "CROSSSLOT"):
            raise StorageError(
                f"{self.where}: is a node of a cluster, and the keys of this store are on another one "
                f"({said(error)}); open the storage with the URL of that node"
            ) from error
        raise StorageError(f"{self.where}: {said(error)}") from error

    # --- set-up and care

    def opening(self) -> Steps[None]:
        """Say what the keys are, if nobody did yet. Any number of processes may do this at once."""
        if self._ready:
            return
        wire = yield from self._borrow()
        broken = True
        try:
            meta = self._key("meta")
            make: list[Command] = [] if self.must_exist else [("HSETNX", meta, VERSION, LAYOUT_VERSION)]
            answers = yield Exchange(
                wire,
                [
                    *make,
                    ("HGET", meta, VERSION),
                    ("INFO", "persistence"),
                    ("CONFIG", "GET", "appendfsync"),
                    ("INFO", "memory"),
                ],
            )
            broken = False
            *_, version, persistence, fsync, memory = answers
            if isinstance(answers[0], exceptions.RedisError) and code_of(answers[0]) not in ("READONLY", "OOM"):
                self._raise_as_ours(answers[0])
            if isinstance(version, exceptions.RedisError):
                self._raise_as_ours(version)
        except LOST as error:
            self._lost(error)
        finally:
            yield GiveBack(wire, broken)
        if version is None:
            if self.must_exist:
                raise StorageError(f"{self.where}: there is no such storage")
            self._raise_as_ours(answers[0])
        if int(version) != LAYOUT_VERSION:
            raise StorageError(
                f"{self.where}: has layout version {int(version)}, this release of memstate_langgraph reads "
                f"{LAYOUT_VERSION}; open it with the release that wrote it"
            )
        self._warnings = [*_durability(persistence, fsync), *_eviction(memory)]
        self._ready = True

    def at_first(self) -> Steps[None]:
        """The opening of a new storage: a server that is not there is said at once."""
        try:
            yield from self.opening()
        except _Again as again:
            raise again.final from again.__cause__

    def vacuum(self, progress: Progress | None) -> int:
        """Redis gives space back by itself."""
        check_progress(progress)
        return 0

    def warnings(self) -> list[str]:
        """What `verify()` says of this server: what an acknowledged commit survives."""
        return list(self._warnings)


def _durability(info: Any, fsync: Any) -> list[str]:
    if isinstance(info, exceptions.RedisError):
        return [
            "Redis: the server does not say whether it keeps an append-only file, so what survives its end is unknown"
        ]
    if b"aof_enabled:1" not in info:
        return [
            "Redis: appendonly is off, so what was committed since the last snapshot (RDB), if there are any, is lost "
            "when the server ends; it is never torn"
        ]
    if isinstance(fsync, exceptions.RedisError):
        setting = "not told by this server"
    else:
        setting = (fsync[b"appendfsync"] if isinstance(fsync, dict) else fsync[1]).decode()
    if setting == "always":
        return []
    return [
        f"Redis: appendonly is on with appendfsync {setting}: commits survive the end of the server process, and those "
        "of the last second or more are lost when the machine loses power; appendfsync always keeps them"
    ]


def _eviction(info: Any) -> list[str]:
    found = None if isinstance(info, exceptions.RedisError) else re.search(rb"maxmemory_policy:(\S+)", info)
    if found is None or found[1] == b"noeviction" or re.search(rb"maxmemory:0\s", info):
        return []
    return [
        f"Redis: maxmemory-policy {found[1].decode()} lets the server throw away what was stored when its memory is "
        "full; set it to noeviction"
    ]


def said(error: BaseException) -> str:
    code = getattr(error, "status_code", None)  # which redis-py takes off
    return " ".join([*([code] if code else []), *str(error).split()])
