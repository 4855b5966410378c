"""Facts, constraints, log, transactions and rollback: one contract for every storage and both doors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from memstate_langgraph import (
    ConflictError,
    Fact,
    FactNotFound,
    HookError,
    MemoryStore,
    MemoryStoreError,
    Operation,
    ValidationFailed,
)
from memstate_langgraph.testing.models import Note, Preference, note, preference

Open = Callable[..., MemoryStore]


def content(memory: MemoryStore, fact_id: str) -> Any:
    fact = memory.get(fact_id)
    return None if fact is None else fact.payload["content"]


def state(memory: MemoryStore) -> dict[str, Any]:
    return {fact.id: fact.model_dump(exclude={"version"}) for fact in memory.query()}


# --- commit, update, delete


def test_a_fact_comes_back_as_it_was_committed(memory: MemoryStore) -> None:
    fact = note("hello", source="chat", namespace=("users", "ana"))
    fact_id = memory.commit(fact, session_id="s")
    assert fact_id == fact.id
    stored = memory.get(fact_id)
    assert stored is not None
    assert stored.payload == {"content": "hello", "stars": 0}  # the model's defaults are filled in
    assert (stored.type, stored.source, stored.session_id, stored.namespace, stored.version, stored.ts) == (
        "note", "chat", "s", ("users", "ana"), 1, fact.ts,
    )  # fmt: skip


def test_payloads_are_validated_and_the_error_names_type_and_field(memory: MemoryStore) -> None:
    with pytest.raises(ValidationFailed, match=r"'note'.*stars"):
        memory.commit(Fact(type="note", payload={"content": "x", "stars": "many"}))
    assert memory.query() == []
    assert memory.log() == []


def test_a_number_that_json_lacks_is_refused(memory: MemoryStore) -> None:
    class Measured(BaseModel):
        data: dict[str, Any]

    memory.register_schema("measured", Measured)
    for typename in ("measured", "unregistered"):
        for number in (float("nan"), float("inf")):
            with pytest.raises(ValidationFailed, match=r"data\.x.*JSON number"):
                memory.commit(Fact(type=typename, payload={"data": {"x": number}}))
    assert memory.log() == []


def test_unregistered_types_are_kept_as_they_are(memory: MemoryStore) -> None:
    payload = {"a": [1, 2.5, None, True, {"b": "ü"}]}
    assert memory.get(memory.commit(Fact(type="free", payload=payload))).payload == payload  # type: ignore[union-attr]


def test_update_merges_and_keeps_the_rest(memory: MemoryStore) -> None:
    fact_id = memory.commit(note("one"), session_id="s")
    memory.update(fact_id, {"payload": {"stars": 3}})
    memory.update(fact_id, {"content": "two"})
    stored = memory.get(fact_id)
    assert stored is not None
    assert stored.payload == {"content": "two", "stars": 3}
    assert stored.version == 3
    with pytest.raises(ValidationFailed):
        memory.update(fact_id, {"stars": "x"})
    assert memory.get(fact_id) == stored


def test_update_and_delete_of_what_is_not_there(memory: MemoryStore) -> None:
    with pytest.raises(FactNotFound):
        memory.update("ghost", {"content": "x"})
    with pytest.raises(MemoryStoreError):
        memory.delete(session_id="s", fact_id="ghost")
    assert memory.log() == []


def test_commit_model_needs_a_registered_model(memory: MemoryStore) -> None:
    fact_id = memory.commit_model(Note(content="x"), session_id="s", namespace=("n",))
    stored = memory.get(fact_id)
    assert stored is not None
    assert (stored.type, stored.namespace) == ("note", ("n",))
    assert memory.commit_model(Note(content="y"), fact_id=fact_id, namespace=("n",)) == fact_id
    with pytest.raises(MemoryStoreError, match="is not registered"):
        memory.commit_model(Fact(type="x", payload={}))


def test_a_fact_cannot_move_to_another_type_or_namespace(memory: MemoryStore) -> None:
    fact_id = memory.commit(note("mine", namespace=("a",)))
    with pytest.raises(ConflictError):
        memory.commit(note("theirs", id=fact_id, namespace=("b",)))
    with pytest.raises(ConflictError):
        memory.commit(Fact(id=fact_id, type="other", payload={}, namespace=("a",)))


# --- constraints


def test_a_singleton_is_updated_and_keeps_its_id(memory: MemoryStore) -> None:
    first = memory.commit(preference("food", "vegetarian"))
    second = memory.commit(preference("food", "vegan"))
    other = memory.commit(preference("music", "jazz"))
    elsewhere = memory.commit(preference("food", "anything", namespace=("bob",)))
    assert first == second
    assert len({first, other, elsewhere}) == 3
    assert content(memory, first) == "vegan"
    assert len(memory.query("preference")) == 3


def test_a_singleton_key_can_be_given_up_and_taken(memory: MemoryStore) -> None:
    first = memory.commit(preference("food", "a"))
    memory.update(first, {"topic": "drinks"})
    second = memory.commit(preference("food", "b"))
    assert second != first
    with pytest.raises(ConflictError, match="singleton"):
        memory.update(first, {"topic": "food"})
    memory.delete(second)
    memory.update(first, {"topic": "food"})
    assert memory.commit(preference("food", "c")) == first


def test_immutable_facts_refuse_every_change(memory: MemoryStore) -> None:
    rule = Fact(type="rule", payload={"name": "safety", "text": "v1"})
    fact_id = memory.commit(rule)
    assert memory.commit(rule) == fact_id  # the same again is no change
    changes: list[Callable[[], object]] = [
        lambda: memory.commit(Fact(type="rule", payload={"name": "safety", "text": "v2"})),
        lambda: memory.update(fact_id, {"text": "v2"}),
        lambda: memory.delete(fact_id),
    ]
    for change in changes:
        with pytest.raises(ConflictError, match="Immutable constraint violation"):
            change()
    assert len(memory.log()) == 1
    memory.rollback(1)  # undoing is not changing
    assert memory.get(fact_id) is None


def test_expected_version_is_compare_and_set(memory: MemoryStore) -> None:
    fact_id = memory.commit(note("one"), expected_version=0)
    memory.update(fact_id, {"content": "two"}, expected_version=1)
    for stale in (0, 1, 3):
        with pytest.raises(ConflictError, match="version"):
            memory.update(fact_id, {"content": "three"}, expected_version=stale)
        with pytest.raises(ConflictError):
            memory.delete(fact_id, expected_version=stale)
    assert content(memory, fact_id) == "two"


def test_a_used_idempotency_key_writes_nothing(memory: MemoryStore) -> None:
    first = memory.commit(note("one"), idempotency_key="k")
    assert memory.commit(note("two"), idempotency_key="k") == first
    assert memory.update(first, {"content": "x"}, idempotency_key="u") == first
    assert memory.update(first, {"content": "y"}, idempotency_key="u") == first
    assert memory.delete(first, idempotency_key="d") == first
    assert memory.delete(first, idempotency_key="d") == first
    assert len(memory.log()) == 3


def test_rollback_with_a_key_undoes_once(memory: MemoryStore) -> None:
    a, b = memory.commit(note("a")), memory.commit(note("b"))
    assert memory.rollback(1, idempotency_key="r") == [b]
    assert memory.rollback(1, idempotency_key="r") == [b]
    assert memory.get(a) is not None


# --- queries


def test_query_by_type_namespace_session_and_filters(memory: MemoryStore) -> None:
    memory.commit(note("a", namespace=("x",)), session_id="1")
    memory.commit(Fact(type="note", payload={"content": "b", "stars": 5}), session_id="2")
    memory.commit(Fact(type="deep", payload={"address": {"city": "Oslo"}, "flag": True, "n": 1}))

    def found(**question: Any) -> list[str]:
        return [fact.payload.get("content", "deep") for fact in memory.query(**question)]

    assert found() == ["a", "b", "deep"]
    assert found(typename="note") == ["a", "b"]
    assert found(namespace=("x",)) == ["a"]
    assert found(namespace=()) == ["b", "deep"]
    assert found(session_id="2") == ["b"]
    assert found(filters={"payload.stars": 5}) == ["b"]
    assert found(filters={"payload.stars": {"$gte": 0, "$lt": 5}}) == ["a"]
    assert found(filters={"payload.address.city": "Oslo"}) == ["deep"]
    assert found(filters={"payload.address.city": {"$exists": False}}) == ["a", "b"]
    assert found(filters={"payload.content": {"$in": ["a", "z"]}, "session_id": "1"}) == ["a"]
    assert found(filters={"payload.n": True}) == []  # a number is not a truth value, in any storage
    assert found(filters={"payload.flag": 1}) == []
    assert found(limit=2) == ["a", "b"]
    assert found(limit=0) == []
    assert found(filters={"payload.stars": {"$ne": 5}}, typename="note") == ["a"]
    assert found(filters={"payload.content') OR 1=1 --": "x"}) == []
    for bad in ({"nonsense": 1}, {"payload.x": {"$where": "1"}}, {"payload.x": {"$in": "abc"}}):
        with pytest.raises(ValidationFailed):
            memory.query(filters=bad)


# --- log


def test_the_log_tells_everything_newest_first(memory: MemoryStore) -> None:
    fact_id = memory.commit(note("one"), session_id="s", actor="ana", reason="because")
    memory.update(fact_id, {"content": "two"})
    memory.delete(fact_id)
    memory.commit(note("else"), session_id="t")
    deleted, updated, committed = memory.log(session_id="s")
    assert [entry.op for entry in (committed, updated, deleted)] == ["COMMIT", "UPDATE", "DELETE"]
    assert committed.seq < updated.seq < deleted.seq
    assert (committed.actor, committed.reason, committed.before) == ("ana", "because", None)
    assert updated.before == committed.after
    assert deleted.before == updated.after
    assert deleted.after is None
    assert memory.history(fact_id) == [deleted, updated, committed]
    assert len(memory.log(limit=1)) == 1
    assert len({entry.tx for entry in memory.log()}) == 4


# --- transactions


def test_a_transaction_is_one(memory: MemoryStore) -> None:
    old = memory.commit(note("old"), session_id="s")
    with memory.transaction(session_id="s", actor="ana") as tx:
        new = tx.commit(note("new"))
        assert tx.commit(preference("food", "a")) == tx.commit(preference("food", "b"))
        tx.update(new, {"stars": 1})
        tx.delete(old)
        assert tx.get(old) is None
        assert content(tx, new) == "new"
        assert {fact.id for fact in tx.query("note")} == {new}
    entries = memory.log()[:5]
    assert len({entry.tx for entry in entries}) == 1
    assert {entry.actor for entry in entries} == {"ana"}
    assert memory.verify().ok
    memory.rollback(1, session_id="s")
    assert {fact.id for fact in memory.query()} == {old}


def test_a_transaction_that_raises_leaves_nothing(memory: MemoryStore) -> None:
    def raising() -> None:
        with memory.transaction() as tx:
            tx.commit(note("never"))
            raise KeyError("x")

    with pytest.raises(KeyError):
        raising()
    with memory.transaction() as tx:
        tx.commit(note("kept"))
        with pytest.raises(ValidationFailed):
            tx.commit(Fact(type="note", payload={}))
        with pytest.raises(ConflictError):
            tx.commit(note("x"), expected_version=7)
    assert [fact.payload["content"] for fact in memory.query()] == ["kept"]
    with pytest.raises(ValidationFailed, match="ended"):
        tx.commit(note("late"))


def test_a_transaction_belongs_to_one_session(memory: MemoryStore) -> None:
    with memory.transaction(session_id="a") as tx:
        with pytest.raises(ValidationFailed, match="session"):
            tx.commit(note("x"), session_id="b")
        tx.commit(note("x"))
    with memory.transaction() as tx:
        tx.commit(note("x"), session_id="b")
        with pytest.raises(ValidationFailed, match="session"):
            tx.commit(note("y"), session_id="c")
    assert len(memory.query()) == 2


# --- rollback


def test_rollback_restores_exactly(memory: MemoryStore) -> None:
    a = memory.commit(note("a", source="s1", namespace=("n",)), session_id="s")
    b = memory.commit(preference("food", "x"), session_id="s")
    before = state(memory)
    memory.update(a, {"payload": {"content": "A"}, "source": "s2"}, session_id="t")
    memory.delete(b, session_id="t")
    c = memory.commit(note("c"), session_id="t")
    assert set(memory.rollback(3, session_id="t")) == {a, b, c}
    assert state(memory) == before
    assert memory.verify().ok
    assert [entry.op for entry in memory.log()[:3]] == [Operation.ROLLBACK] * 3
    assert all(entry.undoes for entry in memory.log()[:3])


def test_rollback_counts_transactions_in_force(memory: MemoryStore) -> None:
    ids = [memory.commit(note(str(i)), session_id="s") for i in range(4)]
    memory.rollback(1)
    memory.rollback(1, session_id="s")
    assert {fact.id for fact in memory.query()} == set(ids[:2])
    memory.commit(note("new"), session_id="s")
    memory.rollback(steps=2, session_id="s")
    assert {fact.id for fact in memory.query()} == {ids[0]}
    assert memory.rollback(10) == [ids[0]]
    assert memory.rollback(1) == []
    assert memory.rollback(0) == []
    with pytest.raises(ValidationFailed):
        memory.rollback(-1)


def test_rollback_of_one_session_leaves_others(memory: MemoryStore) -> None:
    mine = memory.commit(note("mine"), session_id="a")
    theirs = memory.commit(note("theirs"), session_id="b")
    memory.rollback(5, session_id="a")
    assert memory.get(mine) is None
    assert memory.get(theirs) is not None


def test_rollback_never_clobbers_a_later_change_of_someone_else(memory: MemoryStore) -> None:
    fact_id = memory.commit(note("one"), session_id="a")
    other = memory.commit(note("other"), session_id="a")
    memory.update(fact_id, {"content": "two"}, session_id="b")
    memory.update(fact_id, {"content": "one"}, session_id="b")  # looks as before, but is b's
    before = state(memory)
    with pytest.raises(ConflictError, match="'b'"):
        memory.rollback(2, session_id="a")
    assert state(memory) == before  # not even the step that could have been undone
    memory.rollback(2, session_id="b")
    memory.rollback(2, session_id="a")  # what b did is undone and stands in nobody's way
    assert memory.get(fact_id) is None
    assert memory.get(other) is None


def test_rollback_does_not_take_a_key_that_someone_else_holds(memory: MemoryStore) -> None:
    mine = memory.commit(preference("food", "mine", id="mine"), session_id="a")
    memory.delete(mine, session_id="a")
    memory.commit(preference("food", "theirs", id="theirs"), session_id="b")
    with pytest.raises(ConflictError, match="'b'"):
        memory.rollback(1, session_id="a")
    assert memory.query("preference")[0].id == "theirs"


def test_versions_never_go_back(memory: MemoryStore) -> None:
    fact_id = memory.commit(note("one"))
    memory.update(fact_id, {"content": "two"})
    memory.rollback(1)
    stored = memory.get(fact_id)
    assert stored is not None
    assert (stored.payload["content"], stored.version) == ("one", 3)
    with pytest.raises(ConflictError):
        memory.update(fact_id, {"content": "x"}, expected_version=2)


def test_rollback_stays_within_a_given_scope(memory: MemoryStore) -> None:
    memory.commit(note("a", namespace=("x",)), session_id="s")
    with pytest.raises(ConflictError, match="scope"):
        memory.rollback(1, session_id="s", namespace=("y",))
    with pytest.raises(ConflictError, match="scope"):
        memory.rollback(1, session_id="s", types=["preference"])
    assert len(memory.rollback(1, session_id="s", namespace=("x",), types=["note"])) == 1


# --- ephemeral facts


def test_ephemeral_facts_are_discarded_or_promoted(memory: MemoryStore) -> None:
    a = memory.commit(note("a"), session_id="s", ephemeral=True)
    b = memory.commit(note("b"), session_id="s", ephemeral=True)
    kept = memory.commit(note("kept"), session_id="s")
    other = memory.commit(note("other"), session_id="t", ephemeral=True)
    with pytest.raises(FactNotFound):
        memory.promote("s", [other])
    assert memory.promote("s", [a]) == [a]
    before = state(memory)
    assert memory.discard_session("s") == 1
    assert {fact.id for fact in memory.query()} == {a, kept, other}
    memory.rollback(1, session_id="s")
    assert state(memory) == before
    assert memory.discard_session("s") == 1
    assert memory.get(b) is None
    assert memory.discard_session("nobody") == 0


# --- hooks that veto


def test_a_callable_hook_may_veto(open_store: Open) -> None:
    seen: list[tuple[str, str]] = []

    def hook(op: Operation, fact_id: str, fact: Fact | None) -> None:
        seen.append((op, fact_id))
        if fact is not None and fact.payload.get("content") == "bad":
            raise ValueError("we do not keep that")

    memory = open_store(hook)
    fact_id = memory.commit(note("good"))
    with pytest.raises(HookError, match="we do not keep that"):
        memory.update(fact_id, {"content": "bad"})
    with pytest.raises(HookError):
        memory.commit(note("bad"))
    memory.delete(fact_id)
    memory.rollback(1)
    assert [op for op, _ in seen] == ["COMMIT", "UPDATE", "COMMIT", "DELETE", "ROLLBACK"]
    assert content(memory, fact_id) == "good"
    assert len(memory.log()) == 3


def test_strict_stores_know_their_types(open_store: Open) -> None:
    memory = open_store()
    memory.rules.strict = True
    with pytest.raises(ValidationFailed, match="unknown"):
        memory.commit(Fact(type="unknown", payload={}))


def test_registration_is_checked(memory: MemoryStore) -> None:
    from memstate_langgraph import Constraint

    with pytest.raises(ValidationFailed, match="colour"):
        memory.register_schema("p", Preference, Constraint(singleton_key="colour"))
    with pytest.raises(ValidationFailed, match="pydantic"):
        memory.register_schema("p", dict)  # type: ignore[arg-type]
    with pytest.raises(ValidationFailed, match="checkpointer"):
        memory.commit(Fact(type="langgraph.checkpoint", payload={}))
