"""What happens between transactions: the commit protocol of facts and vectors, search, collection.

A vector store has no transactions, so vectors are prepared under fresh ids that nobody looks at, and one
short transaction makes fact, log entry and vector visible together:

1. decide what the change is, in a read snapshot;
2. write the fresh ids down as intents with a lease;
3. upsert the vectors, in no transaction at all;
4. decide again under the write lock; if the same texts are wanted, append to the log and make the vectors
   live, else prepare what is missing and try again. Whoever lost its lease commits nothing.

A replaced vector stays for a grace time, so that a search which began before still finds what was true then.
"""

from __future__ import annotations

import inspect
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from memstate_langgraph.errors import ConflictError, HookError, LeaseLost, MemoryStoreError, ValidationFailed
from memstate_langgraph.facts import Entry, Fact, Query, ScoredFact, Vector, utcnow
from memstate_langgraph.ops import (
    Abandon,
    Activate,
    Buried,
    Due,
    Find,
    Hydrate,
    Intend,
    LastSeq,
    Load,
    Plan,
    ReadLog,
    Retire,
    notes,
    reads,
    writes,
)
from memstate_langgraph.plans import By, Change, Draft
from memstate_langgraph.rules import (
    CHECKPOINT_TYPE,
    WRITE_TYPE,
    Rules,
    check_characters,
    check_count,
    check_filters,
    check_namespace,
    check_text,
    fits,
)
from memstate_langgraph.run import Call, Flow, acall
from memstate_langgraph.vectors import Text, VectorStoreSyncHook

logger = logging.getLogger("memstate_langgraph")

ATTEMPTS = 20
"""How often a change is decided anew because others changed the same facts meanwhile."""

COLLECT_EVERY = 5.0
"""Seconds between looks for vectors to remove, as a side task of writing."""

COLLECT_AT_ONCE = 500

Wanted = dict[tuple[str, str], Text]
"""The text of each touched fact, by hook name and fact id."""


@dataclass(frozen=True, slots=True)
class Prepared:
    vector_id: str
    text: Text


