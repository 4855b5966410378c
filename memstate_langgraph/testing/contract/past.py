"""One history: what a cause did is undone, the past is read as it was, a thread and its memories are rewound."""

from __future__ import annotations

import operator
from datetime import UTC, datetime
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph

from memstate_langgraph import (
    Cause,
    ConflictError,
    MemoryStore,
    MemStateCheckpointer,
    StorageError,
    ValidationFailed,
    checkpoints,
)
from memstate_langgraph.ops import LastSeq, Plan
from memstate_langgraph.testing.models import note
from memstate_langgraph.testing.places import Opener, Unreliable, assert_in_step, hook_over, live

CONFIG: RunnableConfig = {"configurable": {"thread_id": "t"}}


def vectored(open_store: Opener) -> MemoryStore:
    return open_store(hook_over(Unreliable(), grace=0.0, late=0.0))


def contents(memory: MemoryStore, **options: Any) -> list[str]:
    return [fact.payload["content"] for fact in memory.query("note", **options)]


# --- undoing by cause


def test_what_a_run_did_is_undone_and_nothing_else(open_store: Opener) -> None:
    memory = vectored(open_store)
    memory.commit(note("before", "a"))
    memory.commit(note("of run 1", "b"), cause=Cause(run_id="1", thread_id="t", tool_call_id="c1"))
    memory.update("a", {"content": "changed by run 2"}, cause=Cause(run_id="2", thread_id="t"))
    memory.commit(note("of nobody", "c"))
    memory.update("b", {"content": "again by run 1"}, cause=Cause(run_id="1", thread_id="t", tool_call_id="c2"))
    assert memory.revert(tool_call_id="c2") == ["b"]
    assert contents(memory) == ["changed by run 2", "of nobody", "of run 1"]
    assert memory.revert(run_id="1") == ["b"]
    assert memory.revert(run_id="1") == []
    assert sorted(contents(memory)) == ["changed by run 2", "of nobody"]
    assert memory.revert(thread_id="t") == ["a"]
    assert sorted(contents(memory)) == ["before", "of nobody"]
    assert_in_step(memory)


def test_only_what_came_since_is_undone(open_store: Opener) -> None:
    memory = vectored(open_store)
    memory.commit(note("first", "a"), cause=Cause(thread_id="t"))
    position = memory.log(limit=1)[0].seq
    memory.commit(note("second", "b"), cause=Cause(thread_id="t"))
    assert memory.revert(thread_id="t", since=position) == ["b"]
    assert contents(memory) == ["first"]


def test_undoing_a_cause_clobbers_nobody(open_store: Opener) -> None:
    memory = vectored(open_store)
    memory.commit(note("of the run", "a"), session_id="mine", cause=Cause(run_id="1"))
    memory.commit(note("of the run too", "b"), session_id="mine", cause=Cause(run_id="1"))
    memory.update("a", {"content": "theirs"}, session_id="other")
    with pytest.raises(ConflictError, match="'other'"):
        memory.revert(run_id="1")
    assert contents(memory) == ["of the run too", "theirs"]
    assert_in_step(memory)
    with pytest.raises(ValidationFailed, match="run_id"):
        memory.revert()


# --- the past


def test_the_past_is_read_as_it_was(open_store: Opener) -> None:
    memory = vectored(open_store)
    assert contents(memory, as_of=0) == []
    seen: list[tuple[int, dict[str, Any], list[str]]] = []

    def remember_now() -> None:
        position = max((entry.seq for entry in memory.log(limit=1)), default=0)
        seen.append((position, live(memory), contents(memory)))

    memory.commit(note("one", "a"))
    remember_now()
    noon = datetime.now(UTC)
    memory.commit(note("two", "b"))
    remember_now()
    memory.update("a", {"content": "changed"})
    remember_now()
    memory.delete("b")
    remember_now()
    memory.rollback(2)
    remember_now()
    memory.repair()  # the vectors of the past are gone now
    for position, facts, told in seen:
        assert contents(memory, as_of=position) == told
        assert {fact.id: fact.version for fact in memory.query(as_of=position)} == {
            fact_id: fact.version for fact_id, fact in facts.items()
        }
        hits = memory.search("two", limit=None, as_of=position)
        assert sorted(hit.fact.payload["content"] for hit in hits) == sorted(told)
        fact = memory.get("b", as_of=position)
        assert (fact is not None) == ("b" in facts)
        assert all(entry.seq <= position for entry in memory.history("a", as_of=position))
    assert contents(memory, as_of=noon) == ["one"]
    assert memory.search("two", as_of=seen[1][0])[0].fact.payload["content"] == "two"


