"""A collection is embedded again from the facts, while others read and write; reports are fit to be read."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from memstate_langgraph import LeaseLost, MemoryStore, SQLiteStorage, ValidationFailed
from tests.conftest import Opener
from tests.models import note
from tests.stores import Unreliable, Words, assert_in_step, collect, found, hook_over


class Turned(Words):
    """Another model: no vector is near the one that `Words` makes of the same text."""

    def embed_query(self, text: str) -> list[float]:
        return [-number for number in reversed(super().embed_query(text))]


class Pausing(Unreliable):
    """Lets something else happen after an upsert, or after a search found its hits."""

    def __init__(self) -> None:
        super().__init__()
        self.after_upsert: Any = None
        self.after_search: Any = None

    def add_documents(self, *args: Any, **options: Any) -> list[str]:
        ids = super().add_documents(*args, **options)
        happens, self.after_upsert = self.after_upsert, None
        if happens:
            happens()
        return ids

    def similarity_search_with_score(self, *args: Any, **options: Any) -> Any:
        hits = super().similarity_search_with_score(*args, **options)
        happens, self.after_search = self.after_search, None
        if happens:
            happens()
        return hits


def test_a_changed_model_is_followed(open_store: Opener) -> None:
    vectors, others = Unreliable(), Unreliable()
    memory = open_store(
        hook_over(vectors, grace=0.0, late=0.0, name="one"), hook_over(others, grace=0.0, late=0.0, name="other")
    )
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(1200)])
    memory.delete("n7")
    memory.repair()
    untouched = set(others.store)
    vectors.embedding = Turned()
    before = set(vectors.store)
    stages: list[tuple[str, int, int]] = []
    assert memory.repair(lambda *stage: stages.append(stage), rebuild=["one"]).ok
    assert [stage[1:] for stage in stages if stage[0] == "rebuilding one"] == [(500, 1199), (1000, 1199), (1199, 1199)]
    assert len(vectors.store) == 1199
    assert not before & set(vectors.store), "fresh ids, and the old ones are gone"
    assert set(others.store) == untouched
    assert all(row["vector"] == Turned().embed_query(row["text"]) for row in vectors.store.values())
    assert_in_step(memory)


def test_what_was_lost_unnoticed_comes_back(open_store: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = Unreliable()
    hook = hook_over(vectors)
    monkeypatch.setattr(hook.adapter, "ids", lambda: None)
    memory = open_store(hook)
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(5)])
    vectors.store.clear()
    assert memory.repair().ok, "nobody can see it"
    assert found(memory) == {}
    assert memory.repair(rebuild=True).ok
    assert len(found(memory)) == 5


def test_a_search_during_a_rebuild_sees_every_fact_once(tmp_path: Path) -> None:
    vectors = Pausing()
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(vectors, grace=60.0)])
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(5)])
    vectors.after_search = lambda: memory.repair(rebuild=True)
    assert len(found(memory)) == 5, "its hits were the old ones"
    assert len(vectors.store) == 10
    assert [hit.fact.id for hit in memory.search("number", limit=5)] == [
        hit.fact.id for hit in memory.search("number", limit=None)
    ], "both vectors of a fact are hit, and it counts once"
    assert len(memory.search("number", limit=5)) == 5


def test_what_changes_during_a_rebuild_stays_as_it_was_changed(tmp_path: Path) -> None:
    vectors = Pausing()
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(vectors, grace=0.0, late=0.0)])
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(5)])

    def change() -> None:
        memory.update("n0", {"content": "changed"})
        memory.update("n1", {"content": ""})
        memory.delete("n2")
        memory.commit(note("new", "n5"))

    vectors.after_upsert = change
    memory.repair(rebuild=True)
    assert_in_step(memory)
    assert {key: fact.payload["content"] for key, fact in found(memory).items()} == {
        "n0": "changed", "n3": "number 3", "n4": "number 4", "n5": "new",
    }  # fmt: skip
    assert [hit.fact.id for hit in memory.search("number 0 changed", limit=1, score_threshold=0.5)] == ["n0"]
    with memory.storage.engine._reader() as connection:  # type: ignore[attr-defined]
        twice = connection.execute(
            "SELECT fact_id FROM vectors WHERE state = 'live' GROUP BY fact_id HAVING count(*) > 1"
        ).fetchall()
    assert twice == []


def test_a_rebuild_whose_lease_ended_leaves_what_there_was(tmp_path: Path) -> None:
    vectors = Pausing()
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(vectors, lease=0.0, grace=0.0, late=0.0)])
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(5)])
    vectors.after_upsert = lambda: collect(memory)  # somebody reaps the expired intents
    with pytest.raises(LeaseLost):
        memory.repair(rebuild=True)
    assert len(found(memory)) == 5
    assert_in_step(memory)


def test_writers_and_readers_go_on_while_collections_are_rebuilt(tmp_path: Path) -> None:
    vectors = Unreliable()
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(vectors, grace=5.0, late=0.0)])
    memory.commit_many([note(f"number {i}", f"n{i}") for i in range(50)])
    errors: list[str] = []
    ends = threading.Event()

    def write(worker: int) -> None:
        i = 0
        while not ends.is_set():
            i += 1
            memory.update(f"n{(i * 7 + worker) % 40}", {"content": f"number {i} by {worker}"})

    def read() -> None:
        while not ends.is_set():
            if (seen := len(found(memory))) != 50:
                errors.append(f"{seen} of 50 facts")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        memory.repair(rebuild=True)
    ends.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_in_step(memory)


def test_what_is_committed_while_the_vector_store_is_looked_through_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repair would take its vector away for a moment, and a search would miss the fact."""
    vectors = Unreliable()
    hook = hook_over(vectors)
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook])
    ids = hook.adapter.ids
    committed: list[str] = []

    def ids_and_a_commit() -> Any:
        held = ids()
        committed.append(memory.commit(note(f"number {len(committed)}")))
        return held

    monkeypatch.setattr(hook.adapter, "ids", ids_and_a_commit)
    assert memory.verify().ok
    monkeypatch.undo()
    held = set(vectors.store)
    monkeypatch.setattr(hook.adapter, "ids", ids_and_a_commit)
    assert memory.repair().ok
    assert held <= set(vectors.store)
    assert vectors.upserts == len(committed), "nothing is embedded again"


def test_rebuild_takes_names_of_hooks(open_store: Opener) -> None:
    memory = open_store(hook_over(Unreliable(), name="one"))
    for wrong in ("one", ["two"], 5, None):
        with pytest.raises(ValidationFailed, match="rebuild"):
            memory.repair(rebuild=wrong)  # type: ignore[arg-type]


def test_a_report_prints_well(open_store: Opener) -> None:
    vectors = Unreliable()
    memory = open_store(hook_over(vectors, name="<b>odd</b>"))
    memory.commit(note("one"))
    good = memory.verify()
    assert "all agree" in str(good)
    assert "all agree" in good._repr_html_()
    vectors.store.clear()
    bad = memory.verify()
    shown = bad._repr_html_()
    assert "NOT in step" in shown
    assert "<b>odd" not in shown
    assert "&lt;b&gt;odd" in shown
