"""commit, update, delete, get, and the ephemeral facts of a session."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

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
from memstate_langgraph.testing.models import Note, Preference, note
from memstate_langgraph.testing.places import Opener, Unreliable, assert_in_step, hook_over, live, replayed, texts


def test_a_fact_comes_back_as_it_was_given(memory: MemoryStore) -> None:
    payload = {
        "n": None,
        "yes": True,
        "i": 2**70,
        "f": -0.5,
        "s": "ü\U0001f600 ",
        "deep": {"list": [1, [2, {"a": "b"}]]},
    }
    when = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=timezone(timedelta(hours=-3)))
    given = Fact(type="free", payload=payload, source="import", session_id="s", ts=when, namespace=("a", "b"))
    fact_id = memory.commit(given)
    stored = memory.get(fact_id)
    assert stored == given.model_copy(update={"version": 1})
    assert stored is not None
    assert stored.payload == payload
    assert stored.ts == when
    assert memory.query() == [stored]


def test_the_given_id_is_kept_and_committing_it_again_updates(memory: MemoryStore) -> None:
    assert memory.commit(note("one", "n1"), session_id="s") == "n1"
    assert memory.commit(note("two", "n1")) == "n1"
    fact = memory.get("n1")
    assert fact is not None
    assert (fact.payload["content"], fact.version, fact.session_id) == ("two", 2, "s")
    assert [entry.op for entry in memory.history("n1")] == [Operation.UPDATE, Operation.COMMIT]


def test_what_the_caller_changes_afterwards_is_not_stored(memory: MemoryStore) -> None:
    payload = {"content": "as committed", "tags": ["a"]}
    fact_id = memory.commit(Fact(type="free", payload=payload))
    payload["tags"].append("b")  # type: ignore[attr-defined]
    stored = memory.get(fact_id)
    assert stored is not None
    stored.payload["tags"].append("c")
    again = memory.get(fact_id)
    assert again is not None
    assert again.payload["tags"] == ["a"]


def test_unregistered_types_pass_unless_strict(open_store: Opener) -> None:
    assert open_store().commit(Fact(type="anything", payload={})) != ""
    strict = open_store(strict=True)
    strict.register_schema("note", Note)
    before = strict.log()
    with pytest.raises(ValidationFailed, match=r"'other'.*note"):
        strict.commit(Fact(type="other", payload={}))
    assert strict.log() == before
    strict.commit(note("fine"))


class Stranger(BaseModel):
    content: str


def test_commit_model(memory: MemoryStore) -> None:
    fact_id = memory.commit_model(
        Preference(content="x", topic="r"), fact_id="p1", source="chat", session_id="s", namespace=("u",), actor="a"
    )
    fact = memory.get(fact_id)
    assert fact is not None
    assert (fact.id, fact.type, fact.source, fact.session_id, fact.namespace) == (
        "p1",
        "preference",
        "chat",
        "s",
        ("u",),
    )
    with pytest.raises(MemoryStoreError, match=r"Stranger.*register_schema"):
        memory.commit_model(Stranger(content="x"))


def test_update_merges_fields(memory: MemoryStore) -> None:
    fact_id = memory.commit_model(Preference(content="x", topic="r"), session_id="s")
    memory.update(fact_id, {"payload": {"weight": 5}, "source": "later"})
    memory.update(fact_id, {"content": "y"})
    fact = memory.get(fact_id)
    assert fact is not None
    assert fact.payload == {"content": "y", "topic": "r", "weight": 5}
    assert (fact.source, fact.version, fact.session_id) == ("later", 3, "s")
    with pytest.raises(ValidationFailed, match=r"preference.*weight"):
        memory.update(fact_id, {"weight": "heavy"})
    with pytest.raises(FactNotFound, match="nobody"):
        memory.update("nobody", {"a": 1})
    assert memory.get(fact_id) == fact


def test_delete(memory: MemoryStore) -> None:
    memory.commit(note("one", "n1"), session_id="s")
    assert memory.delete("n1") == "n1"
    assert memory.get("n1") is None
    assert memory.query() == []
    with pytest.raises(FactNotFound, match="n1"):
        memory.delete("n1")
    newest, _ = memory.history("n1")
    assert (newest.op, newest.after, newest.session_id, newest.version) == (Operation.DELETE, None, "s", 2)
    assert newest.before is not None
    assert newest.before.payload["content"] == "one"
    memory.commit(note("again", "n1"))
    fact = memory.get("n1")
    assert fact is not None
    assert fact.version == 3, "a version is never used twice"


def test_expected_version_is_compare_and_set(memory: MemoryStore) -> None:
    memory.commit(note("one", "n1"), expected_version=0)
    with pytest.raises(ConflictError, match="version 0"):
        memory.commit(note("two", "n1"), expected_version=0)
    memory.update("n1", {"content": "two"}, expected_version=1)
    for stale in (0, 1, 3):
        with pytest.raises(ConflictError, match=f"expected version {stale}, but it is at version 2"):
            memory.update("n1", {"content": "three"}, expected_version=stale)
        with pytest.raises(ConflictError):
            memory.delete("n1", expected_version=stale)
        with pytest.raises(ConflictError):
            memory.commit(note("three", "n1"), expected_version=stale)
    with pytest.raises(ConflictError):
        memory.commit(note("new", "n2"), expected_version=1)
    assert texts(memory) == {"n1": "two"}
    memory.delete("n1", expected_version=2)


def test_an_idempotency_key_writes_once(memory: MemoryStore) -> None:
    first = memory.commit(note("one"), idempotency_key="k")
    length = len(memory.log())
    assert memory.commit(note("one"), idempotency_key="k") == first
    assert memory.commit(note("something else"), idempotency_key="k") == first
    assert memory.update(first, {"content": "changed"}, idempotency_key="k2") == first
    assert memory.update(first, {"content": "again"}, idempotency_key="k2") == first
    assert memory.delete(first, idempotency_key="k3") == first
    assert memory.delete(first, idempotency_key="k3") == first, "repeating a deletion is no error"
    assert memory.commit(note("one"), idempotency_key="k") == first, "also when the fact is gone"
    assert len(memory.log()) == length + 2
    assert memory.query() == []


def test_an_idempotency_key_outlives_the_process(reopen: Opener) -> None:
    first = reopen().commit(note("one"), idempotency_key="k")
    again = reopen()
    assert again.commit(note("one"), idempotency_key="k") == first
    assert len(again.log()) == 1


def test_a_hook_may_veto(open_store: Opener) -> None:
    seen: list[tuple[str, str, str]] = []

    def hook(operation: Operation, fact_id: str, fact: Fact) -> None:
        seen.append((operation, fact_id, fact.payload["content"]))
        if fact.payload["content"] == "forbidden":
            raise ValueError("not this one")

    memory = open_store(hook)
    memory.commit(note("allowed", "n1"))
    attempts: list[Callable[[], object]] = [
        lambda: memory.commit(note("forbidden")),
        lambda: memory.update("n1", {"content": "forbidden"}),
        lambda: memory.commit(note("forbidden", "n1")),
    ]
    for attempt in attempts:
        with pytest.raises(HookError, match="not this one") as caught:
            attempt()
        assert isinstance(caught.value.__cause__, ValueError)
    assert texts(memory) == {"n1": "allowed"}
    assert len(memory.log()) == 1
    memory.delete("n1")
    memory.rollback(1)
    assert seen[0] == (Operation.COMMIT, "n1", "allowed")
    assert [operation for operation, *_ in seen[-2:]] == [Operation.DELETE, Operation.ROLLBACK]


# --- ephemeral facts


def test_promote_makes_ephemeral_facts_ordinary(memory: MemoryStore) -> None:
    for i in range(3):
        memory.commit(note(f"e{i}", f"e{i}"), session_id="s", ephemeral=True)
    memory.commit(note("other", "o"), session_id="other", ephemeral=True)
    assert [entry.op for entry in memory.log(limit=1)] == [Operation.COMMIT_EPHEMERAL]
    assert memory.promote("s", ["e1"]) == ["e1"]
    with pytest.raises(FactNotFound, match="e1"):
        memory.promote("s", ["e0", "e1"])
    with pytest.raises(FactNotFound, match="o"):
        memory.promote("s", ["o"])
    assert sorted(memory.promote("s")) == ["e0", "e2"]
    assert memory.promote("s") == []
    assert {key: fact.ephemeral for key, fact in live(memory).items()} == {
        "e0": False,
        "e1": False,
        "e2": False,
        "o": True,
    }
    assert memory.discard_session("s") == 0
    memory.rollback(1, session_id="s")
    assert memory.discard_session("s") == 2
    assert_in_step(memory)


def test_discard_session_is_one_step_and_rollback_brings_the_facts_back(memory: MemoryStore) -> None:
    memory.commit(note("stays", "p"), session_id="s")
    for i in range(3):
        memory.commit(note(f"e{i}", f"e{i}"), session_id="s", ephemeral=True)
    before = live(memory)
    assert memory.discard_session("s") == 3
    assert set(live(memory)) == {"p"}
    assert len({entry.tx for entry in memory.log(limit=3)}) == 1
    assert sorted(memory.rollback(1, session_id="s")) == ["e0", "e1", "e2"]
    after = {key: fact.model_copy(update={"version": before[key].version}) for key, fact in live(memory).items()}
    assert after == before
    assert all(fact.ephemeral for key, fact in after.items() if key != "p")
    assert memory.discard_session("nobody") == 0
    assert replayed(memory) == live(memory)


def test_an_update_keeps_a_fact_ephemeral_only_if_it_says_so(memory: MemoryStore) -> None:
    memory.commit(note("one", "e"), session_id="s", ephemeral=True)
    memory.update("e", {"content": "two"})
    fact = memory.get("e")
    assert fact is not None
    assert fact.ephemeral
    memory.commit(note("three", "e"))
    fact = memory.get("e")
    assert fact is not None
    assert not fact.ephemeral
    memory.commit(note("four", "e"), ephemeral=True)
    fact = memory.get("e")
    assert fact is not None
    assert not fact.ephemeral, "what was kept for good does not become ephemeral again"


def test_a_hook_that_must_be_awaited_is_not_silently_passed(open_store: Opener) -> None:
    async def veto(operation: Operation, fact_id: str, fact: Fact) -> None:
        raise ValueError("refused after all")

    memory = open_store(veto)
    with pytest.raises(HookError, match=r"refused after all|awaited"):
        memory.commit(note("one"))
    assert memory.log() == []


def test_two_vector_stores_are_in_step_or_nothing_is(open_store: Opener) -> None:
    first, second = Unreliable(), Unreliable()
    hooks = [hook_over(vectors, name=name, grace=0.0, late=0.0) for vectors, name in ((first, "1"), (second, "2"))]
    memory = open_store(*hooks)
    memory.commit(note("one", "a"))
    for mood in ("refused", "applied"):
        second.mood = mood
        with pytest.raises(HookError, match="'2'"):
            memory.commit(note("two", "b"))
        assert_in_step(memory)
    second.mood = "ok"
    memory.commit(note("two", "b"))
    memory.update("a", {"content": "three"})
    assert_in_step(memory)
    assert memory.repair().ok
    assert len(first.store) == len(second.store) == 2
