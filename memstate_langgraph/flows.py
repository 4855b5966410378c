"""What happens between transactions: the commit protocol of facts and vectors, and collection.

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
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from memstate_langgraph.changes import By, Change, Discard, Promote, Rollback
from memstate_langgraph.differences import Preview
from memstate_langgraph.errors import HookError, LeaseLost, MemoryStoreError, ValidationFailed
from memstate_langgraph.facts import Entry, Vector, utcnow
from memstate_langgraph.graph import Task, running_task
from memstate_langgraph.ops import Plan, Work
from memstate_langgraph.past import Moment, position as past_position
from memstate_langgraph.plans import Draft
from memstate_langgraph.protocol import (
    ATTEMPTS,
    Rehearsed,
    Wanted,
    abandon,
    bury,
    commit,
    contended,
    decided,
    due,
    gist,
    go_live,
    intend,
    is_landed,
    joined,
    lacking,
    preview,
    preview_units,
    rehearse,
)
from memstate_langgraph.rules import Rules, check_flag
from memstate_langgraph.run import Call, Flow, acall, drive, refuse
from memstate_langgraph.staging import STAGES, Prepared, Stage, Unit, drafts_of
from memstate_langgraph.vectors import VectorStoreSyncHook
from memstate_langgraph.views import View, shown

logger = logging.getLogger("memstate_langgraph")

R = TypeVar("R")

COLLECT_EVERY = 5.0
"""Seconds between looks for vectors to remove, as a side task of writing."""

COLLECT_AT_ONCE = 500


class Unprepared(Exception):
    """Others changed what a stage rests on: its vectors or approvals are no longer those that are needed."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage


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
    immediate: bool = False
    changes: list[Change] = field(default_factory=list)
    open: bool = True


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
        raise HookError(f"vector store {hook.name!r}: {method} failed {_told(hook, error)}") from error


def _told(hook: VectorStoreSyncHook, error: Exception) -> str:
    return f"({type(error).__name__}: {error}){hook.adapter.advice(error)}"


