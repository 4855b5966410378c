"""The rules of change, as plans: what a commit, update, deletion, promotion or rollback does to which facts.

Plans ask storage and decide; they do no I/O and take time and ids as arguments. One transaction may hold
many changes, each seeing those before it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from memstate_langgraph.changes import (
    EXPIRY,
    By,
    Change,
    Discard,
    Drop,
    Expire,
    Patch,
    Promote,
    Purge,
    Put,
    Rewrite,
    Rollback,
)
from memstate_langgraph.differences import Preview, differences
from memstate_langgraph.errors import ConflictError, FactNotFound, ValidationFailed
from memstate_langgraph.facts import (
    NOWHERE,
    Entry,
    Fact,
    Operation,
    Query,
    Standing,
    altered,
    unvalidated,
)
from memstate_langgraph.ops import Append, Find, Holders, LastSeq, Load, Op, Plan, ReadLog, Single, Steps, Together
from memstate_langgraph.rules import Rules, canonical
from memstate_langgraph.views import expired

_SINGLETONS = uuid.UUID("5d1d3f0e-3b54-4e0c-9a53-6f0f0a9a4c11")


class Mark(NamedTuple):
    """How far a draft was, to go back to."""

    entries: int
    results: int
    undone: int
    known: int
    sessions: frozenset[str | None]


@dataclass
class Draft:
    """A transaction in the making: the changes decided so far, over what is stored.

    `at` is the position of the log from which on it must not move for the decisions to hold, `assumed` are the ids
    that must be new to storage.
    """

    rules: Rules
    now: datetime
    tx: str
    at: int | None = None
    entries: list[Entry] = field(default_factory=list)
    results: list[list[str]] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    rests_on_others: bool = False
    assumed: list[str] = field(default_factory=list)
    _standing: dict[str, Standing] = field(default_factory=dict)
    _holders: dict[Single, str | None] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)
    _sessions: set[str | None] = field(default_factory=set)
    _known: list[tuple[dict[Any, Any], Any, Any]] | None = None
    """What was learnt or decided about which id or key since the first mark, and what was known before, if anything."""

    @property
    def step(self) -> bool:
        """Whether rollback counts this transaction."""
        return any(entry.counts for entry in self.entries)

    def final(self) -> dict[str, Entry]:
        """The last entry of each fact."""
        return {entry.fact_id: entry for entry in self.entries}

    def fact(self, fact_id: str) -> Fact | None:
        return self._standing.get(fact_id, NOWHERE).fact

    def touched(self) -> list[str]:
        """The ids of the facts that were changed, in the order of their last change."""
        newest_first = dict.fromkeys(entry.fact_id for entry in reversed(self.entries))
        return list(reversed(newest_first))

    def mark(self) -> Mark:
        if self._known is None:
            self._known = []
        return Mark(len(self.entries), len(self.results), len(self.undone), len(self._known), frozenset(self._sessions))

    def back_to(self, mark: Mark) -> None:
        del self.entries[mark.entries :], self.results[mark.results :], self.undone[mark.undone :]
        self._sessions = set(mark.sessions)
        while self._known is not None and len(self._known) > mark.known:
            known, key, before = self._known.pop()
            if before is None:
                del known[key]
            else:
                known[key] = before[0]

    def _know(self, known: dict[Any, Any], key: Any, value: Any) -> None:
        if self._known is not None:
            self._known.append((known, key, (known[key],) if key in known else None))
        known[key] = value

    def blank(self) -> Draft:
        """The same transaction with nothing decided."""
        return Draft(self.rules, self.now, self.tx)

    def over(self, others: Iterable[Draft]) -> Draft:
        """The draft itself, seeing what others decided and did not commit yet."""
        for other in others:
            self.rests_on_others = True
            for entry in other.entries:
                self._standing[entry.fact_id] = other._standing[entry.fact_id]
                for fact in (entry.before, entry.after):
                    if fact is not None and (key := single(fact)) is not None:
                        self._holders[key] = other._holders.get(key)
            self._keys.update(other._keys)
        return self

    # --- taking for granted

    def assumes(self, change: Change) -> bool:
        """Whether a change puts a fact under an id that was made for it: as new as nearly all such are.

        Deciding it then asks storage nothing; `holds` asks in the end, for all of them at once.
        """
        return (
            isinstance(change, Put)
            and self.at is not None
            and not change.id_given
            and change.idempotency_key is None
            and single(change.fact) is None
            and change.fact.id not in self._standing
        )

    def assume(self, change: Change) -> bool:
        """Take it for granted if that may be; whether it is."""
        if not (isinstance(change, Put) and self.assumes(change)):
            return False
        # stays among them after an error: to ask for one too many does no harm
        self.assumed.append(change.fact.id)
        self._know(self._standing, change.fact.id, NOWHERE)
        return True

    def holds(self) -> Plan[bool]:
        """Whether the decisions are those that would be made now."""
        asked: list[Op[Any]] = [LastSeq()]
        if self.assumed:
            asked.append(Load(tuple(self.assumed)))
        at, *known = yield from Together(tuple(asked))
        return at == self.at and not any(known)  # whatever else a decision rests on changes only with the log

    # --- reading through what is decided already

    def _stand(self, ids: Iterable[str], keys: Iterable[Single] = ()) -> Plan[None]:
        """Learn in one go what is not known yet: how ids stand, who holds keys, the position of the log."""
        unknown_ids = tuple(dict.fromkeys(i for i in ids if i not in self._standing))
        unknown_keys = tuple(dict.fromkeys(k for k in keys if k not in self._holders))
        if not unknown_ids and not unknown_keys and self.at is not None:
            return
        load, holders = Load(unknown_ids), Holders(unknown_keys)
        needed: dict[Op[Any], bool] = {LastSeq(): self.at is None, holders: bool(holders.keys), load: bool(load.ids)}
        asked = [question for question, is_needed in needed.items() if is_needed]
        answers = dict(zip(map(type, asked), (yield from Together(tuple(asked))), strict=True))
        self.at = answers.get(LastSeq, self.at)
        for key in holders.keys:
            self._know(self._holders, key, answers[Holders].get(key))
        for fact_id in load.ids:
            self._know(self._standing, fact_id, answers[Load].get(fact_id, NOWHERE))
        found = answers.get(Load, {}).values()
        gone = yield from expired((standing.fact for standing in found if standing.fact), self.now)
        for fact_id in sorted(gone):
            yield from self._expire(fact_id)

    def _expire(self, fact_id: str) -> Plan[None]:
        """Whoever comes upon a fact whose time has passed deletes it first, so nobody decides on it."""
        fact = self.fact(fact_id)
        yield from self._record(Operation.EXPIRE, fact_id, None, EXPIRY, None if fact is None else fact.session_id)

    def _hold(self, keys: Iterable[Single]) -> Plan[None]:
        keys = list(keys)
        if not keys:
            return
        yield from self._stand((), keys)
        yield from self._stand(holder for key in keys if (holder := self._holders[key]) is not None)  # may be expired

    def prefetch(self, changes: Sequence[Change]) -> Plan[None]:
        """Ask for many changes at once what they would ask for one by one."""
        puts = [change.fact for change in changes if isinstance(change, Put)]
        keys = [key for fact in puts if (key := single(fact)) is not None]
        ids = [fact.id for fact in puts]
        ids += [singleton_id(key) for key in keys]
        ids += [change.fact_id for change in changes if isinstance(change, Patch | Drop)]
        yield from self._stand(ids, keys)
        yield from self._hold(keys)

    # --- deciding

    def decide(self, change: Change) -> Plan[list[str]]:
        """Add a change; answers with the ids of the facts it touches."""
        if self.undone:
            raise ValidationFailed("rollback: stands alone in a transaction; make other changes in another one")
        key = getattr(change, "idempotency_key", None)
        if key is not None:
            done = yield from self._done(key)
            if done is not None:
                self.results.append([done])
                return [done]
        match change:
            case Put():
                ids = yield from self._put(change)
            case Patch():
                ids = yield from self._patch(change)
            case Drop():
                ids = yield from self._drop(change)
            case Promote():
                ids = yield from self._promote(change)
            case Discard():
                ids = yield from self._discard(change)
            case Rollback():
                ids = yield from self._rollback(change)
            case Expire():
                yield from self._stand(change.ids)  # deletes those that have expired
                ids = [fact_id for fact_id in change.ids if fact_id in {entry.fact_id for entry in self.entries}]
            case Rewrite():
                ids = yield from self._rewrite(change)
            case Purge():
                ids = yield from self._purge(change)
        if key is not None and ids:
            self._know(self._keys, key, ids[0])
        if len(self._sessions) > 1:
            named = " and ".join(sorted(repr(session) for session in self._sessions))
            raise ValidationFailed(
                f"session_id: a transaction belongs to one session, not to {named}; pass it to transaction()"
            )
        self.results.append(ids)
        return ids

    def _done(self, key: str) -> Plan[str | None]:
        if key in self._keys:
            return self._keys[key]
        earlier = yield from ReadLog(idempotency_key=key, limit=1)
        return earlier[0].fact_id if earlier else None

    def _put(self, change: Put) -> Plan[list[str]]:
        fact = change.fact
        fact_id = yield from self._id_for(change)
        yield from self._stand([fact_id])
        standing = self._standing[fact_id]
        before = standing.fact
        expect(change.expected_version, fact_id, before)
        session_id = change.by.session_id or fact.session_id
        ephemeral = fact.ephemeral
        if before is not None:
            if before.type != fact.type or before.namespace != fact.namespace:
                raise ConflictError(
                    f"fact {fact_id}: is of type {before.type!r} in namespace {before.namespace!r}, so it cannot "
                    f"become {fact.type!r} in {fact.namespace!r}"
                )
            if self.rules.constraint(fact.type).immutable and self.rules.current(before).payload == fact.payload:
                return [fact_id]  # saying the same again changes nothing
            self.rules.refuse_change(before)
            session_id = session_id or before.session_id
            ephemeral = ephemeral and before.ephemeral
            kept = {name: before.payload[name] for name in change.keeps if name in before.payload}
            fact = altered(fact, payload={**fact.payload, **kept})
            op = Operation.UPDATE
        else:
            op = Operation.COMMIT_EPHEMERAL if ephemeral else Operation.COMMIT
        after = fact
        if (fact.id, fact.session_id, fact.ephemeral) != (fact_id, session_id, ephemeral):
            after = altered(fact, id=fact_id, session_id=session_id, ephemeral=ephemeral)
        yield from self._record(op, fact_id, after, change.by, session_id, change.idempotency_key)
        return [fact_id]

    def _id_for(self, change: Put) -> Plan[str]:
        fact = change.fact
        key = single(fact)
        if key is None:
            return fact.id
        yield from self._hold([key])
        holder = self._holders[key]
        if holder is not None:
            return holder
        if change.id_given:
            return fact.id
        # The id of a singleton follows from its key, so that two who create it at once mean the same fact
        # and the vector prepared for it stays right whoever wins.
        fact_id = singleton_id(key)
        yield from self._stand([fact_id])
        return fact_id if self._standing[fact_id].fact is None else fact.id

    def _patch(self, change: Patch) -> Plan[list[str]]:
        before = yield from self._live(change.fact_id)
        expect(change.expected_version, change.fact_id, before)
        self.rules.refuse_change(before)
        changed = altered(
            before,
            payload={**self.rules.current(before).payload, **change.payload},
            source=change.source if change.source is not None else before.source,
            ts=self.now,
        )
        after = self.rules.admit(changed)
        session_id = change.by.session_id or before.session_id
        yield from self._record(Operation.UPDATE, before.id, after, change.by, session_id, change.idempotency_key)
        return [before.id]

    def _drop(self, change: Drop) -> Plan[list[str]]:
        if change.missing_ok:
            yield from self._stand([change.fact_id])
            if self.fact(change.fact_id) is None:
                return []
        before = yield from self._live(change.fact_id)
        expect(change.expected_version, change.fact_id, before)
        self.rules.refuse_change(before)
        session_id = change.by.session_id or before.session_id
        yield from self._record(Operation.DELETE, before.id, None, change.by, session_id, change.idempotency_key)
        return [before.id]

    def _promote(self, change: Promote) -> Plan[list[str]]:
        facts = yield from self._ephemeral(change.session_id)
        if change.ids is not None:
            chosen = {fact.id: fact for fact in facts}
            strangers = [fact_id for fact_id in change.ids if fact_id not in chosen]
            if strangers:
                raise FactNotFound(
                    f"session {change.session_id!r} has no ephemeral fact {', '.join(strangers)} to promote"
                )
            facts = [chosen[fact_id] for fact_id in change.ids]
        for fact in facts:
            after = altered(fact, ephemeral=False)
            yield from self._record(Operation.PROMOTE, fact.id, after, change.by, change.by.session_id)
        return [fact.id for fact in facts]

    def _discard(self, change: Discard) -> Plan[list[str]]:
        facts = yield from self._ephemeral(change.session_id)
        for fact in facts:
            yield from self._record(Operation.DISCARD_SESSION, fact.id, None, change.by, change.by.session_id)
        return [fact.id for fact in facts]

    def _rewrite(self, change: Rewrite) -> Plan[list[str]]:
        """The form changes and not what is said: so immutable facts too, and no time to live begins anew."""
        yield from self._stand(change.ids)
        old = [fact for fact_id in change.ids if (fact := self.fact(fact_id)) is not None and self.rules.is_old(fact)]
        for fact in old:
            yield from self._record(Operation.UPCAST, fact.id, self.rules.current(fact), change.by, fact.session_id)
        return [fact.id for fact in old]

    def _purge(self, change: Purge) -> Plan[list[str]]:
        yield from self._stand(change.ids)
        known = [fact_id for fact_id in change.ids if self._standing[fact_id].version]
        for fact_id in known:
            yield from self._record(Operation.PURGE, fact_id, None, change.by, change.by.session_id)
        return known

    def _rollback(self, change: Rollback) -> Plan[list[str]]:
        if self.entries:
            raise ValidationFailed("rollback: inside a transaction that has changes; leave it without them instead")
        transactions = yield from Steps(change.session_id, change.steps, change.causes, change.after, change.ran_on)
        touched: list[str] = []
        for tx in transactions:
            for undone in (yield from ReadLog(tx=tx)):  # newest first
                if not undone.counts:
                    continue  # it expired before the transaction changed it
                if any(fact is not None and not change.admits(fact) for fact in (undone.before, undone.after)):
                    raise ConflictError("rollback: the last steps touched facts outside the given scope; not undone")
                yield from self._undo(undone, change.by, None if touched else change.idempotency_key)
                touched.append(undone.fact_id)
        if change.expected is not None:
            self._refuse_unless(change.expected)
        self.undone += transactions
        return list(dict.fromkeys(touched))

    def preview(self) -> Preview:
        return Preview(differences(self.entries))

    def _refuse_unless(self, expected: Preview) -> None:
        now, then = ({one.fact_id: one for one in preview.changes} for preview in (self.preview(), expected))
        if now != then:
            others = sorted(fact_id for fact_id in {**now, **then} if now.get(fact_id) != then.get(fact_id))
            raise ConflictError(
                "rollback: would not do what was agreed to, because memory was changed since: fact "
                f"{', '.join(others)}; nothing was undone, look again"
            )

    def _undo(self, undone: Entry, by: By, key: str | None) -> Plan[None]:
        if undone.purged:
            raise ConflictError(
                f"rollback: fact {undone.fact_id} was purged, so what it was before log entry {undone.seq} is gone for "
                "good; not undone"
            )
        yield from self._stand([undone.fact_id])
        standing = self._standing[undone.fact_id]
        if standing.head != undone.seq:
            (later,) = yield from ReadLog(seqs=(standing.head or 0,), limit=1)
            raise ConflictError(
                f"rollback: fact {undone.fact_id} was changed later by session {later.session_id!r} "
                f"(log entry {later.seq}, {later.op}); undoing entry {undone.seq} would lose that change"
            )
        before = undone.before
        held = None if before is None else single(before)
        if held is not None and before is not None:
            yield from self._hold([held])
            holder = self._holders[held]
            if holder is not None and holder != before.id:
                raise ConflictError(
                    f"rollback: fact {before.id} would again hold {held[0]!r} key {held[2]}, which fact {holder} "
                    f"of session {(yield from self._session_of(holder))!r} holds now"
                )
        yield from self._record(Operation.ROLLBACK, undone.fact_id, before, by, undone.session_id, key, undoes=undone)

    def _session_of(self, fact_id: str) -> Plan[str | None]:
        yield from self._stand([fact_id])
        fact = self.fact(fact_id)
        return fact.session_id if fact else None

    def _live(self, fact_id: str) -> Plan[Fact]:
        yield from self._stand([fact_id])
        fact = self.fact(fact_id)
        if fact is None:
            raise FactNotFound(f"there is no live fact with id {fact_id!r}")
        return fact

    def _ephemeral(self, session_id: str) -> Plan[list[Fact]]:
        facts = yield from Find(Query(session_id=session_id, ephemeral=True))
        yield from self._stand(fact.id for fact in facts)
        known = dict.fromkeys([fact.id for fact in facts] + list(self._standing))
        return [
            fact
            for fact_id in known
            if (fact := self.fact(fact_id)) is not None and fact.ephemeral and fact.session_id == session_id
        ]

    def _record(
        self,
        op: Operation,
        fact_id: str,
        after: Fact | None,
        by: By,
        session_id: str | None,
        idempotency_key: str | None = None,
        undoes: Entry | None = None,
    ) -> Plan[None]:
        standing = self._standing[fact_id]
        version = standing.version + 1
        if after is not None:
            after = altered(after, version=version)
            key = single(after)
            if key is not None:
                yield from self._hold([key])
                holder = self._holders[key]
                if holder is not None and holder != fact_id:
                    raise ConflictError(f"type {key[0]!r}: fact {holder} already holds the singleton key {key[2]}")
        before = standing.fact
        if before is not None and (old := single(before)) is not None:
            self._know(self._holders, old, None)
        if after is not None and (new := single(after)) is not None:
            self._know(self._holders, new, fact_id)
        entry = unvalidated(
            Entry,
            {
                "seq": -1 - len(self.entries),
                "tx": self.tx,
                "op": op,
                "fact_id": fact_id,
                "version": version,
                "before": before,
                "after": after,
                "session_id": session_id,
                "actor": by.actor,
                "reason": by.reason,
                "ts": self.now,
                "idempotency_key": idempotency_key,
                "undoes": None if undoes is None else undoes.seq,
                "base": standing.head if undoes is None else undoes.base,
                "cause": by.cause,
                "purged": False,
            },
        )
        self.entries.append(entry)
        if entry.counts:
            self._sessions.add(session_id)
        self._know(self._standing, fact_id, Standing(after, version, entry.head))

    def append(self) -> Plan[list[Entry]]:
        """Write what was decided, at the position where it holds; the entries under their final seqs."""
        if not self.entries:
            return []
        assert self.at is not None
        first = self.at + 1
        entries = [
            # until now an entry of this transaction was known by -1, -2, ...
            altered(
                entry,
                seq=first + i,
                base=first - 1 - entry.base if entry.base is not None and entry.base < 0 else entry.base,
            )
            for i, entry in enumerate(self.entries)
        ]
        yield from Append(tuple(entries), step=self.step, undone=tuple(self.undone))
        return entries


def changed_by(drafts: Iterable[Draft]) -> dict[str, Fact | None]:
    """The facts that drafts change as the last of them leaves them, in the order of their last change.

    Copies: what a reader does to them must not reach the commit.
    """
    facts: dict[str, Fact | None] = {}
    for draft in drafts:
        for fact_id in draft.touched():
            facts.pop(fact_id, None)
            fact = draft.fact(fact_id)
            facts[fact_id] = fact and draft.rules.current(fact)
    return {fact_id: fact and fact.model_copy(deep=True) for fact_id, fact in facts.items()}


def single(fact: Fact) -> Single | None:
    return None if fact.singleton is None else (fact.type, fact.namespace, fact.singleton)


def singleton_id(key: Single) -> str:
    return str(uuid.uuid5(_SINGLETONS, canonical([key[0], list(key[1]), key[2]])))


def expect(version: int | None, fact_id: str, before: Fact | None) -> None:
    """Compare-and-set: 0 expects that there is no such fact."""
    actual = 0 if before is None else before.version
    if version is not None and version != actual:
        raise ConflictError(f"fact {fact_id}: expected version {version}, but it is at version {actual}")