def test_moments_that_are_none_are_named(open_store: Opener) -> None:
    memory = vectored(open_store)
    moments: tuple[Any, ...] = (-1, True, "yesterday", datetime(2026, 1, 1), {"configurable": {}}, CONFIG)  # noqa: DTZ001 -- naive
    for bad in moments:
        with pytest.raises(ValidationFailed, match="as_of"):
            memory.get("a", as_of=bad)


def test_a_difference_tells_what_changed(open_store: Opener) -> None:
    memory = vectored(open_store)
    memory.commit(note("stays", "s"))
    memory.commit(note("goes", "g"))
    memory.commit(note("changes", "c"))
    start = memory.log(limit=1)[0].seq
    memory.delete("g")
    memory.update("c", {"content": "changed"})
    memory.commit(note("new", "n"))
    memory.commit(note("for a moment", "m"))
    memory.delete("m")
    diff = memory.diff(start)
    assert [(change.sign, change.fact_id) for change in diff.changes] == [("-", "g"), ("~", "c"), ("+", "n")]
    assert "content: 'changes' -> 'changed'" in str(diff)
    assert ">~</td>" in diff._repr_html_()
    assert not memory.diff(start, start)
    with pytest.raises(ValidationFailed, match="forward"):
        memory.diff(start + 1, start)


# --- graphs


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]


def chat(memory: MemoryStore) -> Any:
    def listen(state: State) -> State:
        said = state["said"][-1]
        memory.commit(note(said, f"fact {said}"))
        if said != "one":
            memory.update("fact one", {"content": f"one, then {said}"})
        return {"said": [f"heard {said}"]}

    graph = StateGraph(State)
    graph.add_node("listen", listen)
    graph.add_edge(START, "listen")
    return graph.compile(checkpointer=MemStateCheckpointer(memory))


def ends(app: Any) -> list[RunnableConfig]:
    """The checkpoints at which a turn ended, oldest first."""
    return [snapshot.config for snapshot in reversed(list(app.get_state_history(CONFIG))) if not snapshot.next]


def test_memories_are_read_as_of_a_checkpoint(graphs_memory: MemoryStore) -> None:
    memory, app = graphs_memory, chat(graphs_memory)
    told = []
    for said in ("one", "two", "three"):
        app.invoke({"said": [said]}, CONFIG)
        told.append(contents(memory))
    for config, then in zip(ends(app), told, strict=True):
        assert contents(memory, as_of=config) == then
    first, second, _ = ends(app)
    assert [change.fact_id for change in memory.diff(first, second).changes] == ["fact two", "fact one"]


def test_a_thread_and_its_memories_are_rewound_together(graphs_memory: MemoryStore) -> None:
    memory, app = graphs_memory, chat(graphs_memory)
    memory.commit(note("of somebody else", "x"), session_id="other")
    for said in ("one", "two", "three"):
        app.invoke({"said": [said]}, CONFIG)
    first, *_ = ends(app)
    count = len(list(app.get_state_history(CONFIG)))
    head = app.checkpointer.rewind(first)
    assert app.get_state(CONFIG).config["configurable"]["checkpoint_id"] == head["configurable"]["checkpoint_id"]
    assert app.get_state(CONFIG).values == {"said": ["one", "heard one"]}
    assert app.get_state(CONFIG).next == ()
    assert sorted(contents(memory)) == ["of somebody else", "one"]
    assert_in_step(memory)
    assert len(list(app.get_state_history(CONFIG))) == count + 1, "nothing of the history is lost"
    app.invoke({"said": ["four"]}, CONFIG)
    assert app.get_state(CONFIG).values["said"] == ["one", "heard one", "four", "heard four"]
    assert memory.get("fact one").payload["content"] == "one, then four"  # type: ignore[union-attr]
    assert memory.repair().ok


