"""A node is a transaction: what it writes to memory lands with its result, exactly once, or never was."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send, interrupt

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    ConflictError,
    Fact,
    HookError,
    MemoryStore,
    MemStateCheckpointer,
    SQLiteStorage,
    ValidationFailed,
)
from memstate_langgraph.staging import STAGES
from tests.graphs import AGAIN, CONFIG, DURABILITIES, Durability, State, contents, line, nested, outside, say, views
from tests.models import note
from tests.stores import SQLITE, Place, Unreliable, assert_in_step, hook_over


@pytest.fixture
def memory(graphs_memory: MemoryStore) -> MemoryStore:
    return graphs_memory


# --- what is seen, by whom


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_task_and_what_follows_see_its_writes_and_nobody_else(memory: MemoryStore, durability: Durability) -> None:
    def writes(state: State) -> State:
        memory.commit(note("first", "a"))
        memory.commit(note("second", "b"))
        memory.update("a", {"content": "changed"})
        return {"seen": [views(memory), outside(lambda: views(memory)), memory.get("a") is not None]}

    def reads(state: State) -> State:
        memory.delete("b")
        return {"seen": [views(memory)]}

    app = line(memory, writes, reads)
    seen = app.invoke({"seen": []}, CONFIG, durability=durability)["seen"]
    assert seen[0] == (["second", "changed"], ["changed", "second"])
    assert seen[1] == ([], [])
    assert seen[2] is True
    assert seen[3] == (["changed"], ["changed"])
    assert views(memory) == (["changed"], ["changed"])
    assert contents(memory, as_of=app.get_state(CONFIG).config) == ["changed"], (
        "a checkpoint follows what it is made of"
    )
    assert_in_step(memory)


def test_each_call_stays_a_step_that_rollback_undoes(memory: MemoryStore) -> None:
    def writes(state: State) -> State:
        memory.commit(note("one", "a"))
        with memory.transaction() as tx:
            tx.commit(note("two", "b"))
            tx.commit(note("three", "c"))
            assert tx.get("a") is not None
        return {}

    line(memory, writes).invoke({}, CONFIG)
    assert len({entry.tx for entry in memory.log()}) == 2
    assert sorted(memory.rollback(1)) == ["b", "c"]
    assert contents(memory) == ["one"]


def test_rollback_inside_a_task_undoes_what_the_task_wrote(memory: MemoryStore) -> None:
    memory.commit(note("old", "o"))

    def writes(state: State) -> State:
        memory.commit(note("one", "a"))
        memory.commit(note("two", "b"))
        assert memory.rollback(2) == ["b", "a"]
        assert views(memory) == (["old"], ["old"])
        assert memory.rollback(1) == ["o"]
        assert views(memory) == ([], [])
        return {}

    line(memory, writes).invoke({}, CONFIG)
    assert views(memory) == ([], [])
    assert_in_step(memory)


def test_entries_know_the_task_that_made_them(memory: MemoryStore) -> None:
    app = line(memory, lambda state: {"said": [memory.commit(note("one", "a"))]})
    app.invoke({}, {**CONFIG, "run_id": uuid.uuid4()})
    (entry,) = memory.log()
    ran_on = list(app.get_state_history(CONFIG))[1]
    assert entry.cause.thread_id == "t"
    assert entry.cause.checkpoint_ns == ""
    assert entry.cause.checkpoint_id == ran_on.config["configurable"]["checkpoint_id"]
    assert entry.cause.task_id == ran_on.tasks[0].id
    assert entry.cause.node == "n0"


# --- what fails leaves nothing


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_failed_task_leaves_nothing_and_its_next_run_begins_afresh(
    memory: MemoryStore, vectors: Unreliable, durability: Durability
) -> None:
    broken = True

    def writes(state: State) -> State:
        before = contents(memory)
        memory.commit(Fact(type="note", payload={"content": uuid.uuid4().hex}))
        if broken:
            raise RuntimeError("boom")
        return {"seen": before}

    app = line(memory, writes)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            app.invoke({}, CONFIG, durability=durability)
    assert views(memory) == ([], [])
    broken = False
    assert app.invoke(None, CONFIG, durability=durability)["seen"] == []
    assert len(contents(memory)) == 1
    memory.repair()
    assert len(vectors.store) == 1


@pytest.mark.parametrize("durability", DURABILITIES)
def test_of_several_attempts_only_the_last_counts(memory: MemoryStore, durability: Durability) -> None:
    attempts: list[list[str]] = []

    def writes(state: State) -> State:
        attempts.append(contents(memory))
        content = uuid.uuid4().hex
        memory.commit(Fact(type="note", payload={"content": content}))
        if len(attempts) < 3:
            raise ValueError("again")
        return {"said": [content]}

    app = line(memory, writes, retry_policy=AGAIN)
    said = app.invoke({}, CONFIG, durability=durability)["said"]
    assert attempts == [[], [], []]
    assert views(memory) == (said, said)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_what_a_broken_off_run_left_is_never_seen_nor_stored(memory: MemoryStore, durability: Durability) -> None:
    broken = True

    def writes(state: State) -> State:
        before = contents(memory)
        content = say(memory, "run")
        if broken:
            raise KeyboardInterrupt
        return {"seen": [before], "said": [content]}

    app = line(memory, writes, lambda state: {"seen": [contents(memory)]})
    with pytest.raises(KeyboardInterrupt):
        app.invoke({}, CONFIG, durability=durability)
    left = dict(STAGES.by_thread)
    assert left, "a run that is broken off cannot say so"
    broken = False
    end = app.invoke({"said": []}, CONFIG, durability=durability)  # not resumed: a new input, new tasks
    assert end["seen"] == [[], end["said"]]
    assert contents(memory) == end["said"]
    STAGES.by_thread.clear()


@pytest.mark.parametrize("durability", DURABILITIES)
def test_an_interrupted_task_writes_when_it_is_resumed(
    memory: MemoryStore, vectors: Unreliable, durability: Durability
) -> None:
    def asks(state: State) -> State:
        memory.commit(Fact(type="note", payload={"content": "before asking"}))
        return {"said": [interrupt("really?")]}

    app = line(memory, lambda state: {"said": [memory.commit(note("earlier", "e"))]}, asks)
    app.invoke({}, CONFIG, durability=durability)
    assert contents(memory) == ["earlier"]
    assert not STAGES.by_thread
    memory.repair()
    assert len(vectors.store) == 1
    app.invoke(Command(resume="yes"), CONFIG, durability=durability)
    assert views(memory) == (["earlier", "before asking"], ["before asking", "earlier"])


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_neighbour_that_fails_takes_nothing_from_those_that_did_not(
    memory: MemoryStore, durability: Durability
) -> None:
    broken = True
    done = threading.Event()

    def work(state: Any) -> State:
        content = f"{state['name']} {uuid.uuid4().hex}"
        memory.commit(Fact(type="note", payload={"content": content}))
        if state["name"] == "bad" and broken:
            done.wait(5)
            raise RuntimeError("boom")
        done.set()
        return {"said": [content]}

    graph = StateGraph(State)
    graph.add_node("plan", lambda state: {})
    graph.add_node("work", work)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda _: [Send("work", {"name": name}) for name in ("good", "bad")], ["work"])
    app = graph.compile(checkpointer=MemStateCheckpointer(memory))
    with pytest.raises(RuntimeError):
        app.invoke({}, CONFIG, durability=durability)
    broken = False
    said = app.invoke(None, CONFIG, durability=durability)["said"]
    assert len(said) == 2
    assert sorted(contents(memory)) == sorted(said)
    assert_in_step(memory)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("own", [None, True, False], ids=["inherits", "its own", "none"])
def test_a_subgraph_lands_with_its_own_steps(memory: MemoryStore, durability: Durability, own: bool | None) -> None:
    if own is False and durability == "sync":
        pytest.skip("LangGraph 1.2 itself fails there")
    inner = StateGraph(State)
    for name, following in (("one", "two"), ("two", None)):
        inner.add_node(name, lambda state, name=name: {"said": [say(memory, name)], "seen": [contents(memory)]})
        if following:
            inner.add_edge(name, following)
    inner.add_edge(START, "one")
    graph = StateGraph(State)
    graph.add_node("before", lambda state: {"said": [say(memory, "before")]})
    graph.add_node("sub", inner.compile(checkpointer=own))
    graph.add_node("after", lambda state: {"seen": [contents(memory)]})
    graph.add_edge(START, "before")
    graph.add_edge("before", "sub")
    graph.add_edge("sub", "after")
    app = graph.compile(checkpointer=MemStateCheckpointer(memory))
    end = app.invoke({}, CONFIG, durability=durability)
    if (own, durability) != (True, "exit"):  # a subgraph with a memory of its own stores its end itself, first
        assert [view[-1].split()[0] for view in end["seen"]] == ["one", "two", "two"]
    assert [len(view) for view in end["seen"]] == [2, 3, 3]
    assert set(end["said"]) == set(contents(memory))
    assert len(contents(memory)) == 3


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_subgraph_that_fails_keeps_the_steps_that_it_finished(memory: MemoryStore, durability: Durability) -> None:
    broken = True

    def two(state: State) -> State:
        content = say(memory, "two")
        if broken:
            raise RuntimeError("boom")
        return {"said": [content]}

    inner = StateGraph(State)
    inner.add_node("one", lambda state: {"said": [say(memory, "one")]})
    inner.add_node("two", two)
    inner.add_edge(START, "one")
    inner.add_edge("one", "two")
    app = nested(inner, MemStateCheckpointer(memory))
    with pytest.raises(RuntimeError):
        app.invoke({}, CONFIG, durability=durability)
    assert [content.split()[0] for content in contents(memory)] == ["one"]
    assert contents(memory, as_of=app.get_state(CONFIG).config) == [], "what a step did follows what it ran on"
    broken = False
    said = app.invoke(None, CONFIG, durability=durability)["said"]
    assert [content.split()[0] for content in said] == ["one", "two"]
    assert contents(memory) == said


def test_functions_and_their_tasks_are_transactions_too(memory: MemoryStore) -> None:
    broken = True

    @task
    def work(name: str) -> str:
        return say(memory, name)

    @entrypoint(checkpointer=MemStateCheckpointer(memory))
    def main(names: list[str]) -> list[str]:
        said = [work(name).result() for name in names]
        own = say(memory, "main")
        if broken:
            raise RuntimeError("boom")
        return [*said, own, str(len(contents(memory)))]

    with pytest.raises(RuntimeError):
        main.invoke(["a", "b"], CONFIG)
    assert [content.split()[0] for content in contents(memory)] == ["a", "b"]
    broken = False
    *said, seen = main.invoke(None, CONFIG)
    assert seen == "3"
    assert sorted(said) == sorted(contents(memory))


def test_a_result_that_is_stored_after_its_caller_failed_lands(memory: MemoryStore) -> None:
    class Slow(MemStateCheckpointer):
        def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            if writes[0][0] == "__return__":
                time.sleep(0.3)  # the caller's error is stored first
            super().put_writes(config, writes, task_id, task_path)

    @task
    def work(name: str) -> str:
        return say(memory, name)

    @entrypoint(checkpointer=Slow(memory))
    def main(name: str) -> str:
        work(name).result()
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        main.invoke("a", CONFIG)
    assert [content.split()[0] for content in contents(memory)] == ["a"]


# --- what can only be decided when it lands


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_key_that_another_took_meanwhile_is_an_update(memory: MemoryStore, durability: Durability) -> None:
    def writes(state: State) -> State:
        memory.commit(Fact(type="preference", payload={"topic": "r", "content": "mine"}))
        outside(lambda: memory.commit(Fact(type="preference", payload={"topic": "r", "content": "theirs"})))
        return {}

    line(memory, writes).invoke({}, CONFIG, durability=durability)
    (fact,) = memory.query("preference")
    assert (fact.payload["content"], fact.version) == ("mine", 2)
    assert_in_step(memory)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_conflict_is_an_error_of_the_run_with_nothing_half_done(memory: MemoryStore, durability: Durability) -> None:
    memory.commit(note("one", "a"))
    meddle = True

    def writes(state: State) -> State:
        say(memory, "with it")
        memory.update("a", {"content": "mine"}, expected_version=1 if meddle else 2)
        if meddle:
            outside(lambda: memory.update("a", {"content": "theirs"}))
        return {"said": ["done"]}

    app = line(memory, writes)
    with pytest.raises(ConflictError, match="expected version 1"):
        app.invoke({}, CONFIG, durability=durability)
    assert contents(memory) == ["theirs"]
    assert_in_step(memory)
    meddle = False
    assert app.invoke(None if app.get_state(CONFIG).next else {}, CONFIG, durability=durability)["said"][-1] == "done"
    assert contents(memory)[-1] == "mine"


def test_what_is_wrong_is_said_at_once(memory: MemoryStore, vectors: Unreliable) -> None:
    def writes(state: State) -> State:
        with pytest.raises(ValidationFailed, match="content"):
            memory.commit(Fact(type="note", payload={"content": 7}))
        vectors.mood = "refused"
        with pytest.raises(HookError):
            say(memory, "lost")
        vectors.mood = "ok"
        return {"said": [say(memory, "kept")]}

    said = line(memory, writes).invoke({}, CONFIG)["said"]
    assert contents(memory) == said


def test_a_slow_task_outlives_its_lease(durable: Place, tmp_path: Path, vectors: Unreliable) -> None:
    memory = durable.open(tmp_path, [hook_over(vectors, lease=0.0, grace=0.0, late=0.0)])
    app = line(memory, lambda state: {"said": [say(memory, "slow")], "seen": [outside(lambda: str(memory.repair()))]})
    said = app.invoke({}, CONFIG)["said"]
    assert [hit.fact.payload["content"] for hit in memory.search("x")] == said
    assert memory.repair().ok
    assert len(vectors.store) == 1
    memory.close()


# --- where it does not apply


def test_immediate_writes_do_not_wait(memory: MemoryStore) -> None:
    def writes(state: State) -> State:
        memory.commit(note("at once", "a"), immediate=True)
        with memory.transaction(immediate=True) as tx:
            tx.commit(note("this too", "b"))
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        line(memory, writes).invoke({}, CONFIG)
    assert contents(memory) == ["at once", "this too"]


def test_with_another_checkpointer_writes_are_as_outside_a_graph(memory: MemoryStore, tmp_path: Path) -> None:
    def writes(state: State) -> State:
        say(memory, "at once")
        raise RuntimeError("boom")

    graph = StateGraph(State)
    graph.add_node("n", writes)
    graph.add_edge(START, "n")
    other = MemStateCheckpointer(MemoryStore(SQLiteStorage(tmp_path / "other.db")))
    for saver in (None, InMemorySaver(), other):
        with pytest.raises(RuntimeError):
            graph.compile(checkpointer=saver).invoke({}, CONFIG)
    assert len(contents(memory)) == 3
    other.close()


@pytest.mark.parametrize("durable", [SQLITE], ids=[SQLITE.name])
def test_two_stores_on_one_file_take_part(memory: MemoryStore, tmp_path: Path) -> None:
    """A checkpointer of its own on the same file, as `from_conn_string` makes it."""

    def writes(state: State) -> State:
        say(memory, "waits")
        raise RuntimeError("boom")

    graph = StateGraph(State)
    graph.add_node("n", writes)
    graph.add_edge(START, "n")
    with (
        MemStateCheckpointer.from_conn_string(str(tmp_path / "." / "state.db")) as saver,
        pytest.raises(RuntimeError),
    ):
        graph.compile(checkpointer=saver).invoke({}, CONFIG)
    assert contents(memory) == []


# --- the async door


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_the_same_through_the_async_door(tmp_path: Path, vectors: Unreliable, durability: Durability) -> None:
    memory = AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "state.db"), [hook_over(vectors, grace=0.0, late=0.0)])
    attempts = 0

    async def writes(state: State) -> State:
        nonlocal attempts
        attempts += 1
        content = uuid.uuid4().hex
        await memory.commit(Fact(type="note", payload={"content": content}))
        assert len(await memory.search("x")) == 1
        if attempts == 1:
            raise ValueError("again")
        return {"said": [content]}

    async def reads(state: State) -> State:
        return {"seen": [fact.payload["content"] for fact in await memory.query("note")]}

    graph = StateGraph(State)
    graph.add_node("writes", writes, retry_policy=AGAIN)
    graph.add_node("reads", reads)
    graph.add_edge(START, "writes")
    graph.add_edge("writes", "reads")
    app = graph.compile(checkpointer=MemStateCheckpointer(memory))
    end = await app.ainvoke({}, CONFIG, durability=durability)
    assert end["seen"] == end["said"]
    assert [fact.payload["content"] for fact in await memory.query("note")] == end["said"]
    await memory.repair()
    assert len(vectors.store) == 1
    await memory.close()
