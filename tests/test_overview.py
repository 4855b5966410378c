"""How much there is, on every storage, and storages by URL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from memstate_langgraph import Fact, MemoryStore, MemStateCheckpointer, SQLiteStorage, StorageError, ValidationFailed
from memstate_langgraph.backends.urls import storage_from
from memstate_langgraph.overview import overview, time_of
from tests.conftest import Opener


def saved(saver: MemStateCheckpointer, thread_id: str, number: int) -> list[str]:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    ids = []
    for step in range(number):
        checkpoint = empty_checkpoint()
        config = saver.put(config, checkpoint, {"source": "loop", "step": step, "parents": {}}, {})
        ids.append(checkpoint["id"])
    return ids


def test_counts_are_what_was_written(reopen: Opener) -> None:
    memory = reopen()
    first = memory.commit(Fact(type="note", payload={"content": "one"}), session_id="a")
    memory.commit(Fact(type="note", payload={"content": "two"}), session_id="b")
    memory.commit(Fact(type="task", payload={"content": "three"}), session_id="b")
    memory.delete(first)
    memory.rollback(1, session_id="b")
    door: Any = memory.storage
    if not isinstance(memory, MemoryStore):
        door = door.sync()
    found = door.run(overview(2))
    assert found.counts.facts == {"note": 1}
    assert (found.counts.entries, found.counts.steps, found.counts.vectors) == (5, 3, {})
    assert [entry.seq for entry in found.last] == [entry.seq for entry in memory.log(limit=2)]
    assert found.threads == []


def test_threads_are_listed_by_their_last_checkpoint(tmp_path: Path) -> None:
    with MemoryStore(SQLiteStorage(tmp_path / "state.db")) as memory:
        saver = MemStateCheckpointer(memory)
        older = saved(saver, "older", 2)
        newer = saved(saver, "newer", 3)
        saved(saver, "older-too", 0)
        threads = memory.storage.run(overview()).threads
        assert [(row.thread_id, row.checkpoints, row.first, row.last) for row in threads] == [
            ("older", 2, older[0], older[-1]),
            ("newer", 3, newer[0], newer[-1]),
        ]
        listed = memory.query("langgraph.checkpoint", session_id="newer")
        assert [fact.payload["checkpoint_id"] for fact in listed] == newer


def test_a_checkpoint_id_tells_its_time() -> None:
    made = time_of(empty_checkpoint()["id"])
    assert made is not None
    assert abs(made - datetime.now(UTC)) < timedelta(seconds=10)
    example = "1EC9414C-232A-6B00-B3C8-9F6BDECED846"  # the one of RFC 9562
    assert time_of(example) == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)
    assert time_of("no-uuid") is None
    assert time_of("8a6e0804-2bd0-4672-b79d-d97027f9071a") is None


@pytest.mark.parametrize("form", ["{path}", "sqlite:///{path}", "SQLITE:///{path}"])
def test_a_url_or_path_opens_a_file(form: str, tmp_path: Path) -> None:
    url = form.format(path=tmp_path / "state.db")
    storage_from(url).close()
    assert (tmp_path / "state.db").exists()
    storage_from(url, must_exist=True).close()


def test_a_relative_url_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage_from("sqlite:///my%20state.db").close()
    assert Path("my state.db").exists()


@pytest.mark.parametrize("url", ["sqlite:state.db", "sqlite://state.db", "sqlite:///", "", None, 7])
def test_a_malformed_url_is_refused(url: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationFailed, match="storage"):
        storage_from(url)
    assert not list(tmp_path.iterdir())


def test_an_unknown_scheme_is_named_without_its_password() -> None:
    with pytest.raises(ValidationFailed, match=r"no backend for 'oracle' URLs; known are .*sqlite") as error:
        storage_from("oracle://ana:secret@host/db")
    assert "secret" not in str(error.value)


def test_looking_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        storage_from(str(tmp_path / "typo.db"), must_exist=True)
    assert not list(tmp_path.iterdir())