def test_a_rewind_that_would_lose_anothers_change_does_nothing(graphs_memory: MemoryStore) -> None:
    memory, app = graphs_memory, chat(graphs_memory)
    for said in ("one", "two"):
        app.invoke({"said": [said]}, CONFIG)
    memory.update("fact one", {"content": "theirs"}, session_id="other")
    first, *_ = ends(app)
    before, history = contents(memory), len(list(app.get_state_history(CONFIG)))
    with pytest.raises(ConflictError, match="'other'"):
        app.checkpointer.rewind(first)
    assert contents(memory) == before
    assert len(list(app.get_state_history(CONFIG))) == history
    for bad in (CONFIG, {"configurable": {"thread_id": "t", "checkpoint_id": "unknown"}}):
        with pytest.raises(ValidationFailed, match="rewind"):
            app.checkpointer.rewind(bad)


def test_a_rewind_that_fails_at_its_end_did_nothing(
    graphs_memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, app = graphs_memory, chat(graphs_memory)
    for said in ("one", "two"):
        app.invoke({"said": [said]}, CONFIG)
    first, *_ = ends(app)
    before, log = contents(memory), memory.log()

    def fails(*args: Any) -> Plan[Any]:
        yield from LastSeq()
        raise StorageError("the disk is full")

    monkeypatch.setattr(checkpoints, "rewound", fails)
    with pytest.raises(StorageError, match="full"):
        app.checkpointer.rewind(first)
    assert (contents(memory), memory.log()) == (before, log)
    assert_in_step(memory)


# --- looking first


def test_what_an_undo_would_change_is_told_and_then_done(graphs_memory: MemoryStore) -> None:
    memory, app = graphs_memory, chat(graphs_memory)
    for said in ("one", "two", "three"):
        app.invoke({"said": [said]}, CONFIG)
    before = contents(memory)
    first, *_ = ends(app)
    preview = memory.would_undo(thread_id="t", since=first)
    assert str(preview).splitlines() == [
        "3 facts would change",
        "- note fact three  content: 'three', stars: 0",
        "~ note fact one  content: 'one, then three' -> 'one'",
        "- note fact two  content: 'two', stars: 0",
    ]
    assert app.checkpointer.would_rewind(first) == preview
    assert contents(memory) == before, "looking changes nothing"
    assert [one.fact_id for one in memory.would_undo(2).changes] == ["fact one", "fact three"]
    assert memory.revert(thread_id="t", since=first, expected=preview) == ["fact one", "fact three", "fact two"]
    assert contents(memory) == ["one"]
    assert not memory.would_undo(thread_id="t", since=first)


def test_what_was_not_agreed_to_is_not_done(graphs_memory: MemoryStore) -> None:
    memory, app = graphs_memory, chat(graphs_memory)
    for said in ("one", "two"):
        app.invoke({"said": [said]}, CONFIG)
    first, *_ = ends(app)
    step, thread, head = memory.would_undo(), memory.would_undo(thread_id="t"), app.checkpointer.would_rewind(first)
    memory.update("fact two", {"stars": 5}, session_id="t", cause=Cause(thread_id="t", checkpoint_id="~"))
    before = contents(memory)
    for undo in (
        lambda: memory.rollback(expected=step),
        lambda: memory.revert(thread_id="t", expected=thread),
        lambda: app.checkpointer.rewind(first, expected=head),
    ):
        with pytest.raises(ConflictError, match=r"agreed to.* fact two"):
            undo()
    assert contents(memory) == before
    with pytest.raises(ValidationFailed, match="expected"):
        memory.rollback(expected=["fact two"])  # type: ignore[arg-type]
    with pytest.raises(ValidationFailed, match="say what"):
        memory.would_undo(since=0)


def test_a_running_task_cannot_rewind_its_own_thread(graphs_memory: MemoryStore) -> None:
    """Its run would go on from where it is, with a memory of somewhere else."""
    app = chat(graphs_memory)
    app.invoke({"said": ["one"]}, CONFIG)
    (first,) = ends(app)
    other: RunnableConfig = {"configurable": {"thread_id": "u"}}
    rewinding = StateGraph(State)
    rewinding.add_node("rewind", lambda _: app.checkpointer.rewind(first) and {})
    rewinding.add_edge(START, "rewind")
    graph: Any = rewinding.compile(checkpointer=app.checkpointer)
    with pytest.raises(ConflictError, match="running the task"):
        graph.invoke({"said": ["two"]}, CONFIG)
    graph.invoke({"said": []}, other)  # another thread may
    assert app.get_state(CONFIG).values == {"said": ["one", "heard one"]}
