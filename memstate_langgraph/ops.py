"""The questions that a storage can answer.

A plan yields them; a backend answers each inside the plan's transaction. This is all that a backend knows
of the product: no op decides anything. Times are seconds since the epoch, given by the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, dataclass_transform

from memstate_langgraph.facts import Entry, Fact, Namespace, Query, Standing, Vector

R = TypeVar("R")
C = TypeVar("C")
P = ParamSpec("P")


@dataclass_transform(frozen_default=True)
def unchanging(of: type[C]) -> type[C]:
    """A dataclass whose fields nobody changes. The type checker sees to that: a frozen one, which checks it as it runs,
    takes three times as long to make, and several are made for each step of a graph.
    """
    return dataclass(slots=True, unsafe_hash=True)(of)


class Op(Generic[R]):
    """A question whose answer has the type R: `answer = yield from Load(("id",))`."""

    __slots__ = ()

    def __iter__(self) -> Generator[Op[Any], Any, R]:
        answer: R = yield self
        return answer


Plan = Generator[Op[Any], Any, R]


class Likely(Op[R]):
    """An op whose answer is nearly always `likely`: a storage may take that for granted, and must notice by the end of
    the transaction if it is not so; then the plan begins again, and is answered.
    """

    __slots__ = ()
    likely: ClassVar[Any]


class Several(Op[R]):
    """An op that is its `questions`: a storage may answer those, or all of it at once if it can."""

    __slots__ = ()
    questions: tuple[Op[Any], ...]


@unchanging
class Together(Several[tuple[Any, ...]]):
    """Questions of which none waits for another's answer: a server can be asked all of them in one go.

    `final` ones are likely all that their plan asks. A storage may then answer without a transaction, if all answers
    are of one moment, and begin the plan again in one if more is asked.
    """

    questions: tuple[Op[Any], ...]
    final: bool = False


@unchanging
class Work(Generic[R]):
    """A plan that has not begun. A storage runs it in one transaction, and again from the top on contention.

    `write=False` reads one snapshot. `durable=False` may lose the transaction (never tear it) if the
    machine, not the process, dies.
    """

    start: Callable[[], Plan[R]]
    write: bool
    durable: bool = True


def writes(plan: Callable[P, Plan[R]]) -> Callable[P, Work[R]]:
    @wraps(plan)
    def work(*args: P.args, **kwargs: P.kwargs) -> Work[R]:
        return Work(lambda: plan(*args, **kwargs), write=True)

    return work


def notes(plan: Callable[P, Plan[R]]) -> Callable[P, Work[R]]:
    """Like `writes`, for bookkeeping that may be lost with the machine, such as intents."""

    @wraps(plan)
    def work(*args: P.args, **kwargs: P.kwargs) -> Work[R]:
        return Work(lambda: plan(*args, **kwargs), write=True, durable=False)

    return work


def reads(plan: Callable[P, Plan[R]]) -> Callable[P, Work[R]]:
    @wraps(plan)
    def work(*args: P.args, **kwargs: P.kwargs) -> Work[R]:
        return Work(lambda: plan(*args, **kwargs), write=False)

    return work


# --- facts and log


@unchanging
class Load(Op[dict[str, Standing]]):
    """Where these ids stand; ids never seen are missing from the answer."""

    ids: tuple[str, ...]


Single = tuple[str, Namespace, str]
"""Type, namespace and canonical key value of a singleton."""


@unchanging
class Holders(Op[dict[Single, str]]):
    """The ids of the live facts that hold these singleton keys."""

    keys: tuple[Single, ...]


@unchanging
class Find(Op[list[Fact]]):
    query: Query


@unchanging
class Append(Op[None]):
    """Append entries to the log and make the facts what the entries say they are now.

    The only way to change a fact, so that replaying the log gives the facts. `step` makes the transaction
    one that rollback counts; `undone` are transactions that it no longer counts.
    """

    entries: tuple[Entry, ...]
    step: bool = True
    undone: tuple[str, ...] = ()


@unchanging
class ReadLog(Op[list[Entry]]):
    """Entries newest first; None means any, `after < seq <= until`."""

    session_id: str | None = None
    fact_id: str | None = None
    tx: str | None = None
    seqs: tuple[int, ...] | None = None
    idempotency_key: str | None = None
    after: int | None = None
    until: int | None = None
    limit: int | None = None


@unchanging
class Steps(Op[list[str]]):
    """The last transactions in force, newest first: of a session, with a cause, after a position of the log.

    `causes` are fields of `Cause` and their values; `ran_on` is the least checkpoint id that their tasks ran on.
    """

    session_id: str | None
    limit: int | None
    causes: tuple[tuple[str, str], ...] = ()
    after: int | None = None
    ran_on: str | None = None


@unchanging
class LastSeq(Op[int]):
    """The position of the log: the seq of its newest entry, 0 while it is empty."""


@unchanging
class PositionAt(Op[int]):
    """The position that the log had at a time."""

    ts: datetime


@unchanging
class FactsAt(Op[list[Fact]]):
    """The live facts at a position of the log, in the order of their last change then; of one id, or all."""

    at: int
    fact_id: str | None = None


@unchanging
class Purge(Op[int]):
    """Empty what the log says of these facts, and let their retired vectors be due `now`.

    Of every entry but those of the operation PURGE, one of which each fact has by now, what was `after`, the reason
    and the idempotency key are erased, and it is marked `purged`. Nothing else ever changes an entry. Answers how many
    were erased.
    """

    fact_ids: tuple[str, ...]
    now: float


@unchanging
class Counts:
    """How much a storage holds: facts by type, vectors by collection and state."""

    facts: dict[str, int]
    entries: int
    steps: int
    vectors: dict[tuple[str, str], int]


@unchanging
class Count(Op[Counts]):
    """Reads through everything: for people who look, not for plans that decide."""


# --- vectors


@unchanging
class Intend(Op[None]):
    """Write down vector ids before the vector store hears of them."""

    vectors: tuple[Vector, ...]


@unchanging
class Activate(Op[int]):
    """Make intended vectors live, `born` at these seqs. Answers how many were still intended."""

    born: tuple[tuple[str, int], ...]


@unchanging
class Retire(Op[None]):
    """Retire the live vectors of these facts, `died` at these seqs, but those born there; `due` for deletion.

    In all indexes, or in one.
    """

    died: tuple[tuple[str, int], ...]
    due: float
    index: str | None = None


@unchanging
class Abandon(Op[None]):
    """Give intended vectors up, for deletion now and once more later: by id, or all whose lease ended."""

    ids: tuple[str, ...] | None
    now: float


@unchanging
class Due(Op[list[Vector]]):
    """Retired vectors and tombstones of these indexes whose time has come."""

    indexes: tuple[str, ...]
    now: float
    limit: int


@unchanging
class Buried(Op[None]):
    """The vector store deleted these: forget them, but keep the `late` ones as tombstones until then.

    Tombstones that are not yet due `now` stay: somebody else made them of the same vectors meanwhile.
    """

    ids: tuple[str, ...]
    now: float
    until: float


@unchanging
class Hydrate(Op[dict[str, Fact]]):
    """The facts that these vectors stood for at a position of the log; others are missing."""

    vectors: tuple[str, ...]
    at: int


@unchanging
class ReadVectors(Op[list[Vector]]):
    """Vector ids of an index after one, in order of id."""

    index: str
    after: str = ""
    limit: int = 1000


@unchanging
class Expunge(Op[None]):
    """Forget vector ids that no vector store holds any more, in whatever state."""

    ids: tuple[str, ...]
