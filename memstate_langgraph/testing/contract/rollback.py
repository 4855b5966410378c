"""rollback gives back exactly what was, and never takes what someone else did since."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from memstate_langgraph import ConflictError, Fact, HookError, MemoryStore, Operation, ValidationFailed
from memstate_langgraph.testing.models import note
from memstate_langgraph.testing.places import Opener, Unreliable, assert_in_step, found, hook_over, live, texts


def apart_from_version(facts: dict[str, Fact]) -> dict[str, Fact]:
    return {key: fact.model_copy(update={"version": 0}) for key, fact in facts.items()}


def rich(fact_id: str) -> Fact:
    return Fact(
        id=fact_id,
        type="free",
        payload={"content": "before", "n": [1, {"deep": None}], "x": 0.1},
        source="import",
        session_id="s",
        ts=datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        namespace=("users", "ana"),
    )


CHANGES: dict[str, Callable[[MemoryStore], object]] = {
    "update": lambda m: m.update("a", {"payload": {"content": "after", "n": 0}, "source": "else"}),
    "replacement": lambda m: m.commit(
        Fact(id="a", type="free", payload={"y": 1}, namespace=("users", "ana"), source="else"), session_id="t"
    ),
    "deletion": lambda m: m.delete("a"),
    "new fact": lambda m: m.commit(note("new", "b")),
    "new ephemeral fact": lambda m: m.commit(note("new", "b"), session_id="s", ephemeral=True),
    "many": lambda m: m.commit_many([note("new", "b"), note("newer", "b"), note("new", "c")]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_field_is_restored(memory: MemoryStore, change: str) -> None:
    memory.commit(rich("a"))
    before = apart_from_version(live(memory))
    CHANGES[change](memory)
    assert apart_from_version(live(memory)) != before
    memory.rollback(1)
    assert apart_from_version(live(memory)) == before
    assert memory.log(limit=1)[0].op == Operation.ROLLBACK
    assert_in_step(memory)


def test_steps_are_transactions_newest_first(memory: MemoryStore) -> None:
    states = []
    for i in range(6):
        states.append(texts(memory))
        memory.commit(note(f"version {i}", "a"))
    memory.rollback()
    assert texts(memory) == states[5]
    memory.rollback(2)
    assert texts(memory) == states[3]
    memory.commit(note("another branch", "a"))
    memory.rollback(steps=2)
    assert texts(memory) == states[2], "what was undone is not a step"
    assert memory.rollback(0) == []
    assert memory.rollback(100) == ["a"], "fewer steps than asked for are undone if there are no more"
    assert texts(memory) == {}
    assert memory.rollback(1) == []


def test_rollback_appends_and_says_what_it_undid(memory: MemoryStore) -> None:
    memory.commit(note("one", "a"), session_id="s")
    memory.update("a", {"content": "two"}, session_id="s")
    length = len(memory.log())
    memory.rollback(2, session_id="s", actor="ana", reason="a mistake")
    newest, older, *kept = memory.log()
    assert len(kept) == length
    assert [entry.undoes for entry in (newest, older)] == [kept[1].seq, kept[0].seq]
    assert newest.tx == older.tx
    assert (newest.session_id, newest.actor, newest.reason) == ("s", "ana", "a mistake")
    assert [entry.version for entry in memory.history("a")] == [4, 3, 2, 1]


def test_one_session_at_a_time(memory: MemoryStore) -> None:
    for i in range(3):
        memory.commit(note(f"s{i}", f"s{i}"), session_id="s")
        memory.commit(note(f"t{i}", f"t{i}"), session_id="t")
        memory.commit(note(f"n{i}", f"n{i}"))
    assert memory.rollback(2, session_id="s") == ["s2", "s1"]
    assert sorted(texts(memory)) == ["n0", "n1", "n2", "s0", "t0", "t1", "t2"]
    assert memory.rollback(1, session_id="nobody") == []
    assert memory.rollback(2) == ["n2", "t2"]


def test_a_later_change_of_another_session_is_kept_and_named(memory: MemoryStore) -> None:
    memory.commit(note("one", "a"), session_id="s")
    memory.commit(note("mine", "b"), session_id="s")
    memory.update("a", {"content": "theirs"}, session_id="t")
    before, length = live(memory), len(memory.log())
    assert memory.rollback(1, session_id="s") == ["b"], "only the step that they changed is in the way"
    memory.rollback(0)
    with pytest.raises(ConflictError, match=r"a.*'t'"):
        memory.rollback(1, session_id="s")
    assert texts(memory) == {"a": "theirs"}
    memory.rollback(1, session_id="t")
    assert texts(memory) == {"a": "one"}
    memory.rollback(1, session_id="s")
    assert texts(memory) == {}
    assert len(memory.log()) == length + 3
    assert before != live(memory)


def test_all_steps_or_none(memory: MemoryStore) -> None:
    memory.commit(note("one", "a"), session_id="s")
    memory.update("a", {"content": "theirs"}, session_id="t")
    memory.commit(note("two", "b"), session_id="s")
    before, length = live(memory), len(memory.log())
    with pytest.raises(ConflictError):
        memory.rollback(2, session_id="s")
    assert live(memory) == before
    assert len(memory.log()) == length


def test_a_deletion_by_another_session_is_a_change_too(memory: MemoryStore) -> None:
    memory.commit(note("one", "a"), session_id="s")
    memory.delete("a", session_id="t")
    with pytest.raises(ConflictError, match="'t'"):
        memory.rollback(1, session_id="s")
    memory.rollback(1, session_id="t")
    assert texts(memory) == {"a": "one"}


def test_a_key_that_someone_else_took_is_not_taken_back(memory: MemoryStore) -> None:
    mine = memory.commit(Fact(id="mine", type="preference", payload={"topic": "food", "content": "x"}), session_id="s")
    memory.update(mine, {"topic": "drink"}, session_id="s")
    theirs = memory.commit(Fact(type="preference", payload={"topic": "food", "content": "y"}), session_id="t")
    assert theirs != mine
    with pytest.raises(ConflictError, match="'t'"):
        memory.rollback(1, session_id="s")
    memory.rollback(1, session_id="t")
    memory.rollback(1, session_id="s")
    assert {fact.id: fact.payload["topic"] for fact in memory.query()} == {"mine": "food"}
    assert_in_step(memory)


def test_promotion_and_discarding_are_steps(memory: MemoryStore) -> None:
    memory.commit(note("one", "a"), session_id="s", ephemeral=True)
    memory.promote("s")
    memory.rollback(1, session_id="s")
    assert live(memory)["a"].ephemeral
    memory.discard_session("s")
    memory.rollback(1, session_id="s")
    assert live(memory)["a"].ephemeral
    memory.rollback(1, session_id="s")
    assert texts(memory) == {}


def test_search_goes_back_too(open_store: Opener, vectors: Unreliable) -> None:
    memory = open_store(hook_over(vectors))
    memory.commit(note("vegetarian cooking", "a"))
    memory.update("a", {"content": "steel bridges"})
    memory.rollback(1)
    (hit,) = memory.search("cooking")
    assert hit.fact == memory.get("a")
    assert hit.fact.payload["content"] == "vegetarian cooking"
    memory.delete("a")
    assert memory.search("cooking") == []
    memory.rollback(1)
    assert [hit.fact.id for hit in memory.search("cooking")] == ["a"]
    memory.rollback(1)
    assert memory.search("cooking") == []
    assert_in_step(memory)


def test_a_rollback_during_an_outage_changes_nothing(open_store: Opener, vectors: Unreliable) -> None:
    memory = open_store(hook_over(vectors))
    memory.commit(note("one", "a"))
    memory.commit(note("two", "b"))
    memory.delete("a")
    before, length = live(memory), len(memory.log())
    vectors.mood = "applied"
    with pytest.raises(HookError):
        memory.rollback(2)
    vectors.mood = "ok"
    assert live(memory) == before == found(memory)
    assert len(memory.log()) == length
    assert sorted(memory.rollback(2)) == ["a", "b"]
    assert texts(memory) == {"a": "one"}
    assert_in_step(memory)


def test_it_survives_reopening(reopen: Opener) -> None:
    first = reopen()
    for i in range(4):
        first.commit(note(f"version {i}", "a"), session_id="s")
    first.rollback(1, session_id="s")
    second = reopen()
    second.rollback(1, session_id="s")
    assert texts(first) == texts(second) == {"a": "version 1"}


def test_steps_must_be_a_number(memory: MemoryStore) -> None:
    for wrong in (-1, 1.5, "1", None, True, 10**30):
        with pytest.raises(ValidationFailed, match="steps"):
            memory.rollback(wrong)  # type: ignore[arg-type]
