"""Random histories against a plain dict, on every storage: whatever happens, facts, log and search agree.

Hypothesis prints the steps and the blob that repeat a failure.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memstate_langgraph import ConflictError, Constraint, Fact, FactNotFound, HookError, MemoryStore
from tests.models import Preference
from tests.stores import PLACES, Died, Place, Unreliable, assert_in_step, collect, hook_over, places

SESSIONS = st.sampled_from(["s", "t"])
IDS = st.sampled_from([f"f{i}" for i in range(5)])
ROLES = st.sampled_from(["food", "drink"])
TEXTS = st.sampled_from(["red apples", "green tea", "blue sky", ""])


@dataclass(frozen=True)
class Known:
    """What the model knows of a fact."""

    type: str
    content: str
    session: str
    role: str = ""
    ephemeral: bool = False


def known(fact: Fact) -> Known:
    payload = fact.payload
    return Known(fact.type, payload["content"], fact.session_id or "", payload.get("topic", ""), fact.ephemeral)


@dataclass(eq=False)
class Step:
    """A transaction in force: what each fact was before it and after it."""

    session: str
    changes: dict[str, tuple[Known | None, Known | None]]


@dataclass
class Model:
    facts: dict[str, Known] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def change(self, session: str, changes: dict[str, Known | None]) -> None:
        before = {fact_id: self.facts.get(fact_id) for fact_id in changes}
        self._put(changes)
        self.steps.append(Step(session, {fact_id: (before[fact_id], after) for fact_id, after in changes.items()}))

    def _put(self, changes: dict[str, Known | None]) -> None:
        for fact_id, after in changes.items():
            if after is None:
                self.facts.pop(fact_id, None)
            else:
                self.facts[fact_id] = after

    def holder(self, role: str) -> str | None:
        return next((i for i, now in self.facts.items() if now.type == "preference" and now.role == role), None)

    def rollback(self, count: int, session: str | None) -> bool:
        """Undo the last steps, unless a later step in force of another session touched the same facts."""
        chosen = [step for step in reversed(self.steps) if session in (None, step.session)][:count]
        for step in chosen:
            later = self.steps[self.steps.index(step) + 1 :]
            if any(other not in chosen and other.changes.keys() & step.changes.keys() for other in later):
                return False
        facts = dict(self.facts)
        for step in chosen:
            self._put({fact_id: before for fact_id, (before, _) in step.changes.items()})
        roles = [now.role for now in self.facts.values() if now.type == "preference"]
        if len(roles) != len(set(roles)):
            self.facts = facts
            return False
        self.steps = [step for step in self.steps if step not in chosen]
        return True


class Histories(RuleBasedStateMachine):
    """Two sessions change facts through one or two stores, while the vector store fails now and then."""

    place: Place
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.vectors = Unreliable()
        self.model = Model()
        self.keys = 0
        self.open: list[MemoryStore] = []
        self.dropped: list[MemoryStore] = []

    def _open(self) -> MemoryStore:
        memory = self.place.open(self.folder, [hook_over(self.vectors, lease=0.0, grace=0.0, late=0.0)])
        memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
        self.open.append(memory)
        return memory

    @initialize()
    def begin(self) -> None:
        for _ in range(2 if self.place.durable else 1):
            self._open()

    def teardown(self) -> None:
        """Whatever happened, one repair leaves exactly the vectors of the live facts."""
        if self.open:
            self.vectors.mood = "ok"
            self.vectors.arrive()
            report = self.memory.repair()
            assert report.ok, str(report)
            assert len(self.vectors.store) == sum(bool(now.content) for now in self.model.facts.values())
            assert_in_step(self.memory)
        for memory in self.open + self.dropped:
            memory.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def memory(self) -> MemoryStore:
        """Now one, now the other of the stores."""
        self.open.append(self.open.pop(0))
        return self.open[0]

    def _attempt(self, call: Any, *args: Any, **options: Any) -> bool:
        """Whether a change that nothing forbids went through; an outage must leave no trace."""
        memory = self.memory
        length = len(memory.log())
        try:
            getattr(memory, call)(*args, **options)
        except HookError:
            assert self.vectors.mood != "ok"
            assert len(memory.log()) == length
            return False
        except Died:
            self._crashed(memory, length)
            return False
        return True

    def _crashed(self, memory: MemoryStore, length: int) -> None:
        """In place of the process that died another one opens the file; memory alone would be gone with it."""
        self.vectors.mood = "ok"
        if self.place.durable:
            self.open.remove(memory)
            self.dropped.append(memory)
            memory = self._open()
        assert len(memory.log()) == length

    # --- changes

    @rule(fact_id=IDS, content=TEXTS, session=SESSIONS, ephemeral=st.booleans())
    def commit(self, fact_id: str, content: str, session: str, ephemeral: bool) -> None:
        before = self.model.facts.get(fact_id)
        fact = Fact(id=fact_id, type="note", payload={"content": content})
        if self._attempt("commit", fact, session_id=session, ephemeral=ephemeral):
            kept = ephemeral and (before is None or before.ephemeral)
            self.model.change(session, {fact_id: Known("note", content, session, ephemeral=kept)})

    @rule(role=ROLES, content=TEXTS, session=SESSIONS)
    def commit_singleton(self, role: str, content: str, session: str) -> None:
        holder = self.model.holder(role)
        fact = Fact(type="preference", payload={"content": content, "topic": role})
        if self._attempt("commit", fact, session_id=session):
            ids = {found.id for found in self.memory.query("preference", {"payload.topic": role})}
            assert len(ids) == 1
            (fact_id,) = ids
            assert holder in (None, fact_id)
            self.model.change(session, {fact_id: Known("preference", content, session, role)})

    @rule(fact_id=IDS, content=TEXTS, session=SESSIONS)
    def update(self, fact_id: str, content: str, session: str) -> None:
        was = self.model.facts.get(fact_id)
        if was is None:
            with pytest.raises(FactNotFound):
                self.memory.update(fact_id, {"content": content})
        elif self._attempt("update", fact_id, {"content": content}, session_id=session):
            after = replace(was, content=content)
            self.model.change(session, {fact_id: after})

    @rule(data=st.data(), role=ROLES, session=SESSIONS)
    def move_a_key(self, data: st.DataObject, role: str, session: str) -> None:
        holders = sorted(i for i, was in self.model.facts.items() if was.type == "preference")
        if not holders:
            return
        fact_id = data.draw(st.sampled_from(holders))
        was = self.model.facts[fact_id]
        if self.model.holder(role) not in (None, fact_id):
            with pytest.raises(ConflictError):
                self.memory.update(fact_id, {"topic": role}, session_id=session)
        elif self._attempt("update", fact_id, {"topic": role}, session_id=session):
            self.model.change(session, {fact_id: replace(was, role=role)})

    @rule(fact_id=IDS, session=SESSIONS)
    def delete(self, fact_id: str, session: str) -> None:
        if fact_id not in self.model.facts:
            with pytest.raises(FactNotFound):
                self.memory.delete(fact_id)
        elif self._attempt("delete", fact_id, session_id=session):
            self.model.change(session, {fact_id: None})

    @rule(ids=st.lists(IDS, min_size=1, max_size=4), content=TEXTS, session=SESSIONS, raises=st.booleans())
    def transaction(self, ids: list[str], content: str, session: str, raises: bool) -> None:
        memory, length = self.memory, len(self.memory.log())
        changes: dict[str, Known | None] = {}
        try:
            with memory.transaction(session_id=session) as tx:
                for fact_id in ids:
                    was = changes.get(fact_id, self.model.facts.get(fact_id))
                    if was is None:
                        tx.commit(Fact(id=fact_id, type="note", payload={"content": content}))
                        changes[fact_id] = Known("note", content, session)
                    else:
                        tx.delete(fact_id)
                        changes[fact_id] = None
                if raises:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert len(memory.log()) == length
        except HookError:
            assert self.vectors.mood != "ok"
            assert len(memory.log()) == length
        except Died:
            self._crashed(memory, length)
        else:
            self.model.change(session, changes)

    @rule(session=SESSIONS)
    def discard_session(self, session: str) -> None:
        gone = {i: None for i, was in self.model.facts.items() if was.ephemeral and was.session == session}
        if self._attempt("discard_session", session) and gone:
            self.model.change(session, dict(gone))

    @rule(session=SESSIONS)
    def promote(self, session: str) -> None:
        kept: dict[str, Known | None] = {
            i: replace(was, ephemeral=False)
            for i, was in self.model.facts.items()
            if was.ephemeral and was.session == session
        }
        if self._attempt("promote", session) and kept:
            self.model.change(session, kept)

    @rule(count=st.integers(0, 4), session=st.none() | SESSIONS)
    def rollback(self, count: int, session: str | None) -> None:
        memory, length = self.memory, len(self.memory.log())
        facts, steps = dict(self.model.facts), list(self.model.steps)
        allowed = self.model.rollback(count, session)
        try:
            memory.rollback(count, session_id=session)
        except HookError:
            assert self.vectors.mood != "ok"
            self.model.facts, self.model.steps = facts, steps
            assert len(memory.log()) == length
        except Died:
            self.model.facts, self.model.steps = facts, steps
            self._crashed(memory, length)
        except ConflictError:
            assert not allowed
            assert len(memory.log()) == length
        else:
            assert allowed

    @rule(content=TEXTS)
    def commit_once(self, content: str) -> None:
        self.keys += 1
        fact = Fact(id=f"once{self.keys}", type="note", payload={"content": content})
        for _ in range(2):
            if not self._attempt("commit", fact, session_id="s", idempotency_key=f"key {self.keys}"):
                return
            fact = fact.model_copy(update={"id": f"twice{self.keys}"})
        self.model.change("s", {f"once{self.keys}": Known("note", content, "s")})

    # --- what else happens

    @rule(mood=st.sampled_from(["ok", "refused", "applied", "late", "down", "dies"]))
    def vector_store_becomes(self, mood: str) -> None:
        self.vectors.mood = mood

    @rule()
    def late_writes_arrive(self) -> None:
        self.vectors.arrive()

    @precondition(lambda self: self.vectors.mood != "down")
    @rule()
    def collect(self) -> None:
        collect(self.memory)

    @precondition(lambda self: self.vectors.mood == "ok")
    @rule()
    def repair(self) -> None:
        self.vectors.arrive()
        report = self.memory.repair()
        assert report.ok, str(report)
        assert report.leftovers == 0
        assert len(self.vectors.store) == sum(bool(now.content) for now in self.model.facts.values())

    @precondition(lambda self: self.vectors.mood != "down")
    @rule(query=st.sampled_from(["red apples", "sky"]), limit=st.integers(0, 4), session=st.none() | SESSIONS)
    def search(self, query: str, limit: int, session: str | None) -> None:
        filters = None if session is None else {"session_id": session}
        hits = self.memory.search(query, limit=limit, filters=filters)
        possible = {i for i, now in self.model.facts.items() if now.content and session in (None, now.session)}
        assert len(hits) == min(limit, len(possible))
        assert {hit.fact.id for hit in hits} <= possible
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    @precondition(lambda self: self.place.durable)
    @rule(how=st.sampled_from(["close, open", "open, close", "crash, open"]))
    def reopen(self, how: str) -> None:
        left = self.open.pop(0)
        match how:
            case "close, open":
                left.close()
                self._open()
            case "open, close":
                self._open()
                left.close()
            case _:
                self.dropped.append(left)
                self._open()

    # --- what always holds

    @invariant()
    def the_facts_are_the_models(self) -> None:
        type(self).steps += 1
        for memory in self.open:
            assert {fact.id: known(fact) for fact in memory.query()} == self.model.facts

    @invariant()
    def all_agree(self) -> None:
        if self.open and self.vectors.mood != "down":
            assert_in_step(self.memory)


# Without shrinking, which takes minutes: `make torture` shrinks what it finds, to the same failure.
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)


@places()
def test_random_histories(place: Place) -> None:
    machine = type("HistoriesHere", (Histories,), {"place": place})
    run_state_machine_as_test(machine, settings=settings(max_examples=45, stateful_step_count=30, phases=QUICK))
    steps: Any = machine
    assert steps.steps * len(PLACES) >= 5000


@pytest.mark.long
@places()
def test_many_long_random_histories(place: Place) -> None:
    machine = type("HistoriesHere", (Histories,), {"place": place})
    run_state_machine_as_test(machine, settings=settings(max_examples=1000, stateful_step_count=60))