class Core:
    """Rules, hooks and flows of a store; both doors run what these methods return."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.vectors: list[VectorStoreSyncHook] = []
        self.vetoes: list[Veto] = []
        self.identity: Hashable = None
        """Of the storage; known when the store is made."""
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

    def now(self) -> datetime:
        """The one clock of all that expires."""
        return utcnow()

    def seen(self, work: Work[R]) -> Work[R]:
        """A reading plan as somebody is to see what it reads: as types are now, without what has expired."""
        return View(self.rules, self.now())(work)

    def new_draft(self) -> Draft:
        return Draft(self.rules, self.now(), uuid.uuid4().hex)

    def change(self, change: Change, immediate: bool = False) -> Flow[list[str]]:
        """Make a change, in the transaction or the task that surrounds the caller if there is one."""
        return (yield from self.change_many([change], immediate))[0]

    def change_many(self, changes: Sequence[Change], immediate: bool = False) -> Flow[list[list[str]]]:
        """Make several changes as one transaction, or in the one that surrounds the caller."""
        check_flag(immediate, "immediate")
        transaction = self.ambient.get()
        if transaction is None:
            return (yield from self._make(changes, immediate)).results
        if immediate:
            raise ValidationFailed("immediate: inside a transaction, which is committed as one; pass it to that")
        results: list[list[str]] = []
        for change in changes:
            results += [(yield from self.join(transaction, change))]
        return results

    def _make(self, changes: Sequence[Change], immediate: bool, decided: Draft | None = None) -> Flow[Draft]:
        stage = None if immediate else (yield from self._stage())
        if stage is not None:
            return (yield from self._put_on_stage(stage, changes))
        draft, _ = yield from self.write(changes, decided=decided)
        return draft

    def join(self, transaction: Transaction, change: Change) -> Flow[list[str]]:
        if not transaction.open:
            raise ValidationFailed("transaction: its block has ended; make the change through the store")
        ours = transaction.by
        session_id = change.by.session_id or ours.session_id
        if ours.session_id is not None and session_id != ours.session_id:
            raise ValidationFailed(
                f"session_id: this transaction belongs to session {ours.session_id!r}, not {session_id!r}"
            )
        actor, reason = change.by.actor or ours.actor, change.by.reason or ours.reason
        if (session_id, actor, reason) != (change.by.session_id, change.by.actor, change.by.reason):
            change = replace(change, by=By(session_id, actor, reason, change.by.cause))
        # Decided now, so that errors are raised where they are made and ids are known; again at the end if others
        # commit meanwhile.
        draft = transaction.draft
        plan = partial(joined, change, draft, draft.mark())
        if draft.assumes(change):
            drive(plan(), refuse)
        else:
            yield Work(plan, write=False)
        transaction.changes.append(change)
        return draft.results[-1]

    def write(
        self,
        changes: Sequence[Change],
        besides: Callable[[], Plan[None]] | None = None,
        decided: Draft | None = None,
    ) -> Flow[tuple[Draft, list[Entry]]]:
        """Commit changes, which may be `decided` already, with their vectors."""
        prepared: dict[tuple[str, str], Prepared] = {}
        try:
            draft, entries = yield from self._written(changes, prepared, besides, decided)
        except Exception:
            yield from self._give_up(prepared)
            raise
        yield from self._tidy()
        return draft, entries

    def _written(
        self,
        changes: Sequence[Change],
        prepared: dict[tuple[str, str], Prepared],
        besides: Callable[[], Plan[None]] | None,
        draft: Draft | None,
    ) -> Flow[tuple[Draft, list[Entry]]]:
        approved: list[Any] | None = None
        # one time and one tx for all attempts
        new_draft = (draft or self.new_draft()).blank
        if self.vectors or self.vetoes:
            draft = draft or (yield preview(changes, new_draft))
            approved = yield from self._prepare([draft], prepared)
        for _ in range(ATTEMPTS):
            now = time.time()
            draft, entries = yield commit(
                changes, new_draft, draft, self.wanted, prepared, approved, now + self.grace, now, besides
            )
            if entries is not None:
                return draft, entries
            approved = yield from self._prepare([draft], prepared)
        raise contended()

    @property
    def grace(self) -> float:
        return max((hook.grace for hook in self.vectors), default=0.0)

    def wanted(self, final: Mapping[str, Entry]) -> Wanted:
        texts: Wanted = {}
        for fact_id, entry in final.items():
            if entry.after is not None:
                fact = self.rules.current(entry.after)  # a rollback may bring back an old one
                for hook in self.vectors:
                    text = hook.text_of(fact)
                    if text is not None:
                        texts[hook.name, fact_id] = text
        return texts

    def _prepare(self, drafts: Sequence[Draft], prepared: dict[tuple[str, str], Prepared]) -> Flow[list[Any] | None]:
        """Ask the vetoes, and put the vectors that are still missing where they can be made live.

        What the vetoes agreed to is that of the last draft.
        """
        for veto in self.vetoes:
            for draft in drafts:
                try:
                    yield Call(veto, "ask", ([shown(self.rules, entry) for entry in draft.entries],))
                except Exception as error:
                    raise HookError(f"a hook refused the change: {error}") from error
        texts = self.wanted({fact_id: entry for draft in drafts for fact_id, entry in draft.final().items()})
        for hook in self.vectors:
            missing = {
                key: text
                for key, text in texts.items()
                if key[0] == hook.name and (key not in prepared or prepared[key].text != text)
            }
            if not missing:
                continue
            fresh = {key: Prepared(str(uuid.uuid4()), text) for key, text in missing.items()}
            lease = time.time() + hook.lease
            yield intend(tuple(Vector(made.vector_id, hook.name, key[1], due=lease) for key, made in fresh.items()))
            try:
                yield Call(hook, "upsert", ([(made.vector_id, made.text) for made in fresh.values()],))
            except Exception as error:
                yield from self._give_up(fresh)
                raise HookError(
                    f"vector store {hook.name!r} failed, nothing was committed {_told(hook, error)}"
                ) from error
            stale = {key: prepared[key] for key in fresh if key in prepared}
            prepared.update(fresh)
            yield from self._give_up(stale)
        return gist(drafts[-1]) if self.vetoes else None

    def _give_up(self, prepared: Mapping[tuple[str, str], Prepared]) -> Flow[None]:
        """Mark prepared vectors for removal; if even that fails, their lease runs out by itself."""
        if not prepared:
            return
        try:
            yield abandon(tuple(made.vector_id for made in list(prepared.values())), time.time())
        except MemoryStoreError:
            logger.warning("could not give up %d prepared vectors; their lease will", len(prepared), exc_info=True)

    # --- transactions

    def begin(self, by: By, immediate: bool = False) -> Transaction:
        if self.ambient.get() is not None:
            raise ValidationFailed("transaction: already inside one of this store; make the changes in that")
        check_flag(immediate, "immediate")
        draft = self.new_draft()
        if not immediate:
            draft.over(drafts_of(self.visible()))
        return Transaction(by, draft.now, draft, immediate)

    def undo(self, change: Rollback, since: Moment | None, immediate: bool) -> Flow[list[str]]:
        """Undo what came after a moment."""
        return (yield from self.change((yield from self._after(change, since)), immediate))

    def would_undo(self, change: Rollback, since: Moment | None) -> Flow[Preview]:
        change = yield from self._after(change, since)
        units = [unit for stage in self.visible() for unit in stage.units]
        draft = yield from self._tried(units, [change], self.new_draft)
        return draft.preview()

    def _after(self, change: Rollback, since: Moment | None) -> Flow[Rollback]:
        return change if since is None else replace(change, after=(yield past_position(since, "since")))

    def rewind(self, rollback: Rollback, also: Callable[[], Plan[R]]) -> Flow[tuple[list[str], R]]:
        """Roll back and do something else in the same transaction."""
        results: list[R] = []

        def besides() -> Plan[None]:
            results[:] = [(yield from also())]

        draft, _ = yield from self.write([rollback], besides)
        return draft.results[0], results[0]

    def finish(self, transaction: Transaction) -> Flow[None]:
        if transaction.changes:
            draft = transaction.draft
            decided = None if draft.rests_on_others else draft
            yield from self._make(transaction.changes, transaction.immediate, decided)

    # --- what a running task wrote

    def _task(self) -> Task | None:
        """The task that the caller runs in, if its graph's checkpoints are in our storage."""
        task = running_task()
        return task if task is not None and getattr(task.checkpointer, "identity", None) == self.identity else None

    def _stage(self) -> Flow[Stage | None]:
        task = self._task()
        if task is None:
            return None
        stage, replaced = STAGES.open(self.identity, task, self)
        for old in replaced:  # of an earlier attempt, which failed
            yield from self.give_up(old)
        return stage

    def visible(self) -> list[Stage]:
        """What the running task may see of what is not committed yet: its own, and what it rests on."""
        task = self._task()
        return [] if task is None else self._visible_to(task)

    def _visible_to(self, task: Task) -> list[Stage]:
        return [stage for stage in STAGES.seen_by(self.identity, task) if stage.owner is self]

    def _put_on_stage(self, stage: Stage, changes: Sequence[Change]) -> Flow[Draft]:
        new_draft = self.new_draft().blank
        for _ in range(ATTEMPTS):
            known = len(stage.units)
            units = [unit for one in self._visible_to(stage.task) for unit in one.units]
            draft = yield from self._tried(units, changes, new_draft)
            approved = yield from self._prepare([draft], stage.prepared)
            if stage.add(Unit(changes, new_draft, draft, approved), known):
                if stage.over:  # since it was opened, or from the start
                    yield from self._give_up(stage.prepared)
                return draft
        raise contended()

    def _tried(self, units: Sequence[Unit], changes: Sequence[Change], new_draft: Callable[[], Draft]) -> Flow[Draft]:
        """What changes would do after the units of a running task."""
        if units and any(isinstance(change, Rollback | Promote | Discard) for change in changes):
            # what these do depends on all that is stored, so it is tried there
            try:
                yield rehearse(units, changes, new_draft)
            except Rehearsed as rehearsed:
                return rehearsed.draft
            raise AssertionError
        draft: Draft = yield preview(changes, lambda: new_draft().over(unit.draft for unit in units))
        return draft

    def land(self, stage: Stage) -> Plan[None]:
        """Commit what a task wrote, in the transaction of the plan that asks; raises `Unprepared`."""
        if stage.tried:  # its writes and the next checkpoint may both be on their way
            for unit in stage.units:
                if (yield from is_landed(unit)):
                    return
        stage.tried = True
        entries: list[Entry] = []
        for i, unit in enumerate(stage.units):
            if i == 0 and not unit.draft.rests_on_others and (yield from unit.draft.holds()):
                draft = unit.draft
            else:
                draft = yield from decided(unit.changes, unit.new_draft())
            if unit.approved is not None and unit.approved != gist(draft):
                raise Unprepared(stage)
            entries += yield from draft.append()
        texts = self.wanted({entry.fact_id: entry for entry in entries})
        if lacking(texts, stage.prepared):
            raise Unprepared(stage)
        now = time.time()
        try:
            yield from go_live(entries, texts, stage.prepared, now + self.grace, now)
        except LeaseLost:  # it is slow, but lives
            stage.prepared.clear()
            raise Unprepared(stage) from None

    def prepare_again(self, stage: Stage) -> Flow[None]:
        drafts: list[Draft] | None = yield preview_units(stage.units)
        if drafts is None:
            return  # with what else makes the result durable, meanwhile
        approved = [gist(draft) if self.vetoes else None for draft in drafts]
        yield from self._prepare(drafts, stage.prepared)
        stage.units = [
            replace(unit, draft=draft, approved=agreed)
            for unit, draft, agreed in zip(stage.units, drafts, approved, strict=True)
        ]

    def landed(self, stage: Stage) -> Flow[None]:
        STAGES.close(self.identity, stage)
        yield from self._tidy()

    def give_up(self, stage: Stage) -> Flow[None]:
        stage.over = True
        STAGES.close(self.identity, stage)
        yield from self._give_up(stage.prepared)

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
