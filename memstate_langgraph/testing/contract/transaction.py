"""transaction(): several changes that are one, for readers, for the log and for rollback."""

from __future__ import annotations

import pytest

from memstate_langgraph import ConflictError, Fact, FactNotFound, HookError, MemoryStore, ValidationFailed
from memstate_langgraph.testing.models import note, preference
from memstate_langgraph.testing.places import Opener, Unreliable, assert_in_step, found, hook_over, live, texts


def test_all_of_it_is_one_transaction_of_the_log(memory: MemoryStore) -> None:
    memory.commit(note("old", "a"))
    memory.commit(note("old", "b"))
    with memory.transaction(session_id="s", actor="ana", reason="tidying") as tx:
        tx.commit(note("new", "c"))
        tx.update("a", {"content": "changed"})
        tx.delete("b")
        tx.update("c", {"content": "changed at once"})
    assert texts(memory) == {"a": "changed", "c": "changed at once"}
    entries = memory.log(limit=4)
    assert len({entry.tx for entry in entries}) == 1
    assert {(entry.session_id, entry.actor, entry.reason) for entry in entries} == {("s", "ana", "tidying")}
    assert [entry.fact_id for entry in reversed(entries)] == ["c", "a", "b", "c"]
    assert sorted(memory.rollback(1)) == ["a", "b", "c"]
    assert texts(memory) == {"a": "old", "b": "old"}
    assert_in_step(memory)


def test_it_reads_its_own_writes_and_nobody_else_does(reopen: Opener) -> None:
    memory, other = reopen(), reopen()
    memory.commit(note("old", "a"))
    memory.commit(note("old", "b"))
    with memory.transaction() as tx:
        tx.update("a", {"content": "new"})
        tx.delete("b")
        tx.commit(note("new", "c"))
        assert texts(tx) == {"a": "new", "c": "new"}
        assert texts(memory) == {"a": "new", "c": "new"}
        assert tx.get("b") is None
        assert [fact.id for fact in tx.query(filters={"payload.content": "new"}, limit=1)] == ["a"]
        assert texts(other) == {"a": "old", "b": "old"}
    assert texts(other) == {"a": "new", "c": "new"}


def test_what_is_read_inside_is_a_copy(memory: MemoryStore) -> None:
    with memory.transaction() as tx:
        fact_id = tx.commit(Fact(type="preference", payload={"content": "x", "topic": "r"}))
        fact = tx.get(fact_id)
        assert fact is not None
        fact.payload["weight"] = "not a number"
        tx.query()[0].payload["weight"] = "not a number"
        patch = {"content": ["y"]}
        other = tx.commit(Fact(type="free", payload={}))
        tx.update(other, {"content": patch["content"]})
        patch["content"].append("z")
    assert live(memory)[fact_id].payload["weight"] == 1
    assert live(memory)[other].payload["content"] == ["y"]


def test_what_was_asked_for_is_what_is_decided_again(reopen: Opener) -> None:
    memory, other = reopen(), reopen()
    memory.commit(Fact(type="free", payload={}, id="a"))
    patch = {"content": ["y"]}
    with memory.transaction() as tx:
        tx.update("a", patch)
        patch["content"].append("z")
        other.commit(note("meanwhile", "b"))
    assert live(memory)["a"].payload == {"content": ["y"]}
    assert [entry.fact_id for entry in memory.log(limit=2)] == ["a", "b"]


