"""Schema evolution: old facts are read through their upcast everywhere, and rewritten by `repair(upcast=True)`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel

from memstate_langgraph import (
    ConflictError,
    Constraint,
    Fact,
    InMemoryStorage,
    MemoryStore,
    SQLiteStorage,
    UpcastFailed,
    ValidationFailed,
    create_memory_tools,
)
from tests.conftest import Opener
from tests.models import Note
from tests.stores import Unreliable, assert_in_step, hook_over, replayed


class Person1(BaseModel):
    name: str
    age: str


class Person2(BaseModel):
    name: str
    years: int


class Person3(BaseModel):
    content: str
    years: int
    adult: bool


def to_2(old: dict[str, Any]) -> dict[str, Any]:
    return {"name": old["name"], "years": int(old["age"])}


def to_3(old: dict[str, Any]) -> dict[str, Any]:
    old["content"] = old.pop("name")  # in place, as people do
    return {**old, "adult": old["years"] >= 18}


STEPS = {1: to_2, 2: to_3}


def first(memory: MemoryStore, constraint: Constraint | None = None) -> None:
    memory.register_schema("person", Person1, constraint)


def second(memory: MemoryStore, constraint: Constraint | None = None) -> None:
    memory.register_schema("person", Person2, constraint, version=2, upcast=to_2)


def third(memory: MemoryStore, constraint: Constraint | None = None) -> None:
    memory.register_schema("person", Person3, constraint, version=3, upcast=STEPS)


def person(name: str, age: int, **fields: Any) -> Fact:
    return Fact(type="person", payload={"name": name, "age": str(age)}, **fields)


def stored(memory: MemoryStore) -> dict[str, int]:
    """The schema version at which each fact is stored, as a program without the type sees it."""
    schemas, memory.rules._schemas = memory.rules._schemas, {}
    try:
        return {fact.id: fact.schema_version for fact in memory.query()}
    finally:
        memory.rules._schemas = schemas


def test_everything_that_shows_a_payload_shows_the_new_one(memory: MemoryStore, vectors: Unreliable) -> None:
    memory.add_hook(hook_over(vectors))
    first(memory)
    memory.commit(person("ana", 30, id="a"), session_id="s")
    before = memory.log(limit=1)[0].seq
    memory.update("a", {"age": "31"}, session_id="s")
    third(memory)
    memory.commit(Fact(type="person", payload={"content": "bob", "years": 9, "adult": False}, id="b"))
    new = {"content": "ana", "years": 31, "adult": True}
    (found,) = memory.query("person", {"payload.content": "ana"})
    assert (found.payload, found.schema_version, found.version) == (new, 3, 2)
    assert memory.get("a") == found
    assert memory.get("a", as_of=before).payload["years"] == 30  # type: ignore[union-attr]
    assert [fact.payload["years"] for fact in memory.query(as_of=before)] == [30]
    update, commit = memory.history("a")
    assert commit.after is not None
    assert (update.before, update.after) == (commit.after, found)
    assert {entry.after.schema_version for entry in memory.log() if entry.after} == {3}
    (changed,) = memory.diff(before, before + 1).changes
    assert changed.fields() == ["years: 30 -> 31"]
    assert "adult: true" in memory._repr_html_()
    memory.repair()  # the hook's field is new: what lacked a text has one
    assert [hit.fact.payload for hit in memory.search("ana", limit=1)] == [new]
    assert [hit.fact.payload["years"] for hit in memory.search("ana", as_of=before)] == [30]
    with memory.transaction() as tx:
        tx.update("a", {"years": 7})
        assert tx.get("a").payload == {**new, "years": 7}  # type: ignore[union-attr]
    assert stored(memory) == {"a": 3, "b": 3}
    assert_in_step(memory)


def test_tools_and_nodes_show_the_new_payload() -> None:
    memory = MemoryStore(InMemoryStorage(), [hook_over(Unreliable())])
    memory.register_schema("note", Note)
    memory.commit(Fact(type="note", payload={"content": "tea"}, namespace=("memories", "u")))

    class Note2(BaseModel):
        content: str
        importance: int

    memory.register_schema(
        "note", Note2, version=2, upcast=lambda old: {"content": old["content"] + "!", "importance": 5}
    )
    recall = next(tool for tool in create_memory_tools(memory) if tool.name == "recall")
    told = recall.invoke({"query": "tea"}, {"configurable": {"user_id": "u", "thread_id": "t"}})
    assert "tea!" in str(told)
    assert "importance" in str(told)


@settings(max_examples=60)
@given(
    ages=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=12),
    least=st.integers(0, 40),
    limit=st.none() | st.integers(0, 6),
    newest=st.booleans(),
)
def test_filters_see_the_new_payload(ages: list[tuple[int, bool]], least: int, limit: int | None, newest: bool) -> None:
    """Whatever mixture of versions is stored: the answer is that of a list of new payloads."""
    memory = MemoryStore(InMemoryStorage())
    first(memory)
    for i, (age, _) in enumerate(ages):
        memory.commit(person(str(i), age, id=f"p{i}"))
    third(memory)
    order = [i for i, (_, rewritten) in enumerate(ages) if not rewritten]
    for i, (age, rewritten) in enumerate(ages):
        if rewritten:
            order.append(i)
            memory.commit(
                Fact(type="person", id=f"p{i}", payload={"content": str(i), "years": age, "adult": age >= 18})
            )
    wanted = [f"p{i}" for i in order if ages[i][0] >= least and ages[i][0] >= 18]
    filters = {"payload.years": {"$gte": least}, "payload.adult": True, "type": "person"}
    assert [fact.id for fact in memory.query("person", filters, limit=limit)] == wanted[:limit]
    assert [fact.id for fact in memory.query(None, filters, limit=limit)] == wanted[:limit]
    assert memory.query("person", {"payload.age": {"$exists": True}}) == []


def test_filters_with_a_limit_on_every_storage(memory: MemoryStore) -> None:
    first(memory)
    memory.commit_many([person(str(i), i, id=f"p{i:03}") for i in range(250)])
    second(memory)
    assert [fact.id for fact in memory.query("person", {"payload.years": {"$gte": 240}}, limit=2)] == ["p240", "p241"]
    assert [fact.id for fact in memory.query(filters={"payload.years": 7, "id": "p007"})] == ["p007"]


def test_verify_counts_the_old_and_repair_rewrites_them(memory: MemoryStore, vectors: Unreliable) -> None:
    memory.add_hook(hook_over(vectors))
    first(memory)
    memory.commit_many([person(f"name{i}", i, id=f"p{i}") for i in range(3)], session_id="s")
    third(memory)
    memory.commit(Fact(type="person", payload={"content": "new", "years": 1, "adult": False}))
    report = memory.verify()
    assert report.outdated == 3
    assert "3 facts of an earlier schema version" in str(report)
    assert "earlier schema version" in report._repr_html_()
    told: list[tuple[str, int, int]] = []
    report = memory.repair(lambda *step: told.append(step), upcast=True)
    assert (report.outdated, report.ok) == (0, True)
    assert ("rewriting old facts", 3, 3) in told
    assert set(stored(memory).values()) == {3}
    written = [entry for entry in memory.log() if entry.op == "UPCAST"]
    assert {(entry.actor, entry.session_id) for entry in written} == {("repair", "s")}
    assert len({entry.tx for entry in written}) == 1
    assert memory.search("name1", limit=1)[0].fact.id == "p1"  # its text is embedded now
    assert_in_step(memory)
    again = len(memory.log())
    assert memory.repair(upcast=True).ok
    assert len(memory.log()) == again


def test_rewriting_is_no_step_and_in_nobodys_way(memory: MemoryStore) -> None:
    first(memory)
    memory.commit(person("ana", 30, id="a"), session_id="s")
    memory.update("a", {"age": "31"}, session_id="s")
    second(memory)
    memory.repair(upcast=True)
    memory.update("a", {"years": 32}, session_id="s")
    memory.rollback(1, session_id="s")
    assert memory.get("a").payload == {"name": "ana", "years": 31}  # type: ignore[union-attr]
    assert stored(memory) == {"a": 2}
    memory.rollback(1, session_id="s")  # the update before the rewriting: the exact old payload at its old version
    assert memory.get("a").payload == {"name": "ana", "years": 30}  # type: ignore[union-attr]
    assert stored(memory) == {"a": 1}
    assert replayed(memory)["a"].payload == {"name": "ana", "years": 30}
    memory.rollback(1, session_id="s")
    assert memory.query() == []
    assert_in_step(memory)


def test_an_update_of_an_old_fact_writes_a_new_one(memory: MemoryStore) -> None:
    first(memory)
    memory.commit(person("ana", 30, id="a"))
    second(memory)
    memory.update("a", {"years": 31})
    assert stored(memory) == {"a": 2}
    assert memory.get("a").payload == {"name": "ana", "years": 31}  # type: ignore[union-attr]


def test_what_rollback_brings_back_is_searchable_as_it_is_read(memory: MemoryStore, vectors: Unreliable) -> None:
    first(memory)
    memory.commit(person("ana", 30, id="a"), session_id="s")
    third(memory)
    memory.update("a", {"content": "bob"}, session_id="s")
    memory.add_hook(hook_over(vectors))  # it embeds `content`, which the old payload has not
    memory.rollback(1, session_id="s")
    assert stored(memory) == {"a": 1}
    assert [hit.fact.payload["content"] for hit in memory.search("ana")] == ["ana"]
    assert_in_step(memory)


def test_a_transaction_shows_what_it_brings_back_as_it_is_read(memory: MemoryStore) -> None:
    first(memory)
    memory.commit(person("ana", 30, id="a"), session_id="s", ephemeral=True)
    second(memory)
    with memory.transaction(session_id="s") as tx:
        tx.promote("s")
        assert tx.get("a").payload == {"name": "ana", "years": 30}  # type: ignore[union-attr]
    assert stored(memory) == {"a": 1}


def test_an_upcast_may_change_what_it_is_given(memory: MemoryStore) -> None:
    second(memory)
    memory.commit(Fact(type="person", id="a", payload={"name": "ana", "years": 30}))
    third(memory)
    assert memory.verify().ok
    assert memory.query("person", {"payload.adult": True})


def test_a_renamed_singleton_key_finds_the_old_fact(memory: MemoryStore) -> None:
    first(memory, Constraint(singleton_key="name"))
    fact_id = memory.commit(person("ana", 30))
    third(memory, Constraint(singleton_key="content"))
    again = Fact(type="person", payload={"content": "ana", "years": 31, "adult": True})
    assert memory.commit(again) == fact_id
    memory.rollback(1)
    assert memory.repair(upcast=True).ok
    assert memory.commit(again) == fact_id
    assert len(memory.query("person")) == 1


def test_an_upcast_may_not_change_the_singleton_key(memory: MemoryStore) -> None:
    first(memory, Constraint(singleton_key="name"))
    memory.commit(person("Ana", 30, id="a"))
    memory.register_schema(
        "person", Person2, Constraint(singleton_key="name"), version=2, upcast=lambda old: to_2({**old, "name": "ana"})
    )
    with pytest.raises(UpcastFailed, match=r"fact a .*singleton key 'name' from \"Ana\" to 'ana'"):
        memory.query("person")


def test_immutable_facts_are_rewritten_too(memory: MemoryStore) -> None:
    immutable = Constraint(immutable=True)
    first(memory, immutable)
    memory.commit(person("ana", 30, id="a"))
    second(memory, immutable)
    same = Fact(type="person", id="a", payload={"name": "ana", "years": 30})
    assert memory.commit(same) == "a"  # saying the same again changes nothing
    assert memory.repair(upcast=True).outdated == 0
    with pytest.raises(ConflictError, match="Immutable"):
        memory.update("a", {"years": 31})
    assert memory.commit(same) == "a"


@pytest.mark.parametrize(
    ("upcast", "why"),
    [
        (lambda old: {"name": old["nom"], "years": 1}, "KeyError"),
        (lambda old: {"name": old["name"]}, "field years"),
        (lambda old: None, "gave NoneType, not a dict"),
        (lambda old: {"name": object(), "years": 1}, "field name"),
    ],
)
def test_an_upcast_that_fails_names_fact_and_versions(memory: MemoryStore, upcast: Any, why: str) -> None:
    first(memory)
    memory.commit(person("ana", 30, id="a"))
    memory.register_schema("person", Person2, version=2, upcast=upcast)
    entries = "fact a of type 'person', version 1: .* from schema version 1 to 2"
    reads: list[Callable[[], object]] = [
        lambda: memory.get("a"),
        lambda: memory.query("person"),
        lambda: memory.query("person", {"payload.years": 1}),
        lambda: memory.history("a"),
        lambda: memory.update("a", {"years": 1}),
    ]
    for read in reads:
        with pytest.raises(UpcastFailed, match=entries) as raised:
            read()
        assert why in str(raised.value)
    report = memory.verify()
    assert not report.ok
    assert "upcast cannot read" in str(report)
    assert memory.repair(upcast=True).outdated == 1  # the rest is rewritten, this one is named
    memory.commit(Fact(type="person", id="a", payload={"name": "ana", "years": 30}))
    memory.delete("a")
    assert memory.verify().ok


def test_an_old_program_does_not_write_over_new_facts(memory: MemoryStore) -> None:
    second(memory)
    memory.commit(Fact(type="person", id="a", payload={"name": "ana", "years": 30}))
    first(memory)
    assert memory.get("a").payload == {"name": "ana", "years": 30}  # type: ignore[union-attr]
    newer = "schema version 2, but this program has registered version 1"
    with pytest.raises(ConflictError, match=newer):
        memory.update("a", {"age": "1"})
    with pytest.raises(ConflictError, match=newer):
        memory.commit(person("ana", 1, id="a"))


@pytest.mark.parametrize(
    "options",
    [
        {"version": 0},
        {"version": True},
        {"version": "2"},
        {"version": 2},
        {"version": 3, "upcast": to_2},
        {"version": 3, "upcast": {1: to_2}},
        {"version": 2, "upcast": {1: to_2, 2: to_3}},
        {"version": 2, "upcast": {1: "x"}},
        {"version": 2, "upcast": 5},
        {"upcast": to_2},
        {"ttl": 0},
        {"ttl": "1h"},
        {"ttl": float("nan")},
    ],
)
def test_what_is_registered_is_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed, match="type 'person'"):
        MemoryStore(InMemoryStorage()).register_schema("person", Person2, **options)


def test_vetoes_see_the_new_payload(memory: MemoryStore) -> None:
    first(memory)
    memory.commit(person("ana", 30, id="a"))
    second(memory)
    seen: list[Any] = []
    memory.add_hook(lambda operation, fact_id, fact: seen.append((operation, fact.payload)))
    memory.delete("a")
    assert seen == [("DELETE", {"name": "ana", "years": 30})]


def test_rewriting_while_others_write(reopen: Opener) -> None:
    memory = reopen()
    first(memory)
    memory.commit_many([person(f"n{i}", i, id=f"p{i}") for i in range(60)])
    other = reopen()
    for store in (memory, other):
        second(store)
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        i = 0
        try:
            while not stop.is_set():
                other.update(f"p{i % 60}", {"name": f"changed {i}"}, session_id="s")
                i += 1
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = memory.repair(upcast=True)
    finally:
        stop.set()
        writer.join()
    assert failures == []
    assert report.outdated == 0
    assert set(stored(memory).values()) == {2}
    assert_in_step(memory)


def test_batches_are_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped midway, what is rewritten stays, and the next one goes on."""
    from memstate_langgraph import care

    monkeypatch.setattr(care, "REBUILD_AT_ONCE", 10)
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    first(memory)
    memory.commit_many([person(f"n{i}", i, id=f"p{i}") for i in range(25)])
    second(memory)

    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 20:
            raise Stopped

    with pytest.raises(Stopped):
        memory.repair(stop, upcast=True)
    assert memory.verify().outdated == 5
    assert memory.repair(upcast=True).outdated == 0
    assert len({entry.tx for entry in memory.log() if entry.op == "UPCAST"}) == 3


def test_the_async_door() -> None:
    from memstate_langgraph import AsyncInMemoryStorage, AsyncMemoryStore

    async def main() -> None:
        memory = AsyncMemoryStore(AsyncInMemoryStorage())
        memory.register_schema("person", Person1)
        await memory.commit(person("ana", 30, id="a"))
        memory.register_schema("person", Person2, version=2, upcast=to_2)
        assert (await memory.repair(upcast=True)).outdated == 0

    asyncio.run(main())
