"""`memstate` log, show, query, search, threads, stats, diff: what is there, now and then."""

from __future__ import annotations

from datetime import timedelta, timezone
from pathlib import Path

import pytest

from memstate_langgraph import Fact
from tests.command.helpers import VECTORS, as_json, run, shell, store


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
    source = "from tests.command.helpers import hook\n"
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