def test_an_error_in_the_block_leaves_nothing(memory: MemoryStore) -> None:

    def change() -> None:
        with memory.transaction() as tx:
            tx.commit(note("gone"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    assert memory.query() == []
    assert memory.log() == []
    memory.commit(note("after"))


def test_a_refused_change_can_be_caught_and_the_rest_committed(memory: MemoryStore) -> None:
    with memory.transaction() as tx:
        tx.commit(note("kept", "a"))
        with pytest.raises(ValidationFailed):
            tx.commit(Fact(type="preference", payload={}))
        with pytest.raises(FactNotFound):
            tx.delete("nobody")
        with pytest.raises(ConflictError):
            tx.update("a", {"content": "no"}, expected_version=7)
        tx.commit(note("kept too", "b"))
    assert texts(memory) == {"a": "kept", "b": "kept too"}
    assert len(memory.log()) == 2


def test_a_fact_that_was_committed_before_is_changed_under_the_id_that_was_made_for_it(memory: MemoryStore) -> None:
    known, deleted, fresh = (Fact(type="note", payload={"content": text}) for text in ("known", "deleted", "fresh"))
    memory.commit(known)
    memory.delete(memory.commit(deleted))
    with memory.transaction() as tx:
        tx.commit(note("first", "a"))
        for fact in (known, deleted, fresh, fresh):
            assert tx.commit(fact) == fact.id
    versions = {fact.id: (before and before.version, fact.version) for _, before, fact in _changes(memory)}
    assert versions == {"a": (None, 1), known.id: (1, 2), deleted.id: (None, 3), fresh.id: (1, 2)}
    assert_in_step(memory)
    memory.rollback(1)
    assert texts(memory) == {known.id: "known"}


def test_a_refused_change_takes_nothing_for_granted(memory: MemoryStore) -> None:
    known = note("known")
    memory.commit(known, session_id="s")
    with memory.transaction(session_id="s") as tx:
        tx.commit(note("first", "a"))
        with pytest.raises(ValidationFailed, match="belongs to session"):
            tx.commit(known, session_id="t")
        tx.update(known.id, {"content": "changed"})
    assert texts(memory) == {"a": "first", known.id: "changed"}


def _changes(memory: MemoryStore) -> list[tuple[int, Fact | None, Fact]]:
    """Of the last transaction: the position in the log, what was there before, what is there now."""
    entries = memory.log(limit=20)
    last = [entry for entry in reversed(entries) if entry.tx == entries[0].tx]
    return [(entry.seq, entry.before, entry.after) for entry in last if entry.after is not None]


def test_an_empty_transaction_writes_nothing(memory: MemoryStore) -> None:
    with memory.transaction(session_id="s"):
        pass
    assert memory.log() == []
    assert memory.rollback(1) == []


def test_transactions_do_not_nest_and_end_with_their_block(memory: MemoryStore) -> None:
    with memory.transaction() as tx:
        tx.commit(note("one", "a"))
        with pytest.raises(ValidationFailed, match="already inside"), memory.transaction():
            pass
        with pytest.raises(ValidationFailed, match="already inside"), tx.transaction():
            pass
        memory.commit(note("two", "b"))  # through the store itself: part of it as well
    with pytest.raises(ValidationFailed, match="ended"):
        tx.commit(note("late"))
    with pytest.raises(ValidationFailed, match="ended"):
        tx.rollback(1)
    assert texts(memory) == {"a": "one", "b": "two"}
    assert len({entry.tx for entry in memory.log()}) == 1


def test_a_transaction_belongs_to_one_session(memory: MemoryStore) -> None:
    with memory.transaction(session_id="s") as tx:
        tx.commit(note("one", "a"))
        with pytest.raises(ValidationFailed, match=r"'s'.*'t'"):
            tx.commit(note("two"), session_id="t")
    with memory.transaction() as tx:
        tx.commit(note("three", "b"), session_id="t")
        with pytest.raises(ValidationFailed, match="one session"):
            tx.update("a", {"content": "no"})
        tx.update("b", {"content": "four"})
        with pytest.raises(ValidationFailed, match="one session"):
            tx.update("b", {"content": "no"}, session_id="u")
        tx.update("b", {"content": "five"}, expected_version=2)  # what was refused left no trace
    assert texts(memory) == {"a": "one", "b": "five"}


def test_keys_move_between_facts_within_one_transaction(memory: MemoryStore) -> None:
    a = memory.commit(preference("one", "a"))
    b = memory.commit(preference("two", "b"))
    with memory.transaction() as tx:
        tx.update(a, {"topic": "spare"})
        tx.update(b, {"topic": "one"})
        tx.update(a, {"topic": "two"})
        with pytest.raises(ConflictError, match="already holds"):
            tx.update(a, {"topic": "one"})
    assert {fact.id: fact.payload["topic"] for fact in memory.query()} == {a: "two", b: "one"}
    with memory.transaction() as tx:
        tx.delete(a)
        c = tx.commit(preference("two", "c"))
    assert {fact.payload["topic"]: fact.payload["content"] for fact in memory.query()} == {"one": "b", "two": "c"}
    memory.rollback(2)
    assert {fact.id: fact.payload["topic"] for fact in memory.query()} == {a: "one", b: "two"}
    assert c not in live(memory) or c in (a, b)
    assert_in_step(memory)


def test_an_idempotency_key_counts_inside_too(memory: MemoryStore) -> None:
    first = memory.commit(note("one"), idempotency_key="k")
    with memory.transaction() as tx:
        assert tx.commit(note("two"), idempotency_key="k") == first
        second = tx.commit(note("three"), idempotency_key="k2")
        assert tx.commit(note("four"), idempotency_key="k2") == second
    assert sorted(texts(memory).values()) == ["one", "three"]


def test_rollback_stands_alone_in_a_transaction(memory: MemoryStore) -> None:
    memory.commit(note("one", "a"))
    memory.commit(note("two", "b"))
    with memory.transaction() as tx:
        tx.commit(note("three", "c"))
        with pytest.raises(ValidationFailed, match="rollback"):
            tx.rollback(1)
    with memory.transaction() as tx:
        tx.rollback(1)
        with pytest.raises(ValidationFailed, match="rollback"):
            tx.commit(note("four", "d"))
        with pytest.raises(ValidationFailed, match="rollback"):
            tx.rollback(1)
        assert texts(tx) == {"a": "one", "b": "two"}
    assert texts(memory) == {"a": "one", "b": "two"}
    memory.rollback(2)
    assert texts(memory) == {}
    assert_in_step(memory)


def test_a_thousand_facts_are_one_upsert(open_store: Opener, vectors: Unreliable) -> None:
    memory = open_store(hook_over(vectors))
    with memory.transaction(session_id="s") as tx:
        for i in range(200):
            tx.commit(note(f"number {i}"))
    assert vectors.upserts == 1
    memory.commit_many([note(f"more {i}") for i in range(1000)])
    assert vectors.upserts == 2
    assert len(found(memory)) == 1200
    memory.rollback(2)
    assert vectors.upserts == 2, "what was never there needs no embedding"
    assert found(memory) == {}


def test_an_outage_leaves_nothing_of_a_transaction(open_store: Opener, vectors: Unreliable) -> None:
    memory = open_store(hook_over(vectors))
    memory.commit(note("before", "a"))
    vectors.mood = "applied"

    def change() -> None:
        with memory.transaction() as tx:
            tx.commit(note("new", "b"))
            tx.update("a", {"content": "after"})

    with pytest.raises(HookError):
        change()
    assert texts(memory) == {"a": "before"}
    assert_in_step(memory)
