"""The command `memstate`, as its users run it: in a shell, and through typer's runner where many cases are tried."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from langchain_chroma import Chroma
from langgraph.graph import START, MessagesState, StateGraph
from typer.testing import CliRunner

from memstate_langgraph import (
    Cause,
    Constraint,
    Fact,
    LocalEmbeddings,
    MemoryStore,
    MemStateCheckpointer,
    SQLiteStorage,
    VectorStoreSyncHook,
)
from memstate_langgraph.cli.app import app
from tests.models import Preference
from tests.servers import postgres_url, redis_url, schema_of

VECTORS = ["--chroma", "chroma", "--collection", "memory", "--text-field", "content"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with facts, vectors and a conversation; the commands run in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    with store(vectors=True) as memory:
        memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
        memory.commit_model(Preference(topic="food", content="Ana is vegetarian"), session_id="chat-1")
        memory.commit_model(Preference(topic="food", content="Ana eats fish again"), session_id="chat-1")
        memory.commit(Fact(id="train", type="note", payload={"content": "trains", "stars": 4}), session_id="chat-2")
        graph = StateGraph(MessagesState)
        graph.add_node("agent", lambda _: {"messages": [("ai", "Hello")]})
        graph.add_edge(START, "agent")
        talk: Any = graph.compile(checkpointer=MemStateCheckpointer(memory))
        for thread in ("chat-1", "chat-2"):
            talk.invoke({"messages": [("user", "Hi")]}, {"configurable": {"thread_id": thread}})
    return tmp_path


def store(*, vectors: bool = False) -> MemoryStore:
    hooks = [hook()] if vectors else []
    return MemoryStore(SQLiteStorage("state.db"), hooks)


def chroma(collection: str = "memory") -> Chroma:
    return Chroma(collection, LocalEmbeddings(), persist_directory=str(Path("chroma").resolve()))


def hook() -> VectorStoreSyncHook:
    return VectorStoreSyncHook(chroma(), text_field="content")


def run(*arguments: str, code: int = 0, answer: str | None = None) -> Any:
    result = CliRunner().invoke(app, list(arguments), input=answer)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def as_json(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    command = [sys.executable, "-m", "memstate_langgraph.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, **options)


# --- looking


def test_log_lists_the_newest_first_without_colours_in_a_pipe(folder: Path) -> None:
    done = shell("log", "state.db", cwd=folder)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:2] == ["seq", "time"]
    assert [row.split()[0] for row in rows] == ["3", "2", "1"]
    assert "content: Ana is vegetarian → Ana eats fish again" in rows[1]
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_log_narrows_to_a_session_and_a_number(folder: Path) -> None:
    assert [entry["seq"] for entry in as_json("log", "state.db", "--session", "chat-1")] == [2, 1]
    assert [entry["seq"] for entry in as_json("log", "sqlite:///state.db", "--limit", "1")] == [3]


def test_show_finds_a_fact_an_entry_and_a_transaction(folder: Path) -> None:
    shown = as_json("show", "state.db", "train")
    assert shown["fact"]["payload"] == {"content": "trains", "stars": 4}
    assert [entry["op"] for entry in shown["history"]] == ["COMMIT"]
    (entry,) = as_json("show", "state.db", "2")
    assert entry["op"] == "UPDATE"
    assert as_json("show", "state.db", entry["tx"]) == [entry]
    assert f"transaction {entry['tx']}" in run("show", "state.db", "2").stderr


def test_show_keeps_the_history_of_what_is_gone(folder: Path) -> None:
    with store(vectors=True) as memory:
        memory.delete("train")
    assert as_json("show", "state.db", "train")["fact"] is None
    result = run("show", "state.db", "train")
    assert "deleted" in result.stderr
    assert "was content: trains, stars: 4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["preference"], ["Ana eats fish again"]),
        (["--where", "topic=food"], ["Ana eats fish again"]),
        (["--where", "stars>=4"], ["trains"]),
        (["--where", "payload.stars<4"], []),
        (["--where", "session_id!=chat-1"], ["trains"]),
        (["--where", "stars>=4", "--where", "stars<4.5"], ["trains"]),
        (["--namespace", "elsewhere"], []),
        (["--limit", "1"], ["Ana eats fish again"]),
    ],
)
def test_query_answers_conditions(folder: Path, arguments: list[str], found: list[str]) -> None:
    assert [fact["payload"]["content"] for fact in as_json("query", "state.db", *arguments)] == found


def test_an_empty_answer_leaves_standard_output_empty(folder: Path) -> None:
    result = run("query", "state.db", "nothing")
    assert (result.stdout, result.stderr) == ("", "no fact answers this\n")


def test_search_finds_by_meaning(folder: Path) -> None:
    found = as_json("search", "state.db", "what does she eat for dinner?", "--type", "preference", *VECTORS)
    assert [hit["fact"]["payload"]["content"] for hit in found] == ["Ana eats fish again"]
    assert "Ana eats fish again" in run("search", "state.db", "dinner", *VECTORS).stdout


def test_a_hook_of_the_application_serves_as_well(folder: Path) -> None:
    source = "from tests.test_command import hook\n"
    Path("application.py").write_text(source, encoding="utf-8")
    found = as_json("search", "state.db", "dinner", "--limit", "1", "--hook", "application:hook")
    assert [hit["fact"]["type"] for hit in found] == ["preference"]


def test_threads_lists_threads_and_checkpoints(folder: Path) -> None:
    threads = as_json("threads", "state.db")
    assert [(row["thread_id"], row["checkpoints"]) for row in threads] == [("chat-1", 3), ("chat-2", 3)]
    checkpoints = as_json("threads", "state.db", "chat-1")
    assert [found["metadata"]["step"] for found in checkpoints] == [-1, 0, 1]
    assert checkpoints[1]["parent_checkpoint_id"] == checkpoints[0]["checkpoint_id"]
    assert [row.split()[:2] for row in run("threads", "state.db", "chat-1").stdout.splitlines()[1:]] == [
        ["-1", "input"],
        ["0", "loop"],
        ["1", "loop"],
    ]


def test_stats_counts(folder: Path) -> None:
    told = as_json("stats", "state.db")
    assert told["facts"] == {"note": 1, "preference": 1}
    assert (told["log_entries"], told["transactions_in_force"], told["threads"], told["checkpoints"]) == (3, 3, 2, 6)
    assert {(row["state"], row["number"]) for row in told["vectors"]} == {("live", 2), ("retired", 1)}
    assert told["bytes"] == Path("state.db").stat().st_size


def test_what_a_model_wrote_cannot_steer_the_terminal(folder: Path) -> None:
    with store(vectors=True) as memory:
        memory.commit(Fact(type="note", payload={"content": "x"}), session_id="\x1b[2J[red]\u202e", reason="\x07")
    shown = shell("log", "state.db", "--limit", "1", cwd=folder).stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert r"\x1b[2J[red]" in shown


# --- rolling back


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


# --- looking back


def test_diff_tells_what_changed_between_moments(folder: Path) -> None:
    changes = as_json("diff", "state.db", "1", "2")
    assert [(c["before"]["payload"]["content"], c["after"]["payload"]["content"]) for c in changes] == [
        ("Ana is vegetarian", "Ana eats fish again")
    ]
    result = run("diff", "state.db", "1")
    assert [row.split()[:2] for row in result.stdout.splitlines()[1:]] == [["changes", "preference"], ["comes", "note"]]
    assert "log 1 -> 3: 2 facts changed" in result.stderr
    with store() as memory:
        second = memory.log()[1].ts
    local = second.astimezone(timezone(timedelta(hours=5)))
    for moment in (second.isoformat(), local.isoformat(), second.replace(tzinfo=None).isoformat(" ")):
        assert [change["fact_id"] for change in as_json("diff", "state.db", moment)] == ["train"]
    checkpoint = as_json("threads", "state.db", "chat-1")[0]["checkpoint_id"]
    assert "nothing changed" in run("diff", "state.db", f"chat-1/{checkpoint}").stderr
    assert as_json("diff", "state.db", "0", f"chat-1/{checkpoint}")


def test_query_as_of_a_moment(folder: Path) -> None:
    found = as_json("query", "state.db", "preference", "--as-of", "1")
    assert [fact["payload"]["content"] for fact in found] == ["Ana is vegetarian"]


# --- other storages


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


# --- checking and mending


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


# --- what a user gets wrong


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["log", "typo.db"], 4, "typo.db: there is no such file"),
        (["log", "oracle://host/db"], 2, "no backend for 'oracle' URLs"),
        (["log", "other.db"], 4, "a SQLite file that memstate_langgraph did not make"),
        (["log", "text.db"], 4, "text.db: file is not a database"),
        (["log", "state.db", "--session", ""], 2, "session_id: must be a non-empty string"),
        (["show", "state.db", "nothing"], 2, "there is no fact, entry or transaction 'nothing'"),
        (["show", "state.db", "9" * 400], 2, "there is no fact, entry or transaction"),
        (["threads", "state.db", "nobody"], 2, "there are no checkpoints of thread 'nobody'"),
        (["query", "state.db", "--where", "topic"], 2, "'topic' is no condition"),
        (["query", "state.db", "--where", "a=1", "--where", "a=2"], 2, "two conditions a="),
        (["query", "state.db", "--namespace", ""], 2, "namespace: must be a non-empty string"),
        (["search", "state.db", "dinner"], 2, "say where they are with --chroma"),
        (["search", "state.db", "", *VECTORS], 2, "search: the query"),
        (["repair", "state.db"], 2, "repair mends vectors"),
        (["verify", "state.db", "--chroma", "chroma"], 2, "belong together"),
        (["verify", "state.db", "--chroma", ".", *VECTORS[2:]], 2, "no folder of Chroma"),
        (["verify", "state.db", *VECTORS[:3], "memories", *VECTORS[4:]], 2, "only memory"),
        (["verify", "state.db", "--hook", "json"], 2, "not of the form MODULE:NAME"),
        (["verify", "state.db", "--hook", "json:dumps"], 2, "json:dumps cannot be had"),
        (["verify", "state.db", "--hook", "builtins:dict"], 2, "not a VectorStoreSyncHook"),
        (["verify", "state.db", "--hook", "a:b", *VECTORS], 2, "brings its own vector store"),
        (["diff", "state.db", "yesterday"], 2, "'yesterday' is no moment"),
        (["diff", "state.db", "2", "1"], 2, "swap them"),
        (["diff", "state.db", "chat-1/nothing"], 2, "no checkpoint 'nothing'"),
        (["revert", "state.db"], 2, "say what, with --run"),
        (["revert", "state.db", "--thread", "chat-1", "--since", "soon"], 2, "'soon' is no moment"),
        (["rewind", "state.db", "chat-1", "nothing"], 2, "no checkpoint 'nothing'"),
        (["rewind", "state.db", "chat-1", "00000000-0000-0000-0000-000000000000"], 2, "no checkpoint"),
        (["copy", "typo.db", "new.db"], 4, "typo.db: there is no such file"),
        (["log", "postgresql://me:secret@127.0.0.1:1/nothing"], 4, "cannot connect"),
        (["log", "redis://me:secret@127.0.0.1:1/0"], 4, "cannot connect"),
        (["prune", "state.db", "--all"], 2, "give one of --keep-last"),
        (["prune", "state.db", "--keep-last", "1"], 2, "say of which threads"),
        (["prune", "state.db", "--keep-last", "1", "--thread", "nobody"], 2, "no checkpoints of thread 'nobody'"),
        (["prune", "state.db", "--older-than", "soon", "--all"], 2, "'soon' is no age"),
    ],
)
def test_mistakes_are_told_in_one_line(folder: Path, arguments: list[str], code: int, said: str) -> None:
    with sqlite3.connect("other.db") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    Path("text.db").write_text("just some text that is long enough to be read as a header\n" * 9, encoding="utf-8")
    before = {path.name for path in folder.iterdir()}
    result = run(*arguments, code=code)
    assert result.stderr.startswith("memstate: "), result.output
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert {path.name for path in folder.iterdir()} <= before | {"text.db-journal"}


def test_typers_own_mistakes_have_the_same_exit_code(folder: Path) -> None:
    for arguments in (
        ["log"],
        ["log", "state.db", "--limit", "0"],
        ["dance", "state.db"],
        ["rollback", "state.db", "--up"],
    ):
        assert "Usage: " in run(*arguments, code=2).stderr


def test_the_help_names_every_command_and_the_exit_codes() -> None:
    text = run("--help").stdout
    for word in [
        "log",
        "show",
        "query",
        "search",
        "threads",
        "stats",
        "diff",
        "rollback",
        "revert",
        "rewind",
        "verify",
        "repair",
        "prune",
        "copy",
    ]:
        assert f"\n  {word} " in text
    assert "Exit codes: 0 done; 1 facts, log and vectors are not in step" in " ".join(text.split())


# --- as a process


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    with store(vectors=True) as memory:
        memory.commit_many([Fact(type="log", payload={"n": "x" * 20_000}) for _ in range(300)])
    process = subprocess.Popen(
        [sys.executable, "-m", "memstate_langgraph.cli", "query", "state.db", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"[\n"
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()


def test_a_broken_pipe_is_no_error_wherever_it_shows(folder: Path) -> None:
    """Raised by hand, since not every system tells a writer that its reader has gone."""
    Path("broken.py").write_text(
        "from memstate_langgraph.cli import main, reading\n\ndef gone(_):\n    raise BrokenPipeError\n\n"
        "reading.print_json = gone\nimport sys; sys.argv = ['memstate', 'query', 'state.db', '--json']; main()\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "broken.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_interrupt_ends_with_130(folder: Path) -> None:
    Path("slow.py").write_text(
        "import signal, os, time\nfrom tests.test_command import hook as make\n\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it\n\n"
        "def search(*_):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(9)\n\n"
        "def hook():\n    made = make()\n    made.search = search\n    return made\n",
        encoding="utf-8",
    )
    done = shell("search", "state.db", "dinner", "--hook", "slow:hook", cwd=folder)
    assert done.returncode == 130, (done.stdout, done.stderr)
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_another_process_has_open_is_told(folder: Path) -> None:
    with store(vectors=True):
        done = shell("search", "state.db", "dinner", *VECTORS, cwd=folder)
    assert done.returncode == 4
    assert done.stderr.startswith("memstate: ")
    assert len(done.stderr.splitlines()) == 1


def test_looking_loads_no_vector_store(folder: Path) -> None:
    code = "import sys\nfrom memstate_langgraph.cli.app import app\napp(['log', 'state.db'], standalone_mode=False)\n"
    code += "assert 'chromadb' not in sys.modules and 'langchain_chroma' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr


def test_a_fault_of_ours_has_an_exit_code_of_its_own(folder: Path) -> None:
    Path("faulty.py").write_text(
        "from memstate_langgraph.cli import main, reading\nreading.opened = None\n"
        "import sys; sys.argv = ['memstate', 'log', 'state.db']; main()\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "faulty.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 70
    assert "TypeError" in done.stderr


def test_a_terminal_gets_colours(folder: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "memstate_langgraph.cli", "log", "state.db"],
        stdout=theirs,
        env={**ENVIRONMENT, "TERM": "xterm-256color"},
    )
    assert done.wait(60) == 0
    os.set_blocking(ours, False)
    assert b"\x1b[33mUPDATE" in os.read(ours, 100_000)
    os.close(ours)
    os.close(theirs)


def test_the_shell_completes_commands(folder: Path) -> None:
    asked = {"_MEMSTATE_COMPLETE": "complete_bash", "COMP_WORDS": "memstate rol", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "memstate_langgraph.cli"],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **asked},
    )
    assert done.stdout.split() == ["rollback"]
