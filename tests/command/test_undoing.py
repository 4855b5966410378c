"""`memstate` rollback, revert, rewind: shown first, done when somebody says yes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from memstate_langgraph import Cause, Fact, MemoryStore, MemStateCheckpointer
from tests.command.helpers import VECTORS, as_json, run, store


def test_a_dry_run_shows_and_changes_nothing(folder: Path) -> None:
    planned = as_json("rollback", "state.db", "--session", "chat-1", "--dry-run")
    assert [change["after"]["payload"]["content"] for change in planned] == ["Ana is vegetarian"]
    assert "Ana eats fish again → Ana is vegetarian" in run("rollback", "state.db", "-s", "chat-1", "--dry-run").stdout
    assert len(as_json("log", "state.db")) == 3


def test_rollback_undoes_facts_and_vectors_together(folder: Path) -> None:
    run("rollback", "state.db", "--session", "chat-1", "--reason", "a typo", *VECTORS, answer="y\n")
    with store(vectors=True) as memory:
        (hit,) = memory.search("what does she eat?", typename="preference")
        assert hit.fact.payload["content"] == "Ana is vegetarian"
        entry = memory.log(limit=1)[0]
        assert (entry.actor, entry.reason, entry.undoes) == ("memstate command", "a typo", 2)
        assert memory.verify().ok


def test_a_no_leaves_everything_as_it_is(folder: Path) -> None:
    for answer in ("n\n", ""):
        result = run("rollback", "state.db", *VECTORS, answer=answer, code=3)
        assert "trains" in result.stdout
        assert "nothing was changed" in result.stderr
    assert len(as_json("log", "state.db")) == 3


def test_rollback_without_the_vectors_is_refused(folder: Path) -> None:
    assert "'Chroma:memory'" in run("rollback", "state.db", "--yes", code=2).stderr
    assert len(as_json("log", "state.db")) == 3


def test_what_was_not_shown_is_not_undone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def someone_else_then_yes(*_: object, **__: object) -> bool:
        with store(vectors=True) as memory:
            memory.commit(Fact(type="note", payload={"content": "meanwhile"}))
        return True

    monkeypatch.setattr("typer.confirm", someone_else_then_yes)
    assert "memory was changed since" in run("rollback", "state.db", *VECTORS, code=3).stderr
    assert [fact["payload"]["content"] for fact in as_json("query", "state.db", "note")] == ["trains", "meanwhile"]


def test_a_conflict_is_one_line(folder: Path) -> None:
    with store(vectors=True) as memory:
        memory.update("train", {"stars": 5}, session_id="chat-3")
    result = run("rollback", "state.db", "--session", "chat-2", "--yes", *VECTORS, code=3)
    assert result.stderr.startswith("memstate: rollback: fact train was changed later by session 'chat-3'")
    assert len(result.stderr.splitlines()) == 1


def test_there_may_be_nothing_to_undo(folder: Path) -> None:
    assert "nothing to undo" in run("rollback", "state.db", "--session", "nobody", "--yes").stderr


def test_revert_undoes_by_cause(folder: Path) -> None:
    cause = Cause(thread_id="chat-9", run_id="run-1")
    with store(vectors=True) as memory:
        position = memory.log(limit=1)[0].seq
        memory.update("train", {"stars": 5}, cause=cause)
        memory.commit(Fact(type="note", payload={"content": "later"}), cause=cause)
        memory.commit(Fact(type="note", payload={"content": "of nobody"}))
    shown = run("revert", "state.db", "--run", "run-1", "--dry-run").stdout
    assert "stars: 5 → 4" in shown
    assert "was content: later" in shown
    assert "nothing to undo" in run("revert", "state.db", "--run", "run-2", "--yes").stderr
    later = ["--thread", "chat-9", "--since", str(position + 1)]
    assert [
        change["before"]["payload"]["content"] for change in as_json("revert", "state.db", *later, "--dry-run")
    ] == ["later"]
    assert as_json("revert", "state.db", "--thread", "chat-9", "--yes", *VECTORS)["touched"]
    with store(vectors=True) as memory:
        assert {fact.payload.get("content") for fact in memory.query("note")} == {"trains", "of nobody"}
        assert memory.get("train").payload["stars"] == 4  # type: ignore[union-attr]
        assert memory.verify().ok


def test_a_conversation_and_its_memory_are_rewound(folder: Path) -> None:
    config: Any = {"configurable": {"thread_id": "chat-1"}}
    with store(vectors=True) as memory:
        talk = remembering(memory)
        talk.invoke({"messages": [("user", "I like tea")]}, config)
    first = as_json("threads", "state.db", "chat-1")[2]["checkpoint_id"]
    shown = run("rewind", "state.db", "chat-1", first, *VECTORS, answer="n\n", code=3)
    assert "was content: I like tea" in shown.stdout
    assert "'chat-1' goes back" in shown.stderr
    done = as_json("rewind", "state.db", "chat-1", first, "--yes", *VECTORS)
    assert as_json("threads", "state.db", "chat-1")[-1]["checkpoint_id"] == done["checkpoint"]
    assert len(done["touched"]) == 1
    with store(vectors=True) as memory:
        assert len(remembering(memory).get_state(config).values["messages"]) == 2
        assert [fact.payload["content"] for fact in memory.query("note")] == ["trains"]
        assert memory.verify().ok
    assert "no fact would change, but thread 'chat-1'" in run("rewind", "state.db", "chat-1", first, "--dry-run").stderr


def remembering(memory: MemoryStore) -> Any:
    def remember(state: MessagesState) -> None:
        memory.commit(Fact(type="note", payload={"content": state["messages"][-1].text}))

    graph = StateGraph(MessagesState)
    graph.add_node("remember", remember)
    graph.add_edge(START, "remember")
    return graph.compile(checkpointer=MemStateCheckpointer(memory))