class Veto:
    """A callable hook `hook(operation, fact_id, fact)`: raising refuses the transaction."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def ask(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            answer = self.hook(entry.op, entry.fact_id, entry.after or entry.before)
            if inspect.isawaitable(answer):
                if inspect.iscoroutine(answer):
                    answer.close()
                raise TypeError("this hook has to be awaited: use it with AsyncMemoryStore")

    async def aask(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            await acall(self.hook, entry.op, entry.fact_id, entry.after or entry.before)


@dataclass
class Transaction:
    """Changes that will be committed as one."""

    by: By
    now: datetime
    draft: Draft
    changes: list[Change] = field(default_factory=list)
    open: bool = True

    def overlay(self) -> dict[str, Fact | None]:
        """In the order of their last change. Copies: what a reader does to them must not reach the commit."""
        facts = {fact_id: self.draft.fact(fact_id) for fact_id in self.draft.touched()}
        return {fact_id: fact and fact.model_copy(deep=True) for fact_id, fact in facts.items()}


# --- plans


@reads
def preview(changes: Sequence[Change], new_draft: Callable[[], Draft]) -> Plan[Draft]:
    return (yield from decided(changes, new_draft()))


def decided(changes: Sequence[Change], draft: Draft) -> Plan[Draft]:
    draft.at = yield from LastSeq()
    yield from draft.prefetch(changes)
    for change in changes:
        yield from draft.decide(change)
    return draft


@notes
def intend(vectors: tuple[Vector, ...]) -> Plan[None]:
    yield from Intend(vectors)


@writes
def commit(
    changes: Sequence[Change],
    new_draft: Callable[[], Draft],
    previewed: Draft | None,
    wanted: Callable[[Draft], Wanted],
    prepared: Mapping[tuple[str, str], Prepared],
    approved: list[Any] | None,
    retire_at: float,
    now: float,
) -> Plan[tuple[Draft, list[Entry] | None]]:
    """Commit if everything wanted is prepared and approved; otherwise None, and nothing was written."""
    if previewed is not None and (yield from LastSeq()) == previewed.at:
        draft = previewed  # whatever a decision rests on changes only with the log
    else:
        draft = yield from decided(changes, new_draft())
    texts = wanted(draft)
    unprepared = any(key not in prepared or prepared[key].text != text for key, text in texts.items())
    if unprepared or (approved is not None and approved != gist(draft)):
        return draft, None
    entries = yield from draft.append()
    seqs = {entry.fact_id: entry.seq for entry in entries}
    born = tuple((prepared[key].vector_id, seqs[key[1]]) for key in texts)
    if born and (yield from Activate(born)) != len(born):
        raise LeaseLost("the vectors took longer to prepare than their lease; nothing was committed, try again")
    if seqs:
        yield from Retire(tuple(seqs.items()), retire_at)
    spare = tuple(made.vector_id for key, made in prepared.items() if key not in texts)
    if spare:
        yield from Abandon(spare, now)
    return draft, entries


@notes
def abandon(ids: tuple[str, ...] | None, now: float) -> Plan[None]:
    yield from Abandon(ids, now)


@reads
def due(indexes: tuple[str, ...], now: float, limit: int) -> Plan[list[Vector]]:
    return (yield from Due(indexes, now, limit))


@notes
def bury(ids: tuple[str, ...], now: float, until: float) -> Plan[None]:
    yield from Buried(ids, now, until)


@reads
def position() -> Plan[int]:
    return (yield from LastSeq())


@reads
def hydrate(vectors: tuple[str, ...], at: int) -> Plan[dict[str, Fact]]:
    return (yield from Hydrate(vectors, at))


@reads
def find(query: Query) -> Plan[list[Fact]]:
    return (yield from Find(query))


@reads
def load(fact_id: str) -> Plan[Fact | None]:
    standing = yield from Load((fact_id,))
    return standing[fact_id].fact if fact_id in standing else None


@reads
def read_log(question: ReadLog) -> Plan[list[Entry]]:
    return (yield from question)


def gist(draft: Draft) -> list[Any]:
    """What a veto hook was shown: equal gists need no second asking."""
    return [(entry.op, entry.fact_id, entry.version, entry.after) for entry in draft.entries]


# --- flows


def ask(hook: VectorStoreSyncHook, method: str, *args: Any, deadline: float | None = None) -> Flow[Any]:
    """Call a vector store; what it raises, and a `deadline` (monotonic) that passes, is a `HookError`."""
    left = None if deadline is None else deadline - time.monotonic()
    try:
        if left is not None and left <= 0:
            raise TimeoutError
        return (yield Call(hook, method, args, left))
    except Exception as error:
        if isinstance(error, TimeoutError) and deadline is not None and time.monotonic() >= deadline:
            raise HookError(
                f"vector store {hook.name!r}: {method} took longer than its timeout of {hook.timeout} s"
            ) from error
        raise HookError(f"vector store {hook.name!r}: {method} failed ({type(error).__name__}: {error})") from error


class Core:
    """Rules, hooks and flows of a store; both doors run what these methods return."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.vectors: list[VectorStoreSyncHook] = []
        self.vetoes: list[Veto] = []
        self.ambient: ContextVar[Transaction | None] = ContextVar("memstate_transaction", default=None)
        self._collected = 0.0

    def add_hook(self, hook: object, door: str) -> None:
        if isinstance(hook, VectorStoreSyncHook):
            if door not in hook.doors:
                raise ValidationFailed(
                    f"hook {hook.name!r} has only the {'/'.join(sorted(hook.doors))} door: "
                    "use it with AsyncMemoryStore, or take VectorStoreSyncHook"
                )
            if any(other.name == hook.name for other in self.vectors):
                raise ValidationFailed(f"hook: the name {hook.name!r} is taken; pass name= to tell the two apart")
            self.vectors.append(hook)
        elif callable(hook):
            self.vetoes.append(Veto(hook))
        else:
            raise ValidationFailed(f"hook: must be a vector store hook or a callable, not {hook!r}")

    # --- writing

    def new_draft(self) -> Draft:
        return Draft(self.rules, utcnow(), uuid.uuid4().hex)

    def change(self, change: Change) -> Flow[list[str]]:
        """Make a change, in the transaction that surrounds the caller if there is one."""
        transaction = self.ambient.get()
        if transaction is None:
            draft, _ = yield from self.write([change])
            return draft.results[0]
        return (yield from self.join(transaction, change))

    def change_many(self, changes: Sequence[Change]) -> Flow[list[list[str]]]:
        """Make several changes as one transaction, or in the one that surrounds the caller."""
        transaction = self.ambient.get()
        if transaction is None:
            draft, _ = yield from self.write(changes)
            return draft.results
        results: list[list[str]] = []
        for change in changes:
            results += [(yield from self.join(transaction, change))]
        return results

    def join(self, transaction: Transaction, change: Change) -> Flow[list[str]]:
        if not transaction.open:
            raise ValidationFailed("transaction: its block has ended; make the change through the store")
        ours = transaction.by
        session_id = change.by.session_id or ours.session_id
        if ours.session_id is not None and session_id != ours.session_id:
            raise ValidationFailed(
                f"session_id: this transaction belongs to session {ours.session_id!r}, not {session_id!r}"
            )
        by = replace(
            change.by,
            session_id=session_id,
            actor=change.by.actor or ours.actor,
            reason=change.by.reason or ours.reason,
        )
        change = replace(change, by=by)
        # Decided now, so that errors are raised where they are made and ids are known; again at the end.
        trial: Draft = yield preview([change], transaction.draft.copy)
        transaction.draft = trial
        transaction.changes.append(change)
        return trial.results[-1]

    def write(self, changes: Sequence[Change]) -> Flow[tuple[Draft, list[Entry]]]:
        prepared: dict[tuple[str, str], Prepared] = {}
        approved: list[Any] | None = None
        new_draft = self.new_draft().copy  # one time and one tx for all attempts
        draft: Draft | None = None
        if self.vectors or self.vetoes:
            draft = yield preview(changes, new_draft)
            approved = yield from self._prepare(draft, prepared)
        for _ in range(ATTEMPTS):
            now = time.time()
            grace = max((hook.grace for hook in self.vectors), default=0.0)
            try:
                draft, entries = yield commit(
                    changes, new_draft, draft, self.wanted, prepared, approved, now + grace, now
                )
            except Exception:
                yield from self._give_up(prepared)
                raise
            if entries is not None:
                yield from self._tidy()
                return draft, entries
            approved = yield from self._prepare(draft, prepared)
        yield from self._give_up(prepared)
        raise ConflictError(f"others changed the same facts {ATTEMPTS} times meanwhile; nothing was written, try again")

    def wanted(self, draft: Draft) -> Wanted:
        texts: Wanted = {}
        for fact_id, entry in draft.final().items():
            if entry.after is not None:
                for hook in self.vectors:
                    text = hook.text_of(entry.after)
                    if text is not None:
                        texts[hook.name, fact_id] = text
        return texts

    def _prepare(self, draft: Draft, prepared: dict[tuple[str, str], Prepared]) -> Flow[list[Any] | None]:
        """Ask the vetoes, and put the vectors that are still missing where they can be made live."""
        for veto in self.vetoes:
            try:
                yield Call(veto, "ask", (draft.entries,))
            except Exception as error:
                yield from self._give_up(prepared)
                raise HookError(f"a hook refused the change: {error}") from error
        texts = self.wanted(draft)
        for hook in self.vectors:
            missing = {
                key: text
                for key, text in texts.items()
                if key[0] == hook.name and (key not in prepared or prepared[key].text != text)
            }
            if not missing:
                continue
            stale = tuple(prepared.pop(key).vector_id for key in missing if key in prepared)
            if stale:
                yield abandon(stale, time.time())
            fresh = {key: Prepared(str(uuid.uuid4()), text) for key, text in missing.items()}
            lease = time.time() + hook.lease
            yield intend(tuple(Vector(made.vector_id, hook.name, key[1], due=lease) for key, made in fresh.items()))
            prepared.update(fresh)
            try:
                yield Call(hook, "upsert", ([(made.vector_id, made.text) for made in fresh.values()],))
            except Exception as error:
                yield from self._give_up(prepared)
                raise HookError(
                    f"vector store {hook.name!r} failed ({type(error).__name__}: {error}); nothing was committed"
                ) from error
        return gist(draft) if self.vetoes else None

    def _give_up(self, prepared: Mapping[tuple[str, str], Prepared]) -> Flow[None]:
        """Mark prepared vectors for removal; if even that fails, their lease runs out by itself."""
        if not prepared:
            return
        try:
            yield abandon(tuple(made.vector_id for made in prepared.values()), time.time())
        except MemoryStoreError:
            logger.warning("could not give up %d prepared vectors; their lease will", len(prepared), exc_info=True)

    # --- transactions

    def begin(self, by: By) -> Transaction:
        if self.ambient.get() is not None:
            raise ValidationFailed("transaction: already inside one of this store; make the changes in that")
        draft = self.new_draft()
        return Transaction(by, draft.now, draft)

    def finish(self, transaction: Transaction) -> Flow[None]:
        if transaction.changes:
            yield from self.write(transaction.changes)

    # --- removing vectors

    def _tidy(self) -> Flow[None]:
        """Remove a few vectors that are due, now and then, as a side task whose failure is nobody's error."""
        if not self.vectors or time.monotonic() - self._collected < COLLECT_EVERY:
            return
        self._collected = time.monotonic()
        try:
            yield from self.collect(COLLECT_AT_ONCE)
        except Exception:
            logger.warning("could not remove old vectors; will try again", exc_info=True)

    def collect(self, limit: int | None = None) -> Flow[int]:
        """Reap expired intents and remove what is due from the vector stores; how many were removed."""
        now = time.time()
        names = tuple(hook.name for hook in self.vectors)
        yield abandon(None, now)
        removed = 0
        while limit is None or removed < limit:
            rows: list[Vector] = yield due(names, now, COLLECT_AT_ONCE)
            if not rows:
                break
            for hook in self.vectors:
                ids = tuple(row.id for row in rows if row.index == hook.name)
                if ids:
                    yield from ask(hook, "delete", ids)
                    yield bury(ids, now, now + hook.late)
            removed += len(rows)
        return removed

    # --- reading

    def get(self, fact_id: str) -> Flow[Fact | None]:
        check_text(fact_id, "fact_id")
        transaction = self.ambient.get()
        if transaction is not None and fact_id in (overlay := transaction.overlay()):
            return overlay[fact_id]
        fact: Fact | None = yield load(fact_id)
        return fact

    def query(self, query: Query) -> Flow[list[Fact]]:
        query = checked(query)
        if query.type in (CHECKPOINT_TYPE, WRITE_TYPE):
            from memstate_langgraph.checkpoints import as_facts  # loads LangGraph, which facts alone do not need

            rendered: list[Fact] = yield as_facts(query)
            return rendered
        transaction = self.ambient.get()
        if transaction is None:
            stored: list[Fact] = yield find(query)
            return stored
        overlay = transaction.overlay()
        stored = yield find(replace(query, limit=None))
        facts = [fact for fact in stored if fact.id not in overlay]
        changed = [fact for fact in overlay.values() if fact is not None and answers(fact, query)]
        facts = [*reversed(changed), *facts] if query.newest else facts + changed
        return facts[: query.limit]

    def search(
        self, query: str, limit: int | None, score_threshold: float | None, scope: Query
    ) -> Flow[list[ScoredFact]]:
        if not self.vectors:
            raise MemoryStoreError("search: this store has no vector hook; add a VectorStoreSyncHook")
        if not isinstance(cast("object", query), str) or not query.strip():
            raise ValidationFailed(f"search: the query must be some text, not {query!r}")
        check_characters(query, "search: the query")
        if limit is not None:
            check_count(limit, "limit")
        if score_threshold is not None and not isinstance(cast("object", score_threshold), int | float):
            raise ValidationFailed(f"score_threshold: must be a number, not {score_threshold!r}")
        scope = checked(scope)
        best: dict[str, ScoredFact] = {}
        for hook in self.vectors:
            if scope.type is not None and not hook.embeds(scope.type):
                continue
            for found in (yield from self._search(hook, query, limit, score_threshold, scope)):
                known = best.get(found.fact.id)
                if known is None or found.score > known.score:
                    best[found.fact.id] = found
        ranked = sorted(best.values(), key=lambda found: -found.score)
        return ranked[:limit]

    def _search(
        self, hook: VectorStoreSyncHook, query: str, limit: int | None, threshold: float | None, scope: Query
    ) -> Flow[list[ScoredFact]]:
        if limit == 0:
            return []
        deadline = None if hook.timeout is None else time.monotonic() + hook.timeout
        for _ in range(3):
            began = time.monotonic()
            # The snapshot comes first: a vector that is replaced while we search is still ours to show.
            at: int = yield position()
            k = 1000 if limit is None else limit + 5
            while True:
                hits = yield from ask(hook, "search", query, k, scope.type, scope.namespace, deadline=deadline)
                facts: dict[str, Fact] = yield hydrate(tuple(vector_id for vector_id, _ in hits), at)
                by_fact: dict[str, ScoredFact] = {}  # while a collection is rebuilt, a fact may be hit twice
                for vector_id, score in hits:
                    if (
                        (fact := facts.get(vector_id)) is not None
                        and (threshold is None or score >= threshold)
                        and answers(fact, scope)
                    ):
                        by_fact.setdefault(fact.id, ScoredFact(fact, score))
                found = list(by_fact.values())
                below = threshold is not None and bool(hits) and hits[-1][1] < threshold
                if len(hits) < k or below or (limit is not None and len(found) >= limit):
                    break
                k *= 4
            if hook.grace <= 0 or time.monotonic() - began < hook.grace:
                return found[:limit]
        raise HookError(f"vector store {hook.name!r}: a search took longer than the grace time of {hook.grace} s")

    def log(self, question: ReadLog) -> Flow[list[Entry]]:
        if question.limit is not None:
            check_count(question.limit, "limit")
        for name in ("session_id", "fact_id"):
            if (text := getattr(question, name)) is not None:
                check_text(text, name)
        entries: list[Entry] = yield read_log(question)
        return entries


def checked(query: Query) -> Query:
    for name, text in (("typename", query.type), ("session_id", query.session_id)):
        if text is not None:
            check_text(text, name)
    if query.limit is not None:
        check_count(query.limit, "limit")
    if query.namespace is not None:
        check_namespace(query.namespace)
    if query.prefix is not None:
        check_namespace(query.prefix)
    return replace(query, filters=check_filters(query.filters))


def answers(fact: Fact, query: Query) -> bool:
    """Whether a fact is one that the query asks for; what `Find` decides in storage."""
    return (
        (query.type is None or fact.type == query.type)
        and (query.namespace is None or fact.namespace == query.namespace)
        and (query.session_id is None or fact.session_id == query.session_id)
        and (query.ephemeral is None or fact.ephemeral == query.ephemeral)
        and fits(fact, query)
    )
