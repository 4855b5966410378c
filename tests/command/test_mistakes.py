"""What a user gets wrong is told in one line, with an exit code."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.command.helpers import VECTORS, run


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
