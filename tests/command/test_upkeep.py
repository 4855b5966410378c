"""`memstate` verify, repair, prune, copy: a storage is checked, mended, made smaller, carried elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memstate_langgraph import MemoryStore, SQLiteStorage
from tests.command.helpers import VECTORS, as_json, chroma, run, shell, store
from tests.servers import postgres_url, redis_url, schema_of


def damage() -> None:
    vectors = chroma()
    with store() as memory:
        (row,) = memory.query("note")
    found = vectors.get(where={"fact_id": row.id})
    vectors.delete(found["ids"])
    vectors.add_texts(["a stray"], ids=["stray"])


def test_verify_tells_by_its_exit_code(folder: Path) -> None:
    assert "all agree" in run("verify", "state.db", *VECTORS).stdout
    assert "not compared: vectors in 'Chroma:memory'" in run("verify", "state.db").stderr
    damage()
    report = as_json("verify", "state.db", *VECTORS, code=1)
    assert (report["ok"], len(report["findings"])) == (False, 2)
    assert "NOT in step" in run("verify", "state.db", *VECTORS, code=1).stdout


def test_repair_asks_and_mends(folder: Path) -> None:
    damage()
    run("repair", "state.db", *VECTORS, answer="n\n", code=3)
    assert not as_json("verify", "state.db", *VECTORS, code=1)["ok"]
    assert "all agree" in run("repair", "state.db", *VECTORS, answer="y\n").stdout
    assert as_json("verify", "state.db", *VECTORS)["ok"]


def test_repair_embeds_again_on_request(folder: Path) -> None:
    vectors = chroma()
    live = set(vectors.get()["ids"])
    assert as_json("repair", "state.db", "--rebuild", "--yes", *VECTORS)["ok"]
    assert len(set(vectors.get()["ids"]) - live) == 2


def test_a_collection_of_another_storage_is_left_alone(folder: Path) -> None:
    """Repair would take all its vectors for strays and delete them."""
    vectors = chroma("others")
    vectors.add_texts(["not ours"], ids=["theirs"])
    with MemoryStore(SQLiteStorage("empty.db")):
        pass
    wrong = ["--chroma", "chroma", "--collection", "others", "--text-field", "content", "--yes"]
    assert "'Chroma:memory'" in run("repair", "state.db", *wrong, code=2).stderr
    assert "another storage" in run("repair", "empty.db", *wrong, code=2).stderr
    assert vectors.get()["ids"] == ["theirs"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--keep-last", "2", "--all"], {"chat-1": 2, "chat-2": 2}),
        (["--keep-last", "1", "--thread", "chat-2"], {"chat-1": 3, "chat-2": 1}),
        (["--older-than", "1d", "--all"], {"chat-1": 3, "chat-2": 3}),
        (["--older-than", "0s", "--thread", "chat-1"], {"chat-1": 1, "chat-2": 3}),
        (["--delete", "--thread", "chat-1", "--vacuum"], {"chat-2": 3}),
    ],
)
def test_prune_keeps_what_it_says(folder: Path, options: list[str], kept: dict[str, int]) -> None:
    run("prune", "state.db", *options, answer="n\n", code=3)
    assert sum(row["checkpoints"] for row in as_json("threads", "state.db")) == 6
    told = as_json("prune", "state.db", *options, "--yes")
    assert {row["thread_id"]: row["checkpoints"] for row in as_json("threads", "state.db")} == kept
    assert told["deleted"] == 6 - sum(kept.values())
    assert len(as_json("query", "state.db")) == 2


@pytest.mark.parametrize(
    ("server", "name"), [(postgres_url, "schema"), (redis_url, "prefix")], ids=["postgres", "redis"]
)
def test_a_file_is_copied_to_a_server_and_used_there(folder: Path, server: Callable[[], str], name: str) -> None:
    url = f"{server()}{'&' if '?' in server() else '?'}{name}={schema_of(folder)}"
    assert "no such storage" in run("log", url, code=4).stderr
    done = shell("copy", "state.db", url, "--vectors", "Chroma:memory", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"entries": 3, "facts": 2, "threads": 2, "vectors": 3}
    assert as_json("log", url) == as_json("log", "state.db")
    assert as_json("threads", url) == as_json("threads", "state.db")
    run("rollback", url, "--session", "chat-1", "--yes", *VECTORS)
    assert [fact["payload"]["content"] for fact in as_json("query", url, "preference")] == ["Ana is vegetarian"]
    assert as_json("verify", url, *VECTORS)["ok"]
    assert "history of its own" in run("copy", "state.db", url, code=3).stderr
    assert as_json("stats", url)["bytes"] is None
