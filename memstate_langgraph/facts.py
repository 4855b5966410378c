"""The values that everything else passes around: facts, log entries, queries, hits."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from memstate_langgraph.tables import change, table

Namespace = tuple[str, ...]
M = TypeVar("M", bound=BaseModel)


def utcnow() -> datetime:
    return datetime.now(UTC)


def unvalidated(kind: type[M], fields: dict[str, Any]) -> M:
    """A model of exactly these fields, all of them: they were validated before. A tenth of `model_construct`."""
    model = kind.__new__(kind)
    put = object.__setattr__
    put(model, "__dict__", fields)
    put(model, "__pydantic_fields_set__", _all_fields(kind))
    put(model, "__pydantic_extra__", None)
    put(model, "__pydantic_private__", None)
    return model


@cache
def _all_fields(kind: type[BaseModel]) -> set[str]:
    """One for all models of a kind: they are frozen, so nobody adds to it."""
    return set(kind.model_fields)


def altered(model: M, **fields: Any) -> M:
    """A copy with other values of some fields, which are not validated."""
    return unvalidated(type(model), {**model.__dict__, **fields})


class Operation(StrEnum):
    """What an entry of the log did."""

    COMMIT = "COMMIT"
    COMMIT_EPHEMERAL = "COMMIT_EPHEMERAL"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    PROMOTE = "PROMOTE"
    DISCARD_SESSION = "DISCARD_SESSION"
    ROLLBACK = "ROLLBACK"
    EXPIRE = "EXPIRE"
    UPCAST = "UPCAST"
    PURGE = "PURGE"


UPKEEP = frozenset({Operation.EXPIRE, Operation.UPCAST, Operation.PURGE})
"""What the store does by itself. Rollback neither counts nor meets it: it undoes what came before as if it were not."""


class Fact(BaseModel):
    """A typed record.

    `version` counts the changes of this id and never goes back, not even on rollback or after a deletion.
    `singleton` is set by the store: the value of the type's singleton key in canonical JSON, or None.
    Ephemeral facts live until `discard_session`, or become ordinary ones with `promote`.
    `ttl` is how many seconds a fact lives after `ts`, its last change; None is for good. `schema_version` is set by
    the store: the version of the type's schema that the payload follows.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(default_factory=lambda: str(uuid.uuid4()))
    type: str
    payload: dict[str, Any]
    source: str | None = None
    session_id: str | None = None
    ts: datetime = Field(default_factory=utcnow)
    namespace: Namespace = ()
    version: int = 0
    ephemeral: bool = False
    singleton: str | None = None
    schema_version: int = 1
    ttl: float | None = None

    def ends(self, read: float | None = None) -> datetime | None:
        """When its time to live is over; `read` is when it was last read (seconds since the epoch), if that counts."""
        if self.ttl is None:
            return None
        last = self.ts if read is None else max(self.ts, datetime.fromtimestamp(read, self.ts.tzinfo))
        return last + timedelta(seconds=self.ttl)

    def has_expired(self, now: datetime, read: float | None = None) -> bool:
        """Whether its time to live has passed; `read` is when an item was last read, in seconds since the epoch."""
        end = self.ends(read)
        return end is not None and end <= now

    def _repr_html_(self) -> str:
        about = {"id": self.id, "namespace": "/".join(self.namespace), "session": self.session_id, **self.payload}
        rows = [(name, value) for name, value in about.items() if value not in (None, "")]
        return table(("", f"version {self.version}"), rows, self.type)


class Cause(BaseModel):
    """What in a graph made a change: filled from the running LangGraph task, empty outside a graph."""

    model_config = ConfigDict(frozen=True)

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    task_id: str | None = None
    tool_call_id: str | None = None
    run_id: str | None = None
    node: str | None = None


NO_CAUSE = Cause()


class Entry(BaseModel):
    """One change in the log.

    `seq` is given by the storage, rises in commit order and is never used again. Entries of one
    transaction share `tx`. `undoes` is the seq of the entry that this one takes back.
    `base` is the seq of the entry in force that the fact stood on before this change; for an entry that
    undoes, the one it stands on afterwards. Rollback follows it, so that undone changes never count.
    Of a `purged` entry only who, when and which fact is left.
    """

    model_config = ConfigDict(frozen=True)

    seq: int = 0
    tx: str
    op: Operation
    fact_id: str
    version: int
    before: Fact | None = None
    after: Fact | None = None
    session_id: str | None = None
    actor: str | None = None
    reason: str | None = None
    ts: datetime
    idempotency_key: str | None = None
    undoes: int | None = None
    base: int | None = None
    cause: Cause = NO_CAUSE
    purged: bool = False

    @property
    def counts(self) -> bool:
        """Whether it changed what rollback undoes: it takes nothing back itself, nor is it the store's own upkeep."""
        return self.undoes is None and self.op not in UPKEEP

    @property
    def head(self) -> int | None:
        """The seq of the entry in force after this one."""
        return self.seq if self.counts else self.base

    @property
    def type(self) -> str | None:
        """Of the fact."""
        fact = self.after or self.before
        return None if fact is None else fact.type

    COLUMNS: ClassVar[tuple[str, ...]] = ("seq", "change", "type", "payload", "session", "by")

    def cells(self) -> tuple[object, ...]:
        """What a table shows of an entry, under `COLUMNS`."""
        op = self.op.value if self.undoes is None else f"{self.op.value} of {self.undoes}"
        what = "purged" if self.purged else change(_payload(self.before), _payload(self.after))
        by = " ".join(part for part in (self.actor, self.reason) if part)
        return self.seq, op, self.type, what, self.session_id, by

    def _repr_html_(self) -> str:
        return table(self.COLUMNS, [self.cells()])


def _payload(fact: Fact | None) -> dict[str, Any] | None:
    return None if fact is None else fact.payload


class ScoredFact(NamedTuple):
    """A fact found by meaning; `score` is the store's relevance, higher is closer, 1.0 the best."""

    fact: Fact
    score: float

    def _repr_html_(self) -> str:
        return f"{self.fact._repr_html_()}<p>score {self.score:.3f}</p>"


@dataclass(frozen=True, slots=True)
class Query:
    """Which facts to read. None means any; results come in the order of their last change, oldest first.

    `prefix` is what namespaces begin with; `where` is asked last, about facts that fit all else; `newest` turns
    the order round. `ended` asks for facts whose time to live, counted from their last change, had passed then.
    """

    type: str | None = None
    namespace: Namespace | None = None
    session_id: str | None = None
    ephemeral: bool | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    prefix: Namespace | None = None
    where: Callable[[Fact], bool] | None = None
    newest: bool = False
    ended: datetime | None = None


class Standing(NamedTuple):
    """Where an id stands: its live fact or None, its last version, and its entry in force."""

    fact: Fact | None
    version: int
    head: int | None


NOWHERE = Standing(None, 0, None)


@dataclass(frozen=True, slots=True)
class Vector:
    """One id that a vector store was asked to hold, from its intent until the last of it is removed.

    States: `intended` (being written, invisible, ours until `due`), `live` (a fact points to it),
    `retired` (invisible to new readers, to be deleted after `due`), `tombstone` (deleted once, to be
    deleted again after `due`, because a timed-out write may still arrive). `born` and `died` are the seqs
    of the entries between which search may show it. `late` marks an id whose write was never acknowledged.
    """

    id: str
    index: str
    fact_id: str
    state: str = "intended"
    due: float | None = None
    born: int | None = None
    died: int | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """A finding of `verify()`: what is wrong, how often, and an example."""

    problem: str
    count: int
    example: str
